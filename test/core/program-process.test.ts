import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { beforeEach, describe, expect, it } from 'vitest'
import { runProgram, startProgram } from '../../src/core/program.ts'
import { startProgramsApart } from '../../src/core/program-process.ts'

const ENTRY = new URL('../../dist/core/program-main.js', import.meta.url)

/** Who starts programs at this moment. */
const starter = async (): Promise<number> => Number(await runProgram('sh', ['-c', 'echo $PPID']))

/** A program that says its number and goes on until it is ended. */
const ENDLESS = ['-e', 'console.log(process.pid); setInterval(() => {}, 1000)']

describe('programs that are started apart', () => {
  beforeEach(() => startProgramsApart(ENTRY))

  it('are those of one process, which is not this one', async () => {
    const first = await starter()
    expect(first).not.toBe(process.pid)
    startProgramsApart(ENTRY)
    expect(await starter()).toBe(first)
  })

  it('answer as they do here: with their output, their failure, or that they are not there', async () => {
    expect(await runProgram('cat', [], { input: 'täxt' })).toBe('täxt')
    await expect(runProgram('sh', ['-c', 'echo no such pool >&2; exit 3'])).rejects.toMatchObject({
      ...{ name: 'ProgramError', exitCode: 3, stderr: 'no such pool', isMissing: false },
    })
    await expect(runProgram('/no/such/program', ['x'])).rejects.toMatchObject({
      isMissing: true,
      message: '/no/such/program x: there is no such program on this machine',
    })
  })

  it('are not disturbed by one that cannot be started at all', async () => {
    const first = await starter()
    const beside = runProgram('cat', [], { input: 'täxt' })
    // A word with a NUL in it is refused before anything is started.
    await expect(runProgram('echo', ['a\0b'])).rejects.toMatchObject({ name: 'ProgramError', exitCode: null })
    await expect(startProgram('echo', ['a\0b'], '/dev/null')).rejects.toMatchObject({ name: 'ProgramError' })
    expect(await beside).toBe('täxt')
    expect(await starter()).toBe(first)
  })

  it('are ended when they are cancelled, after their output has come', async () => {
    const controller = new AbortController()
    let output = ''
    const run = runProgram(process.execPath, ENDLESS, {
      signal: controller.signal,
      onOutput(text) {
        output += text
        controller.abort()
      },
      timeoutMs: Number.POSITIVE_INFINITY,
    })
    await expect(run).rejects.toThrow('was cancelled')
    while (existsSync(`/proc/${output.trim()}`)) await delay(5)
  })

  it('go on without it when they are to, and leave what they say in a file', async () => {
    const log = join(mkdtempSync(join(tmpdir(), 'qpair-program-')), 'log')
    const apart = await starter()
    const pid = await startProgram('sh', ['-c', 'echo $PPID; echo täxt >&2; exec sleep 1000'], log)
    try {
      while (!readFileSync(log, 'utf8').endsWith('täxt\n')) await delay(5)
      expect(readFileSync(log, 'utf8')).toBe(`${apart}\ntäxt\n`)
      process.kill(apart, 'SIGKILL')
      while (existsSync(`/proc/${apart}`)) await delay(5)
      // Its session is its own, so that no signal to the daemon's comes to it: member 6 of proc_pid_stat(5).
      const [, session] = /^\d+ \(sleep\) S \d+ \d+ (\d+) /.exec(readFileSync(`/proc/${pid}/stat`, 'utf8'))!
      expect(Number(session)).toBe(pid)
    } finally {
      process.kill(pid)
      rmSync(dirname(log), { recursive: true })
    }
  })

  it('that go on without it say why they cannot be started', async () => {
    const log = join(mkdtempSync(join(tmpdir(), 'qpair-program-')), 'log')
    await expect(startProgram('/no/such/program', ['x'], log)).rejects.toMatchObject({
      isMissing: true,
      message: '/no/such/program x: there is no such program on this machine',
    })
    rmSync(dirname(log), { recursive: true })
    await expect(startProgram('sh', [], log)).rejects.toThrow('what it says cannot be kept: ENOENT')
    await starter()
  })

  it('are started here again when that process is killed, and nobody waits for its programs', async () => {
    const apart = await starter()
    let output = ''
    const run = runProgram(process.execPath, ENDLESS, {
      onOutput(text) {
        output += text
        process.kill(apart, 'SIGKILL')
      },
      timeoutMs: Number.POSITIVE_INFINITY,
    })
    await expect(run).rejects.toThrow(/nobody knows how it ended: .* is gone \(it ended, SIGKILL\)/)
    process.kill(Number(output), 'SIGKILL')
    expect(await starter()).toBe(process.pid)
  })

  it('leave no process behind when the daemon is killed', async () => {
    const daemon = `
      const { runProgram } = await import('${new URL('program.js', ENTRY)}')
      const { startProgramsApart } = await import('${new URL('program-process.js', ENTRY)}')
      startProgramsApart(new URL('${ENTRY}'))
      process.stdout.write(await runProgram('sh', ['-c', 'echo $PPID']))
      setInterval(() => {}, 1000)
    `
    const child = spawn(process.execPath, ['--input-type=module', '-e', daemon], {
      stdio: ['ignore', 'pipe', 'inherit'],
    })
    const [apart] = await once(child.stdout, 'data')
    expect(existsSync(`/proc/${Number(apart)}`)).toBe(true)
    child.kill('SIGKILL')
    while (existsSync(`/proc/${Number(apart)}`)) await delay(5)
  })
})
