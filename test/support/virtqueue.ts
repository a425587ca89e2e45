/** Guest memory with a virtqueue in it, both of its ends, and what they must agree on. */
import { Segments } from '../../src/bdev/io.ts'
import type { Prng } from '../../src/core/prng.ts'
import { inflightPackedBytes, inflightSplitBytes } from '../../src/spec/virtqueue.ts'
import { bytesAt, mapAnonymous, unmap } from '../../src/sys/memory.ts'
import type { StartQueue } from '../../src/vhost/messages.ts'
import { GuestMemory } from '../../src/vhost/ring/guest-memory.ts'
import { openRing } from '../../src/vhost/ring/open-ring.ts'
import { GuestRequest, type RequestQueue } from '../../src/vhost/ring/request.ts'
import type { Ring } from '../../src/vhost/ring/ring.ts'
import { type DriverRing, driverRingBytes } from '../../src/virtio/driver-ring.ts'
import { PackedDriver } from '../../src/virtio/packed-driver.ts'
import { SplitDriver } from '../../src/virtio/split-driver.ts'

const MIB = 1 << 20
const RING_BYTES = 2 * MIB
const HOST_BYTES = 8 * MIB
/** Guest addresses: the ring's region, and two regions of data that meet there but nowhere else. */
export const RING_GUEST = 0x1000_0000
export const DATA_GUEST = 0x1_8000_0000
const DATA_BYTES = MIB
/** What the front end's process would call the ring. */
export const RING_USER = 0x7f00_0000_0000
/** Every buffer begins in a piece of its own, which says whose it is. */
const PIECE = 64
const PIECES = DATA_BYTES / PIECE

export interface VirtqueueOptions {
  readonly isPacked: boolean
  readonly size: number
  readonly hasEventIndex?: boolean
  readonly tableEntries?: number
  readonly hasInflight?: boolean
}

export class Virtqueue {
  readonly size: number
  /** Host addresses. */
  readonly ringHost: number
  readonly inflightHost: number
  readonly inflightBytes: number
  readonly memory: GuestMemory
  readonly driver: DriverRing
  readonly start: StartQueue
  readonly #tableEntries: number
  readonly #host: number
  readonly #dataHosts: readonly [number, number]

  constructor({ isPacked, size, hasEventIndex, tableEntries = 0, hasInflight }: VirtqueueOptions) {
    this.size = size
    this.#tableEntries = tableEntries
    this.#host = mapAnonymous(HOST_BYTES)
    this.ringHost = this.#host
    this.#dataHosts = [this.#host + 4 * MIB, this.#host + 2 * MIB]
    this.inflightHost = this.#host + 6 * MIB
    this.inflightBytes = isPacked ? inflightPackedBytes(size) : inflightSplitBytes(size)
    this.memory = new GuestMemory([
      { guestAddress: RING_GUEST, userAddress: RING_USER, sizeBytes: RING_BYTES, address: this.ringHost },
      { guestAddress: DATA_GUEST, userAddress: 0, sizeBytes: DATA_BYTES, address: this.#dataHosts[0] },
      {
        guestAddress: DATA_GUEST + DATA_BYTES,
        userAddress: DATA_BYTES,
        sizeBytes: DATA_BYTES,
        address: this.#dataHosts[1],
      },
    ])
    const options = {
      address: this.ringHost,
      deviceAddress: RING_GUEST,
      entries: size,
      hasEventIndex: hasEventIndex ?? false,
      tableEntries,
    }
    this.driver = isPacked ? new PackedDriver(options) : new SplitDriver(options)
    const user = (host: number): number => host - this.ringHost + RING_USER
    this.start = {
      session: 1,
      index: 0,
      size,
      isPacked,
      hasEventIndex: options.hasEventIndex,
      hasIndirect: tableEntries > 0,
      descriptors: user(this.driver.addresses.descriptors),
      driverArea: user(this.driver.addresses.driverArea),
      deviceArea: user(this.driver.addresses.deviceArea),
      logAddress: -1,
      base: isPacked ? 0x8000_8000 : 0,
      kick: -1,
      call: -1,
      error: -1,
      inflight: hasInflight ? { address: this.inflightHost, sizeBytes: this.inflightBytes } : null,
      isEnabled: true,
    }
  }

  /** The ring's memory with its tables, and the inflight region. */
  get ringBytes(): Uint8Array {
    return bytesAt(this.ringHost, driverRingBytes(this.size, this.start.isPacked, this.#tableEntries))
  }

  get inflight(): Uint8Array {
    return bytesAt(this.inflightHost, this.inflightBytes)
  }

  /** The device's side, as another process would begin with it. */
  openDevice(change: Partial<StartQueue> = {}): Ring {
    const requests = new Map<number, GuestRequest>()
    const queue: RequestQueue = {
      index: 0,
      memory: this.memory,
      device: undefined as never,
      take: () => null,
      complete() {},
    }
    return openRing({ ...this.start, ...change }, this.memory, id => {
      if (!requests.has(id)) requests.set(id, new GuestRequest(queue, id))
      return requests.get(id)!
    })
  }

  /** A buffer of `count` segments by guest addresses, the first of which belongs to `token` alone. */
  buffer(prng: Prng, token: number, count: number): Segments {
    const segments = new Segments(count)
    segments.push(DATA_GUEST + (token % PIECES) * PIECE, prng.between(1, PIECE))
    // Some of the others go over the border between the two regions.
    while (segments.count < count) {
      segments.push(DATA_GUEST + DATA_BYTES - PIECE + prng.below(2 * PIECE), prng.between(1, PIECE))
    }
    return segments
  }

  /** Whose buffer that is. */
  tokenOf(request: GuestRequest): number {
    return Math.floor((request.segments.addresses[0]! - this.#dataHosts[0]) / PIECE)
  }

  /** What a device has to find for a buffer: [host address, length] of each piece, and how many of them it reads. */
  expected(segments: Segments, readableCount: number): { pieces: number[][]; readableCount: number } {
    const pieces: number[][] = []
    let readable = 0
    for (let i = 0; i < segments.count; i++) {
      const start = segments.addresses[i]! - DATA_GUEST
      const end = start + segments.lengths[i]!
      const [low, high] = this.#dataHosts
      if (start < DATA_BYTES) pieces.push([low + start, Math.min(end, DATA_BYTES) - start])
      if (end > DATA_BYTES) {
        const from = Math.max(start, DATA_BYTES)
        pieces.push([high + from - DATA_BYTES, end - from])
      }
      if (i < readableCount) readable = pieces.length
    }
    return { pieces, readableCount: readable }
  }

  close(): void {
    unmap(this.#host, HOST_BYTES)
  }
}

/** What a device found for a buffer, in the form of `Virtqueue.expected`. */
export function found({ segments, readableCount }: GuestRequest): {
  pieces: number[][]
  readableCount: number
} {
  const pieces = Array.from({ length: segments.count }, (_, i) => [
    segments.addresses[i]!,
    segments.lengths[i]!,
  ])
  return { pieces, readableCount }
}
