/** What is shown of a pool: as a row of a list, and by itself. */
import { z } from 'zod'
import type { Pool } from '../storage-pool.ts'
import { partOf, percentOf } from '../watermarks.ts'
import { factsText, sizeOrDash } from './text.ts'

export const poolRow = z.object({
  name: z.string(),
  uuid: z.string(),
  type: z.string(),
  state: z
    .enum(['running', 'inaccessible', 'inactive'])
    .describe('inaccessible: it runs, and its storage does not answer'),
  trouble: z.string().optional().describe('Why it is inaccessible'),
  autostart: z.boolean(),
  persistent: z.boolean(),
  capacity: z.int().optional().describe('In bytes; absent while the pool is inactive, as what follows'),
  allocation: z.int().optional(),
  available: z.int().optional(),
  used_percent: z.int().optional(),
  used_of: z
    .string()
    .optional()
    .describe('What is so full, when it is a part that runs out by itself: a thin pool of a volume group'),
  /** Percents at which it is told. */
  watermarks: z.array(z.int()),
  watermark: z.int().describe('The highest of them that is reached, 0 for none'),
  volumes: z.int().optional(),
  target: z.string().optional(),
})
type PoolRow = z.output<typeof poolRow>

export function poolRowOf(pool: Pool): PoolRow {
  const { name, uuid, document, isActive, isAutostart, isPersistent, watermarks, contents, reach } = pool
  const trouble = isActive ? reach.trouble?.message : undefined
  const running = trouble === undefined ? 'running' : 'inaccessible'
  const part = contents === undefined ? undefined : partOf(contents)
  return {
    ...{ name, uuid, type: document.type, state: isActive ? running : 'inactive' },
    ...(trouble === undefined ? {} : { trouble }),
    ...{ autostart: isAutostart, persistent: isPersistent },
    ...{ watermarks: [...watermarks.levels], watermark: watermarks.reached },
    ...(contents === undefined
      ? {}
      : {
          capacity: contents.capacityBytes,
          allocation: contents.allocationBytes,
          available: contents.availableBytes,
          used_percent: percentOf(contents),
          ...(part === undefined ? {} : { used_of: part }),
          volumes: contents.volumes.length,
        }),
    ...(document.target === undefined ? {} : { target: document.target.path }),
  }
}

const yesNo = (value: boolean): string => (value ? 'yes' : 'no')

/** As virsh's `pool-list --details`, and how full it is. */
export const poolColumns = [
  { title: 'Name', value: (row: PoolRow) => row.name },
  { title: 'State', value: (row: PoolRow) => row.state },
  { title: 'Autostart', value: (row: PoolRow) => yesNo(row.autostart) },
  { title: 'Persistent', value: (row: PoolRow) => yesNo(row.persistent) },
  { title: 'Capacity', value: (row: PoolRow) => sizeOrDash(row.capacity) },
  { title: 'Allocation', value: (row: PoolRow) => sizeOrDash(row.allocation) },
  { title: 'Available', value: (row: PoolRow) => sizeOrDash(row.available) },
  { title: 'Used', value: usedCell },
]

function usedCell({ used_percent: used, used_of: part, watermark }: PoolRow): string {
  if (used === undefined) return '-'
  const share = part === undefined ? `${used} %` : `${used} % of ${part}`
  return watermark === 0 ? share : `${share}, over ${watermark} %`
}

/** As virsh's `pool-info`. */
export function poolText(row: PoolRow): string {
  const lines: [string, string][] = [
    ['Name', row.name],
    ['UUID', row.uuid],
    ['Type', row.type],
    ['State', row.state],
    ['Persistent', yesNo(row.persistent)],
    ['Autostart', yesNo(row.autostart)],
  ]
  if (row.trouble !== undefined) lines.push(['Trouble', row.trouble])
  if (row.capacity !== undefined) {
    lines.push(
      ['Capacity', sizeOrDash(row.capacity)],
      ['Allocation', sizeOrDash(row.allocation)],
      ['Available', sizeOrDash(row.available)],
      ['Used', `${usedCell(row)} (watermarks ${row.watermarks.map(level => `${level} %`).join(', ')})`],
      ['Volumes', String(row.volumes)],
    )
  }
  if (row.target !== undefined) lines.push(['Target', row.target])
  return factsText(lines)
}
