/** Snapshots of volumes. */
import { RpcError, thereAre } from '../../core/errors.ts'
import { logger } from '../../core/log.ts'
import { type Again, asItIs, type Found, fullName, pinned } from '../found.ts'
import { whileBusy } from '../leftovers.ts'
import type { VolumeSnapshot } from '../pool.ts'
import { refuseInUse, refuseLink, refuseWithDependents } from '../use.ts'
import { checkFileName } from '../volume-name.ts'
import type { Volumes } from '../volumes.ts'
import { changeVolume, refusePrograms } from './change.ts'
import { type JobStarted, startJob } from './job.ts'
import { snapshotOperationsOf } from './supported.ts'

const log = logger('volume')

export const listSnapshots = ({ pool, volume }: Found): Promise<VolumeSnapshot[]> =>
  pool.ask(() => snapshotOperationsOf(pool).list(volume))

const DONE = { create: 'snapshotted', delete: 'relieved of a snapshot' } as const

export async function changeSnapshots(
  volumes: Volumes,
  found: Found,
  action: 'create' | 'delete',
  snapshot: string,
): Promise<void> {
  const operations = snapshotOperationsOf(found.pool)
  checkFileName(snapshot, 'a snapshot')
  const done = DONE[action]
  await changeVolume(volumes, found, done, [], async (use, volume) => {
    if (operations.whileOpen(volume).includes(action)) refusePrograms(volume, done, use, found)
    else refuseInUse(volume, done, use, fullName(found))
    await operations[action](volume, snapshot, use.bdevs)
  })
  log.notice(`volume ${fullName(found)}: ${action} of snapshot ${snapshot}`)
}

/** Half of a volume as it was and half as it is would be neither: a job, which goes on after an interruption. */
export async function revertToSnapshot(
  volumes: Volumes,
  given: Found,
  snapshot: string,
  { call, isResumed }: Omit<Again, 'identity'>,
): Promise<JobStarted> {
  const { pool } = given
  const operations = snapshotOperationsOf(pool)
  checkFileName(snapshot, 'a snapshot')
  let found = given
  const refuseUsed = (use: Awaited<ReturnType<Volumes['useOf']>>): void =>
    refuseInUse(found.volume, 'reverted', use, fullName(found))
  const check = async (): Promise<void> => {
    found = await asItIs(given)
    const { volume } = found
    const remedy = 'Revert what it leads to, in a pool of its own'
    await pool.ask(() => refuseLink(volume, 'reverted', remedy))
    // Interrupted, this daemon may count for a client itself.
    const use = await (isResumed ? volumes.useOf(found) : volumes.useAnywhere(found))
    refuseUsed(use)
    refuseWithDependents(volume, 'reverted', use)
    if (!isResumed) await requireSnapshot(found, snapshot)
  }
  const { name } = given.volume
  return startJob(
    volumes,
    pool,
    {
      ...{ kind: 'volume_snapshot_revert', name, takes: [name], resume: pinned(given, call) },
      ...{ isCancellable: false, check },
    },
    async progress => {
      const look = async (): Promise<void> => refuseUsed(await volumes.useAnywhere(found))
      if (isResumed) await whileBusy(look, progress.signal)
      await operations.revert(found.volume, snapshot, { ...progress, isResumed })
    },
  )
}

async function requireSnapshot(found: Found, snapshot: string): Promise<void> {
  const names = (await listSnapshots(found)).map(({ name }) => name)
  if (names.includes(snapshot)) return
  throw new RpcError('ENOENT', `volume ${found.volume.name} has no snapshot ${snapshot}: ${thereAre(names)}`)
}
