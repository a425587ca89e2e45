/** What the methods of pools and volumes have in common. */
import { z } from 'zod'
import { RpcError } from '../../core/errors.ts'
import { parseSize } from '../../core/parse-size.ts'
import { uint32 } from '../../rpc/params.ts'
import type { BuildMode } from '../pool.ts'
import type { StoragePools } from '../pools.ts'
import type { Volumes } from '../volumes.ts'

export interface VolumeContext {
  readonly pools: StoragePools
  readonly volumes: Volumes
}

export const poolName = z.string().min(1).describe('The pool, by name or UUID')
export const volumeName = z
  .string()
  .min(1)
  .describe('The volume: its name, POOL/NAME where several pools have one of that name, its key or its path')
export const inPool = z
  .string()
  .min(1)
  .optional()
  .describe('The pool it is in, if its name alone is not enough')

/** Bytes as a number, or as people write them. */
export const size = z.union([z.int().min(1), z.string()])

export const bytesOf = (given: z.output<typeof size>, what: string): number =>
  typeof given === 'number' ? given : parseSize(given, what)

/** Octal digits, as `chmod` takes them. */
export const mode = z
  .string()
  .regex(/^0?[0-7]{3}$/, 'three octal digits, such as 0644')
  .optional()
  .describe('Permission bits in octal, such as 0644')
export const owner = uint32.optional().describe('The number of the user it belongs to')
export const group = uint32.optional().describe('The number of the group')

export interface PermissionParams {
  readonly mode?: string | undefined
  readonly owner?: number | undefined
  readonly group?: number | undefined
}

export function permissionsOf(
  params: PermissionParams,
): { mode?: number; owner?: number; group?: number } | undefined {
  const { mode: digits, owner: user, group: users } = params
  if (digits === undefined && user === undefined && users === undefined) return undefined
  return {
    ...(digits === undefined ? {} : { mode: Number.parseInt(digits, 8) }),
    ...(user === undefined ? {} : { owner: user }),
    ...(users === undefined ? {} : { group: users }),
  }
}

/** libvirt's two switches. */
export const overwriteParams = {
  overwrite: z.boolean().default(false).describe('Format the storage, whatever is on it'),
  no_overwrite: z.boolean().default(false).describe('Format the storage unless something is on it'),
} as const

export function buildMode(params: { overwrite: boolean; no_overwrite: boolean }): BuildMode {
  if (params.overwrite && params.no_overwrite) {
    throw new RpcError('EINVAL', 'both --overwrite and --no-overwrite are given: choose one')
  }
  if (params.overwrite) return 'overwrite'
  return params.no_overwrite ? 'no-overwrite' : 'default'
}
