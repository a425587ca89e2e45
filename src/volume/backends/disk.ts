/**
 * `disk`: a disk whose partitions are the volumes. On GPT a partition's label is the volume's name; elsewhere, and without
 * a label, it is the kernel's name of the partition (`sdb1`), as libvirt has it.
 */
import { readdir, realpath } from 'node:fs/promises'
import { basename } from 'node:path'
import { RpcError } from '../../core/errors.ts'
import { formatSize } from '../../core/format-size.ts'
import type { PoolDocument } from '../../libvirt/pool-xml.ts'
import {
  blockVolume,
  deviceSize,
  pathBelow,
  refuseFormatted,
  settleDevices,
  sortedByName,
  tellNewSize,
} from '../block-devices.ts'
import { fileOpening } from '../file-volumes.ts'
import { refuseUsedByHost } from '../kernel-use.ts'
import {
  FILLING,
  fittingGap,
  gapsOf,
  type Partition,
  type PartitionTable,
  parseTable,
  WHOLE,
} from '../partition-table.ts'
import type {
  BuildMode,
  CreateVolume,
  PoolBackend,
  PoolBackendType,
  PoolContents,
  PoolServices,
  ResizeOptions,
  VolumeFacts,
  VolumeOperations,
} from '../pool.ts'
import { runTool } from '../tools.ts'
import { wipeDevice } from '../wipe.ts'

export const diskPool: PoolBackendType = {
  type: 'disk',
  summary: 'A disk, whose partitions are the volumes.',
  create: (document, services) => new DiskPool(document, services),
}

/** libvirt's formats that are made here, as sfdisk names them. */
const LABELS: Readonly<Record<string, string>> = { unknown: 'gpt', gpt: 'gpt', dos: 'dos', sun: 'sun' }

class DiskPool implements PoolBackend {
  readonly volumes: Partitions
  readonly opening = fileOpening
  readonly #document: PoolDocument
  readonly #disk: Disk

  constructor(document: PoolDocument, { call }: PoolServices) {
    const devices = document.source.devices!
    if (devices.length > 1) {
      const paths = devices.map(({ path }) => path).join(', ')
      throw new RpcError(
        'EINVAL',
        `pool ${document.name} has ${devices.length} devices (${paths}): a disk pool has one`,
      )
    }
    this.#document = document
    this.#disk = new Disk(document.name, devices[0]!.path)
    this.volumes = new Partitions(this.#disk, call)
  }

  async build(mode: BuildMode): Promise<void> {
    const { name, source } = this.#document
    const { format = 'unknown' } = source
    const label = LABELS[format]
    if (label === undefined) {
      throw new RpcError(
        'EINVAL',
        `pool ${name} has the format ${format}, which is not made here: one of ${Object.keys(LABELS).join(', ')} is`,
      )
    }
    if (mode !== 'overwrite') await refuseFormatted(`pool ${name} cannot be built`, this.#disk.path)
    // sfdisk does not look: it is told to, as it would refuse all that is not the whole disk.
    await refuseUsedByHost(`pool ${name} cannot be built`, this.#disk.path)
    await this.#disk.format(label)
  }

  async start(): Promise<void> {
    await this.#disk.table()
  }

  async stop(): Promise<void> {}

  async refresh(): Promise<PoolContents> {
    const table = await this.#disk.table()
    const sizeBytes = await deviceSize(`pool ${this.#document.name}`, this.#disk.path)
    const { path } = this.#document.target!
    const volumes: VolumeFacts[] = []
    for (const partition of table.partitions) {
      const found = await pathBelow(path, basename(partition.path))
      volumes.push({
        ...blockVolume(partition.volume, found, partition.sectors * table.sectorSize),
        key: partition.uuid || found,
        ...(partition.uuid === '' ? {} : { identity: partition.uuid.toLowerCase() }),
        ...(partition.isHalfFilled ? { isHalfFilled: true } : {}),
      })
    }
    const free = gapsOf(table).reduce((sum, gap) => sum + gap.sectors, 0) * table.sectorSize
    return {
      capacityBytes: sizeBytes,
      allocationBytes: sizeBytes - free,
      availableBytes: free,
      volumes: sortedByName(volumes),
    }
  }
}

class Disk {
  readonly pool: string
  readonly path: string

  constructor(pool: string, path: string) {
    this.pool = pool
    this.path = path
  }

  async table(): Promise<PartitionTable> {
    const said = await runTool(`pool ${this.pool}: cannot read its partition table`, 'sfdisk', [
      ...['--json', '--', this.path],
    ]).catch((error: RpcError) => {
      if (!/does not contain a recognized partition table/.test(error.message)) throw error
      throw new RpcError(
        'EINVAL',
        `pool ${this.pool}: ${this.path} has no partition table: qpair pool build ${this.pool} makes one`,
        { cause: error },
      )
    })
    return parseTable(said, await deviceSize(`pool ${this.pool}`, this.path))
  }

  /** Makes a table: the kernel forgets the partitions of the old one. */
  async format(label: string): Promise<void> {
    await this.#sfdisk('make its partition table', ['--wipe', 'always', '--', this.path], `label: ${label}\n`)
    // partx finds nothing to delete an error.
    if (await hasPartitions(this.path)) await this.#tellKernel('--delete')
  }

  async append(volume: string, { start, sectors, label, uuid, type }: NewPartition): Promise<void> {
    const args = ['--append', '--wipe-partitions', 'always', '--', this.path]
    const name = label === undefined ? '' : `, name="${label}"`
    const id = uuid === undefined ? '' : `, uuid=${uuid}`
    const kind = type === undefined ? '' : `, type=${type}`
    await this.#sfdisk(`make volume ${volume}`, args, `start=${start}, size=${sectors}${name}${id}${kind}\n`)
    const made = (await this.table()).partitions.find(partition => partition.start === start)
    await this.#tellKernel('--update', made?.number)
    await settleDevices()
  }

  async resize({ volume, number, start }: Partition, sectors: number): Promise<void> {
    const args = ['-N', `${number}`, '--', this.path]
    await this.#sfdisk(`resize volume ${volume}`, args, `start=${start}, size=${sectors}\n`)
    await this.#tellKernel('--update', number)
  }

  async delete({ volume, number }: Partition): Promise<void> {
    await this.#sfdisk(`delete volume ${volume}`, ['--delete', '--', this.path, `${number}`])
    await this.#tellKernel('--delete', number)
  }

  /** Gives it the type of most: for data of Linux. */
  async markWhole({ volume, number }: Partition): Promise<void> {
    const { label } = await this.table()
    const args = ['--part-type', '--', this.path, `${number}`, WHOLE[label]!]
    await this.#sfdisk(`mark volume ${volume} as whole`, args)
  }

  async label({ volume, number }: Partition, label: string): Promise<void> {
    await this.#sfdisk(`rename volume ${volume}`, ['--part-label', '--', this.path, `${number}`, label])
  }

  /** The kernel is told apart from it, as sfdisk would refuse a disk of which a partition is in use. */
  async #sfdisk(doing: string, args: readonly string[], input?: string): Promise<void> {
    const all = ['--no-reread', '--no-tell-kernel', ...args]
    await runTool(`pool ${this.pool}: cannot ${doing}`, 'sfdisk', all, input === undefined ? {} : { input })
  }

  /** One partition, or all: those in use beside it are left alone. */
  async #tellKernel(action: '--update' | '--delete', number?: number): Promise<void> {
    const which = number === undefined ? [] : ['--nr', `${number}:${number}`]
    await runTool(`pool ${this.pool}: cannot tell the kernel`, 'partx', [action, ...which, '--', this.path])
  }
}

interface NewPartition {
  readonly start: number
  readonly sectors: number
  /** Of GPT, as the next. */
  readonly label: string | undefined
  readonly uuid: string | undefined
  /** Linux's when undefined. */
  readonly type: string | undefined
}

/** By the kernel's word: `/sys/class/block/sdb/sdb1`. */
async function hasPartitions(path: string): Promise<boolean> {
  const device = basename(await realpath(path))
  return (await readdir(`/sys/class/block/${device}`)).some(name => name.startsWith(device))
}

class Partitions implements VolumeOperations {
  readonly wipe = wipeDevice
  readonly reasons = {
    clone: 'partitions share nothing: make another volume, and qpair volume import into it',
    snapshots: 'partitions have none; a logical, rbd or zfs pool has, and qcow2 files',
  }
  readonly #disk: Disk
  readonly #call: PoolServices['call']

  constructor(disk: Disk, call: PoolServices['call']) {
    this.#disk = disk
    this.#call = call
  }

  async create({ name, format, capacityBytes, backing, features, identity }: CreateVolume): Promise<void> {
    const [feature] = Object.keys(features)
    const what = format !== 'raw' ? format : (backing?.path ?? feature)
    if (what !== undefined)
      throw new RpcError('EINVAL', `${name}: a partition is raw and stands alone, without ${what}`)
    const table = await this.#disk.table()
    if (table.label === 'gpt') checkLabel(name)
    const sectors = Math.ceil(capacityBytes / table.sectorSize)
    const gap = fittingGap(table, sectors)
    if (gap === undefined) {
      const largest = Math.max(0, ...gapsOf(table).map(each => each.sectors)) * table.sectorSize
      throw new RpcError(
        'ENOSPC',
        `volume ${name} needs ${formatSize(capacityBytes)} in one piece, and the largest that ${this.#disk.path} has left ` +
          `is ${formatSize(largest)}: make it smaller, or delete another`,
      )
    }
    const { start } = gap
    const isNamed = table.label === 'gpt'
    const [label, uuid] = isNamed ? [name, identity] : []
    const type = identity === undefined ? undefined : FILLING[table.label]
    await this.#disk.append(name, { start, sectors, label, uuid, type })
    if (!isNamed) await this.#keepKernelName(name, start)
  }

  async markWhole({ name, isHalfFilled }: VolumeFacts): Promise<void> {
    if (isHalfFilled === true) await this.#disk.markWhole(await this.#find(name))
  }

  async delete({ name }: VolumeFacts): Promise<void> {
    await this.#disk.delete(await this.#find(name))
  }

  async resize({ name }: VolumeFacts, capacityBytes: number, { openBy }: ResizeOptions): Promise<void> {
    const partition = await this.#find(name)
    const table = await this.#disk.table()
    const sectors = Math.ceil(capacityBytes / table.sectorSize)
    const gap = gapsOf(table).find(({ start }) => start === partition.start + partition.sectors)
    const room = partition.sectors + (gap?.sectors ?? 0)
    if (sectors > room) {
      throw new RpcError(
        'ENOSPC',
        `volume ${name} can have ${formatSize(room * table.sectorSize)} where it is, less than ${formatSize(capacityBytes)}: ` +
          'what is behind it is another volume, or the end of the disk',
      )
    }
    await this.#disk.resize(partition, sectors)
    await tellNewSize(this.#call, openBy)
  }

  async rename({ name }: VolumeFacts, to: string): Promise<void> {
    const { label } = await this.#disk.table()
    if (label !== 'gpt') {
      throw new RpcError(
        'ENOTSUP',
        `volume ${name} is a partition of a ${label} table, which has no names: gpt has`,
      )
    }
    checkLabel(to)
    await this.#disk.label(await this.#find(name), to)
  }

  async #find(name: string): Promise<Partition> {
    const found = (await this.#disk.table()).partitions.find(({ volume }) => volume === name)
    if (found !== undefined) return found
    throw new RpcError('ENOENT', `${this.#disk.path} has no partition ${name} any more: qpair pool refresh`)
  }

  /** A table without labels: a volume has the name that the kernel gives it, as with libvirt. */
  async #keepKernelName(name: string, start: number): Promise<void> {
    const made = (await this.#disk.table()).partitions.find(partition => partition.start === start)
    if (made === undefined || made.volume === name) return
    await this.#disk.delete(made)
    throw new RpcError(
      'EINVAL',
      `volume ${name} would be called ${made.volume}: a partition without a label has the kernel's name, so use that`,
    )
  }
}

/** What a GPT entry takes, and what sfdisk's input language has no meaning for. */
function checkLabel(name: string): void {
  if (name.length <= 36 && !/["\\,]/.test(name)) return
  throw new RpcError(
    'EINVAL',
    `${JSON.stringify(name)} cannot be the label of a partition: up to 36 characters it has, without " \\ and ,`,
  )
}
