/** Copies of volumes within their pool. */
import { type Again, type Found, fullName, pinned } from '../found.ts'
import { volumeIn } from '../storage-pool.ts'
import { refuseInUse } from '../use.ts'
import type { Volumes } from '../volumes.ts'
import { type JobStarted, startDone, startJob } from './job.ts'
import { operationOf } from './supported.ts'

/** A copy that is as the volume was at one moment; long unless the storage shares blocks. A job, always. */
export async function cloneVolume(
  volumes: Volumes,
  found: Found,
  name: string,
  again: Omit<Again, 'identity'>,
): Promise<JobStarted> {
  const { pool, volume } = found
  const clone = operationOf(pool, 'clone')
  const job = { kind: 'volume_clone', name, takes: [name], resume: pinned(found, again.call) }
  if (again.isResumed && volumeIn(pool, name) !== undefined) return startDone(volumes, pool, job)
  volumes.claims.refuseName(pool, name)
  return startJob(
    volumes,
    pool,
    {
      ...job,
      holds: [fullName(found)],
      total: volume.capacityBytes,
      check: async () => refuseInUse(volume, 'cloned', await volumes.useOf(found), fullName(found)),
    },
    progress => clone(volume, name, progress),
  )
}
