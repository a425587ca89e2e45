/** What a device can do: by itself, or because its channel makes up for what it lacks. */
import type { BdevInfo } from './bdev.ts'
import { IoType } from './io-type.ts'

/** One bit for each type. */
export function maskOf(types: Iterable<IoType>): number {
  let mask = 0
  for (const type of types) mask |= 1 << type
  return mask
}

/** Types that change data: a device that is read only refuses them. */
export const WRITING_TYPES = maskOf([
  IoType.WRITE,
  IoType.WRITE_ZEROES,
  IoType.UNMAP,
  IoType.COMPARE_AND_WRITE,
])

/** Types that a channel does with reads and writes when the device has no better way. */
export const EMULATED_TYPES = maskOf([
  IoType.FLUSH,
  IoType.WRITE_ZEROES,
  IoType.COMPARE,
  IoType.COMPARE_AND_WRITE,
  IoType.RESET,
])

/** Whether an I/O of that type may be submitted to a channel of the device. */
export function isSupported(info: BdevInfo, type: IoType): boolean {
  const bit = 1 << type
  if (info.readOnly && (WRITING_TYPES & bit) !== 0) return false
  return info.supports.has(type) || (EMULATED_TYPES & bit) !== 0
}
