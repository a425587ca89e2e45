/** What the methods of pools and volumes have in common. */
import { z } from 'zod'
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

export const followLink = z
  .boolean()
  .default(false)
  .describe('Do it also when the volume is a symbolic link, to what it leads to, or a file of several names')

/** Of work that goes on after the daemon was killed. */
export const resume = z
  .boolean()
  .default(false)
  .describe('It was interrupted, and what it left may be there. The daemon says so itself when it comes back')
  .meta({ internal: true })

/** Beside it. */
export const identity = z
  .string()
  .optional()
  .describe('Which volume it was: another that has its name by then is left alone. The daemon says so itself')
  .meta({ internal: true })

/** Beside both, of work that fills a file. */
export const mount = z
  .string()
  .optional()
  .describe(
    'Where the file system is mounted that it was begun on: it waits for that. The daemon says so itself',
  )
  .meta({ internal: true })

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

/** libvirt's two switches, --overwrite and --no-overwrite; without either, types differ. */
export const overwrite = z
  .boolean()
  .optional()
  .describe('Format the storage: true whatever is on it, false unless something is on it')

export function buildMode(given: boolean | undefined): BuildMode {
  if (given === undefined) return 'default'
  return given ? 'overwrite' : 'no-overwrite'
}

/** For what may be built before it is started. */
export const buildParams = {
  build: z.boolean().default(false).describe('Build it first'),
  overwrite,
} as const

export function buildBefore(params: {
  readonly build: boolean
  readonly overwrite?: boolean | undefined
}): BuildMode | undefined {
  return params.build || params.overwrite !== undefined ? buildMode(params.overwrite) : undefined
}
