/** What `sfdisk --json` says of a disk, and where there is room on it. */
import { basename } from 'node:path'
import { RpcError } from '../core/errors.ts'

export interface Partition {
  /** `/dev/sdb1`. */
  readonly path: string
  readonly number: number
  /** In sectors of the disk. */
  readonly start: number
  readonly sectors: number
  readonly uuid: string
  /** It is marked as such: see `FILLING`. */
  readonly isHalfFilled: boolean
  /** The name of the volume: its label, where it has one that no other has. */
  readonly volume: string
}

export interface PartitionTable {
  /** `gpt`, `dos` … */
  readonly label: string
  readonly sectorSize: number
  /** Where partitions may be: the last included. */
  readonly firstSector: number
  readonly lastSector: number
  readonly partitions: readonly Partition[]
}

export interface Gap {
  readonly start: number
  readonly sectors: number
}

interface Written {
  readonly partitiontable: {
    readonly label: string
    readonly sectorsize?: number
    readonly firstlba?: number
    readonly lastlba?: number
    readonly device: string
    readonly partitions?: readonly {
      readonly node: string
      readonly start: number
      readonly size: number
      readonly type: string
      readonly uuid?: string
      readonly name?: string
    }[]
  }
}

/**
 * The type of a partition until an import has filled it, by the label of the table: it is in the table and nowhere else, so that it
 * tells also when nobody knows any more what was begun. Of dos, what is left to local use; of GPT, a GUID of our own.
 */
export const FILLING: Readonly<Record<string, string>> = {
  dos: '7f',
  gpt: '2aa1115f-e77a-4625-bcff-a93efa81838f',
}

/** The type of one that is whole, for data of Linux. In full: its letter, L, is for sfdisk's input only before util-linux 2.36. */
export const WHOLE: typeof FILLING = {
  dos: '83',
  gpt: '0fc63daf-8483-4772-8e79-3d69d8477de4',
}

/** Types of an extended partition of a dos table: it holds others, and is none itself. */
const EXTENDED = new Set(['5', 'f', '85'])

/** Throws `RpcError` EIO for what is no such table. */
export function parseTable(text: string, diskBytes: number): PartitionTable {
  let written: Written['partitiontable']
  try {
    written = (JSON.parse(text) as Written).partitiontable
  } catch (cause) {
    throw new RpcError(
      'EIO',
      `sfdisk says what is not JSON: ${text.slice(0, 80)}; it has to be of util-linux 2.27 or newer`,
      {
        cause,
      },
    )
  }
  const { label, partitions = [], sectorsize: sectorSize = 512, firstlba, lastlba } = written
  const rows = partitions.filter(({ type }) => label !== 'dos' || !EXTENDED.has(type.toLowerCase()))
  const isUnique = (name: string): boolean => rows.filter(each => each.name === name).length === 1
  return {
    ...{ label, sectorSize },
    firstSector: firstlba ?? MIB / sectorSize,
    lastSector: lastlba ?? Math.min(DOS_LAST_SECTOR, diskBytes / sectorSize - 1),
    partitions: rows.map(({ node, start, size, type, uuid = '', name = '' }) => ({
      ...{ path: node, number: Number(/\d+$/.exec(node)?.[0]), start, sectors: size, uuid },
      isHalfFilled: type.toLowerCase() === FILLING[label],
      volume: name !== '' && !/[/\n]|^\./.test(name) && isUnique(name) ? name : basename(node),
    })),
  }
}

const MIB = 2 ** 20
/** What 32 bits can say. */
const DOS_LAST_SECTOR = 2 ** 32 - 2

/** What no partition has, in order; pieces that are too small to begin at a MiB are left out. */
export function gapsOf({ partitions, firstSector, lastSector, sectorSize }: PartitionTable): Gap[] {
  const align = MIB / sectorSize
  const gaps: Gap[] = []
  let at = firstSector
  const until = (end: number): void => {
    const start = Math.ceil(at / align) * align
    if (end > start) gaps.push({ start, sectors: end - start })
  }
  for (const { start, sectors } of partitions.toSorted((a, b) => a.start - b.start)) {
    until(start)
    at = Math.max(at, start + sectors)
  }
  until(lastSector + 1)
  return gaps
}

/** The smallest that is large enough, so that large ones stay. */
export function fittingGap(table: PartitionTable, sectors: number): Gap | undefined {
  return gapsOf(table)
    .filter(gap => gap.sectors >= sectors)
    .sort((a, b) => a.sectors - b.sectors)[0]
}
