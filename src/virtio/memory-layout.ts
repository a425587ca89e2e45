/**
 * What the back end of a controller may see: one piece of shared memory, and nothing else of this process.
 *
 *   | ring 0 | ring 1 | …      the virtqueues, with room for either layout and for indirect tables
 *   | event buffers            SCSI
 *   | slots | data |           of each request queue: headers and status bytes, then what is read and written
 *   | slots | data | …
 *
 * Guest addresses are this process's own, so that descriptors are what the rest of the program calls addresses.
 */
import { ScsiEvent } from '../spec/virtio-scsi.ts'
import { type DriverRing, driverRingBytes } from './driver-ring.ts'
import type { DeviceKind, RingDescription, RingFeatures } from './messages.ts'
import { PackedDriver } from './packed-driver.ts'
import { SLOT_BYTES } from './slot.ts'
import { SplitDriver } from './split-driver.ts'

/** Segments in one request, at most: header, data, status. */
export const TABLE_ENTRIES = 32
/** The part of them that is data. */
export const DATA_SEGMENTS_MAX = TABLE_ENTRIES - 2
/** Data of one request queue, in bytes: touched only as it is used. */
export const DATA_BYTES = 64 << 20
/** How many events may come in before they are looked at. */
export const EVENT_BUFFERS = 16
/** SCSI has a control and an event queue before the request queues; entries of either. */
export const FIXED_QUEUES: Readonly<Record<DeviceKind, number>> = { blk: 0, scsi: 2 }

const PAGE = 4096
const pages = (size: number): number => Math.ceil(size / PAGE) * PAGE

/** Offsets in bytes from the start of the shared memory. */
export interface MemoryLayout {
  readonly rings: readonly number[]
  readonly events: number
  /** Of each request queue. */
  readonly slots: readonly number[]
  readonly data: readonly number[]
  readonly sizeBytes: number
}

export function layOut(kind: DeviceKind, requestQueues: number, queueSize: number): MemoryLayout {
  let at = 0
  const take = (size: number): number => {
    const offset = at
    at += pages(size)
    return offset
  }
  const ringBytes = Math.max(
    driverRingBytes(queueSize, false, TABLE_ENTRIES),
    driverRingBytes(queueSize, true, TABLE_ENTRIES),
  )
  const each = <T>(count: number, make: () => T): T[] => Array.from({ length: count }, make)
  const rings = each(FIXED_QUEUES[kind] + requestQueues, () => take(ringBytes))
  const events = take(EVENT_BUFFERS * ScsiEvent.size)
  const slots = each(requestQueues, () => take(queueSize * SLOT_BYTES))
  const data = each(requestQueues, () => take(DATA_BYTES))
  return { rings, events, slots, data, sizeBytes: at }
}

/** A new and empty ring where the description says. */
export function createRing(ring: RingDescription, features: RingFeatures): DriverRing {
  const options = {
    address: ring.address,
    deviceAddress: ring.address,
    entries: ring.size,
    hasEventIndex: features.hasEventIndex,
    tableEntries: features.hasIndirect ? TABLE_ENTRIES : 0,
  }
  return features.isPacked ? new PackedDriver(options) : new SplitDriver(options)
}
