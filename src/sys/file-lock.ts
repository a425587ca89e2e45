/** Exclusive locks on files, by flock(2): the kernel drops them when the process dies, however it dies. */
import { closeSync, constants as files, openSync } from 'node:fs'
import { constants } from 'node:os'
import { RpcError, SysError } from '../core/errors.ts'
import { flock } from './libc.ts'

const LOCK_EX = 2
const LOCK_NB = 4

/**
 * Locks the file, creating it when it is absent, and returns how to release it; undefined when another holder has it.
 * The file stays: removing it would let two processes lock two files of one name.
 */
export function lockFile(path: string): (() => void) | undefined {
  // Locks lie beside sockets in directories that everybody may write to: never follow a link that somebody left there.
  const fd = openLock(path)
  const result = flock(fd, LOCK_EX | LOCK_NB)
  if (result === 0) {
    let held = true
    return () => {
      // Closing twice could close somebody else's file, which has got the same number since.
      if (held) closeSync(fd)
      held = false
    }
  }
  closeSync(fd)
  if (result === -constants.errno.EWOULDBLOCK) return undefined
  throw new SysError('flock', -result, path)
}

function openLock(path: string): number {
  try {
    return openSync(path, files.O_WRONLY | files.O_CREAT | files.O_NOFOLLOW, 0o600)
  } catch (cause) {
    const { code, message } = cause as NodeJS.ErrnoException
    throw new RpcError(
      code === 'ENOENT' || code === 'EACCES' ? code : 'EIO',
      `cannot make the lock ${path}: ${message}. Name a place in a directory that exists and may be written to`,
      { cause },
    )
  }
}
