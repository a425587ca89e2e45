/** An L1 table and everything that it refers to, on the control thread: walked, counted, marked. */
import { ENTRY_COPIED } from '../../../spec/qcow2.ts'
import { compressedRun, type Geometry, highOf, isCompressed, offsetOf } from './geometry.ts'
import type { ImageHandle } from './image-handle.ts'
import type { Refcounts } from './refcounts.ts'

/** Where an L1 table is: the active one, or a snapshot's. */
export interface Tree {
  readonly l1Offset: number
  readonly l1Size: number
}

/** Clusters of the file that one entry refers to. */
export interface Reference {
  readonly start: number
  readonly count: number
}

/** Writes an offset with flags for its high half. */
export function setEntry(view: DataView, at: number, offset: number, flags: number): void {
  view.setUint32(at, (highOf(offset) | flags) >>> 0)
  view.setUint32(at + 4, offset % 2 ** 32)
}

export const viewOf = (bytes: Buffer<ArrayBuffer>): DataView =>
  new DataView(bytes.buffer, bytes.byteOffset, bytes.length)

/** What an L2 entry refers to; null when nothing, or what cannot be. */
export function referenceOf(geometry: Geometry, high: number, low: number): Reference | null {
  const { clusterSize } = geometry
  if (isCompressed(high)) {
    const { offset, length } = compressedRun(geometry, high, low)
    const start = Math.floor(offset / clusterSize)
    return { start, count: Math.floor((offset + length - 1) / clusterSize) - start + 1 }
  }
  const offset = offsetOf(high, low)
  if (offset === 0 || offset % clusterSize !== 0) return null
  return { start: offset / clusterSize, count: 1 }
}

/** Each L2 table of a tree: its place in the L1 table, where it is, and its content. What cannot be one is left out. */
export async function* tablesOf(
  image: ImageHandle,
  { l1Offset, l1Size }: Tree,
  signal?: AbortSignal,
): AsyncGenerator<{ index: number; offset: number; table: Buffer<ArrayBuffer>; view: DataView }> {
  const { clusterSize } = image.header.geometry
  const l1 = viewOf(await image.read(l1Offset, l1Size * 8))
  for (let index = 0; index < l1Size; index++) {
    const offset = offsetOf(l1.getUint32(index * 8), l1.getUint32(index * 8 + 4))
    if (offset === 0 || !canBeTable(image, offset)) continue
    signal?.throwIfAborted()
    const table = await image.read(offset, clusterSize)
    yield { index, offset, table, view: viewOf(table) }
  }
}

/** Whether a table of one cluster can be there: at the beginning of a cluster that the file has, at least in part. */
export function canBeTable(image: ImageHandle, offset: number): boolean {
  return offset % image.header.geometry.clusterSize === 0 && offset < image.fileSize
}

/** Counts `delta` more references to everything in the tree; the L1 table itself is not counted. */
export async function countTree(
  image: ImageHandle,
  refcounts: Refcounts,
  tree: Tree,
  delta: number,
): Promise<void> {
  const { geometry } = image.header
  const { clusterSize, entrySize } = geometry
  for await (const { offset, view } of tablesOf(image, tree)) {
    for (let at = 0; at < clusterSize; at += entrySize) {
      const reference = referenceOf(geometry, view.getUint32(at), view.getUint32(at + 4))
      if (reference === null || (reference.count === 1 && refcounts.addNow(reference.start, delta))) continue
      await refcounts.add(reference.start, reference.count, delta)
    }
    await refcounts.add(offset / clusterSize, 1, delta)
  }
}

/** Has each entry of the active tree say whether its cluster has one reference. Returns how many said otherwise. */
export async function markTree(image: ImageHandle, refcounts: Refcounts): Promise<number> {
  const { geometry, l1Offset, l1Size } = image.header
  const { clusterSize, entrySize } = geometry
  const l1 = await image.read(l1Offset, l1Size * 8)
  const l1View = viewOf(l1)
  let changed = 0
  for await (const { index, offset, table, view } of tablesOf(image, image.header)) {
    const before = changed
    for (let at = 0; at < clusterSize; at += entrySize) {
      const high = view.getUint32(at)
      const reference = referenceOf(geometry, high, view.getUint32(at + 4))
      if (reference === null) continue
      const count = refcounts.getNow(reference.start) ?? (await refcounts.get(reference.start))
      const isOne = !isCompressed(high) && count === 1
      if (mark(view, at, high, isOne)) changed++
    }
    if (changed > before) await image.write(offset, table)
    const isOne = (await refcounts.get(offset / clusterSize)) === 1
    if (mark(l1View, index * 8, l1View.getUint32(index * 8), isOne)) changed++
  }
  if (changed > 0) await image.write(l1Offset, l1)
  return changed
}

/** True when the entry said otherwise. */
function mark(view: DataView, at: number, high: number, isOne: boolean): boolean {
  const marked = isOne ? (high | ENTRY_COPIED) >>> 0 : (high & ~ENTRY_COPIED) >>> 0
  if (marked === high) return false
  view.setUint32(at, marked)
  return true
}
