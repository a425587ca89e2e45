/** What may be asked of a block device. */
export const IoType = {
  READ: 0,
  WRITE: 1,
  FLUSH: 2,
  /** Zeroes a range; reads of it return zeroes afterwards. */
  WRITE_ZEROES: 3,
  /** Gives a range back; what it reads as afterwards is up to the device. */
  UNMAP: 4,
  /** Compares the data with the device: `COMPARE_FAILURE` when they differ. */
  COMPARE: 5,
  /**
   * Compares the first half of the data with the device and, if equal, writes the second half, as one. The segments
   * hold both halves: `2 * blockCount` blocks.
   */
  COMPARE_AND_WRITE: 6,
  /** Ends everything outstanding on the channel and leaves the device usable. */
  RESET: 7,
} as const
export type IoType = (typeof IoType)[keyof typeof IoType]

/** In the order of the numbers, named as in `bdev_get_bdevs`. */
export const IO_TYPE_NAMES = [
  'read',
  'write',
  'flush',
  'write_zeroes',
  'unmap',
  'compare',
  'compare_and_write',
  'reset',
] as const
