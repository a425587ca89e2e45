/**
 * What a packed ring has in flight, noted in memory that outlives this process (vhost-user specification, "Inflight I/O
 * tracking"). Used entries overwrite descriptors, so each descriptor that was taken is copied to a record; the records of
 * a chain are linked, and so are those that are free:
 *
 *   records    0 > 1    2    3 > 4 > 5 > size           chains of 0 (in flight), 2 (in flight); 3, 4, 5 are free
 *   header     free_head 3, used_idx, used_wrap_counter, and an older copy of each
 *
 * Whoever has the queue next knows by the difference of the two copies how far this process came. The order of the writes
 * is what makes that true at every instruction:
 *
 *   take       the records (still in the free list), inflight = 1, then both copies of the free head at once
 *   publish    1. the batch's records join the free list, the new copies of free head, used index and wrap counter
 *              2. the ring; the flags of the batch's first entry come last: the guest sees it
 *              3. inflight = 0 of the batch, the old copies: the free head first
 *
 * Killed in step 3 after the free head, both free heads are equal and the rest differs: published. Killed anywhere else
 * after step 1, the ring's entry at the old used index tells. Everything is written, never read, in units of 32 bits, and
 * read back only by `recover`, which trusts none of it: the front end can write there, too.
 */
import {
  DescriptorFlag,
  INFLIGHT_VERSION,
  InflightPacked,
  InflightPackedEntry,
  PackedDescriptor,
  WRAP_COUNTER_BIT,
} from '../../spec/virtqueue.ts'
import { viewMemory } from '../../sys/libc.ts'
import type { SharedPart } from '../messages.ts'
import { RingFault } from './ring.ts'

const TWO_32 = 2 ** 32
const USED_MASK = DescriptorFlag.AVAIL | DescriptorFlag.USED

// Where things are, in words of 32 bits.
const HEADER_WORDS = InflightPacked.size / 4
const VERSION = InflightPacked.version.offset / 4
const FREE_HEADS = InflightPacked.freeHead.offset / 4
const USED_INDEXES = InflightPacked.usedIndex.offset / 4
const WRAP_COUNTERS = InflightPacked.usedWrapCounter.offset / 4
const RECORD_WORDS = InflightPackedEntry.size / 4
const STATE_AND_NEXT = InflightPackedEntry.inflight.offset / 4
const LAST_AND_COUNT = InflightPackedEntry.last.offset / 4
const COUNTER = InflightPackedEntry.counter.offset / 4
const ID_AND_FLAGS = InflightPackedEntry.id.offset / 4
const LENGTH = InflightPackedEntry.length.offset / 4
const ADDRESS = InflightPackedEntry.address.offset / 4
const DESCRIPTOR_WORDS = PackedDescriptor.size / 4

/** Positions in the ring are numbers: the index, and the wrap counter as bit 15. */
const WRAP_SHIFT = 15
const INDEX_MASK = WRAP_COUNTER_BIT - 1

/** What an earlier process left. */
export interface PackedRecovery {
  /** The next used entry of the ring, with its wrap counter as bit 15. */
  readonly used: number
  /** The chains in flight, by their first records, in the order in which they were taken. */
  readonly chains: number[]
  /** How many entries of the ring they have. */
  readonly entryCount: number
}

/** The header of a region, each field read once and within its range. */
interface Header {
  readonly freeHead: number
  readonly oldFreeHead: number
  readonly used: number
  readonly oldUsed: number
}

export class PackedInflight {
  readonly #size: number
  readonly #words: Int32Array
  /** The links of all records, and of the first record of each chain: its last one, and how many it has. */
  readonly #nextOf: Uint16Array
  readonly #lastOf: Uint16Array
  readonly #countOf: Uint16Array
  /** By buffer id: the first record of its chain. */
  readonly #firstOf: Uint16Array
  #freeHead = 0
  /** The older copy of `used`, see `PackedRecovery`. */
  #used = 0
  // Two words, so that counting allocates nothing.
  #counterLow = 0
  #counterHigh = 0

  /** Throws `RingFault` when the region cannot be that of a packed ring of this size. */
  constructor(part: SharedPart, size: number) {
    const needed = InflightPacked.size + size * InflightPackedEntry.size
    if (part.sizeBytes < needed || part.address % 8 !== 0) {
      throw new RingFault(
        `the inflight region has ${part.sizeBytes} bytes at ${part.address}: a queue of ${size} needs ${needed} at a multiple of 8`,
      )
    }
    this.#size = size
    this.#words = new Int32Array(viewMemory(part.address, needed), 0, needed / 4)
    this.#nextOf = new Uint16Array(size)
    this.#lastOf = new Uint16Array(size)
    this.#countOf = new Uint16Array(size)
    this.#firstOf = new Uint16Array(size)
  }

  /**
   * What an earlier process had taken and not answered; null when the region was never used, and nothing is in flight at
   * `used`. `ring` has the ring's descriptors. Throws `RingFault` when the region contradicts itself.
   */
  recover(used: number, ring: Int32Array): PackedRecovery | null {
    const version = this.#words[VERSION]!
    if ((version & 0xffff) === 0) {
      this.#begin(used)
      return null
    }
    if (version !== (INFLIGHT_VERSION | (this.#size << 16))) {
      throw new RingFault(
        `the inflight region has version ${version & 0xffff} and ${version >>> 16} entries instead of version ${INFLIGHT_VERSION} and ${this.#size}`,
      )
    }
    const header = this.#readHeader()
    const { freeHead, oldFreeHead, oldUsed } = header
    const rest = ring[(oldUsed & INDEX_MASK) * DESCRIPTOR_WORDS + 3]!
    const isPublished =
      header.used !== oldUsed && (freeHead === oldFreeHead || !isAvailable(rest, oldUsed >>> WRAP_SHIFT))
    const seen = new Uint8Array(this.#size)
    const free = this.#walkFree(isPublished ? freeHead : oldFreeHead, seen)
    const { chains, entryCount } = this.#findChains(seen)
    if (free.length + entryCount !== this.#size) {
      throw new RingFault(
        `the inflight region has ${free.length} free entries and ${entryCount} in flight, of ${this.#size}`,
      )
    }
    for (const record of free) this.#write(record, STATE_AND_NEXT, this.#nextOf[record]! << 16)
    this.#freeHead = isPublished ? freeHead : oldFreeHead
    this.#used = isPublished ? header.used : oldUsed
    // Killed in between, the next one still finds which of both it is.
    if (isPublished) {
      this.#writeFreeHeads(this.#freeHead)
      this.#writeUsed(this.#used)
    } else {
      this.#writeUsed(this.#used)
      this.#writeFreeHeads(this.#freeHead)
    }
    return { used: this.#used, chains, entryCount }
  }

  /**
   * Copies the descriptors of a chain that was in flight, as `recover` has it, to `target` as they were in the ring.
   * Returns how many they are.
   */
  load(first: number, target: Int32Array): number {
    const words = this.#words
    const count = this.#countOf[first]!
    let record = first
    for (let i = 0; i < count; i++) {
      const from = HEADER_WORDS + record * RECORD_WORDS
      const to = i * DESCRIPTOR_WORDS
      target[to] = words[from + ADDRESS]!
      target[to + 1] = words[from + ADDRESS + 1]!
      target[to + 2] = words[from + LENGTH]!
      target[to + 3] = words[from + ID_AND_FLAGS]!
      record = this.#nextOf[record]!
    }
    // An id beyond the ring's size is refused with the chain.
    this.#firstOf[target[count * DESCRIPTOR_WORDS - 1]! & 0xffff] = first
    return count
  }

  /** Notes the first `count` descriptors of `chain`: buffer `id` is in flight. There are as many records as ring entries. */
  take(id: number, chain: Int32Array, count: number): void {
    const words = this.#words
    const first = this.#freeHead
    let last = first
    let next = first
    for (let i = 0; i < count; i++) {
      last = next
      const from = i * DESCRIPTOR_WORDS
      const to = HEADER_WORDS + last * RECORD_WORDS
      words[to + ADDRESS] = chain[from]!
      words[to + ADDRESS + 1] = chain[from + 1]!
      words[to + LENGTH] = chain[from + 2]!
      words[to + ID_AND_FLAGS] = chain[from + 3]!
      next = this.#nextOf[last]!
    }
    const at = HEADER_WORDS + first * RECORD_WORDS
    words[at + LAST_AND_COUNT] = last | (count << 16)
    words[at + COUNTER] = this.#counterLow
    words[at + COUNTER + 1] = this.#counterHigh
    words[at + STATE_AND_NEXT] = 1 | (this.#nextOf[first]! << 16)
    this.#lastOf[first] = last
    this.#firstOf[id] = first
    this.#freeHead = next
    this.#writeFreeHeads(next)
    this.#counterLow = (this.#counterLow + 1) | 0
    if (this.#counterLow === 0) this.#counterHigh = (this.#counterHigh + 1) | 0
  }

  /** The first record of a buffer in flight: what `publishing` and `published` know it by. */
  recordOf(id: number): number {
    return this.#firstOf[id]!
  }

  /** Before the ring is written: the chains of the first `count` of `records` are about to be used, up to `used`. */
  publishing(records: Uint16Array, count: number, used: number): void {
    const words = this.#words
    const oldHead = this.#freeHead
    let head = oldHead
    for (let i = 0; i < count; i++) {
      const first = records[i]!
      const last = this.#lastOf[first]!
      this.#nextOf[last] = head
      // The only record of a chain still says that it is in flight.
      this.#write(last, STATE_AND_NEXT, (last === first ? 1 : 0) | (head << 16))
      head = first
    }
    this.#freeHead = head
    words[FREE_HEADS] = head | (oldHead << 16)
    const oldUsed = this.#used
    this.#used = used
    words[USED_INDEXES] = (used & INDEX_MASK) | ((oldUsed & INDEX_MASK) << 16)
    words[WRAP_COUNTERS] = (used >>> WRAP_SHIFT) | ((oldUsed >>> WRAP_SHIFT) << 8)
  }

  /** After the guest can see it: the same chains are not in flight any more. */
  published(records: Uint16Array, count: number): void {
    for (let i = 0; i < count; i++) {
      const first = records[i]!
      this.#write(first, STATE_AND_NEXT, this.#nextOf[first]! << 16)
    }
    this.#writeFreeHeads(this.#freeHead)
    this.#writeUsed(this.#used)
  }

  #write(record: number, word: number, value: number): void {
    this.#words[HEADER_WORDS + record * RECORD_WORDS + word] = value
  }

  #writeFreeHeads(head: number): void {
    this.#words[FREE_HEADS] = head | (head << 16)
  }

  #writeUsed(used: number): void {
    const index = used & INDEX_MASK
    const wrap = used >>> WRAP_SHIFT
    this.#words[USED_INDEXES] = index | (index << 16)
    this.#words[WRAP_COUNTERS] = wrap | (wrap << 8)
  }

  #begin(used: number): void {
    for (let i = 0; i < this.#size; i++) {
      this.#nextOf[i] = i + 1
      this.#write(i, STATE_AND_NEXT, (i + 1) << 16)
    }
    this.#used = used
    this.#writeFreeHeads(0)
    this.#writeUsed(used)
    // Until this word is there the region is one that was never used.
    Atomics.store(this.#words, VERSION, INFLIGHT_VERSION | (this.#size << 16))
  }

  #readHeader(): Header {
    const heads = this.#words[FREE_HEADS]!
    const indexes = this.#words[USED_INDEXES]!
    const wraps = this.#words[WRAP_COUNTERS]!
    const freeHead = heads & 0xffff
    const oldFreeHead = heads >>> 16
    const index = indexes & 0xffff
    const oldIndex = indexes >>> 16
    const isSound = Math.max(freeHead, oldFreeHead) <= this.#size && Math.max(index, oldIndex) < this.#size
    if (!isSound || (wraps & 0xfefe) !== 0) {
      throw new RingFault(
        `the inflight region of a queue of ${this.#size} has free heads ${freeHead} and ${oldFreeHead}, used indexes ${index} and ${oldIndex}, wrap counters ${wraps & 0xff} and ${(wraps >>> 8) & 0xff}`,
      )
    }
    return {
      freeHead,
      oldFreeHead,
      used: index | ((wraps & 1) << WRAP_SHIFT),
      oldUsed: oldIndex | (((wraps >>> 8) & 1) << WRAP_SHIFT),
    }
  }

  /** All free records; marks them in `seen`. */
  #walkFree(head: number, seen: Uint8Array): number[] {
    const free: number[] = []
    for (let record = head; record !== this.#size; record = this.#follow(record, seen)) free.push(record)
    return free
  }

  /** The record after this one; marks this one in `seen`. */
  #follow(record: number, seen: Uint8Array): number {
    if (record >= this.#size || seen[record] === 1) {
      throw new RingFault(
        `the inflight region, of ${this.#size} entries, links to entry ${record} twice or astray`,
      )
    }
    seen[record] = 1
    const next = this.#words[HEADER_WORDS + record * RECORD_WORDS + STATE_AND_NEXT]! >>> 16
    this.#nextOf[record] = next
    return next
  }

  /** The chains among the records that are not in `seen`. */
  #findChains(seen: Uint8Array): { chains: number[]; entryCount: number } {
    const counters = new Map<number, number>()
    let entryCount = 0
    for (let first = 0; first < this.#size; first++) {
      const at = HEADER_WORDS + first * RECORD_WORDS
      if (seen[first] === 1 || (this.#words[at + STATE_AND_NEXT]! & 0xff) === 0) continue
      const count = this.#words[at + LAST_AND_COUNT]! >>> 16
      let record = first
      for (let i = 0; i < count; i++) {
        this.#lastOf[first] = record
        record = this.#follow(record, seen)
      }
      this.#countOf[first] = count
      entryCount += count
      const counter = (this.#words[at + COUNTER + 1]! >>> 0) * TWO_32 + (this.#words[at + COUNTER]! >>> 0)
      counters.set(first, counter)
    }
    const chains = [...counters.keys()].sort((a, b) => counters.get(a)! - counters.get(b)!)
    const counter = chains.length === 0 ? 0 : counters.get(chains.at(-1)!)! + 1
    this.#counterLow = (counter % TWO_32) | 0
    this.#counterHigh = (counter / TWO_32) | 0
    return { chains, entryCount }
  }
}

/** Whether the fourth word of a descriptor has the flags of one that was made available with that wrap counter. */
export function isAvailable(rest: number, wrap: number): boolean {
  const flags = (rest >>> 16) & USED_MASK
  return flags === (wrap === 0 ? DescriptorFlag.USED : DescriptorFlag.AVAIL)
}
