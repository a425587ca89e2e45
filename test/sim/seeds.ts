/**
 * The seeds of CI, in parts that run side by side. `QPAIR_SIM_SEEDS` says how many there are in all (1000),
 * `QPAIR_SIM_SEED` runs only that one, `QPAIR_SIM_VERBOSE` prints what happens.
 */
import { expect, it } from 'vitest'
import { type RunReport, runSeed } from './scenario.ts'

const PARTS = 4
/** The last lines of a failing run that are shown. */
const EVENTS_SHOWN = 60

/** What somebody needs to find the fault. */
export function explain(report: RunReport): string {
  const { seed, failure, schedule, lastEvents, config } = report
  return [
    `seed ${seed}: ${failure}`,
    `configuration: ${JSON.stringify(config)}`,
    'faults:',
    ...schedule.map(line => `  ${line}`),
    'last events:',
    ...lastEvents.slice(-EVENTS_SHOWN).map(line => `  ${line}`),
    `again, with everything that happens: npm run sim -- --seed ${seed} --verbose`,
  ].join('\n')
}

/** Declares the test of one part, counted from 1. */
export function seedsOfPart(part: number): void {
  const only = process.env['QPAIR_SIM_SEED']
  if (only !== undefined) {
    it.runIf(part === 1)(`seed ${only} keeps every promise`, () => runOne(Number(only)))
    return
  }
  const count = Number(process.env['QPAIR_SIM_SEEDS'] ?? 1000)
  const seeds = Array.from({ length: count }, (_, index) => index + 1).filter(
    seed => seed % PARTS === part - 1,
  )
  it(`keeps every promise in ${seeds.length} seeds`, async () => {
    const started = performance.now()
    const sum = { ios: 0, failedIos: 0, late: 0, lateHarmful: 0, virtualSeconds: 0 }
    for (const seed of seeds) {
      const report = await runSeed(seed)
      expect(report.failure, explain(report)).toBeUndefined()
      sum.ios += report.ios
      sum.failedIos += report.failedIos
      sum.late += report.late
      sum.lateHarmful += report.lateHarmful
      sum.virtualSeconds += report.virtualSeconds
    }
    const rate = seeds.length / ((performance.now() - started) / 1000)
    console.log(
      `${seeds.length} seeds (${rate.toFixed(1)} a second): ${sum.ios} I/Os in ${sum.virtualSeconds.toFixed(0)} s of ` +
        `virtual time, ${sum.failedIos} failed while no path was usable; ${sum.late} landings after the end of their ` +
        `write, ${sum.lateHarmful} of them over newer data (no fence yet)`,
    )
  })
}

async function runOne(seed: number): Promise<void> {
  const isVerbose = process.env['QPAIR_SIM_VERBOSE'] !== undefined
  const report = await runSeed(seed, isVerbose ? { onTrace: line => console.log(line) } : {})
  expect(report.failure, explain(report)).toBeUndefined()
  const { ios, failedIos, late, lateHarmful, digest } = report
  console.log(
    `seed ${seed}: ${ios} I/Os, ${failedIos} failed while no path was usable, ${late} late landings, ` +
      `${lateHarmful} over newer data; digest ${digest >>> 0}`,
  )
}
