/** New volumes that hold nothing yet. */
import { wholeBlocks } from '../../core/parse-size.ts'
import { fullName } from '../found.ts'
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
  const holds = request.backing === undefined ? [] : namesOf(volumes, request.backing.path)
  claims.refuseName(pool, name)
  if (request.preallocation !== 'off') {
    const job = { kind: 'volume_create', name, takes: [name], holds, total }
    return startJob(volumes, pool, job, progress => create(request, progress))
  }
  const letGo = claims.take(pool, [], holds, `is going to be beneath ${name}`)
  const making = pool.change(async () => {
    claims.refuseName(pool, name)
    const free = claims.take(pool, [name], [], 'is being made')
    await create(request, QUIET).finally(free)
  })
  await making.finally(letGo)
  return {}
}

/** The volumes that are a file or device. */
function namesOf({ pools }: Volumes, path: string): string[] {
  return pools.list().flatMap(pool => {
    const volumes = pool.contents?.volumes.filter(volume => volume.path === path) ?? []
    return volumes.map(volume => fullName({ pool, volume }))
  })
}
