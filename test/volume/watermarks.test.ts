import { describe, expect, it } from 'vitest'
import { levelOf, partOf, percentOf } from '../../src/volume/watermarks.ts'

const usage = (availableBytes: number) => ({ capacityBytes: 1000, allocationBytes: 0, availableBytes })

describe('percentOf', () => {
  it('counts what is reserved as taken, and never says full before it is', () => {
    expect([usage(1000), usage(1), usage(0)].map(percentOf)).toEqual([0, 99, 100])
  })

  it('is 0 of a pool without a size', () => {
    expect(percentOf({ capacityBytes: 0, allocationBytes: 0, availableBytes: 0 })).toBe(0)
  })
})

describe('a part that is fuller than its pool', () => {
  const thin = (percent: number) => ({ ...usage(500), fullest: { what: 'thin pool a', percent } })

  it('is what is told of, since it runs out by itself', () => {
    expect(percentOf(thin(97.9))).toBe(97)
    expect(partOf(thin(97.9))).toBe('thin pool a')
    expect(levelOf(thin(97.9), [80, 90, 95])).toBe(95)
  })

  it('is not told of while the pool is as full', () => {
    expect(percentOf(thin(50))).toBe(50)
    expect(partOf(thin(50))).toBeUndefined()
    expect(partOf(usage(500))).toBeUndefined()
  })
})

describe('levelOf', () => {
  it.each([
    [201, 0],
    [200, 80],
    [100, 90],
    [0, 95],
  ])('with %i of 1000 left is %i', (available, level) => {
    expect(levelOf(usage(available), [80, 90, 95])).toBe(level)
  })

  it('is never reached where there are none', () => {
    expect(levelOf(usage(0), [])).toBe(0)
  })
})
