import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { Segments } from '../../../src/bdev/io.ts'
import { Prng } from '../../../src/core/prng.ts'
import { bytesAt } from '../../../src/sys/memory.ts'
import type { StartQueue } from '../../../src/vhost/messages.ts'
import { DirtyLog } from '../../../src/vhost/ring/dirty-log.ts'
import type { GuestRequest } from '../../../src/vhost/ring/request.ts'
import { type Ring, RingFault } from '../../../src/vhost/ring/ring.ts'
import { DATA_GUEST, found, RING_GUEST, RING_USER, Virtqueue } from '../../support/virtqueue.ts'
import { watching } from '../../support/watched-memory.ts'

const SIZE = 4
// Flags of descriptors as bytes, little-endian: AVAIL is 0x0080, USED 0x8000; NEXT 1, WRITE 2, INDIRECT 4.
const AVAILABLE = '8000'

let queue: Virtqueue
beforeEach(() => {
  queue = new Virtqueue({ isPacked: true, size: SIZE, tableEntries: 4, hasInflight: true })
})
afterEach(() => queue.close())

function poke(address: number, dump: string): void {
  const bytes = Buffer.from(dump.replaceAll(' ', ''), 'hex')
  bytesAt(address, bytes.length).set(bytes)
}

const hexAt = (address: number, size: number): string =>
  Buffer.from(bytesAt(address, size))
    .toString('hex')
    .replace(/(.{8})(?=.)/g, '$1 ')

const le = (value: number, size: number): string => {
  const bytes = Buffer.alloc(8)
  bytes.writeBigUInt64LE(BigInt(value))
  return bytes.subarray(0, size).toString('hex')
}

/** `struct pvirtq_desc`: le64 addr, le32 len, le16 id, le16 flags. */
const descriptor = (address: number, length: number, id: number, flags: string): string =>
  le(address, 8) + le(length, 4) + le(id, 2) + flags

/** Writes descriptors to the ring from an entry on. */
function ring(at: number, ...descriptors: readonly string[]): void {
  for (const [i, dump] of descriptors.entries()) poke(queue.ringHost + ((at + i) % SIZE) * 16, dump)
}

const entry = (index: number): string => hexAt(queue.ringHost + index * 16, 16)

/** Takes everything that is there. */
function takeAll(device: Ring): GuestRequest[] {
  const taken: GuestRequest[] = []
  for (let request = device.take(); request !== null; request = device.take()) {
    request.isOutstanding = true
    taken.push(request)
  }
  return taken
}

function answer(device: Ring, request: GuestRequest, writtenBytes: number): void {
  request.isOutstanding = false
  device.put(request, writtenBytes)
}

function hostOf(guestAddress: number): number {
  const place = new Segments(1)
  expect(queue.memory.translate(guestAddress, 1, place)).toBe(true)
  return place.addresses[0]!
}

describe('take', () => {
  it('finds nothing in an empty ring', () => {
    expect(queue.openDevice().take()).toBeNull()
  })

  it('reads a chain, and the id from its last entry', () => {
    const device = queue.openDevice()
    ring(
      0,
      descriptor(DATA_GUEST, 16, 9, '8100'),
      descriptor(DATA_GUEST + 64, 4096, 9, '8300'),
      descriptor(DATA_GUEST + 32, 1, 3, '8200'),
    )
    const request = device.take()!
    expect(found(request)).toEqual({
      pieces: [
        [hostOf(DATA_GUEST), 16],
        [hostOf(DATA_GUEST + 64), 4096],
        [hostOf(DATA_GUEST + 32), 1],
      ],
      readableCount: 1,
    })
    const { id, entryCount, readableBytes, writableBytes } = request
    expect({ id, entryCount, readableBytes, writableBytes }).toEqual({
      id: 3,
      entryCount: 3,
      readableBytes: 16,
      writableBytes: 4097,
    })
    expect(device.take()).toBeNull()
  })

  it('reads a table, whose entries have no flags but WRITE', () => {
    const device = queue.openDevice()
    const table = RING_GUEST + 0x8008
    poke(
      queue.ringHost + 0x8008,
      // NEXT, AVAIL and USED and the id mean nothing here.
      descriptor(DATA_GUEST, 16, 77, '8180') + descriptor(DATA_GUEST + 64, 512, 78, '0200'),
    )
    // WRITE is to be ignored beside INDIRECT.
    ring(0, descriptor(table, 32, 1, '8600'))
    const request = device.take()!
    expect(found(request)).toEqual({
      pieces: [
        [hostOf(DATA_GUEST), 16],
        [hostOf(DATA_GUEST + 64), 512],
      ],
      readableCount: 1,
    })
    expect([request.id, request.entryCount]).toEqual([1, 1])
  })

  it('goes round with the wrap counter, within a chain as well', () => {
    const device = queue.openDevice({ base: 0x8003_8003 })
    ring(3, descriptor(DATA_GUEST, 16, 2, '8100'), descriptor(DATA_GUEST + 64, 1, 2, '0280'))
    // What the last lap left: AVAIL equals the old wrap counter.
    ring(1, descriptor(DATA_GUEST, 16, 1, AVAILABLE))
    expect(takeAll(device).map(({ id }) => id)).toEqual([2])
    ring(1, descriptor(DATA_GUEST, 16, 1, '0080'))
    expect(takeAll(device).map(({ id }) => id)).toEqual([1])
    expect(device.base()).toBe(0x8003_0002)
  })
})

describe('publish', () => {
  it('writes used entries in the order of completion, and skips as many entries as the chain had', () => {
    const device = queue.openDevice()
    ring(
      0,
      descriptor(DATA_GUEST, 16, 2, '8100'),
      descriptor(DATA_GUEST + 64, 512, 2, '8200'),
      descriptor(DATA_GUEST, 16, 1, AVAILABLE),
      descriptor(DATA_GUEST, 16, 0, AVAILABLE),
    )
    const [two, one, zero] = takeAll(device)
    const before = [0, 1, 2, 3].map(entry)
    answer(device, one!, 0)
    answer(device, two!, 512)
    answer(device, zero!, 0)
    expect([0, 1, 2, 3].map(entry)).toEqual(before)
    device.publish()
    // AVAIL and USED equal the wrap counter 1; WRITE says that the length counts.
    expect(entry(0).slice(18)).toBe('00000000 01008080')
    expect(entry(1).slice(18)).toBe('00020000 02008280')
    expect(entry(2)).toBe(before[2])
    expect(entry(3).slice(18)).toBe('00000000 00008080')
    expect(device.base()).toBe(0)
  })

  it('stores the flags of the first entry last', () => {
    ring(0, ...[0, 1, 2].map(id => descriptor(DATA_GUEST, 16, id, '8200')))
    const first: string[] = []
    watching({ store: () => first.push(entry(0)) }, () => {
      const device = queue.openDevice({ inflight: null })
      for (const request of takeAll(device)) answer(device, request, 1)
      device.publish()
    })
    // Three lengths, two flags, and then the one that makes them visible.
    expect(first).toHaveLength(6)
    expect(first.at(-1)!.endsWith('00008200')).toBe(true)
    expect(entry(0).endsWith('00008280')).toBe(true)
  })

  it('marks the pages of what it wrote in the log of a migration', () => {
    const bits = bytesAt(queue.inflightHost + 0x10000, 0x1_0000)
    queue.memory.log = new DirtyLog({ address: queue.inflightHost + 0x10000, sizeBytes: 0x1_0000 })
    const device = queue.openDevice()
    const page = RING_GUEST / 4096
    device.enableNotifications()
    expect(bits[page / 8]! & 1).toBe(1)
    bits[page / 8] = 0
    device.disableNotifications()
    expect(bits[page / 8]! & 1).toBe(1)
    bits[page / 8] = 0
    ring(0, descriptor(DATA_GUEST, 16, 0, '8200'))
    answer(device, takeAll(device)[0]!, 16)
    device.publish()
    expect(bits[page / 8]! & 1).toBe(1)
  })
})

describe('notifications', () => {
  const device = (hasEventIndex: boolean): Ring => queue.openDevice({ hasEventIndex })
  const deviceEvent = (): string => hexAt(queue.driver.addresses.deviceArea, 4)

  it('are asked for by flag', () => {
    const plain = device(false)
    plain.disableNotifications()
    expect(deviceEvent()).toBe('00000100')
    expect(plain.enableNotifications()).toBe(false)
    expect(deviceEvent()).toBe('00000000')
    ring(0, descriptor(DATA_GUEST, 16, 0, AVAILABLE))
    expect(plain.enableNotifications()).toBe(true)
  })

  it('are asked for by position and wrap counter', () => {
    const indexed = device(true)
    indexed.enableNotifications()
    // off_wrap 0 | 1 << 15, RING_EVENT_FLAGS_DESC.
    expect(deviceEvent()).toBe('00800200')
    ring(0, ...[0, 1, 2, 3].map(id => descriptor(DATA_GUEST, 16, id, AVAILABLE)))
    takeAll(indexed)
    expect(indexed.enableNotifications()).toBe(false)
    expect(deviceEvent()).toBe('00000200')
  })
})

describe('interrupts', () => {
  /** Offers, takes and answers so many buffers, the first of which has that id. */
  function serve(device: Ring, ids: readonly number[], flags: string): void {
    for (const id of ids) ring(id, descriptor(DATA_GUEST, 16, id, flags))
    for (const request of takeAll(device)) answer(device, request, 0)
    device.publish()
  }

  it('are sent by flag', () => {
    const device = queue.openDevice()
    device.wantsCall()
    serve(device, [0], AVAILABLE)
    expect([device.wantsCall(), device.wantsCall()]).toEqual([true, false])
    poke(queue.driver.addresses.driverArea, '00000100')
    serve(device, [1], AVAILABLE)
    expect(device.wantsCall()).toBe(false)
  })

  it.each([
    ['the entry is among those used', '0180', [0, 1, 2], true],
    ['the entry is the last one used', '0280', [0, 1, 2], true],
    ['the entry is the next one', '0380', [0, 1, 2], false],
    ['the entry is one of the next lap', '0100', [0, 1, 2], false],
    ['the ring goes round', '0380', [0, 1, 2, 3], true],
    ['the entry is that of the next lap', '0000', [0, 1, 2, 3], false],
  ])('are sent by position and wrap counter: %s', (_, offWrap, ids, expected) => {
    const device = queue.openDevice({ hasEventIndex: true })
    device.wantsCall()
    poke(queue.driver.addresses.driverArea, `${offWrap}0200`)
    serve(device, ids, AVAILABLE)
    expect(device.wantsCall()).toBe(expected)
  })

  it('are not sent for what was asked about before', () => {
    const device = queue.openDevice({ hasEventIndex: true })
    device.wantsCall()
    poke(queue.driver.addresses.driverArea, '0080 0200')
    serve(device, [0], AVAILABLE)
    expect(device.wantsCall()).toBe(true)
    serve(device, [1], AVAILABLE)
    expect(device.wantsCall()).toBe(false)
  })

  it('are due once at the start: an earlier process may have died between publishing and calling', () => {
    const device = queue.openDevice()
    expect([device.wantsCall(), device.wantsCall()]).toEqual([true, false])
  })
})

describe('a ring that breaks the specification', () => {
  const table = (bytes: number): string => descriptor(RING_GUEST + 0x8000, bytes, 0, '8400')
  const one = descriptor(DATA_GUEST, 16, 0, '8100')
  const END = DATA_GUEST + 2 * (1 << 20)

  it.each<[string, readonly string[], RegExp, Partial<StartQueue>?]>([
    ['a chain without an end', [one, one, one, one], /does not end within the 4 entries of a ring of 4/],
    ['an id beyond the ring', [descriptor(DATA_GUEST, 1, 4, AVAILABLE)], /buffer id 4, in a ring of 4/],
    [
      'an id that is in use',
      [descriptor(DATA_GUEST, 1, 2, AVAILABLE), descriptor(DATA_GUEST, 1, 2, AVAILABLE)],
      /two chains have buffer id 2 at once/,
    ],
    [
      'something to read after something to write',
      [descriptor(DATA_GUEST, 1, 0, '8300'), descriptor(DATA_GUEST, 1, 0, AVAILABLE)],
      /something to read after something to write/,
    ],
    [
      'a buffer of no bytes',
      [descriptor(DATA_GUEST, 0, 0, AVAILABLE)],
      /no bytes at guest address 0x180000000/,
    ],
    [
      'a buffer outside of memory',
      [descriptor(0x1000, 16, 0, AVAILABLE)],
      /16 bytes at guest address 0x1000 is not in the guest's memory/,
    ],
    [
      'a buffer that ends outside',
      [descriptor(END - 8, 9, 0, AVAILABLE)],
      /9 bytes at guest address 0x1801ffff8/,
    ],
    [
      'an address at the end of the address space',
      [`f8ffffffffffffff ${le(16, 4)} 0000 8000`],
      /is not in the guest's memory/,
    ],
    ['a table that was not negotiated', [table(16)], /not negotiated/, { hasIndirect: false }],
    ['a table of no bytes', [table(0)], /table of descriptors has 0 bytes/],
    ['a table with half an entry', [table(24)], /table of descriptors has 24 bytes/],
    ['a table that is too long', [table(1025 * 16)], /16400 bytes: a multiple of 16, at most 16384/],
    ['a table outside of memory', [descriptor(0x1000, 16, 0, '8400')], /table of descriptors of 16 bytes/],
    [
      'a table over the border of two regions',
      [descriptor(DATA_GUEST + (1 << 20) - 16, 32, 0, '8400')],
      /table of descriptors of 32 bytes/,
    ],
    [
      'a table with a successor',
      [descriptor(RING_GUEST + 0x8000, 16, 0, '8500'), descriptor(DATA_GUEST, 1, 0, AVAILABLE)],
      /a table is one of 2 in a chain/,
    ],
    ['a table in a table', [table(32)], /holds another one/],
  ])('is refused: %s', (_, descriptors, message, change) => {
    // The second entry of the table is one itself.
    poke(
      queue.ringHost + 0x8000,
      descriptor(DATA_GUEST, 16, 0, '0000') + descriptor(RING_GUEST + 0x8000, 16, 0, '0400'),
    )
    const device = queue.openDevice(change)
    ring(0, ...descriptors)
    expect(() => takeAll(device)).toThrow(RingFault)
    expect(() => takeAll(device)).toThrow(message)
  })

  it('is refused when a chain has more than 4 GiB', () => {
    const region = { guestAddress: 2 ** 33, userAddress: 2 ** 33, sizeBytes: 2 ** 32, address: 2 ** 46 }
    queue.memory.replace([...queue.memory.regions, region])
    const device = queue.openDevice()
    ring(0, descriptor(2 ** 33, 2 ** 32 - 1, 0, '8100'), descriptor(DATA_GUEST, 2, 0, AVAILABLE))
    expect(() => device.take()).toThrow(/more than 4 GiB/)
  })

  it('is refused when a chain reaches into what is in flight', () => {
    const device = queue.openDevice()
    ring(0, descriptor(DATA_GUEST, 16, 0, AVAILABLE), descriptor(DATA_GUEST, 16, 1, AVAILABLE))
    takeAll(device)
    ring(2, descriptor(DATA_GUEST, 1, 2, '8100'), descriptor(DATA_GUEST, 1, 2, '8100'))
    expect(() => device.take()).toThrow(
      /does not end within the 2 entries of a ring of 4 that are not in use/,
    )
  })

  it.each<[string, Partial<StartQueue>, RegExp]>([
    ['a size of 0', { size: 0 }, /0 entries/],
    ['too large a size', { size: 32769 }, /32769 entries/],
    [
      'a ring outside of memory',
      { descriptors: 0x5000_0000_0000 },
      /descriptor ring, 64 bytes .* no memory region/,
    ],
    ['a ring that is not aligned', { descriptors: RING_USER + 8 }, /descriptor ring .* no multiple of 16/],
    [
      'driver events outside of memory',
      { driverArea: 1 << 21 },
      /driver event suppression structure, 4 bytes/,
    ],
    ['driver events that are not aligned', { driverArea: RING_USER + 2 }, /driver event .* no multiple of 4/],
    [
      'device events outside of memory',
      { deviceArea: 1 << 21 },
      /device event suppression structure, 4 bytes/,
    ],
    ['a base beyond the ring', { base: 0x8000_8004, inflight: null }, /next entry at 4/],
    ['a base with a used entry beyond the ring', { base: 0x8004_8000 }, /next used one at 4, in a ring of 4/],
    ['a base with a used entry ahead', { base: 0x8001_8000 }, /next entry at 0 and the next used one at 1/],
    ['a base more than a lap ahead', { base: 0x8000_0001 }, /next entry at 1 and the next used one at 0/],
  ])('is refused at once: %s', (_, change, message) => {
    expect(() => queue.openDevice(change)).toThrow(RingFault)
    expect(() => queue.openDevice(change)).toThrow(message)
  })

  it('is read only once: what the guest changes afterwards does not count', () => {
    const loads = new Map<number, number>()
    const tableAt = queue.ringHost + 0x8000
    poke(tableAt, descriptor(DATA_GUEST, 16, 0, '0000') + descriptor(DATA_GUEST + 64, 16, 0, '0200'))
    ring(0, descriptor(DATA_GUEST, 16, 1, '8100'), descriptor(DATA_GUEST, 16, 1, '8200'))
    ring(2, descriptor(RING_GUEST + 0x8000, 32, 2, '8400'))
    // A view of the ring begins at its first byte, one of a table at its region's.
    const load = (_: ArrayBufferLike, offset: number): void =>
      void loads.set(offset, (loads.get(offset) ?? 0) + 1)
    let device: Ring
    watching({ load }, () => {
      device = queue.openDevice({ inflight: null })
      loads.clear()
      for (let i = 0; i < 2; i++) device.take()
    })
    expect([...loads.values()].filter(count => count > 1)).toEqual([])
    expect(loads.size).toBe(3 * 4 + 2 * 4)
  })
})

describe('the inflight region', () => {
  const words = (offset: number, count: number): string => hexAt(queue.inflightHost + offset, count * 4)

  it('is as the specification says at the start', () => {
    queue.openDevice()
    // u64 features, u16 version, desc_num; u16 free_head, old_free_head, used_idx, old_used_idx; u8 wrap counters.
    expect(words(0, 8)).toBe('00000000 00000000 01000400 00000000 00000000 01010000 00000000 00000000')
    // u8 inflight, u8 padding, u16 next
    expect([0, 1, 2, 3].map(i => words(32 + 32 * i, 1))).toEqual([
      '00000100',
      '00000200',
      '00000300',
      '00000400',
    ])
  })

  it('has a copy of each descriptor that is in flight', () => {
    const device = queue.openDevice()
    ring(
      0,
      descriptor(DATA_GUEST, 16, 9, '8100'),
      descriptor(DATA_GUEST + 64, 512, 2, '8200'),
      descriptor(DATA_GUEST + 32, 7, 1, AVAILABLE),
    )
    const [, second] = takeAll(device)
    // u8 inflight, u16 next, last, num; u64 counter; u16 id, flags; u32 len; u64 addr
    expect(words(32, 16)).toBe(
      '01000100 01000200 00000000 00000000 09008100 10000000 00000080 01000000 ' +
        '00000200 00000000 00000000 00000000 02008200 00020000 40000080 01000000',
    )
    expect(words(96, 8)).toBe('01000300 02000100 01000000 00000000 01008000 07000000 20000080 01000000')
    expect(words(12, 3)).toBe('03000300 00000000 01010000')

    answer(device, second!, 0)
    device.publish()
    // Free again, before the one that was free.
    expect(words(96, 1)).toBe('00000300')
    expect(words(12, 3)).toBe('02000200 01000100 01010000')
  })

  it('gives back what was in flight, in the order in which it was taken, though the ring was overwritten', () => {
    const first = queue.openDevice()
    ring(0, ...[2, 0, 3, 1].map(id => descriptor(DATA_GUEST + 64 * id, id + 1, id, '8200')))
    const taken = takeAll(first)
    answer(first, taken[2]!, 4)
    answer(first, taken[0]!, 3)
    first.publish()

    const second = queue.openDevice()
    const recovered = [second.takeInflight()!, second.takeInflight()!]
    expect(second.takeInflight()).toBeNull()
    expect(recovered.map(({ id }) => id)).toEqual([0, 1])
    expect(recovered.map(found)).toEqual(
      [0, 1].map(id => ({ pieces: [[hostOf(DATA_GUEST + 64 * id), id + 1]], readableCount: 0 })),
    )
    // The next lap's first entry: two are in flight behind two used ones.
    expect(second.base()).toBe(0x8002_0000)
    expect(second.take()).toBeNull()
    ring(0, descriptor(DATA_GUEST, 16, 2, '0080'))
    expect(second.take()!.id).toBe(2)
  })

  it('takes back entries of a batch whose first one the guest never saw', () => {
    const device = queue.openDevice()
    ring(0, ...[0, 1].map(id => descriptor(DATA_GUEST, 16, id, AVAILABLE)))
    takeAll(device)
    // As a process leaves it that was killed when it had written the second of two used entries.
    ring(1, descriptor(DATA_GUEST, 0, 0, '8080'))
    poke(queue.inflightHost + 12, '01000200 02000000 01010000')
    poke(queue.inflightHost + 32, '01000200')
    poke(queue.inflightHost + 64, '01000000')

    const next = queue.openDevice()
    expect([next.takeInflight()!.id, next.takeInflight()!.id]).toEqual([0, 1])
    expect(entry(1).endsWith('00008000')).toBe(true)
    expect(words(12, 3)).toBe('02000200 00000000 01010000')
  })

  it.each<[string, number, string, RegExp]>([
    ['another version', 8, '0200', /version 2 and 4 entries instead of version 1 and 4/],
    ['another size', 10, '0800', /version 1 and 8 entries instead of version 1 and 4/],
    ['a free head beyond it', 12, '0500 0500', /free heads 5 and 5/],
    ['a used index beyond it', 16, '0400 0400', /used indexes 4 and 4/],
    ['a wrap counter of 2', 20, '0201', /wrap counters 2 and 1/],
    ['free entries in a circle', 32 + 3 * 32 + 2, '0200', /links to entry 2 twice or astray/],
    ['free entries that lead out of it', 32 + 3 * 32 + 2, '0500', /links to entry 5 twice or astray/],
    ['free entries that are lost', 12, '0300 0300', /1 free entries and 2 in flight, of 4/],
    ['a chain that leads out of it', 32 + 2, 'ffff', /links to entry 65535 twice or astray/],
    ['a chain that leads into free entries', 32 + 2, '0200', /links to entry 2 twice or astray/],
    ['a chain of none', 32 + 6, '0000', /2 free entries and 0 in flight, of 4/],
    ['a chain that is too long', 32 + 6, 'ffff', /links to entry 2 twice or astray/],
  ])('is refused with %s', (_, offset, dump, message) => {
    const device = queue.openDevice()
    ring(0, descriptor(DATA_GUEST, 16, 0, '8100'), descriptor(DATA_GUEST, 16, 0, AVAILABLE))
    takeAll(device)
    poke(queue.inflightHost + offset, dump)
    expect(() => queue.openDevice()).toThrow(RingFault)
    poke(queue.inflightHost + offset, dump)
    expect(() => queue.openDevice()).toThrow(message)
  })

  it.each<[string, { address?: number; sizeBytes?: number }]>([
    ['too small', { sizeBytes: 32 + 4 * 32 - 1 }],
    ['not aligned', { address: 4 }],
  ])('is refused when it is %s', (_, { address = 0, sizeBytes = queue.inflightBytes }) => {
    const inflight = { address: queue.inflightHost + address, sizeBytes }
    expect(() => queue.openDevice({ inflight })).toThrow(/a queue of 4 needs 160 at a multiple of 8/)
  })

  it('is checked like the ring when requests start again', () => {
    const device = queue.openDevice()
    ring(0, descriptor(DATA_GUEST, 16, 0, AVAILABLE), descriptor(DATA_GUEST, 16, 1, AVAILABLE))
    takeAll(device)
    poke(queue.inflightHost + 32 + 16, le(7, 2))
    expect(() => queue.openDevice().takeInflight()).toThrow(/buffer id 7, in a ring of 4/)
    poke(queue.inflightHost + 32 + 16, le(0, 2))
    poke(queue.inflightHost + 32 + 24, le(0x1000, 8))
    expect(() => queue.openDevice().takeInflight()).toThrow(/0x1000 is not in the guest's memory/)
  })
})

describe('memory that is scribbled over', () => {
  it.each([1, 2, 3, 4, 5, 6, 7, 8])('costs nobody but the queue: seed %i', seed => {
    const prng = new Prng(seed)
    let faults = 0
    for (let round = 0; round < 150; round++) {
      queue.close()
      queue = new Virtqueue({ isPacked: true, size: prng.between(1, 9), tableEntries: 4, hasInflight: true })
      if (scribble(prng)) faults++
    }
    expect(faults).toBeGreaterThan(20)
    expect(faults).toBeLessThan(150)
  })

  /** A life of both ends with other bytes here and there. Returns whether the device saw a fault. */
  function scribble(prng: Prng): boolean {
    const taken: GuestRequest[] = []
    try {
      let device = queue.openDevice()
      for (let step = 0; step < 40; step++) {
        const segments = queue.buffer(prng, step, prng.between(1, 4))
        const isAdded = segments.count <= 4 && queue.driver.add(segments, 1, step)
        if (isAdded) queue.driver.publish()
        const target = prng.oneIn(3) ? queue.inflight : queue.ringBytes
        if (prng.oneIn(5)) target[prng.below(target.length)] = prng.pick([0, 1, 2, 4, 0x80, 0xff, prng.u32()])
        const request = device.take()
        if (request !== null) {
          request.isOutstanding = true
          expectInMemory(request)
          taken.push(request)
        }
        if (taken.length > 0 && prng.oneIn(2))
          answer(device, taken.splice(prng.below(taken.length), 1)[0]!, 0)
        if (prng.oneIn(2)) device.publish()
        if (prng.oneIn(10)) {
          taken.length = 0
          device = queue.openDevice()
          for (let again = device.takeInflight(); again !== null; again = device.takeInflight()) {
            again.isOutstanding = true
            expectInMemory(again)
            taken.push(again)
          }
        }
      }
      return false
    } catch (error) {
      expect(error).toBeInstanceOf(RingFault)
      return true
    }
  }

  function expectInMemory({ segments }: GuestRequest): void {
    for (let i = 0; i < segments.count; i++) {
      const [address, length] = [segments.addresses[i]!, segments.lengths[i]!]
      const guest = queue.memory.guestOf(address)
      const list = new Segments(4)
      if (guest < 0 || !queue.memory.translate(guest, length, list)) throw new Error(`${address} is outside`)
    }
  }
})
