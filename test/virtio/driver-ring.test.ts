import { afterEach, describe, expect, it } from 'vitest'
import { Segments } from '../../src/bdev/io.ts'
import { ProtocolError } from '../../src/core/errors.ts'
import { Prng } from '../../src/core/prng.ts'
import { bytesAt } from '../../src/sys/memory.ts'
import type { GuestRequest } from '../../src/vhost/ring/request.ts'
import type { Ring } from '../../src/vhost/ring/ring.ts'
import { DATA_GUEST, found, RING_GUEST, Virtqueue, type VirtqueueOptions } from '../support/virtqueue.ts'

let queue: Virtqueue
afterEach(() => queue.close())

function open(options: VirtqueueOptions): Virtqueue {
  queue = new Virtqueue(options)
  return queue
}

/** A list of [address, length]. */
function segments(...list: (readonly [number, number])[]): Segments {
  const result = new Segments(list.length)
  for (const [address, length] of list) result.push(address, length)
  return result
}

const hexAt = (address: number, size: number): string =>
  Buffer.from(bytesAt(address, size))
    .toString('hex')
    .replace(/(.{8})(?=.)/g, '$1 ')

/** Writes a hex dump. */
function poke(address: number, dump: string): void {
  const bytes = Buffer.from(dump.replaceAll(' ', ''), 'hex')
  bytesAt(address, bytes.length).set(bytes)
}

// Virtual I/O Device specification 1.2, section 2.7: `struct virtq_desc`, `virtq_avail` and `virtq_used`.
describe('a split ring, byte by byte', () => {
  it('has a chain of three in its descriptor table and the head in its available ring', () => {
    const { driver } = open({ isPacked: false, size: 4 })
    driver.add(segments([0x1_2345_6780, 16], [0x9000, 4096], [0xa000, 1]), 1, 7)
    expect(driver.publish()).toBe(true)

    expect(hexAt(driver.addresses.descriptors, 48)).toBe(
      // le64 addr, le32 len, le16 flags NEXT 1 / WRITE 2, le16 next
      '80674523 01000000 10000000 01000100 00900000 00000000 00100000 03000200 00a00000 00000000 01000000 02000000',
    )
    // le16 flags, le16 idx, le16 ring[4]
    expect(hexAt(driver.addresses.driverArea, 12)).toBe('00000100 00000000 00000000')
  })

  it('points to a table when indirect descriptors were negotiated', () => {
    const { driver, ringHost } = open({ isPacked: false, size: 4, tableEntries: 4 })
    driver.add(segments([0x8000, 16], [0xa000, 1]), 1, 7)
    driver.publish()

    const [low, high, length, rest] = hexAt(driver.addresses.descriptors, 16).split(' ')
    expect([high, length, rest]).toEqual(['00000000', '20000000', '04000000'])
    const table = Buffer.from(low!, 'hex').readUInt32LE() - RING_GUEST + ringHost
    expect(hexAt(table, 32)).toBe('00800000 00000000 10000000 01000100 00a00000 00000000 01000000 02000000')
  })

  it('gives back a token with what the used ring says', () => {
    const { driver } = open({ isPacked: false, size: 4 })
    driver.add(segments([0x8000, 16]), 1, 5)
    driver.add(segments([0x9000, 512]), 0, 6)
    driver.publish()
    expect(driver.next()).toBe(-1)

    // le16 flags, le16 idx 1, { le32 id 1, le32 len 512 }
    poke(driver.addresses.deviceArea, '00000100 01000000 00020000')
    expect([driver.next(), driver.usedBytes, driver.next()]).toEqual([6, 512, -1])
  })

  it('asks for interrupts by flag, or by event index', () => {
    const plain = open({ isPacked: false, size: 4 }).driver
    plain.disableInterrupts()
    expect(hexAt(plain.addresses.driverArea, 2)).toBe('0100')
    expect(plain.enableInterrupts()).toBe(false)
    expect(hexAt(plain.addresses.driverArea, 2)).toBe('0000')
    queue.close()

    const { driver } = open({ isPacked: false, size: 4, hasEventIndex: true })
    driver.add(segments([0x8000, 16]), 1, 5)
    driver.publish()
    poke(driver.addresses.deviceArea, '00000100 00000000 00000000')
    expect(driver.next()).toBe(5)
    expect(driver.enableInterrupts()).toBe(false)
    // used_event follows the ring of 4 entries.
    expect(hexAt(driver.addresses.driverArea + 4 + 8, 2)).toBe('0100')
    driver.disableInterrupts()
    expect(hexAt(driver.addresses.driverArea + 4 + 8, 2)).toBe('0000')
    expect(hexAt(driver.addresses.driverArea, 2)).toBe('0000')
  })

  it('notifies as the device asks, by flag or by event index', () => {
    const plain = open({ isPacked: false, size: 4 }).driver
    poke(plain.addresses.deviceArea, '0100')
    plain.add(segments([0x8000, 16]), 1, 0)
    expect(plain.publish()).toBe(false)
    queue.close()

    const { driver } = open({ isPacked: false, size: 4, hasEventIndex: true })
    // avail_event follows the ring of 4 entries: the device wants to hear when entry 1 is there.
    poke(driver.addresses.deviceArea + 4 + 32, '0100')
    const publishes = [0, 1, 2].map(token => driver.add(segments([0x8000, 16]), 1, token) && driver.publish())
    expect(publishes).toEqual([false, true, false])
    expect(driver.publish()).toBe(false)
  })
})

// Section 2.8: `struct pvirtq_desc` and `pvirtq_event_suppress`.
describe('a packed ring, byte by byte', () => {
  it('has one entry for each segment, with the buffer id', () => {
    const { driver } = open({ isPacked: true, size: 3 })
    driver.add(segments([0x1_2345_6780, 16], [0x9000, 4096]), 1, 7)
    expect(hexAt(driver.addresses.descriptors, 16).endsWith('00000000')).toBe(true)
    expect(driver.publish()).toBe(true)

    expect(hexAt(driver.addresses.descriptors, 48)).toBe(
      // le64 addr, le32 len, le16 id, le16 flags: NEXT 0x1, WRITE 0x2, AVAIL 0x80 (the wrap counter is 1 at first)
      '80674523 01000000 10000000 00008100 00900000 00000000 00100000 00008200 00000000 00000000 00000000 00000000',
    )
  })

  it('turns AVAIL and USED round in the second lap', () => {
    const { driver } = open({ isPacked: true, size: 3 })
    driver.add(segments([0x8000, 16], [0x9000, 4096]), 1, 7)
    driver.publish()
    // Used: len 4096, id 0, flags WRITE | AVAIL | USED.
    poke(driver.addresses.descriptors + 8, '00100000 00008280')
    expect([driver.next(), driver.usedBytes, driver.next()]).toEqual([7, 4096, -1])

    driver.add(segments([0xb000, 1], [0xc000, 2]), 2, 8)
    driver.publish()
    expect(hexAt(driver.addresses.descriptors + 32, 16)).toBe('00b00000 00000000 01000000 00008100')
    // AVAIL 0, USED 1.
    expect(hexAt(driver.addresses.descriptors, 16)).toBe('00c00000 00000000 02000000 00000080')
  })

  it('points to a table when indirect descriptors were negotiated', () => {
    const { driver, ringHost } = open({ isPacked: true, size: 4, tableEntries: 4 })
    driver.add(segments([0x8000, 16], [0xa000, 1]), 1, 7)
    driver.publish()

    const [low, high, length, rest] = hexAt(driver.addresses.descriptors, 16).split(' ')
    // INDIRECT 0x4, AVAIL 0x80.
    expect([high, length, rest]).toEqual(['00000000', '20000000', '00008400'])
    const table = Buffer.from(low!, 'hex').readUInt32LE() - RING_GUEST + ringHost
    expect(hexAt(table, 32)).toBe('00800000 00000000 10000000 00000000 00a00000 00000000 01000000 00000200')
  })

  it('takes no length from a used entry without WRITE', () => {
    const { driver } = open({ isPacked: true, size: 3 })
    driver.add(segments([0x8000, 16]), 1, 7)
    driver.publish()
    poke(driver.addresses.descriptors + 8, 'ffffffff 00008080')
    expect([driver.next(), driver.usedBytes]).toEqual([7, 0])
  })

  it('asks for interrupts by flag, or by position and wrap counter', () => {
    const plain = open({ isPacked: true, size: 2 }).driver
    plain.disableInterrupts()
    expect(hexAt(plain.addresses.driverArea, 4)).toBe('00000100')
    plain.enableInterrupts()
    expect(hexAt(plain.addresses.driverArea, 4)).toBe('00000000')
    queue.close()

    const { driver } = open({ isPacked: true, size: 2, hasEventIndex: true })
    expect(driver.enableInterrupts()).toBe(false)
    // off_wrap: 0 | 1 << 15; flags: RING_EVENT_FLAGS_DESC 2.
    expect(hexAt(driver.addresses.driverArea, 4)).toBe('00800200')
    driver.add(segments([0x8000, 1], [0x9000, 1]), 2, 0)
    driver.publish()
    poke(driver.addresses.descriptors + 8, '00000000 00008080')
    expect(driver.enableInterrupts()).toBe(true)
    driver.next()
    expect(driver.enableInterrupts()).toBe(false)
    // Round the ring: the wrap counter is 0.
    expect(hexAt(driver.addresses.driverArea, 4)).toBe('00000200')
  })

  it('notifies as the device asks, by flag or by position and wrap counter', () => {
    const plain = open({ isPacked: true, size: 4 }).driver
    const one = segments([0x8000, 16])
    poke(plain.addresses.deviceArea, '00000100')
    plain.add(one, 1, 0)
    expect(plain.publish()).toBe(false)
    poke(plain.addresses.deviceArea, '00000000')
    plain.add(one, 1, 0)
    expect(plain.publish()).toBe(true)
    queue.close()

    const { driver } = open({ isPacked: true, size: 3, hasEventIndex: true })
    // When entry 1 of the first lap is there.
    poke(driver.addresses.deviceArea, '01800200')
    const publish = (): boolean => driver.add(one, 1, 0) && driver.publish()
    expect([publish(), publish(), publish()]).toEqual([false, true, false])
    // When entry 0 of the second lap is there.
    for (let i = 0; i < 3; i++) poke(driver.addresses.descriptors + i * 16 + 12, `0${i}008080`)
    for (let i = 0; i < 3; i++) driver.next()
    poke(driver.addresses.deviceArea, '00000200')
    expect([publish(), publish()]).toEqual([true, false])
  })
})

describe.each([false, true])('a driver whose ring is packed: %s', isPacked => {
  const one = segments([DATA_GUEST, 16])
  const two = segments([DATA_GUEST, 16], [DATA_GUEST + 4096, 512])

  it('takes buffers until all entries are in use, and again when one is back', () => {
    const { driver } = open({ isPacked, size: 4 })
    const device = queue.openDevice()
    expect([driver.add(two, 1, 0), driver.add(two, 1, 1), driver.add(one, 1, 2)]).toEqual([true, true, false])
    driver.publish()
    const first = device.take()!
    device.put(first, 512)
    device.publish()
    expect([driver.next(), driver.usedBytes]).toEqual([0, 512])
    expect([driver.add(two, 1, 3), driver.add(one, 1, 4)]).toEqual([true, false])
  })

  /** Makes a used entry with that id and length appear, as the first one. */
  function use(id: number, length: number): void {
    const { driver } = queue
    const number = (value: number, size: number): string => {
      const bytes = Buffer.alloc(size)
      bytes.writeUIntLE(value, 0, size)
      return bytes.toString('hex')
    }
    if (isPacked) poke(driver.addresses.descriptors + 8, `${number(length, 4)}${number(id, 2)}8280`)
    else poke(driver.addresses.deviceArea, `00000100${number(id, 4)}${number(length, 4)}`)
  }

  it.each([
    ['an id beyond the ring', 4, 0, /4/],
    ['an id far beyond the ring', 0xffff, 0, /65535/],
    ['an id that is not in flight', 3, 0, /3/],
    ['more bytes than may be written', 0, 513, /513 bytes were written, into a buffer for 512/],
  ])('refuses a used entry with %s', (_, id, length, message) => {
    const { driver } = open({ isPacked, size: 4 })
    driver.add(two, 1, 0)
    driver.publish()
    use(id, length)
    expect(() => driver.next()).toThrow(ProtocolError)
    expect(() => driver.next()).toThrow(message)
  })

  it('refuses a buffer that is used twice', () => {
    const { driver } = open({ isPacked, size: 4 })
    driver.add(one, 1, 0)
    driver.add(one, 1, 1)
    driver.publish()
    use(0, 0)
    expect(driver.next()).toBe(0)
    if (isPacked) poke(driver.addresses.descriptors + 16 + 12, '00008080')
    else poke(driver.addresses.deviceArea + 2, '0200 00000000 00000000 00000000')
    expect(() => driver.next()).toThrow(/0/)
  })
})

it('refuses a used index that is ahead of what is in flight', () => {
  const { driver } = open({ isPacked: false, size: 4 })
  driver.add(segments([0x8000, 16]), 1, 0)
  driver.publish()
  poke(driver.addresses.deviceArea, '0000ffff')
  expect(() => driver.next()).toThrow(/used index 65535 after 0: only 1 buffers are in flight/)
})

interface Added {
  readonly segments: Segments
  readonly readableCount: number
}

/**
 * Both ends of a ring, each of which sleeps until the other wakes it when it finds nothing: nothing may be lost, found
 * twice or changed on the way, nor may both sleep while there is something to do.
 */
class Workload {
  readonly #queue: Virtqueue
  readonly #prng: Prng
  readonly #device: Ring
  readonly #inFlight = new Map<number, Added>()
  readonly #taken: GuestRequest[] = []
  /** What the device says it wrote, by token. */
  readonly #written = new Map<number, number>()
  #token = 0
  #isDeviceAwake = true
  #isDriverAwake = true
  #isUnpublished = false
  completed = 0
  kicks = 0
  calls = 0

  constructor(virtqueue: Virtqueue, prng: Prng) {
    this.#queue = virtqueue
    this.#prng = prng
    this.#device = virtqueue.openDevice()
    this.#device.wantsCall()
  }

  run(count: number): void {
    while (this.completed < count) {
      const isWaiting = !this.#isDeviceAwake && !this.#isDriverAwake
      if (isWaiting && this.#taken.length === 0 && !this.#isUnpublished) {
        if (this.#inFlight.size > 0)
          throw new Error(`both ends sleep, with ${this.#inFlight.size} buffers in flight`)
        this.#add()
      }
      this.#step()
    }
  }

  #step(): void {
    const action = this.#prng.below(4)
    if (action === 0 && this.#isDriverAwake) this.#add()
    else if (action === 1 && this.#isDeviceAwake) this.#take()
    else if (action === 2) this.#answer()
    else if (this.#isDriverAwake) this.#reap()
  }

  #add(): void {
    for (let left = this.#prng.between(1, 8); left > 0; left--) {
      const length = Math.min(this.#queue.size, this.#prng.between(1, 6))
      const buffer = this.#queue.buffer(this.#prng, this.#token, length)
      const readableCount = this.#prng.between(0, length)
      if (!this.#queue.driver.add(buffer, readableCount, this.#token)) break
      this.#inFlight.set(this.#token++, { segments: buffer, readableCount })
    }
    if (!this.#queue.driver.publish()) return
    this.kicks++
    this.#isDeviceAwake = true
  }

  #take(): void {
    const device = this.#device
    device.disableNotifications()
    for (let left = this.#prng.between(1, 16); left > 0; left--) {
      const request = device.take()
      if (request === null) {
        this.#isDeviceAwake = device.enableNotifications()
        return
      }
      request.isOutstanding = true
      const { segments: buffer, readableCount } = this.#inFlight.get(this.#queue.tokenOf(request))!
      const expected = this.#queue.expected(buffer, readableCount)
      if (JSON.stringify(found(request)) !== JSON.stringify(expected))
        expect(found(request)).toEqual(expected)
      this.#taken.push(request)
    }
  }

  #answer(): void {
    for (let left = this.#prng.below(8); left > 0 && this.#taken.length > 0; left--) {
      const [request] = this.#taken.splice(this.#prng.below(this.#taken.length), 1)
      const written = this.#prng.between(0, request!.writableBytes)
      this.#written.set(this.#queue.tokenOf(request!), written)
      request!.isOutstanding = false
      this.#device.put(request!, written)
      this.#isUnpublished = true
    }
    if (this.#prng.oneIn(4)) return
    this.#isUnpublished = false
    this.#device.publish()
    if (!this.#device.wantsCall()) return
    this.calls++
    this.#isDriverAwake = true
  }

  #reap(): void {
    const { driver } = this.#queue
    driver.disableInterrupts()
    for (let token = driver.next(); token >= 0; token = driver.next()) {
      if (!this.#inFlight.delete(token)) throw new Error(`buffer ${token} came back, and was not there`)
      if (driver.usedBytes !== this.#written.get(token))
        expect(driver.usedBytes).toBe(this.#written.get(token))
      this.completed++
    }
    this.#isDriverAwake = driver.enableInterrupts()
  }
}

describe.each([
  { isPacked: false, sizes: [1, 2, 4, 16, 256, 1024] },
  { isPacked: true, sizes: [1, 2, 3, 5, 7, 16, 100, 256, 1000, 1024] },
])('both ends of a ring, packed: $isPacked', ({ isPacked, sizes }) => {
  const cases = sizes.flatMap(size =>
    [false, true].flatMap(hasEventIndex =>
      [0, 4].map(tableEntries => ({ size, hasEventIndex, tableEntries })),
    ),
  )
  it.each(cases)('lose nothing: size $size, event index $hasEventIndex, tables of $tableEntries', options => {
    const seed = options.size * 4 + (options.hasEventIndex ? 2 : 0) + options.tableEntries / 4
    const workload = new Workload(open({ isPacked, hasInflight: true, ...options }), new Prng(seed))
    workload.run(2000)
    expect(workload.completed).toBeGreaterThanOrEqual(2000)
    // Some were suppressed, and some were not.
    expect(workload.kicks).toBeGreaterThan(0)
    expect(workload.calls).toBeGreaterThan(0)
  })
})
