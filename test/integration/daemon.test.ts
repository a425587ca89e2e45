/** How the lab runs a daemon, with a small program in the daemon's place that misbehaves when told to. */
import { spawn } from 'node:child_process'
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { text } from 'node:stream/consumers'
import { fileURLToPath } from 'node:url'
import { afterAll, afterEach, beforeEach, expect, it } from 'vitest'
import { type Daemon, startDaemon } from './lab/daemon.ts'
import { describeWith } from './lab/describe-with.ts'

const directory = mkdtempSync(join(tmpdir(), 'qpair-fake-'))
const script = join(directory, 'fake.mjs')
afterAll(() => rmSync(directory, { recursive: true }))

// Answers in two halves, so that a client must find the end of a response by itself.
writeFileSync(
  script,
  `
import { readFileSync, rmSync, writeFileSync } from 'node:fs'
import { createServer } from 'node:net'
const [command, , socketPath, , state, ...args] = process.argv.slice(2)
console.error('fake:', command, ...args, process.env.COLOUR ?? '')
if (args.includes('--refuse')) process.exit(3)
const methods = {
  spdk_get_version: () => ({ result: { version: 'fake' } }),
  echo: params => ({ result: { params } }),
  remember: ({ value }) => writeFileSync(state + '/value', value) ?? { result: true },
  recall: () => ({ result: readFileSync(state + '/value', 'utf8') }),
  refuse: () => ({ error: { code: -19, message: 'no such thing' } }),
  crash: () => { console.error('fake: crashing'); process.exit(7) },
}
rmSync(socketPath, { force: true })
createServer(socket => socket.on('data', data => {
  const { id, method, params } = JSON.parse(data)
  const answer = JSON.stringify({ jsonrpc: '2.0', id, ...methods[method](params) })
  const half = answer.lastIndexOf('}')
  socket.write(answer.slice(0, half), () => setImmediate(() => socket.write(answer.slice(half))))
})).listen(socketPath)
process.on('SIGTERM', () => process.exit(args.includes('--dirty') ? 9 : 0))
`,
)

await describeWith(['setpriv'], 'daemon', () => {
  let daemon: Daemon
  beforeEach(async () => {
    daemon = await startDaemon({ script, args: ['--name', 'x'], env: { COLOUR: 'blue' } })
  })
  afterEach(() => daemon.discard())

  it('gets its arguments and environment, and answers', async () => {
    expect(daemon.output).toBe('fake: serve --name x blue\n')
    expect(await daemon.rpc('echo', { list: [{}] })).toEqual({ params: { list: [{}] } })
  })

  it('rejects a failed call with the code and message of the daemon', async () => {
    await expect(daemon.rpc('refuse')).rejects.toMatchObject({ code: -19, message: 'no such thing' })
  })

  it('shows the last words of a daemon that dies in a call', async () => {
    await expect(daemon.rpc('crash')).rejects.toThrow(/crash: .*\n.*\nfake: serve.*\nfake: crashing/)
  })

  it('keeps its state over a kill', async () => {
    await daemon.rpc('remember', { value: 'kept' })
    const { pid } = daemon
    expect(await daemon.kill()).toEqual({ code: null, signal: 'SIGKILL' })
    await daemon.start()
    expect(daemon.pid).not.toBe(pid)
    expect(await daemon.rpc('recall')).toBe('kept')
    await daemon.restart()
    expect(await daemon.rpc('recall')).toBe('kept')
  })

  it('leaves no process and no file behind when it is stopped', async () => {
    const { pid } = daemon
    await daemon.stop()
    expect(isRunning(pid)).toBe(false)
    expect(existsSync(daemon.directory)).toBe(false)
  })

  it('reports a daemon that does not start, with its output', async () => {
    await expect(startDaemon({ script, args: ['--refuse'] })).rejects.toThrow(
      /with code 3\n.*\nfake: serve --refuse/,
    )
  })

  it('reports a daemon that does not end cleanly', async () => {
    const dirty = await startDaemon({ script, args: ['--dirty'] })
    await expect(dirty.stop()).rejects.toThrow('with code 9')
  })
})

await describeWith(['setpriv'], 'child', () => {
  it('is killed when the process that started it is', async () => {
    const module = fileURLToPath(new URL('lab/child.ts', import.meta.url))
    const program = `
      import { runnerImport } from 'vite'
      const { module } = await runnerImport(${JSON.stringify(module)}, { configFile: false })
      const { pid } = await module.Child.start('sleep', ['1000'])
      process.stdout.write(String(pid), () => process.kill(process.pid, 'SIGKILL'))
    `
    const parent = spawn(process.execPath, ['--input-type=module', '-e', program], {
      stdio: ['ignore', 'pipe', 'inherit'],
    })
    const pid = Number(await text(parent.stdout))
    expect(pid).toBeGreaterThan(1)
    await expect.poll(() => isRunning(pid)).toBe(false)
  })
})

/** Whether a process exists and has not ended: one that nobody has waited for yet is a zombie, state Z. */
function isRunning(pid: number): boolean {
  try {
    return !/^\d+ \(.*\) Z/.test(readFileSync(`/proc/${pid}/stat`, 'latin1'))
  } catch {
    // No such process.
    return false
  }
}
