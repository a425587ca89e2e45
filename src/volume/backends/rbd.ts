/**
 * `rbd`: a Ceph pool whose images are the volumes. The pool has a connection to the cluster of its own, which bdevs over
 * its images share. Looking at the pool opens no image: names are in its directory, sizes in the images' headers.
 */
import { RpcError } from '../../core/errors.ts'
import { parseSize } from '../../core/parse-size.ts'
import type { PoolDocument, PoolUsage } from '../../libvirt/pool-xml.ts'
import type { NamedCluster } from '../../rbd/clusters.ts'
import { ImageStore } from '../../rbd/image-store.ts'
import type { Report } from '../../rbd/snapshots.ts'
import type { MethodCall } from '../../rpc/config.ts'
import { deleteLeftover } from '../leftovers.ts'
import type {
  CreateVolume,
  OpenOptions,
  PoolBackend,
  PoolBackendType,
  PoolContents,
  PoolServices,
  Progress,
  ResizeOptions,
  RevertOptions,
  SnapshotOperations,
  VolumeFacts,
  VolumeOperations,
  VolumeSnapshot,
} from '../pool.ts'
import { partialName, wholeName } from '../volume-name.ts'

export const rbdPool: PoolBackendType = {
  type: 'rbd',
  summary: 'A pool of a Ceph cluster, whose images are the volumes.',
  create: (document, services) => new RbdPool(document, services),
}

/** As QEMU has it for images of Ceph. */
const BLOCK_SIZE = 512

class RbdPool implements PoolBackend {
  readonly volumes: RbdVolumes
  readonly #document: PoolDocument
  readonly #services: PoolServices
  readonly #cluster: string
  readonly #store: ImageStore

  constructor(document: PoolDocument, services: PoolServices) {
    this.#document = document
    this.#services = services
    this.#cluster = `pool-${document.name}`
    this.#store = new ImageStore(services.rbd.clusters, this.#cluster, this.#ceph)
    this.volumes = new RbdVolumes(this.#store, document, services)
  }

  get #ceph(): string {
    return this.#document.source.name!
  }

  async start(): Promise<void> {
    await this.#services.rbd.clusters.bring(await this.#options())
  }

  async identity(): Promise<string> {
    return `Ceph ${await this.#store.identity()}`
  }

  /** Images that are open as devices go on. */
  async stop(): Promise<void> {
    await this.#services.rbd.clusters.takeBack(this.#cluster)
  }

  async refresh(): Promise<PoolContents> {
    const { images, usage } = await this.#store.contents()
    const volumes = images.map(({ id, name, sizeBytes }) => ({
      ...this.volumes.facts(name, sizeBytes),
      ...(id === '' ? {} : { identity: id }),
    }))
    return { ...usageOf(usage), volumes: volumes.sort((a, b) => (a.name < b.name ? -1 : 1)) }
  }

  async usage(): Promise<PoolUsage> {
    return usageOf(await this.#store.usage())
  }

  opening({ name }: VolumeFacts, { readOnly }: OpenOptions): MethodCall {
    return {
      method: 'bdev_rbd_create',
      params: {
        ...{ pool_name: this.#ceph, rbd_name: name, block_size: BLOCK_SIZE, cluster_name: this.#cluster },
        ...(readOnly ? { read_only: true } : {}),
      },
    }
  }

  /** No ceph.conf has a say: the document tells all, as in libvirt. */
  async #options(): Promise<NamedCluster> {
    const { name, source, configOptions = [] } = this.#document
    const { auth } = source
    const hosts = source.hosts!.map(host => {
      const address = host.name.includes(':') ? `[${host.name}]` : host.name
      return host.port === undefined ? address : `${address}:${host.port}`
    })
    const options = {
      mon_host: hosts.join(','),
      auth_client_required: auth === undefined ? 'none' : 'cephx',
      ...Object.fromEntries(configOptions.map(option => [option.name, option.value])),
    }
    const rest = {
      name: this.#cluster,
      file: undefined,
      searches: false,
      keyFile: undefined,
      coreMask: undefined,
    }
    if (auth === undefined) return { ...rest, user: undefined, options }
    if (auth.type !== 'ceph') {
      throw new RpcError('EINVAL', `pool ${name} has <auth type='${auth.type}'>: Ceph knows type='ceph' only`)
    }
    const { bytes, file } = await this.#services.secrets.valueFor(name, auth)
    return file === undefined
      ? { ...rest, user: auth.username, options, key: bytes.toString('base64') }
      : { ...rest, user: auth.username, options: { ...options, keyfile: file } }
  }
}

class RbdVolumes implements VolumeOperations {
  readonly reasons = {
    wipe: 'deleting an image gives its objects back, and nobody reads them again',
  }
  readonly canHide = true
  readonly areChangesLong = true
  readonly snapshots: SnapshotOperations
  readonly #store: ImageStore
  readonly #ceph: string
  readonly #countsCapacity: boolean
  readonly #services: PoolServices

  constructor(store: ImageStore, document: PoolDocument, services: PoolServices) {
    this.#store = store
    this.#ceph = document.source.name!
    this.#countsCapacity = document.refreshAllocation === 'capacity'
    this.#services = services
    this.snapshots = new ImageSnapshots(store)
  }

  facts(name: string, sizeBytes: number | undefined): VolumeFacts {
    const path = `${this.#ceph}/${name}`
    return {
      ...{ name, key: path, path, type: 'network', format: 'raw', capacityBytes: sizeBytes },
      allocationBytes: this.#countsCapacity ? sizeBytes : undefined,
    }
  }

  async describe(volume: VolumeFacts): Promise<VolumeFacts> {
    const { sizeBytes, usedBytes, parent } = await this.#store.describe(volume.name)
    return {
      ...volume,
      capacityBytes: sizeBytes,
      allocationBytes: this.#countsCapacity ? sizeBytes : usedBytes,
      ...(parent === undefined ? {} : { backing: { path: parent.replace(/@.*$/, ''), format: 'raw' } }),
    }
  }

  async clients({ name }: VolumeFacts): Promise<readonly string[]> {
    const found = await ifThere(this.#store.clients(name), [])
    return found.map(address => `the client of Ceph at ${address.replace(/:0\/\d+$/, '')}`)
  }

  async create({
    name,
    format,
    capacityBytes,
    preallocation,
    backing,
    features,
  }: CreateVolume): Promise<void> {
    checkImageName(name, 'an image')
    const refuse = (what: string): RpcError => new RpcError('EINVAL', `image ${this.#ceph}/${name}: ${what}`)
    if (format !== 'raw') throw refuse(`images of Ceph are raw, not ${format}`)
    if (preallocation !== 'off') throw refuse('images of Ceph are thin: leave preallocation out')
    if (backing !== undefined) {
      throw refuse(
        `it cannot stand on ${backing.path} from the start: qpair volume clone makes what stands on another`,
      )
    }
    const { object_size: objectSize, data_pool: dataPool, ...others } = features
    const [unknown] = Object.keys(others)
    if (unknown !== undefined)
      throw refuse(`there is no feature ${unknown}: object_size and data_pool there are`)
    const order = objectSize === undefined ? undefined : orderOf(parseSize(objectSize, 'object_size'))
    if (Number.isNaN(order))
      throw refuse(`an object_size of ${objectSize}: a power of two from 4K to 32M it can be`)
    await this.#forgetInterrupted(name)
    await this.#store.create(name, capacityBytes, { order, dataPool })
  }

  async delete({ name, capacityBytes }: VolumeFacts, progress: Progress): Promise<void> {
    await this.#forgetInterrupted(name)
    const { areThere, names } = await ifThere(this.#store.children(name), NO_CHILDREN)
    if (areThere) {
      const children = names.length === 0 ? 'clones' : names.join(', ')
      throw new RpcError(
        'EBUSY',
        `image ${this.#ceph}/${name} cannot be deleted: ${children} stand on it. Delete those first, or make ` +
          'them independent of it (qpair volume export, qpair rbd flatten)',
      )
    }
    for (const { name: snapshot } of await ifThere(this.#store.snapshots(name), [])) {
      await this.#store.removeSnapshot(name, snapshot)
    }
    await this.#store.remove(name, inBytes(progress, capacityBytes))
  }

  async resize(
    { name, ...before }: VolumeFacts,
    capacityBytes: number,
    options: ResizeOptions,
  ): Promise<void> {
    const writer = options.openBy.find(({ driver, readOnly }) => driver === 'rbd' && !readOnly)
    const report = inBytes(options, (before.capacityBytes ?? 0) - capacityBytes)
    if (writer === undefined) await this.#store.resize(name, capacityBytes, report)
    else await this.#services.rbd.resize(writer.name, capacityBytes, { shrink: true })
  }

  async rename({ name }: VolumeFacts, to: string): Promise<void> {
    checkImageName(to, 'an image')
    await this.#store.rename(name, to)
  }

  /** Under a hidden name, and with a snapshot of that name, so that what an interrupted clone has left is known. */
  async clone({ name }: VolumeFacts, to: string, { report, signal }: Progress): Promise<void> {
    checkImageName(to, 'an image')
    const hidden = partialName(to)
    await deleteLeftover(this, this.facts(hidden, undefined), signal)
    await this.#store.clone(name, hidden, hidden)
    await this.#store.rename(hidden, to)
    report(1, 1)
  }

  /** Before a hidden image is made or deleted: the daemon may have been killed while one got its name. */
  async #forgetInterrupted(name: string): Promise<void> {
    const whole = wholeName(name)
    if (whole !== undefined) await this.#store.forgetInterrupted(name, whole)
  }
}

/** Objects that are done with, as the part that they are of that many bytes; of none that is told of. */
const inBytes =
  ({ report }: Progress, bytes = 0): Report =>
  (done, total) => {
    if (bytes > 0) report(Math.floor((bytes * done) / Math.max(total, 1)), bytes)
  }

const NO_CHILDREN = { areThere: false, names: [] } as const

/** An image whose deletion was interrupted is in the list, and cannot be opened any more. */
async function ifThere<T>(work: Promise<T>, instead: T): Promise<T> {
  try {
    return await work
  } catch (error) {
    if ((error as RpcError).code === 'ENOENT') return instead
    throw error
  }
}

class ImageSnapshots implements SnapshotOperations {
  readonly #store: ImageStore

  constructor(store: ImageStore) {
    this.#store = store
  }

  whileOpen(): readonly ('create' | 'delete')[] {
    return ['create', 'delete']
  }

  async create({ name }: VolumeFacts, snapshot: string): Promise<void> {
    checkImageName(snapshot, 'a snapshot')
    await this.#store.createSnapshot(name, snapshot)
  }

  async list({ name }: VolumeFacts): Promise<VolumeSnapshot[]> {
    const found = await ifThere(this.#store.snapshots(name), [])
    return found.map(({ name: snapshot, created, sizeBytes }) => ({ name: snapshot, created, sizeBytes }))
  }

  /** Ceph goes back object by object, and a second time ends as the first. */
  revert({ name, capacityBytes }: VolumeFacts, snapshot: string, options: RevertOptions): Promise<void> {
    return this.#store.rollBack(name, snapshot, inBytes(options, capacityBytes))
  }

  delete({ name }: VolumeFacts, snapshot: string): Promise<void> {
    return this.#store.removeSnapshot(name, snapshot)
  }
}

/** What `rbd` itself cannot take in a name of an image, since it parses names. */
function checkImageName(name: string, what: string): void {
  if (!name.includes('@')) return
  throw new RpcError('EINVAL', `${JSON.stringify(name)} cannot be the name of ${what} of Ceph: an @ is in it`)
}

const ORDER_MIN = 12
const ORDER_MAX = 25

/** NaN for what is no size of objects. */
function orderOf(bytes: number): number {
  const order = Math.log2(bytes)
  return Number.isInteger(order) && order >= ORDER_MIN && order <= ORDER_MAX ? order : Number.NaN
}

const usageOf = (usage: { totalBytes: number; availableBytes: number; usedBytes: number }): PoolUsage => ({
  capacityBytes: usage.totalBytes,
  availableBytes: usage.availableBytes,
  allocationBytes: usage.usedBytes,
})
