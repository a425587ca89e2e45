/**
 * The files of a backing chain as they are looked up: which bytes of the disk lie where. A lookup is synchronous, and its
 * answer is left in fields, so that nothing is allocated; what it needs and does not have in memory it calls a miss.
 */
import { SysError } from '../../../core/errors.ts'
import { ENTRY_COPIED, ENTRY_ZERO } from '../../../spec/qcow2.ts'
import { bytesAt, mapAnonymous, unmap } from '../../../sys/memory.ts'
import { type Geometry, isCompressed, offsetOf } from './geometry.ts'
import type { Header } from './header.ts'
import type { ImageFile } from './image-file.ts'
import { SLICE_BYTES_MAX, type Slice, TableCache } from './table-cache.ts'
import { type Steps, type Task, WaitList } from './task.ts'

const EIO = 5
const PAGE = 4096

export const Kind = {
  /** The part of the L2 table is not in memory: `load(task, missKey)` gets it. */
  MISS: -1,
  UNALLOCATED: 0,
  ZERO: 1,
  DATA: 2,
  COMPRESSED: 3,
  /** The entry points where nothing can be: see `corruption`. */
  CORRUPT: 4,
} as const
export type Kind = (typeof Kind)[keyof typeof Kind]

/** What a lookup leaves behind. */
export interface Layer {
  readonly file: ImageFile
  /** Of its disk: behind it the layers above read zeroes. */
  readonly sizeBytes: number
  /** The part from the offset that was looked up which is of one kind and, for data, lies together. */
  length: number
  hostOffset: number
  lookup(offset: number, maxLength: number): Kind
}

export class RawLayer implements Layer {
  readonly file: ImageFile
  readonly sizeBytes: number
  length = 0
  hostOffset = 0

  constructor(file: ImageFile) {
    this.file = file
    this.sizeBytes = file.sizeBytes
  }

  lookup(offset: number, maxLength: number): Kind {
    this.length = maxLength
    this.hostOffset = offset
    return Kind.DATA
  }
}

export class Qcow2Layer implements Layer {
  readonly file: ImageFile
  readonly header: Header
  readonly geometry: Geometry
  readonly sizeBytes: number
  readonly cache: TableCache
  /** What one slice maps. */
  readonly sliceSpan: number
  readonly slicesPerTable: number
  length = 0
  hostOffset = 0
  /** Data whose cluster nobody else refers to: it may be written where it is. */
  isExclusive = false
  /** After a miss. */
  missKey = 0
  /** The L2 entry of a compressed cluster. */
  entryHigh = 0
  entryLow = 0
  readonly l1: DataView
  readonly #l1Address: number
  readonly #l1Bytes: number
  readonly #loading = new WaitList()

  constructor(file: ImageFile, header: Header, cacheBytes: number) {
    const { geometry } = header
    this.file = file
    this.header = header
    this.geometry = geometry
    this.sizeBytes = header.sizeBytes
    const sliceBytes = Math.min(geometry.clusterSize, SLICE_BYTES_MAX)
    this.cache = new TableCache(sliceBytes, cacheBytes)
    this.sliceSpan = (sliceBytes / geometry.entrySize) * geometry.clusterSize
    this.slicesPerTable = geometry.clusterSize / sliceBytes
    this.#l1Bytes = Math.max(1, Math.ceil((header.l1Size * 8) / PAGE)) * PAGE
    this.#l1Address = mapAnonymous(this.#l1Bytes)
    const { buffer, byteOffset } = bytesAt(this.#l1Address, this.#l1Bytes)
    this.l1 = new DataView(buffer, byteOffset, this.#l1Bytes)
  }

  /** Reads the L1 table. */
  *open(task: Task): Steps {
    const bytes = this.header.l1Size * 8
    if (bytes === 0) return
    this.file.read(this.header.l1Offset, this.#l1Address, bytes, task.one)
    const result = yield
    if (result < 0) throw new SysError('read', -result, 'of the L1 table')
  }

  close(): void {
    this.cache.close()
    unmap(this.#l1Address, this.#l1Bytes)
  }

  lookup(offset: number, maxLength: number): Kind {
    const key = Math.floor(offset / this.sliceSpan)
    const inSlice = offset - key * this.sliceSpan
    const slice = this.cache.find(key)
    if (slice === null) return this.#lookupTable(offset, maxLength, key)
    const max = Math.min(maxLength, this.sliceSpan - inSlice)
    const { clusterSize } = this.geometry
    const entry = Math.floor(inSlice / clusterSize)
    const within = inSlice - entry * clusterSize
    const kind = this.geometry.isExtended
      ? this.#lookupUnits(slice, entry, within, max)
      : this.#lookupClusters(slice, entry, within, max)
    return kind === Kind.DATA && this.hostOffset + this.length > this.file.endBytes ? this.#atEnd() : kind
  }

  /** After a lookup that found a corrupt entry: what is wrong with it. */
  get corruption(): string {
    const { hostOffset, file } = this
    if (hostOffset < file.endBytes) return 'of a cluster whose entry is corrupt'
    return `of data at ${hostOffset}, behind the file's end at ${file.endBytes}`
  }

  /** Gets the slice into memory. `relieve` makes room when everything there is dirty. */
  *load(task: Task, key: number, relieve: (task: Task) => Steps): Steps<Slice> {
    for (;;) {
      const present = this.cache.peek(key)
      if (present !== undefined && !present.isLoading) return present
      if (present !== undefined) {
        this.#loading.add(task)
        yield
        continue
      }
      const offset = this.tableOffset(Math.floor(key / this.slicesPerTable))
      if (offset === 0) throw new SysError('read', EIO, 'of an L2 table that is not there')
      const at = offset + (key % this.slicesPerTable) * this.cache.sliceBytes
      const slice = this.cache.claim(key, at)
      if (slice === null) {
        yield* relieve(task)
        continue
      }
      this.file.read(at, slice.address, this.cache.sliceBytes, task.one)
      const result = yield
      if (result < 0) this.cache.drop(slice)
      else this.cache.loaded(slice)
      this.#loading.wakeAll()
      if (result < 0) throw new SysError('read', -result, 'of an L2 table')
      return slice
    }
  }

  /** Where the L2 table is, 0 for nowhere. Throws when it cannot be there. */
  tableOffset(l1Index: number): number {
    const offset = offsetOf(this.l1.getUint32(l1Index * 8), this.l1.getUint32(l1Index * 8 + 4))
    if (offset % this.geometry.clusterSize !== 0) {
      throw new SysError('read', EIO, `of an L2 table at ${offset}, not at the beginning of a cluster`)
    }
    if (offset > 0 && offset >= this.file.endBytes) {
      throw new SysError(
        'read',
        EIO,
        `of an L2 table at ${offset}, behind the file's end at ${this.file.endBytes}`,
      )
    }
    return offset
  }

  isTableExclusive(l1Index: number): boolean {
    return (this.l1.getUint32(l1Index * 8) & ENTRY_COPIED) !== 0
  }

  #lookupTable(offset: number, maxLength: number, key: number): Kind {
    const { l2Span, clusterSize } = this.geometry
    const index = Math.floor(offset / l2Span)
    const table = offsetOf(this.l1.getUint32(index * 8), this.l1.getUint32(index * 8 + 4))
    this.length = Math.min(maxLength, l2Span - (offset - index * l2Span))
    if (table % clusterSize !== 0) return Kind.CORRUPT
    if (table === 0) return Kind.UNALLOCATED
    this.missKey = key
    return Kind.MISS
  }

  #lookupClusters(slice: Slice, entry: number, within: number, max: number): Kind {
    const { view, base } = slice
    const { clusterSize } = this.geometry
    let at = base + entry * 8
    let high = view.getUint32(at)
    let low = view.getUint32(at + 4)
    const kind = kindOf(high, low)
    const host = offsetOf(high, low)
    let length = clusterSize - within
    this.hostOffset = host + within
    this.isExclusive = (high & ENTRY_COPIED) !== 0
    if (kind === Kind.COMPRESSED) {
      this.entryHigh = high
      this.entryLow = low
    } else if (kind === Kind.DATA) {
      if (host % clusterSize !== 0) return this.#corrupt(length, max)
      const flags = high & ENTRY_COPIED
      let next = host + clusterSize
      while (length < max) {
        at += 8
        high = view.getUint32(at)
        low = view.getUint32(at + 4)
        if (kindOf(high, low) !== kind || (high & ENTRY_COPIED) !== flags || offsetOf(high, low) !== next)
          break
        next += clusterSize
        length += clusterSize
      }
    } else {
      while (length < max) {
        at += 8
        if (kindOf(view.getUint32(at), view.getUint32(at + 4)) !== kind) break
        length += clusterSize
      }
    }
    this.length = Math.min(length, max)
    return kind
  }

  #lookupUnits(slice: Slice, entry: number, within: number, max: number): Kind {
    const { view, base } = slice
    const { clusterSize, unitSize } = this.geometry
    let at = base + entry * 16
    const high = view.getUint32(at)
    const low = view.getUint32(at + 4)
    const host = offsetOf(high, low)
    if (isCompressed(high)) {
      this.entryHigh = high
      this.entryLow = low
      this.length = Math.min(clusterSize - within, max)
      return Kind.COMPRESSED
    }
    const unit = Math.floor(within / unitSize)
    const kind = unitKind(view, at, unit)
    this.hostOffset = host + within
    if (kind === Kind.CORRUPT || (kind === Kind.DATA && (host === 0 || host % clusterSize !== 0))) {
      return this.#corrupt(clusterSize - within, max)
    }
    this.isExclusive = (high & ENTRY_COPIED) !== 0
    let units = unitRun(view, at, unit, kind)
    let length = (unit + units) * unitSize - within
    let next = host + clusterSize
    while (length < max && (within + length) % clusterSize === 0) {
      at += 16
      const nextHigh = view.getUint32(at)
      if (isCompressed(nextHigh) || unitKind(view, at, 0) !== kind) break
      if (kind === Kind.DATA && !this.#continues(nextHigh, view.getUint32(at + 4), next)) break
      units = unitRun(view, at, 0, kind)
      length += units * unitSize
      next += clusterSize
      if (units < this.geometry.unitsPerCluster) break
    }
    this.length = Math.min(length, max)
    return kind
  }

  /** The file may end within its last cluster: the rest of that is zero, and data behind it is not there. */
  #atEnd(): Kind {
    const { clusterSize } = this.geometry
    const end = Math.ceil(this.file.endBytes / clusterSize) * clusterSize
    if (this.hostOffset >= end) return Kind.CORRUPT
    this.length = Math.min(this.length, end - this.hostOffset)
    return Kind.DATA
  }

  #continues(high: number, low: number, host: number): boolean {
    return ((high & ENTRY_COPIED) !== 0) === this.isExclusive && offsetOf(high, low) === host
  }

  #corrupt(length: number, max: number): Kind {
    this.length = Math.min(length, max)
    return Kind.CORRUPT
  }
}

/** Of a standard entry. */
export function kindOf(high: number, low: number): Kind {
  if (isCompressed(high)) return Kind.COMPRESSED
  if ((low & ENTRY_ZERO) !== 0) return Kind.ZERO
  return offsetOf(high, low) === 0 ? Kind.UNALLOCATED : Kind.DATA
}

/** Of a subcluster: its bit in the two halves of the bitmap behind the entry at `at`. */
function unitKind(view: DataView, at: number, unit: number): Kind {
  const isZero = (view.getUint32(at + 8) >>> unit) & 1
  const isAllocated = (view.getUint32(at + 12) >>> unit) & 1
  if (isZero & isAllocated) return Kind.CORRUPT
  if (isAllocated) return Kind.DATA
  return isZero ? Kind.ZERO : Kind.UNALLOCATED
}

function unitRun(view: DataView, at: number, first: number, kind: Kind): number {
  let unit = first + 1
  while (unit < 32 && unitKind(view, at, unit) === kind) unit++
  return unit - first
}
