/** Snapshots and clones of images that are open as devices. */
import { RpcError, SysError } from '../core/errors.ts'
import { logger } from '../core/log.ts'
import { librbd } from '../sys/librbd.ts'
import type { RbdImage } from './image.ts'
import type { RbdImages } from './images.ts'

const log = logger('rbd')

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
    const library = librbd()
    const calls = {
      create: library.createSnapshot,
      delete: library.removeSnapshot,
      protect: library.protectSnapshot,
      unprotect: library.unprotectSnapshot,
    }
    check(opened, action, snapshot, await opened.use(image => calls[action](image, snapshot)))
  }

  /** The oldest first. */
  async list(name: string): Promise<Snapshot[]> {
    return this.#images.opened(name).use(image => listSnapshots(name, image))
  }

  /** Makes the image what it was then, which takes the longer the more it holds. Nobody may have it in use. */
  async rollBack(name: string, snapshot: string): Promise<void> {
    await this.#images.whileUnused(name, `rolling back to ${snapshot}`, opened =>
      logged(`${name} is rolled back to ${snapshot}`, async () =>
        check(
          opened,
          'roll back to',
          snapshot,
          await opened.use(image => librbd().rollBack(image, snapshot)),
        ),
      ),
    )
  }

  async clone(name: string, options: CloneOptions): Promise<void> {
    const opened = this.#images.opened(name)
    const result = await opened.use((_, parentPool) => clone(opened, parentPool, options))
    check(opened, 'clone', options.snapshot, result)
  }

  /** Copies to a clone what it still has from its parent, while it is in use: that may take long. */
  async flatten(name: string): Promise<void> {
    const opened = this.#images.opened(name)
    await logged(`${name} is flattened`, async () =>
      check(opened, 'flatten', undefined, await opened.use(image => librbd().flatten(image))),
    )
    opened.flattened()
  }
}

async function listSnapshots(name: string, image: number): Promise<Snapshot[]> {
  const library = librbd()
  const found = await library.listSnapshots(image)
  if (typeof found === 'number') throw new SysError('rbd_snap_list', -found, `of ${name}`)
  const snapshots: Snapshot[] = []
  for (const { id, name: snapshot, sizeBytes } of found) {
    const isProtected = (await library.isProtected(image, snapshot)) === 1
    const created = new Date((await library.snapshotTime(image, id)) * 1000)
    snapshots.push({ id, name: snapshot, sizeBytes, isProtected, created })
  }
  return snapshots
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

/** librbd tells how far it is only on threads of its own, which may not call into JavaScript: so begin and end are told. */
async function logged(what: string, work: () => Promise<void>): Promise<void> {
  const startMs = performance.now()
  log.notice(`${what}: started`)
  await work()
  log.notice(`${what}: done after ${Math.round((performance.now() - startMs) / 1000)} s`)
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
