/** What is in a Debian package, for tests that need its files and not its services. */
import { execFile } from 'node:child_process'
import { existsSync, mkdirSync, readdirSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import { publish } from '../../../src/vm/lab/kernel.ts'
import { aptGet } from './packages.ts'

const run = promisify(execFile)

const CACHE = fileURLToPath(new URL('../../../node_modules/.cache/qpair-lab/', import.meta.url))

/** Downloads and unpacks it, once; answers where it lies. Nothing is installed. */
export async function unpackedPackage(name: string): Promise<string> {
  const home = join(CACHE, `package-${name}`)
  if (existsSync(home)) return home
  mkdirSync(CACHE, { recursive: true })
  await publish(home, CACHE, async building => {
    // As root, for what only root may write to.
    const download = ['-q', '-o', 'APT::Sandbox::User=root', 'download', name]
    await run('apt-get', download, { cwd: building }).catch(async () => {
      await aptGet('update')
      await run('apt-get', download, { cwd: building })
    })
    const archive = readdirSync(building)[0]!
    await run('dpkg', ['-x', archive, '.'], { cwd: building })
    rmSync(join(building, archive))
  })
  return home
}
