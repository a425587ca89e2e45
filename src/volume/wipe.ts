/** Overwrites what a volume holds, so that nobody who gets its blocks later can read it. */
import { randomFillSync } from 'node:crypto'
import { type FileHandle, open } from 'node:fs/promises'
import { errnoName, RpcError } from '../core/errors.ts'
import { fallocate } from '../sys/libc.ts'
import { dataRanges, sizeOf, writeError } from './formats/raw.ts'
import type { Progress, VolumeFacts, WipeAlgorithm } from './pool.ts'

const STEP = 4 << 20
/** What is given back in one call. */
const TRIM_STEP = 1 << 30
const PUNCH_HOLE_KEEP_SIZE = 0x03

/** Wipes a file or a block device in place, from `fromBytes` on. Its size stays, and the holes of a file, which hold nothing. */
export async function wipeFile(
  path: string,
  algorithm: WipeAlgorithm,
  progress: Progress,
  fromBytes = 0,
): Promise<void> {
  const file = await open(path, 'r+')
  try {
    const size = sizeOf(file.fd)
    const range = { from: fromBytes, size }
    if (algorithm === 'trim') await trim(file, path, range, progress)
    else await overwrite(file, algorithm, range, progress)
    await file.sync()
  } catch (error) {
    throw writeError(path, error)
  } finally {
    await file.close()
  }
}

/** All of a volume that is a block device. */
export const wipeDevice = (
  { path }: VolumeFacts,
  algorithm: WipeAlgorithm,
  progress: Progress,
): Promise<void> => wipeFile(path, algorithm, progress)

interface Range {
  readonly from: number
  readonly size: number
}

async function overwrite(
  file: FileHandle,
  algorithm: 'zero' | 'random',
  { from, size }: Range,
  { report, signal }: Progress,
): Promise<void> {
  const buffer = Buffer.alloc(Math.min(STEP, size))
  for (const [start, end] of dataRanges(file.fd, from, size)) {
    for (let at = start; at < end; ) {
      signal.throwIfAborted()
      if (algorithm === 'random') randomFillSync(buffer)
      const { bytesWritten } = await file.write(buffer, 0, Math.min(STEP, end - at), at)
      at += bytesWritten
      report(at, size)
    }
  }
}

async function trim(
  file: FileHandle,
  path: string,
  { from, size }: Range,
  { report, signal }: Progress,
): Promise<void> {
  for (let at = from; at < size; at += TRIM_STEP) {
    signal.throwIfAborted()
    const result = fallocate(file.fd, PUNCH_HOLE_KEEP_SIZE, at, Math.min(TRIM_STEP, size - at))
    if (result < 0) {
      throw new RpcError(
        'ENOTSUP',
        `${path} cannot be wiped with trim: its storage has no discard (${errnoName(-result)}); use zero`,
      )
    }
    report(Math.min(at + TRIM_STEP, size), size)
    await new Promise(setImmediate)
  }
}
