import { closeSync } from 'node:fs'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { Signal } from '../../src/reactor/signal.ts'
import { eventfd, fcntl, read } from '../../src/sys/libc.ts'
import { viewAt } from '../../src/sys/memory.ts'
import { FULL_COUNTER_LOW, jamEventfd } from '../support/descriptors.ts'
import { LocalReactorGroup } from '../support/reactor.ts'

const F_SETFL = 4
const O_RDWR = 2

let reactors: LocalReactorGroup
let fd: number
let one: number
let signal: Signal

beforeEach(() => {
  reactors = new LocalReactorGroup({ ring: true, arenaBytes: 1 << 20 })
  const { arena, ring } = reactors.reactors[0]!
  one = arena.allocate(8)
  viewAt(one, 8).setUint32(0, 1, true)
  fd = eventfd()
  signal = new Signal(ring, fd, one)
})
afterEach(() => {
  reactors.close()
  closeSync(fd)
})

/** What the counter has, which is 0 afterwards. The descriptor does not wait. */
function taken(): number {
  const cell = reactors.reactors[0]!.arena.allocate(8)
  return read(fd, cell, 8) === 8 ? viewAt(cell, 8).getUint32(0, true) : 0
}

describe('a signal', () => {
  it('is there at the end of the round', () => {
    signal.send()
    expect(taken()).toBe(0)
    reactors.poll()
    expect(taken()).toBe(1)
  })

  it('that is sent twice is there after the second time', () => {
    signal.send()
    signal.send()
    reactors.settle()
    expect(taken()).toBeGreaterThan(0)
    signal.send()
    reactors.settle()
    expect(taken()).toBe(1)
  })

  it('waits without the reactor at a counter that is full, and comes when there is room again', async () => {
    jamEventfd(fd)
    signal.send()
    for (let round = 0; round < 10; round++) reactors.poll()
    signal.send()
    reactors.poll()
    // Read to the end, it waits no more: the write that waited is there, and the one that was asked for meanwhile.
    expect(taken()).toBe(FULL_COUNTER_LOW)
    fcntl(fd, F_SETFL, O_RDWR | 0o4000)
    let count = 0
    await reactors.until(() => {
      count += taken()
      return count === 2
    })
  })

  it('that waits ends with it, and leaves the descriptor to its owner', async () => {
    jamEventfd(fd)
    signal.send()
    reactors.poll()
    await reactors.run(signal.close())
    expect(taken()).toBe(FULL_COUNTER_LOW)
  })

  it('that was sent before the end is made', async () => {
    signal.send()
    await reactors.run(signal.close())
    expect(taken()).toBe(1)
  })
})
