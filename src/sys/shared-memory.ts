/** Memory that another process maps as well, and the descriptors by which the two share it and wake each other. */
import { fstatSync, readlinkSync } from 'node:fs'
import { assert } from '../core/assert.ts'
import { SysError } from '../core/errors.ts'
import { close, fcntl, ftruncate, memfdCreate, mmap } from './libc.ts'
import { unmap } from './memory.ts'

const MFD_CLOEXEC = 1
const MFD_ALLOW_SEALING = 2
const F_GETFL = 3
const F_SETFL = 4
const F_ADD_SEALS = 1033
const F_GET_SEALS = 1034
const F_SEAL_SEAL = 1
const F_SEAL_SHRINK = 2
const F_SEAL_GROW = 4
const O_NONBLOCK = 0o4000
const PROT_READ_WRITE = 3
const MAP_SHARED = 1
const ENODEV = 19
const EOVERFLOW = 75

/** A descriptor of `sizeBytes` of new zeroed memory whose size nobody can change. The caller closes it. */
export function createSharedMemory(name: string, sizeBytes: number): number {
  const fd = memfdCreate(name, MFD_CLOEXEC | MFD_ALLOW_SEALING)
  if (fd < 0) throw new SysError('memfd_create', -fd)
  const sized = ftruncate(fd, sizeBytes)
  const result = sized < 0 ? sized : fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)
  if (result < 0) {
    close(fd)
    throw new SysError(sized < 0 ? 'ftruncate' : 'fcntl', -result, `of ${sizeBytes} bytes of shared memory`)
  }
  return fd
}

/** Whether the file can never become shorter: touching what was cut off would end this process (SIGBUS). */
export function cannotShrink(fd: number): boolean {
  const seals = fcntl(fd, F_GET_SEALS, 0)
  return seals >= 0 && (seals & F_SEAL_SHRINK) !== 0
}

/** Part of a file as this process has it mapped. */
export interface SharedMapping {
  /** Of the part that was asked for; the mapping itself begins at a page's boundary. */
  readonly address: number
  readonly sizeBytes: number
  unmap(): void
}

/**
 * Maps `sizeBytes` of the file at `offsetBytes`, neither of which need be whole pages, for reading and writing. The
 * descriptor may be closed afterwards. Throws `SysError`: ENODEV for what is no plain file, EOVERFLOW when the file is
 * too short (what lies beyond its end cannot be touched), EACCES when it may not be written, ENOMEM …
 */
export function mapShared(fd: number, offsetBytes: number, sizeBytes: number): SharedMapping {
  assert(sizeBytes > 0 && Number.isSafeInteger(offsetBytes + sizeBytes), 'a part of a file has a size')
  const file = fstatSync(fd)
  if (!file.isFile()) throw new SysError('mmap', ENODEV, 'of what is no plain file')
  const end = offsetBytes + sizeBytes
  if (end > file.size) {
    throw new SysError('mmap', EOVERFLOW, `up to byte ${end} of a file of ${file.size} bytes`)
  }
  // Files of huge pages are mapped in whole huge pages, and their block size tells how large those are.
  const page = Math.max(4096, file.blksize)
  const first = Math.floor(offsetBytes / page) * page
  const mapped = Math.ceil((end - first) / page) * page
  const base = mmap(0, mapped, PROT_READ_WRITE, MAP_SHARED, fd, first)
  if (base < 0) throw new SysError('mmap', -base, `of ${mapped} bytes at ${first}`)
  return { address: base + offsetBytes - first, sizeBytes, unmap: () => unmap(base, mapped) }
}

/** Which file a descriptor is of: two descriptors with the same identity share their memory. */
export function fileIdentity(fd: number): string {
  const { dev, ino } = fstatSync(fd)
  return `${dev}:${ino}`
}

/** Only an eventfd can be written to without waiting and without an end, whatever the other side does. */
export function isEventfd(fd: number): boolean {
  return readlinkSync(`/proc/self/fd/${fd}`) === 'anon_inode:[eventfd]'
}

export function isSocket(fd: number): boolean {
  return fstatSync(fd).isSocket()
}

/** Reads and writes of the descriptor no longer wait. */
export function setNonBlocking(fd: number): void {
  const flags = fcntl(fd, F_GETFL, 0)
  const result = flags < 0 ? flags : fcntl(fd, F_SETFL, flags | O_NONBLOCK)
  if (result < 0) throw new SysError('fcntl', -result, 'to set O_NONBLOCK')
}
