import { spawnSync } from 'node:child_process'
import { copyFileSync, mkdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { expect, it } from 'vitest'
import { temporaryDirectory } from '../rpc/support.ts'

/** The launcher in a package of its own, with this as its compiled program. */
function launch(main: string | undefined, args: readonly string[], execArgv: readonly string[] = []) {
  const directory = temporaryDirectory()
  mkdirSync(join(directory, 'bin'))
  writeFileSync(join(directory, 'package.json'), '{"type":"module"}')
  for (const name of ['qpair.js', 'package.json']) {
    copyFileSync(fileURLToPath(new URL(`../../bin/${name}`, import.meta.url)), join(directory, 'bin', name))
  }
  if (main !== undefined) {
    mkdirSync(join(directory, 'dist/cli'), { recursive: true })
    writeFileSync(join(directory, 'dist/cli/main.js'), main)
  }
  const all = [...execArgv, join(directory, 'bin/qpair.js'), ...args]
  const { status, stdout, stderr } = spawnSync(process.execPath, all, { encoding: 'utf8' })
  return { status, stdout, stderr }
}

it('runs the program with the arguments, and exits with its code', () => {
  const program = 'export const main = async args => { console.log(args.join("|")); return 7 }'
  expect(launch(program, ['bdev', 'list'])).toEqual({ status: 7, stdout: 'bdev|list\n', stderr: '' })
})

it('says how to build a package that is not built', () => {
  const { status, stderr } = launch(undefined, [])
  expect(status).toBe(2)
  expect(stderr).toContain('has not been built yet: run `npm ci`')
})

it('refuses a Node that is too old, naming both versions', () => {
  // The version is set before the launcher runs, as an old Node would have it.
  const old = 'data:text/javascript,Object.defineProperty(process.versions,"node",{value:"18.20.4"})'
  const { status, stderr } = launch('export const main = async () => 0', [], ['--import', old])
  expect(status).toBe(2)
  expect(stderr).toMatch(/this is Node 18\.20\.4, and qpair needs 20\.19 or newer/)
})

/** Begins 30 calls that wait until another one, which comes last, has let them go on. */
const WAITERS = `
  import koffi from '${new URL('../../node_modules/koffi/index.js', import.meta.url).href}'
  const libc = koffi.load('libc.so.6')
  const fd = libc.func('int eventfd(uint, int)')(0, 1)
  const memory = Number(libc.func('uintptr_t malloc(size_t)')(8))
  const read = libc.func('long read(int, uintptr_t, size_t)')
  const add = libc.func('int eventfd_write(int, uint64_t)')
  export async function main() {
    const waiting = Array.from({ length: 30 }, () => new Promise(done => read.async(fd, memory, 8, done)))
    await Promise.all([...waiting, new Promise(done => add.async(fd, 30, done))])
    console.log('all went on')
  }`

it('gives a daemon more threads for calls that wait for Ceph than Node has', () => {
  expect(launch(WAITERS, ['serve'])).toMatchObject({ stdout: 'all went on\n', stderr: '' })
})

it('says nothing of more threads when they were started before', () => {
  const program = 'export const main = async () => console.log(process.env.UV_THREADPOOL_SIZE)'
  const before = ['--import', 'data:text/javascript,delete process.env.UV_THREADPOOL_SIZE']
  expect(launch(program, ['serve'], before).stdout).toBe('undefined\n')
})
