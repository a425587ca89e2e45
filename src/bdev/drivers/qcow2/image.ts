/**
 * qcow2 images as files, for the control thread: what pools and volumes use.
 *
 *   createImage(path, options, long?)        an image, whole and synced, or no file at all
 *   imageInfo(path)                          what it is: sizes, features, backing chain, snapshots, bitmaps
 *   resizeImage(path, sizeBytes, options)    grows it; shrinks only when told that data may be lost
 *   checkImage(path, { repair }, long?)      counts every reference anew; says, or mends, what is wrong
 *   createSnapshot / listSnapshots / applySnapshot / deleteSnapshot (path, …)
 *   addBitmap / removeBitmap / setBitmapRecording / listBitmaps (path, …)
 *   rebaseImage(path, backing, options, long?)   another backing file, with the same content
 *   commitImage(path, long?)                 its data into its backing file
 *
 * Each call opens the file, takes the locks that QEMU takes as well, and closes it: an image that a guest, QEMU or a
 * bdev has is refused with EBUSY. An image that is a bdev is changed by `changeQcow2` of `driver.ts`, which lends
 * what is open. Errors are `RpcError`s that name the path, the values and the remedy.
 */
import type { RpcError } from '../../../core/errors.ts'

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

export interface RebaseOptions {
  readonly backingFormat?: 'raw' | 'qcow2'
  /** Only writes the new name: its content is known to be the same, or the old file is gone. */
  readonly unsafe?: boolean
}

/** The calls. */
export interface Images {
  createImage(path: string, options: CreateOptions, long?: LongOperation): Promise<ImageInfo>
  imageInfo(path: string): Promise<ImageInfo>
  resizeImage(path: string, sizeBytes: number, options?: ResizeOptions): Promise<ImageInfo>
  checkImage(
    path: string,
    options?: { readonly repair?: boolean },
    long?: LongOperation,
  ): Promise<CheckResult>
  createSnapshot(path: string, name: string): Promise<SnapshotInfo>
  listSnapshots(path: string): Promise<readonly SnapshotInfo[]>
  /** `which`: an id, or a name that only one has. */
  applySnapshot(path: string, which: string): Promise<void>
  deleteSnapshot(path: string, which: string): Promise<void>
}

export type ImageError = RpcError
