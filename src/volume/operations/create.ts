/** New volumes that hold nothing yet. */
import { wholeBlocks } from '../../core/parse-size.ts'
import { type CreateVolume, QUIET } from '../pool.ts'
import type { Volumes } from '../volumes.ts'
import { type JobStarted, startJob } from './job.ts'
import { operationOf } from './supported.ts'

/** Preallocating takes long: then it is a job, whose number is answered. */
export async function createVolume(
  volumes: Volumes,
  poolName: string,
  asked: CreateVolume,
): Promise<Partial<JobStarted>> {
  const { claims, pools } = volumes
  const { name } = asked
  const total = wholeBlocks(asked.capacityBytes)
  const request = { ...asked, capacityBytes: total }
  const pool = pools.active(poolName)
  const create = operationOf(pool, 'create')
  claims.refuseName(pool, name)
  if (request.preallocation !== 'off') {
    return startJob(volumes, pool, { kind: 'volume_create', name, takes: [name], total }, progress =>
      create(request, progress),
    )
  }
  await pool.change(async () => {
    claims.refuseName(pool, name)
    const free = claims.take(pool, [name], [], 'is being made')
    await create(request, QUIET).finally(free)
  })
  return {}
}
