/** What is done to logical volumes of a group, by LVM2's own programs. */
import { setTimeout as delay } from 'node:timers/promises'
import { RpcError } from '../../core/errors.ts'
import { tellNewSize } from '../block-devices.ts'
import { type LogicalVolume, SNAPSHOT_TAG, type VolumeGroup } from '../lvm.ts'
import type {
  CreateVolume,
  Progress,
  ResizeOptions,
  RevertOptions,
  SnapshotOperations,
  VolumeFacts,
  VolumeOperations,
  VolumeSnapshot,
} from '../pool.ts'
import { wipeDevice } from '../wipe.ts'

type Call = (method: string, params?: unknown) => Promise<unknown>

/** A device that had a file system before is not asked about: what is new is to be empty. */
const FRESH = ['--yes', '--wipesignatures', 'y']

/** With issue_discards in lvm.conf they give blocks back to the disk, as long as that takes. */
const PATIENT = { timeoutMs: Number.POSITIVE_INFINITY } as const

/** How often it is looked whether a merge has ended. */
const MERGE_LOOK_MS = 500

export class LogicalVolumes implements VolumeOperations {
  readonly areChangesLong = true
  readonly canHide = true
  readonly wipe = wipeDevice
  readonly snapshots: LogicalSnapshots
  readonly #group: VolumeGroup
  readonly #call: Call

  constructor(group: VolumeGroup, call: Call) {
    this.#group = group
    this.#call = call
    this.snapshots = new LogicalSnapshots(group)
  }

  async create(request: CreateVolume): Promise<void> {
    const { name, format, capacityBytes, preallocation, backing, features } = request
    checkName(name)
    if (format !== 'raw') throw new RpcError('EINVAL', `${name}: logical volumes are raw, not ${format}`)
    const { thin_pool: wanted, ...others } = features
    const [unknown] = Object.keys(others)
    if (unknown !== undefined || preallocation === 'metadata') {
      const what = unknown ?? 'preallocation metadata'
      throw new RpcError(
        'EINVAL',
        `${name}: logical volumes know no ${what}: thin_pool and preallocation full they do`,
      )
    }
    const make = (args: readonly string[]): Promise<string> =>
      this.#group.run(`make volume ${name}`, 'lvcreate', [...FRESH, '--name', name, ...args])
    if (backing !== undefined) return this.#snapshotAs(name, backing.path, capacityBytes)
    const thin = preallocation === 'full' ? undefined : await this.#thinPool(name, wanted)
    if (thin === undefined) await make(['--size', `${capacityBytes}b`, '--', this.#group.name])
    else await make(['--virtualsize', `${capacityBytes}b`, '--thinpool', thin, '--', this.#group.name])
  }

  async delete({ name }: VolumeFacts): Promise<void> {
    for (const snapshot of await this.snapshots.of(name)) await this.#remove(snapshot.name)
    await this.#remove(name)
  }

  async resize(
    { name }: VolumeFacts,
    capacityBytes: number,
    { openBy, shrink }: ResizeOptions,
  ): Promise<void> {
    const force = shrink ? ['--yes', '--force'] : []
    await this.#group.run(
      `resize volume ${name}`,
      'lvresize',
      [...force, '--size', `${capacityBytes}b`, '--', this.#path(name)],
      // Extents are larger than bytes, so that a size may be what it has already.
      {
        ...PATIENT,
        remedy: said => (/matches existing size/.test(said) ? 'It has that size, in extents' : undefined),
      },
    )
    await tellNewSize(this.#call, openBy)
  }

  async rename({ name }: VolumeFacts, to: string): Promise<void> {
    checkName(to)
    const snapshots = await this.snapshots.of(name)
    await this.#rename(name, to)
    for (const { name: old } of snapshots) await this.#rename(old, `${to}${old.slice(name.length)}`)
  }

  /** At once and independent, of a thin volume; a writable snapshot of any other, which goes with it. */
  async clone({ path, capacityBytes }: VolumeFacts, to: string, { report }: Progress): Promise<void> {
    checkName(to)
    await this.#snapshotAs(to, path, capacityBytes!)
    report(capacityBytes!, capacityBytes)
  }

  async #snapshotAs(name: string, originPath: string, capacityBytes: number): Promise<void> {
    const origin = (await this.#group.volumes()).find(({ path }) => path === originPath)
    if (origin === undefined) {
      throw new RpcError(
        'EINVAL',
        `volume ${name} is to stand on ${originPath}, which is no volume of the group ${this.#group.name}: name one of those`,
      )
    }
    await makeSnapshot(this.#group, origin, name, [])
    if (origin.kind === 'thin' && capacityBytes > origin.sizeBytes) {
      await this.#group.run(`resize volume ${name}`, 'lvresize', [
        ...['--size', `${capacityBytes}b`, '--', this.#path(name)],
      ])
    }
  }

  /** The pool that a new thin volume comes from: the one that was named, or that has most left; undefined: none is there. */
  async #thinPool(volume: string, wanted: string | undefined): Promise<string | undefined> {
    const pools = (await this.#group.volumes()).filter(({ kind }) => kind === 'thin-pool')
    if (wanted === undefined) {
      const left = ({ sizeBytes, usedBytes }: LogicalVolume): number => sizeBytes - usedBytes
      return pools.toSorted((a, b) => left(b) - left(a))[0]?.name
    }
    if (pools.some(({ name }) => name === wanted)) return wanted
    const there = pools.map(({ name }) => name).join(', ') || 'none'
    throw new RpcError(
      'ENOENT',
      `volume ${volume}: the group has no thin pool ${wanted}; there are: ${there}`,
    )
  }

  #remove(name: string): Promise<string> {
    const args = ['--yes', '--force', '--', this.#path(name)]
    return this.#group.run(`delete volume ${name}`, 'lvremove', args, PATIENT)
  }

  #rename(from: string, to: string): Promise<string> {
    return this.#group.run(`rename volume ${from}`, 'lvrename', ['--', this.#group.name, from, to])
  }

  #path(name: string): string {
    return `${this.#group.name}/${name}`
  }
}

class LogicalSnapshots implements SnapshotOperations {
  readonly #group: VolumeGroup

  constructor(group: VolumeGroup) {
    this.#group = group
  }

  whileOpen(): readonly ('create' | 'delete')[] {
    return ['create', 'delete']
  }

  async create({ name }: VolumeFacts, snapshot: string): Promise<void> {
    checkName(snapshot)
    const origin = (await this.#group.volumes()).find(each => each.name === name)
    if (origin !== undefined) await this.#make(origin, snapshot)
  }

  async list({ name }: VolumeFacts): Promise<VolumeSnapshot[]> {
    return (await this.of(name)).map(each => ({
      ...{ name: each.name.slice(name.length + 1), created: each.created, sizeBytes: each.sizeBytes },
    }))
  }

  /** LVM takes a snapshot that is gone back to: there is a new one of the same content then. */
  async revert({ name }: VolumeFacts, snapshot: string, options: RevertOptions): Promise<void> {
    const { isResumed, signal } = options
    const isThere = (await this.of(name)).some(each => each.name === `${name}.${snapshot}`)
    // Interrupted, it may have been taken already.
    if (isThere || !isResumed) {
      const found = await this.#find(name, snapshot)
      await this.#group.run(`revert volume ${name}`, 'lvconvert', [
        ...['--yes', '--merge', '--', `${this.#group.name}/${found.name}`],
      ])
    }
    const origin = await this.#merged(name, signal)
    if (origin !== undefined) await this.#make(origin, snapshot)
  }

  /** The volume when LVM, which goes on without us, has gone back to a snapshot of it. */
  async #merged(name: string, signal: AbortSignal): Promise<LogicalVolume | undefined> {
    for (;;) {
      const origin = (await this.#group.volumes()).find(each => each.name === name)
      if (origin?.isMerging !== true) return origin
      await delay(MERGE_LOOK_MS, undefined, { signal })
    }
  }

  async delete({ name }: VolumeFacts, snapshot: string): Promise<void> {
    const found = await this.#find(name, snapshot)
    await this.#group.run(`delete snapshot ${snapshot} of ${name}`, 'lvremove', [
      ...['--yes', '--force', '--', `${this.#group.name}/${found.name}`],
    ])
  }

  /** The oldest first. */
  async of(volume: string): Promise<LogicalVolume[]> {
    const all = await this.#group.volumes()
    return all
      .filter(({ name, isSnapshot }) => isSnapshot && name.startsWith(`${volume}.`))
      .filter(({ origin }) => origin === volume || origin === '')
      .sort((a, b) => a.created.getTime() - b.created.getTime())
  }

  #make(origin: LogicalVolume, snapshot: string): Promise<void> {
    return makeSnapshot(this.#group, origin, `${origin.name}.${snapshot}`, ['--addtag', SNAPSHOT_TAG])
  }

  async #find(volume: string, snapshot: string): Promise<LogicalVolume> {
    const there = await this.of(volume)
    const found = there.find(({ name }) => name === `${volume}.${snapshot}`)
    if (found !== undefined) return found
    const names = there.map(({ name }) => name.slice(volume.length + 1)).join(', ') || 'none'
    throw new RpcError('ENOENT', `volume ${volume} has no snapshot ${snapshot}; there are: ${names}`)
  }
}

/** A thin one takes no room of its own; any other has room for all that may change. */
async function makeSnapshot(
  group: VolumeGroup,
  origin: LogicalVolume,
  name: string,
  more: readonly string[],
): Promise<void> {
  const size = origin.kind === 'thin' ? ['--setactivationskip', 'n'] : ['--extents', '100%ORIGIN']
  const args = ['--yes', '--snapshot', '--name', name, ...size, ...more, '--', `${group.name}/${origin.name}`]
  await group.run(`make ${name} of ${origin.name}`, 'lvcreate', args)
}

/** LVM's own rule (lvm(8), valid names), so that nothing is taken for an option or a path. */
function checkName(name: string): void {
  const isReserved = name === '.' || name === '..' || /^(?:snapshot|pvmove)/.test(name) || RESERVED.test(name)
  if (/^[A-Za-z0-9_+.][A-Za-z0-9_+.-]*$/.test(name) && name.length <= 127 && !isReserved) return
  throw new RpcError(
    'EINVAL',
    `${JSON.stringify(name)} cannot be the name of a logical volume: up to 127 letters, digits and _+.- it has, no - first, ` +
      'and no word that LVM keeps for itself (snapshot…, pvmove…, …_tdata)',
  )
}

const RESERVED =
  /_(?:cdata|cmeta|corig|cpool|cvol|mimage|mlog|pmspare|rimage|rmeta|tdata|tmeta|vdata|vorigin|wcorig|imeta|iorig)/
