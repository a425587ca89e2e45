/**
 * The device's side of a split virtqueue (Virtual I/O Device specification 1.2, section 2.7).
 *
 *   available ring   … | 7 | 3 | 9 |                        heads of chains, added by the driver
 *                          ^ next  ^ available
 *   descriptors      3: header -> 8: data -> 1: status      or one descriptor that points to such a table elsewhere
 *   used ring        … | 4, 4097 | 7, 1 |                   heads and bytes written, added by us
 *                                ^ published     ^ used
 *
 * The guest may rewrite all of it at any time: each field is loaded once, checked, and then only the copy is used. The
 * views are as long as the parts of the ring, so an index can go astray without leaving them.
 */
import {
  AVAILABLE_FLAG_NO_INTERRUPT,
  availableBytes,
  DescriptorFlag,
  descriptorBytes,
  QUEUE_SIZE_MAX,
  SplitAlignment,
  SplitDescriptor,
  USED_FLAG_NO_NOTIFY,
  usedBytes,
} from '../../spec/virtqueue.ts'
import { viewMemory } from '../../sys/libc.ts'
import type { StartQueue } from '../messages.ts'
import { addBuffer, beginChain, hostOfPart, locateTable } from './chain.ts'
import type { GuestMemory } from './guest-memory.ts'
import { SplitInflight } from './inflight-split.ts'
import type { GuestRequest } from './request.ts'
import { type RequestOf, type Ring, RingFault } from './ring.ts'

const { NEXT, WRITE, INDIRECT } = DescriptorFlag
const DESCRIPTOR = SplitDescriptor.size
const WORDS = DESCRIPTOR / 4
/** `next` has 16 bits, so what is beyond can be reached from nowhere. */
const TABLE_BYTES_MAX = 65536 * DESCRIPTOR
/** Drivers may make chains as long as the queue; those of small queues that use tables make longer ones. */
const CHAIN_LENGTH_MIN_MAX = 1024
// Where things are in the rings, in units of 16 bits.
const FLAGS = 0
const INDEX = 1
const ENTRIES = 2

export class SplitRing implements Ring {
  readonly #memory: GuestMemory
  readonly #requestOf: RequestOf
  readonly #size: number
  readonly #mask: number
  readonly #chainLengthMax: number
  readonly #hasEventIndex: boolean
  readonly #hasIndirect: boolean
  readonly #descriptors: Int32Array
  readonly #driver: Uint16Array
  readonly #device: Uint16Array
  readonly #usedEntries: Int32Array
  /** The chain that is being looked at. */
  readonly #chain: Int32Array
  readonly #inflight: SplitInflight | null
  /** Taken by an earlier process: the next one at the end. */
  readonly #recovered: number[]

  // Free-running indexes of 16 bits.
  #next: number
  #available: number
  #used: number
  /** The used index when `wantsCall` was last asked; -1 before that. */
  #asked = -1

  constructor(start: StartQueue, memory: GuestMemory, requestOf: RequestOf) {
    const { size } = start
    if (!(size >= 1 && size <= QUEUE_SIZE_MAX) || (size & (size - 1)) !== 0) {
      throw new RingFault(`a queue has ${size} entries: a split ring has a power of two, at most 32768`)
    }
    this.#memory = memory
    this.#requestOf = requestOf
    this.#size = size
    this.#mask = size - 1
    this.#chainLengthMax = Math.max(size, CHAIN_LENGTH_MIN_MAX)
    this.#chain = new Int32Array(this.#chainLengthMax * WORDS)
    this.#hasEventIndex = start.hasEventIndex
    this.#hasIndirect = start.hasIndirect
    const eventBytes = start.hasEventIndex ? 0 : 2
    const view = (name: string, address: number, sizeBytes: number, alignment: number): ArrayBuffer =>
      viewMemory(hostOfPart(memory, name, address, sizeBytes, alignment), sizeBytes)
    this.#descriptors = new Int32Array(
      view('descriptor table', start.descriptors, descriptorBytes(size), SplitAlignment.DESCRIPTORS),
    )
    this.#driver = new Uint16Array(
      view('available ring', start.driverArea, availableBytes(size) - eventBytes, SplitAlignment.AVAILABLE),
    )
    const device = view('used ring', start.deviceArea, usedBytes(size) - eventBytes, SplitAlignment.USED)
    this.#device = new Uint16Array(device)
    this.#usedEntries = new Int32Array(device, 4, 2 * size)

    this.#used = this.#device[INDEX]!
    this.#next = start.base & 0xffff
    this.#inflight = start.inflight === null ? null : new SplitInflight(start.inflight, size)
    const recovered = this.#inflight?.recover(this.#used) ?? null
    if (recovered !== null) this.#next = (this.#used + recovered.length) & 0xffff
    this.#recovered = recovered?.reverse() ?? []
    this.#available = this.#next
  }

  take(): GuestRequest | null {
    const next = this.#next
    if (next === this.#available && !this.#look()) return null
    const head = this.#driver[ENTRIES + (next & this.#mask)]!
    const request = this.#read(head)
    if (this.#inflight !== null) this.#inflight.take(head)
    this.#next = (next + 1) & 0xffff
    return request
  }

  takeInflight(): GuestRequest | null {
    const head = this.#recovered.pop()
    return head === undefined ? null : this.#read(head)
  }

  put(request: GuestRequest, writtenBytes: number): void {
    const at = (this.#used & this.#mask) * 2
    this.#usedEntries[at] = request.id
    this.#usedEntries[at + 1] = writtenBytes
    this.#used = (this.#used + 1) & 0xffff
    if (this.#inflight !== null) this.#inflight.put(request.id)
  }

  publish(): void {
    Atomics.store(this.#device, INDEX, this.#used)
    if (this.#inflight !== null) this.#inflight.published(this.#used)
  }

  wantsCall(): boolean {
    const asked = this.#asked
    this.#asked = this.#used
    if (!this.#hasEventIndex) return (this.#driver[FLAGS]! & AVAILABLE_FLAG_NO_INTERRUPT) === 0
    if (asked < 0) return true
    const event = this.#driver[ENTRIES + this.#size]!
    // Section 2.7.7.2: when the entry that the driver named is among those used since.
    return ((this.#used - event - 1) & 0xffff) < ((this.#used - asked) & 0xffff)
  }

  enableNotifications(): boolean {
    // Both stores are full fences: a driver that did not see them has added its request before the look that follows.
    if (this.#hasEventIndex) Atomics.store(this.#device, ENTRIES + 4 * this.#size, this.#next)
    else Atomics.store(this.#device, FLAGS, 0)
    return Atomics.load(this.#driver, INDEX) !== this.#next
  }

  disableNotifications(): void {
    // With the event index nothing is to be done: the driver notifies again after 65536 requests.
    if (!this.#hasEventIndex) this.#device[FLAGS] = USED_FLAG_NO_NOTIFY
  }

  base(): number {
    return this.#next
  }

  /** Whether the driver has added something. */
  #look(): boolean {
    const available = Atomics.load(this.#driver, INDEX)
    const count = (available - this.#next) & 0xffff
    if (count > this.#size) {
      throw new RingFault(
        `the available index ${available} is ${count} ahead of ${this.#next}, in a ring of ${this.#size}`,
      )
    }
    this.#available = available
    return count > 0
  }

  #read(head: number): GuestRequest {
    if (head >= this.#size) {
      throw new RingFault(`descriptor ${head} heads a chain, in a table of ${this.#size}`)
    }
    const request = this.#requestOf(head)
    if (request.isOutstanding) throw new RingFault(`descriptor ${head} heads two chains at once`)
    beginChain(request)
    this.#readChain(request, head)
    return request
  }

  #readChain(request: GuestRequest, head: number): void {
    const chain = this.#chain
    const count = this.#copyChain(head)
    for (let i = 0; i < count; i++) {
      const at = i * WORDS
      const bytes = chain[at + 2]! >>> 0
      addBuffer(request, this.#memory, chain[at]!, chain[at + 1]!, bytes, (chain[at + 3]! & WRITE) !== 0)
    }
  }

  /** Copies a chain, with the table at its end, to `#chain`. Returns how many descriptors with data it has. */
  #copyChain(head: number): number {
    const descriptors = this.#descriptors
    const chain = this.#chain
    let index = head
    for (let count = 0; ; ) {
      const from = index * WORDS
      const to = count * WORDS
      const flagsAndNext = descriptors[from + 3]!
      chain[to] = descriptors[from]!
      chain[to + 1] = descriptors[from + 1]!
      chain[to + 2] = descriptors[from + 2]!
      chain[to + 3] = flagsAndNext
      if ((flagsAndNext & INDIRECT) !== 0) {
        if ((flagsAndNext & NEXT) === 0) return this.#copyTable(count)
        throw new RingFault(`descriptor ${index} has a table and a successor`)
      }
      count++
      if ((flagsAndNext & NEXT) === 0) return count
      index = this.#successor(flagsAndNext >>> 16, this.#size, count)
    }
  }

  /** Puts the table that descriptor `countBefore` of `#chain` points to in its place. Returns how many there are then. */
  #copyTable(countBefore: number): number {
    if (!this.#hasIndirect) throw new RingFault('a descriptor has a table, which was not negotiated')
    const chain = this.#chain
    const memory = this.#memory
    const last = countBefore * WORDS
    const bytes = chain[last + 2]! >>> 0
    const start = locateTable(memory, chain[last]!, chain[last + 1]!, bytes, TABLE_BYTES_MAX)
    const { view } = memory
    let index = 0
    for (let count = countBefore; ; ) {
      const from = start + index * DESCRIPTOR
      const to = count * WORDS
      const flagsAndNext = view.getInt32(from + 12, true)
      chain[to] = view.getInt32(from, true)
      chain[to + 1] = view.getInt32(from + 4, true)
      chain[to + 2] = view.getInt32(from + 8, true)
      chain[to + 3] = flagsAndNext
      if ((flagsAndNext & INDIRECT) !== 0) throw new RingFault('a table of descriptors holds another one')
      count++
      if ((flagsAndNext & NEXT) === 0) return count
      index = this.#successor(flagsAndNext >>> 16, bytes / DESCRIPTOR, count)
    }
  }

  #successor(index: number, size: number, length: number): number {
    if (index >= size) throw new RingFault(`a chain goes on at descriptor ${index}, in a table of ${size}`)
    if (length >= this.#chainLengthMax) {
      throw new RingFault(`a chain has more than ${this.#chainLengthMax} descriptors`)
    }
    return index
  }
}
