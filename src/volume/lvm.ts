/** LVM2's programs, and what they report (lvmreport(7)): in JSON, bytes and without suffixes. */
import { RpcError } from '../core/errors.ts'
import { runTool, type ToolOptions } from './tools.ts'

const REPORT = ['--reportformat', 'json', '--units', 'b', '--nosuffix']

/** Of `lvs`. */
const REPORT_FIELDS =
  'lv_name,lv_path,lv_uuid,lv_size,origin,origin_size,segtype,data_percent,metadata_percent,pool_lv,lv_active,lv_tags,lv_time,lv_attr,lv_device_open'

/** A logical volume of ours that is no volume of the pool. */
export const SNAPSHOT_TAG = 'qpair_snapshot'

export interface LogicalVolume {
  readonly name: string
  readonly path: string
  readonly uuid: string
  readonly sizeBytes: number
  /** Less than its size where it is thin, or a snapshot that holds only what differs. */
  readonly usedBytes: number
  /** The volume that it is a snapshot of; empty for others. */
  readonly origin: string
  readonly kind: 'linear' | 'thin' | 'thin-pool'
  /** Of a thin pool, whose metadata can run out before it does. */
  readonly metadataPercent: number
  /** Of a thin volume. */
  readonly pool: string
  readonly isActive: boolean
  /** Somebody has its device open: a mount, a guest, a bdev; of a thin pool that is no news. */
  readonly isOpen: boolean
  /** A snapshot is becoming its content. */
  readonly isMerging: boolean
  /** It has `SNAPSHOT_TAG`. */
  readonly isSnapshot: boolean
  readonly created: Date
}

type Row = Readonly<Record<string, string>>

/** Throws `RpcError` EIO for what is no report. */
function rowsOf(text: string, kind: 'lv' | 'vg'): readonly Row[] {
  try {
    const { report } = JSON.parse(text) as { report: Record<string, Row[]>[] }
    return report.flatMap(each => each[kind] ?? [])
  } catch (cause) {
    throw new RpcError(
      'EIO',
      `LVM reports what is not JSON: ${text.slice(0, 80)}; it has to be 2.02.158 or newer`,
      {
        cause,
      },
    )
  }
}

export function parseLogicalVolumes(text: string): LogicalVolume[] {
  return rowsOf(text, 'lv').map(row => {
    const ownBytes = Number(row['lv_size'])
    // Of a snapshot that is not thin, its size is the room for what differs.
    const sizeBytes = row['origin_size'] ? Number(row['origin_size']) : ownBytes
    const segment = row['segtype'] ?? ''
    // Of a cached volume the percents are those of the cache.
    const percent = /cache/.test(segment) ? '' : (row['data_percent'] ?? '')
    return {
      name: row['lv_name']!,
      path: row['lv_path']!,
      uuid: row['lv_uuid']!,
      sizeBytes,
      usedBytes: percent === '' ? ownBytes : Math.round((ownBytes * Number(percent)) / 100),
      origin: row['origin'] ?? '',
      kind: segment === 'thin-pool' || segment === 'thin' ? segment : 'linear',
      metadataPercent: segment === 'thin-pool' ? Number(row['metadata_percent'] ?? 0) : 0,
      pool: row['pool_lv'] ?? '',
      isActive: row['lv_active'] === 'active',
      isOpen: row['lv_device_open'] === 'open',
      // The first letter (lvs(8)): an origin with a merging snapshot.
      isMerging: row['lv_attr']?.startsWith('O') ?? false,
      isSnapshot: (row['lv_tags'] ?? '').split(',').includes(SNAPSHOT_TAG),
      created: new Date(row['lv_time'] ?? 0),
    }
  })
}

export function parseGroup(text: string): { sizeBytes: number; freeBytes: number } {
  const [row] = rowsOf(text, 'vg')
  return { sizeBytes: Number(row?.['vg_size']), freeBytes: Number(row?.['vg_free']) }
}

/** The programs of LVM2 for one group. */
export class VolumeGroup {
  readonly pool: string
  readonly name: string

  constructor(pool: string, name: string) {
    this.pool = pool
    this.name = name
  }

  run(doing: string, program: string, args: readonly string[], options?: ToolOptions): Promise<string> {
    return runTool(`pool ${this.pool}: cannot ${doing}`, program, args, {
      ...options,
      remedy: said => options?.remedy?.(said) ?? remedyOf(said, this.name),
    })
  }

  /** Every logical volume that is no part of another, thin pools and snapshots among them. */
  async volumes(): Promise<LogicalVolume[]> {
    const args = [...REPORT, '-o', REPORT_FIELDS, this.name]
    return parseLogicalVolumes(await this.run('list its volumes', 'lvs', args))
  }

  async size(): Promise<{ sizeBytes: number; freeBytes: number }> {
    const args = [...REPORT, '-o', 'vg_size,vg_free', this.name]
    return parseGroup(await this.run('look at it', 'vgs', args))
  }
}

function remedyOf(said: string, group: string): string | undefined {
  if (/Volume group "[^"]*" not found|Cannot process volume group/.test(said)) {
    return `Is ${group} there (vgs)? qpair pool build makes it of the devices of the pool`
  }
  if (/insufficient free space|Insufficient free extents/i.test(said)) {
    return `vgs ${group} says what is left: make it smaller, or add a disk with vgextend`
  }
  if (/Snapshot origin volumes can be resized only while inactive/.test(said)) {
    return 'It has snapshots, which are not thin: delete those first'
  }
  if (/device-mapper.*(?:No such|failed|Is.*loaded)|Can't (?:create|communicate)/i.test(said)) {
    return 'The kernel has no device mapper, or its module is not loaded: modprobe dm-mod'
  }
  return undefined
}
