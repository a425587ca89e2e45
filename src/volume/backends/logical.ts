/**
 * `logical`: a volume group of LVM2, whose logical volumes are the volumes. Where the group has a thin pool, new volumes
 * are thin and snapshots take no room until something is written.
 *
 * A snapshot is a logical volume `VOLUME.SNAPSHOT` with a tag of ours, so that it is not taken for a volume.
 */
import { RpcError } from '../../core/errors.ts'
import type { PoolDocument } from '../../libvirt/pool-xml.ts'
import { refuseFormatted, sortedByName } from '../block-devices.ts'
import { fileOpening } from '../file-volumes.ts'
import { type LogicalVolume, VolumeGroup } from '../lvm.ts'
import type { BuildMode, PoolBackend, PoolBackendType, PoolContents, PoolFill, VolumeFacts } from '../pool.ts'
import { LogicalVolumes } from './logical-volumes.ts'

export const logicalPool: PoolBackendType = {
  type: 'logical',
  summary: 'A volume group of LVM2, whose logical volumes are the volumes.',
  create: (document, services) => new LogicalPool(document, services.call),
}

/** LVM's own rule (lvm(8), valid names); a leading hyphen would be an option. */
const GROUP_NAME = /^[A-Za-z0-9_+.][A-Za-z0-9_+.-]*$/

class LogicalPool implements PoolBackend {
  readonly volumes: LogicalVolumes
  readonly opening = fileOpening
  readonly #document: PoolDocument
  readonly #group: VolumeGroup

  constructor(document: PoolDocument, call: (method: string, params?: unknown) => Promise<unknown>) {
    const name = document.source.name!
    if (!GROUP_NAME.test(name) || name === '.' || name === '..') {
      throw new RpcError(
        'EINVAL',
        `pool ${document.name}: ${JSON.stringify(name)} cannot be the name of a volume group: letters, digits and _+.- it has`,
      )
    }
    this.#document = document
    this.#group = new VolumeGroup(document.name, name)
    this.volumes = new LogicalVolumes(this.#group, call)
  }

  async build(mode: BuildMode): Promise<void> {
    const { name, source } = this.#document
    const devices = (source.devices ?? []).map(({ path }) => path)
    if (devices.length === 0) {
      throw new RpcError(
        'EINVAL',
        `pool ${name} has no <device> in its <source>: there is nothing to make the volume group ${source.name} of`,
      )
    }
    if (mode !== 'overwrite') {
      for (const device of devices) await refuseFormatted(`pool ${name} cannot be built`, device)
    }
    const wipe = mode === 'overwrite' ? ['--yes', '-ff'] : ['--yes']
    for (const device of devices) await this.#group.run('make it', 'pvcreate', [...wipe, '--', device])
    await this.#group.run('make it', 'vgcreate', ['--', this.#group.name, ...devices])
  }

  async isStarted(): Promise<boolean> {
    try {
      return (await this.#group.volumes()).some(({ isActive }) => isActive)
    } catch {
      // No such group now: it is not started then.
      return false
    }
  }

  async start(): Promise<void> {
    await this.#group.run('start', 'vgchange', ['--activate', 'y', '--', this.#group.name])
  }

  async stop(): Promise<void> {
    await this.#refuseOpen('stopped')
    await this.#group.run('stop', 'vgchange', ['--activate', 'n', '--', this.#group.name], {
      remedy: said =>
        /in use|open/.test(said)
          ? 'Somebody has a volume open: lsblk and "lvs -o +lv_device_open" say which'
          : undefined,
    })
  }

  async refresh(): Promise<PoolContents> {
    const all = await this.#group.volumes()
    const pools = all.filter(({ kind }) => kind === 'thin-pool')
    const found = all
      .filter(({ kind, isSnapshot }) => kind !== 'thin-pool' && !isSnapshot)
      .map(volume => factsOf(volume, all))
    return { ...(await this.#usage(pools)), volumes: sortedByName(found) }
  }

  async usage(): Promise<PoolFill> {
    return this.#usage((await this.#group.volumes()).filter(({ kind }) => kind === 'thin-pool'))
  }

  async delete(): Promise<void> {
    const { source } = this.#document
    await this.#refuseOpen('deleted')
    await this.#group.run('delete it', 'vgremove', ['--yes', '--force', '--', this.#group.name])
    for (const { path } of source.devices ?? []) await this.#group.run('delete it', 'pvremove', ['--', path])
  }

  /** LVM would begin with the others, which may be another program's, and fail half-way. */
  async #refuseOpen(done: string): Promise<void> {
    const open = (await this.#group.volumes()).filter(({ kind, isOpen }) => isOpen && kind !== 'thin-pool')
    if (open.length === 0) return
    throw new RpcError(
      'EBUSY',
      `pool ${this.#document.name} cannot be ${done}: somebody has ${open.map(({ name }) => name).join(', ')} of ` +
        `${this.#group.name} open. lsblk says who mounts what, fuser which programs: end that first`,
    )
  }

  /** What a thin pool has left is available, though the group has given it away. */
  async #usage(thinPools: readonly LogicalVolume[]): Promise<PoolFill> {
    const { sizeBytes, freeBytes } = await this.#group.size()
    const left = thinPools.reduce((sum, pool) => sum + pool.sizeBytes - pool.usedBytes, 0)
    const availableBytes = freeBytes + left
    return {
      ...{ capacityBytes: sizeBytes, availableBytes, allocationBytes: sizeBytes - availableBytes },
      fullest: fullestOf(thinPools),
    }
  }
}

/** A thin pool does not grow by itself into what its group has left, unless LVM is told so; its metadata neither. */
function fullestOf(thinPools: readonly LogicalVolume[]): PoolFill['fullest'] {
  // Of one that is not active nobody knows.
  const active = thinPools.filter(({ isActive }) => isActive)
  const parts = active.flatMap(({ name, usedBytes, sizeBytes, metadataPercent }) => [
    { what: `thin pool ${name}`, percent: (usedBytes * 100) / sizeBytes },
    { what: `the metadata of thin pool ${name}`, percent: metadataPercent },
  ])
  return parts.sort((a, b) => b.percent - a.percent)[0]
}

function factsOf(volume: LogicalVolume, all: readonly LogicalVolume[]): VolumeFacts {
  const { name, path, sizeBytes, usedBytes, origin } = volume
  const backing = all.find(other => other.name === origin)
  return {
    ...{ name, key: volume.uuid, path, type: 'block', format: 'raw', identity: volume.uuid },
    ...{ capacityBytes: sizeBytes, allocationBytes: usedBytes },
    // A thin volume does not change with its origin, nor goes with it.
    ...(backing === undefined || volume.kind === 'thin'
      ? {}
      : { backing: { path: backing.path, format: 'raw' } }),
  }
}
