/**
 * Parts of tables in memory: L2 tables, or refcount blocks. A part (slice) is what is read and written as one, 4 KiB or a
 * cluster if that is smaller, so that a miss costs little whatever the cluster size.
 *
 *   memory   | slice 0 | slice 1 | …        what the engine works on
 *   shadow   | slice 0 | slice 1 | …        what a commit writes, copied when it began: the work goes on meanwhile
 *
 * A slice that is dirty is never given up; a commit makes it clean.
 */
import { bytesAt, mapAnonymous, memcpy, unmap } from '../../../sys/memory.ts'

export const SLICE_BYTES_MAX = 4096

export class Slice {
  /** Which one it is: -1 for none. */
  key = -1
  /** Where it belongs in the file. */
  fileOffset = 0
  readonly address: number
  readonly shadow: number
  /** Over all of the cache's memory, and where this slice begins in it. */
  readonly view: DataView
  readonly base: number
  isDirty = false
  isLoading = false
  /** Its shadow is being written: what is in the file is not what it holds. */
  isWriting = false
  /** Looked at since the hand came by. */
  isUsed = false

  constructor(view: DataView, base: number, address: number, shadow: number) {
    this.view = view
    this.base = base
    this.address = address
    this.shadow = shadow
  }
}

export class TableCache {
  readonly sliceBytes: number
  dirtyCount = 0
  readonly #capacity: number
  readonly #address: number
  readonly #view: DataView
  readonly #slices: Slice[] = []
  readonly #byKey = new Map<number, Slice>()
  #last: Slice | null = null
  #hand = 0

  /** `sizeBytes` of memory, and as much again while commits run; touched only as it is used. */
  constructor(sliceBytes: number, sizeBytes: number) {
    this.sliceBytes = sliceBytes
    // Enough for what one task works on at a time, several times over.
    this.#capacity = Math.max(16, Math.ceil(sizeBytes / sliceBytes))
    const mapped = this.#capacity * sliceBytes
    this.#address = mapAnonymous(mapped * 2)
    const { buffer, byteOffset } = bytesAt(this.#address, mapped)
    this.#view = new DataView(buffer, byteOffset, mapped)
  }

  get capacity(): number {
    return this.#capacity
  }

  /** The slice when it is there and loaded. */
  find(key: number): Slice | null {
    const last = this.#last
    if (last !== null && last.key === key) return last
    const slice = this.#byKey.get(key)
    if (slice === undefined || slice.isLoading) return null
    slice.isUsed = true
    this.#last = slice
    return slice
  }

  /** Also while it is loading. */
  peek(key: number): Slice | undefined {
    return this.#byKey.get(key)
  }

  /** A slice for `key`, its content to be loaded; null when all are dirty or loading. */
  claim(key: number, fileOffset: number): Slice | null {
    const slice = this.#slices.length < this.#capacity ? this.#grow() : this.#victim()
    if (slice === null) return null
    if (slice.key >= 0) this.#byKey.delete(slice.key)
    if (slice === this.#last) this.#last = null
    slice.key = key
    slice.fileOffset = fileOffset
    slice.isLoading = true
    slice.isUsed = true
    this.#byKey.set(key, slice)
    return slice
  }

  loaded(slice: Slice): void {
    slice.isLoading = false
  }

  /** Its content could not be had. */
  drop(slice: Slice): void {
    this.#byKey.delete(slice.key)
    if (slice === this.#last) this.#last = null
    slice.key = -1
    slice.isLoading = false
  }

  setDirty(slice: Slice): void {
    if (slice.isDirty) return
    slice.isDirty = true
    this.dirtyCount++
  }

  /** Copies every dirty slice to its shadow and makes it clean. Returns them, to be written and given to `written`. */
  takeDirty(): Slice[] {
    const taken: Slice[] = []
    if (this.dirtyCount === 0) return taken
    for (const slice of this.#slices) {
      if (!slice.isDirty) continue
      memcpy(slice.shadow, slice.address, this.sliceBytes)
      slice.isDirty = false
      slice.isWriting = true
      taken.push(slice)
    }
    this.dirtyCount = 0
    return taken
  }

  /** `isDone`: its shadow is in the file; otherwise it is dirty again. */
  written(slice: Slice, isDone: boolean): void {
    slice.isWriting = false
    if (!isDone) this.setDirty(slice)
  }

  close(): void {
    unmap(this.#address, this.#capacity * this.sliceBytes * 2)
  }

  #grow(): Slice {
    const base = this.#slices.length * this.sliceBytes
    const shadow = this.#address + this.#capacity * this.sliceBytes + base
    const slice = new Slice(this.#view, base, this.#address + base, shadow)
    this.#slices.push(slice)
    return slice
  }

  /** The clock: passes over what was used since it came by, and what must stay. */
  #victim(): Slice | null {
    const { length } = this.#slices
    for (let i = 0; i < length * 2; i++) {
      const slice = this.#slices[this.#hand]!
      this.#hand = (this.#hand + 1) % length
      if (slice.isDirty || slice.isLoading || slice.isWriting) continue
      if (!slice.isUsed) return slice
      slice.isUsed = false
    }
    return null
  }
}
