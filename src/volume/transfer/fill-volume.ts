/** Fills a new volume that is no file. */
import { RpcError } from '../../core/errors.ts'
import { DAEMON_STOPS } from '../../rpc/jobs.ts'
import { deleteLeftover } from '../leftovers.ts'
import { operationOf } from '../operations/supported.ts'
import { type Progress, QUIET, type VolumeFacts } from '../pool.ts'
import type { Pool } from '../storage-pool.ts'
import { partialName } from '../volume-name.ts'
import { copyAndClose, withContent } from './content.ts'
import { copyDisk, type Source } from './copy.ts'
import { FileSink } from './file.ts'
import { isMadeBy, type Plan, refuseChanged } from './plan.ts'
import type { ScratchBdevs } from './scratch-bdevs.ts'

/**
 * It is made first, under a hidden name where it can have one, and goes again when it cannot be filled. One that somebody else has
 * made meanwhile is neither filled nor taken away.
 */
export async function fillVolume(
  pool: Pool,
  plan: Plan,
  scratch: ScratchBdevs,
  progress: Progress,
): Promise<void> {
  const { volumes: operations } = pool.backend
  const name = operations.canHide ? partialName(plan.name) : plan.name
  const find = async (): Promise<VolumeFacts | undefined> =>
    (await pool.backend.refresh()).volumes.find(each => each.name === name)
  const isOurs = (volume: VolumeFacts): boolean => operations.canHide === true || isMadeBy(plan, volume)
  let isMade = false
  try {
    await withContent(plan, scratch, progress.signal, async from => {
      let volume = await find()
      if (volume !== undefined && !isOurs(volume)) throw taken(pool, name)
      if (volume !== undefined && operations.canHide) {
        await deleteLeftover(operations, volume, progress.signal)
        volume = undefined
      }
      if (volume === undefined) {
        await makeVolume(pool, { ...plan, name }, from.sizeBytes, progress)
        volume = await find()
      }
      isMade = true
      if (volume === undefined) throw new RpcError('ENOENT', `volume ${name} of pool ${pool.name} has gone`)
      await copyInto(pool, volume, from, scratch, progress)
    })
    await refuseChanged(plan.source)
    if (name !== plan.name) await operations.rename!((await find())!, plan.name)
    else await operations.markWhole?.((await find())!)
  } catch (error) {
    const left = progress.signal.reason === DAEMON_STOPS ? undefined : await find()
    if (left !== undefined && (isMade || isOurs(left))) await operations.delete?.(left, QUIET)
    throw error
  }
}

function makeVolume(pool: Pool, plan: Plan, sizeBytes: number, progress: Progress): Promise<void> {
  const { name, permissions, identity } = plan
  return operationOf(pool, 'create')(
    {
      ...{ name, format: 'raw', capacityBytes: sizeBytes, preallocation: 'off', permissions, identity },
      features: {},
    },
    progress,
  )
}

async function copyInto(
  pool: Pool,
  volume: VolumeFacts,
  from: Source,
  scratch: ScratchBdevs,
  progress: Progress,
): Promise<void> {
  const options = { ...progress, fromBytes: 0 }
  if (volume.type === 'block') return copyAndClose(from, await FileSink.device(volume.path), options)
  const opening = pool.backend.opening(volume, { readOnly: false })
  return scratch.lend(opening, 'zeroed', sink => copyDisk(from, sink, options))
}

function taken(pool: Pool, name: string): RpcError {
  return new RpcError('EEXIST', `pool ${pool.name} has a volume ${name} already: choose another name`)
}
