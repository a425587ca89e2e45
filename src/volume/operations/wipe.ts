/** Overwriting all that a volume holds. */
import type { MethodCall } from '../../rpc/config.ts'
import { asItIs, type Found, fullName, pinned } from '../found.ts'
import type { WipeAlgorithm } from '../pool.ts'
import { refuseInUse, refuseLink, refuseWithDependents } from '../use.ts'
import type { Volumes } from '../volumes.ts'
import { FOLLOW_LINK } from './change.ts'
import { type JobStarted, startJob } from './job.ts'
import { operationOf } from './supported.ts'

export interface WipeVolume {
  readonly algorithm: WipeAlgorithm
  /** Also what a symbolic link leads to, or a file of several names. */
  readonly followLink: boolean
}

/** `call` goes on with it. */
export async function wipeVolume(
  volumes: Volumes,
  given: Found,
  { algorithm, followLink }: WipeVolume,
  call: MethodCall,
): Promise<JobStarted> {
  const { pool } = given
  const wipe = operationOf(pool, 'wipe')
  let { volume } = given
  const check = async (): Promise<void> => {
    const found = await asItIs(given)
    volume = found.volume
    if (!followLink) await pool.ask(() => refuseLink(volume, 'wiped', FOLLOW_LINK))
    const use = await volumes.useOf(found)
    refuseInUse(volume, 'wiped', use, fullName(found))
    refuseWithDependents(volume, 'wiped', use)
  }
  const { name, capacityBytes: total } = volume
  const job = { kind: 'volume_wipe', name, takes: [name], total, resume: pinned(given, call), check }
  return startJob(volumes, pool, job, progress => wipe(volume, algorithm, progress))
}
