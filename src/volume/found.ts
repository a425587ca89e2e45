/** A volume that was found: how it is called, whether it is still the one, and how work on it goes on. */
import { RpcError, thereAre } from '../core/errors.ts'
import type { MethodCall } from '../rpc/config.ts'
import type { VolumeFacts } from './pool.ts'
import { type Pool, volumeIn } from './storage-pool.ts'

export const HALF_FILLED =
  'an import that was interrupted and has not gone on yet (qpair config kept; where that has none, delete the volume)'

export interface Found {
  readonly pool: Pool
  readonly volume: VolumeFacts
}

/** How work goes on after an interruption. */
export interface Again {
  /** The call that goes on with it. */
  readonly call: MethodCall
  /** It is that call. */
  readonly isResumed: boolean
  /** Of the volume when it was begun; undefined for what is begun now. */
  readonly identity?: string | undefined
}

export const fullName = ({ pool, volume }: Found): string => `${pool.name}/${volume.name}`

/** What a pool has by that name, as of the last look, if that is the volume that was meant. */
export function sameIn(pool: Pool, volume: VolumeFacts): Found {
  const now = volumeIn(pool, volume.name)
  if (now === undefined) throw missing(volume.name, pool)
  if (now.key !== volume.key || now.identity !== volume.identity) throw anotherOne({ pool, volume })
  return { pool, volume: now }
}

/** The volume as it is at this moment. Throws as `findAgain` when it is gone, or is another one by now. */
export async function asItIs({ pool, volume }: Found): Promise<Found> {
  await pool.lookAgain()
  return sameIn(pool, volume)
}

/** The call that goes on with work on this volume, and on no other that may have its name by then. */
export function pinned({ pool, volume }: Found, { method, params }: MethodCall): MethodCall {
  const { name, identity } = volume
  const which = { volume: name, pool: pool.name, ...(identity === undefined ? {} : { identity }) }
  return { method, params: { ...params, ...which } }
}

export function anotherOne(found: Found): RpcError {
  return new RpcError(
    'EINVAL',
    `volume ${fullName(found)} is not the one that it was: another has its name now. If that is the one that is meant, ` +
      'say it again',
  )
}

export function missing(name: string, pool: Pool): RpcError {
  const names = pool.contents?.volumes.map(volume => volume.name) ?? []
  return new RpcError('ENOENT', `pool ${pool.name} has no volume ${name}: ${thereAre(names)}`)
}
