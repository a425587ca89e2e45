/** What follows from an image's cluster size, entry format and refcount width; and the entries of its tables. */
import { ENTRY_COMPRESSED, OFFSET_HIGH, OFFSET_LOW, SECTOR, SUBCLUSTERS } from '../../../spec/qcow2.ts'

const TWO_32 = 2 ** 32

export interface Geometry {
  readonly clusterBits: number
  /** In bytes, as everything here that is not a count. */
  readonly clusterSize: number
  readonly isExtended: boolean
  /** Of one L2 entry: 8, or 16 with a bitmap of subclusters. */
  readonly entrySize: number
  readonly l2Entries: number
  /** What one L2 table maps. */
  readonly l2Span: number
  /** What is allocated as one: a cluster, or a 32nd of it. */
  readonly unitSize: number
  readonly unitsPerCluster: number
  readonly refcountOrder: number
  readonly refcountMax: number
  /** Clusters that one refcount block counts. */
  readonly blockEntries: number
}

export function geometryOf(clusterBits: number, isExtended: boolean, refcountOrder: number): Geometry {
  const clusterSize = 2 ** clusterBits
  const entrySize = isExtended ? 16 : 8
  const unitsPerCluster = isExtended ? SUBCLUSTERS : 1
  return {
    clusterBits,
    clusterSize,
    isExtended,
    entrySize,
    l2Entries: clusterSize / entrySize,
    l2Span: (clusterSize / entrySize) * clusterSize,
    unitSize: clusterSize / unitsPerCluster,
    unitsPerCluster,
    refcountOrder,
    // A wider count than a number can hold exactly never comes about: each reference takes at least eight bytes of file.
    refcountMax: Math.min(2 ** (2 ** refcountOrder) - 1, Number.MAX_SAFE_INTEGER),
    blockEntries: (clusterSize * 8) / 2 ** refcountOrder,
  }
}

/** The host offset in an L1, L2, refcount table or bitmap table entry, given as halves. */
export const offsetOf = (high: number, low: number): number =>
  (high & OFFSET_HIGH) * TWO_32 + ((low & OFFSET_LOW) >>> 0)

export const highOf = (offset: number): number => Math.floor(offset / TWO_32)

export const isCompressed = (high: number): boolean => (high & ENTRY_COMPRESSED) !== 0

/** Where compressed data lies. The last sector may belong to its neighbour as well. */
export interface CompressedRun {
  readonly offset: number
  readonly length: number
}

/** The descriptor's lower x bits are an offset and the rest up to bit 61 further sectors, x = 62 - (clusterBits - 8). */
export function compressedRun(geometry: Geometry, high: number, low: number): CompressedRun {
  const shift = 62 - (geometry.clusterBits - 8) - 32
  const descriptor = high & 0x3fff_ffff
  const sectors = (descriptor >>> shift) + 1
  const offset = (descriptor & (2 ** shift - 1)) * TWO_32 + low
  return { offset, length: sectors * SECTOR - (offset % SECTOR) }
}

/** The count of cluster `index` within a refcount block (or a part of one that begins at `base`). */
export function getRefcount(view: DataView, base: number, index: number, order: number): number {
  switch (order) {
    case 6:
      return view.getUint32(base + index * 8) * TWO_32 + view.getUint32(base + index * 8 + 4)
    case 5:
      return view.getUint32(base + index * 4)
    case 4:
      return view.getUint16(base + index * 2)
    case 3:
      return view.getUint8(base + index)
    default: {
      const bits = 1 << order
      const bit = index * bits
      return (view.getUint8(base + (bit >>> 3)) >>> (bit & 7)) & ((1 << bits) - 1)
    }
  }
}

export function setRefcount(view: DataView, base: number, index: number, order: number, count: number): void {
  switch (order) {
    case 6:
      view.setUint32(base + index * 8, Math.floor(count / TWO_32))
      view.setUint32(base + index * 8 + 4, count % TWO_32)
      return
    case 5:
      view.setUint32(base + index * 4, count)
      return
    case 4:
      view.setUint16(base + index * 2, count)
      return
    case 3:
      view.setUint8(base + index, count)
      return
    default: {
      const bits = 1 << order
      const bit = index * bits
      const at = base + (bit >>> 3)
      const mask = ((1 << bits) - 1) << (bit & 7)
      view.setUint8(at, (view.getUint8(at) & ~mask) | ((count << (bit & 7)) & mask))
    }
  }
}
