/** What work that was interrupted has left under a hidden name. */
import { setTimeout as delay } from 'node:timers/promises'
import type { RpcError } from '../core/errors.ts'
import type { VolumeFacts, VolumeOperations } from './pool.ts'

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
    await whileBusy(async () => operations.delete?.(volume), signal)
  } catch (error) {
    if ((error as RpcError).code !== 'ENOENT') throw error
  }
}
