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
  copyFileSync(fileURLToPath(new URL('../../bin/qpair.js', import.meta.url)), join(directory, 'bin/qpair.js'))
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
