/** The driver's side of a split virtqueue (Virtual I/O Device specification 1.2, section 2.7). */
import type { Segments } from '../bdev/io.ts'
import { assert } from '../core/assert.ts'
import { ProtocolError } from '../core/errors.ts'
import {
  AVAILABLE_FLAG_NO_INTERRUPT,
  availEventAt,
  DescriptorFlag,
  USED_FLAG_NO_NOTIFY,
  usedEventAt,
} from '../spec/virtqueue.ts'
import {
  DESCRIPTOR_WORDS,
  type DriverRing,
  type DriverRingOptions,
  type IndirectTables,
  openRingMemory,
  type RingAddresses,
  writableBytes,
  writeBuffer,
} from './driver-ring.ts'

export class SplitDriver implements DriverRing {
  readonly addresses: RingAddresses
  usedBytes = 0

  readonly #entries: number
  readonly #hasEventIndex: boolean
  readonly #words: Int32Array
  readonly #halves: Uint16Array
  readonly #tables: IndirectTables
  /** Halves: the available ring's flags; its index and entries follow. */
  readonly #availableAt: number
  /** Halves: the used ring's flags; its index follows. */
  readonly #usedAt: number
  readonly #usedEventAt: number
  readonly #availEventAt: number

  /** Free descriptors, and the descriptors of each chain in flight, linked. */
  readonly #nextOf: Uint16Array
  /** By head: entries of the chain (0: not in flight), its last descriptor, what the device may write, the token. */
  readonly #lengthOf: Uint16Array
  readonly #lastOf: Uint16Array
  readonly #writableOf: Float64Array
  readonly #tokenOf: Int32Array
  #freeHead = 0
  #freeCount: number
  #inFlight = 0
  /** Free-running 16-bit indexes: added, shown to the device, seen used, taken back. */
  #added = 0
  #published = 0
  #used = 0
  #taken = 0

  constructor(options: DriverRingOptions) {
    const { entries, hasEventIndex } = options
    assert((entries & (entries - 1)) === 0, `${entries} entries are a power of two`)
    const { addresses, parts, words, tables } = openRingMemory(options, false)
    this.#entries = entries
    this.#hasEventIndex = hasEventIndex
    this.addresses = addresses
    this.#words = words
    this.#halves = new Uint16Array(words.buffer, words.byteOffset, words.length * 2)
    this.#tables = tables
    this.#availableAt = parts.driverArea / 2
    this.#usedAt = parts.deviceArea / 2
    this.#usedEventAt = this.#availableAt + usedEventAt(entries) / 2
    this.#availEventAt = this.#usedAt + availEventAt(entries) / 2
    this.#nextOf = Uint16Array.from({ length: entries }, (_, i) => i + 1)
    this.#lengthOf = new Uint16Array(entries)
    this.#lastOf = new Uint16Array(entries)
    this.#writableOf = new Float64Array(entries)
    this.#tokenOf = new Int32Array(entries)
    this.#freeCount = entries
  }

  add(segments: Segments, readableCount: number, token: number): boolean {
    const count = segments.count
    assert(count > 0 && token >= 0, 'a buffer has segments and a token')
    const isIndirect = count > 1 && count <= this.#tables.entries
    const needed = isIndirect ? 1 : count
    if (needed > this.#freeCount) return false
    const head = this.#freeHead
    let last = head
    if (isIndirect) {
      const at = head * DESCRIPTOR_WORDS
      this.#tables.write(head, segments, readableCount, this.#words, at)
      this.#words[at + 3] = DescriptorFlag.INDIRECT
    } else {
      last = this.#writeChain(segments, readableCount)
    }
    this.#freeHead = this.#nextOf[last]!
    this.#freeCount -= needed
    this.#lengthOf[head] = needed
    this.#lastOf[head] = last
    this.#writableOf[head] = writableBytes(segments, readableCount)
    this.#tokenOf[head] = token
    this.#inFlight++
    this.#halves[this.#availableAt + 2 + (this.#added & (this.#entries - 1))] = head
    this.#added = (this.#added + 1) & 0xffff
    return true
  }

  /** Writes the segments to the first free descriptors and returns the last of these. */
  #writeChain(segments: Segments, readableCount: number): number {
    const end = segments.count - 1
    let descriptor = this.#freeHead
    for (let i = 0; ; i++) {
      const next = this.#nextOf[descriptor]!
      const write = i < readableCount ? 0 : DescriptorFlag.WRITE
      const rest = i === end ? write : write | DescriptorFlag.NEXT | (next << 16)
      const at = descriptor * DESCRIPTOR_WORDS
      writeBuffer(this.#words, at, segments.addresses[i]!, segments.lengths[i]!)
      this.#words[at + 3] = rest
      if (i === end) return descriptor
      descriptor = next
    }
  }

  publish(): boolean {
    const before = this.#published
    const after = this.#added
    if (before === after) return false
    Atomics.store(this.#halves, this.#availableAt + 1, after)
    this.#published = after
    if (!this.#hasEventIndex) return (Atomics.load(this.#halves, this.#usedAt) & USED_FLAG_NO_NOTIFY) === 0
    const event = Atomics.load(this.#halves, this.#availEventAt)
    return ((after - event - 1) & 0xffff) < ((after - before) & 0xffff)
  }

  next(): number {
    if (this.#taken === this.#used) {
      this.#used = Atomics.load(this.#halves, this.#usedAt + 1)
      const count = (this.#used - this.#taken) & 0xffff
      if (count === 0) return -1
      if (count > this.#inFlight) {
        throw new ProtocolError(
          `used index ${this.#used} after ${this.#taken}: only ${this.#inFlight} buffers are in flight`,
          2,
        )
      }
    }
    const slot = this.#taken & (this.#entries - 1)
    const at = this.#usedAt / 2 + 1 + slot * 2
    const head = this.#words[at]! >>> 0
    const bytes = this.#words[at + 1]! >>> 0
    if (head >= this.#entries || this.#lengthOf[head] === 0) {
      throw new ProtocolError(
        `used entry ${slot} names descriptor ${head}: no buffer in flight begins there`,
        4 + slot * 8,
      )
    }
    if (bytes > this.#writableOf[head]!) {
      throw new ProtocolError(
        `used entry ${slot} says ${bytes} bytes were written, into a buffer for ${this.#writableOf[head]}`,
        8 + slot * 8,
      )
    }
    this.#taken = (this.#taken + 1) & 0xffff
    this.#inFlight--
    this.#nextOf[this.#lastOf[head]!] = this.#freeHead
    this.#freeHead = head
    this.#freeCount += this.#lengthOf[head]!
    this.#lengthOf[head] = 0
    this.usedBytes = bytes
    return this.#tokenOf[head]!
  }

  enableInterrupts(): boolean {
    // The store is a full fence, so that a buffer used before it is seen is seen here.
    if (this.#hasEventIndex) Atomics.store(this.#halves, this.#usedEventAt, this.#taken)
    else Atomics.store(this.#halves, this.#availableAt, 0)
    return Atomics.load(this.#halves, this.#usedAt + 1) !== this.#taken
  }

  disableInterrupts(): void {
    // With event indexes the flag must stay 0: an index that was just passed is the farthest away.
    if (this.#hasEventIndex) this.#halves[this.#usedEventAt] = this.#taken - 1
    else this.#halves[this.#availableAt] = AVAILABLE_FLAG_NO_INTERRUPT
  }

  base(): number {
    return this.#taken
  }
}
