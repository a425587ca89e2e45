/**
 * An image that is read and written, on one reactor. It knows files by `ImageFile` only, so the same code runs over a
 * file that loses power.
 *
 *   submit --> tables in memory, nothing to copy? --> one file operation for each run of clusters --> done   (no garbage)
 *                                   otherwise     --> a task: loads tables, allocates, copies …   --> done
 *
 *   reader   what the disk reads, through the whole chain        allocator  which clusters are free
 *   placer   writes to new clusters, without a task              committer  brings changed tables to the file, in order
 *   writer   likewise, where something has to be waited for      reclaimer  clusters that nothing refers to any more
 *   zeroer   zeroes and unmap by entries
 */
import { errnoName, SysError } from '../../../core/errors.ts'
import { IO_TYPE_NAMES, IoType } from '../../io.ts'
import { Allocator } from './allocator.ts'
import type { BitmapRecorder } from './bitmap-recorder.ts'
import { Committer } from './commit.ts'
import type { Header } from './header.ts'
import type { ImageFile } from './image-file.ts'
import { Kind, type Layer, Qcow2Layer } from './layer.ts'
import { Placer } from './placer.ts'
import { RangeLocks } from './range-locks.ts'
import { type Decompressor, Reader } from './reader.ts'
import { type FreeRun, Reclaimer } from './reclaim.ts'
import type { Request, RequestEngine } from './request.ts'
import { type Buffers, Tables } from './tables.ts'
import { join, type Scheduler, type Steps, settle, type Task, WaitList } from './task.ts'
import { Writer } from './writer.ts'
import { Zeroer } from './zeroer.ts'

export interface EngineOptions {
  readonly isReadOnly: boolean
  /** See `ZeroerOptions`. */
  readonly isDiscarding: boolean
  /** For L2 tables, and for refcount blocks, in bytes. */
  readonly l2CacheBytes: number
  readonly refcountCacheBytes: number
}

export interface EngineParts {
  readonly scheduler: Scheduler
  readonly buffers: Buffers
  readonly decompressor: Decompressor
  /** Calls back in the next round. */
  soon(done: () => void): void
  /** What went wrong, for the log. */
  complain(message: string): void
  readonly recorder: BitmapRecorder | null
}

export class Engine implements RequestEngine {
  readonly top: Qcow2Layer
  /** After `extent`. */
  isZeroFound = false
  readonly #parts: EngineParts
  readonly #options: EngineOptions
  readonly #layers: readonly Layer[]
  readonly #allocator: Allocator
  readonly #committer: Committer
  readonly #reclaimer: Reclaimer
  readonly #reader: Reader
  readonly #writer: Writer
  readonly #placer: Placer
  readonly #zeroer: Zeroer
  readonly #locks = new RangeLocks()
  readonly #idle = new WaitList()
  /** Requests that have not ended, flushes included. */
  #active = 0
  #reaping = 0

  /** `below`: the rest of the backing chain, from the top. */
  constructor(
    file: ImageFile,
    header: Header,
    below: readonly Layer[],
    options: EngineOptions,
    parts: EngineParts,
  ) {
    const { scheduler, buffers } = parts
    this.#parts = parts
    this.#options = options
    this.top = new Qcow2Layer(file, header, options.l2CacheBytes)
    this.#layers = [this.top, ...below]
    this.#reclaimer = new Reclaimer(runs => this.#reap(runs))
    const committer = new Committer(this.top, this.#reclaimer, scheduler)
    this.#committer = committer
    const relieve = (task: Task): Steps => committer.flush(task)
    this.#allocator = new Allocator(file, header, options.refcountCacheBytes, committer, relieve)
    committer.attach(this.#allocator)
    this.#reader = new Reader(this.#layers, buffers, parts.decompressor, relieve)
    const writerParts = {
      layer: this.top,
      tables: new Tables(this.top, this.#allocator, committer, this.#reclaimer, buffers),
      allocator: this.#allocator,
      reclaimer: this.#reclaimer,
      reader: this.#reader,
      locks: this.#locks,
      buffers,
      mayHoldData: (offset: number, length: number) => this.#mayHoldData(offset, length),
    }
    const writer = new Writer(writerParts)
    this.#writer = writer
    this.#placer = new Placer({ ...writerParts, writer, scheduler, complain: parts.complain })
    this.#zeroer = new Zeroer(writerParts, this.#writer, {
      isDiscarding: options.isDiscarding,
      soon: parts.soon,
    })
  }

  /** Reads what has to be in memory. Throws `SysError`. */
  *open(task: Task): Steps {
    for (const layer of this.#layers) {
      if (layer instanceof Qcow2Layer) yield* layer.open(task)
    }
    if (!this.#options.isReadOnly) yield* this.#allocator.open(task)
  }

  /**
   * Waits for all requests, and brings everything to the file. Nothing may be submitted from here on, and nothing is
   * outstanding when it ends, also when it throws `SysError`.
   */
  *drain(task: Task): Steps {
    try {
      while (this.#active > 0) yield* this.#waitIdle(task)
      if (this.#options.isReadOnly) return
      do {
        yield* this.#committer.flush(task)
        while (this.#reaping > 0) yield* this.#waitIdle(task)
      } while (this.#committer.isDirty || !this.#reclaimer.isEmpty)
    } finally {
      while (this.#reaping > 0) yield* this.#waitIdle(task)
      yield* this.#committer.quiet(task)
    }
  }

  /** Nothing may be outstanding. */
  close(): void {
    for (const layer of this.#layers) {
      if (layer instanceof Qcow2Layer) layer.close()
    }
    this.#allocator.close()
    this.#committer.close()
  }

  submit(request: Request): void {
    request.engine = this
    request.result = 0
    request.done = 0
    // One for the submission itself, so that it ends when all of it was started.
    request.pending = 1
    this.#active++
    if (request.type === IoType.FLUSH) {
      this.#task(request)
      return
    }
    request.epoch = this.#reclaimer.enter()
    if (request.type !== IoType.READ && request.length > 0) {
      this.#parts.recorder?.record(request.offset, request.length)
    }
    if (this.#isStarted(request)) request.fileDone(0)
    else this.#task(request)
  }

  /** The last operation of a request has ended: for `Request` only. */
  ended(request: Request): void {
    if (request.isFua && request.result === 0 && request.type !== IoType.READ) {
      request.isFua = false
      request.pending = 1
      this.#parts.scheduler.start(task => this.#guarded(task, request, this.#flush(task)))
      return
    }
    if (request.result < 0) this.#complain(request)
    if (request.type !== IoType.FLUSH) this.#reclaimer.leave(request.epoch)
    this.#active--
    if (this.#active === 0) this.#idle.wakeAll()
    request.owner.requestDone(request)
  }

  /** How long the part at `offset` is that is all the same; whether it reads as zeroes is left in `isZeroFound`. */
  extent(offset: number, max: number): number {
    this.isZeroFound = this.#reader.resolve(offset, max) === Kind.ZERO
    return this.#reader.length
  }

  /** True when all of it was started, without a task. */
  #isStarted(request: Request): boolean {
    if (request.type === IoType.READ) return this.#reader.advance(request)
    if (request.type !== IoType.WRITE) return request.length === 0
    return this.#advanceWrite(request)
  }

  #advanceWrite(request: Request): boolean {
    const { top } = this
    const { clusterSize } = top.geometry
    const { offset, length } = request
    if (
      length > 0 &&
      this.#locks.isHeld(Math.floor(offset / clusterSize), Math.floor((offset + length - 1) / clusterSize))
    ) {
      return false
    }
    let isFua = request.isFua && !this.#committer.isBehind
    while (request.done < length) {
      const kind = top.lookup(offset + request.done, length - request.done)
      if (kind !== Kind.DATA || !top.isExclusive) {
        if (kind === Kind.CORRUPT || !this.#placer.advance(request)) return false
        isFua = false
        continue
      }
      if (!this.#mayHoldData(top.hostOffset, top.length)) return false
      request.pending++
      top.file.writeFrom(top.hostOffset, top.length, request.segments, request.done, isFua, request)
      request.done += top.length
    }
    // Written through, to where the file says that it is already.
    if (isFua) request.isFua = false
    return true
  }

  /** Whether it lies within the file and not on the tables that say where everything is. */
  #mayHoldData(offset: number, length: number): boolean {
    const { header } = this.top
    const allocator = this.#allocator
    const end = offset + length
    return (
      offset > 0 &&
      end <= allocator.endOffset &&
      (end <= header.l1Offset || offset >= header.l1Offset + header.l1Size * 8) &&
      (end <= allocator.tableOffset || offset >= allocator.tableOffset + allocator.tableBytes)
    )
  }

  #task(request: Request): void {
    this.#parts.scheduler.start(task => this.#guarded(task, request, this.#steps(task, request)))
  }

  *#steps(task: Task, request: Request): Steps {
    if (request.type === IoType.READ) yield* this.#reader.read(task, request)
    else if (request.type === IoType.WRITE) yield* this.#writer.write(task, request)
    else if (request.type === IoType.FLUSH) yield* this.#flush(task)
    else yield* this.#zeroer.run(task, request)
  }

  *#flush(task: Task): Steps {
    if (!this.#options.isReadOnly) yield* this.#committer.flush(task)
  }

  /** Runs the steps of a request, and has it hear how they ended. */
  *#guarded(task: Task, request: Request, steps: Steps): Steps {
    let result = 0
    try {
      yield* steps
    } catch (error) {
      if (!(error instanceof SysError)) throw error
      yield* settle(task)
      result = -error.errno
      this.#parts.complain(error.message)
    }
    request.fileDone(result)
  }

  /** What is more exact was said before, where it was known. */
  #complain({ type, offset, length, result }: Request): void {
    const what = IO_TYPE_NAMES[type]
    this.#parts.complain(`${what} of ${length} bytes at ${offset} failed: ${errnoName(-result)}`)
  }

  #reap(runs: readonly FreeRun[]): void {
    this.#reaping++
    this.#parts.scheduler.start(task => this.#reapSteps(task, runs))
  }

  *#reapSteps(task: Task, runs: readonly FreeRun[]): Steps {
    const { clusterSize } = this.top.geometry
    try {
      for (const { start, count, isDiscarded } of runs) {
        if (isDiscarded && (yield* this.#isLastReference(task, start, count))) {
          this.top.file.punch(start * clusterSize, count * clusterSize, task.one)
          yield* join(task)
        }
        yield* this.#allocator.release(task, start, count)
      }
    } catch (error) {
      if (!(error instanceof SysError)) throw error
      yield* settle(task)
      // They stay counted: lost room, until a check finds it.
      this.#parts.complain(error.message)
    }
    this.#reaping--
    if (this.#reaping === 0) this.#idle.wakeAll()
  }

  /** Whether nothing else refers to any of the clusters. */
  *#isLastReference(task: Task, start: number, count: number): Steps<boolean> {
    for (let i = 0; i < count; i++) {
      if ((yield* this.#allocator.refcount(task, start + i)) !== 1) return false
    }
    return true
  }

  *#waitIdle(task: Task): Steps {
    this.#idle.add(task)
    yield
  }
}
