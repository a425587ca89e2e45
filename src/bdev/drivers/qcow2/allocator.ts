/**
 * Which clusters of the file are in use: the refcount table and its blocks.
 *
 *   table (in memory)  -->  blocks (in a cache, slice by slice)  -->  a count for each cluster
 *
 * Counts go up in memory at once, and reach the file before anything refers to the cluster: see `commit.ts`. They go down
 * only after what referred to the cluster is gone from the file for certain.
 */
import { SysError } from '../../../core/errors.ts'
import { REFCOUNT_TABLE_BYTES_MAX, SECTOR } from '../../../spec/qcow2.ts'
import { bytesAt, mapAnonymous, memcpy, unmap } from '../../../sys/memory.ts'
import { type Geometry, getRefcount, highOf, offsetOf, setRefcount } from './geometry.ts'
import type { Header } from './header.ts'
import type { ImageFile } from './image-file.ts'
import { type GrowthPlan, planGrowth } from './refcount-growth.ts'
import { SLICE_BYTES_MAX, type Slice, TableCache } from './table-cache.ts'
import { Mutex, type Steps, type Task, WaitList } from './task.ts'

const EIO = 5
const ENOSPC = 28
const PAGE = 4096
/** So many clusters behind the file's end may be counted as in use, lost in a crash, before the counts are not believed. */
const BEYOND_MAX = 1 << 22

/** Makes room in a cache where everything is dirty. */
type Relief = (task: Task) => Steps

/** What the allocator needs of the one who writes the header. */
export interface TableOwner {
  /** Nothing is being committed, and nothing will be until `release`. */
  readonly commitLock: Mutex
  /** Writes where the refcount table is to the header, and syncs before and after. */
  moveRefcountTable(task: Task, offset: number, clusters: number): Steps
}

export class Allocator {
  readonly cache: TableCache
  readonly geometry: Geometry
  /** What `allocate` got. */
  start = 0
  count = 0
  /** The clusters were never in use and lie behind the file's old end: they read as zeroes. */
  isFresh = false

  readonly #file: ImageFile
  readonly #relieve: Relief
  readonly #owner: TableOwner
  readonly #mutex = new Mutex()
  readonly #loading = new WaitList()
  readonly #sliceEntries: number
  #tableOffset: number
  #tableClusters: number
  /** The table, and behind `#mappedBytes` its sectors as they were when a commit took them. */
  #tableAddress: number
  #mappedBytes: number
  #table: DataView
  /** Sectors of the table that differ from the file's. */
  #dirtyTable = new Set<number>()
  /** Below it no cluster is free, as far as is known. */
  #hint = 1
  /** From this cluster on the file was never written to. */
  #freshFrom: number

  constructor(file: ImageFile, header: Header, cacheBytes: number, owner: TableOwner, relieve: Relief) {
    this.geometry = header.geometry
    const { clusterSize, refcountOrder } = this.geometry
    this.#file = file
    this.#owner = owner
    this.#relieve = relieve
    const sliceBytes = Math.min(clusterSize, SLICE_BYTES_MAX)
    this.cache = new TableCache(sliceBytes, cacheBytes)
    this.#sliceEntries = (sliceBytes * 8) / 2 ** refcountOrder
    this.#tableOffset = header.refcountTableOffset
    this.#tableClusters = header.refcountTableClusters
    this.#mappedBytes = Math.ceil(this.#tableBytes / PAGE) * PAGE
    this.#tableAddress = mapAnonymous(this.#mappedBytes * 2)
    this.#table = viewOf(this.#tableAddress, this.#mappedBytes)
    this.#freshFrom = Math.ceil(file.sizeBytes / clusterSize)
  }

  /** Reads the refcount table. */
  *open(task: Task): Steps {
    this.#file.read(this.#tableOffset, this.#tableAddress, this.#tableBytes, task.one)
    const result = yield
    if (result < 0) throw new SysError('read', -result, 'of the refcount table')
  }

  close(): void {
    this.cache.close()
    unmap(this.#tableAddress, this.#mappedBytes * 2)
  }

  get tableOffset(): number {
    return this.#tableOffset
  }

  get tableClusters(): number {
    return this.#tableClusters
  }

  get tableBytes(): number {
    return this.#tableBytes
  }

  get isDirty(): boolean {
    return this.cache.dirtyCount > 0 || this.#dirtyTable.size > 0
  }

  /** In bytes: nothing that is allocated lies behind it. */
  get endOffset(): number {
    return this.#freshFrom * this.geometry.clusterSize
  }

  /**
   * Takes up to `wanted` clusters that lie together, at least one, and sets their counts to 1. Tells which in `start`,
   * `count` and `isFresh`, to be read before the caller yields again.
   */
  *allocate(task: Task, wanted: number): Steps {
    if (!this.#mutex.isHeld && this.#tryAllocate(wanted)) return
    yield* this.#mutex.acquire(task)
    try {
      while (!this.#tryAllocate(wanted)) {
        const block = Math.floor(this.#hint / this.geometry.blockEntries)
        if (this.#blockOffset(block) === 0) yield* this.#addBlock(task, block)
        else yield* this.#slice(task, Math.floor(this.#hint / this.#sliceEntries))
      }
    } finally {
      this.#mutex.release()
    }
  }

  /** Likewise when nothing has to be waited for. False otherwise, and when `allocate` would throw. */
  allocateNow(wanted: number): boolean {
    if (this.#mutex.isHeld) return false
    try {
      return this.#tryAllocate(wanted)
    } catch (error) {
      if (error instanceof SysError) return false
      throw error
    }
  }

  /** Counts one reference less for each of the clusters. */
  *release(task: Task, start: number, count: number): Steps {
    for (let cluster = start; cluster < start + count; ) {
      const key = Math.floor(cluster / this.#sliceEntries)
      const slice = yield* this.#slice(task, key)
      const end = Math.min(start + count, (key + 1) * this.#sliceEntries)
      for (; cluster < end; cluster++) this.#decrement(slice, cluster)
    }
  }

  /** The count of a cluster. */
  *refcount(task: Task, cluster: number): Steps<number> {
    const block = Math.floor(cluster / this.geometry.blockEntries)
    if (this.#blockOffset(block) === 0) return 0
    const slice = yield* this.#slice(task, Math.floor(cluster / this.#sliceEntries))
    return getRefcount(slice.view, slice.base, cluster % this.#sliceEntries, this.geometry.refcountOrder)
  }

  /**
   * The sectors of the table that are to be written, which count as written from now on. As they are now: a block that they
   * name later may not be in the file yet when they are written.
   */
  takeDirtyTable(): number[] {
    const sectors = [...this.#dirtyTable]
    this.#dirtyTable.clear()
    for (const sector of sectors) {
      const address = this.#tableAddress + sector * SECTOR
      memcpy(address + this.#mappedBytes, address, SECTOR)
    }
    return sectors
  }

  /** They were not written after all. */
  returnDirtyTable(sectors: readonly number[]): void {
    for (const sector of sectors) this.#dirtyTable.add(sector)
  }

  writeTableSector(sector: number, task: Task): void {
    const at = sector * SECTOR
    const taken = this.#tableAddress + this.#mappedBytes + at
    this.#file.write(this.#tableOffset + at, taken, SECTOR, task.one)
  }

  get #tableBytes(): number {
    return this.#tableClusters * this.geometry.clusterSize
  }

  /** False when something has to be loaded or made first; the hint then says for which cluster. */
  #tryAllocate(wanted: number): boolean {
    const { refcountOrder, blockEntries, clusterSize } = this.geometry
    for (;;) {
      if (this.#blockOffset(Math.floor(this.#hint / blockEntries)) === 0) return false
      const key = Math.floor(this.#hint / this.#sliceEntries)
      const slice = this.cache.find(key)
      if (slice === null) return false
      if (this.#hint > this.#freshFrom + BEYOND_MAX) {
        throw new SysError('write', EIO, 'of a cluster: those far behind its end are all counted as in use')
      }
      let index = this.#hint - key * this.#sliceEntries
      while (index < this.#sliceEntries && getRefcount(slice.view, slice.base, index, refcountOrder) !== 0)
        index++
      this.#hint = key * this.#sliceEntries + index
      if (index === this.#sliceEntries) continue
      if (this.#hint > Number.MAX_SAFE_INTEGER / clusterSize / 2) {
        throw new SysError('write', ENOSPC, 'of a cluster beyond what offsets can tell')
      }
      let end = index
      while (
        end < this.#sliceEntries &&
        end - index < wanted &&
        getRefcount(slice.view, slice.base, end, refcountOrder) === 0
      ) {
        setRefcount(slice.view, slice.base, end, refcountOrder, 1)
        end++
      }
      this.cache.setDirty(slice)
      this.start = this.#hint
      this.count = end - index
      this.isFresh = this.start >= this.#freshFrom
      this.#hint += this.count
      this.#freshFrom = Math.max(this.#freshFrom, this.#hint)
      return true
    }
  }

  #decrement(slice: Slice, cluster: number): void {
    const { refcountOrder } = this.geometry
    const index = cluster % this.#sliceEntries
    const count = getRefcount(slice.view, slice.base, index, refcountOrder)
    // The image said that it was in use: it is wrong somewhere, and what is not counted cannot be given back.
    if (count === 0) return
    setRefcount(slice.view, slice.base, index, refcountOrder, count - 1)
    this.cache.setDirty(slice)
    if (count === 1) this.#hint = Math.min(this.#hint, cluster)
  }

  /** 0 when there is none. */
  #blockOffset(block: number): number {
    if (block * 8 >= this.#tableBytes) return 0
    const offset = offsetOf(this.#table.getUint32(block * 8), this.#table.getUint32(block * 8 + 4))
    if (offset % this.geometry.clusterSize !== 0) {
      throw new SysError('read', EIO, `of a refcount block at ${offset}, not at the beginning of a cluster`)
    }
    if (offset > 0 && offset >= this.#file.endBytes) {
      throw new SysError(
        'read',
        EIO,
        `of a refcount block at ${offset}, behind the file's end at ${this.#file.endBytes}`,
      )
    }
    return offset
  }

  *#slice(task: Task, key: number): Steps<Slice> {
    const cluster = key * this.#sliceEntries
    for (;;) {
      const present = this.cache.peek(key)
      if (present !== undefined && !present.isLoading) return present
      if (present !== undefined) {
        this.#loading.add(task)
        yield
        continue
      }
      const block = this.#blockOffset(Math.floor(cluster / this.geometry.blockEntries))
      if (block === 0) throw new SysError('read', EIO, `of the count of cluster ${cluster}, which has none`)
      const bytes = this.cache.sliceBytes
      const at = block + ((cluster % this.geometry.blockEntries) / this.#sliceEntries) * bytes
      const slice = this.cache.claim(key, at)
      if (slice === null) {
        yield* this.#relieve(task)
        continue
      }
      this.#file.read(at, slice.address, bytes, task.one)
      const result = yield
      if (result < 0) this.cache.drop(slice)
      else this.cache.loaded(slice)
      this.#loading.wakeAll()
      if (result < 0) throw new SysError('read', -result, 'of a refcount block')
      return slice
    }
  }

  /**
   * Makes a block for clusters that none counts. All of them are free, so the block takes the first, and counts itself.
   * When the table has no place for it either, a larger one follows the block.
   */
  *#addBlock(task: Task, block: number): Steps {
    const { clusterSize } = this.geometry
    const plan = planGrowth(this.geometry, block, this.#tableClusters)
    if (plan.tableClusters * clusterSize > REFCOUNT_TABLE_BYTES_MAX) {
      throw new SysError('write', ENOSPC, 'of a refcount table of more than 8 MiB')
    }
    if (plan.start === 0) throw new SysError('write', EIO, "of a refcount block: the header's own is missing")
    const memory = new Growth(plan.blocks * clusterSize)
    try {
      memory.count(this.geometry, plan.usedClusters)
      this.#file.write(plan.start * clusterSize, memory.address, plan.blocks * clusterSize, task.one)
      const result = yield
      if (result < 0) throw new SysError('write', -result, 'of a refcount block')
    } finally {
      memory.free()
    }
    this.#freshFrom = Math.max(this.#freshFrom, plan.start + plan.usedClusters)
    if (plan.tableClusters > this.#tableClusters) yield* this.#moveTable(task, block, plan)
    else this.#setBlock(block, plan.start * clusterSize)
  }

  #setBlock(block: number, offset: number): void {
    this.#table.setUint32(block * 8, highOf(offset))
    this.#table.setUint32(block * 8 + 4, offset % 2 ** 32)
    this.#dirtyTable.add(Math.floor((block * 8) / SECTOR))
  }

  /** Writes a larger table as a whole, and then where it is. */
  *#moveTable(task: Task, block: number, plan: GrowthPlan): Steps {
    const { clusterSize } = this.geometry
    yield* this.#owner.commitLock.acquire(task)
    const offset = this.#tableOffset
    const clusters = this.#tableClusters
    try {
      this.#enlarge(plan.tableClusters)
      for (let i = 0; i < plan.blocks; i++) this.#setBlock(block + i, (plan.start + i) * clusterSize)
      this.#tableOffset = (plan.start + plan.blocks) * clusterSize
      this.#file.write(this.#tableOffset, this.#tableAddress, this.#tableBytes, task.one)
      const result = yield
      if (result < 0) throw new SysError('write', -result, 'of the refcount table')
      yield* this.#owner.moveRefcountTable(task, this.#tableOffset, this.#tableClusters)
      this.#dirtyTable.clear()
    } catch (error) {
      // What lies behind the old table's end is forgotten: those clusters stay free.
      this.#tableOffset = offset
      this.#tableClusters = clusters
      for (const sector of this.#dirtyTable) {
        if (sector * SECTOR >= clusters * clusterSize) this.#dirtyTable.delete(sector)
      }
      throw error
    } finally {
      this.#owner.commitLock.release()
    }
    yield* this.release(task, offset / clusterSize, clusters)
  }

  #enlarge(clusters: number): void {
    const size = Math.ceil((clusters * this.geometry.clusterSize) / PAGE) * PAGE
    const address = mapAnonymous(size * 2)
    memcpy(address, this.#tableAddress, this.#tableBytes)
    unmap(this.#tableAddress, this.#mappedBytes * 2)
    this.#tableAddress = address
    this.#mappedBytes = size
    this.#tableClusters = clusters
    this.#table = viewOf(address, size)
  }
}

function viewOf(address: number, size: number): DataView {
  const { buffer, byteOffset } = bytesAt(address, size)
  return new DataView(buffer, byteOffset, size)
}

/** Memory for new blocks. */
class Growth {
  readonly address: number
  readonly #size: number

  constructor(sizeBytes: number) {
    this.#size = Math.ceil(sizeBytes / PAGE) * PAGE
    this.address = mapAnonymous(this.#size)
  }

  /** Sets the counts of the first `clusters` to 1. */
  count({ refcountOrder }: Geometry, clusters: number): void {
    const view = viewOf(this.address, this.#size)
    for (let i = 0; i < clusters; i++) setRefcount(view, 0, i, refcountOrder, 1)
  }

  free(): void {
    unmap(this.address, this.#size)
  }
}
