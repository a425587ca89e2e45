import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, expect, it } from 'vitest'
import { isRemote, openScreen, parseScreen, passwordFor, screenOption } from '../../../src/vm/run/screen.ts'

it.each([
  ['unix', 'unix:/s/a,,b/vnc', false],
  ['1', '127.0.0.1:1,password=on', false],
  ['auto', '127.0.0.1:0,to=99,password=on', false],
  ['0.0.0.0:7', '0.0.0.0:7,password=on', true],
  ['[::]:auto', '[::]:0,to=99,password=on', true],
  ['[::1]:3', '[::1]:3,password=on', false],
  ['kvm7.example.org:3', 'kvm7.example.org:3,password=on', true],
])('%s is %s to QEMU: without a password only on a socket', (text, option, remote) => {
  const screen = parseScreen(text)
  expect(screenOption(screen, '/s/a,b/vnc')).toBe(option)
  expect(isRemote(screen)).toBe(remote)
})

it.each(['', '100', '-1', ':1', 'none', 'host', '127.0.0.1:1,password=off', '127.0.0.1:5901'])(
  'refuses %j',
  text => {
    expect(() => parseScreen(text)).toThrow(/is none of unix, auto, N, ADDRESS:N/)
  },
)

let directory: string
beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), 'qpair-screen-'))
})
afterEach(() => rmSync(directory, { recursive: true }))

it('has a password by chance, another each time, unless a file has one', async () => {
  const passwords = await Promise.all([
    passwordFor(parseScreen('1'), undefined),
    passwordFor(parseScreen('1'), undefined),
  ])
  for (const password of passwords) expect(password).toMatch(/^[a-zA-Z2-9]{8}$/)
  expect(passwords[0]).not.toBe(passwords[1])
  expect(await passwordFor(parseScreen('unix'), undefined)).toBeUndefined()
  const file = join(directory, 'password')
  writeFileSync(file, 'se cret\n')
  expect(await passwordFor(parseScreen('1'), file)).toBe('se cret')
})

it.each(['', '\n', 'nine char'])('refuses %j for a password, of which VNC would take a part', async text => {
  const file = join(directory, 'password')
  writeFileSync(file, text)
  await expect(passwordFor(parseScreen('1'), file)).rejects.toThrow(/VNC takes 1 to 8/)
})

it('is told where it is once it has its password', async () => {
  const commands: unknown[] = []
  const qmp = (answer: object) => ({
    execute: async <Result>(command: string, args?: Record<string, unknown>): Promise<Result> => {
      commands.push([command, args])
      return answer as Result
    },
  })
  const tcp = qmp({ host: '::1', service: '5901', family: 'ipv6' })
  expect(await openScreen(tcp, 'secret')).toEqual({ address: '[::1]:5901', password: 'secret' })
  expect(commands).toEqual([
    ['set_password', { protocol: 'vnc', password: 'secret' }],
    ['query-vnc', undefined],
  ])
  const unix = qmp({ host: '', service: '/s/vnc', family: 'unix' })
  expect(await openScreen(unix, undefined)).toEqual({ address: '/s/vnc', password: undefined })
})
