/**
 * The driver's side of a virtqueue, whatever its layout (Virtual I/O Device specification 1.2, sections 2.7 split and 2.8
 * packed): makes buffers available to a device, and hears which of them it has used. The device is another process and
 * not trusted: what it writes is checked against a private record of what is in flight, and nothing the driver wrote to
 * shared memory is ever read back.
 */
import type { Segments } from '../bdev/io.ts'
import { assert } from '../core/assert.ts'
import {
  AVAILABLE_ENTRY_SIZE,
  AvailableRing,
  DescriptorFlag,
  EventSuppression,
  PackedDescriptor,
  QUEUE_SIZE_MAX,
  SplitDescriptor,
  UsedEntry,
  UsedRing,
} from '../spec/virtqueue.ts'
import { bytesAt } from '../sys/memory.ts'

/** Where the three parts are in this process, as SET_VRING_ADDR has them. Packed: the areas are event suppression. */
export interface RingAddresses {
  readonly descriptors: number
  readonly driverArea: number
  readonly deviceArea: number
}

export interface DriverRing {
  readonly addresses: RingAddresses
  /** How many bytes the device says it wrote to the buffer that `next` returned last. */
  readonly usedBytes: number
  /**
   * Adds a buffer: `segments` by the device's addresses, the first `readableCount` of which it reads and the others it
   * writes. `token` is 0 or more and comes back from `next`. False when the ring is full. The device sees nothing before
   * `publish`.
   */
  add(segments: Segments, readableCount: number, token: number): boolean
  /** Shows the device what was added, with a full memory fence. Returns whether it wants a notification. */
  publish(): boolean
  /** The token of the next buffer that the device has used, or -1. Throws `ProtocolError` at what no device does. */
  next(): number
  /** Asks for an interrupt at the next used buffer. Returns true when there is one already: look again then. */
  enableInterrupts(): boolean
  /** The device need not interrupt. Best effort: it may do so. */
  disableInterrupts(): void
  /** Where a device goes on that knows what is in flight, as SET_VRING_BASE has it. `next` has returned everything used. */
  base(): number
}

export interface DriverRingOptions {
  /** Where the ring lies in this process, a multiple of 64; its bytes are overwritten. */
  readonly address: number
  /** The same place as the device's descriptors name it. */
  readonly deviceAddress: number
  /** At most 32768; a power of two for a split ring. */
  readonly entries: number
  /** VIRTIO_F_EVENT_IDX was negotiated. */
  readonly hasEventIndex: boolean
  /** Longer buffers, up to so many segments, take one entry and an indirect table; 0: VIRTIO_F_INDIRECT_DESC is not used. */
  readonly tableEntries: number
}

/** The parts of the two sides never share a cache line. */
const PART_ALIGNMENT = 64

const aligned = (size: number): number => Math.ceil(size / PART_ALIGNMENT) * PART_ALIGNMENT

/** Where the parts of a ring lie, in bytes from its start: descriptors first. */
interface RingParts {
  readonly driverArea: number
  readonly deviceArea: number
  readonly tables: number
}

function splitParts(entries: number): RingParts {
  const driverArea = aligned(entries * SplitDescriptor.size)
  const deviceArea = driverArea + aligned(AvailableRing.size + (entries + 1) * AVAILABLE_ENTRY_SIZE)
  return {
    driverArea,
    deviceArea,
    tables: deviceArea + aligned(UsedRing.size + entries * UsedEntry.size + AVAILABLE_ENTRY_SIZE),
  }
}

function packedParts(entries: number): RingParts {
  const driverArea = aligned(entries * PackedDescriptor.size)
  const deviceArea = driverArea + aligned(EventSuppression.size)
  return { driverArea, deviceArea, tables: deviceArea + aligned(EventSuppression.size) }
}

const partsOf = (entries: number, isPacked: boolean): RingParts =>
  isPacked ? packedParts(entries) : splitParts(entries)

export function ringAddresses(address: number, entries: number, isPacked: boolean): RingAddresses {
  const { driverArea, deviceArea } = partsOf(entries, isPacked)
  return { descriptors: address, driverArea: address + driverArea, deviceArea: address + deviceArea }
}

/** How much shared memory a ring needs, in bytes, its indirect tables included. */
export function driverRingBytes(entries: number, isPacked: boolean, tableEntries: number): number {
  return partsOf(entries, isPacked).tables + aligned(entries * tableEntries * SplitDescriptor.size)
}

/** 32-bit words of a descriptor, of either layout: low and high half of the address, length, the rest. */
export const DESCRIPTOR_WORDS = SplitDescriptor.size / 4
const TWO_32 = 2 ** 32

/** Writes address and length of a descriptor to `words`; its fourth word, which makes it valid, is the caller's to write. */
export function writeBuffer(words: Int32Array, at: number, address: number, length: number): void {
  words[at] = address
  words[at + 1] = address / TWO_32
  words[at + 2] = length
}

/** One indirect table for each entry of a ring. */
export class IndirectTables {
  /** Segments a table has room for; 0: there are no tables. */
  readonly entries: number
  readonly #words: Int32Array
  readonly #deviceAddress: number
  readonly #isPacked: boolean

  constructor(options: DriverRingOptions, offset: number, isPacked: boolean) {
    const { entries, tableEntries } = options
    const { buffer, byteOffset } = bytesAt(
      options.address + offset,
      entries * tableEntries * SplitDescriptor.size,
    )
    this.entries = tableEntries
    this.#words = new Int32Array(buffer, byteOffset, entries * tableEntries * DESCRIPTOR_WORDS)
    this.#deviceAddress = options.deviceAddress + offset
    this.#isPacked = isPacked
  }

  /** Fills table `number`, and points the descriptor that is in `ring` at word `descriptorAt` to it. */
  write(
    number: number,
    segments: Segments,
    readableCount: number,
    ring: Int32Array,
    descriptorAt: number,
  ): void {
    const first = number * this.entries
    const last = segments.count - 1
    for (let i = 0; i <= last; i++) {
      const write = i < readableCount ? 0 : DescriptorFlag.WRITE
      // Only a split table is a chain; in a packed one entries follow each other, and all other flags are reserved.
      const link = i === last ? 0 : DescriptorFlag.NEXT | ((i + 1) << 16)
      const rest = this.#isPacked ? write << 16 : write | link
      const at = (first + i) * DESCRIPTOR_WORDS
      writeBuffer(this.#words, at, segments.addresses[i]!, segments.lengths[i]!)
      this.#words[at + 3] = rest
    }
    const address = this.#deviceAddress + first * SplitDescriptor.size
    writeBuffer(ring, descriptorAt, address, segments.count * SplitDescriptor.size)
  }
}

/** The memory of a new ring, of either layout: zeroed, and as the ring looks at it. */
export interface RingMemory {
  readonly addresses: RingAddresses
  readonly parts: RingParts
  /** All three parts. */
  readonly words: Int32Array
  readonly tables: IndirectTables
}

export function openRingMemory(options: DriverRingOptions, isPacked: boolean): RingMemory {
  const { address, entries } = options
  assert(entries > 0 && entries <= QUEUE_SIZE_MAX, `${entries} entries are at most ${QUEUE_SIZE_MAX}`)
  const parts = partsOf(entries, isPacked)
  const { buffer, byteOffset } = bytesAt(address, parts.tables).fill(0)
  return {
    addresses: ringAddresses(address, entries, isPacked),
    parts,
    words: new Int32Array(buffer, byteOffset, parts.tables / 4),
    tables: new IndirectTables(options, parts.tables, isPacked),
  }
}

/** How many bytes of a buffer the device may write. */
export function writableBytes(segments: Segments, readableCount: number): number {
  let bytes = 0
  for (let i = readableCount; i < segments.count; i++) bytes += segments.lengths[i]!
  return bytes
}
