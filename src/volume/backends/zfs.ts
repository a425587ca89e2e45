/** `zfs`: a zpool, or a dataset of one, whose zvols are the volumes. */
import { join } from 'node:path'
import { RpcError } from '../../core/errors.ts'
import type { PoolDocument, PoolUsage } from '../../libvirt/pool-xml.ts'
import { sortedByName, tellNewSize, waitForDevice } from '../block-devices.ts'
import { fileOpening } from '../file-volumes.ts'
import type {
  BuildMode,
  CreateVolume,
  PoolBackend,
  PoolBackendType,
  PoolContents,
  PoolServices,
  Progress,
  ResizeOptions,
  SnapshotOperations,
  VolumeFacts,
  VolumeOperations,
  VolumeSnapshot,
} from '../pool.ts'
import { runTool, type ToolOptions } from '../tools.ts'
import { wipeDevice } from '../wipe.ts'

export const zfsPool: PoolBackendType = {
  type: 'zfs',
  summary: 'A zpool, or a dataset of one, whose zvols are the volumes.',
  create: (document, services) => new ZfsPool(document, services),
}

/** zfs(8): a letter first, then letters, digits and these; what would be an option, or another directory below /dev, is none. */
const DATASET = /^[A-Za-z][A-Za-z0-9_.:-]*(?:\/(?!\.\.?(?:\/|$))[A-Za-z0-9_.:][A-Za-z0-9_.:-]*)*$/
const COMPONENT = /^(?!\.\.?$)[A-Za-z0-9_.:][A-Za-z0-9_.:-]*$/
/** The user property with the identity that a volume was given. */
const MARK = 'io.qpair:id'
/** Sizes of zvols are multiples of their blocks. */
const ZVOL_BLOCK = 16384

class ZfsPool implements PoolBackend {
  readonly volumes: Zvols
  readonly opening = fileOpening
  readonly #document: PoolDocument
  readonly #dataset: Dataset

  constructor(document: PoolDocument, { call }: PoolServices) {
    const { name, source, target } = document
    if (!DATASET.test(source.name!)) {
      throw new RpcError(
        'EINVAL',
        `pool ${name}: ${JSON.stringify(source.name)} cannot be the name of a zpool or dataset`,
      )
    }
    this.#document = document
    this.#dataset = new Dataset(name, source.name!)
    this.volumes = new Zvols(this.#dataset, target!.path, call)
  }

  async build(mode: BuildMode): Promise<void> {
    const { name, source } = this.#document
    const devices = (source.devices ?? []).map(({ path }) => path)
    if (devices.length === 0 || source.name!.includes('/')) {
      throw new RpcError(
        'EINVAL',
        `pool ${name}: a zpool is made of the <device>s of its <source>, under a name without /`,
      )
    }
    const force = mode === 'overwrite' ? ['-f'] : []
    await this.#dataset.run('make it', 'zpool', ['create', ...force, '--', source.name!, ...devices])
  }

  async start(): Promise<void> {
    await this.usage()
  }

  async stop(): Promise<void> {}

  async refresh(): Promise<PoolContents> {
    const [usage, volumes] = await Promise.all([this.usage(), this.volumes.all()])
    return { ...usage, volumes: sortedByName(volumes) }
  }

  async usage(): Promise<PoolUsage> {
    const said = await this.#dataset.run('look at it', 'zfs', [
      ...['get', '-Hp', '-o', 'value', 'used,available', '--', this.#dataset.name],
    ])
    const [used = Number.NaN, available = Number.NaN] = said.split('\n').map(Number)
    return { capacityBytes: used + available, allocationBytes: used, availableBytes: available }
  }

  async delete(): Promise<void> {
    const { name } = this.#dataset
    await this.#refuseOthers()
    if (name.includes('/')) await this.#dataset.run('delete it', 'zfs', ['destroy', '-r', '--', name])
    else await this.#dataset.run('delete it', 'zpool', ['destroy', '--', name])
  }

  /** What lies in the dataset and is no volume of the pool goes with it: nobody who looks at the pool has seen that. */
  async #refuseOthers(): Promise<void> {
    const { name } = this.#dataset
    const [all, volumes] = await Promise.all([
      this.#dataset.run('look at it', 'zfs', [
        ...['list', '-H', '-r', '-t', 'filesystem,volume', '-o', 'name', '--', name],
      ]),
      this.volumes.all(),
    ])
    const own = new Set([name, ...volumes.map(({ key }) => key)])
    const others = all.split('\n').filter(line => line !== '' && !own.has(line))
    if (others.length === 0) return
    throw new RpcError(
      'ENOTEMPTY',
      `pool ${this.#document.name} cannot be deleted: ${name} has ${others.join(', ')} as well, which ${others.length === 1 ? 'is' : 'are'} no ` +
        'volume of it. zfs destroy removes that, or zfs rename moves it',
    )
  }
}

class Dataset {
  readonly pool: string
  readonly name: string

  constructor(pool: string, name: string) {
    this.pool = pool
    this.name = name
  }

  run(
    doing: string,
    program: 'zfs' | 'zpool',
    args: readonly string[],
    options?: ToolOptions,
  ): Promise<string> {
    return runTool(`pool ${this.pool}: cannot ${doing}`, program, args, {
      ...options,
      remedy: said => options?.remedy?.(said) ?? this.#remedy(said),
    })
  }

  #remedy(said: string): string | undefined {
    // What is not there may also be a volume.
    if (said.includes(`'${this.name}': dataset does not exist`) || said.includes('no such pool'))
      return `Is ${this.name} there (zfs list)? zpool import brings one that is not in use`
    if (said.includes('has dependent clones')) return 'zfs promote makes a clone independent'
    if (said.includes("use '-f'")) return '--overwrite replaces it all the same, and what it holds is lost'
    return undefined
  }
}

class Zvols implements VolumeOperations {
  readonly wipe = wipeDevice
  readonly snapshots: SnapshotOperations
  readonly #dataset: Dataset
  readonly #directory: string
  readonly #call: PoolServices['call']

  constructor(dataset: Dataset, directory: string, call: PoolServices['call']) {
    this.#dataset = dataset
    this.#directory = directory
    this.#call = call
    this.snapshots = new ZvolSnapshots(dataset)
  }

  async all(): Promise<VolumeFacts[]> {
    const { name } = this.#dataset
    const said = await this.#dataset.run('list its volumes', 'zfs', [
      ...[
        'list',
        '-Hp',
        '-d',
        '1',
        '-t',
        'volume',
        '-o',
        `name,volsize,used,origin,guid,${MARK}`,
        '--',
        name,
      ],
    ])
    return parseVolumes(said, name, this.#directory)
  }

  async create({
    name,
    format,
    capacityBytes,
    preallocation,
    backing,
    features,
    identity,
  }: CreateVolume): Promise<void> {
    checkComponent(name)
    const [feature] = Object.keys(features)
    const what = format !== 'raw' ? format : (backing?.path ?? feature)
    if (what !== undefined)
      throw new RpcError('EINVAL', `${name}: a zvol is raw and stands alone, without ${what}`)
    const thin = preallocation === 'full' ? [] : ['-s']
    const size = `${Math.ceil(capacityBytes / ZVOL_BLOCK) * ZVOL_BLOCK}`
    const mark = identity === undefined ? [] : ['-o', `${MARK}=${identity}`]
    await this.#zfs(`make volume ${name}`, 'create', ...thin, ...mark, '-V', size, '--', this.#path(name))
    await this.#appears(name)
  }

  async delete({ name }: VolumeFacts): Promise<void> {
    await this.#zfs(`delete volume ${name}`, 'destroy', '-r', '--', this.#path(name))
  }

  async resize({ name }: VolumeFacts, capacityBytes: number, { openBy }: ResizeOptions): Promise<void> {
    const size = Math.ceil(capacityBytes / ZVOL_BLOCK) * ZVOL_BLOCK
    // It takes `--` for a dataset. Neither of its words can be an option.
    await this.#zfs(`resize volume ${name}`, 'set', `volsize=${size}`, this.#path(name))
    await tellNewSize(this.#call, openBy)
  }

  async rename({ name }: VolumeFacts, to: string): Promise<void> {
    checkComponent(to)
    await this.#zfs(`rename volume ${name}`, 'rename', '--', this.#path(name), this.#path(to))
    await this.#appears(to)
  }

  /** At once: the copy stands on a snapshot of its name, which goes with it. */
  async clone({ name }: VolumeFacts, to: string, { report }: Progress): Promise<void> {
    checkComponent(to)
    const snapshot = `${this.#path(name)}@clone-${to}`
    await this.#zfs(`snapshot volume ${name}`, 'snapshot', '--', snapshot)
    try {
      await this.#zfs(`clone volume ${name}`, 'clone', '--', snapshot, this.#path(to))
    } finally {
      await this.#zfs(`let go of the snapshot for ${to}`, 'destroy', '-d', '--', snapshot)
    }
    await this.#appears(to)
    report(1, 1)
  }

  #path(name: string): string {
    return `${this.#dataset.name}/${name}`
  }

  /** udev makes the path a moment after ZFS has answered. */
  async #appears(name: string): Promise<void> {
    const path = join(this.#directory, name)
    if (await waitForDevice(path)) return
    throw new RpcError(
      'ETIMEDOUT',
      `volume ${name} is there, but ${path} has not come: does udev run, with the rules of ZFS (60-zvol.rules)?`,
    )
  }

  async #zfs(doing: string, ...args: readonly string[]): Promise<void> {
    await this.#dataset.run(doing, 'zfs', args)
  }
}

/** Lines of `name volsize used origin guid mark`, with tabs between them and `-` for none. */
export function parseVolumes(text: string, dataset: string, directory: string): VolumeFacts[] {
  return text
    .split('\n')
    .filter(line => line !== '')
    .map(line => {
      const [full = '', size, used, origin = '-', guid = '', mark = '-'] = line.split('\t')
      const name = full.slice(dataset.length + 1)
      const path = join(directory, name)
      const parent = origin.replace(/@.*$/, '').slice(dataset.length + 1)
      return {
        ...{ name, key: full, path, type: 'block', format: 'raw' },
        ...{ capacityBytes: Number(size), allocationBytes: Number(used) },
        ...(guid === '' ? {} : { identity: mark === '-' ? guid : mark }),
        ...(origin === '-' ? {} : { backing: { path: join(directory, parent), format: 'raw' } }),
      }
    })
}

class ZvolSnapshots implements SnapshotOperations {
  readonly #dataset: Dataset

  constructor(dataset: Dataset) {
    this.#dataset = dataset
  }

  whileOpen(): readonly ('create' | 'delete')[] {
    return ['create', 'delete']
  }

  async create({ name }: VolumeFacts, snapshot: string): Promise<void> {
    checkComponent(snapshot)
    await this.#dataset.run(`snapshot volume ${name}`, 'zfs', ['snapshot', '--', this.#path(name, snapshot)])
  }

  async list({ name }: VolumeFacts): Promise<VolumeSnapshot[]> {
    const said = await this.#dataset.run(`list snapshots of ${name}`, 'zfs', [
      ...['list', '-Hp', '-d', '1', '-t', 'snapshot', '-o', 'name,creation,volsize,defer_destroy'],
      ...['-s', 'creation', '--', `${this.#dataset.name}/${name}`],
    ])
    return parseSnapshots(said)
  }

  /** ZFS goes back to the newest only; -r would delete those between. */
  async revert({ name }: VolumeFacts, snapshot: string): Promise<void> {
    await this.#dataset.run(`revert volume ${name}`, 'zfs', ['rollback', '--', this.#path(name, snapshot)], {
      remedy: said =>
        /more recent snapshots/.test(said)
          ? 'ZFS goes back to the newest snapshot only: delete those after it first'
          : undefined,
    })
  }

  async delete({ name }: VolumeFacts, snapshot: string): Promise<void> {
    checkComponent(snapshot)
    const args = ['destroy', '--', this.#path(name, snapshot)]
    await this.#dataset.run(`delete snapshot ${snapshot} of ${name}`, 'zfs', args)
  }

  #path(name: string, snapshot: string): string {
    return `${this.#dataset.name}/${name}@${snapshot}`
  }
}

/** Lines of `name creation volsize defer_destroy`, the oldest first. Those that clones keep are nobody's. */
export function parseSnapshots(text: string): VolumeSnapshot[] {
  return text
    .split('\n')
    .filter(line => line !== '' && !line.endsWith('\ton'))
    .map(line => {
      const [full = '', created, size] = line.split('\t')
      return {
        name: full.slice(full.indexOf('@') + 1),
        created: new Date(Number(created) * 1000),
        sizeBytes: Number(size),
      }
    })
}

/** `%` and a comma mean something to zfs destroy, `@` and `#` to all of its commands. */
function checkComponent(name: string): void {
  if (COMPONENT.test(name)) return
  throw new RpcError(
    'EINVAL',
    `${JSON.stringify(name)} cannot be a name in ZFS: letters, digits and _.:- it has, no - first`,
  )
}
