/** A disk has whole blocks, and people like round sizes: 100MB is none. QEMU rounds up as well. */
const BLOCK_SIZE = 512

export const wholeBlocks = (bytes: number): number => Math.ceil(bytes / BLOCK_SIZE) * BLOCK_SIZE
