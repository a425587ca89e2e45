/**
 * Changes of volumes that are mostly short: deleting, resizing, renaming. They are done when they are answered, but those that take
 * long after all, which are jobs.
 */

import { RpcError } from '../../core/errors.ts'
import { formatSize } from '../../core/format-size.ts'
import { logger } from '../../core/log.ts'
import { wholeBlocks } from '../../core/parse-size.ts'
import { type Again, asItIs, type Found, fullName, HALF_FILLED, pinned, sameIn } from '../found.ts'
import { whileBusy } from '../leftovers.ts'
import { type Progress, QUIET, type VolumeFacts } from '../pool.ts'
import { refuseInUse, refuseLink, refuseWithDependents, type VolumeUse } from '../use.ts'
import type { Volumes } from '../volumes.ts'
import { type JobStarted, startJob, unlessSoon, type VolumeJob } from './job.ts'
import { operationOf } from './supported.ts'

const log = logger('volume')

export const FOLLOW_LINK = '--follow-link does it to that'

/** A change of a volume, and of names that it will have, at which nobody else can begin anything. */
export async function changeVolume(
  volumes: Volumes,
  { pool, volume }: Found,
  done: string,
  names: readonly string[],
  work: (use: VolumeUse, volume: VolumeFacts) => Promise<void>,
): Promise<void> {
  const { claims } = volumes
  await pool.change(async () => {
    // Whoever had the turn before may have deleted or renamed it, and so may another program.
    const now = sameIn(pool, volume)
    for (const name of names) claims.refuseName(pool, name)
    const free = claims.take(pool, [volume.name, ...names], [], `is being ${done}`)
    try {
      await work(await volumes.useInTurn(now), now.volume)
    } finally {
      free()
    }
  })
}

/** What may take long, where the pool has such volumes. */
interface LongChange extends Pick<VolumeJob, 'kind' | 'resume' | 'isCancellable'> {
  /** As `changeVolume` has it. */
  readonly done: string
  /** Refuses by throwing. */
  readonly check: (use: VolumeUse, volume: VolumeFacts) => Promise<void>
  readonly work: (use: VolumeUse, volume: VolumeFacts, progress: Progress) => Promise<void>
}

/** In the pool's turn; or as a job beside it, of which that is answered. */
async function changeAtLength(
  volumes: Volumes,
  given: Found,
  { done, check, work, ...job }: LongChange,
): Promise<JobStarted | undefined> {
  const { pool } = given
  if (pool.backend.volumes.areChangesLong !== true) {
    await changeVolume(volumes, given, done, [], async (use, volume) => {
      await check(use, volume)
      await work(use, volume, QUIET)
    })
    return undefined
  }
  const found = await asItIs(given)
  const { volume } = found
  const { name } = volume
  let use: VolumeUse
  const look = async (): Promise<void> => {
    use = await volumes.useAnywhere(found)
    await pool.ask(() => check(use, volume))
  }
  return startJob(volumes, pool, { ...job, name, takes: [name], check: look }, progress =>
    work(use, volume, progress),
  )
}

export interface DeleteVolume extends Omit<Again, 'identity'> {
  readonly withSnapshots: boolean
}

/** Half of a volume is nobody's: it goes on after an interruption, and is not waited for then. */
export async function deleteVolume(
  volumes: Volumes,
  found: Found,
  { withSnapshots, call, isResumed }: DeleteVolume,
): Promise<Partial<JobStarted>> {
  const { snapshots } = found.pool.backend.volumes
  const remove = operationOf(found.pool, 'delete')
  const started = await changeAtLength(volumes, found, {
    ...{ kind: 'volume_delete', done: 'deleted', isCancellable: false },
    // Without one it would go on with another that has its name by then.
    ...(found.volume.identity === undefined ? {} : { resume: pinned(found, call) }),
    async check(use, volume) {
      const others = use.others.filter(each => each !== HALF_FILLED)
      refuseInUse(volume, 'deleted', { ...use, others }, fullName(found))
      refuseWithDependents(volume, 'deleted', use)
      if (!withSnapshots) refuseWithSnapshots(volume, (await snapshots?.list(volume)) ?? [])
    },
    async work(_, volume, progress) {
      // Interrupted, this daemon may count for a client itself.
      if (isResumed) await whileBusy(() => remove(volume, progress), progress.signal)
      else await remove(volume, progress)
      log.notice(`volume ${fullName(found)} is deleted`)
    },
  })
  if (started === undefined || isResumed) return { ...started }
  return unlessSoon(volumes, started)
}

function refuseWithSnapshots({ name }: VolumeFacts, snapshots: readonly { readonly name: string }[]): void {
  if (snapshots.length === 0) return
  throw new RpcError(
    'EBUSY',
    `volume ${name} has ${snapshots.length} snapshot${snapshots.length === 1 ? '' : 's'} ` +
      `(${snapshots.map(each => each.name).join(', ')}), which would go with it: --delete-snapshots deletes that, too`,
  )
}

export interface ResizeVolume {
  /** Reserve what it grows by. */
  readonly allocate: boolean
  readonly shrink: boolean
  /** Also what a symbolic link leads to, or a file of several names. */
  readonly followLink: boolean
}

/** Grows it, also while it is open; shrinks it when that is said and nobody has it. */
export async function resizeVolume(
  volumes: Volumes,
  found: Found,
  askedBytes: number,
  options: ResizeVolume,
): Promise<Partial<JobStarted>> {
  const { pool } = found
  const { allocate, shrink } = options
  const capacityBytes = wholeBlocks(askedBytes)
  const resize = operationOf(pool, 'resize')
  const started = await changeAtLength(volumes, found, {
    // What is reserved is given back; what is cut off is gone.
    ...{ kind: 'volume_resize', done: 'resized', isCancellable: allocate },
    async check(use, volume) {
      if (!options.followLink) await refuseLink(volume, 'resized', FOLLOW_LINK)
      const { capacityBytes: before = 0 } = await volumes.describe({ pool, volume })
      refuseWithDependents(volume, 'resized', use)
      if (capacityBytes < before) {
        if (!shrink) {
          throw new RpcError(
            'EINVAL',
            `volume ${volume.name} has ${formatSize(before)} and would shrink to ${formatSize(capacityBytes)}, ` +
              'which cuts off what lies beyond: --shrink does that',
          )
        }
        refuseInUse(volume, 'made smaller', use, fullName(found))
      }
      refusePrograms(volume, 'resized', use, found)
    },
    work: (use, volume, progress) =>
      resize(volume, capacityBytes, { allocate, shrink, openBy: use.bdevs, ...progress }),
  })
  return started === undefined ? {} : unlessSoon(volumes, started)
}

/** Our bdevs hear of the change; other programs do not. */
export function refusePrograms(volume: VolumeFacts, done: string, use: VolumeUse, found: Found): void {
  if (use.programs.length > 0) refuseInUse(volume, done, { ...use, bdev: undefined }, fullName(found))
}

export async function renameVolume(volumes: Volumes, found: Found, name: string): Promise<void> {
  const rename = operationOf(found.pool, 'rename')
  await changeVolume(volumes, found, 'renamed', [name], async (use, volume) => {
    refuseInUse(volume, 'renamed', use, fullName(found))
    refuseWithDependents(volume, 'renamed', use)
    await rename(volume, name)
  })
}
