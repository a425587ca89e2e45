/** RBD images as devices, on the control thread: opening, closing, growing, and coming back after Ceph shut them out. */
import type { BdevInfo } from '../bdev/bdev.ts'
import { checkBlockSize } from '../bdev/geometry.ts'
import type { BdevRegistry } from '../bdev/registry.ts'
import { RpcError, SysError } from '../core/errors.ts'
import { formatSize } from '../core/format-size.ts'
import { logger } from '../core/log.ts'
import type { ReactorGroup } from '../reactor/group.ts'
import { librbd } from '../sys/librbd.ts'
import type { Cluster } from './cluster.ts'
import { RbdClusters } from './clusters.ts'
import { type ImageOptions, pathOf, RbdImage } from './image.ts'
import type { OpenedAnewMessage } from './messages.ts'
import { StallWatch } from './stall-watch.ts'

const log = logger('rbd')

const MIB = 2 ** 20
/** How often an image is asked for its size: what `rbd resize` does elsewhere is seen within this time. */
const CHECK_MS = 1000
/** How often it is looked at whether I/O stands still: each look is a message to every reactor. */
const STALL_CHECKS = 5
/**
 * How long a client that was shut out stays so before its images are opened anew. What a daemon that was frozen had
 * received from its hosts, who have written elsewhere since, fails within this time.
 */
const SHUT_OUT_MS = 5000
/** At the end of the daemon images are given this long to be closed: a cluster that does not answer would hold it up. */
const STOP_MS = 5000

export class RbdImages {
  readonly clusters = new RbdClusters()
  readonly #bdevs: BdevRegistry
  readonly #reactors: ReactorGroup
  readonly #images = new Map<string, RbdImage>()
  /** Names of devices that are being made. */
  readonly #opening = new Set<string>()
  /** Images whose device is gone and that librbd still closes, by the device's name. */
  readonly #closing = new Map<string, Promise<void>>()
  /** Clusters whose images are being looked at: one that does not answer is not asked again. */
  readonly #checking = new Set<Cluster>()
  readonly #stalls = new StallWatch()
  #checks = 0
  #timer: NodeJS.Timeout | undefined

  constructor(bdevs: BdevRegistry, reactors: ReactorGroup) {
    this.#bdevs = bdevs
    this.#reactors = reactors
    bdevs.saveWith(() => [
      ...this.clusters.config(),
      ...[...this.#images.values()].map(image => image.config()),
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
        return await cluster.alone(() => this.#open(options, cluster))
      } catch (error) {
        await this.clusters.release(cluster)
        throw error
      }
    } finally {
      this.#opening.delete(name)
    }
  }

  /**
   * In bytes. Throws `RpcError` ENODEV, EINVAL, also for less than the image has unless `shrink` says that this is meant,
   * or EBUSY when it would shrink while somebody has it.
   */
  async resize(name: string, sizeBytes: number, { shrink }: { readonly shrink: boolean }): Promise<void> {
    const opened = this.opened(name)
    const { info } = opened
    const blockCount = Math.floor(sizeBytes / info.blockSize)
    if (blockCount < 1) {
      throw new RpcError('EINVAL', `${name} has blocks of ${info.blockSize} bytes, more than ${sizeBytes}`)
    }
    if (!shrink) await this.#refuseLess(opened, sizeBytes)
    // A device in use is not made smaller: said before the image is.
    if (blockCount < info.blockCount) await this.#bdevs.resize(info.name, blockCount)
    const result = await opened.use(image => librbd().resizeImage(image, sizeBytes, () => {}))
    if (result < 0) {
      throw new RpcError(
        'EINVAL',
        `${name}: Ceph refuses a size of ${sizeBytes} bytes: ${new SysError('rbd_resize', -result).code}`,
      )
    }
    await this.#bdevs.resize(info.name, blockCount)
  }

  /** By what Ceph has at this moment: somebody may have grown it, and the device does not know yet. */
  async #refuseLess(image: RbdImage, sizeBytes: number): Promise<void> {
    const hasBytes = await image.use(handle => librbd().imageSize(handle))
    if (sizeBytes >= hasBytes) return
    throw new RpcError(
      'EINVAL',
      `${image.info.name} has ${formatSize(hasBytes)}, and would lose what lies behind ${formatSize(sizeBytes)}: if that ` +
        `is meant, take it from whoever has it and use "rbd resize --allow-shrink --size ${Math.ceil(sizeBytes / MIB)}M ` +
        `${image.path}"; the device follows`,
    )
  }

  /** Throws `RpcError` ENODEV. */
  opened(name: string): RbdImage {
    const info = this.#bdevs.get(name)
    const image = this.#images.get(info.name)
    if (image === undefined) throw new RpcError('ENODEV', `${name} is a ${info.driver} bdev, not rbd`)
    return image
  }

  /** The device that is open of a snapshot of an image. */
  deviceOf({ cluster, options }: RbdImage, snapshot: string): string | undefined {
    const path = pathOf({ ...options, snapshot })
    const images = [...this.#images.values()]
    return images.find(each => each.path === path && each.cluster.fsid === cluster.fsid)?.info.name
  }

  /**
   * Takes an image that nobody may have in use meanwhile. `giveBack` looks at its size, which may be another now. Throws
   * `RpcError` ENODEV, EBUSY.
   */
  takeUnused(name: string, doing: string): { readonly image: RbdImage; giveBack(): Promise<void> } {
    const image = this.opened(name)
    const owners = this.#bdevs.ownersOf(name)
    if (owners !== '') {
      throw new RpcError(
        'EBUSY',
        `${name} would change under ${owners}, which has it: take it away from there before ${doing}`,
      )
    }
    const claim = this.#bdevs.claim(name, doing, 'exclusive_write')
    return {
      image,
      giveBack: () => {
        claim.release()
        return this.#checkSize(image)
      },
    }
  }

  /** Takes the device away, and resolves when the image is closed: another gateway may have its lock then. */
  async remove(name: string): Promise<void> {
    const { info } = this.opened(name)
    await this.#bdevs.remove(info.name, 'rbd')
    await this.#closing.get(info.name)
  }

  /** Every device was removed before. */
  async stop(): Promise<void> {
    const closed = this.#closeAll()
    let timer: NodeJS.Timeout | undefined
    const late = new Promise<'late'>(resolve => {
      timer = setTimeout(() => resolve('late'), STOP_MS)
    })
    if ((await Promise.race([closed, late])) === 'late') {
      log.warning(`Ceph has not let go of every image after ${STOP_MS / 1000} s: not waiting any longer`)
    }
    clearTimeout(timer)
  }

  async #closeAll(): Promise<void> {
    await Promise.allSettled(this.#closing.values())
    for (const { name } of this.clusters.list()) await this.clusters.unregister(name)
  }

  async #open(options: ImageOptions, cluster: Cluster): Promise<BdevInfo> {
    const image = await RbdImage.open(options, cluster, this.#reactors.count)
    try {
      await this.#bdevs.add(image.info)
    } catch (error) {
      await image.close()
      throw error
    }
    this.#images.set(image.info.name, image)
    this.#timer ??= setInterval(() => this.#check(), CHECK_MS)
    return image.info
  }

  #check(): void {
    if (++this.#checks % STALL_CHECKS === 0) void this.#checkStalls()
    for (const cluster of new Set([...this.#images.values()].map(image => image.cluster))) {
      if (!this.#checking.has(cluster)) void this.#checkCluster(cluster)
    }
  }

  async #checkStalls(): Promise<void> {
    const names = [...this.#images.keys()]
    try {
      this.#stalls.look(performance.now(), names, await this.#bdevs.iostat(names, 'none'))
    } catch (error) {
      // One of them has gone meanwhile.
      log.debug(`I/O of ${names.join(', ')} is not looked at this time: ${error}`)
    }
  }

  async #checkCluster(cluster: Cluster): Promise<void> {
    this.#checking.add(cluster)
    const images = this.#imagesOf(cluster)
    if (!cluster.isManaged && images.some(image => image.state.isShutOut)) await this.#openAgain(cluster)
    else for (const image of images) await this.#checkSize(image)
    this.#checking.delete(cluster)
  }

  #imagesOf(cluster: Cluster): RbdImage[] {
    return [...this.#images.values()].filter(image => image.cluster === cluster)
  }

  #isOpen(image: RbdImage): boolean {
    return this.#images.get(image.info.name) === image
  }

  async #checkSize(image: RbdImage): Promise<void> {
    const { info } = image
    if (!this.#isOpen(image)) return
    const sizeBytes = await image.use(handle => librbd().imageSize(handle))
    const blockCount = Math.floor(sizeBytes / info.blockSize)
    if (sizeBytes < 0 || blockCount === info.blockCount || !this.#isOpen(image)) return
    try {
      await this.#bdevs.resize(info.name, blockCount)
      image.warned = false
    } catch (error) {
      if (!image.warned) log.warning((error as Error).message)
      image.warned = true
    }
  }

  /** Once Ceph has shut a client out, it stays out for good: the images are opened by a new one, as soon as that can be. */
  async #openAgain(cluster: Cluster): Promise<void> {
    const names = this.#imagesOf(cluster).map(({ info }) => info.name)
    log.error(
      `Ceph has shut this daemon out (ceph osd blocklist ls): I/O to ${names.join(', ')} fails until it is let in as another client`,
    )
    await new Promise(resolve => setTimeout(resolve, SHUT_OUT_MS))
    let complaint = ''
    while (this.#imagesOf(cluster).length > 0) {
      try {
        if (await cluster.alone(() => this.#changeClient(cluster))) {
          log.notice(`${names.join(', ')}: open again, as another client of Ceph`)
          return
        }
      } catch (error) {
        const { message } = error as Error
        if (message !== complaint) log.error(`${message}; trying again`)
        complaint = message
      }
      await new Promise(resolve => setTimeout(resolve, CHECK_MS))
    }
  }

  /** False while somebody else has something open under the old client. */
  async #changeClient(cluster: Cluster): Promise<boolean> {
    if (cluster.users > this.#imagesOf(cluster).length) return false
    await cluster.changeClient(async moved => {
      for (const image of this.#imagesOf(cluster)) {
        try {
          await image.openAgain(opening => this.#tellOpened(image, opening))
          moved()
        } catch (error) {
          if (!(error instanceof RpcError) || error.code !== 'ENOENT') throw error
          log.error(`${error.message}: the device goes`)
          await this.#bdevs.remove(image.info.name)
        }
      }
      // Nothing is open under the client that was shut out.
      await Promise.allSettled(this.#closing.values())
    })
    return true
  }

  async #tellOpened({ info }: RbdImage, opening: number): Promise<void> {
    try {
      await this.#bdevs.tell(info.name, { opening } satisfies OpenedAnewMessage)
    } catch (error) {
      // It is being removed, and nothing is outstanding when it is gone.
      if (this.#bdevs.find(info.name) !== undefined) throw error
    }
  }

  #removed({ name }: BdevInfo): void {
    const image = this.#images.get(name)
    if (image === undefined) return
    this.#images.delete(name)
    if (this.#images.size === 0) {
      clearInterval(this.#timer)
      this.#timer = undefined
    }
    const closing = this.#close(image).finally(() => this.#closing.delete(name))
    this.#closing.set(name, closing)
    closing.catch((error: Error) =>
      log.error(`${name} is removed, but its image not closed: ${error.message}`),
    )
  }

  async #close(image: RbdImage): Promise<void> {
    try {
      await image.close()
    } finally {
      await this.clusters.release(image.cluster)
    }
  }
}
