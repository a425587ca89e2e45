/** The simulation can fail: faults that are built in on purpose are found, each by what it breaks. */
import { describe, expect, it } from 'vitest'
import type { Sabotage } from './disk.ts'
import { runSeed } from './scenario.ts'

/** Quick, and without faults that could hide the one at hand. */
const CALM = {
  faults: 0,
  faultyUs: 3_000_000,
  workload: { depth: 8, blocksMax: 8, thinkMs: 50, overlaps: false },
} as const

describe('a run', () => {
  it.each([1, 2, 3])('is the same again for the same seed (%i)', async seed => {
    const [first, second, other] = [await runSeed(seed), await runSeed(seed), await runSeed(seed + 1000)]
    expect(second.digest).toBe(first.digest)
    expect(second.ios).toBe(first.ios)
    expect(other.digest).not.toBe(first.digest)
  })

  it('is good when nothing is sabotaged', async () => {
    expect((await runSeed(5, { config: CALM })).failure).toBeUndefined()
  })

  it.each<[keyof Sabotage, RegExp]>([
    ['dropWrite', /was acknowledged, and block \d+ is not on the medium/],
    ['tearWrite', /got what nobody wrote there/],
    ['staleRead', /it may only hold|difference that the medium did not have/],
    ['completeTwice', /outstanding|twice|once/],
    ['forget', /every I\/O has ended|nothing is left/],
  ])('fails when the device does that: %s', async (fault, reason) => {
    const { failure } = await runSeed(5, { config: CALM, sabotage: { [fault]: 30 } })
    expect(failure).toMatch(reason)
  })

  it('fails when the network delivers a segment twice', async () => {
    const { failure } = await runSeed(5, { config: CALM, duplicates: 50 })
    expect(failure).toMatch(/misunderstand each other/)
  })
})
