/**
 * What a split ring has in flight, noted in memory that outlives this process (vhost-user specification, "Inflight I/O
 * tracking"). Whoever has the queue next, this process again or another, finds there which requests were taken and not
 * answered. The order of the writes is what makes that true at every instruction:
 *
 *   take      counter, then inflight = 1
 *   put       next, last_batch_head: the list of what is about to be shown to the guest
 *   publish   the ring's used index, inflight = 0 of the batch, used_idx
 *
 * Killed between the last three, `used_idx` differs from the ring's index by the length of that list.
 */
import {
  INFLIGHT_VERSION,
  InflightSplit,
  InflightSplitEntry,
  inflightSplitBytes,
} from '../../spec/virtqueue.ts'
import { viewMemory } from '../../sys/libc.ts'
import type { SharedPart } from '../messages.ts'
import { RingFault } from './ring.ts'

const TWO_32 = 0x1_0000_0000
const ENTRY = InflightSplitEntry.size
const FIRST = InflightSplit.size
const LAST_BATCH_HEAD = InflightSplit.lastBatchHead.offset / 2
const USED_INDEX = InflightSplit.usedIndex.offset / 2
/** Of the first entry: the others follow at multiples of the entry's size. */
const NEXT = (FIRST + InflightSplitEntry.next.offset) / 2
const COUNTER = (FIRST + InflightSplitEntry.counter.offset) / 4

export class SplitInflight {
  readonly #size: number
  readonly #view: DataView
  readonly #bytes: Uint8Array
  readonly #halves: Uint16Array
  readonly #words: Int32Array
  /** The heads that were put and not published. */
  readonly #batch: Uint16Array
  #batchCount = 0
  // Two words, so that counting allocates nothing.
  #counterLow = 0
  #counterHigh = 0

  /** Throws `RingFault` when the region is not that of a split ring of this size. */
  constructor(part: SharedPart, size: number) {
    const needed = inflightSplitBytes(size)
    if (part.sizeBytes < needed || part.address % 8 !== 0) {
      throw new RingFault(
        `the inflight region has ${part.sizeBytes} bytes at ${part.address}: a queue of ${size} needs ${needed} at a multiple of 8`,
      )
    }
    const buffer = viewMemory(part.address, needed)
    this.#size = size
    this.#view = new DataView(buffer)
    this.#bytes = new Uint8Array(buffer)
    this.#halves = new Uint16Array(buffer)
    this.#words = new Int32Array(buffer)
    this.#batch = new Uint16Array(size)
  }

  /**
   * What an earlier process had taken and not answered when the ring's used index was `usedIndex`, in the order in which
   * it was taken. Null when the region was never used for this ring.
   */
  recover(usedIndex: number): number[] | null {
    const view = this.#view
    const version = InflightSplit.version.get(view, 0)
    if (version === 0) return this.#begin(usedIndex)
    const count = InflightSplit.entryCount.get(view, 0)
    if (version !== INFLIGHT_VERSION || (count !== this.#size && count !== 0)) {
      throw new RingFault(
        `the inflight region has version ${version} and ${count} entries instead of version ${INFLIGHT_VERSION} and ${this.#size}`,
      )
    }
    const batchSize = (usedIndex - InflightSplit.usedIndex.get(view, 0)) & 0xffff
    // No process published that much at once: the driver has made its ring anew since.
    if (batchSize > this.#size) return this.#begin(usedIndex)
    this.#forgetLastBatch(batchSize)
    InflightSplit.usedIndex.set(view, 0, usedIndex)

    const heads: number[] = []
    for (let head = 0; head < this.#size; head++)
      if (this.#bytes[FIRST + head * ENTRY] === 1) heads.push(head)
    heads.sort((a, b) => this.#counterOf(a) - this.#counterOf(b))
    const last = heads.at(-1)
    const counter = last === undefined ? 0 : this.#counterOf(last) + 1
    this.#counterLow = (counter % TWO_32) | 0
    this.#counterHigh = (counter / TWO_32) | 0
    return heads
  }

  take(head: number): void {
    const words = this.#words
    const at = COUNTER + head * (ENTRY / 4)
    words[at] = this.#counterLow
    words[at + 1] = this.#counterHigh
    this.#bytes[FIRST + head * ENTRY] = 1
    this.#counterLow = (this.#counterLow + 1) | 0
    if (this.#counterLow === 0) this.#counterHigh = (this.#counterHigh + 1) | 0
  }

  put(head: number): void {
    const halves = this.#halves
    halves[NEXT + head * (ENTRY / 2)] = halves[LAST_BATCH_HEAD]!
    halves[LAST_BATCH_HEAD] = head
    this.#batch[this.#batchCount++] = head
  }

  /** The ring's used index is now `usedIndex`, and the guest can see it. */
  published(usedIndex: number): void {
    const bytes = this.#bytes
    const batch = this.#batch
    for (let i = 0; i < this.#batchCount; i++) bytes[FIRST + batch[i]! * ENTRY] = 0
    this.#batchCount = 0
    this.#halves[USED_INDEX] = usedIndex
  }

  /** Nothing is in flight. */
  #begin(usedIndex: number): null {
    const view = this.#view
    for (let head = 0; head < this.#size; head++) this.#bytes[FIRST + head * ENTRY] = 0
    InflightSplit.entryCount.set(view, 0, this.#size)
    InflightSplit.usedIndex.set(view, 0, usedIndex)
    InflightSplit.version.set(view, 0, INFLIGHT_VERSION)
    return null
  }

  #forgetLastBatch(batchSize: number): void {
    let head = InflightSplit.lastBatchHead.get(this.#view, 0)
    for (let i = 0; i < batchSize && head < this.#size; i++) {
      this.#bytes[FIRST + head * ENTRY] = 0
      head = InflightSplitEntry.next.get(this.#view, FIRST + head * ENTRY)
    }
  }

  #counterOf(head: number): number {
    return InflightSplitEntry.counter.get(this.#view, FIRST + head * ENTRY)
  }
}
