import { describe, expect, it } from 'vitest'
import { ProgramError, runProgram } from '../../src/core/program.ts'

const node = (script: string, ...args: string[]): [string, string[]] => [
  process.execPath,
  ['-e', script, ...args],
]

describe('runProgram', () => {
  it('answers what the program wrote', async () => {
    expect(await runProgram(...node('process.stdout.write("täxt\\n")'))).toBe('täxt\n')
  })

  it('hands arguments over as they are, without a shell', async () => {
    const nasty = '$(touch /tmp/x); "quoted" `date` *'
    const [program, args] = node('process.stdout.write(process.argv[1])', nasty)
    expect(await runProgram(program, args)).toBe(nasty)
  })

  it('gives it its input, and an end of it', async () => {
    const [program, args] = node('process.stdin.pipe(process.stdout)')
    expect(await runProgram(program, args, { input: 'secret' })).toBe('secret')
    expect(await runProgram(program, args)).toBe('')
  })

  it('gives it an input that can be opened as a file', async () => {
    const [program, args] = node('process.stdout.write(require("fs").readFileSync("/dev/stdin", "utf8"))')
    expect(await runProgram(program, args, { input: 'täxt' })).toBe('täxt')
  })

  it('does not mind a program that ends without reading its input', async () => {
    const [program, args] = node('process.exit(0)')
    expect(await runProgram(program, args, { input: 'x'.repeat(1 << 20) })).toBe('')
  })

  it('tells the exit code and what the program said of it', async () => {
    const failure = runProgram(...node('console.error("no such pool"); process.exit(3)'))
    await expect(failure).rejects.toThrow(ProgramError)
    await expect(failure).rejects.toMatchObject({ exitCode: 3, stderr: 'no such pool', isMissing: false })
  })

  it('says that a program is not there', async () => {
    await expect(runProgram('/no/such/program', ['x'])).rejects.toMatchObject({
      isMissing: true,
      message: '/no/such/program x: there is no such program on this machine',
    })
  })

  it('ends one that is cancelled', async () => {
    const controller = new AbortController()
    const [program, args] = node('process.stdout.write("up"); setInterval(() => {}, 1000)')
    const run = runProgram(program, args, {
      signal: controller.signal,
      onOutput: () => controller.abort(),
      timeoutMs: Number.POSITIVE_INFINITY,
    })
    await expect(run).rejects.toThrow('was cancelled')
  })

  it('ends one that takes too long', async () => {
    const [program, args] = node('setInterval(() => {}, 1000)')
    await expect(runProgram(program, args, { timeoutMs: 20 })).rejects.toThrow('did not end within 0.02 s')
  })

  it('speaks English whatever the language of the daemon', async () => {
    const [program, args] = node('process.stdout.write(process.env.LC_ALL + process.env.LANGUAGE)')
    expect(await runProgram(program, args, { env: { OTHER: 'x' } })).toBe('C.UTF-8C')
  })
})
