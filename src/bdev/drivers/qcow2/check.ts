/** Counts every reference in an image anew, compares, and mends. */
import { RpcError } from '../../../core/errors.ts'
import { ENTRY_COPIED, Incompatible } from '../../../spec/qcow2.ts'
import { readBitmaps } from './bitmaps.ts'
import { isCompressed, offsetOf } from './geometry.ts'
import type { CheckResult, LongOperation } from './image.ts'
import type { ImageHandle } from './image-handle.ts'
import { Refcounts } from './refcounts.ts'
import { encodedSize, readSnapshots } from './snapshots.ts'
import { canBeTable, markTree, referenceOf, type Tree, tablesOf, viewOf } from './tree.ts'

const PROBLEMS_MAX = 100
/** Clusters that are counted together: few, so that an image whose entries lie far apart does not take much memory. */
const CHUNK = 128

/** Refcount blocks that stay in memory after they were looked at. */
const BLOCKS_KEPT = 4096

interface WrongCount {
  readonly cluster: number
  /** References that there are. */
  readonly is: number
  /** More are counted. */
  readonly isTooHigh: boolean
}

/** How often each cluster of the file is referred to. */
class Counts {
  readonly clusters: number
  readonly #chunks = new Map<number, Uint32Array>()

  constructor(clusters: number) {
    this.clusters = clusters
  }

  get(cluster: number): number {
    return this.#chunks.get(Math.floor(cluster / CHUNK))?.[cluster % CHUNK] ?? 0
  }

  /** Every cluster that may have been counted. */
  *all(): Generator<number> {
    for (const index of this.#chunks.keys()) {
      const end = Math.min((index + 1) * CHUNK, this.clusters)
      for (let cluster = index * CHUNK; cluster < end; cluster++) yield cluster
    }
  }

  /** False when they are not all within the file. */
  add(start: number, count: number): boolean {
    if (start + count > this.clusters) return false
    for (let cluster = start; cluster < start + count; cluster++) {
      const index = Math.floor(cluster / CHUNK)
      let chunk = this.#chunks.get(index)
      if (chunk === undefined) {
        chunk = new Uint32Array(CHUNK)
        this.#chunks.set(index, chunk)
      }
      chunk[cluster % CHUNK]!++
    }
    return true
  }
}

export async function check(
  image: ImageHandle,
  isRepairing: boolean,
  long: LongOperation = {},
): Promise<CheckResult> {
  const checker = new Checker(image, long)
  await checker.countAll()
  return await checker.compare(isRepairing)
}

class Checker {
  readonly #image: ImageHandle
  readonly #long: LongOperation
  readonly #counts: Counts
  readonly #clusterSize: number
  readonly #problems: string[] = []
  #corruptions = 0
  #leaks = 0

  constructor(image: ImageHandle, long: LongOperation) {
    this.#image = image
    this.#long = long
    this.#clusterSize = image.header.geometry.clusterSize
    this.#counts = new Counts(Math.ceil(image.fileSize / this.#clusterSize))
  }

  async countAll(): Promise<void> {
    const image = this.#image
    const { header } = image
    this.#table('the header', 0, this.#clusterSize)
    this.#table(
      'the refcount table',
      header.refcountTableOffset,
      header.refcountTableClusters * this.#clusterSize,
    )
    const snapshots = await readSnapshots(image)
    if (snapshots.length > 0)
      this.#table('the snapshot table', header.snapshotsOffset, encodedSize(snapshots))
    await this.#tree('the active L1 table', header)
    for (const snapshot of snapshots) await this.#tree(`the L1 table of snapshot ${snapshot.id}`, snapshot)
    if (header.bitmaps !== null) {
      this.#table('the bitmap directory', header.bitmaps.offset, header.bitmaps.sizeBytes)
      for (const { name, tableOffset, tableSize } of await readBitmaps(image)) {
        this.#table(`the table of bitmap ${JSON.stringify(name)}`, tableOffset, tableSize * 8)
        const table = viewOf(await image.read(tableOffset, tableSize * 8))
        for (let at = 0; at < tableSize * 8; at += 8) {
          const offset = offsetOf(table.getUint32(at), table.getUint32(at + 4))
          if (offset > 0) this.#table('a part of a bitmap', offset, this.#clusterSize)
        }
      }
    }
  }

  async compare(isRepairing: boolean): Promise<CheckResult> {
    const image = this.#image
    const refcounts = await Refcounts.load(image)
    const { blockOffsets } = refcounts
    const seen = new Set<number>()
    for (const offset of blockOffsets) {
      if (offset === 0) continue
      this.#table('a refcount block', offset, this.#clusterSize)
      if (seen.has(offset)) this.#corrupt(`the refcount table names the block at ${offset} twice`)
      seen.add(offset)
    }
    const found = this.#corruptions
    const wrong = await this.#compareCounts(refcounts, blockOffsets)
    const flags = await this.#compareFlags(refcounts)
    this.#corruptions += flags
    let repaired = 0
    if (isRepairing) {
      // What cannot be followed may refer to what seems to have nobody: given to another, that would be lost.
      const mendable = wrong.filter(({ isTooHigh }) => found === 0 || !isTooHigh)
      for (const { cluster, is } of mendable) await refcounts.set(cluster, is)
      await refcounts.write()
      repaired = mendable.length + (await markTree(image, refcounts))
      await image.sync()
      const mended = found === 0 ? Incompatible.DIRTY | Incompatible.CORRUPT : Incompatible.DIRTY
      const { incompatible } = image.header
      if ((incompatible & mended) !== 0) await image.changeHeader({ incompatible: incompatible & ~mended })
    }
    return {
      leaks: this.#leaks,
      corruptions: this.#corruptions,
      problems: this.#problems,
      repaired,
    }
  }

  /** The clusters that are counted otherwise than they are referred to: those of each block, and those that have none. */
  async #compareCounts(refcounts: Refcounts, blockOffsets: readonly number[]): Promise<WrongCount[]> {
    const { blockEntries } = this.#image.header.geometry
    const wrong: WrongCount[] = []
    const compare = (cluster: number, counted: number): void => {
      const is = this.#counts.get(cluster)
      if (is === counted) return
      wrong.push({ cluster, is, isTooHigh: counted > is })
      if (counted > is) this.#leaks++
      else this.#corruptions++
      this.#tell(`cluster ${cluster} has ${is} references and ${counted} are counted`)
    }
    const seen = new Set<number>([0])
    for (const [index, offset] of blockOffsets.entries()) {
      if (seen.has(offset)) continue
      seen.add(offset)
      this.#long.signal?.throwIfAborted()
      // Also behind the file's end: what was allocated there and never written is lost as soon as the file grows.
      for (let cluster = index * blockEntries; cluster < (index + 1) * blockEntries; cluster++) {
        compare(cluster, refcounts.getNow(cluster) ?? (await refcounts.get(cluster)))
      }
      if (index >= BLOCKS_KEPT) refcounts.forget(index)
    }
    for (const cluster of this.#counts.all()) {
      if ((blockOffsets[Math.floor(cluster / blockEntries)] ?? 0) === 0) compare(cluster, 0)
    }
    return wrong
  }

  /** Entries of the active tree that say the wrong thing about being the only one. */
  async #compareFlags(refcounts: Refcounts): Promise<number> {
    const { geometry, l1Offset, l1Size } = this.#image.header
    const l1 = viewOf(await this.#image.read(l1Offset, l1Size * 8))
    let wrong = 0
    const compare = (what: string, cluster: number, high: number, count: number): void => {
      const isOne = count === 1
      if (((high & ENTRY_COPIED) !== 0) === isOne) return
      wrong++
      this.#tell(`${what} at cluster ${cluster} is ${isOne ? 'not ' : ''}said to have one reference`)
    }
    for await (const { index, offset, view } of tablesOf(this.#image, this.#image.header)) {
      const cluster = offset / this.#clusterSize
      compare('an L2 table', cluster, l1.getUint32(index * 8), await refcounts.get(cluster))
      for (let at = 0; at < this.#clusterSize; at += geometry.entrySize) {
        const high = view.getUint32(at)
        const reference = referenceOf(geometry, high, view.getUint32(at + 4))
        if (reference === null || isCompressed(high)) continue
        const count = refcounts.getNow(reference.start) ?? (await refcounts.get(reference.start))
        compare('data', reference.start, high, count)
      }
    }
    return wrong
  }

  async #tree(what: string, tree: Tree): Promise<void> {
    const { geometry, sizeBytes } = this.#image.header
    if (tree.l1Size === 0) return
    // Two tables in one place: the second was not made by anybody who meant well, and is not followed.
    if (this.#counts.get(tree.l1Offset / this.#clusterSize) > 0) {
      this.#corrupt(`${what} lies where something else does`)
      return
    }
    this.#table(what, tree.l1Offset, tree.l1Size * 8)
    const l1 = viewOf(await this.#image.read(tree.l1Offset, tree.l1Size * 8))
    for (let index = 0; index < tree.l1Size; index++) {
      const offset = offsetOf(l1.getUint32(index * 8), l1.getUint32(index * 8 + 4))
      if (offset > 0 && !canBeTable(this.#image, offset)) this.#corrupt(`an L2 table is at ${offset}`)
    }
    const seen = new Set<number>()
    for await (const { index, offset, view } of tablesOf(this.#image, tree, this.#long.signal)) {
      this.#long.onProgress?.(Math.min((index + 1) * geometry.l2Span, sizeBytes), sizeBytes)
      if (seen.has(offset)) {
        this.#corrupt(`${what} names the L2 table at ${offset} twice`)
        continue
      }
      seen.add(offset)
      this.#table('an L2 table', offset, this.#clusterSize)
      for (let at = 0; at < this.#clusterSize; at += geometry.entrySize) this.#entry(view, at)
    }
  }

  #entry(view: DataView, at: number): void {
    const high = view.getUint32(at)
    const low = view.getUint32(at + 4)
    const reference = referenceOf(this.#image.header.geometry, high, low)
    if (reference !== null) {
      // Compressed data may end in the file's last cluster, or with its last sector behind it.
      if (!this.#counts.add(reference.start, reference.count)) {
        this.#corrupt(`data is at cluster ${reference.start}, beyond the file's end`)
      }
    } else if (offsetOf(high, low) > 0) this.#corrupt(`data is at ${offsetOf(high, low)}, not at a cluster`)
  }

  /** A table, a part of which may lie behind the file's last byte, though not behind its last cluster. */
  #table(what: string, offset: number, size: number): void {
    const start = offset / this.#clusterSize
    const count = Math.max(1, Math.ceil(size / this.#clusterSize))
    if (!Number.isInteger(start) || !this.#counts.add(start, count)) {
      this.#corrupt(`${what} is at ${offset}, where the file has no room for it`)
    }
  }

  #corrupt(problem: string): void {
    this.#corruptions++
    this.#tell(problem)
  }

  #tell(problem: string): void {
    if (this.#problems.length < PROBLEMS_MAX) this.#problems.push(problem)
  }
}

/** Mends an image that is marked as dirty, before it is written to. Throws `RpcError` EINVAL when that is not enough. */
export async function repairDirty(image: ImageHandle): Promise<CheckResult | null> {
  if ((image.header.incompatible & Incompatible.DIRTY) === 0) return null
  const result = await check(image, true)
  const again = await check(image, false)
  if (again.corruptions === 0) return result
  throw new RpcError(
    'EINVAL',
    `${image.path} was not closed properly and has ${again.corruptions} errors that counting anew does not mend ` +
      `(${again.problems[0]}): use qemu-img check -r all ${image.path}`,
  )
}
