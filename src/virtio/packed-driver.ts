/**
 * The driver's side of a packed virtqueue (Virtual I/O Device specification 1.2, section 2.8). One ring for both
 * directions: the driver writes buffers at `#availableAt`, one entry for each segment; the device writes what it has used
 * over them, one entry for each buffer, in the order of completion. An entry is new when its flags match the wrap counter
 * of whoever waits for it, which flips each time round.
 */
import type { Segments } from '../bdev/io.ts'
import { assert } from '../core/assert.ts'
import { ProtocolError } from '../core/errors.ts'
import { DescriptorFlag, EVENT_FLAG_MASK, EventFlag, WRAP_COUNTER_BIT } from '../spec/virtqueue.ts'
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

/** What the flags of an entry that is made available have, by the driver's wrap counter. */
const AVAILABLE_FLAGS = [DescriptorFlag.USED, DescriptorFlag.AVAIL] as const
const USED_MASK = DescriptorFlag.AVAIL | DescriptorFlag.USED
/** What the flags of a used entry have, by the device's wrap counter. */
const USED_FLAGS = [0, USED_MASK] as const

export class PackedDriver implements DriverRing {
  readonly addresses: RingAddresses
  usedBytes = 0

  readonly #entries: number
  readonly #hasEventIndex: boolean
  readonly #words: Int32Array
  readonly #tables: IndirectTables
  /** Words: the event suppression structures. */
  readonly #driverEventAt: number
  readonly #deviceEventAt: number

  /** Buffer ids that are not in use: a stack. */
  readonly #freeIds: Uint16Array
  #freeIdCount: number
  #freeEntries: number
  /** By buffer id: entries of the buffer (0: not in flight), what the device may write, the token. */
  readonly #lengthOf: Uint16Array
  readonly #writableOf: Float64Array
  readonly #tokenOf: Int32Array

  #availableAt = 0
  #availableWrap: 0 | 1 = 1
  /** Entries added and not published. */
  #pending = 0
  /** The last word of the first of them, which makes all of them visible. */
  #pendingAt = 0
  #pendingRest = 0
  #usedAt = 0
  #usedWrap: 0 | 1 = 1

  constructor(options: DriverRingOptions) {
    const { entries, hasEventIndex } = options
    const { addresses, parts, words, tables } = openRingMemory(options, true)
    this.#entries = entries
    this.#hasEventIndex = hasEventIndex
    this.addresses = addresses
    this.#words = words
    this.#tables = tables
    this.#driverEventAt = parts.driverArea / 4
    this.#deviceEventAt = parts.deviceArea / 4
    this.#freeIds = Uint16Array.from({ length: entries }, (_, i) => entries - 1 - i)
    this.#freeIdCount = entries
    this.#freeEntries = entries
    this.#lengthOf = new Uint16Array(entries)
    this.#writableOf = new Float64Array(entries)
    this.#tokenOf = new Int32Array(entries)
  }

  add(segments: Segments, readableCount: number, token: number): boolean {
    const count = segments.count
    assert(count > 0 && token >= 0, 'a buffer has segments and a token')
    const isIndirect = count > 1 && count <= this.#tables.entries
    const needed = isIndirect ? 1 : count
    // There are as many ids as entries, so one is free whenever an entry is.
    if (needed > this.#freeEntries) return false
    const id = this.#freeIds[--this.#freeIdCount]!
    if (isIndirect) {
      const at = this.#availableAt * DESCRIPTOR_WORDS
      this.#tables.write(id, segments, readableCount, this.#words, at)
      this.#append(DescriptorFlag.INDIRECT, id)
    } else {
      for (let i = 0; i < count; i++) {
        const write = i < readableCount ? 0 : DescriptorFlag.WRITE
        const flags = i === count - 1 ? write : write | DescriptorFlag.NEXT
        const at = this.#availableAt * DESCRIPTOR_WORDS
        writeBuffer(this.#words, at, segments.addresses[i]!, segments.lengths[i]!)
        this.#append(flags, id)
      }
    }
    this.#freeEntries -= needed
    this.#lengthOf[id] = needed
    this.#writableOf[id] = writableBytes(segments, readableCount)
    this.#tokenOf[id] = token
    return true
  }

  /** Completes the entry that comes next, whose address and length are written. */
  #append(flags: number, id: number): void {
    const at = this.#availableAt * DESCRIPTOR_WORDS
    const rest = id | ((flags | AVAILABLE_FLAGS[this.#availableWrap]) << 16)
    // The device reads in order: until it finds the first of those added it looks at none that follow.
    if (this.#pending > 0) {
      this.#words[at + 3] = rest
    } else {
      this.#pendingAt = at + 3
      this.#pendingRest = rest
    }
    this.#pending++
    if (++this.#availableAt === this.#entries) {
      this.#availableAt = 0
      this.#availableWrap ^= 1
    }
  }

  publish(): boolean {
    const count = this.#pending
    if (count === 0) return false
    Atomics.store(this.#words, this.#pendingAt, this.#pendingRest)
    this.#pending = 0
    const event = Atomics.load(this.#words, this.#deviceEventAt)
    const flags = (event >>> 16) & EVENT_FLAG_MASK
    if (flags === EventFlag.DISABLE) return false
    if (flags !== EventFlag.DESC || !this.#hasEventIndex) return true
    // How many entries before the end of what was published the device wants to hear of.
    const wrap = (event & WRAP_COUNTER_BIT) === 0 ? 0 : 1
    const back = this.#availableAt - (event & (WRAP_COUNTER_BIT - 1))
    const distance = wrap === this.#availableWrap ? back : back + this.#entries
    return distance > 0 && distance <= count
  }

  next(): number {
    const slot = this.#usedAt
    const at = slot * DESCRIPTOR_WORDS
    const rest = Atomics.load(this.#words, at + 3)
    const flags = rest >>> 16
    if ((flags & USED_MASK) !== USED_FLAGS[this.#usedWrap]) return -1
    const id = rest & 0xffff
    if (id >= this.#entries || this.#lengthOf[id] === 0) {
      throw new ProtocolError(`used entry ${slot} names buffer ${id}, which is not in flight`, slot * 16 + 12)
    }
    // Without the flag nothing was written, and the length means nothing (section 2.8.5).
    const bytes = (flags & DescriptorFlag.WRITE) === 0 ? 0 : this.#words[at + 2]! >>> 0
    if (bytes > this.#writableOf[id]!) {
      throw new ProtocolError(
        `used entry ${slot} says ${bytes} bytes were written, into a buffer for ${this.#writableOf[id]}`,
        slot * 16 + 8,
      )
    }
    const count = this.#lengthOf[id]!
    this.#lengthOf[id] = 0
    this.#freeIds[this.#freeIdCount++] = id
    this.#freeEntries += count
    this.#usedAt += count
    if (this.#usedAt >= this.#entries) {
      this.#usedAt -= this.#entries
      this.#usedWrap ^= 1
    }
    this.usedBytes = bytes
    return this.#tokenOf[id]!
  }

  enableInterrupts(): boolean {
    const event = this.#hasEventIndex
      ? this.#usedAt | (this.#usedWrap === 0 ? 0 : WRAP_COUNTER_BIT) | (EventFlag.DESC << 16)
      : EventFlag.ENABLE << 16
    // A full fence, so that a buffer used before this is seen is seen here.
    Atomics.store(this.#words, this.#driverEventAt, event)
    const flags = Atomics.load(this.#words, this.#usedAt * DESCRIPTOR_WORDS + 3) >>> 16
    return (flags & USED_MASK) === USED_FLAGS[this.#usedWrap]
  }

  disableInterrupts(): void {
    this.#words[this.#driverEventAt] = EventFlag.DISABLE << 16
  }

  /** The halves of the base are where the device looks for buffers, and where it writes used ones: here the same. */
  base(): number {
    const position = this.#usedAt | (this.#usedWrap === 0 ? 0 : WRAP_COUNTER_BIT)
    return (position | (position << 16)) >>> 0
  }
}
