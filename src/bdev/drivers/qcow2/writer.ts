/**
 * Writes to clusters that are not simply there: they get a cluster of the file, what was read there before is copied
 * around the new data, and when all of that is written the L2 entry changes.
 */
import { SysError } from '../../../core/errors.ts'
import { ENTRY_COPIED } from '../../../spec/qcow2.ts'
import type { Allocator } from './allocator.ts'
import { compressedRun, highOf, isCompressed, offsetOf } from './geometry.ts'
import { Kind, type Qcow2Layer } from './layer.ts'
import type { RangeLocks } from './range-locks.ts'
import type { Reader } from './reader.ts'
import type { Reclaimer } from './reclaim.ts'
import type { Request } from './request.ts'
import type { Slice } from './table-cache.ts'
import type { Buffers, Tables } from './tables.ts'
import { join, type Steps, settle, type Task } from './task.ts'

const EIO = 5
/** What lies around the new data is copied in pieces of this size. */
const COPY_BYTES = 131072

/** Neighbouring clusters, or a part of one, that are written as one. */
export interface Run {
  /** In bytes of the disk. */
  readonly from: number
  readonly to: number
  /** Cluster of the file of the first, if they are there already; null when they are to be allocated. */
  readonly host: number | null
}

export interface WriterParts {
  readonly layer: Qcow2Layer
  readonly tables: Tables
  readonly allocator: Allocator
  readonly reclaimer: Reclaimer
  readonly reader: Reader
  readonly locks: RangeLocks
  readonly buffers: Buffers
  /** Whether a cluster that an entry names can be one of data. */
  mayHoldData(offset: number, length: number): boolean
}

export class Writer {
  readonly #parts: WriterParts

  constructor(parts: WriterParts) {
    this.#parts = parts
  }

  /** The rest of a request, from what is done of it on. */
  *write(task: Task, request: Request): Steps {
    while (request.done < request.length) {
      const from = request.offset + request.done
      const to = this.#sliceEnd(from, request.offset + request.length)
      yield* this.#locked(task, from, to, request)
      request.done = to - request.offset
    }
  }

  /** Writes zeroes as data. */
  *writeZeroes(task: Task, from: number, end: number): Steps {
    for (let at = from; at < end; ) {
      const to = this.#sliceEnd(at, end)
      yield* this.#locked(task, at, to, null)
      at = to
    }
  }

  /** Likewise within one slice, by who holds the lock on the clusters. */
  *writeZeroesLocked(task: Task, from: number, to: number): Steps {
    for (let at = from; at < to; ) at = yield* this.#part(task, at, to, null)
  }

  #sliceEnd(from: number, end: number): number {
    const { sliceSpan } = this.#parts.layer
    return Math.min(end, (Math.floor(from / sliceSpan) + 1) * sliceSpan)
  }

  *#locked(task: Task, from: number, to: number, request: Request | null): Steps {
    const { clusterSize } = this.#parts.layer.geometry
    const first = Math.floor(from / clusterSize)
    const last = Math.floor((to - 1) / clusterSize)
    yield* this.#parts.locks.acquire(task, first, last)
    try {
      for (let at = from; at < to; ) at = yield* this.#part(task, at, to, request)
    } finally {
      this.#parts.locks.release(first, last)
    }
  }

  /** Writes the first run of what is between. Returns where it ended. */
  *#part(task: Task, from: number, to: number, request: Request | null): Steps<number> {
    const { layer, tables } = this.#parts
    const key = Math.floor(from / layer.sliceSpan)
    const slice = yield* tables.writable(task, key)
    const kind = layer.lookup(from, to - from)
    if (kind === Kind.CORRUPT) throw new SysError('write', EIO, layer.corruption)
    if (kind === Kind.DATA && layer.isExclusive) {
      const { length } = layer
      if (!this.#parts.mayHoldData(layer.hostOffset, length)) {
        throw new SysError('write', EIO, `of a cluster that would lie at ${layer.hostOffset}`)
      }
      this.#writeData(task, layer.hostOffset, from, length, request)
      yield* join(task)
      return from + length
    }
    const run = this.#runOf(slice, from, to)
    return yield* run.host === null ? this.#allocated(task, run, request) : this.#filled(task, run, request)
  }

  /** The clusters from `from` on that are all to be allocated, or the part of one that is there and reads as it should not. */
  #runOf(slice: Slice, from: number, to: number): Run {
    const { layer } = this.#parts
    const { clusterSize, entrySize } = layer.geometry
    const start = Math.floor(from / clusterSize) * clusterSize
    const at = slice.base + Math.floor((from % layer.sliceSpan) / clusterSize) * entrySize
    const host = ownHost(slice.view, at)
    let end = start + clusterSize
    if (host !== null) {
      if (host % clusterSize === 0 && this.#parts.mayHoldData(host, clusterSize))
        return { from, to: Math.min(to, end, from + layer.length), host }
      throw new SysError('write', EIO, `of a cluster that would lie at ${host}`)
    }
    for (let next = at + entrySize; end < to && ownHost(slice.view, next) === null; next += entrySize) {
      end += clusterSize
    }
    return { from, to: Math.min(to, end), host }
  }

  *#allocated(task: Task, run: Run, request: Request | null): Steps<number> {
    const { layer, allocator } = this.#parts
    const { clusterSize } = layer.geometry
    const first = Math.floor(run.from / clusterSize)
    yield* allocator.allocate(task, Math.floor((run.to - 1) / clusterSize) - first + 1)
    const { start, count, isFresh } = allocator
    const to = Math.min(run.to, (first + count) * clusterSize)
    try {
      yield* this.#fill(task, { ...run, to }, start * clusterSize, isFresh, request)
      yield* this.link(task, { ...run, to }, start * clusterSize)
    } catch (error) {
      yield* settle(task)
      yield* allocator.release(task, start, count)
      throw error
    }
    return to
  }

  *#filled(task: Task, run: Run, request: Request | null): Steps<number> {
    yield* this.#fill(task, run, run.host!, false, request)
    yield* this.link(task, run, run.host!)
    return run.to
  }

  /** Data, and around it what was read there before, into the clusters at `host`. */
  *#fill(task: Task, run: Run, host: number, isFresh: boolean, request: Request | null): Steps {
    const { layer } = this.#parts
    const { clusterSize } = layer.geometry
    const base = Math.floor(run.from / clusterSize) * clusterSize
    const head = yield* this.#edge(task, run.from, run.host === null)
    const tail = yield* this.#edge(task, run.to - 1, run.host === null)
    // The first piece that is copied waits for the data as well.
    this.#writeData(task, host + run.from - base, run.from, run.to - run.from, request)
    yield* this.#copy(task, head.from, run.from, host - base, isFresh)
    yield* this.#copy(task, run.to, tail.to, host - base, isFresh)
    yield* join(task)
  }

  /** What has to be filled together with the byte at `offset`: its cluster, or its subcluster. */
  *#edge(task: Task, offset: number, isNew: boolean): Steps<{ from: number; to: number }> {
    const { layer, tables } = this.#parts
    const { clusterSize, unitSize, isExtended, entrySize } = layer.geometry
    let size = clusterSize
    if (isExtended) {
      const slice = yield* tables.writable(task, Math.floor(offset / layer.sliceSpan))
      const at = slice.base + Math.floor((offset % layer.sliceSpan) / clusterSize) * entrySize
      const hasContent = isCompressed(slice.view.getUint32(at)) || slice.view.getUint32(at + 12) !== 0
      if (!isNew || !hasContent) size = unitSize
    }
    const from = Math.floor(offset / size) * size
    return { from, to: from + size }
  }

  #writeData(task: Task, host: number, from: number, length: number, request: Request | null): void {
    const { file } = this.#parts.layer
    if (request === null) file.zero(host, length, task.one)
    else file.writeFrom(host, length, request.segments, from - request.offset, false, task.one)
  }

  /** Copies what the disk reads from `from` to `to` to the same place, shifted by `shift`, of the file. */
  *#copy(task: Task, from: number, to: number, shift: number, isFresh: boolean): Steps {
    const { layer, reader, buffers } = this.#parts
    for (let at = from; at < to; ) {
      const zero = yield* reader.zeroLength(task, at, to - at)
      if (zero > 0) {
        if (!isFresh) layer.file.zero(at + shift, zero, task.one)
        at += zero
        continue
      }
      const length = Math.min(to - at, COPY_BYTES)
      const buffer = yield* buffers.acquire(task, length)
      try {
        yield* reader.readInto(task, at, length, buffer)
        layer.file.write(at + shift, buffer, length, task.one)
        yield* join(task)
      } catch (error) {
        yield* settle(task)
        throw error
      } finally {
        buffers.release(buffer, length)
      }
      at += length
    }
  }

  /** Has the L2 entries say that the clusters are those at `host`. */
  *link(task: Task, run: Run, host: number): Steps {
    const { layer, tables } = this.#parts
    this.enter(yield* tables.writable(task, Math.floor(run.from / layer.sliceSpan)), run, host)
  }

  /** Likewise in the slice that they are of, which is writable. Gives up what the entries said before. */
  enter(slice: Slice, run: Run, host: number): void {
    const { layer, tables } = this.#parts
    const { clusterSize, entrySize, isExtended } = layer.geometry
    const first = Math.floor(run.from / clusterSize)
    const last = Math.floor((run.to - 1) / clusterSize)
    for (let cluster = first; cluster <= last; cluster++) {
      const start = cluster * clusterSize
      const at = slice.base + Math.floor((start % layer.sliceSpan) / clusterSize) * entrySize
      if (isExtended) this.#setUnits(slice.view, at, run, start)
      if (run.host === null) this.forget(slice.view, at, false)
      const offset = host + (cluster - first) * clusterSize
      slice.view.setUint32(at, (highOf(offset) | ENTRY_COPIED) >>> 0)
      slice.view.setUint32(at + 4, offset % 2 ** 32)
    }
    tables.changed(slice)
  }

  /** The subclusters of the cluster at `start` that have data now. */
  #setUnits(view: DataView, at: number, run: Run, start: number): void {
    const { clusterSize, unitSize } = this.#parts.layer.geometry
    const hadContent = isCompressed(view.getUint32(at)) || view.getUint32(at + 12) !== 0
    const isWhole = run.host === null && hadContent
    const from = Math.max(0, run.from - start)
    const to = Math.min(clusterSize, run.to - start)
    const units = isWhole ? 0xffff_ffff : unitMask(Math.floor(from / unitSize), Math.ceil(to / unitSize))
    const zeroes = isCompressed(view.getUint32(at)) ? 0 : view.getUint32(at + 8)
    const allocated = isCompressed(view.getUint32(at)) ? 0 : view.getUint32(at + 12)
    view.setUint32(at + 8, (zeroes & ~units) >>> 0)
    view.setUint32(at + 12, (allocated | units) >>> 0)
  }

  /** Gives up the clusters that the entry refers to. */
  forget(view: DataView, at: number, isDiscarded: boolean): void {
    const { layer, reclaimer } = this.#parts
    const { clusterSize } = layer.geometry
    const high = view.getUint32(at)
    const low = view.getUint32(at + 4)
    if (isCompressed(high)) {
      const { offset, length } = compressedRun(layer.geometry, high, low)
      const first = Math.floor(offset / clusterSize)
      reclaimer.add(first, Math.floor((offset + length - 1) / clusterSize) - first + 1, false)
      return
    }
    const host = offsetOf(high, low)
    if (host > 0 && host % clusterSize === 0) reclaimer.add(host / clusterSize, 1, isDiscarded)
  }
}

/** Where the cluster is that nobody else refers to, whatever it reads as; null when there is none. */
export function ownHost(view: DataView, at: number): number | null {
  const high = view.getUint32(at)
  const low = view.getUint32(at + 4)
  if (isCompressed(high) || (high & ENTRY_COPIED) === 0) return null
  const host = offsetOf(high, low)
  return host === 0 ? null : host
}

/** Bits from `first` up to, not including, `end`. */
export function unitMask(first: number, end: number): number {
  return end - first >= 32 ? 0xffff_ffff : (((1 << (end - first)) - 1) << first) >>> 0
}
