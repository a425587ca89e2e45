/**
 * Reference counts on the control thread, where an operation changes many of them and then writes them all. What is in
 * memory is what was looked at. The counterpart on the reactors is `allocator.ts`.
 */
import { RpcError } from '../../../core/errors.ts'
import { REFCOUNT_TABLE_BYTES_MAX } from '../../../spec/qcow2.ts'
import { getRefcount, offsetOf, setRefcount } from './geometry.ts'
import type { ImageHandle } from './image-handle.ts'
import { type GrowthPlan, planGrowth } from './refcount-growth.ts'
import { setEntry } from './tree.ts'

interface Block {
  readonly offset: number
  readonly bytes: Buffer<ArrayBuffer>
  readonly view: DataView
  isDirty: boolean
}

export class Refcounts {
  readonly #image: ImageHandle
  #table: Buffer<ArrayBuffer>
  #tableView: DataView
  readonly #blocks = new Map<number, Block>()
  #isTableDirty = false
  /** Where the table lies that a larger one has replaced. */
  #oldTable: { readonly offset: number; readonly clusters: number } | null = null
  #hint = 1

  private constructor(image: ImageHandle, table: Buffer<ArrayBuffer>) {
    this.#image = image
    this.#table = table
    this.#tableView = viewOf(table)
  }

  static async load(image: ImageHandle): Promise<Refcounts> {
    const { refcountTableOffset, refcountTableClusters, geometry } = image.header
    return new Refcounts(
      image,
      await image.read(refcountTableOffset, refcountTableClusters * geometry.clusterSize),
    )
  }

  /** Blocks by their number; where they lie, 0 for none. */
  get blockOffsets(): number[] {
    const count = this.#table.length / 8
    return Array.from({ length: count }, (_, index) => this.#blockOffset(index))
  }

  /** The count of a cluster, if what has it is in memory: millions of promises would take longer than the work. */
  getNow(cluster: number): number | undefined {
    const { blockEntries, refcountOrder } = this.#image.header.geometry
    const block = this.#blocks.get(Math.floor(cluster / blockEntries))
    return block === undefined ? undefined : getRefcount(block.view, 0, cluster % blockEntries, refcountOrder)
  }

  /** Gives the memory of a block back, unless it was changed. */
  forget(index: number): void {
    if (this.#blocks.get(index)?.isDirty === false) this.#blocks.delete(index)
  }

  async get(cluster: number): Promise<number> {
    const { blockEntries, refcountOrder } = this.#image.header.geometry
    const block = await this.#block(Math.floor(cluster / blockEntries))
    return block === null ? 0 : getRefcount(block.view, 0, cluster % blockEntries, refcountOrder)
  }

  async set(cluster: number, count: number): Promise<void> {
    const { blockEntries, refcountOrder } = this.#image.header.geometry
    const index = Math.floor(cluster / blockEntries)
    let block = await this.#block(index)
    if (block === null) {
      this.#addBlocks(index, this.#plan(index, 0))
      block = (await this.#block(index))!
    }
    setRefcount(block.view, 0, cluster % blockEntries, refcountOrder, count)
    block.isDirty = true
    if (count === 0) this.#hint = Math.min(this.#hint, Math.max(1, cluster))
  }

  /** Counts `delta` more references to `count` clusters. Throws `RpcError` ENOSPC when they are too many for their width. */
  async add(start: number, count: number, delta: number): Promise<void> {
    for (let cluster = start; cluster < start + count; cluster++) {
      const next = this.#sum(await this.get(cluster), delta)
      // Less than none: the image was wrong before, and a check tells how.
      if (next >= 0) await this.set(cluster, next)
    }
  }

  /** Likewise for one cluster, if what has its count is in memory; false when it is not. */
  addNow(cluster: number, delta: number): boolean {
    const { blockEntries, refcountOrder } = this.#image.header.geometry
    const block = this.#blocks.get(Math.floor(cluster / blockEntries))
    if (block === undefined) return false
    const index = cluster % blockEntries
    const next = this.#sum(getRefcount(block.view, 0, index, refcountOrder), delta)
    if (next < 0) return true
    setRefcount(block.view, 0, index, refcountOrder, next)
    block.isDirty = true
    if (next === 0) this.#hint = Math.min(this.#hint, Math.max(1, cluster))
    return true
  }

  #sum(count: number, delta: number): number {
    const { refcountMax } = this.#image.header.geometry
    if (count + delta <= refcountMax) return count + delta
    throw new RpcError(
      'ENOSPC',
      `${this.#image.path} would have ${count + delta} references to a cluster and its refcounts end at ` +
        `${refcountMax}: convert it to wider ones (qemu-img amend -o refcount_bits=16), or delete snapshots`,
    )
  }

  /** Takes `count` clusters that lie together. Returns the first. */
  async allocate(count: number): Promise<number> {
    const { blockEntries } = this.#image.header.geometry
    let start = this.#hint
    for (let cluster = start; cluster < start + count; cluster++) {
      const block = Math.floor(cluster / blockEntries)
      if ((await this.#block(block)) === null) return await this.#append(block, count)
      if (this.getNow(cluster) !== 0) start = cluster + 1
    }
    for (let cluster = start; cluster < start + count; cluster++) await this.set(cluster, 1)
    if (start === this.#hint) this.#hint += count
    return start
  }

  /**
   * Likewise, of clusters that no block counts yet, from block number `from` on. All blocks that they need lie in front of
   * them: each at the beginning of what it counts would leave no room for more than one block counts.
   */
  async #append(from: number, count: number): Promise<number> {
    for (let index = from; ; index++) {
      const plan = this.#plan(index, count)
      if (!this.#hasBlocks(index, plan.blocks)) {
        this.#addBlocks(index, plan)
        const start = plan.start + plan.usedClusters
        for (let cluster = start; cluster < start + count; cluster++) await this.set(cluster, 1)
        return start
      }
    }
  }

  /** Brings everything to the file, on stable storage: blocks, then the table, then, if it has moved, where it is. */
  async write(): Promise<void> {
    for (const block of this.#blocks.values()) {
      if (!block.isDirty) continue
      await this.#image.write(block.offset, block.bytes)
      block.isDirty = false
    }
    await this.#image.sync()
    if (!this.#isTableDirty) return
    await this.#image.write(this.#tableOffset, this.#table)
    await this.#image.sync()
    this.#isTableDirty = false
    const old = this.#oldTable
    if (old === null) return
    this.#oldTable = null
    const { clusterSize } = this.#image.header.geometry
    await this.#image.changeHeader({
      refcountTableOffset: this.#movedTo,
      refcountTableClusters: this.#table.length / clusterSize,
    })
    await this.add(old.offset / clusterSize, old.clusters, -1)
    await this.write()
  }

  #movedTo = 0

  get #tableOffset(): number {
    return this.#oldTable === null ? this.#image.header.refcountTableOffset : this.#movedTo
  }

  #blockOffset(index: number): number {
    if (index * 8 >= this.#table.length) return 0
    const offset = offsetOf(this.#tableView.getUint32(index * 8), this.#tableView.getUint32(index * 8 + 4))
    return offset % this.#image.header.geometry.clusterSize === 0 ? offset : 0
  }

  async #block(index: number): Promise<Block | null> {
    const present = this.#blocks.get(index)
    if (present !== undefined) return present
    const offset = this.#blockOffset(index)
    if (offset === 0) return null
    const bytes = await this.#image.read(offset, this.#image.header.geometry.clusterSize)
    const block: Block = { offset, bytes, view: viewOf(bytes), isDirty: false }
    this.#blocks.set(index, block)
    return block
  }

  #hasBlocks(index: number, count: number): boolean {
    for (let i = index; i < index + count; i++) if (this.#blockOffset(i) !== 0) return true
    return false
  }

  #plan(index: number, others: number): GrowthPlan {
    const { geometry } = this.#image.header
    const plan = planGrowth(geometry, index, this.#table.length / geometry.clusterSize, others)
    if (plan.start > 0 && plan.tableClusters * geometry.clusterSize <= REFCOUNT_TABLE_BYTES_MAX) return plan
    throw new RpcError('ENOSPC', `${this.#image.path} cannot have more refcounts: use larger clusters`)
  }

  #addBlocks(index: number, plan: GrowthPlan): void {
    const { geometry } = this.#image.header
    const { clusterSize, refcountOrder } = geometry
    const tableClusters = this.#table.length / clusterSize
    if (plan.tableClusters > tableClusters) {
      const table = Buffer.alloc(plan.tableClusters * clusterSize)
      this.#table.copy(table)
      this.#oldTable ??= {
        offset: this.#image.header.refcountTableOffset,
        clusters: this.#image.header.refcountTableClusters,
      }
      this.#table = table
      this.#tableView = viewOf(table)
      this.#movedTo = (plan.start + plan.blocks) * clusterSize
    }
    for (let i = 0; i < plan.blocks; i++) {
      const offset = (plan.start + i) * clusterSize
      setEntry(this.#tableView, (index + i) * 8, offset, 0)
      const bytes = Buffer.alloc(clusterSize)
      this.#blocks.set(index + i, { offset, bytes, view: viewOf(bytes), isDirty: true })
    }
    this.#isTableDirty = true
    for (let i = 0; i < plan.usedClusters; i++) {
      const cluster = plan.start + i
      const block = this.#blocks.get(Math.floor(cluster / geometry.blockEntries))!
      setRefcount(block.view, 0, cluster % geometry.blockEntries, refcountOrder, 1)
    }
  }
}

const viewOf = (bytes: Buffer<ArrayBuffer>): DataView =>
  new DataView(bytes.buffer, bytes.byteOffset, bytes.length)
