/**
 * Writes to clusters that are new, in the ordinary case: what is needed of the tables is in memory, and around the data the
 * disk reads zeroes. It does what `writer.ts` does, of which then only the data is waited for; so it takes no task and
 * allocates no memory. Everything else is left to the writer.
 */
import { SysError } from '../../../core/errors.ts'
import { Kind } from './layer.ts'
import type { Request } from './request.ts'
import type { Slice } from './table-cache.ts'
import type { FileWaiter, Scheduler, Steps, Task } from './task.ts'
import { ownHost, type Run, type Writer, type WriterParts } from './writer.ts'

export interface PlacerParts extends WriterParts {
  readonly writer: Writer
  readonly scheduler: Scheduler
  complain(message: string): void
}

export class Placer {
  readonly #parts: PlacerParts
  readonly #free: Placement[] = []

  constructor(parts: PlacerParts) {
    this.#parts = parts
  }

  /**
   * Starts to write what comes next of a request, as far as it goes to new clusters that lie together. False when something
   * has to be waited for first. Nobody holds a lock on the clusters.
   */
  advance(request: Request): boolean {
    const { layer, tables, allocator, locks } = this.#parts
    const { clusterSize, isExtended } = layer.geometry
    if (isExtended) return false
    const from = request.offset + request.done
    const key = Math.floor(from / layer.sliceSpan)
    const slice = tables.writableNow(key)
    if (slice === null) return false
    const first = Math.floor(from / clusterSize)
    const end = Math.min(request.offset + request.length, (key + 1) * layer.sliceSpan)
    const inSlice = first - (key * layer.sliceSpan) / clusterSize
    const wanted = newClusters(slice, inSlice, Math.ceil(end / clusterSize) - first)
    const clustersEnd = (first + wanted) * clusterSize
    if (wanted === 0 || !this.#isZero(first * clusterSize, from)) return false
    if (!this.#isZero(end, clustersEnd) || !allocator.allocateNow(wanted)) return false
    const { start, count } = allocator
    locks.take(first, first + count - 1)
    const placement = this.#free.pop() ?? new Placement(this)
    placement.begin(request, from, Math.min(end, (first + count) * clusterSize), first, start, count)
    this.#write(placement, allocator.isFresh)
    return true
  }

  /** All that a placement has written is there, or it failed. */
  ended(placement: Placement): void {
    const { layer, tables, writer, scheduler } = this.#parts
    const slice = tables.writableNow(Math.floor(placement.from / layer.sliceSpan))
    if (slice === null || placement.result < 0) {
      scheduler.start(task => this.#endSlowly(task, placement))
      return
    }
    writer.enter(slice, placement, placement.start * layer.geometry.clusterSize)
    this.#tell(placement)
  }

  #isZero(from: number, to: number): boolean {
    const { reader } = this.#parts
    return from >= to || (reader.resolve(from, to - from) === Kind.ZERO && reader.length === to - from)
  }

  #write(placement: Placement, isFresh: boolean): void {
    const { file, geometry } = this.#parts.layer
    const { request, from, to, first, start, count } = placement
    const { clusterSize } = geometry
    const host = start * clusterSize
    const head = from - first * clusterSize
    request!.pending++
    file.writeFrom(host + head, to - from, request!.segments, request!.done, false, placement)
    request!.done += to - from
    if (isFresh) return
    const tail = (first + count) * clusterSize - to
    if (head > 0) file.zero(host, head, placement.one)
    if (tail > 0) file.zero(host + count * clusterSize - tail, tail, placement.one)
  }

  /** When the write failed, or the slice was given up meanwhile. */
  *#endSlowly(task: Task, placement: Placement): Steps {
    const { layer, allocator, writer } = this.#parts
    const { start, count } = placement
    try {
      if (placement.result === 0) yield* writer.link(task, placement, start * layer.geometry.clusterSize)
    } catch (error) {
      if (!(error instanceof SysError)) throw error
      placement.result = -error.errno
      this.#parts.complain(error.message)
    }
    try {
      if (placement.result < 0) yield* allocator.release(task, start, count)
    } catch (error) {
      if (!(error instanceof SysError)) throw error
      // They stay counted: lost room, until a check finds it.
      this.#parts.complain(error.message)
    }
    this.#tell(placement)
  }

  #tell(placement: Placement): void {
    const { first, count, result } = placement
    const request = placement.request!
    placement.request = null
    this.#free.push(placement)
    this.#parts.locks.release(first, first + count - 1)
    request.fileDone(result)
  }
}

/** New clusters that are being written. Kept for the next. */
class Placement implements Run, FileWaiter {
  readonly #placer: Placer
  #pending = 0
  request: Request | null = null
  /** -errno, or 0. */
  result = 0
  /** What is written, in bytes of the disk. */
  from = 0
  to = 0
  /** The first cluster of the disk, and of the file. */
  first = 0
  start = 0
  count = 0
  readonly host = null

  constructor(placer: Placer) {
    this.#placer = placer
  }

  begin(request: Request, from: number, to: number, first: number, start: number, count: number): void {
    this.#pending = 1
    this.result = 0
    this.request = request
    this.from = from
    this.to = to
    this.first = first
    this.start = start
    this.count = count
  }

  /** To be handed to one more file operation than the first. */
  get one(): this {
    this.#pending++
    return this
  }

  fileDone(result: number): void {
    if (result < 0 && this.result === 0) this.result = result
    if (--this.#pending === 0) this.#placer.ended(this)
  }
}

/** How many clusters from the entry on, at most `max`, have no place of their own in the file. */
function newClusters({ view, base }: Slice, entry: number, max: number): number {
  let count = 0
  while (count < max && ownHost(view, base + (entry + count) * 8) === null) count++
  return count
}
