/** A disk's content, wherever it is: lent for as long as it is read. */
import { setTimeout as delay } from 'node:timers/promises'
import { RpcError } from '../../core/errors.ts'
import { logger } from '../../core/log.ts'
import { copyDisk, type Sink, type Source } from './copy.ts'
import { FileSource } from './file.ts'
import { NbdSource } from './nbd-source.ts'
import type { Plan } from './plan.ts'
import type { ScratchBdevs } from './scratch-bdevs.ts'

const log = logger('volume')

/** Every other second: a machine that starts has its servers by then. */
const RESUME_ATTEMPTS = 30
const RETRY_MS = 2000

/** Lends the content of a source. */
export async function withContent(
  { source, isResumed }: Plan,
  scratch: ScratchBdevs,
  signal: AbortSignal,
  work: (from: Source) => Promise<void>,
): Promise<void> {
  if (source.kind === 'http') throw new RpcError('ENOTSUP', `${source.text} is not read in pieces`)
  if (source.kind === 'bdev') return scratch.lend(source.opening, 'read', work)
  if (source.kind === 'file' && source.opening !== undefined) {
    return scratch.lend(source.opening, 'read', work)
  }
  const from =
    source.kind === 'nbd'
      ? await openNbd(source.text, isResumed ? RESUME_ATTEMPTS : 1, signal)
      : await FileSource.open(source.path)
  try {
    await work(from)
  } finally {
    await from.close()
  }
}

async function openNbd(uri: string, attempts: number, signal: AbortSignal): Promise<NbdSource> {
  for (let left = attempts; ; left--) {
    try {
      return await NbdSource.open(uri)
    } catch (error) {
      if (left <= 1 || (error as RpcError).code !== 'ECONNREFUSED') throw error
      log.notice(`${(error as Error).message}: it is tried again`)
      await delay(RETRY_MS, undefined, { signal })
    }
  }
}

export async function copyAndClose(
  from: Source,
  sink: Sink,
  options: Parameters<typeof copyDisk>[2],
): Promise<void> {
  try {
    await copyDisk(from, sink, options)
  } finally {
    await sink.close()
  }
}
