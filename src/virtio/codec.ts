/** How the requests of one disk are written, and how their outcome is read. */
import { IoType } from '../bdev/io.ts'
import type { Unit } from './messages.ts'
import type { Slot } from './slot.ts'

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
