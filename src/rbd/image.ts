/** One image that is open as a device, on the control thread: its handles, and what is done with it besides I/O. */
import type { BdevInfo } from '../bdev/bdev.ts'
import { IoType } from '../bdev/io.ts'
import { deriveUuid } from '../bdev/uuid.ts'
import { RpcError, SysError } from '../core/errors.ts'
import { logger } from '../core/log.ts'
import type { MethodCall } from '../rpc/config.ts'
import { close, eventfd } from '../sys/libc.ts'
import { librbd } from '../sys/librbd.ts'
import { type OpenCache, openCacheOf } from './cache/open-cache.ts'
import { readLive } from './cache/sources.ts'
import type { Cluster, ClusterOptions } from './cluster.ts'
import { CompletionInbox } from './completion-inbox.ts'
import { factsOf, type ImageFacts } from './image-facts.ts'
import { ImageState, type OpenImage } from './messages.ts'

const log = logger('rbd')

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

/** librbd's handles. */
interface Handles {
  readonly pool: number
  readonly image: number
}

/** The handles, and what the image had in force when it was opened under them: later changes do not count. */
interface Opened extends Handles {
  /** Which image it is, whatever its name; images of format 1 have none. */
  readonly id: string
  readonly cache: OpenCache
}

export class RbdImage {
  readonly options: ImageOptions
  readonly cluster: Cluster
  readonly info: BdevInfo
  readonly state: ImageState
  /** A refusal to shrink was logged. */
  warned = false
  #handles: Opened
  /** Calls that use the handles, which must not be closed under them. */
  readonly #operations = new Set<Promise<unknown>>()

  private constructor(options: ImageOptions, cluster: Cluster, info: BdevInfo, handles: Opened) {
    this.options = options
    this.cluster = cluster
    this.info = info
    this.state = new ImageState((info.device as OpenImage).state)
    this.#handles = handles
  }

  /** Throws `RpcError`: ENOENT, EACCES, EROFS, EINVAL. */
  static async open(options: ImageOptions, cluster: Cluster, reactorCount: number): Promise<RbdImage> {
    const handles = await openHandles(options, cluster)
    const device = makeDevice(handles.image, reactorCount)
    try {
      const stripeUnit = await librbd().stripeUnit(handles.image)
      const info = await describeBdev(options, cluster, handles, { ...device, stripeUnit })
      notify(options, handles.image, device.eventfd)
      return new RbdImage(options, cluster, info, handles)
    } catch (error) {
      closeDescriptors(device)
      await closeHandles(handles)
      throw error
    }
  }

  get path(): string {
    return pathOf(this.options)
  }

  /** Does something with the handles, which are not closed before it is done. */
  async use<T>(work: (image: number, pool: number) => Promise<T>): Promise<T> {
    const operation = work(this.#handles.image, this.#handles.pool)
    this.#operations.add(operation)
    try {
      return await operation
    } finally {
      this.#operations.delete(operation)
    }
  }

  /**
   * Opens the image under its cluster's new connection, while I/O goes on. `tell` has the channels change over to an
   * opening (see `ImageState`), and resolves when they have. What the old client had kept back is lost: the next flush
   * fails then. Throws as `open`; nothing has changed then.
   */
  async openAgain(tell: (opening: number) => Promise<void>): Promise<void> {
    const handles = await openHandles(this.options, this.cluster)
    const old = this.#handles
    try {
      this.#refuseOther(handles)
      this.#refuseNewCache(handles.cache)
      notify(this.options, handles.image, (this.info.device as OpenImage).eventfd)
    } catch (error) {
      await closeHandles(handles)
      throw error
    }
    this.#handles = handles
    await tell(this.state.openAnew(handles.image))
    // Not before: what was outstanding under the old client has failed by now.
    if (this.state.settle(old.cache.retention)) {
      log.error(
        `${this.info.name}: what was acknowledged since the last flush may be lost: it was in the RBD cache of the ` +
          'client that Ceph shut out; the next flush or forced write fails, to tell',
      )
    }
    await Promise.allSettled(this.#operations)
    await closeHandles(old)
  }

  /** Somebody may have given its name to another image meanwhile, whose blocks are not those that hosts have read. */
  #refuseOther({ id }: Opened): void {
    const { name } = this.info
    if (id === this.#handles.id) return
    if (id === '') throw new RpcError('EAGAIN', `${name}: Ceph does not tell which image ${this.path} is`)
    throw new RpcError('ENOENT', `${name}: ${this.path} is another image now than the one that was open`)
  }

  /** Hosts that were told of no cache do not flush, and a subsystem of several gateways may have the device. */
  #refuseNewCache({ privateCache }: OpenCache): void {
    const { name } = this.info
    if (privateCache === undefined || this.info.privateCache !== undefined) return
    const { what, remedy } = privateCache
    throw new RpcError('EINVAL', `${name} was opened without a cache, and would have ${what} now: ${remedy}`)
  }

  /** Nothing uses the device any more. Throws `SysError` when Ceph has something to say; it is closed all the same. */
  async close(): Promise<void> {
    await Promise.allSettled(this.#operations)
    const result = await closeHandles(this.#handles)
    closeDescriptors(this.info.device as OpenImage)
    if (result < 0) throw new SysError('rbd_close', -result, `of ${this.path}`)
  }

  /** When it was opened, and has not been flattened here since. */
  get isClone(): boolean {
    return (this.info.driverSpecific['rbd'] as Record<string, unknown>)['parent'] !== undefined
  }

  /** It is no clone any more. */
  flattened(): void {
    delete (this.info.driverSpecific['rbd'] as Record<string, unknown>)['parent']
  }

  /** What was derived once stays, whatever the cluster says later. */
  config(): MethodCall {
    const { method, params } = this.options.call
    return { method, params: { ...params, name: this.info.name, uuid: this.info.uuid } }
  }
}

async function openHandles(options: ImageOptions, cluster: Cluster): Promise<Opened> {
  const library = librbd()
  const { image: imageName, snapshot = null } = options
  const pool = await library.openPool(cluster.handle, options.pool, options.namespace)
  if (pool < 0) throw openError(options, cluster, `the pool ${options.pool}`, -pool)
  const image = await library.openImage(pool, imageName, snapshot, options.readOnly || snapshot !== null)
  const path = pathOf(options)
  if (image < 0) {
    library.closePool(pool)
    throw openError(options, cluster, `the image ${path}`, -image)
  }
  try {
    const about = { path, isSnapshot: snapshot !== null, isReadOnly: options.readOnly }
    const id = library.imageId(image)
    return { pool, image, id, cache: openCacheOf(await readLive(image, path), about) }
  } catch (error) {
    await closeHandles({ pool, image })
    throw error
  }
}

async function closeHandles({ image, pool }: Handles): Promise<number> {
  const result = await librbd().closeImage(image)
  librbd().closePool(pool)
  return result
}

function notify(options: ImageOptions, image: number, descriptor: number): void {
  const result = librbd().setNotification(image, descriptor)
  if (result < 0) throw new SysError('rbd_set_image_notification', -result, `of ${pathOf(options)}`)
}

function makeDevice(image: number, reactorCount: number): Omit<OpenImage, 'stripeUnit'> {
  const inboxes = Array.from({ length: reactorCount }, () => ({
    ring: CompletionInbox.allocate(),
    doorbell: eventfd(),
  }))
  return { state: ImageState.allocate(image), eventfd: eventfd(), inboxes }
}

function closeDescriptors(device: Pick<OpenImage, 'eventfd' | 'inboxes'>): void {
  close(device.eventfd)
  for (const { doorbell } of device.inboxes) close(doorbell)
}

async function describeBdev(
  options: ImageOptions,
  cluster: Cluster,
  { pool, image, id, cache }: Opened,
  device: OpenImage,
): Promise<BdevInfo> {
  const library = librbd()
  const { name, blockSize, snapshot } = options
  const sizeBytes = await library.imageSize(image)
  if (sizeBytes < blockSize) {
    throw new RpcError('EINVAL', `${name} has ${sizeBytes} bytes, less than a block of ${blockSize}`)
  }
  const facts = await factsOf(cluster, image)
  const identity = [cluster.fsid, String(library.poolId(pool)), options.namespace, id, snapshot ?? '']
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
    ...(cache.privateCache === undefined ? {} : { privateCache: cache.privateCache }),
    readOnly: options.readOnly || snapshot !== undefined,
    bases: [],
    device,
    driverSpecific: { rbd: describe(options, facts) },
  }
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

function openError(options: ImageOptions, { user }: Cluster, part: string, errno: number): RpcError {
  const { pool, namespace, image, snapshot } = options
  const { code } = new SysError('rbd_open', errno)
  const what = `${options.name}: ${part}`
  const isReader = options.readOnly || snapshot !== undefined
  if (code === 'ENOENT') {
    const inside = namespace === '' ? pool : `${pool}/${namespace}`
    const snapshots = snapshot === undefined ? '' : ` and "rbd snap ls ${inside}/${image}"`
    const where = part.startsWith('the pool') ? '"ceph osd pool ls"' : `"rbd ls ${inside}"${snapshots}`
    return new RpcError('ENOENT', `${what} does not exist: see ${where}`)
  }
  if (code === 'EROFS') return new RpcError('EROFS', `${what} cannot be written to: use read_only`)
  if (code === 'EPERM' || code === 'EACCES') {
    const needed = isReader ? 'profile rbd-read-only' : 'profile rbd'
    return new RpcError(
      'EACCES',
      `${what} may not be ${isReader ? 'read' : 'written to'} by client.${user}: see "ceph auth get client.${user}"; it ` +
        `needs osd '${needed} pool=${pool}'${isReader ? '' : ', or read_only here, if it may only read'}`,
    )
  }
  return new RpcError('EINVAL', `${what} cannot be opened: ${code}`)
}
