import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { Prng } from '../../../src/core/prng.ts'
import { inflightSplitBytes } from '../../../src/spec/virtqueue.ts'
import { bytesAt, unmap } from '../../../src/sys/memory.ts'
import type { SharedPart, StartQueue } from '../../../src/vhost/messages.ts'
import { GuestMemory } from '../../../src/vhost/ring/guest-memory.ts'
import { GuestRequest, type RequestQueue } from '../../../src/vhost/ring/request.ts'
import { RingFault } from '../../../src/vhost/ring/ring.ts'
import { SplitRing } from '../../../src/vhost/ring/split-ring.ts'
import { type Descriptor, GuestRam, SplitDriver, segmentsOf, sharedPart } from '../guest.ts'

const SIZE = 8
const NEXT = 1
const WRITE = 2
const INDIRECT = 4

let ram: GuestRam
let driver: SplitDriver
let memory: GuestMemory
/** Where requests find data: 64 KiB of guest memory. */
let data: number
let requests: Map<number, GuestRequest>

beforeEach(() => {
  ram = new GuestRam(1 << 20)
  driver = new SplitDriver(ram, SIZE)
  memory = new GuestMemory(ram.regions)
  data = ram.allocate(65536, 4096)
  requests = new Map()
})
afterEach(() => ram.free())

/** A ring alone: nobody starts or completes its requests. */
function open(given: Partial<StartQueue> = {}): SplitRing {
  const queue = { memory } as unknown as RequestQueue
  return new SplitRing(driver.start(given), memory, id => {
    const request = requests.get(id) ?? new GuestRequest(queue, id)
    requests.set(id, request)
    return request
  })
}

function takeAll(ring: SplitRing): number[] {
  const heads: number[] = []
  for (let request = ring.take(); request !== null; request = ring.take()) heads.push(request.id)
  return heads
}

describe('take', () => {
  it('finds nothing in an empty ring', () => {
    expect(open().take()).toBeNull()
  })

  it.each(['chain', 'indirect'] as const)('reads a request from a %s', layout => {
    const ring = open()
    const head = driver[layout](
      [[data, 16]],
      [
        [data + 4096, 4096],
        [data + 16, 1],
      ],
    )
    driver.offer(head)
    const request = ring.take()!
    expect(request.id).toBe(head)
    expect(segmentsOf(request, ram)).toEqual([
      [data, 16],
      [data + 4096, 4096],
      [data + 16, 1],
    ])
    expect([request.readableCount, request.readableBytes, request.writableBytes]).toEqual([1, 16, 4097])
    expect(ring.take()).toBeNull()
  })

  it('reads descriptors of the ring followed by a table', () => {
    const ring = open()
    const address = ram.allocate(16)
    driver.ram.bytes(address, 16).set(driver.ram.bytes(driver.descriptors, 16))
    driver.describe(5, { address: data + 100, length: 7, flags: WRITE })
    ram.bytes(address, 16).set(ram.bytes(driver.descriptors + 80, 16))
    driver.describe(0, { address: data, length: 16, flags: NEXT, next: 1 })
    // The device ignores WRITE here (section 2.7.5.3.2).
    driver.describe(1, { address, length: 16, flags: INDIRECT | WRITE })
    driver.offer(0)
    expect(segmentsOf(ring.take()!, ram)).toEqual([
      [data, 16],
      [data + 100, 7],
    ])
  })

  it('takes chains in the order in which they were made available, past the wrap of the indexes', () => {
    driver.skipTo(0xfffe)
    const ring = open({ base: 0xfffe })
    for (const head of [5, 2, 7, 1]) driver.describe(head, { address: data, length: 1, flags: WRITE })
    driver.offer(5, 2, 7, 1)
    expect(takeAll(ring)).toEqual([5, 2, 7, 1])
    expect(ring.base()).toBe(2)
  })

  it('holds as many segments as a chain has', () => {
    const ring = open()
    const parts = Array.from({ length: 200 }, (_, i): [number, number] => [data + 16 * i, 16])
    driver.offer(driver.indirect(parts, []))
    expect(segmentsOf(ring.take()!, ram)).toEqual(parts)
  })
})

describe('a ring that breaks the specification', () => {
  const outOfMemory = 1 << 20
  const one = (descriptor: Partial<Descriptor>) => (): void => {
    driver.describe(0, { address: data, length: 16, flags: 0, ...descriptor })
    driver.offer(0)
  }
  const table =
    (...entries: Partial<Descriptor>[]) =>
    (): void => {
      driver.offer(driver.table(entries.map(entry => ({ address: data, length: 16, flags: 0, ...entry }))))
    }

  it.each<[string, () => void, RegExp]>([
    ['an available index beyond the ring', () => driver.offer(...Array(SIZE + 1).fill(0)), /9 ahead of 0/],
    ['an available index that goes back', () => driver.skipTo(0xffff), /65535 ahead of 0/],
    ['a head outside of the table', () => driver.offer(SIZE), /descriptor 8 heads/],
    ['a successor outside of the table', one({ flags: NEXT, next: SIZE }), /goes on at descriptor 8/],
    ['a chain that ends in itself', one({ flags: NEXT, next: 0 }), /more than 1024 descriptors/],
    ['memory that is not there', one({ address: outOfMemory }), /16 bytes at guest address 0x100000/],
    ['memory partly there', one({ address: outOfMemory - 8 }), /0xffff8/],
    ['an address near 2^64', one({ address: 2 ** 64 - 4096, length: 8192 }), /not in the guest's memory/],
    ['an empty descriptor', one({ length: 0 }), /no bytes/],
    ['a table with a successor', one({ flags: NEXT | INDIRECT }), /has a table and a successor/],
    ['a table of no entries', one({ flags: INDIRECT, length: 0 }), /has 0 bytes/],
    ['a table of half an entry', one({ flags: INDIRECT, length: 24 }), /has 24 bytes/],
    ['a huge table', one({ flags: INDIRECT, length: 2 ** 31 }), /has 2147483648 bytes/],
    [
      'a table outside of memory',
      one({ flags: INDIRECT, address: outOfMemory }),
      /a table of descriptors of 16/,
    ],
    ['a table in a table', table({ flags: INDIRECT }), /holds another one/],
    ['a table whose chain leaves it', table({ flags: NEXT, next: 1 }), /goes on at descriptor 1/],
    ['a table that goes in circles', table({ flags: NEXT, next: 1 }, { flags: NEXT }), /more than 1024/],
    [
      'something to read after something to write',
      table({ flags: NEXT | WRITE, next: 1 }, {}),
      /to read after something to write/,
    ],
  ])('is refused: %s', (_, offend, why) => {
    const ring = open()
    offend()
    expect(() => ring.take()).toThrow(why)
    expect(() => ring.take(), 'a fault stays').toThrow(RingFault)
  })

  it('is refused: a head that is outstanding', () => {
    const ring = open()
    driver.describe(0, { address: data, length: 16, flags: 0 })
    driver.offer(0, 0)
    ring.take()!.isOutstanding = true
    expect(() => ring.take()).toThrow('descriptor 0 heads two chains at once')
  })

  it('is refused: a table that was not negotiated', () => {
    const ring = open({ hasIndirect: false })
    driver.offer(driver.indirect([[data, 16]], []))
    expect(() => ring.take()).toThrow('not negotiated')
  })

  it('is refused: more than 4 GiB in a chain', () => {
    const sizeBytes = 2 ** 33
    memory.replace([...ram.regions, { ...ram.regions[0]!, guestAddress: 2 ** 33, sizeBytes }])
    const ring = open()
    driver.offer(
      driver.indirect(
        [
          [2 ** 33, 2 ** 32 - 1],
          [2 ** 33, 2],
        ],
        [],
      ),
    )
    expect(() => ring.take()).toThrow('more than 4 GiB')
  })

  it('is refused: a chain in thousands of pieces', () => {
    // 256 regions of a page each, one behind the other, all at the same place.
    const [region] = ram.regions
    const tiny = Array.from({ length: 256 }, (_, i) => ({
      ...region!,
      guestAddress: 2 ** 33 + 4096 * i,
      sizeBytes: 4096,
    }))
    memory.replace([...ram.regions, ...tiny])
    const ring = open()
    driver.offer(driver.indirect(Array(17).fill([2 ** 33, 1 << 20]), []))
    expect(() => ring.take()).toThrow('more than 4096 pieces')
  })

  it.each<[Partial<StartQueue>, RegExp]>([
    [{ size: 0 }, /has 0 entries/],
    [{ size: 12 }, /has 12 entries/],
    [{ size: 65536 }, /has 65536 entries/],
    [{ descriptors: 0 }, /descriptor table, 128 bytes at user address 0x0, is in no memory region/],
    [{ driverArea: 1 }, /available ring, 20 bytes/],
    [{ deviceArea: 1 }, /used ring, 68 bytes/],
  ])('is not started: %j', (given, why) => {
    expect(() => open(given)).toThrow(why)
  })

  it.each(['descriptors', 'driverArea', 'deviceArea'] as const)('is not started: misaligned %s', part => {
    expect(() => open({ [part]: driver.start()[part] + 1 })).toThrow(/no multiple of (16|2|4)/)
  })
})

describe('put and publish', () => {
  it('shows the guest what was used, when it is published', () => {
    driver.skipTo(0xffff)
    const ring = open({ base: 0xffff })
    driver.offer(driver.chain([], [[data, 8]]), driver.chain([], [[data, 8]]))
    const [first, second] = [ring.take()!, ring.take()!]
    ring.put(second, 8)
    ring.put(first, 5)
    expect(driver.collect()).toEqual([])
    ring.publish()
    expect(driver.collect()).toEqual([
      { id: 1, length: 8 },
      { id: 0, length: 5 },
    ])
    expect(driver.usedIndex).toBe(1)
  })
})

describe('interrupts', () => {
  /** Takes, puts and publishes `count` requests, and asks. */
  function use(ring: SplitRing, count: number): boolean {
    for (let i = 0; i < count; i++) {
      driver.offer(driver.chain([], [[data, 8]]))
      ring.put(ring.take()!, 0)
    }
    ring.publish()
    return ring.wantsCall()
  }

  it('are wanted unless the driver says otherwise', () => {
    const ring = open()
    expect(use(ring, 1)).toBe(true)
    driver.flags = 1
    expect(use(ring, 1)).toBe(false)
  })

  // Section 2.7.7.2: when the used index passes the event; the numbers are counted by hand.
  it.each([
    [0, 0, 1, true],
    [0, 1, 1, false],
    [0, 1, 2, true],
    [0, 0xffff, 3, false],
    [0xfffe, 0xffff, 1, false],
    [0xfffe, 0xffff, 2, true],
    [0xfffe, 0, 2, false],
    [0xfffe, 0, 3, true],
  ])('with the event index: from %d, event %d, %d used: %s', (from, event, count, wanted) => {
    driver.skipTo(from)
    const ring = open({ hasEventIndex: true, base: from })
    expect(ring.wantsCall(), 'nothing is known of what was signalled before').toBe(true)
    driver.usedEvent = event
    expect(use(ring, count)).toBe(wanted)
  })
})

describe('notifications', () => {
  it('are asked for by a flag', () => {
    const ring = open()
    ring.disableNotifications()
    expect(driver.usedFlags).toBe(1)
    expect(ring.enableNotifications()).toBe(false)
    expect(driver.usedFlags).toBe(0)
  })

  it('are asked for by the event index', () => {
    const ring = open({ hasEventIndex: true })
    driver.offer(driver.chain([], [[data, 8]]))
    ring.take()
    expect(ring.enableNotifications()).toBe(false)
    expect(driver.availEvent).toBe(1)
  })

  it.each([true, false])('tell of a request that came meanwhile (event index %s)', hasEventIndex => {
    const ring = open({ hasEventIndex })
    driver.offer(driver.chain([], [[data, 8]]))
    expect(ring.enableNotifications()).toBe(true)
  })
})

describe('inflight region', () => {
  let inflight: SharedPart
  beforeEach(() => {
    inflight = sharedPart(inflightSplitBytes(SIZE))
  })
  afterEach(() => unmap(inflight.address, inflight.sizeBytes))

  const recovered = (ring: SplitRing): number[] => {
    const heads: number[] = []
    for (let request = ring.takeInflight(); request !== null; request = ring.takeInflight())
      heads.push(request.id)
    return heads
  }
  const offer = (count: number): void => {
    for (let i = 0; i < count; i++) driver.offer(driver.chain([], [[data, 8]]))
  }

  it('is laid out as the specification says', () => {
    const ring = open({ inflight })
    offer(3)
    const taken = [ring.take()!, ring.take()!, ring.take()!]
    ring.put(taken[1]!, 8)
    const hex = (offset: number, size: number): string =>
      Buffer.from(bytesAt(inflight.address + offset, size)).toString('hex')
    // features, version 1, 8 entries, last_batch_head 1, used_idx 0
    expect(hex(0, 16)).toBe('0000000000000000' + '0100' + '0800' + '0100' + '0000')
    // inflight, padding, next, counter
    expect(hex(16, 48)).toBe(
      [
        '0100000000000000' + '0000000000000000',
        '0100000000000000' + '0100000000000000',
        '0100000000000000' + '0200000000000000',
      ].join(''),
    )
    ring.publish()
    expect(hex(14, 2) + hex(32, 1)).toBe('0100' + '00')
  })

  it('has nothing for a queue that was never used', () => {
    const ring = open({ inflight, base: 3 })
    expect(recovered(ring)).toEqual([])
    expect(ring.base()).toBe(3)
  })

  it('gives back what was taken and not answered, in its order, and goes on behind it', () => {
    const dead = open({ inflight })
    offer(5)
    const [first, second] = [dead.take()!, dead.take()!]
    dead.take()
    dead.take()
    dead.put(second, 8)
    dead.put(first, 8)
    dead.publish()

    // The front end knows nothing of what happened: its base is of no use.
    const ring = open({ inflight, base: 0 })
    expect(recovered(ring)).toEqual([2, 3])
    expect(takeAll(ring)).toEqual([4])
    const next = open({ inflight })
    expect(recovered(next), 'what is taken after a recovery is younger').toEqual([2, 3, 4])
  })

  it('gives back what was put and not published', () => {
    const dead = open({ inflight })
    offer(2)
    const taken = [dead.take()!, dead.take()!]
    for (const request of taken) dead.put(request, 8)
    expect(recovered(open({ inflight }))).toEqual([0, 1])
  })

  it('does not give back what was published by a process that died before it noted that', () => {
    const dead = open({ inflight })
    offer(3)
    const taken = [dead.take()!, dead.take()!, dead.take()!]
    dead.put(taken[2]!, 8)
    dead.put(taken[0]!, 8)
    const before = Buffer.from(bytesAt(inflight.address, inflight.sizeBytes))
    dead.publish()
    // As it was in the moment in which the guest saw the used index.
    bytesAt(inflight.address, inflight.sizeBytes).set(before)
    const ring = open({ inflight })
    expect(recovered(ring)).toEqual([1])
    expect(ring.base()).toBe(3)
  })

  it('begins anew when the driver has made its ring anew', () => {
    driver.skipTo(100)
    const dead = open({ inflight, base: 100 })
    offer(2)
    dead.take()
    driver.skipTo(0)
    const ring = open({ inflight, base: 0 })
    expect(recovered(ring)).toEqual([])
    expect(ring.base()).toBe(0)
  })

  it.each([
    ['version', 8, 2],
    ['number of entries', 10, 16],
  ])('is refused with another %s', (_, offset, value) => {
    open({ inflight })
    bytesAt(inflight.address + offset, 1)[0] = value
    expect(() => open({ inflight })).toThrow(RingFault)
  })

  it('is refused when it is too small', () => {
    expect(() => open({ inflight: { ...inflight, sizeBytes: 64 } })).toThrow('needs 192')
  })

  // Everything in it was written by the front end, if that is hostile.
  it('leads nowhere when it is full of garbage', () => {
    for (let seed = 0; seed < 500; seed++) {
      const random = new Prng(seed)
      const bytes = bytesAt(inflight.address, inflight.sizeBytes)
      for (let i = 0; i < bytes.length; i++) bytes[i] = random.below(256)
      bytes.set([1, 0, SIZE, 0], 8)
      driver.skipTo(random.below(65536))
      try {
        expect(recovered(open({ inflight })).length).toBeLessThanOrEqual(SIZE)
      } catch (error) {
        expect(error).toBeInstanceOf(RingFault)
      }
    }
  })
})

describe('a hostile guest', () => {
  it('gets nothing out of its memory, whatever it writes into its rings', () => {
    let taken = 0
    let faults = 0
    for (let seed = 0; seed < 3000; seed++) {
      const random = new Prng(seed)
      const pick = <T>(values: readonly T[]): T => values[random.below(values.length)]!
      const ring = open({ base: 0, hasEventIndex: pick([true, false]) })
      const anywhere = (): number =>
        pick([
          data,
          data + random.below(65536),
          (1 << 20) - random.below(64),
          random.below(2 ** 31),
          2 ** 52,
          2 ** 64 - 16,
        ])
      for (let index = 0; index < SIZE; index++) {
        driver.describe(index, {
          address: anywhere(),
          length: pick([0, 16, 32, 48, 512, 65536, 2 ** 32 - 1, random.below(4096)]),
          flags: pick([0, NEXT, WRITE, NEXT | WRITE, INDIRECT, random.below(65536)]),
          next: random.below(SIZE + 1),
        })
      }
      const table = ram.view(data, 512)
      for (let at = 0; at < 512; at += 4)
        table.setUint32(at, pick([data, 0, 16, 1 | (random.below(4) << 16), 2]), true)
      driver.skipTo(0)
      driver.offer(...Array.from({ length: random.below(SIZE + 2) }, () => random.below(SIZE + 1)))
      try {
        for (let request = ring.take(); request !== null; request = ring.take()) {
          taken++
          const total = segmentsOf(request, ram).reduce((sum, [, length]) => sum + length, 0)
          expect(total).toBe(request.readableBytes + request.writableBytes)
          ring.put(request, random.below(2 ** 31))
        }
        ring.publish()
      } catch (error) {
        expect(error).toBeInstanceOf(RingFault)
        faults++
      }
    }
    // Otherwise it would not have been tried.
    expect(taken).toBeGreaterThan(300)
    expect(faults).toBeGreaterThan(300)
  })
})
