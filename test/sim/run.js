/**
 * Runs seeds of the simulation by hand. Plain JavaScript, since Node 20 runs no TypeScript by itself.
 *
 *   npm run sim -- --seed 123 --verbose     one seed, with everything that happens in it
 *   npm run sim -- --seeds 100000           so many seeds from 1 on, on all processors
 */
import { spawnSync } from 'node:child_process'
import { parseArgs } from 'node:util'

const options = { seed: { type: 'string' }, seeds: { type: 'string' }, verbose: { type: 'boolean' } }
const { values } = parseArgs({ options })
for (const name of ['seed', 'seeds']) {
  if (values[name] === undefined || /^\d+$/.test(values[name])) continue
  console.error(`--${name} ${values[name]} is not a number`)
  process.exit(2)
}
const env = { ...process.env }
if (values.seed !== undefined) env.QPAIR_SIM_SEED = values.seed
if (values.seeds !== undefined) env.QPAIR_SIM_SEEDS = values.seeds
if (values.verbose) env.QPAIR_SIM_VERBOSE = '1'
const files = values.seed === undefined ? [] : ['test/sim/seeds-1.test.ts']
const { status } = spawnSync(
  'node_modules/.bin/vitest',
  ['run', '--project', 'sim', '--disable-console-intercept', ...files],
  { stdio: 'inherit', env },
)
process.exit(status ?? 1)
