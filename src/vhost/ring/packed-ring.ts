/**
 * The device's side of a packed virtqueue (Virtual I/O Device specification 1.2, section 2.8). One ring for both
 * directions: the driver adds chains, one entry for each descriptor; we write what was used over them, one entry for each
 * chain, in the order of completion, and then skip as many entries as that chain had.
 *
 *            +--- 2 entries ---+-- 1 --+--- 3 entries ----+
 *   taken    | 7: next | 7     | 4     | 9: next next  9  | available | available
 *            ^ used                                       ^ next
 *   answered | 4 | 9           .       .                  |       (4 came first: 1 entry; 9 takes the next 3)
 *
 * Each side has a wrap counter that flips when its position goes round. AVAIL equals the driver's when an entry is made
 * available, USED then is the opposite; both are equal once it is used.
 *
 * The guest may rewrite all of it at any time: a chain is copied out, each word once, and only the copy is looked at.
 */
import {
  DescriptorFlag,
  descriptorBytes,
  EVENT_FLAG_MASK,
  EventFlag,
  EventSuppression,
  PackedAlignment,
  PackedDescriptor,
  QUEUE_SIZE_MAX,
  WRAP_COUNTER_BIT,
} from '../../spec/virtqueue.ts'
import { viewMemory } from '../../sys/libc.ts'
import type { StartQueue } from '../messages.ts'
import { addBuffer, beginChain, hostOfPart, locateTable } from './chain.ts'
import type { GuestMemory } from './guest-memory.ts'
import { isAvailable, PackedInflight } from './inflight-packed.ts'
import type { GuestRequest } from './request.ts'
import { type RequestOf, type Ring, RingFault } from './ring.ts'

const { NEXT, WRITE, INDIRECT, AVAIL, USED } = DescriptorFlag
const DESCRIPTOR = PackedDescriptor.size
const WORDS = DESCRIPTOR / 4
const INDEX_MASK = WRAP_COUNTER_BIT - 1
/** Drivers may make chains as long as the queue; those of small queues that use tables make longer ones. */
const TABLE_LENGTH_MIN_MAX = 1024

export class PackedRing implements Ring {
  readonly #memory: GuestMemory
  readonly #requestOf: RequestOf
  readonly #size: number
  readonly #hasEventIndex: boolean
  readonly #hasIndirect: boolean
  readonly #words: Int32Array
  /** Event suppression structures, one word each. */
  readonly #driverEvent: Int32Array
  readonly #deviceEvent: Int32Array
  /** Host addresses, for the log of a migration. */
  readonly #ringHost: number
  readonly #deviceEventHost: number
  readonly #inflight: PackedInflight | null
  /** Taken by an earlier process, by record of the inflight region: the next one at the end. */
  readonly #recovered: number[]
  /** The chain that is being looked at, and its table if it has one. */
  readonly #chain: Int32Array
  readonly #table: Int32Array

  #next: number
  #nextWrap: number
  #used: number
  #usedWrap: number
  /** Entries from `#used` to `#next`: they are ours. */
  #taken: number

  // What was put and not published: buffer ids, bytes, records in the inflight region; entries of all.
  readonly #batchIds: Uint16Array
  readonly #batchBytes: Float64Array
  readonly #batchCounts: Uint16Array
  readonly #batchRecords: Uint16Array
  #batchCount = 0
  #batchEntries = 0
  /** Entries published since `wantsCall` was last asked. An earlier process may have published some and not called. */
  #unasked: number

  constructor(start: StartQueue, memory: GuestMemory, requestOf: RequestOf) {
    const { size } = start
    if (!(size >= 1 && size <= QUEUE_SIZE_MAX)) {
      throw new RingFault(`a queue has ${size} entries: a packed ring has 1 to ${QUEUE_SIZE_MAX}`)
    }
    this.#memory = memory
    this.#requestOf = requestOf
    this.#size = size
    this.#hasEventIndex = start.hasEventIndex
    this.#hasIndirect = start.hasIndirect
    const ringBytes = descriptorBytes(size)
    const host = hostOfPart(
      memory,
      'descriptor ring',
      start.descriptors,
      ringBytes,
      PackedAlignment.DESCRIPTORS,
    )
    this.#ringHost = host
    this.#words = new Int32Array(viewMemory(host, ringBytes))
    const eventHost = (name: string, address: number): number =>
      hostOfPart(memory, name, address, EventSuppression.size, PackedAlignment.EVENT)
    const driverHost = eventHost('driver event suppression structure', start.driverArea)
    this.#driverEvent = new Int32Array(viewMemory(driverHost, EventSuppression.size))
    this.#deviceEventHost = eventHost('device event suppression structure', start.deviceArea)
    this.#deviceEvent = new Int32Array(viewMemory(this.#deviceEventHost, EventSuppression.size))
    this.#chain = new Int32Array(size * WORDS)
    this.#table = new Int32Array(start.hasIndirect ? Math.max(size, TABLE_LENGTH_MIN_MAX) * WORDS : 0)
    this.#batchIds = new Uint16Array(size)
    this.#batchBytes = new Float64Array(size)
    this.#batchCounts = new Uint16Array(size)
    this.#batchRecords = new Uint16Array(size)
    this.#unasked = size

    const { next, used } = positionsOf(start.base, size)
    this.#inflight = start.inflight === null ? null : new PackedInflight(start.inflight, size)
    const recovered = this.#inflight?.recover(used, this.#words) ?? null
    // The front end does not know how far a process came that died: its base is of use for a region without history.
    this.#used = (recovered?.used ?? used) & INDEX_MASK
    this.#usedWrap = (recovered?.used ?? used) >>> 15
    this.#taken = recovered?.entryCount ?? distance(used, next, size)
    this.#recovered = recovered?.chains.reverse() ?? []
    const end = this.#used + this.#taken
    this.#next = end < size ? end : end - size
    this.#nextWrap = end < size ? this.#usedWrap : this.#usedWrap ^ 1
    this.#takeBackUsed()
  }

  take(): GuestRequest | null {
    const head = Atomics.load(this.#words, this.#next * WORDS + 3)
    if (!isAvailable(head, this.#nextWrap)) return null
    const count = this.#copyChain(head)
    const request = this.#read(count)
    if (this.#inflight !== null) this.#inflight.take(request.id, this.#chain, count)
    this.#taken += count
    this.#next += count
    if (this.#next >= this.#size) {
      this.#next -= this.#size
      this.#nextWrap ^= 1
    }
    return request
  }

  takeInflight(): GuestRequest | null {
    const first = this.#recovered.pop()
    if (first === undefined) return null
    return this.#read(this.#inflight!.load(first, this.#chain))
  }

  put(request: GuestRequest, writtenBytes: number): void {
    const at = this.#batchCount++
    this.#batchIds[at] = request.id
    this.#batchBytes[at] = writtenBytes
    this.#batchCounts[at] = request.entryCount
    this.#batchEntries += request.entryCount
    if (this.#inflight !== null) this.#batchRecords[at] = this.#inflight.recordOf(request.id)
  }

  publish(): void {
    const count = this.#batchCount
    if (count === 0) return
    const entries = this.#batchEntries
    const end = this.#used + entries
    const used = end < this.#size ? end : end - this.#size
    const usedWrap = end < this.#size ? this.#usedWrap : this.#usedWrap ^ 1
    if (this.#inflight !== null) {
      this.#inflight.publishing(this.#batchRecords, count, used | (usedWrap << 15))
    }
    this.#writeUsed(count)
    if (this.#inflight !== null) this.#inflight.published(this.#batchRecords, count)
    this.#used = used
    this.#usedWrap = usedWrap
    this.#taken -= entries
    this.#batchCount = 0
    this.#batchEntries = 0
    this.#unasked = Math.min(this.#unasked + entries, this.#size)
  }

  wantsCall(): boolean {
    const count = this.#unasked
    this.#unasked = 0
    if (count === 0) return false
    const event = Atomics.load(this.#driverEvent, 0)
    const flags = (event >>> 16) & EVENT_FLAG_MASK
    if (flags === EventFlag.DISABLE) return false
    if (flags !== EventFlag.DESC || !this.#hasEventIndex) return true
    // Whether the entry that the driver named is among those used since.
    const back = this.#used - (event & INDEX_MASK)
    const ago = ((event & WRAP_COUNTER_BIT) !== 0 ? 1 : 0) === this.#usedWrap ? back : back + this.#size
    return ago > 0 && ago <= count
  }

  enableNotifications(): boolean {
    const event = this.#hasEventIndex
      ? this.#next | (this.#nextWrap << 15) | (EventFlag.DESC << 16)
      : EventFlag.ENABLE << 16
    // A full fence: a driver that did not see it has added its request before the look that follows.
    Atomics.store(this.#deviceEvent, 0, event)
    if (this.#memory.log !== null) this.#memory.mark(this.#deviceEventHost, EventSuppression.size)
    return isAvailable(Atomics.load(this.#words, this.#next * WORDS + 3), this.#nextWrap)
  }

  disableNotifications(): void {
    this.#deviceEvent[0] = EventFlag.DISABLE << 16
    if (this.#memory.log !== null) this.#memory.mark(this.#deviceEventHost, EventSuppression.size)
  }

  base(): number {
    const next = this.#next | (this.#nextWrap << 15)
    const used = this.#used | (this.#usedWrap << 15)
    return next + used * 0x1_0000
  }

  /**
   * An earlier process that was killed between the entries of a batch has left some that are used by their flags, and of
   * which the driver does not know yet because the first was missing. They are not: their requests start again.
   */
  #takeBackUsed(): void {
    let slot = this.#used
    let wrap = this.#usedWrap
    for (let i = 0; i < this.#taken; i++) {
      const at = slot * WORDS + 3
      const rest = this.#words[at]!
      if (isUsed(rest, wrap))
        this.#words[at] = (rest & ~((AVAIL | USED) << 16)) | ((wrap === 0 ? USED : AVAIL) << 16)
      if (++slot === this.#size) {
        slot = 0
        wrap ^= 1
      }
    }
  }

  /** Copies the chain that begins at the next entry, whose fourth word is `head`. Returns how many entries it has. */
  #copyChain(head: number): number {
    const words = this.#words
    const chain = this.#chain
    const room = this.#size - this.#taken
    let slot = this.#next
    let rest = head
    for (let count = 0; count < room; ) {
      const from = slot * WORDS
      const to = count * WORDS
      chain[to] = words[from]!
      chain[to + 1] = words[from + 1]!
      chain[to + 2] = words[from + 2]!
      chain[to + 3] = rest
      count++
      if (((rest >>> 16) & NEXT) === 0) return count
      if (++slot === this.#size) slot = 0
      rest = words[slot * WORDS + 3]!
    }
    throw new RingFault(
      `a chain does not end within the ${room} entries of a ring of ${this.#size} that are not in use`,
    )
  }

  /** The request of the first `count` entries of `#chain`. */
  #read(count: number): GuestRequest {
    const chain = this.#chain
    // The buffer's id is that of its last descriptor (section 2.8.6).
    const id = chain[(count - 1) * WORDS + 3]! & 0xffff
    if (id >= this.#size) throw new RingFault(`a chain has buffer id ${id}, in a ring of ${this.#size}`)
    const request = this.#requestOf(id)
    if (request.isOutstanding) throw new RingFault(`two chains have buffer id ${id} at once`)
    beginChain(request)
    request.entryCount = count
    const hasTable = count === 1 && ((chain[3]! >>> 16) & INDIRECT) !== 0
    const source = hasTable ? this.#table : chain
    const length = hasTable ? this.#copyTable() : count
    for (let i = 0; i < length; i++) {
      const at = i * WORDS
      const flags = source[at + 3]! >>> 16
      if ((flags & INDIRECT) !== 0) {
        // In a table other flags are to be ignored, but what was meant as a table must not be taken for data.
        throw new RingFault(
          hasTable
            ? 'a table of descriptors holds another one'
            : `a descriptor with a table is one of ${count} in a chain`,
        )
      }
      const bytes = source[at + 2]! >>> 0
      addBuffer(request, this.#memory, source[at]!, source[at + 1]!, bytes, (flags & WRITE) !== 0)
    }
    return request
  }

  /**
   * Copies the table that the first entry of `#chain` points to (section 2.8.8: all of its entries belong to the chain, and
   * have no flag but WRITE). Returns how many entries it has.
   */
  #copyTable(): number {
    if (!this.#hasIndirect) throw new RingFault('a descriptor has a table, which was not negotiated')
    const chain = this.#chain
    const table = this.#table
    const bytes = chain[2]! >>> 0
    const memory = this.#memory
    const start = locateTable(memory, chain[0]!, chain[1]!, bytes, table.byteLength)
    const { view } = memory
    const count = bytes / 4
    for (let i = 0; i < count; i++) table[i] = view.getInt32(start + 4 * i, true)
    return bytes / DESCRIPTOR
  }

  /** Writes the used entries of the batch. The flags of the first one come last: until then the driver sees none. */
  #writeUsed(count: number): void {
    const words = this.#words
    const first = this.#used * WORDS + 3
    let firstRest = 0
    let slot = this.#used
    let wrap = this.#usedWrap
    for (let i = 0; i < count; i++) {
      const bytes = this.#batchBytes[i]!
      // The length counts only with this flag (section 2.8.5).
      const flags = (wrap === 0 ? 0 : AVAIL | USED) | (bytes > 0 ? WRITE : 0)
      const rest = this.#batchIds[i]! | (flags << 16)
      words[slot * WORDS + 2] = bytes
      if (i === 0) firstRest = rest
      else words[slot * WORDS + 3] = rest
      slot += this.#batchCounts[i]!
      if (slot >= this.#size) {
        slot -= this.#size
        wrap ^= 1
      }
    }
    Atomics.store(words, first, firstRest)
    if (this.#memory.log !== null) this.#memory.mark(this.#ringHost, words.byteLength)
  }
}

/** What a front end says as base: positions are an index and, as bit 15, a wrap counter. */
function positionsOf(base: number, size: number): { next: number; used: number } {
  const next = base & 0xffff
  const used = base >>> 16
  const taken = distance(used, next, size)
  if ((next & INDEX_MASK) >= size || (used & INDEX_MASK) >= size || taken < 0 || taken > size) {
    throw new RingFault(
      `a base of 0x${(base >>> 0).toString(16)} has the next entry at ${next & INDEX_MASK} and the next used one at ${used & INDEX_MASK}, in a ring of ${size}`,
    )
  }
  return { next, used }
}

/** How many entries are from one position to a later one. */
function distance(from: number, to: number, size: number): number {
  const isSameLap = ((from ^ to) & WRAP_COUNTER_BIT) === 0
  const entries = (to & INDEX_MASK) - (from & INDEX_MASK)
  return isSameLap ? entries : entries + size
}

function isUsed(rest: number, wrap: number): boolean {
  const flags = (rest >>> 16) & (AVAIL | USED)
  return flags === (wrap === 0 ? 0 : AVAIL | USED)
}
