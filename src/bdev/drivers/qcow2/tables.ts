/** The L2 tables of the image on top, for those who change them: a table of one's own, in memory, when it is asked for. */
import { SysError } from '../../../core/errors.ts'
import { ENTRY_COPIED } from '../../../spec/qcow2.ts'
import type { Allocator } from './allocator.ts'
import type { Committer } from './commit.ts'
import { highOf } from './geometry.ts'
import type { ImageFile } from './image-file.ts'
import type { Qcow2Layer } from './layer.ts'
import type { Reclaimer } from './reclaim.ts'
import type { Slice } from './table-cache.ts'
import { join, Mutex, type Steps, type Task } from './task.ts'

/** Lends memory to a task; it may have to wait for it. */
export interface Buffers {
  acquire(task: Task, sizeBytes: number): Steps<number>
  release(address: number, sizeBytes: number): void
}

/** A new table that replaces a shared one is copied in pieces of this size. */
const COPY_BYTES = 65536

export class Tables {
  readonly #file: ImageFile
  readonly #layer: Qcow2Layer
  readonly #allocator: Allocator
  readonly #committer: Committer
  readonly #reclaimer: Reclaimer
  readonly #buffers: Buffers
  /** The cache has room for all tables: none is ever given up, and so none has to be written before a flush. */
  readonly #isWhole: boolean
  /** One table is made at a time. */
  readonly #mutex = new Mutex()
  readonly relieve = (task: Task): Steps => this.#committer.flush(task)

  constructor(
    layer: Qcow2Layer,
    allocator: Allocator,
    committer: Committer,
    reclaimer: Reclaimer,
    buffers: Buffers,
  ) {
    this.#file = layer.file
    this.#layer = layer
    this.#allocator = allocator
    this.#committer = committer
    this.#reclaimer = reclaimer
    this.#buffers = buffers
    this.#isWhole = layer.cache.capacity >= Math.ceil(layer.sizeBytes / layer.sliceSpan)
  }

  /**
   * The slice, of a table that nobody else refers to. To be changed before the caller yields again, and then marked with
   * `changed`.
   */
  *writable(task: Task, key: number): Steps<Slice> {
    const layer = this.#layer
    const index = Math.floor(key / layer.slicesPerTable)
    for (;;) {
      if (!isOwn(layer, index)) yield* this.#makeOwn(task, index)
      const slice = layer.cache.find(key) ?? (yield* layer.load(task, key, this.relieve))
      // While it was loaded nothing can have made the table shared.
      if (this.#hasRoom(slice)) return slice
      if (layer.cache.dirtyCount < layer.cache.capacity - 1) {
        this.#committer.request()
        return slice
      }
      yield* this.relieve(task)
    }
  }

  /** Likewise when nothing has to be waited for, otherwise null. */
  writableNow(key: number): Slice | null {
    const layer = this.#layer
    if (!layer.isTableExclusive(Math.floor(key / layer.slicesPerTable))) return null
    const slice = layer.cache.find(key)
    return slice !== null && this.#hasRoom(slice) ? slice : null
  }

  changed(slice: Slice): void {
    this.#layer.cache.setDirty(slice)
  }

  /** Whether it may become dirty without a thought of those that are to be loaded. */
  #hasRoom(slice: Slice): boolean {
    const { cache } = this.#layer
    return this.#isWhole || slice.isDirty || cache.dirtyCount < cache.capacity / 2
  }

  *#makeOwn(task: Task, index: number): Steps {
    const layer = this.#layer
    const { clusterSize } = layer.geometry
    yield* this.#mutex.acquire(task)
    try {
      if (isOwn(layer, index)) return
      const old = layer.tableOffset(index)
      yield* this.#allocator.allocate(task, 1)
      const cluster = this.#allocator.start
      const offset = cluster * clusterSize
      try {
        if (old === 0) {
          this.#file.zero(offset, clusterSize, task.one)
          yield* join(task)
        } else yield* this.#copy(task, old, offset)
      } catch (error) {
        yield* this.#allocator.release(task, cluster, 1)
        throw error
      }
      this.#move(index, offset)
      if (old > 0) this.#reclaimer.add(old / clusterSize, 1, false)
    } finally {
      this.#mutex.release()
    }
  }

  /** Entries of a shared table say themselves that their clusters are shared. */
  *#copy(task: Task, from: number, to: number): Steps {
    const { clusterSize } = this.#layer.geometry
    const piece = Math.min(clusterSize, COPY_BYTES)
    const buffer = yield* this.#buffers.acquire(task, piece)
    try {
      for (let at = 0; at < clusterSize; at += piece) {
        this.#file.read(from + at, buffer, piece, task.one)
        yield* join(task)
        this.#file.write(to + at, buffer, piece, task.one)
        yield* join(task)
      }
    } finally {
      this.#buffers.release(buffer, piece)
    }
  }

  #move(index: number, offset: number): void {
    const layer = this.#layer
    layer.l1.setUint32(index * 8, (highOf(offset) | ENTRY_COPIED) >>> 0)
    layer.l1.setUint32(index * 8 + 4, offset % 2 ** 32)
    this.#committer.setL1Dirty(index)
    for (let i = 0; i < layer.slicesPerTable; i++) {
      const slice = layer.cache.peek(index * layer.slicesPerTable + i)
      if (slice !== undefined) slice.fileOffset = offset + i * layer.cache.sliceBytes
    }
  }
}

function isOwn(layer: Qcow2Layer, index: number): boolean {
  if (!layer.isTableExclusive(index)) return false
  if (layer.tableOffset(index) > 0) return true
  throw new SysError('read', 5, 'of an L2 table: its entry says that it is there, and not where')
}
