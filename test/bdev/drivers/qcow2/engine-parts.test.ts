import { describe, expect, it } from 'vitest'
import { setBits } from '../../../../src/bdev/drivers/qcow2/bitmap-recorder.ts'
import { geometryOf } from '../../../../src/bdev/drivers/qcow2/geometry.ts'
import { type FreeRun, Reclaimer } from '../../../../src/bdev/drivers/qcow2/reclaim.ts'
import { planGrowth } from '../../../../src/bdev/drivers/qcow2/refcount-growth.ts'
import { Mutex, Scheduler, type Task } from '../../../../src/bdev/drivers/qcow2/task.ts'

describe('clusters that nothing refers to any more', () => {
  const make = () => {
    const reaped: FreeRun[][] = []
    return { reaped, reclaimer: new Reclaimer(runs => reaped.push([...runs])) }
  }
  const run = (start: number, count = 1, isDiscarded = false): FreeRun => ({ start, count, isDiscarded })

  it('are free when the commit that removed them has ended and everybody has left who was there', () => {
    const { reaped, reclaimer } = make()
    const early = reclaimer.enter()
    reclaimer.add(5, 1, false)
    const taken = reclaimer.take()
    reclaimer.committed(taken)
    const late = reclaimer.enter()
    expect(reaped).toEqual([])
    reclaimer.leave(early)
    expect(reaped).toEqual([[run(5)]])
    expect(reclaimer.isEmpty).toBe(true)
    reclaimer.leave(late)
    expect(reaped).toHaveLength(1)
  })

  it('wait for their own epoch, while another is still waited for', () => {
    const { reaped, reclaimer } = make()
    const first = reclaimer.enter()
    reclaimer.add(1, 1, false)
    reclaimer.committed(reclaimer.take())
    const second = reclaimer.enter()
    reclaimer.add(2, 1, false)
    reclaimer.committed(reclaimer.take())
    reclaimer.leave(first)
    expect(reaped).toEqual([[run(1)]])
    reclaimer.leave(second)
    expect(reaped).toEqual([[run(1)], [run(2)]])
  })

  it('are one run when they are neighbours, and come back when their commit fails', () => {
    const { reclaimer } = make()
    reclaimer.add(7, 2, true)
    reclaimer.add(9, 3, true)
    reclaimer.add(12, 1, false)
    const taken = reclaimer.take()
    expect(taken).toEqual([run(7, 5, true), run(12)])
    reclaimer.giveBack(taken)
    expect(reclaimer.take()).toEqual(taken)
  })
})

describe('tasks', () => {
  it('hear of the first failure of all that they wait for, also when they were woken for something else between', () => {
    const scheduler = new Scheduler()
    const results: number[] = []
    let waiting: Task | null = null
    scheduler.start(function* (task) {
      waiting = task
      void task.one
      void task.one
      task.park()
      results.push(yield)
      results.push(yield)
    })
    waiting!.fileDone(-5)
    expect(results).toEqual([])
    waiting!.unpark()
    expect(results).toEqual([0])
    waiting!.fileDone(0)
    expect(results).toEqual([0, -5])
    expect(scheduler.active).toBe(0)
  })

  it('hold a mutex one after the other', () => {
    const scheduler = new Scheduler()
    const mutex = new Mutex()
    const order: string[] = []
    const tasks: Task[] = []
    for (const name of ['a', 'b', 'c']) {
      scheduler.start(function* (task) {
        tasks.push(task)
        yield* mutex.acquire(task)
        order.push(name)
        void task.one
        yield
        mutex.release()
      })
    }
    for (const task of tasks) {
      expect(order.at(-1)).toBe(['a', 'b', 'c'][tasks.indexOf(task)])
      task.fileDone(0)
    }
    expect(mutex.isHeld).toBe(false)
  })
})

it.each([
  [0, 0, '0100'],
  [3, 3, '0800'],
  [6, 9, 'c003'],
  [0, 15, 'ffff'],
  [8, 15, '00ff'],
])('sets the bits from %d to %d', (first, last, hex) => {
  const bits = new Uint8Array(2)
  setBits(bits, first, last)
  expect(Buffer.from(bits).toString('hex')).toBe(hex)
})

describe('room for more refcounts', () => {
  it('is one block while the table has an entry for it, and then a table behind as many blocks as count it', () => {
    const geometry = geometryOf(9, false, 6)
    // 64 counts in a block, 64 blocks in a cluster of the table.
    expect(planGrowth(geometry, 3, 1)).toEqual({ start: 192, blocks: 1, tableClusters: 1, usedClusters: 1 })
    expect(planGrowth(geometry, 64, 1)).toEqual({ start: 4096, blocks: 1, tableClusters: 2, usedClusters: 3 })
    // A table of 128 clusters is counted by three blocks of its own.
    expect(planGrowth(geometry, 5400, 84)).toEqual({
      start: 345600,
      blocks: 3,
      tableClusters: 127,
      usedClusters: 130,
    })
  })
})
