import { mkdtempSync, rmSync } from 'node:fs'
import { createServer, type Server, type Socket } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { PassThrough } from 'node:stream'
import { afterEach, beforeEach, expect, it } from 'vitest'
import { attachConsole, Console, type Input } from '../../src/vm/console.ts'

/** A terminal that remembers whether it is in raw mode. */
class FakeTerminal extends PassThrough {
  readonly isTTY = true
  isRaw = false
  setRawMode(isRaw: boolean): this {
    this.isRaw = isRaw
    return this
  }
}

let directory: string
let path: string
let server: Server
let guest: Promise<Socket>

beforeEach(async () => {
  directory = mkdtempSync(join(tmpdir(), 'qpair-console-'))
  path = join(directory, 'console')
  guest = new Promise(resolve => {
    server = createServer(resolve)
  })
  await new Promise<void>(resolve => server.listen(path, resolve))
})
afterEach(() => {
  server.close()
  rmSync(directory, { recursive: true, force: true })
})

function terminal(): { input: FakeTerminal; typed: Input; output: PassThrough; shown: () => string } {
  const input = new FakeTerminal()
  const output = new PassThrough()
  let shown = ''
  output.on('data', text => {
    shown += String(text)
  })
  // All of a terminal's input that the console touches.
  return { input, typed: input as unknown as Input, output, shown: () => shown }
}

it('types to the guest as it is, Ctrl-C too, until Ctrl-], which is not for it', async () => {
  const { input, typed, output, shown } = terminal()
  const attached = attachConsole(path, typed, output)
  const socket = await guest
  let heard = ''
  socket.on('data', text => {
    heard += String(text)
  })
  socket.write('login: ')
  await expect.poll(shown).toBe('login: ')
  expect(input.isRaw).toBe(true)
  input.write('ls\x03')
  await expect.poll(() => heard).toBe('ls\x03')
  input.write('a\x1d')
  expect(await attached).toBe(false)
  expect(input.isRaw).toBe(false)
  await expect.poll(() => heard).toBe('ls\x03a')
})

it('can be listened to before a prompt is shown, whose question to the terminal is answered at once', async () => {
  const { input, typed, output } = terminal()
  const wasRaw: boolean[] = []
  output.on('data', () => wasRaw.push(input.isRaw))
  const console: Console = await Console.open(path, {
    ...{ input: typed, output, takesKey: () => false, onOutput: () => console.listen() },
  })
  ;(await guest).write('root# \x1b[6n')
  await expect.poll(() => wasRaw).toEqual([true])
  console.close()
})

it('ends with the guest, and gives the terminal back', async () => {
  const { input, typed, output } = terminal()
  const attached = attachConsole(path, typed, output)
  ;(await guest).end()
  expect(await attached).toBe(true)
  expect(input.isRaw).toBe(false)
})

it('says which console nobody is at', async () => {
  const { typed, output } = terminal()
  await expect(attachConsole(`${path}-other`, typed, output)).rejects.toThrow(
    /console .*console-other: .*ENOENT/,
  )
})
