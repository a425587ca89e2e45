/** What a user's module may be: a disk in a few asynchronous functions, or a function that makes one. */

/** All offsets and lengths are in bytes, and multiples of the block size. Functions may be asynchronous. */
export interface PluginDisk {
  /** The device's name when none is asked for; by default the file's name without its extension. */
  readonly name?: string
  /** Size in bytes: a multiple of the block size. */
  readonly size: number
  /** A power of two from 512 to 65536; 512 by default. */
  readonly blockSize?: number
  /** True when `write` is to be left alone. */
  readonly readOnly?: boolean
  /**
   * The device's identity. Set it when several machines serve the same data: multipath hosts then see one disk. By
   * default derived from this machine, the file and the options.
   */
  readonly uuid?: string
  /** Returns exactly `length` bytes. */
  read(offset: number, length: number): Uint8Array | Promise<Uint8Array>
  /** `data` may be kept: it is a copy. */
  write?(offset: number, data: Uint8Array): unknown
  /** What was written before is safe when it returns. A disk without it has no cache to lose. */
  flush?(): unknown
  /** The range is not needed any more; what it reads as is up to you. */
  trim?(offset: number, length: number): unknown
  /** The range reads as zeroes afterwards. Without it zeroes are written. */
  zero?(offset: number, length: number): unknown
  /** The device is removed, or the daemon ends. */
  close?(): unknown
}

/** The options of `bdev_plugin_create`, whatever they are. */
export type PluginOptions = Readonly<Record<string, unknown>>

/** A module's default export: the disk, or how to make it. A module may also export the disk's members one by one. */
export type PluginModule = PluginDisk | ((options: PluginOptions) => PluginDisk | Promise<PluginDisk>)

/** Declares a disk; only here so that its type is checked. */
export function defineDisk(disk: PluginModule): PluginModule {
  return disk
}
