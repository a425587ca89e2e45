/**
 * A file that ends its operations in a random order and forgets, when its power is cut, any part of what was not synced: each
 * write since, sector by sector, may have reached the medium or not. Without a cut it is what SIGKILL leaves: everything that
 * was written.
 */
import type { ImageFile } from '../../../../src/bdev/drivers/qcow2/image-file.ts'
import type { FileWaiter } from '../../../../src/bdev/drivers/qcow2/task.ts'
import { Segments } from '../../../../src/bdev/io.ts'
import type { Prng } from '../../../../src/core/prng.ts'
import { bytesAt } from '../../../../src/sys/memory.ts'

const SECTOR = 512

export type Operation = 'read' | 'write' | 'zero' | 'punch' | 'sync'

interface Pending {
  readonly operation: Operation
  readonly offset: number
  readonly waiter: FileWaiter
  /** What it does when its turn comes. */
  run(): void
}

interface Write {
  /** In the order in which they ended. */
  readonly number: number
  readonly isFua: boolean
  readonly offset: number
  readonly data: Uint8Array
}

export class FakeFile implements ImageFile {
  readonly sizeBytes: number
  /** Operations that have ended. */
  ended = 0
  /**
   * Whether the operation, the next that ends, fails: with that -errno, and a write may have been done or not. A sync that
   * fails forgets some of what was to be synced, as Linux does: it can be read and never gets to the medium.
   */
  fails: (operation: Operation, offset: number) => number = () => 0
  readonly #prng: Prng
  readonly #pending: Pending[] = []
  /** As a reader sees it, and as it is certain to be. */
  #bytes: Uint8Array
  #durable: Uint8Array
  #unsynced: Write[] = []
  #written = 0

  constructor(bytes: Uint8Array, prng: Prng) {
    this.#bytes = Uint8Array.from(bytes)
    this.#durable = Uint8Array.from(bytes)
    this.sizeBytes = bytes.length
    this.#prng = prng
  }

  get endBytes(): number {
    return this.#bytes.length
  }

  get isIdle(): boolean {
    return this.#pending.length === 0
  }

  /** Ends one operation, any. */
  step(): void {
    const index = this.#prng.below(this.#pending.length)
    const [{ operation, offset, run, waiter }] = this.#pending.splice(index, 1) as [Pending]
    const result = this.fails(operation, offset)
    if (operation === 'sync' && result < 0) this.#unsynced = this.#unsynced.filter(() => this.#prng.oneIn(2))
    else if (result === 0 || this.#prng.oneIn(2)) run()
    this.ended++
    waiter.fileDone(result)
  }

  /** What a process finds that opens it after this one was killed. */
  afterKill(): Uint8Array {
    return this.#bytes.slice()
  }

  /** What is there after the power was cut; operations that were under way may have been done in part, too. */
  afterPowerCut(): Uint8Array {
    for (const { run } of this.#pending) if (this.#prng.oneIn(2)) run()
    let image: Uint8Array = this.#durable.slice()
    for (const { offset, data, isFua } of this.#unsynced) {
      for (let at = 0; at < data.length; ) {
        // Sectors are written as a whole, and each for itself.
        const length = Math.min(SECTOR - ((offset + at) % SECTOR), data.length - at)
        if (isFua || this.#prng.oneIn(2)) image = put(image, offset + at, data.subarray(at, at + length))
        at += length
      }
    }
    return image
  }

  read(offset: number, address: number, length: number, waiter: FileWaiter): void {
    this.readTo(offset, length, one(address, length), 0, waiter)
  }

  write(offset: number, address: number, length: number, waiter: FileWaiter): void {
    this.writeFrom(offset, length, one(address, length), 0, false, waiter)
  }

  readTo(offset: number, length: number, segments: Segments, skip: number, waiter: FileWaiter): void {
    this.#add('read', offset, waiter, () => {
      const data = new Uint8Array(length)
      data.set(this.#bytes.subarray(offset, offset + length))
      let at = 0
      for (const part of partsOf(segments, skip, length)) {
        part.set(data.subarray(at, at + part.length))
        at += part.length
      }
    })
  }

  writeFrom(
    offset: number,
    length: number,
    segments: Segments,
    skip: number,
    isFua: boolean,
    waiter: FileWaiter,
  ): void {
    this.#add('write', offset, waiter, () => {
      const data = Uint8Array.from(Buffer.concat(partsOf(segments, skip, length)))
      this.#put(offset, data, isFua)
    })
  }

  zero(offset: number, length: number, waiter: FileWaiter): void {
    this.#add('zero', offset, waiter, () => this.#put(offset, new Uint8Array(length)))
  }

  /** What is given back reads as anything: here as what would be noticed. */
  punch(offset: number, length: number, waiter: FileWaiter): void {
    this.#add('punch', offset, waiter, () => this.#put(offset, new Uint8Array(length).fill(0xee)))
  }

  /** Covers what ended before it began, and nothing else. */
  sync(waiter: FileWaiter): void {
    const last = this.#written
    this.#add('sync', 0, waiter, () => {
      for (const { number, offset, data } of this.#unsynced) {
        if (number <= last) this.#durable = put(this.#durable, offset, data)
      }
      this.#unsynced = this.#unsynced.filter(({ number }) => number > last)
    })
  }

  #put(offset: number, data: Uint8Array, isFua = false): void {
    this.#bytes = put(this.#bytes, offset, data)
    this.#written++
    this.#unsynced.push({ number: this.#written, offset, data, isFua })
  }

  #add(operation: Operation, offset: number, waiter: FileWaiter, run: () => void): void {
    this.#pending.push({ operation, offset, waiter, run })
  }
}

/** Longer if need be: the part between is zero. */
function put(bytes: Uint8Array, offset: number, data: Uint8Array): Uint8Array {
  let target = bytes
  if (offset + data.length > bytes.length) {
    target = new Uint8Array(offset + data.length)
    target.set(bytes)
  }
  target.set(data, offset)
  return target
}

function one(address: number, length: number): Segments {
  const segments = new Segments(1)
  segments.set(address, length)
  return segments
}

function partsOf(segments: Segments, skip: number, length: number): Uint8Array[] {
  const target = new Segments(segments.count)
  segments.slice(skip, length, target)
  return Array.from({ length: target.count }, (_, i) => bytesAt(target.addresses[i]!, target.lengths[i]!))
}
