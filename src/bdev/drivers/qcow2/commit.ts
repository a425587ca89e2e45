/**
 * Brings what changed in memory to the file, so that the file is consistent at any moment, whenever power goes:
 *
 *   1  refcount blocks                      counts only ever go up here
 *      sync, refcount table                 when a block is new
 *      sync                                 data, counts and new tables' first content are there
 *   2  L2 tables, L1 table                  now they may refer to them
 *      sync                                 what they referred to before is free from here on
 *
 * A crash between 1 and 2 leaves clusters that are counted and not used: lost room, no harm. What is written was copied
 * when the commit began; changes made meanwhile are for the next. Everybody who asks while one runs shares the next.
 */
import { SysError } from '../../../core/errors.ts'
import { Header, SECTOR } from '../../../spec/qcow2.ts'
import { bytesAt, mapAnonymous, unmap } from '../../../sys/memory.ts'
import type { Allocator, TableOwner } from './allocator.ts'
import type { ImageFile } from './image-file.ts'
import type { Qcow2Layer } from './layer.ts'
import type { FreeRun, Reclaimer } from './reclaim.ts'
import type { Slice, TableCache } from './table-cache.ts'
import { join, Mutex, type Scheduler, type Steps, type Task, WaitList } from './task.ts'

const EIO = 5

/** What one commit writes. */
interface Changes {
  readonly blocks: readonly Slice[]
  readonly tableSectors: readonly number[]
  readonly slices: readonly Slice[]
  readonly l1Sectors: readonly number[]
  readonly frees: readonly FreeRun[]
}

export class Committer implements TableOwner {
  readonly commitLock = new Mutex()
  readonly #file: ImageFile
  readonly #layer: Qcow2Layer
  readonly #reclaimer: Reclaimer
  readonly #scheduler: Scheduler
  readonly #waiting = new WaitList()
  readonly #l1Dirty = new Set<number>()
  /** What the L1 table's sectors were when the commit began; as large as the table. */
  readonly #l1Shadow: Uint8Array
  readonly #l1ShadowAddress: number
  readonly #l1Bytes: number
  /** A sector for the header. */
  readonly #scratch: number
  #allocator: Allocator | null = null
  /** Commits that were asked for, that have begun, and that have ended; and how the last one ended. */
  #asked = 0
  #ended = 0
  #error: SysError | null = null
  #isRunning = false
  /** Writing it failed: it names the old refcount table or the new one. The old one is in use, and goes on to be. */
  #isHeaderUncertain = false
  /**
   * A sync failed. The kernel tells that once: it may have dropped what it could not write, and the next sync succeeds all
   * the same. So nothing is committed any more; the file stays what the last commit made of it.
   */
  #isSyncLost = false

  constructor(layer: Qcow2Layer, reclaimer: Reclaimer, scheduler: Scheduler) {
    this.#file = layer.file
    this.#layer = layer
    this.#reclaimer = reclaimer
    this.#scheduler = scheduler
    this.#l1Bytes = layer.l1.byteLength
    this.#l1ShadowAddress = mapAnonymous(this.#l1Bytes + 4096)
    this.#l1Shadow = bytesAt(this.#l1ShadowAddress, this.#l1Bytes)
    this.#scratch = this.#l1ShadowAddress + this.#l1Bytes
  }

  attach(allocator: Allocator): void {
    this.#allocator = allocator
  }

  close(): void {
    unmap(this.#l1ShadowAddress, this.#l1Bytes + 4096)
  }

  get isDirty(): boolean {
    return (
      this.#layer.cache.dirtyCount > 0 ||
      this.#l1Dirty.size > 0 ||
      this.#allocator!.isDirty ||
      this.#reclaimer.hasUncommitted
    )
  }

  /** Something that changed is not on stable storage, or only perhaps. */
  get isBehind(): boolean {
    return this.#isRunning || this.isDirty
  }

  setL1Dirty(l1Index: number): void {
    this.#l1Dirty.add(Math.floor((l1Index * 8) / SECTOR))
  }

  /** Has what changed so far committed some time, without waiting for it. */
  request(): void {
    if (this.#isRunning) return
    this.#asked++
    this.#start()
  }

  /** Has everything that changed so far, data that was written included, on stable storage. Throws `SysError`. */
  *flush(task: Task): Steps {
    const ticket = ++this.#asked
    if (!this.#isRunning) this.#start()
    while (this.#ended < ticket) {
      this.#waiting.add(task)
      yield
    }
    if (this.#error !== null) throw this.#error
  }

  /** Waits until nothing is being committed. */
  *quiet(task: Task): Steps {
    while (this.#isRunning) {
      this.#waiting.add(task)
      yield
    }
  }

  *moveRefcountTable(task: Task, offset: number, clusters: number): Steps {
    yield* this.#sync(task)
    yield* this.#nameTable(task, offset, clusters)
  }

  /** Has the header say where the refcount table is. */
  *#nameTable(task: Task, offset: number, clusters: number): Steps {
    this.#isHeaderUncertain = true
    this.#file.read(0, this.#scratch, SECTOR, task.one)
    let result = yield
    if (result < 0) throw new SysError('read', -result, 'of the header')
    const { buffer, byteOffset } = bytesAt(this.#scratch, SECTOR)
    const view = new DataView(buffer, byteOffset, SECTOR)
    Header.refcountTableOffset.set(view, 0, offset)
    Header.refcountTableClusters.set(view, 0, clusters)
    this.#file.write(0, this.#scratch, SECTOR, task.one)
    result = yield
    if (result < 0) throw new SysError('write', -result, 'of the header')
    yield* this.#sync(task)
    this.#isHeaderUncertain = false
  }

  #start(): void {
    this.#isRunning = true
    this.#scheduler.start(task => this.#run(task))
  }

  *#run(task: Task): Steps {
    while (this.#ended < this.#asked) {
      yield* this.commitLock.acquire(task)
      const asked = this.#asked
      const changes = this.#take()
      let isDone = false
      try {
        yield* this.#write(task, changes)
        isDone = true
        this.#error = null
      } catch (error) {
        if (!(error instanceof SysError)) throw error
        this.#error = error
      }
      this.#settle(changes, isDone)
      this.commitLock.release()
      this.#ended = asked
      this.#waiting.wakeAll()
    }
    this.#isRunning = false
    this.#waiting.wakeAll()
  }

  #take(): Changes {
    const allocator = this.#allocator!
    const l1Sectors = [...this.#l1Dirty]
    this.#l1Dirty.clear()
    const { l1 } = this.#layer
    for (const sector of l1Sectors) {
      const at = sector * SECTOR
      this.#l1Shadow.set(new Uint8Array(l1.buffer, l1.byteOffset + at, SECTOR), at)
    }
    return {
      blocks: allocator.cache.takeDirty(),
      tableSectors: allocator.takeDirtyTable(),
      slices: this.#layer.cache.takeDirty(),
      l1Sectors,
      frees: this.#reclaimer.take(),
    }
  }

  *#write(task: Task, changes: Changes): Steps {
    const allocator = this.#allocator!
    if (this.#isSyncLost) throw new SysError('fdatasync', EIO, 'of an image: one has failed before')
    if (this.#isHeaderUncertain) yield* this.#nameTable(task, allocator.tableOffset, allocator.tableClusters)
    yield* this.#writeSlices(task, allocator.cache, changes.blocks)
    if (changes.tableSectors.length > 0) {
      yield* this.#sync(task)
      for (const sector of changes.tableSectors) allocator.writeTableSector(sector, task)
      yield* join(task)
    }
    if (changes.slices.length + changes.l1Sectors.length > 0) {
      yield* this.#sync(task)
      // The L1 table's last sector may end behind it: the rest of its cluster is its own.
      for (const sector of changes.l1Sectors) {
        const at = sector * SECTOR
        this.#file.write(this.#layer.header.l1Offset + at, this.#l1ShadowAddress + at, SECTOR, task.one)
      }
      yield* this.#writeSlices(task, this.#layer.cache, changes.slices)
    }
    yield* this.#sync(task)
  }

  *#writeSlices(task: Task, cache: TableCache, slices: readonly Slice[]): Steps {
    for (const slice of slices) {
      this.#file.write(slice.fileOffset, slice.shadow, cache.sliceBytes, task.one)
    }
    yield* join(task)
  }

  *#sync(task: Task): Steps {
    this.#file.sync(task.one)
    const result = yield
    if (result === 0) return
    this.#isSyncLost = true
    throw new SysError('fdatasync', -result, 'of an image: nothing of it is flushed until it is opened anew')
  }

  #settle(changes: Changes, isDone: boolean): void {
    const allocator = this.#allocator!
    for (const slice of changes.blocks) allocator.cache.written(slice, isDone)
    for (const slice of changes.slices) this.#layer.cache.written(slice, isDone)
    if (isDone) {
      this.#reclaimer.committed(changes.frees)
      return
    }
    allocator.returnDirtyTable(changes.tableSectors)
    for (const sector of changes.l1Sectors) this.#l1Dirty.add(sector)
    this.#reclaimer.giveBack(changes.frees)
  }
}
