/**
 * Images that were cut off: copied in part, or truncated. QEMU reads zeroes for what is missing, a missing table included, so
 * that a guest finds an empty disk; here such an image is not written to, and reads of what is missing fail.
 */
import { RpcError } from '../../../core/errors.ts'
import { getRefcount, offsetOf } from './geometry.ts'
import type { ImageHandle } from './image-handle.ts'
import { readSnapshots } from './snapshots.ts'
import { referenceOf, type Tree, tablesOf, viewOf } from './tree.ts'

/** Clusters behind the file's end whose counts are looked at: see the allocator's bound. */
const BEYOND_MAX = 1 << 22

/** Throws `RpcError` EINVAL, which says how long the file has to be. */
export async function refuseCutOff(image: ImageHandle): Promise<void> {
  const needed = await neededBytes(image)
  if (needed === null) return
  throw new RpcError(
    'EINVAL',
    `${image.path} is cut off: it has ${image.fileSize} bytes, and its tables refer to ${needed}: take a whole copy; ` +
      `read_only: true reads what is left, and after truncate -s ${needed} ${image.path} the rest reads as zeroes`,
  )
}

/** How long the file would have to be; null when it is whole. It may end within its last cluster. */
export async function neededBytes(image: ImageHandle): Promise<number | null> {
  // Counts are looked at first, a few tables at most: they also stay when a crash lost what they count, which is harmless.
  if (!(await hasCountsBeyond(image))) return null
  const { clusterSize } = image.header.geometry
  const end = await referredEnd(image)
  // Looked at last, since the file may be growing in other hands.
  return end - clusterSize < image.fileSize ? null : end
}

async function hasCountsBeyond(image: ImageHandle): Promise<boolean> {
  const { geometry, refcountTableOffset, refcountTableClusters } = image.header
  const { clusterSize, blockEntries, refcountOrder } = geometry
  const clusters = Math.ceil(image.fileSize / clusterSize)
  const table = viewOf(await image.read(refcountTableOffset, refcountTableClusters * clusterSize))
  const last = Math.min(table.byteLength / 8, Math.ceil((clusters + BEYOND_MAX) / blockEntries))
  for (let index = 0; index < last; index++) {
    const offset = offsetOf(table.getUint32(index * 8), table.getUint32(index * 8 + 4))
    if (offset === 0) continue
    if (offset >= clusters * clusterSize) return true
    if ((index + 1) * blockEntries <= clusters) continue
    const block = viewOf(await image.read(offset, clusterSize))
    for (let entry = Math.max(0, clusters - index * blockEntries); entry < blockEntries; entry++) {
      if (getRefcount(block, 0, entry, refcountOrder) > 0) return true
    }
  }
  return false
}

/** The end of the last cluster that a table of the image, or data, lies in. */
async function referredEnd(image: ImageHandle): Promise<number> {
  const { header } = image
  const { clusterSize } = header.geometry
  const table = viewOf(
    await image.read(header.refcountTableOffset, header.refcountTableClusters * clusterSize),
  )
  let end = endOf(table, table.byteLength / 8, clusterSize)
  const seen = new Set<number>()
  for (const tree of [header, ...(await readSnapshots(image))]) {
    end = Math.max(end, await treeEnd(image, tree, seen))
  }
  return end
}

async function treeEnd(image: ImageHandle, tree: Tree, seen: Set<number>): Promise<number> {
  const { geometry } = image.header
  const { clusterSize, entrySize } = geometry
  let end = endOf(viewOf(await image.read(tree.l1Offset, tree.l1Size * 8)), tree.l1Size, clusterSize)
  for await (const { offset, view } of tablesOf(image, tree)) {
    if (seen.has(offset)) continue
    seen.add(offset)
    for (let at = 0; at < clusterSize; at += entrySize) {
      const reference = referenceOf(geometry, view.getUint32(at), view.getUint32(at + 4))
      if (reference !== null) end = Math.max(end, (reference.start + reference.count) * clusterSize)
    }
  }
  return end
}

/** The end of the last cluster that a table of tables names. */
function endOf(table: DataView, entries: number, clusterSize: number): number {
  let end = 0
  for (let at = 0; at < entries * 8; at += 8) {
    const offset = offsetOf(table.getUint32(at), table.getUint32(at + 4))
    if (offset > 0) end = Math.max(end, offset + clusterSize)
  }
  return end
}
