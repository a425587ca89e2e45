/**
 * What a guest may ask for in one command. It reads this in the block limits page (VPD B0h), and more is refused, so that
 * one guest cannot keep a reactor from the others.
 */
import type { BdevInfo } from '../../bdev/bdev.ts'

/** In bytes: one WRITE SAME. */
export const WRITE_SAME_SIZE_MAX = 2 ** 30
/** In bytes: all ranges of one UNMAP. */
export const UNMAP_SIZE_MAX = 2 ** 32
export const UNMAP_DESCRIPTORS_MAX = 256
/** Of COMPARE AND WRITE: what its CDB has room for. */
export const COMPARE_BLOCKS_MAX = 255
/** In bytes: what goes to a bdev at once of the above. */
export const ZERO_PIECE_SIZE = 64 << 20

export const blocksIn = ({ blockSize }: BdevInfo, bytes: number): number => Math.floor(bytes / blockSize)
