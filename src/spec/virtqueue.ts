/**
 * Virtqueues in memory (Virtual I/O Device specification 1.2, sections 2.7 split and 2.8 packed), and the regions in which
 * a vhost-user back end notes what it has in flight (vhost-user specification, "Inflight I/O tracking"). Little-endian.
 *
 *   split    descriptor table  | size x 16                             |
 *            available ring    | flags | index | size x 2 | used_event |          written by the driver
 *            used ring         | flags | index | size x 8 | avail_event |         written by the device
 *   packed   descriptor ring   | size x 16                             |          written by both
 *            driver and device event suppression, 4 bytes each
 */
import { struct, u8, u16, u32, u53 } from '../core/struct.ts'

/** The most entries a virtqueue has, split or packed. */
export const QUEUE_SIZE_MAX = 32768

/** An entry of a split descriptor table, or of an indirect one (section 2.7.5). */
export const SplitDescriptor = struct(16, { address: u53(0), length: u32(8), flags: u16(12), next: u16(14) })

/** An entry of a packed ring, or of an indirect table of one (sections 2.8.6 and 2.8.7). */
export const PackedDescriptor = struct(16, { address: u53(0), length: u32(8), id: u16(12), flags: u16(14) })

export const DescriptorFlag = {
  /** Another descriptor of the chain follows: the one named by `next` (split), or the next of the ring (packed). */
  NEXT: 1 << 0,
  /** The device writes to it; without, it reads. */
  WRITE: 1 << 1,
  /** It holds a table of descriptors. */
  INDIRECT: 1 << 2,
  /** Packed: equals the driver's wrap counter when the descriptor was made available. */
  AVAIL: 1 << 7,
  /** Packed: equals the driver's wrap counter when it was used, the opposite of it when it was made available. */
  USED: 1 << 15,
} as const

/** What the address of each part of a split ring is a multiple of, in bytes (section 2.7). */
export const SplitAlignment = { DESCRIPTORS: 16, AVAILABLE: 2, USED: 4 } as const
/** The same for packed rings (section 2.8.10.1). */
export const PackedAlignment = { DESCRIPTORS: 16, EVENT: 4 } as const

/** The head of an available ring; entries of `AVAILABLE_ENTRY_SIZE` bytes follow, then `used_event`. */
export const AvailableRing = struct(4, { flags: u16(0), index: u16(2) })
export const AVAILABLE_ENTRY_SIZE = 2
export const AVAILABLE_FLAG_NO_INTERRUPT = 1

/** The head of a used ring; entries (`UsedEntry`) follow, then `avail_event`. */
export const UsedRing = struct(4, { flags: u16(0), index: u16(2) })
export const UsedEntry = struct(8, { id: u32(0), length: u32(4) })
export const USED_FLAG_NO_NOTIFY = 1

/** Bytes of each part of a split ring of `size` entries, the event index at its end included. */
export const descriptorBytes = (size: number): number => size * SplitDescriptor.size
export const availableBytes = (size: number): number => AvailableRing.size + size * AVAILABLE_ENTRY_SIZE + 2
export const usedBytes = (size: number): number => UsedRing.size + size * UsedEntry.size + 2
/** Where the event indexes are: `used_event` in the available ring, `avail_event` in the used ring. */
export const usedEventAt = (size: number): number => AvailableRing.size + size * AVAILABLE_ENTRY_SIZE
export const availEventAt = (size: number): number => UsedRing.size + size * UsedEntry.size

/** Driver and device event suppression of a packed ring (section 2.8.10). */
export const EventSuppression = struct(4, {
  /** Bits 0 to 14 the descriptor's offset in the ring, bit 15 the wrap counter: meaningful with `EventFlag.DESC`. */
  offsetAndWrap: u16(0),
  /** Bits 0 and 1: an `EventFlag`. */
  flags: u16(2),
})
export const EventFlag = { ENABLE: 0, DISABLE: 1, DESC: 2 } as const
export const EVENT_FLAG_MASK = 3
/** The wrap counter's place in `offsetAndWrap`, and in each half of a packed ring's base. */
export const WRAP_COUNTER_BIT = 1 << 15

/** Each queue's region in the inflight memory begins at a multiple of this: a cache line. */
export const INFLIGHT_ALIGNMENT = 64
export const INFLIGHT_VERSION = 1

/** `QueueRegionSplit`; entries (`InflightSplitEntry`), as many as the queue has, follow. */
export const InflightSplit = struct(16, {
  /** 64 bits, 0 so far. */
  features: u53(0),
  /** 0: nothing was noted yet. */
  version: u16(8),
  entryCount: u16(10),
  /** `last_batch_head`: the list, linked by `next`, of those that were used last. */
  lastBatchHead: u16(12),
  usedIndex: u16(14),
})

/** `DescStateSplit`, at the index of the head descriptor. */
export const InflightSplitEntry = struct(16, {
  inflight: u8(0),
  next: u16(6),
  /** In which order requests were taken. */
  counter: u53(8),
})

/** `QueueRegionPacked`; entries (`InflightPackedEntry`), as many as the queue has, follow. */
export const InflightPacked = struct(32, {
  features: u53(0),
  version: u16(8),
  entryCount: u16(10),
  freeHead: u16(12),
  oldFreeHead: u16(14),
  usedIndex: u16(16),
  oldUsedIndex: u16(18),
  usedWrapCounter: u8(20),
  oldUsedWrapCounter: u8(21),
})

/** `DescStatePacked`: a copy of one descriptor, which the ring itself keeps only until it is used. */
export const InflightPackedEntry = struct(32, {
  inflight: u8(0),
  /** The next free entry, or the next of the chain. */
  next: u16(2),
  /** The last entry of the chain; meaningful in its first. */
  last: u16(4),
  /** How many entries the chain has; meaningful in its first. */
  count: u16(6),
  counter: u53(8),
  id: u16(16),
  flags: u16(18),
  length: u32(20),
  address: u53(24),
})

/** Bytes of a queue's inflight region, a multiple of `INFLIGHT_ALIGNMENT`. */
export const inflightSplitBytes = (size: number): number =>
  aligned(InflightSplit.size + size * InflightSplitEntry.size)
export const inflightPackedBytes = (size: number): number =>
  aligned(InflightPacked.size + size * InflightPackedEntry.size)

const aligned = (size: number): number => Math.ceil(size / INFLIGHT_ALIGNMENT) * INFLIGHT_ALIGNMENT
