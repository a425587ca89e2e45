/** Another size for an image's disk. */
import { RpcError } from '../../../core/errors.ts'
import { L1_BYTES_MAX, SECTOR } from '../../../spec/qcow2.ts'
import { close } from '../../../sys/libc.ts'
import { resizeBitmaps, suspendBitmaps } from './bitmaps.ts'
import { openChain } from './chain.ts'
import { changeImage } from './change.ts'
import { isCompressed } from './geometry.ts'
import type { ResizeOptions } from './image.ts'
import type { ImageHandle } from './image-handle.ts'
import type { Refcounts } from './refcounts.ts'
import { referenceOf, tablesOf } from './tree.ts'

/** See `resizeImage` in `image.ts`. */
export async function resize(image: ImageHandle, wanted: number, options: ResizeOptions = {}): Promise<void> {
  const old = image.header.sizeBytes
  const size = Math.ceil(wanted / SECTOR) * SECTOR
  if (!Number.isSafeInteger(size) || size < SECTOR) {
    throw new RpcError('EINVAL', `${image.path} cannot have a disk of ${wanted} bytes: at least ${SECTOR}`)
  }
  if (size < old && options.shrink !== true) {
    throw new RpcError(
      'EINVAL',
      `${image.path} has a disk of ${old} bytes, and what lies behind ${size} would be lost: use shrink: true if it may`,
    )
  }
  if (size === old) return
  if (size > old) await checkBacking(image, old)
  await changeImage(image, async refcounts => {
    const bitmaps = await suspendBitmaps(image)
    if (size > old) await grow(image, refcounts, size)
    else await shrink(image, refcounts, size)
    await resizeBitmaps(image, refcounts, bitmaps, old)
  })
}

/** What grows reads zeroes in its new part, not what a longer backing file has there. */
async function checkBacking(image: ImageHandle, old: number): Promise<void> {
  if (image.header.backingFile === null) return
  const links = await openChain({ fd: image.fd, path: image.path, sizeBytes: image.fileSize }, image.header)
  const [first] = links
  const below = first!.header?.sizeBytes ?? first!.file.sizeBytes
  for (const link of links) close(link.file.fd)
  if (below <= old) return
  throw new RpcError(
    'ENOTSUP',
    `${image.path} has a disk of ${old} bytes and its backing file ${below}, which would show through: ` +
      'rebase it to none first',
  )
}

async function grow(image: ImageHandle, refcounts: Refcounts, size: number): Promise<void> {
  const { geometry, l1Size, l1Offset } = image.header
  const { clusterSize, l2Span } = geometry
  const needed = Math.max(l1Size, Math.ceil(size / l2Span))
  if (needed * 8 > L1_BYTES_MAX) {
    throw new RpcError('EINVAL', `${image.path} cannot have ${size} bytes with clusters of ${clusterSize}`)
  }
  const clusters = Math.max(1, Math.ceil((l1Size * 8) / clusterSize))
  const l1 = Buffer.alloc(Math.max(1, Math.ceil((needed * 8) / clusterSize)) * clusterSize)
  ;(await image.read(l1Offset, l1Size * 8)).copy(l1)
  if (l1.length <= clusters * clusterSize) {
    await image.write(l1Offset + l1Size * 8, l1.subarray(l1Size * 8))
    await image.changeHeader({ l1Size: needed, sizeBytes: size })
    return
  }
  const start = await refcounts.allocate(l1.length / clusterSize)
  await refcounts.write()
  await image.write(start * clusterSize, l1)
  await image.changeHeader({ l1Offset: start * clusterSize, l1Size: needed, sizeBytes: size })
  await refcounts.add(l1Offset / clusterSize, clusters, -1)
}

/** The disk ends earlier first; then what lies behind its end is given up. */
async function shrink(image: ImageHandle, refcounts: Refcounts, size: number): Promise<void> {
  const { geometry } = image.header
  const { clusterSize, entrySize, l2Entries } = geometry
  await image.changeHeader({ sizeBytes: size })
  const first = Math.ceil(size / clusterSize)
  for await (const { index, offset, table, view } of tablesOf(image, image.header)) {
    if ((index + 1) * l2Entries <= Math.floor(size / clusterSize)) continue
    if ((await refcounts.get(offset / clusterSize)) !== 1) {
      // A snapshot has it too: what the disk cannot reach any more stays as it is.
      continue
    }
    const gone = []
    for (let entry = 0; entry < l2Entries; entry++) {
      const cluster = index * l2Entries + entry
      const at = entry * entrySize
      const reference = referenceOf(geometry, view.getUint32(at), view.getUint32(at + 4))
      if (cluster >= first) {
        if (reference !== null) gone.push(reference)
        table.fill(0, at, at + entrySize)
      } else if (cluster === first - 1 && size % clusterSize !== 0) {
        await zeroTail(image, refcounts, view, at, size % clusterSize)
      }
    }
    await image.write(offset, table)
    await image.sync()
    for (const { start, count } of gone) await refcounts.add(start, count, -1)
  }
}

/** What lies behind the end, in the cluster that has it, reads as zeroes when the disk grows again. */
async function zeroTail(
  image: ImageHandle,
  refcounts: Refcounts,
  view: DataView,
  at: number,
  from: number,
): Promise<void> {
  const { geometry } = image.header
  const high = view.getUint32(at)
  const reference = referenceOf(geometry, high, view.getUint32(at + 4))
  if (reference === null || isCompressed(high) || (await refcounts.get(reference.start)) !== 1) return
  const offset = reference.start * geometry.clusterSize
  await image.write(offset + from, Buffer.alloc(geometry.clusterSize - from))
}
