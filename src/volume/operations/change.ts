/** Short changes of volumes, which are done when they are answered: deleting, resizing, renaming. */

import { RpcError } from '../../core/errors.ts'
import { formatSize } from '../../core/format-size.ts'
import { logger } from '../../core/log.ts'
import { wholeBlocks } from '../../core/parse-size.ts'
import { type Found, fullName, HALF_FILLED, sameIn } from '../found.ts'
import type { VolumeFacts } from '../pool.ts'
import { refuseInUse, refuseLink, refuseWithDependents, type VolumeUse } from '../use.ts'
import type { Volumes } from '../volumes.ts'
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

export async function deleteVolume(
  volumes: Volumes,
  found: Found,
  options: { readonly withSnapshots: boolean },
): Promise<void> {
  const { snapshots } = found.pool.backend.volumes
  const remove = operationOf(found.pool, 'delete')
  await changeVolume(volumes, found, 'deleted', [], async (use, volume) => {
    const others = use.others.filter(each => each !== HALF_FILLED)
    refuseInUse(volume, 'deleted', { ...use, others }, fullName(found))
    refuseWithDependents(volume, 'deleted', use)
    if (!options.withSnapshots) refuseWithSnapshots(volume, (await snapshots?.list(volume)) ?? [])
    await remove(volume)
  })
  log.notice(`volume ${fullName(found)} is deleted`)
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
): Promise<void> {
  const { pool } = found
  const capacityBytes = wholeBlocks(askedBytes)
  const resize = operationOf(pool, 'resize')
  await changeVolume(volumes, found, 'resized', [], async (use, volume) => {
    if (!options.followLink) await refuseLink(volume, 'resized', FOLLOW_LINK)
    const { capacityBytes: before = 0 } = await volumes.describe({ pool, volume })
    refuseWithDependents(volume, 'resized', use)
    if (capacityBytes < before) {
      if (!options.shrink) {
        throw new RpcError(
          'EINVAL',
          `volume ${volume.name} has ${formatSize(before)} and would shrink to ${formatSize(capacityBytes)}, ` +
            'which cuts off what lies beyond: --shrink does that',
        )
      }
      refuseInUse(volume, 'made smaller', use, fullName(found))
    }
    refusePrograms(volume, 'resized', use, found)
    await resize(volume, capacityBytes, { ...options, openBy: use.bdevs })
  })
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
