/** What work that was interrupted has left under a hidden name. */
import { setTimeout as delay } from 'node:timers/promises'
import type { RpcError } from '../core/errors.ts'
import { logger } from '../core/log.ts'
import { QUIET, type VolumeFacts, type VolumeOperations } from './pool.ts'
import type { Pool } from './storage-pool.ts'
import { isPartial } from './volume-name.ts'

const log = logger('volume')

/** Ceph takes a client that was killed for the image's user until its watch runs out, after half a minute. */
const ATTEMPTS = 90
const RETRY_MS = 1000

/** Does something again as long as it is EBUSY, for a while. Throws what it throws otherwise. */
export async function whileBusy(work: () => Promise<void>, signal: AbortSignal): Promise<void> {
  for (let left = ATTEMPTS; ; left--) {
    try {
      return await work()
    } catch (error) {
      if ((error as RpcError).code !== 'EBUSY' || left <= 1) throw error
      await delay(RETRY_MS, undefined, { signal })
    }
  }
}

/** Deletes it, if it is there. Throws what the backend throws. */
export async function deleteLeftover(
  operations: VolumeOperations,
  volume: VolumeFacts,
  signal: AbortSignal,
): Promise<void> {
  try {
    await whileBusy(async () => operations.delete?.(volume, { ...QUIET, signal }), signal)
  } catch (error) {
    if ((error as RpcError).code !== 'ENOENT') throw error
  }
}

/** Removes what this daemon was making when it was interrupted; work that goes on begins it again. */
export async function removeLeftovers({ name, backend }: Pool): Promise<void> {
  if (backend.removeLeftovers !== undefined) return backend.removeLeftovers()
  if (backend.volumes.canHide !== true) return
  for (const volume of (await backend.refresh()).volumes) {
    if (!isPartial(volume.name)) continue
    try {
      await backend.volumes.delete?.(volume, QUIET)
      log.notice(`pool ${name}: ${volume.name} is removed: it was being made when that was interrupted`)
    } catch (error) {
      log.warning(`pool ${name} keeps a volume that was never whole: ${(error as Error).message}`)
    }
  }
}
