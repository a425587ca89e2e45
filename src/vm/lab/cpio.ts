/**
 * Writes "newc" cpio archives, the form in which the Linux kernel takes its first file system
 * (Documentation/driver-api/early-userspace/buffer-format.rst). Archives may be joined end to end.
 */

export interface CpioEntry {
  /** Path without a leading slash. */
  readonly path: string
  /** File type and permission bits, for example 0o100755. */
  readonly mode: number
  /** A file's bytes; empty for a directory. */
  readonly content: Uint8Array
}

/** A directory, which must come before what lies in it. */
export const directory = (path: string): CpioEntry => ({ path, mode: 0o040755, content: new Uint8Array(0) })

/** A file. */
export const file = (path: string, content: string | Uint8Array, permissions = 0o755): CpioEntry => ({
  path,
  mode: 0o100000 | permissions,
  content: typeof content === 'string' ? Buffer.from(content) : content,
})

/** One archive of these entries, owned by root. */
export function cpio(entries: readonly CpioEntry[]): Buffer {
  const parts = entries.flatMap((entry, index) => encode(entry, index + 1))
  return Buffer.concat([...parts, ...encode({ path: 'TRAILER!!!', mode: 0, content: new Uint8Array(0) }, 0)])
}

function encode({ path, mode, content }: CpioEntry, inode: number): Uint8Array[] {
  const name = Buffer.from(`${path}\0`)
  // inode, mode, uid, gid, links, mtime, file size, device and special device (major, minor), name size, checksum.
  const fields = [inode, mode, 0, 0, 1, 0, content.length, 0, 0, 0, 0, name.length, 0]
  const header = Buffer.from(`070701${fields.map(field => field.toString(16).padStart(8, '0')).join('')}`)
  // The header and name together end on a multiple of four, and so does the content.
  return [header, name, padding(header.length + name.length), content, padding(content.length)]
}

const padding = (length: number): Uint8Array => new Uint8Array(-length & 3)
