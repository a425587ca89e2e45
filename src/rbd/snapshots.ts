/** Snapshots and clones of images that are open as devices. */
import { errnoNumber, RpcError, SysError } from '../core/errors.ts'
import { librbd } from '../sys/librbd.ts'
import { librbdPool } from '../sys/librbd-pool.ts'
import { USER_SNAPSHOT } from '../sys/librbd-snapshots.ts'
import type { RbdImage } from './image.ts'
import type { RbdImages } from './images.ts'

/** Objects of the image that are done with, and how many there are. */
export type Report = (done: number, total: number) => void

export interface Snapshot {
  readonly id: number
  readonly name: string
  /** What the image had then. */
  readonly sizeBytes: number
  /** It cannot be deleted until it is unprotected. */
  readonly isProtected: boolean
  readonly created: Date
}

export interface CloneOptions {
  readonly snapshot: string
  readonly image: string
  /** The parent's pool by default. */
  readonly pool: string | undefined
}

/** What is done to a snapshot, by what it is called in messages. */
export type SnapshotAction = 'create' | 'delete' | 'protect' | 'unprotect'

/** What an errno means and what helps; `Ceph refuses` otherwise. */
const REFUSALS: Readonly<Record<string, Readonly<Record<string, string>>>> = {
  create: { EEXIST: 'exists already: choose another name' },
  delete: {
    ENOENT: 'does not exist: see bdev_rbd_snapshot_list',
    EBUSY: 'is protected or has clones: unprotect it first, or flatten the clones',
  },
  protect: {
    ENOENT: 'does not exist: see bdev_rbd_snapshot_list',
    EBUSY: 'is protected already',
  },
  unprotect: {
    ENOENT: 'does not exist: see bdev_rbd_snapshot_list',
    EINVAL: 'is not protected',
    EBUSY: 'has clones: flatten them first ("rbd children" names them)',
  },
  'roll back to': { ENOENT: 'does not exist: see bdev_rbd_snapshot_list' },
  clone: {
    ENOENT: 'does not exist: see bdev_rbd_snapshot_list',
    EEXIST: 'cannot be cloned: there is an image of that name already, choose another',
    EINVAL: 'cannot be cloned while it is not protected: see bdev_rbd_snapshot_protect',
    EPERM:
      'cannot be cloned by this user: it needs osd \'profile rbd\' for the pool of the clone, see "ceph auth get"',
  },
  flatten: { EINVAL: 'is no clone' },
}

export class RbdSnapshots {
  readonly #images: RbdImages

  constructor(images: RbdImages) {
    this.#images = images
  }

  /** Throws `RpcError`: ENODEV, ENOENT, EEXIST, EBUSY, EROFS, EIO. */
  async act(action: SnapshotAction, name: string, snapshot: string): Promise<void> {
    const opened = this.#images.opened(name)
    if (action === 'delete') this.#refuseOpen(opened, snapshot)
    const library = librbd()
    const calls = {
      create: library.createSnapshot,
      delete: library.removeSnapshot,
      protect: library.protectSnapshot,
      unprotect: library.unprotectSnapshot,
    }
    check(opened, action, snapshot, await opened.use(image => calls[action](image, snapshot)))
  }

  /** Ceph would delete it all the same, and its readers go on with what the image holds now. */
  #refuseOpen(opened: RbdImage, snapshot: string): void {
    const device = this.#images.deviceOf(opened, snapshot)
    if (device === undefined) return
    throw new RpcError(
      'EBUSY',
      `the snapshot ${opened.path}@${snapshot} is open as ${device}: delete that device first (bdev_rbd_delete)`,
    )
  }

  /** The oldest first. */
  async list(name: string): Promise<Snapshot[]> {
    return this.#images.opened(name).use(image => listSnapshots(name, image))
  }

  /**
   * Makes the image what it was then, which takes the longer the more it holds: the work that is to be done. Nobody may
   * have the device in use until it has ended, nor any other client have the image open, unless `force` says that it may:
   * what is done with it there cannot be known here. Throws `RpcError`: ENODEV, ENOENT, EROFS, EBUSY.
   */
  async rollBack(
    name: string,
    snapshot: string,
    { force }: { readonly force: boolean },
  ): Promise<(report: Report) => Promise<void>> {
    const there = await this.list(name)
    const found = this.#images.opened(name)
    if (!there.some(each => each.name === snapshot)) {
      check(found, 'roll back to', snapshot, -errnoNumber('ENOENT'))
    }
    if (found.info.readOnly) check(found, 'roll back to', snapshot, -errnoNumber('EROFS'))
    if (!force) await refuseOthers(found)
    const { image: opened, giveBack } = this.#images.takeUnused(name, `rolling back to ${snapshot}`)
    return async report => {
      try {
        const result = await opened.use(image => librbd().rollBack(image, snapshot, report))
        check(opened, 'roll back to', snapshot, result)
      } finally {
        await giveBack()
      }
    }
  }

  async clone(name: string, options: CloneOptions): Promise<void> {
    const opened = this.#images.opened(name)
    const result = await opened.use((_, parentPool) => clone(opened, parentPool, options))
    check(opened, 'clone', options.snapshot, result)
  }

  /**
   * Copies to a clone what it still has from its parent, while it is in use, which may take long: the work that is to be
   * done. Throws `RpcError`: ENODEV, EINVAL.
   */
  flatten(name: string): (report: Report) => Promise<void> {
    const opened = this.#images.opened(name)
    if (!opened.isClone) check(opened, 'flatten', undefined, -errnoNumber('EINVAL'))
    return async report => {
      check(opened, 'flatten', undefined, await opened.use(image => flatten(image, report)))
      opened.flattened()
    }
  }
}

async function refuseOthers(opened: RbdImage): Promise<void> {
  const { path, cluster } = opened
  const clients = await opened.use(image => librbdPool().watchers(image))
  if (typeof clients === 'number') throw new SysError('rbd_watchers_list', -clients, `of ${path}`)
  // One of them is this daemon.
  if (clients.length <= 1) return
  const remedy = cluster.isManaged
    ? 'the other members of the gateway group do, as long as the device is there: take its namespace away, and use force once ' +
      'all have followed (gateway_show)'
    : 'delete its device on other gateways first, or use force when nobody uses it there'
  throw new RpcError(
    'EBUSY',
    `${path} would change under other clients of Ceph that have it open (${clients.join(', ')}, one of which is this ` +
      `daemon): ${remedy}; a client that was killed counts for half a minute`,
  )
}

/** Those that somebody made, the oldest first. Throws `SysError`. */
export async function listSnapshots(name: string, image: number): Promise<Snapshot[]> {
  const library = librbd()
  const found = await library.listSnapshots(image)
  if (typeof found === 'number') throw new SysError('rbd_snap_list', -found, `of ${name}`)
  const snapshots: Snapshot[] = []
  for (const { id, name: snapshot, sizeBytes } of found) {
    if ((await library.snapshotKind(image, id)) !== USER_SNAPSHOT) continue
    const isProtected = (await library.isProtected(image, snapshot)) === 1
    const created = new Date((await library.snapshotTime(image, id)) * 1000)
    snapshots.push({ id, name: snapshot, sizeBytes, isProtected, created })
  }
  return snapshots
}

/** `RBD_FEATURE_OBJECT_MAP` and `RBD_FEATURE_FAST_DIFF`, which needs the other. */
const OBJECT_MAP = 8 | 16

/**
 * Without the map of objects: librbd does not copy what that says is there, and a client that was killed between the map
 * and the object leaves it wrong. The clone would read zeros where its parent has data. It is made anew only when there
 * is no parent any more: of a clone librbd makes one that says that all is there.
 */
async function flatten(image: number, report: Report): Promise<number> {
  const library = librbd()
  const features = await library.features(image)
  if (features < 0) return features
  const map = features & OBJECT_MAP
  if (map !== 0) {
    const result = await library.updateFeatures(image, map, false)
    if (result < 0) return result
  }
  const result = await library.flatten(image, report)
  if (result < 0 || map === 0) return result
  const enabled = await library.updateFeatures(image, map, true)
  return enabled < 0 ? enabled : library.rebuildObjectMap(image)
}

async function clone(
  { cluster, options }: RbdImage,
  parentPool: number,
  { snapshot, image, pool }: CloneOptions,
): Promise<number> {
  const library = librbd()
  const target = pool === undefined ? parentPool : await library.openPool(cluster.handle, pool, '')
  if (target < 0) throw new RpcError('ENOENT', `the pool ${pool} does not exist: see "ceph osd pool ls"`)
  try {
    return await library.clone(parentPool, options.image, snapshot, target, image)
  } finally {
    if (target !== parentPool) library.closePool(target)
  }
}

function check(
  { path }: RbdImage,
  action: SnapshotAction | 'roll back to' | 'clone' | 'flatten',
  snapshot: string | undefined,
  result: number,
): void {
  if (result >= 0) return
  const { code } = new SysError('librbd', -result)
  const what = snapshot === undefined ? path : `the snapshot ${path}@${snapshot}`
  if (code === 'EROFS') {
    throw new RpcError(
      'EROFS',
      `cannot ${action} ${what}: the device is read only, open the image for writing`,
    )
  }
  const meaning = REFUSALS[action]?.[code]
  if (meaning === undefined) throw new RpcError('EIO', `cannot ${action} ${what}: Ceph says ${code}`)
  throw new RpcError(code as 'ENOENT', `${what} ${meaning}`)
}
