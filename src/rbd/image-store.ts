/**
 * The images of a Ceph pool as things to be listed, made and removed, whether or not they are open as devices. Each piece
 * of work has the pool open for as long as it lasts, so that nothing of it stands in the way of a change of the client.
 */
import { errnoNumber, type RpcCode, RpcError, SysError } from '../core/errors.ts'
import { librbd } from '../sys/librbd.ts'
import { type CreateImageOptions, type LibrbdPool, librbdPool } from '../sys/librbd-pool.ts'
import { USER_SNAPSHOT } from '../sys/librbd-snapshots.ts'
import type { Cluster } from './cluster.ts'
import type { RbdClusters } from './clusters.ts'
import { factsOf, type ImageFacts } from './image-facts.ts'
import { listSnapshots, type Report, type Snapshot } from './snapshots.ts'

export interface StoredImage {
  readonly name: string
  /** Of the objects that hold it: another that is made under its name has another. */
  readonly id: string
  /** In bytes. Undefined for images of format 1, which have to be opened to tell. */
  readonly sizeBytes: number | undefined
}

export interface StoreContents {
  readonly images: readonly StoredImage[]
  readonly usage: StoreUsage
}

export interface StoreUsage {
  /** Of the whole cluster. */
  readonly totalBytes: number
  readonly availableBytes: number
  /** What this pool's objects have. */
  readonly usedBytes: number
}

export interface OpenedFacts extends ImageFacts {
  readonly sizeBytes: number
  /** As `rbd du` has it; undefined for images without fast-diff, all objects of which would have to be looked for. */
  readonly usedBytes: number | undefined
}

/** What the handles are given to. */
interface Work {
  readonly cluster: Cluster
  readonly pool: number
  readonly store: LibrbdPool
}

const ENOENT = -errnoNumber('ENOENT')

export class ImageStore {
  readonly #clusters: RbdClusters
  readonly #cluster: string
  readonly #pool: string

  constructor(clusters: RbdClusters, cluster: string, pool: string) {
    this.#clusters = clusters
    this.#cluster = cluster
    this.#pool = pool
  }

  /** Throws `RpcError` as all that follow: ENOENT, EACCES, EIO, named by what Ceph says. */
  contents(): Promise<StoreContents> {
    return this.#use(async ({ cluster, pool, store }) => {
      const listed = await store.listImages(pool)
      if (typeof listed === 'number') throw this.#refusal('list the images', undefined, listed)
      const ids = listed.flatMap(({ id }) => (id === '' ? [] : [id]))
      const sizes = await store.imageSizes(pool, ids)
      if (typeof sizes === 'number') throw this.#refusal('read the sizes of the images', undefined, sizes)
      // One without a size has gone between the two questions, or is what an interrupted deletion has left.
      const isComplete = ids.every(id => sizes.get(id) !== undefined)
      const still = isComplete ? listed : await store.listImages(pool)
      if (typeof still === 'number') throw this.#refusal('list the images', undefined, still)
      const there = new Set(still.map(({ name }) => name))
      const images = listed
        .filter(({ name }) => there.has(name))
        .map(({ id, name }) => ({ id, name, sizeBytes: sizes.get(id) }))
      return { images, usage: await this.#usage({ cluster, pool, store }) }
    })
  }

  usage(): Promise<StoreUsage> {
    return this.#use(work => this.#usage(work))
  }

  /** Of the pool, whatever monitor was asked: the cluster's, and the pool's number. */
  identity(): Promise<string> {
    return this.#use(async ({ cluster, pool }) => `${cluster.fsid} ${librbd().poolId(pool)}`)
  }

  create(name: string, sizeBytes: number, options: CreateImageOptions): Promise<void> {
    return this.#use(async ({ pool, store }) => {
      this.#check('make', name, await store.createImage(pool, name, sizeBytes, options))
    })
  }

  remove(name: string, report: Report): Promise<void> {
    return this.#use(async ({ pool, store }) => {
      this.#check('delete', name, await store.removeImage(pool, name, report))
    })
  }

  rename(name: string, to: string): Promise<void> {
    return this.#use(async ({ pool, store }) => {
      this.#check('rename', name, await store.renameImage(pool, name, to))
    })
  }

  /**
   * Takes away what an interruption has left of giving `name` to a new image, or of renaming it to `to`. Ceph makes such a
   * change in three steps: the new name leads to the image, the pool lists it under that name, the old one leads nowhere. In
   * between, a name that is not listed leads to an image: no other can have it, and who deletes by it deletes an image that
   * may have another name by now. `name` is one that nobody else gives.
   */
  forgetInterrupted(name: string, to: string): Promise<void> {
    return this.#use(async ({ pool, store }) => {
      const listed = await store.listImages(pool)
      if (typeof listed === 'number') throw this.#refusal('list the images', undefined, listed)
      const image = listed.find(each => each.name === name)
      const left = image === undefined ? name : to
      if (image !== undefined && (await store.idOf(pool, to)) !== image.id) return
      const result = await store.forgetName(pool, left)
      if (result !== ENOENT) this.#check('make room for', left, result)
    })
  }

  /** What only opening it tells. */
  describe(name: string): Promise<OpenedFacts> {
    return this.#open(name, true, async (image, { cluster, store }) => {
      const sizeBytes = await librbd().imageSize(image)
      const facts = await factsOf(cluster, image)
      const usedBytes = facts.features.includes('fast-diff')
        ? await store.usedBytes(image, sizeBytes)
        : undefined
      return { ...facts, sizeBytes, usedBytes }
    })
  }

  /** Addresses of the clients that have it open for writing, this daemon's among them. */
  clients(name: string): Promise<readonly string[]> {
    return this.#open(name, true, async (image, { store }) => {
      const found = await store.watchers(image)
      if (typeof found === 'number') throw this.#refusal('ask who has it open of', name, found)
      return found
    })
  }

  resize(name: string, sizeBytes: number, report: Report): Promise<void> {
    return this.#open(name, false, async image => {
      this.#check('resize', name, await librbd().resizeImage(image, sizeBytes, report))
    })
  }

  snapshots(name: string): Promise<Snapshot[]> {
    return this.#open(name, true, image => listSnapshots(name, image))
  }

  createSnapshot(name: string, snapshot: string): Promise<void> {
    return this.#open(name, false, async image => {
      this.#check('make the snapshot', `${name}@${snapshot}`, await librbd().createSnapshot(image, snapshot))
    })
  }

  /** One that was protected for clones that are gone, too. */
  removeSnapshot(name: string, snapshot: string): Promise<void> {
    return this.#open(name, false, async image => {
      const library = librbd()
      const what = `${name}@${snapshot}`
      if ((await library.isProtected(image, snapshot)) === 1) {
        this.#check('delete the snapshot', what, await library.unprotectSnapshot(image, snapshot))
      }
      this.#check('delete the snapshot', what, await library.removeSnapshot(image, snapshot))
    })
  }

  rollBack(name: string, snapshot: string, report: Report): Promise<void> {
    return this.#open(name, false, async image => {
      this.#check('revert to', `${name}@${snapshot}`, await librbd().rollBack(image, snapshot, report))
    })
  }

  /** Whether images stand on snapshots of this one; `names` (`pool/image`) is empty where this user may not look for them. */
  children(name: string): Promise<{ readonly areThere: boolean; readonly names: readonly string[] }> {
    return this.#open(name, true, async image => {
      const library = librbd()
      const names = await library.listChildren(image)
      if (typeof names !== 'number') return { areThere: names.length > 0, names }
      const snapshots = await library.listSnapshots(image)
      if (typeof snapshots === 'number') throw this.#refusal('list the snapshots of', name, snapshots)
      const kinds = await Promise.all(snapshots.map(({ id }) => library.snapshotKind(image, id)))
      return { areThere: kinds.some(kind => kind !== USER_SNAPSHOT), names: [] }
    })
  }

  /**
   * A clone of the image as it is now, on a snapshot that may be there from an attempt that was interrupted. It is removed
   * from sight at once; Ceph keeps it for as long as the clone stands on it, and the image, too.
   */
  clone(name: string, child: string, snapshot: string): Promise<void> {
    return this.#open(name, false, async (image, { pool }) => {
      const library = librbd()
      const removed = await library.removeSnapshot(image, snapshot)
      if (removed !== ENOENT) this.#check('delete the snapshot', `${name}@${snapshot}`, removed)
      this.#check('make the snapshot', `${name}@${snapshot}`, await library.createSnapshot(image, snapshot))
      try {
        this.#check('clone', name, await library.clone(pool, name, snapshot, pool, child, 2))
      } finally {
        await library.removeSnapshot(image, snapshot)
      }
    })
  }

  async #usage({ cluster, pool, store }: Work): Promise<StoreUsage> {
    const all = await store.clusterUsage(cluster.handle)
    if (typeof all === 'number') throw this.#refusal('ask how full it is', undefined, all)
    const usedBytes = await store.poolBytes(pool)
    if (usedBytes < 0) throw this.#refusal('ask how full it is', undefined, usedBytes)
    return { ...all, usedBytes }
  }

  async #use<T>(work: (work: Work) => Promise<T>): Promise<T> {
    const cluster = await this.#clusters.acquire(this.#cluster)
    try {
      const pool = await librbd().openPool(cluster.handle, this.#pool, '')
      if (pool < 0) throw this.#refusal('open it', undefined, pool)
      const store = librbdPool()
      try {
        return await work({ cluster, pool, store })
      } finally {
        await store.closePool(pool)
      }
    } finally {
      await this.#clusters.release(cluster)
    }
  }

  #open<T>(name: string, readOnly: boolean, work: (image: number, work: Work) => Promise<T>): Promise<T> {
    return this.#use(async used => {
      const image = await librbd().openImage(used.pool, name, null, readOnly)
      if (image < 0) throw this.#refusal('open', name, image)
      try {
        return await work(image, used)
      } finally {
        await librbd().closeImage(image)
      }
    })
  }

  #check(doing: string, image: string, result: number): void {
    if (result < 0) throw this.#refusal(doing, image, result)
  }

  #refusal(doing: string, image: string | undefined, result: number): RpcError {
    const { code } = new SysError('librbd', -result)
    const what = image === undefined ? `the Ceph pool ${this.#pool}` : `${this.#pool}/${image}`
    const meaning = MEANINGS.get(`${doing} ${code}`) ?? MEANINGS.get(code)
    const known = meaning === undefined ? '' : `: ${meaning}`
    const said = image === undefined ? `${what}: cannot ${doing}` : `cannot ${doing} ${what}`
    return new RpcError((CODES.has(code) ? code : 'EIO') as RpcCode, `${said}: Ceph says ${code}${known}`)
  }
}

const CODES = new Set([
  ...['ENOENT', 'EEXIST', 'EACCES', 'EPERM', 'EBUSY', 'ENOTEMPTY', 'ENOSPC', 'EDQUOT', 'EINVAL', 'ETIMEDOUT'],
])

const MEANINGS: ReadonlyMap<string, string> = new Map([
  ['open it ENOENT', 'it has no pool of that name, see "ceph osd pool ls"'],
  [
    'delete EBUSY',
    'somebody has it open, "rbd status" says where; a client that was killed counts for half a minute',
  ],
  ['delete ENOTEMPTY', 'it has snapshots, which clones may stand on: "rbd children --all" names those'],
  ['delete the snapshot EBUSY', 'clones need it; qpair rbd flatten makes them independent of it'],
  ['EPERM', 'this user may not, "ceph auth caps" with osd \'profile rbd\' allows it'],
  ['EACCES', 'this user may not, "ceph auth caps" with osd \'profile rbd\' allows it'],
  [
    'EROFS',
    'another client has it locked, maybe one that was killed, which this user may not shut out: "ceph auth caps" with mon ' +
      '\'profile rbd\' allows that, "rbd lock ls" says who',
  ],
  ['EEXIST', 'there is one of that name already'],
  ['open ENOENT', 'it has gone, or is what an interrupted deletion has left, which deleting it removes'],
  ['ENOENT', 'it has gone'],
  ['EDQUOT', 'the quota of the pool is used up, see "ceph osd pool get-quota"'],
  ['ENOSPC', 'the cluster is full, see "ceph df"'],
  ['ESHUTDOWN', 'Ceph has shut this daemon out (ceph osd blocklist ls): stop the pool and start it again'],
])
