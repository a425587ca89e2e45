/** Write zeroes and unmap: L2 entries that say so, instead of data that is zero. */
import { ENTRY_COPIED, ENTRY_ZERO } from '../../../spec/qcow2.ts'
import { IoType } from '../../io.ts'
import { isCompressed, offsetOf } from './geometry.ts'
import { Kind, kindOf } from './layer.ts'
import type { Request } from './request.ts'
import type { Steps, Task } from './task.ts'
import { unitMask, type Writer, type WriterParts } from './writer.ts'

/** What is done in one go before others have their turn. */
const SLICES_AT_ONCE = 32

export interface ZeroerOptions {
  /** Give clusters back that are unmapped or zeroed; otherwise they are kept for what is written next. */
  readonly isDiscarding: boolean
  /** Lets other work go on: calls back in the next round. */
  soon(done: () => void): void
}

export class Zeroer {
  readonly #parts: WriterParts
  readonly #writer: Writer
  readonly #options: ZeroerOptions
  readonly #hasBacking: boolean
  /** Entries can say that a cluster reads as zeroes. */
  readonly #hasZeroFlag: boolean

  constructor(parts: WriterParts, writer: Writer, options: ZeroerOptions) {
    this.#parts = parts
    this.#writer = writer
    this.#options = options
    this.#hasBacking = parts.reader.layers.length > 1
    this.#hasZeroFlag = parts.layer.header.version >= 3
  }

  /** All of a WRITE_ZEROES or an UNMAP. */
  *run(task: Task, request: Request): Steps {
    const { unitSize } = this.#parts.layer.geometry
    const { sizeBytes } = this.#parts.layer
    const isUnmap = request.type === IoType.UNMAP
    if (isUnmap && !this.#options.isDiscarding) return
    const end = request.offset + request.length
    const from = Math.ceil(request.offset / unitSize) * unitSize
    // The disk's last cluster may end behind it.
    const to = end === sizeBytes ? end : Math.floor(end / unitSize) * unitSize
    if (from >= to) {
      if (!isUnmap) yield* this.#writeZeroes(task, request.offset, end)
      return
    }
    if (!isUnmap) yield* this.#writeZeroes(task, request.offset, from)
    yield* this.#zero(task, from, to, isUnmap)
    if (!isUnmap) yield* this.#writeZeroes(task, to, end)
  }

  /** As data, where it does not read as zeroes already. */
  *#writeZeroes(task: Task, from: number, to: number): Steps {
    for (let at = from; at < to; ) {
      const zero = yield* this.#parts.reader.zeroLength(task, at, to - at)
      if (zero > 0) {
        at += zero
        continue
      }
      const end = Math.min(to, at + this.#parts.reader.length)
      yield* this.#writer.writeZeroes(task, at, end)
      at = end
    }
  }

  /** Whole subclusters, by their entries. */
  *#zero(task: Task, from: number, to: number, isUnmap: boolean): Steps {
    const { layer } = this.#parts
    let slices = 0
    for (let at = from; at < to; ) {
      const end = Math.min(to, (Math.floor(at / layer.sliceSpan) + 1) * layer.sliceSpan)
      const isNothing = !this.#hasBacking && layer.lookup(at, end - at) === Kind.UNALLOCATED
      if (isNothing) at += layer.length
      else {
        yield* this.#zeroSlice(task, at, end, isUnmap)
        at = end
      }
      if (++slices % SLICES_AT_ONCE !== 0) continue
      task.park()
      this.#options.soon(() => task.unpark())
      yield
    }
  }

  *#zeroSlice(task: Task, from: number, to: number, isUnmap: boolean): Steps {
    const { layer, locks } = this.#parts
    const { clusterSize } = layer.geometry
    // Without the flag nothing hides what is underneath.
    if (!this.#hasZeroFlag && this.#hasBacking) {
      if (!isUnmap) yield* this.#writeZeroes(task, from, to)
      return
    }
    const first = Math.floor(from / clusterSize)
    const last = Math.floor((to - 1) / clusterSize)
    yield* locks.acquire(task, first, last)
    try {
      yield* this.#change(task, from, to, isUnmap)
    } finally {
      locks.release(first, last)
    }
  }

  *#change(task: Task, from: number, to: number, isUnmap: boolean): Steps {
    const { layer, tables } = this.#parts
    const { clusterSize, entrySize, isExtended } = layer.geometry
    for (let at = from; at < to; ) {
      const start = Math.floor(at / clusterSize) * clusterSize
      const end = Math.min(to, start + clusterSize)
      const slice = yield* tables.writable(task, Math.floor(at / layer.sliceSpan))
      const entry = slice.base + Math.floor((at % layer.sliceSpan) / clusterSize) * entrySize
      if (isExtended) {
        const isWhole = at === start && (end === start + clusterSize || end === layer.sizeBytes)
        const isDone = this.#changeUnits(slice.view, entry, at - start, end - start, isWhole)
        tables.changed(slice)
        // A part of a compressed cluster has no entry of its own.
        if (!isDone && !isUnmap) yield* this.#writer.writeZeroesLocked(task, at, end)
      } else {
        this.#changeCluster(slice.view, entry)
        tables.changed(slice)
      }
      at = end
    }
  }

  #changeCluster(view: DataView, at: number): void {
    const high = view.getUint32(at)
    const low = view.getUint32(at + 4)
    const isOwn = !isCompressed(high) && (high & ENTRY_COPIED) !== 0 && offsetOf(high, low) > 0
    if (kindOf(high, low) === Kind.UNALLOCATED && !this.#hasBacking) return
    if (isOwn && !this.#options.isDiscarding && this.#hasZeroFlag) {
      view.setUint32(at + 4, (low | ENTRY_ZERO) >>> 0)
      return
    }
    this.#writer.forget(view, at, this.#options.isDiscarding)
    view.setUint32(at, 0)
    view.setUint32(at + 4, this.#hasBacking ? ENTRY_ZERO : 0)
  }

  /** Offsets are within the cluster. False when it is compressed and not all of it is meant. */
  #changeUnits(view: DataView, at: number, from: number, to: number, isWhole: boolean): boolean {
    const { unitSize } = this.#parts.layer.geometry
    const high = view.getUint32(at)
    const low = view.getUint32(at + 4)
    if (isCompressed(high) && !isWhole) return false
    if (isWhole && (isCompressed(high) || this.#options.isDiscarding || (high & ENTRY_COPIED) === 0)) {
      this.#writer.forget(view, at, this.#options.isDiscarding)
      view.setUint32(at, 0)
      view.setUint32(at + 4, 0)
      view.setUint32(at + 8, this.#hasBacking ? 0xffff_ffff : 0)
      view.setUint32(at + 12, 0)
      return true
    }
    // Without a cluster of one's own the bits of a shared one still say what it has.
    const units = unitMask(Math.floor(from / unitSize), Math.ceil(to / unitSize))
    view.setUint32(at, high)
    view.setUint32(at + 4, low)
    view.setUint32(at + 8, (view.getUint32(at + 8) | units) >>> 0)
    view.setUint32(at + 12, (view.getUint32(at + 12) & ~units) >>> 0)
    return true
  }
}
