/**
 * Everything that CI runs: `npm test`. Plain JavaScript, because it runs before anything is built.
 *
 *   npm test              all of it
 *   npm test -- --quick   types, lint, unit, conformance and tidy tests: the first minute
 */
import { spawnSync } from 'node:child_process'

const quick = process.argv.includes('--quick')

/** Runs one step with its output shown; a failing step ends the run and says what to do. */
function step(title, command, args, remedy) {
  console.log(`\n== ${title}`)
  const { status, error } = spawnSync(command, args, { stdio: 'inherit' })
  if (status === 0) return
  console.error(`\n${title} failed${error ? ` (${error.message})` : ''}. ${remedy}`)
  process.exit(1)
}

const bin = name => `node_modules/.bin/${name}`

step('types', bin('tsc'), ['-p', 'tsconfig.json'], 'Mend what the compiler names.')
step('format and lint', bin('biome'), ['check', '--error-on-warnings', '.'], 'Try `npm run format`.')
step('build', bin('tsc'), ['-p', 'tsconfig.build.json'], 'Mend what the compiler names.')
if (!quick) {
  step(
    'packages for the integration tests',
    process.execPath,
    ['test/integration/lab/install.js'],
    'Install what it names; tests whose programs are absent are skipped by name.',
  )
}
const projects = quick ? ['--project', 'unit'] : []
const { status } = spawnSync(
  bin('vitest'),
  ['run', ...projects, '--reporter=default', '--reporter=./test/closing-line.ts'],
  {
    stdio: 'inherit',
  },
)
process.exit(status ?? 1)
