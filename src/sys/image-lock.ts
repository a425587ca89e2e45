/**
 * The locks by which QEMU keeps two programs from writing to one disk image: open file description locks on single bytes
 * (QEMU, block/file-posix.c). Both sides follow them, so that a guest's image is refused here and ours is refused there.
 *
 *   byte 100 + p   shared lock: "I use permission p"
 *   byte 200 + p   shared lock: "nobody else may use permission p"
 *
 * Who has taken its own looks whether anybody has taken the opposite. The kernel drops them when the descriptor is closed.
 */
import { constants } from 'node:os'
import { i32, struct, u16, u53 } from '../core/struct.ts'
import { fcntlAt } from './libc.ts'
import { mapAnonymous, viewAt } from './memory.ts'

const F_OFD_GETLK = 36
const F_OFD_SETLK = 37
const F_RDLCK = 0
const F_WRLCK = 1
const F_UNLCK = 2
const USED = 100
const UNSHARED = 200

/** Permissions, as QEMU numbers them. */
const CONSISTENT_READ = 0
const WRITE = 1
const RESIZE = 3

/** struct flock on 64-bit machines: l_whence is SEEK_SET, 0. */
const Flock = struct(32, { type: u16(0), whence: u16(2), start: u53(8), length: u53(16), pid: i32(24) })

let scratch = 0

/**
 * Takes the locks of a writer, or of a reader, on an open file. Returns false when another program has the image in a way
 * that excludes this; true also where the file system has no such locks, as QEMU does. Released when `fd` is closed.
 */
export function lockImage(fd: number, isReadOnly: boolean): boolean {
  const used = isReadOnly ? [CONSISTENT_READ] : [CONSISTENT_READ, WRITE, RESIZE]
  const unshared = [WRITE, RESIZE]
  const own = [
    ...used.map(permission => USED + permission),
    ...unshared.map(permission => UNSHARED + permission),
  ]
  for (const byte of own) {
    const result = lock(fd, F_OFD_SETLK, F_RDLCK, byte)
    if (result === -constants.errno.EAGAIN || result === -constants.errno.EACCES) {
      unlock(fd, own)
      return false
    }
    if (result < 0) return true
  }
  const opposite = [
    ...used.map(permission => UNSHARED + permission),
    ...unshared.map(permission => USED + permission),
  ]
  for (const byte of opposite) {
    // What another description holds is told; what this one holds itself is not.
    if (
      lock(fd, F_OFD_GETLK, F_WRLCK, byte) === 0 &&
      Flock.type.get(viewAt(scratch, Flock.size), 0) !== F_UNLCK
    ) {
      unlock(fd, own)
      return false
    }
  }
  return true
}

function unlock(fd: number, bytes: readonly number[]): void {
  for (const byte of bytes) lock(fd, F_OFD_SETLK, F_UNLCK, byte)
}

function lock(fd: number, command: number, type: number, byte: number): number {
  if (scratch === 0) scratch = mapAnonymous(4096)
  const view = viewAt(scratch, Flock.size)
  Flock.type.set(view, 0, type)
  Flock.whence.set(view, 0, 0)
  Flock.start.set(view, 0, byte)
  Flock.length.set(view, 0, 1)
  Flock.pid.set(view, 0, 0)
  return fcntlAt(fd, command, scratch)
}
