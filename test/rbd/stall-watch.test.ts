import { beforeEach, describe, expect, it } from 'vitest'
import { IoStat } from '../../src/bdev/iostat.ts'
import type { ReactorIostat } from '../../src/bdev/messages.ts'
import { logSettings } from '../../src/core/log.ts'
import { StallWatch } from '../../src/rbd/stall-watch.ts'

let lines: string[]
let watch: StallWatch
let nowMs: number

beforeEach(() => {
  lines = []
  logSettings.write = line => void lines.push(line.split('rbd: ')[1]!)
  watch = new StallWatch()
  nowMs = 0
})

const reactor = (ended: number, outstanding: number): ReactorIostat => ({
  counters: { ...new IoStat().snapshot(), num_write_ops: ended },
  outstanding,
  isOpen: true,
})

/** Five seconds later each device has these counters, on two reactors together. */
function look(devices: Record<string, readonly [ended: number, outstanding: number]>): void {
  nowMs += 5000
  const names = Object.keys(devices)
  const answers = [0, 1].map(index =>
    Object.values(devices).map(([ended, outstanding]) =>
      index === 0 ? reactor(ended, 0) : reactor(0, outstanding),
    ),
  )
  watch.look(nowMs, names, answers)
}

describe('I/O that stands still', () => {
  it('is told of once, with all devices in one line, and again when it goes on', () => {
    for (let i = 0; i < 20; i++) look({ a: [7, 8], b: [9, 1], idle: [3, 0], busy: [i, 32] })
    expect(lines).toHaveLength(1)
    expect(lines[0]).toContain('I/O to a, b has been waiting for Ceph for 30 s')
    look({ a: [8, 7], b: [9, 1], idle: [3, 0], busy: [100, 32] })
    expect(lines.slice(1)).toEqual(['I/O to a goes on, after about 100 s\n'])
    look({ a: [8, 7], b: [9, 0], idle: [3, 0], busy: [200, 32] })
    expect(lines.slice(2)).toEqual(['I/O to b goes on, after about 105 s\n'])
  })

  it('is told of again when it stands still again', () => {
    for (let i = 0; i < 7; i++) look({ a: [7, 8] })
    for (let i = 0; i < 7; i++) look({ a: [8, 8] })
    expect(lines.filter(line => line.includes('has been waiting'))).toHaveLength(2)
  })

  it('is no news while it is short, or when the device has gone', () => {
    for (let i = 0; i < 6; i++) look({ a: [7, 8] })
    look({})
    for (let i = 0; i < 6; i++) look({ a: [7, 8] })
    expect(lines).toEqual([])
  })
})
