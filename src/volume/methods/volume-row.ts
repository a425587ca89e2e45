/** What is shown of a volume: as a row of a list, and by itself. */
import { z } from 'zod'
import type { VolumeFacts } from '../pool.ts'
import type { Pool } from '../storage-pool.ts'
import { factsText, sizeOrDash } from './text.ts'

export const volumeRow = z.object({
  name: z.string(),
  pool: z.string(),
  key: z.string(),
  path: z.string(),
  type: z.enum(['file', 'block', 'network']),
  format: z.string(),
  capacity: z
    .int()
    .optional()
    .describe('What a guest sees, in bytes; absent where only opening it would tell'),
  allocation: z.int().optional().describe('What it takes of the pool, in bytes'),
  backing: z.object({ path: z.string(), format: z.string().optional() }).optional(),
  mode: z.string().optional().describe('Octal'),
  owner: z.int().optional(),
  group: z.int().optional(),
})
export type VolumeRow = z.output<typeof volumeRow>

export function volumeRowOf(pool: Pool, volume: VolumeFacts): VolumeRow {
  const { name, key, path, type, format, capacityBytes, allocationBytes, backing, permissions } = volume
  return {
    ...{ name, pool: pool.name, key, path, type, format },
    ...(capacityBytes === undefined ? {} : { capacity: capacityBytes }),
    ...(allocationBytes === undefined ? {} : { allocation: allocationBytes }),
    ...(backing === undefined
      ? {}
      : {
          backing: {
            path: backing.path,
            ...(backing.format === undefined ? {} : { format: backing.format }),
          },
        }),
    ...(permissions?.mode === undefined ? {} : { mode: `0${permissions.mode.toString(8)}` }),
    ...(permissions?.owner === undefined ? {} : { owner: permissions.owner }),
    ...(permissions?.group === undefined ? {} : { group: permissions.group }),
  }
}

/** As virsh's `vol-list --details`, with the format and, as pools are many, the pool. */
export const volumeColumns = [
  { title: 'Name', value: (row: VolumeRow) => row.name },
  { title: 'Pool', value: (row: VolumeRow) => row.pool },
  { title: 'Path', value: (row: VolumeRow) => row.path },
  { title: 'Type', value: (row: VolumeRow) => row.type },
  { title: 'Format', value: (row: VolumeRow) => row.format },
  { title: 'Capacity', value: (row: VolumeRow) => sizeOrDash(row.capacity) },
  { title: 'Allocation', value: (row: VolumeRow) => sizeOrDash(row.allocation) },
]

export const volumeDetails = volumeRow.extend({
  bdev: z.string().optional().describe('The bdev that has it open'),
  users: z.string().describe('Who has that, or what other programs have the volume open; empty for nobody'),
  dependents: z.array(z.string()).describe('Volumes that have it beneath them'),
  snapshots: z.int(),
})
type VolumeDetails = z.output<typeof volumeDetails>

export function volumeText({ backing, bdev, users, ...row }: VolumeDetails): string {
  return factsText([
    ['Name', row.name],
    ['Pool', row.pool],
    ['Path', row.path],
    ['Type', row.type],
    ['Format', row.format],
    ['Capacity', sizeOrDash(row.capacity)],
    ['Allocation', sizeOrDash(row.allocation)],
    ...(backing === undefined
      ? []
      : [['Backing', `${backing.path} (${backing.format ?? 'probed'})`] as const]),
    ['Snapshots', String(row.snapshots)],
    ['Bdev', bdev ?? '-'],
    ['Used by', users === '' ? '-' : users],
  ])
}
