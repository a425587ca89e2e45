/** What an image's file lies on: decides how it is read and written. */
import { stat, statfs } from 'node:fs/promises'

const TMPFS = 0x01021994
const RAMFS = 0x858458f6
/** File systems that know a file's size themselves: ext, XFS, btrfs, F2FS, ZFS, bcachefs, overlayfs. */
const LOCAL = [0xef53, 0x58465342, 0x9123683e, 0xf2f52010, 0x2fc12fc1, 0xca451a4e, 0x794c7630]

export interface Medium {
  /** The file lies on tmpfs: nothing makes us wait, and there is nothing to sync. */
  readonly isMemory: boolean
  /** The file's size is known at once; otherwise a server, or a program (FUSE), may be asked for it, and may not answer. */
  readonly isLocal: boolean
}

export async function mediumOf(path: string): Promise<Medium> {
  // The name of a block device lies in memory too; what is written to it does not.
  if ((await stat(path)).isBlockDevice()) return { isMemory: false, isLocal: true }
  const { type } = await statfs(path)
  const isMemory = type === TMPFS || type === RAMFS
  return { isMemory, isLocal: isMemory || LOCAL.includes(type) }
}
