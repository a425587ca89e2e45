/**
 * qcow2 images as files, for the control thread: what pools and volumes use.
 *
 *   createImage(path, options, long?)        an image, whole and synced, or no file at all
 *   imageInfo(path)                          what it is: sizes, features, backing chain, snapshots, bitmaps
 *   resizeImage(path, sizeBytes, options)    grows it; shrinks only when told that data may be lost
 *   checkImage(path, { repair }, long?)      counts every reference anew; says, or mends, what is wrong
 *   createSnapshot / listSnapshots / applySnapshot / deleteSnapshot (path, …)
 *   addBitmap / removeBitmap (path, …)       dirty bitmaps
 *   renameBacking(path, backing)             another name for the backing file
 *
 * Each call opens the file, takes the locks that QEMU takes as well, and closes it: an image that a guest, QEMU or a
 * bdev has is refused with EBUSY, except by `imageInfo`. An image that is a bdev is changed by `changeOpenImage` of
 * `driver.ts`, or its methods. Errors are `RpcError`s that name the path, the values and the remedy.
 */
import { stat } from 'node:fs/promises'
import { RpcError } from '../../../core/errors.ts'
import { Compatible, Compression, Incompatible } from '../../../spec/qcow2.ts'
import { setBacking } from './backing.ts'
import { deleteBitmap, insertBitmap, readBitmaps, toInfo } from './bitmaps.ts'
import { peekChain } from './chain.ts'
import { check, repairDirty } from './check.ts'
import { create } from './create.ts'
import { ImageHandle } from './image-handle.ts'
import { refuseCutOff } from './missing.ts'
import { resize } from './resize.ts'
import { dropSnapshot, readSnapshots, revertTo, takeSnapshot } from './snapshots.ts'

/** For what may take long. */
export interface LongOperation {
  /** In bytes of work; `total` does not change. */
  onProgress?(done: number, total: number): void
  /** Ends the operation early: it rejects with the signal's reason, and the image stays as it was, or usable. */
  readonly signal?: AbortSignal
}

export type Preallocation = 'off' | 'metadata' | 'falloc' | 'full'

export interface CreateOptions {
  /** Of the virtual disk. By default the backing file's. */
  readonly sizeBytes?: number
  /** 3 by default. */
  readonly version?: 2 | 3
  /** A power of two from 512 bytes to 2 MiB; 65536 by default. */
  readonly clusterSize?: number
  /** 1, 2, 4, 8, 16, 32 or 64; 16 by default. */
  readonly refcountBits?: number
  readonly extendedL2?: boolean
  readonly lazyRefcounts?: boolean
  /** What compressed clusters of it are to be compressed with by whoever writes some. */
  readonly compression?: 'zlib' | 'zstd'
  readonly preallocation?: Preallocation
  /** As it is to stand in the image: relative to the image's directory, or absolute. */
  readonly backingFile?: string
  readonly backingFormat?: 'raw' | 'qcow2'
}

export interface SnapshotInfo {
  readonly id: string
  readonly name: string
  /** When it was taken. */
  readonly date: Date
  readonly diskSizeBytes: number
  readonly vmStateBytes: number
}

export interface BitmapInfo {
  readonly name: string
  readonly granularityBytes: number
  /** It records writes. */
  readonly isRecording: boolean
  /** It was not stored when the image was last in use, so its content is not to be trusted. */
  readonly isInconsistent: boolean
}

export interface ImageInfo {
  readonly path: string
  readonly version: 2 | 3
  readonly virtualSizeBytes: number
  /** What the file takes on its file system, and how long it is. */
  readonly allocatedBytes: number
  readonly fileSizeBytes: number
  readonly clusterSize: number
  readonly refcountBits: number
  readonly extendedL2: boolean
  readonly lazyRefcounts: boolean
  readonly compression: 'zlib' | 'zstd'
  readonly isDirty: boolean
  readonly isCorrupt: boolean
  /** As it stands in the image; null when there is none. */
  readonly backingFile: string | null
  readonly backingFormat: string | null
  /** The files underneath, from the top, as paths. */
  readonly chain: readonly { readonly path: string; readonly format: 'raw' | 'qcow2' }[]
  readonly snapshots: readonly SnapshotInfo[]
  readonly bitmaps: readonly BitmapInfo[]
}

export interface CheckResult {
  /** Clusters that are counted and not used: room that is lost, nothing else. */
  readonly leaks: number
  /** References that are counted too low, or point where nothing can be. */
  readonly corruptions: number
  /** What was found, one sentence each, at most a hundred. */
  readonly problems: readonly string[]
  readonly repaired: number
}

export interface ResizeOptions {
  /** Cut off what lies beyond the new end. */
  readonly shrink?: boolean
}

/** Makes an image that must not exist yet. Throws `RpcError`: EEXIST, EINVAL, ENOENT, ENOSPC, ENOTSUP. */
export async function createImage(
  path: string,
  options: CreateOptions,
  long: LongOperation = {},
): Promise<ImageInfo> {
  await create(path, options, long)
  return await imageInfo(path)
}

/**
 * What an image is. Also of one that somebody has, whose header may be changing: then of what is in the file. A chain that
 * cannot be followed ends where it breaks.
 */
export async function imageInfo(path: string): Promise<ImageInfo> {
  const image = await ImageHandle.peek(path)
  try {
    return await describe(image)
  } finally {
    image.close()
  }
}

/** Throws `RpcError` EINVAL when it would shrink without being told to. */
export async function resizeImage(
  path: string,
  sizeBytes: number,
  options: ResizeOptions = {},
): Promise<ImageInfo> {
  return await withImage(path, async image => {
    await resize(image, sizeBytes, options)
    return await describe(image)
  })
}

export async function checkImage(
  path: string,
  { repair = false }: { readonly repair?: boolean } = {},
  long: LongOperation = {},
): Promise<CheckResult> {
  const image = await ImageHandle.open(path, !repair)
  try {
    return await check(image, repair, long)
  } finally {
    image.close()
  }
}

/** Throws `RpcError` EEXIST when it has one of that name. */
export const createSnapshot = (path: string, name: string): Promise<SnapshotInfo> =>
  withImage(path, async image => toSnapshotInfo(await takeSnapshot(image, name)))

export async function listSnapshots(path: string): Promise<readonly SnapshotInfo[]> {
  return (await imageInfo(path)).snapshots
}

/** Has the disk be what it was; its size as well. `which`: an id, or a name that only one has. */
export const applySnapshot = (path: string, which: string): Promise<void> =>
  withImage(path, image => revertTo(image, which))

export const deleteSnapshot = (path: string, which: string): Promise<void> =>
  withImage(path, image => dropSnapshot(image, which))

/**
 * Has the image name another backing file, or none: only the name changes. Right when the file was moved, or has the same
 * content; otherwise the disk reads as something else. Throws `RpcError` when the new chain cannot be used.
 */
export const renameBacking = (
  path: string,
  backing: { readonly file: string; readonly format: 'raw' | 'qcow2' } | null,
): Promise<void> => withImage(path, image => setBacking(image, backing))

/** A bitmap that records writes from now on, unless told otherwise. */
export const addBitmap = (
  path: string,
  name: string,
  { granularityBytes = 65536, isRecording = true }: BitmapOptions = {},
): Promise<void> => withImage(path, image => insertBitmap(image, name, granularityBytes, isRecording))

export const removeBitmap = (path: string, name: string): Promise<void> =>
  withImage(path, image => deleteBitmap(image, name))

export interface BitmapOptions {
  /** A power of two from 512; 65536 by default. */
  readonly granularityBytes?: number
  readonly isRecording?: boolean
}

/** An image that nobody has, as what it should be: repaired if it was not closed properly. */
async function withImage<T>(path: string, work: (image: ImageHandle) => Promise<T>): Promise<T> {
  const image = await ImageHandle.open(path, false)
  try {
    refuseCorrupt(image)
    await refuseCutOff(image)
    await repairDirty(image)
    return await work(image)
  } catch (error) {
    // What it began is taken back.
    await repairDirty(image)
    throw error
  } finally {
    image.close()
  }
}

/** Throws `RpcError` EINVAL for an image that is marked as corrupt: nobody is to write to it. */
export function refuseCorrupt(image: ImageHandle): void {
  if ((image.header.incompatible & Incompatible.CORRUPT) === 0) return
  throw new RpcError(
    'EINVAL',
    `${image.path} is marked as corrupt: use qemu-img check -r all ${image.path}, or read_only: true`,
  )
}

async function describe(image: ImageHandle): Promise<ImageInfo> {
  const { header, path } = image
  const { size, blocks } = await stat(path)
  return {
    path,
    version: header.version === 2 ? 2 : 3,
    virtualSizeBytes: header.sizeBytes,
    allocatedBytes: blocks * 512,
    fileSizeBytes: size,
    clusterSize: header.geometry.clusterSize,
    refcountBits: 2 ** header.geometry.refcountOrder,
    extendedL2: header.geometry.isExtended,
    lazyRefcounts: (header.compatible & Compatible.LAZY_REFCOUNTS) !== 0,
    compression: header.compression === Compression.ZSTD ? 'zstd' : 'zlib',
    isDirty: (header.incompatible & Incompatible.DIRTY) !== 0,
    isCorrupt: (header.incompatible & Incompatible.CORRUPT) !== 0,
    backingFile: header.backingFile,
    backingFormat: header.backingFormat,
    chain: await peekChain(path, header),
    snapshots: (await readSnapshots(image)).map(toSnapshotInfo),
    bitmaps: (await readBitmaps(image)).map(toInfo),
  }
}

const toSnapshotInfo = ({ id, name, date, diskSizeBytes, vmStateBytes }: SnapshotInfo): SnapshotInfo => ({
  id,
  name,
  date,
  diskSizeBytes,
  vmStateBytes,
})
