/** How the requests of one disk are written, and how their outcome is read. */
import { IoType } from '../bdev/io.ts'
import type { Unit } from './messages.ts'
import type { Slot } from './slot.ts'

/** Not statuses: what `Codec.outcome` answers for a request that is to be sent again. */
export const Again = {
  NOW: -1,
  /** At once too, and its size, or that of another one, may be another. */
  CHANGED: -3,
  /** The device is busy. */
  LATER: -2,
} as const

export interface Codec {
  /** Writes the request that the slot's fields describe into its memory, and lists its segments. */
  encode(slot: Slot): void
  /** The NVMe status of a request that the device has ended, or one of `Again`. */
  outcome(slot: Slot): number
}

/** How many blocks one request of that type may have. */
export function blocksMax(unit: Unit, type: IoType): number {
  if (type === IoType.UNMAP) return unit.unmapBlocks
  return type === IoType.WRITE_ZEROES ? unit.zeroesBlocks : unit.transferBlocks
}

export const carriesData = (type: IoType): boolean => type === IoType.READ || type === IoType.WRITE
