import { closeSync } from 'node:fs'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { Prng } from '../../../src/core/prng.ts'
import { Status } from '../../../src/spec/nvme-status.ts'
import { inflightSplitBytes } from '../../../src/spec/virtqueue.ts'
import { eventfd, read, write } from '../../../src/sys/libc.ts'
import { bytesAt, unmap, viewAt } from '../../../src/sys/memory.ts'
import type { SharedPart } from '../../../src/vhost/messages.ts'
import { DirtyLog } from '../../../src/vhost/ring/dirty-log.ts'
import { LocalReactorGroup } from '../../support/reactor.ts'
import { FakeDevice, FakeSession, GuestRam, SplitDriver, segmentsOf, sharedPart } from '../guest.ts'

const SIZE = 16

let reactors: LocalReactorGroup
let ram: GuestRam
let driver: SplitDriver
let session: FakeSession
let device: FakeDevice
let data: number
const descriptors: number[] = []

function setUp(options: ConstructorParameters<typeof LocalReactorGroup>[0], eventQueue: number | null): void {
  reactors = new LocalReactorGroup({ arenaBytes: 1 << 20, ...options })
  ram = new GuestRam()
  driver = new SplitDriver(ram, SIZE)
  device = new FakeDevice(eventQueue)
  session = new FakeSession(reactors, ram, device)
  data = ram.allocate(65536, 4096)
}

beforeEach(() => setUp({}, null))
afterEach(() => {
  reactors.close()
  ram.free()
  for (const fd of descriptors.splice(0)) closeSync(fd)
})

/** An eventfd, closed at the end of the test. */
function newEventfd(): number {
  const fd = eventfd()
  descriptors.push(fd)
  return fd
}

/** How often an eventfd was written to since the last time. */
function signals(fd: number): number {
  const cell = reactors.reactors[0]!.arena.allocate(8)
  return read(fd, cell, 8) === 8 ? viewAt(cell, 8).getUint32(0, true) : 0
}

const offer = (count = 1): void => {
  for (let i = 0; i < count; i++) driver.offer(driver.chain([[data, 16]], [[data + 4096, 512]]))
}
const idsOf = (requests: readonly { id: number }[]): number[] => requests.map(({ id }) => id)

describe('a queue', () => {
  it('starts what the guest offers, and answers it when the device has done it', () => {
    session.open(driver.start())
    offer(2)
    reactors.poll()
    expect(idsOf(device.started)).toEqual([0, 2])
    expect(driver.collect()).toEqual([])
    device.completeAll(513)
    reactors.poll()
    expect(driver.collect()).toEqual([
      { id: 0, length: 513 },
      { id: 2, length: 513 },
    ])
  })

  it('is not looked at before it is enabled', () => {
    const queue = session.open(driver.start({ isEnabled: false }))
    offer()
    reactors.settle()
    expect(device.started).toHaveLength(0)
    void queue.update({ session: 1, index: 0, isEnabled: true })
    reactors.poll()
    expect(device.started).toHaveLength(1)
  })

  it('interrupts the guest once a round, and when it starts', () => {
    const call = newEventfd()
    session.open(driver.start({ call }))
    expect(signals(call), 'who had the queue before may have died before it did').toBe(1)
    offer(3)
    reactors.poll()
    device.completeAll()
    reactors.poll()
    expect(signals(call)).toBe(1)
    driver.flags = 1
    offer()
    reactors.poll()
    device.completeAll()
    reactors.poll()
    expect(signals(call)).toBe(0)
  })

  it('interrupts through the descriptor that it has now', () => {
    const [before, after] = [newEventfd(), newEventfd()]
    const queue = session.open(driver.start({ call: before }))
    signals(before)
    // QEMU unmasks a guest's interrupts after it has started the queue, in which there may be an answer by now.
    driver.flags = 1
    void queue.update({ session: 1, index: 0, call: after })
    expect(signals(after), 'for what went to the other one').toBe(1)
    driver.flags = 0
    offer()
    reactors.poll()
    device.completeAll()
    reactors.poll()
    expect([signals(before), signals(after)]).toEqual([0, 1])
    expect(queue.stats.calls).toBe(3)
  })

  it('leaves the buffers of the event queue to the device, until it has an event', () => {
    reactors.close()
    ram.free()
    setUp({}, 0)
    const queue = session.open(driver.start())
    offer(2)
    reactors.settle()
    expect(driver.collect()).toEqual([])
    device.sendEvent(null, queue)
    reactors.poll()
    expect(driver.collect()).toEqual([{ id: 0, length: 1 }])
  })
})

describe('a guest that breaks its ring', () => {
  it('is signalled to the front end, where it wants to hear it now', () => {
    const [before, after] = [newEventfd(), newEventfd()]
    const queue = session.open(driver.start({ error: before }))
    void queue.update({ session: 1, index: 0, error: after })
    driver.offer(SIZE)
    reactors.settle()
    expect([signals(before), signals(after)]).toEqual([0, 1])
  })

  it('is told of once, and not looked at any more', async () => {
    const queue = session.open(driver.start())
    offer()
    reactors.poll()
    driver.offer(SIZE)
    reactors.settle()
    expect(session.faults).toEqual([`descriptor ${SIZE} heads a chain, in a table of ${SIZE}`])
    expect(reactors.reactors[0]!.polled).toBe(0)
    offer()
    reactors.settle()
    expect(session.faults).toHaveLength(1)

    device.completeAll()
    await reactors.run(queue.stop())
    expect(driver.collect(), 'what was started before is answered').toHaveLength(1)
  })

  it('leaves the reactor alone, whatever it writes into its ring while requests are outstanding', async () => {
    for (let seed = 0; seed < 300; seed++) {
      const random = new Prng(seed)
      ram.bytes(0, 1 << 20).fill(0)
      driver.skipTo(0)
      const queue = session.open(driver.start({ hasEventIndex: seed % 2 === 0 }))
      for (let step = 0; step < 20; step++) {
        offer(1 + random.below(3))
        const ring = ram.bytes(driver.descriptors, driver.used + 6 + 8 * SIZE - driver.descriptors)
        for (let i = random.below(3); i > 0; i--) ring[random.below(ring.length)] = random.below(256)
        reactors.poll()
        for (const request of device.started) segmentsOf(request, ram)
        if (random.below(2) === 0) device.completeAll(random.below(65536))
      }
      device.completeAll()
      await reactors.run(queue.stop())
    }
    expect(session.faults.length).toBeGreaterThan(100)
    expect(reactors.reactors[0]!.polled).toBe(0)
    expect(reactors.reactors[0]!.pollerCount).toBe(0)
  })
})

describe('polling', () => {
  let kick: number
  beforeEach(() => {
    reactors.close()
    ram.free()
    setUp({ ring: true }, null)
    kick = newEventfd()
  })
  const notify = (): number => write(kick, session.one, 8)
  const polled = (): number => reactors.reactors[0]!.polled

  it('ends when nothing comes, and begins again with a notification', async () => {
    const queue = session.open(driver.start({ kick }))
    expect([polled(), driver.usedFlags]).toEqual([1, 1])
    reactors.poll()
    expect([polled(), driver.usedFlags]).toEqual([0, 0])
    expect(queue.stats.isPolled).toBe(false)
    offer()
    reactors.poll()
    expect(device.started).toHaveLength(0)
    notify()
    await reactors.until(() => device.started.length === 1)
    expect([polled(), driver.usedFlags, queue.stats.kicks]).toEqual([1, 1, 1])
  })

  it('hears every notification without reading the descriptor', async () => {
    const queue = session.open(driver.start({ kick }))
    for (let round = 1; round <= 3; round++) {
      reactors.settle()
      expect(polled()).toBe(0)
      offer()
      notify()
      await reactors.until(() => device.started.length === round)
    }
    expect(queue.stats.kicks).toBe(3)
  })

  it('goes on for the quiet time while requests come faster than that', async () => {
    session.tuning = { ...session.tuning, quietUs: 100 }
    session.open(driver.start({ kick }))
    for (let i = 0; i < 20; i++) {
      offer()
      notify()
      await reactors.until(() => device.started.length === 1)
      device.completeAll()
      reactors.advance(10)
    }
    reactors.settle()
    expect(polled()).toBe(1)
    reactors.advance(80)
    expect(polled()).toBe(1)
    reactors.advance(100)
    expect(polled()).toBe(0)
  })

  it('ends at once while requests come further apart', async () => {
    session.tuning = { ...session.tuning, quietUs: 100 }
    session.open(driver.start({ kick }))
    for (let i = 0; i < 20; i++) {
      reactors.advance(500)
      offer()
      notify()
      await reactors.until(() => device.started.length === 1)
      device.completeAll()
    }
    reactors.settle()
    expect(polled()).toBe(0)
  })

  it('goes on for ever without a descriptor to wait for', () => {
    session.open(driver.start())
    reactors.advance(1e6)
    expect(polled()).toBe(1)
  })

  it('goes on for ever when the descriptor cannot be waited for', async () => {
    // Nothing has this number.
    session.open(driver.start({ kick: 1 << 20 }))
    await reactors.until(() => polled() === 1)
    for (let i = 0; i < 5; i++) reactors.poll()
    expect(polled()).toBe(1)
  })

  it('takes notifications from the descriptor that it has now', async () => {
    const queue = session.open(driver.start({ kick }))
    reactors.settle()
    const other = newEventfd()
    void queue.update({ session: 1, index: 0, kick: other })
    reactors.settle()
    expect(polled()).toBe(0)
    offer()
    write(other, session.one, 8)
    await reactors.until(() => device.started.length === 1)
    await reactors.run(Promise.all([queue.stop(), Promise.resolve(device.completeAll())]))
    notify()
    write(other, session.one, 8)
    reactors.settle()
    expect(queue.stats.kicks).toBe(1)
  })
})

describe('coalescing', () => {
  it('holds interrupts back while more requests complete than the threshold', () => {
    session.tuning = { quietUs: 0, delayBaseUs: 100, iopsThreshold: 1000 }
    const call = newEventfd()
    session.open(driver.start({ call }))
    const use = (): void => {
      offer()
      reactors.poll()
      device.completeAll()
      reactors.poll()
    }
    // 20 in 10 ms are 2000 a second, twice the threshold: a delay of once the base.
    for (let i = 0; i < 20; i++) {
      use()
      reactors.advance(500)
    }
    use()
    signals(call)
    use()
    expect(signals(call)).toBe(0)
    reactors.advance(50)
    use()
    expect(signals(call)).toBe(0)
    reactors.advance(60)
    expect(signals(call), 'for both, without another request').toBe(1)
    reactors.advance(200)
    expect(signals(call)).toBe(0)
  })

  it('holds none back below the threshold', () => {
    session.tuning = { quietUs: 0, delayBaseUs: 100, iopsThreshold: 100_000 }
    const call = newEventfd()
    session.open(driver.start({ call }))
    signals(call)
    for (let i = 0; i < 40; i++) {
      offer()
      reactors.advance(500)
      device.completeAll()
      reactors.poll()
      expect(signals(call)).toBe(1)
    }
  })
})

describe('stopping', () => {
  it('waits for what is outstanding, and says where to go on', async () => {
    const queue = session.open(driver.start())
    offer(3)
    reactors.poll()
    let base: number | null = null
    const stopped = queue.stop().then(value => {
      base = value
    })
    offer()
    reactors.settle()
    await Promise.resolve()
    expect(base).toBeNull()
    device.completeAll()
    await reactors.run(stopped)
    expect(base).toBe(3)
    expect(driver.collect()).toHaveLength(3)
    expect(device.started, 'what came after is left for whoever goes on').toHaveLength(0)
  })

  it('pauses, and goes on in memory that is mapped elsewhere', async () => {
    const queue = session.open(driver.start())
    offer(2)
    reactors.poll()
    const paused = queue.pause()
    offer()
    device.completeAll()
    await reactors.run(paused)
    expect(device.started).toHaveLength(0)

    const moved = new GuestRam()
    moved.bytes(0, 1 << 20).set(ram.bytes(0, 1 << 20))
    session.memory.replace(moved.regions)
    ram.free()
    ram = moved
    Object.assign(driver, { ram: moved })
    queue.resume()
    reactors.poll()
    expect(device.started.map(request => segmentsOf(request, moved))).toEqual([
      [
        [data, 16],
        [data + 4096, 512],
      ],
    ])
    device.completeAll()
    reactors.poll()
    expect(driver.collect()).toHaveLength(3)
  })

  it('is broken when its ring is in no memory any more', async () => {
    const queue = session.open(driver.start())
    await reactors.run(queue.pause())
    session.memory.replace([])
    queue.resume()
    expect(session.faults).toHaveLength(1)
    expect(reactors.reactors[0]!.polled).toBe(0)
    // Nobody looks at the ring any more, not even to see whether its driver wants to be interrupted.
    void queue.update({ session: 1, index: 0, call: 0 })
    expect(queue.stats.calls).toBe(0)
  })

  it('does not answer what was aborted because the front end is gone', async () => {
    const inflight = sharedPart(inflightSplitBytes(SIZE))
    const queue = session.open(driver.start({ inflight }))
    offer(3)
    reactors.poll()
    const closed = queue.close()
    expect(idsOf(device.aborted)).toEqual([0, 2, 4])
    device.started[1]!.io.status = Status.ABORTED_BY_REQUEST
    device.completeAll()
    await reactors.run(closed)
    expect(idsOf(driver.collect())).toEqual([0, 4])

    session.open(driver.start({ inflight }))
    expect(idsOf(device.started), 'the next front end finds it').toEqual([2])
    unmap(inflight.address, inflight.sizeBytes)
  })
})

describe('a process that died', () => {
  let inflight: SharedPart
  beforeEach(() => {
    inflight = sharedPart(inflightSplitBytes(SIZE))
  })
  afterEach(() => unmap(inflight.address, inflight.sizeBytes))

  /** As if the process had ended here: nothing of it runs any more, and what it noted is all that is left. */
  function die(): void {
    reactors.close()
    device = new FakeDevice()
    reactors = new LocalReactorGroup({ arenaBytes: 1 << 20 })
    session = new FakeSession(reactors, ram, device)
  }

  it('leaves requests that are started again, each one once, before new ones', () => {
    session.open(driver.start({ inflight }))
    offer(4)
    reactors.poll()
    device.started.splice(1, 1)[0]!.complete(1)
    reactors.poll()
    expect(idsOf(driver.collect())).toEqual([2])
    // This one was put, and not shown to the guest.
    device.started[0]!.complete(1)
    die()
    offer()
    session.open(driver.start({ inflight }))
    reactors.poll()
    expect(idsOf(device.started)).toEqual([0, 4, 6, 8])
    device.completeAll()
    reactors.poll()
    expect(idsOf(driver.collect())).toEqual([0, 4, 6, 8])
  })

  it('is survived at any moment, with no request lost or answered twice', () => {
    const random = new Prng(7)
    const answered: number[] = []
    let offered = 0
    let outstanding = new Set<number>()
    session.open(driver.start({ inflight }))
    for (let step = 0; step < 3000; step++) {
      const action = random.below(20)
      if (action < 8) {
        // Each head stands for one request at a time.
        const head = Array.from({ length: SIZE }, (_, i) => i).find(i => !outstanding.has(i))
        if (head !== undefined) {
          driver.describe(head, { address: data, length: 512, flags: 2 })
          driver.offer(head)
          outstanding.add(head)
          offered++
        }
      } else if (action < 13) reactors.poll()
      else if (action < 19) {
        const [request] = device.started.splice(random.below(device.started.length + 1), 1)
        request?.complete(1)
      } else {
        die()
        session.open(driver.start({ inflight }))
      }
      for (const { id } of driver.collect()) {
        expect(outstanding.delete(id), `head ${id} was outstanding, step ${step}`).toBe(true)
        answered.push(id)
      }
    }
    reactors.poll()
    device.completeAll()
    reactors.poll()
    const rest = idsOf(driver.collect())
    expect(new Set(rest)).toEqual(outstanding)
    outstanding = new Set()
    expect(answered.length + rest.length).toBe(offered)
    expect(offered).toBeGreaterThan(500)
  })
})

describe('migration', () => {
  it('marks what was written, and the used ring', () => {
    const log = sharedPart(4096)
    const logAddress = 3 << 20
    session.memory.log = new DirtyLog(log)
    const queue = session.open(driver.start({ logAddress }))
    const pages = (): number[] =>
      Array.from({ length: 1024 }, (_, page) => page).filter(
        page => ((bytesAt(log.address, 4096)[page >> 3]! >> (page & 7)) & 1) === 1,
      )
    driver.offer(
      driver.chain(
        [[data, 16]],
        [
          [data + 4096, 8192],
          [data + 16384, 1],
        ],
      ),
    )
    reactors.poll()
    expect(pages()).toEqual([])
    device.completeAll()
    reactors.poll()
    const first = data / 4096
    expect(pages()).toEqual([first + 1, first + 2, first + 4, 768])

    bytesAt(log.address, 4096).fill(0)
    void queue.update({ session: 1, index: 0, logAddress: -1 })
    offer()
    reactors.poll()
    device.completeAll()
    reactors.poll()
    expect(pages()).toEqual([first + 1])
    unmap(log.address, log.sizeBytes)
  })
})
