/** RBD images as devices, on the control thread: opening, closing, growing. */
import type { BdevInfo } from '../bdev/bdev.ts'
import { checkBlockSize } from '../bdev/geometry.ts'
import { IoType } from '../bdev/io.ts'
import type { BdevRegistry } from '../bdev/registry.ts'
import { deriveUuid } from '../bdev/uuid.ts'
import { RpcError, SysError } from '../core/errors.ts'
import { logger } from '../core/log.ts'
import type { ReactorGroup } from '../reactor/group.ts'
import type { MethodCall } from '../rpc/config.ts'
import { close, eventfd } from '../sys/libc.ts'
import { librbd } from '../sys/librbd.ts'
import { type Cluster, type ClusterOptions, RbdClusters } from './clusters.ts'
import { CompletionInbox } from './completion-inbox.ts'
import { factsOf, type ImageFacts } from './image-facts.ts'
import type { OpenImage } from './messages.ts'

const log = logger('rbd')

/** How often an image is asked for its size: what `rbd resize` does elsewhere is seen within this time. */
const SIZE_CHECK_MS = 1000

export interface ImageOptions {
  readonly name: string
  readonly pool: string
  readonly namespace: string
  readonly image: string
  /** Read only, as it was then. */
  readonly snapshot: string | undefined
  readonly blockSize: number
  readonly uuid: string | undefined
  readonly readOnly: boolean
  /** A registered cluster's name, or how to reach one. */
  readonly cluster: string | ClusterOptions
  /** The call that made it, for the configuration. */
  readonly call: MethodCall
}

/** What its operations besides I/O need. */
export interface OpenedImage {
  readonly info: BdevInfo
  readonly options: ImageOptions
  readonly cluster: Cluster
  /** librbd's handles. */
  readonly pool: number
  readonly image: number
}

interface Entry {
  readonly options: ImageOptions
  readonly cluster: Cluster
  readonly pool: number
  readonly device: OpenImage
  /** As `bdev_get_bdevs` shows it. */
  readonly description: Record<string, unknown>
  /** A refusal to shrink was logged. */
  warned: boolean
}

export class RbdImages {
  readonly clusters = new RbdClusters()
  readonly #bdevs: BdevRegistry
  readonly #reactors: ReactorGroup
  readonly #entries = new Map<string, Entry>()
  /** Names of devices that are being made. */
  readonly #opening = new Set<string>()
  /** Images whose device is gone and that librbd still closes, by the device's name. */
  readonly #closing = new Map<string, Promise<void>>()
  /** Clusters whose images are being asked for their sizes: one that does not answer is not asked again. */
  readonly #asked = new Set<Cluster>()
  #timer: NodeJS.Timeout | undefined

  constructor(bdevs: BdevRegistry, reactors: ReactorGroup) {
    this.#bdevs = bdevs
    this.#reactors = reactors
    bdevs.saveWith(() => [
      ...this.clusters.config(),
      ...[...this.#entries.values()].map(({ options, device: _ }) => options.call),
    ])
    bdevs.listen({ removed: info => this.#removed(info) })
  }

  /** `Ceph0`, `Ceph1` …, as SPDK names those that nobody named. */
  freeName(): string {
    for (let number = 0; ; number++) {
      const name = `Ceph${number}`
      if (this.#bdevs.find(name) === undefined && !this.#opening.has(name)) return name
    }
  }

  /** Throws `RpcError`: EEXIST, ENOENT for cluster, pool, image or snapshot, EINVAL, ENOTSUP without librbd. */
  async create(options: ImageOptions): Promise<BdevInfo> {
    const { name } = options
    checkBlockSize(name, 'block_size', options.blockSize)
    if (this.#opening.has(name)) {
      throw new RpcError('EEXIST', `a bdev named ${name} is being created: choose another name`)
    }
    this.#opening.add(name)
    try {
      const cluster = await this.clusters.acquire(options.cluster)
      try {
        return await this.#open(options, cluster)
      } catch (error) {
        await this.clusters.release(cluster)
        throw error
      }
    } finally {
      this.#opening.delete(name)
    }
  }

  /** In bytes. Throws `RpcError` ENODEV, EINVAL, or EBUSY when it would shrink while somebody has it. */
  async resize(name: string, sizeBytes: number): Promise<void> {
    const { info, image } = this.opened(name)
    const blockCount = Math.floor(sizeBytes / info.blockSize)
    if (blockCount < 1) {
      throw new RpcError('EINVAL', `${name} has blocks of ${info.blockSize} bytes, more than ${sizeBytes}`)
    }
    // A device in use is not made smaller: said before the image is.
    if (blockCount < info.blockCount) await this.#bdevs.resize(info.name, blockCount)
    const result = await librbd().resizeImage(image, sizeBytes)
    if (result < 0) {
      throw new RpcError(
        'EINVAL',
        `${name}: Ceph refuses a size of ${sizeBytes} bytes: ${new SysError('rbd_resize', -result).code}`,
      )
    }
    await this.#bdevs.resize(info.name, blockCount)
  }

  /** It is no clone any more. */
  flattened(name: string): void {
    const entry = this.#entries.get(name)
    if (entry !== undefined) delete entry.description['parent']
  }

  /** Throws `RpcError` ENODEV. */
  opened(name: string): OpenedImage {
    const info = this.#bdevs.get(name)
    const entry = this.#entries.get(info.name)
    if (entry === undefined) throw new RpcError('ENODEV', `${name} is a ${info.driver} bdev, not rbd`)
    const { options, cluster, pool, device } = entry
    return { info, options, cluster, pool, image: device.image }
  }

  /**
   * Does something to an image that nobody may have in use meanwhile, and looks at its size afterwards. Throws `RpcError`
   * ENODEV, EBUSY, or what `work` throws.
   */
  async whileUnused(
    name: string,
    doing: string,
    work: (opened: OpenedImage) => Promise<void>,
  ): Promise<void> {
    const opened = this.opened(name)
    const owners = this.#bdevs.ownersOf(name)
    if (owners !== '') {
      throw new RpcError(
        'EBUSY',
        `${name} would change under ${owners}, which has it: take it away from there before ${doing}`,
      )
    }
    const claim = this.#bdevs.claim(name, doing, 'exclusive_write')
    try {
      await work(opened)
    } finally {
      claim.release()
    }
    const entry = this.#entries.get(opened.info.name)
    if (entry !== undefined) await this.#checkSize(opened.info.name, entry)
  }

  /** Takes the device away, and resolves when the image is closed: another gateway may have its lock then. */
  async remove(name: string): Promise<void> {
    await this.#bdevs.remove(name, 'rbd')
    await this.#closing.get(name)
  }

  /** Every device was removed before. */
  async stop(): Promise<void> {
    await Promise.all(this.#closing.values())
    for (const { name } of this.clusters.list()) await this.clusters.unregister(name)
  }

  async #open(options: ImageOptions, cluster: Cluster): Promise<BdevInfo> {
    const library = librbd()
    const { name } = options
    const pool = await library.openPool(cluster.handle, options.pool, options.namespace)
    if (pool < 0) throw openError(`${name}: the pool ${options.pool}`, -pool)
    const path = pathOf(options)
    const { image: imageName, snapshot = null } = options
    const image = await library.openImage(pool, imageName, snapshot, options.readOnly || snapshot !== null)
    if (image < 0) {
      library.closePool(pool)
      throw openError(`${name}: the image ${path}`, -image)
    }
    const descriptors = openDescriptors(this.#reactors.count)
    try {
      const info = await this.#describe(options, cluster, pool, { image, ...descriptors })
      const result = library.setNotification(image, descriptors.eventfd)
      if (result < 0) throw new SysError('rbd_set_image_notification', -result, `of ${path}`)
      await this.#bdevs.add(info)
      this.#timer ??= setInterval(() => this.#checkSizes(), SIZE_CHECK_MS)
      const device = info.device as OpenImage
      this.#entries.set(name, {
        options: keepUuid(options, info),
        cluster,
        pool,
        device,
        description: info.driverSpecific['rbd'] as Record<string, unknown>,
        warned: false,
      })
      return info
    } catch (error) {
      await library.closeImage(image)
      library.closePool(pool)
      closeDescriptors(descriptors)
      throw error
    }
  }

  async #describe(
    options: ImageOptions,
    cluster: Cluster,
    pool: number,
    open: Omit<OpenImage, 'stripeUnit'>,
  ): Promise<BdevInfo> {
    const library = librbd()
    const { name, blockSize, snapshot } = options
    const sizeBytes = await library.imageSize(open.image)
    const stripeUnit = await library.stripeUnit(open.image)
    if (sizeBytes < blockSize) {
      throw new RpcError('EINVAL', `${name} has ${sizeBytes} bytes, less than a block of ${blockSize}`)
    }
    const facts = await factsOf(cluster, open.image)
    const device: OpenImage = { ...open, stripeUnit }
    const identity = [
      cluster.fsid,
      String(library.poolId(pool)),
      options.namespace,
      library.imageId(open.image),
      snapshot ?? '',
    ]
    return {
      name,
      aliases: [],
      driver: 'rbd',
      product: 'Ceph Rbd Disk',
      // Gateways on one image agree without being told.
      uuid: options.uuid ?? deriveUuid('rbd', ...identity),
      blockSize,
      physicalBlockSize: Math.max(blockSize, 4096),
      blockCount: Math.floor(sizeBytes / blockSize),
      supports: new Set([
        IoType.READ,
        IoType.WRITE,
        IoType.FLUSH,
        IoType.UNMAP,
        IoType.WRITE_ZEROES,
        IoType.COMPARE_AND_WRITE,
      ]),
      writeCache: facts.isCached,
      readOnly: options.readOnly || snapshot !== undefined,
      bases: [],
      device,
      driverSpecific: { rbd: describe(options, facts) },
    }
  }

  #checkSizes(): void {
    for (const cluster of new Set([...this.#entries.values()].map(entry => entry.cluster))) {
      if (!this.#asked.has(cluster)) void this.#checkSizesOf(cluster)
    }
  }

  async #checkSizesOf(cluster: Cluster): Promise<void> {
    this.#asked.add(cluster)
    for (const [name, entry] of [...this.#entries]) {
      if (entry.cluster === cluster) await this.#checkSize(name, entry)
    }
    this.#asked.delete(cluster)
  }

  async #checkSize(name: string, entry: Entry): Promise<void> {
    const info = this.#bdevs.find(name)
    if (this.#entries.get(name) !== entry || info === undefined) return
    const sizeBytes = await librbd().imageSize(entry.device.image)
    const blockCount = Math.floor(sizeBytes / info.blockSize)
    if (sizeBytes < 0 || blockCount === info.blockCount || this.#entries.get(name) !== entry) return
    try {
      await this.#bdevs.resize(name, blockCount)
      entry.warned = false
    } catch (error) {
      if (!entry.warned) log.warning((error as Error).message)
      entry.warned = true
    }
  }

  #removed({ name }: BdevInfo): void {
    const entry = this.#entries.get(name)
    if (entry === undefined) return
    this.#entries.delete(name)
    if (this.#entries.size === 0) {
      clearInterval(this.#timer)
      this.#timer = undefined
    }
    const closing = this.#close(entry).finally(() => this.#closing.delete(name))
    this.#closing.set(name, closing)
    closing.catch((error: Error) =>
      log.error(`${name} is removed, but its image not closed: ${error.message}`),
    )
  }

  async #close({ device, pool, cluster }: Entry): Promise<void> {
    const result = await librbd().closeImage(device.image)
    librbd().closePool(pool)
    closeDescriptors(device)
    await this.clusters.release(cluster)
    if (result < 0) throw new SysError('rbd_close', -result)
  }
}

function openDescriptors(reactorCount: number): Pick<OpenImage, 'eventfd' | 'inboxes'> {
  const inboxes = Array.from({ length: reactorCount }, () => ({
    ring: CompletionInbox.allocate(),
    doorbell: eventfd(),
  }))
  return { eventfd: eventfd(), inboxes }
}

function closeDescriptors(device: Pick<OpenImage, 'eventfd' | 'inboxes'>): void {
  close(device.eventfd)
  for (const { doorbell } of device.inboxes) close(doorbell)
}

export function pathOf({
  pool,
  namespace,
  image,
  snapshot,
}: Pick<ImageOptions, 'pool' | 'namespace' | 'image' | 'snapshot'>): string {
  const path = namespace === '' ? `${pool}/${image}` : `${pool}/${namespace}/${image}`
  return snapshot === undefined ? path : `${path}@${snapshot}`
}

/** What was derived once stays, whatever the cluster says later. */
function keepUuid(options: ImageOptions, info: BdevInfo): ImageOptions {
  const { method, params } = options.call
  return { ...options, call: { method, params: { ...params, name: info.name, uuid: info.uuid } } }
}

function describe(options: ImageOptions, facts: ImageFacts): Record<string, unknown> {
  const { pool, namespace, image, snapshot, cluster } = options
  const { features, objectSize, dataPool, parent } = facts
  return {
    pool_name: pool,
    ...(namespace === '' ? {} : { namespace }),
    rbd_name: image,
    ...(snapshot === undefined ? {} : { snapshot }),
    ...(typeof cluster === 'string' ? { cluster_name: cluster } : describeCluster(cluster)),
    features,
    object_size: objectSize,
    ...(dataPool === undefined ? {} : { data_pool: dataPool }),
    ...(parent === undefined ? {} : { parent }),
  }
}

/** Everybody who may list devices may see it, so it has no key. */
function describeCluster({ user, file, options }: ClusterOptions): Record<string, unknown> {
  const { key: _, ...config } = options
  return {
    ...(user === undefined ? {} : { user_id: user }),
    ...(file === undefined ? {} : { config_file: file }),
    ...(Object.keys(config).length === 0 ? {} : { config }),
  }
}

function openError(what: string, errno: number): RpcError {
  const { code } = new SysError('rbd_open', errno)
  if (code === 'ENOENT')
    return new RpcError('ENOENT', `${what} does not exist: see "rbd ls" and "ceph osd pool ls"`)
  if (code === 'EROFS') return new RpcError('EROFS', `${what} cannot be written to: use read_only`)
  if (code === 'EPERM' || code === 'EACCES') {
    return new RpcError(
      'EACCES',
      `${what} may not be opened by this user: "ceph auth caps" with osd 'profile rbd' allows it`,
    )
  }
  return new RpcError('EINVAL', `${what} cannot be opened: ${code}`)
}
