/** Raw images: files whose bytes are the disk's. */

import { constants } from 'node:fs'
import {
  chmod,
  chown,
  copyFile,
  type FileHandle,
  lstat,
  open,
  rename,
  rm,
  stat,
  statfs,
} from 'node:fs/promises'
import { dirname } from 'node:path'
import { errnoName, RpcError } from '../../core/errors.ts'
import { formatSize } from '../../core/format-size.ts'
import { fallocate, lseek } from '../../sys/libc.ts'
import { renameToFree } from '../../sys/rename.ts'
import type { Preallocation, Progress } from '../pool.ts'

/** What is reserved in one call: small enough that progress is told and a cancel heard. */
const RESERVE_STEP = 128 << 20
const COPY_STEP = 4 << 20
const KEEP_SIZE = 0x01
const SEEK_DATA = 3
const SEEK_HOLE = 4
const SEEK_END = 2
const WRITE_REMEDIES: Readonly<Record<string, string>> = {
  EROFS: ', it is mounted read only: dmesg says why, if nobody did that',
  ENOSPC: ', its file system has no room left: delete a volume or a snapshot, or enlarge it',
}

/** Makes a file of that size, which must not exist. Removes it again when it fails. */
export async function createRaw(
  path: string,
  sizeBytes: number,
  preallocation: Preallocation,
  progress: Progress,
): Promise<void> {
  if (preallocation === 'full') await checkRoom(path, sizeBytes)
  const file = await open(path, 'wx', 0o600)
  try {
    await file.truncate(sizeBytes)
    if (preallocation === 'full') await reserve(file, 0, sizeBytes, progress)
    await file.sync()
  } catch (error) {
    await rm(path, { force: true })
    throw error
  } finally {
    await file.close()
  }
}

/**
 * Gives every byte of a range a block of the file system; where that has no such call, by writing zeroes. The file does not
 * grow by it, unless by zeroes.
 */
async function reserve(
  file: FileHandle,
  fromBytes: number,
  toBytes: number,
  progress: Progress,
): Promise<void> {
  const total = toBytes - fromBytes
  let at = fromBytes
  while (at < toBytes) {
    progress.signal.throwIfAborted()
    const size = Math.min(RESERVE_STEP, toBytes - at)
    const result = fallocate(file.fd, KEEP_SIZE, at, size)
    if (result < 0) {
      if (errnoName(-result) !== 'EOPNOTSUPP') throw failed(result, at, toBytes)
      await writeZeroes(file, at, size, progress)
    }
    at += size
    progress.report(at - fromBytes, total)
    // Reserving is quick and does not wait for anything: others get their turn here.
    await new Promise(setImmediate)
  }
}

function failed(result: number, at: number, toBytes: number): RpcError {
  const code = errnoName(-result) as 'ENOSPC'
  return new RpcError(code, `reserving ${formatSize(toBytes)} failed at ${formatSize(at)}: ${code}`)
}

async function writeZeroes(file: FileHandle, at: number, size: number, { signal }: Progress): Promise<void> {
  const zeroes = Buffer.alloc(Math.min(COPY_STEP, size))
  for (let done = 0; done < size; done += zeroes.length) {
    signal.throwIfAborted()
    await writeAll(file, zeroes, Math.min(zeroes.length, size - done), at + done)
  }
}

/** A file system that fills up writes a part first, and says so only when it is asked for the rest. */
async function writeAll(file: FileHandle, bytes: Uint8Array, length: number, at: number): Promise<void> {
  for (let done = 0; done < length; ) {
    const { bytesWritten } = await file.write(bytes, done, length - done, at + done)
    done += bytesWritten
  }
}

/** Refuses before anything is written what cannot end well. */
export async function checkRoom(path: string, sizeBytes: number): Promise<void> {
  const directory = path.slice(0, path.lastIndexOf('/')) || '/'
  const { bavail, bsize } = await statfs(directory)
  const available = bavail * bsize
  if (sizeBytes <= available) return
  throw new RpcError(
    'ENOSPC',
    `${formatSize(sizeBytes)} are to be reserved and ${directory} has ${formatSize(available)} left: ` +
      'make a thin volume, a smaller one, or room',
  )
}

/** Changes the size of a file, at once and last of all; what grows is a hole, unless `allocate`. */
export async function resizeRaw(
  path: string,
  sizeBytes: number,
  allocate: boolean,
  progress: Progress,
): Promise<void> {
  const file = await open(path, 'r+')
  try {
    const { size } = await file.stat()
    if (allocate && sizeBytes > size) {
      await checkRoom(path, sizeBytes - size)
      try {
        await reserve(file, size, sizeBytes, progress)
      } catch (error) {
        // Gives back what was reserved.
        await file.truncate(size)
        throw error
      }
    }
    await file.truncate(sizeBytes)
    await file.sync()
  } finally {
    await file.close()
  }
}

/** Puts a file where another is, whose owner and mode it gets. */
export async function takePlace(from: string, to: string): Promise<void> {
  const { uid, gid, mode } = await stat(to)
  await chown(from, uid, gid)
  await chmod(from, mode & 0o7777)
  await moveSafely(from, to)
}

/** The same for a name that nothing has: what has come there in the last moment stays. Throws `RpcError` EEXIST. */
export async function moveToFree(from: string, to: string): Promise<void> {
  await sync(from)
  await renameFree(from, to)
  await sync(dirname(to))
}

/** Throws `RpcError` EEXIST when something has that name: a volume, a directory, a pipe, a link to nothing. */
export async function renameFree(from: string, to: string): Promise<void> {
  if (await renameToFree(from, to)) return
  if ((await lstat(to).catch(() => undefined)) !== undefined) {
    throw new RpcError('EEXIST', `${to} exists and was not made from here: choose another name`)
  }
  // A file system that does not know how, or another reason, which this says.
  await rename(from, to)
}

/** Gives a file another name of its directory, and both are on the medium when this resolves. */
export async function moveSafely(from: string, to: string): Promise<void> {
  await sync(from)
  await rename(from, to)
  await sync(dirname(to))
}

async function sync(path: string): Promise<void> {
  const handle = await open(path, 'r')
  try {
    await handle.sync()
  } finally {
    await handle.close()
  }
}

/** Codes by which a file system says that it shares no blocks between files. */
const NO_REFLINK = new Set(['ENOTSUP', 'EOPNOTSUPP', 'EXDEV', 'EINVAL', 'ENOSYS', 'ENOTTY'])

/** A copy that shares its blocks with the original until one is written; false where the file system has none. */
export async function reflink(from: string, to: string): Promise<boolean> {
  try {
    await copyFile(from, to, constants.COPYFILE_FICLONE_FORCE | constants.COPYFILE_EXCL)
    return true
  } catch (error) {
    const { code = '' } = error as NodeJS.ErrnoException
    if (code === 'EEXIST') throw error
    await rm(to, { force: true })
    if (NO_REFLINK.has(code)) return false
    throw error
  }
}

/** Copies a file to one that does not exist, by sharing blocks if that can be; else its data, keeping its holes. */
export async function copyFileSparsely(from: string, to: string, progress: Progress): Promise<void> {
  if (await reflink(from, to)) return
  const source = await open(from, 'r')
  try {
    const target = await open(to, 'wx', 0o600)
    try {
      const { size } = await source.stat()
      await target.truncate(size)
      await copyData(from, source, target, size, progress)
      await target.sync()
    } catch (error) {
      await rm(to, { force: true })
      throw error
    } finally {
      await target.close()
    }
  } finally {
    await source.close()
  }
}

async function copyData(
  from: string,
  source: FileHandle,
  target: FileHandle,
  sizeBytes: number,
  { report, signal }: Progress,
): Promise<void> {
  const buffer = Buffer.allocUnsafe(COPY_STEP)
  for (const [start, end] of dataRanges(source.fd, 0, sizeBytes)) {
    for (let at = start; at < end; ) {
      signal.throwIfAborted()
      const { bytesRead } = await source.read(buffer, 0, Math.min(COPY_STEP, end - at), at)
      if (bytesRead === 0) {
        throw new RpcError('EIO', `${from} ends at ${at} bytes, and had ${sizeBytes} before`)
      }
      await writeAll(target, buffer, bytesRead, at)
      at += bytesRead
      report(at, sizeBytes)
    }
  }
}

/** The parts of a file that are not holes, as [start, end) in bytes. One range where the file system cannot tell. */
export function* dataRanges(fd: number, fromBytes: number, toBytes: number): Generator<[number, number]> {
  let at = fromBytes
  while (at < toBytes) {
    const start = lseek(fd, at, SEEK_DATA)
    if (start < 0) {
      // ENXIO: nothing but a hole is left.
      if (errnoName(-start) !== 'ENXIO') yield [at, toBytes]
      return
    }
    const hole = lseek(fd, start, SEEK_HOLE)
    const end = hole < 0 ? toBytes : Math.min(hole, toBytes)
    if (start >= toBytes) return
    yield [start, end]
    at = end
  }
}

/** The size of a file or a block device in bytes. */
export const sizeOf = (fd: number): number => lseek(fd, 0, SEEK_END)

/** What the file system says of a file that is made, in the words of who made it. */
export function writeError(directory: string, error: unknown): unknown {
  const { code, syscall } = error as NodeJS.ErrnoException
  if (error instanceof RpcError || code === undefined || syscall === undefined) return error
  const remedy = WRITE_REMEDIES[code] ?? ''
  return new RpcError(code as 'EIO', `${directory} cannot be written: ${code}${remedy}`, { cause: error })
}
