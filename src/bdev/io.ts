/** One I/O to a block device: what is asked, where the data is, and who hears of the end. */
import { assert } from '../core/assert.ts'
import type { Deliverable } from '../reactor/reactor.ts'
import { memcmp, memcpy, memset } from '../sys/memory.ts'
import type { Channel } from './channel.ts'
import { IoType } from './io-type.ts'

export { IO_TYPE_NAMES, IoType } from './io-type.ts'

const COPY_FROM = 0
const COPY_TO = 1
const COMPARE = 2

/** Where data lies: a list of (address, length in bytes) in this process's address space. */
export class Segments {
  count = 0
  addresses: Float64Array
  lengths: Float64Array

  constructor(capacity: number) {
    this.addresses = new Float64Array(capacity)
    this.lengths = new Float64Array(capacity)
  }

  get capacity(): number {
    return this.addresses.length
  }

  /** Makes the list one segment. */
  set(address: number, length: number): void {
    this.addresses[0] = address
    this.lengths[0] = length
    this.count = 1
  }

  /** Makes room for at least `capacity` segments, and keeps those that are there. */
  reserve(capacity: number): void {
    if (capacity <= this.addresses.length) return
    const { addresses, lengths } = this
    this.addresses = new Float64Array(capacity)
    this.lengths = new Float64Array(capacity)
    this.addresses.set(addresses)
    this.lengths.set(lengths)
  }

  push(address: number, length: number): void {
    assert(this.count < this.addresses.length, `no more than ${this.addresses.length} segments`)
    this.addresses[this.count] = address
    this.lengths[this.count] = length
    this.count++
  }

  get totalBytes(): number {
    let total = 0
    for (let i = 0; i < this.count; i++) total += this.lengths[i]!
    return total
  }

  /** Adds to `target` the segments of the part of this list that starts at `offset` bytes and has `length`. */
  slice(offset: number, length: number, target: Segments): void {
    let skip = offset
    let left = length
    for (let i = 0; left > 0; i++) {
      assert(i < this.count, 'a slice lies within its list')
      const available = this.lengths[i]! - skip
      if (available <= 0) {
        skip = -available
        continue
      }
      const part = Math.min(available, left)
      target.push(this.addresses[i]! + skip, part)
      left -= part
      skip = 0
    }
  }

  /** Copies into the part of this list that starts at `offset` bytes, from `length` bytes at `address`. */
  copyFrom(address: number, offset: number, length: number): void {
    // Nearly every list is one segment, and a call with fewer numbers beyond 31 bits leaves less garbage.
    if (this.count === 1 && offset === 0) memcpy(this.addresses[0]!, address, length)
    else this.#walk(COPY_FROM, address, offset, length)
  }

  /** Copies the part of this list that starts at `offset` bytes to `length` bytes at `address`. */
  copyTo(address: number, offset: number, length: number): void {
    if (this.count === 1 && offset === 0) memcpy(address, this.addresses[0]!, length)
    else this.#walk(COPY_TO, address, offset, length)
  }

  /** Whether the part of this list that starts at `offset` bytes equals the `length` bytes at `address`. */
  equals(address: number, offset: number, length: number): boolean {
    return this.#walk(COMPARE, address, offset, length)
  }

  /** Makes every byte zero. */
  zero(): void {
    for (let i = 0; i < this.count; i++) memset(this.addresses[i]!, 0, this.lengths[i]!)
  }

  #walk(action: number, address: number, offset: number, length: number): boolean {
    let skip = offset
    let at = address
    const end = address + length
    for (let i = 0; at < end; i++) {
      assert(i < this.count, `the list has ${length} bytes from ${offset} on`)
      const available = this.lengths[i]! - skip
      if (available <= 0) {
        skip = -available
        continue
      }
      const part = Math.min(available, end - at)
      const own = this.addresses[i]! + skip
      if (action === COPY_FROM) memcpy(own, at, part)
      else if (action === COPY_TO) memcpy(at, own, part)
      else if (memcmp(own, at, part) !== 0) return false
      at += part
      skip = 0
    }
    return true
  }
}

/** Hears of the end of I/Os that it submitted. */
export interface IoOwner {
  /** Called once for each I/O, in the reactor's round, never from inside `submit`. The owner has the I/O back. */
  ioDone(io: BdevIo): void
}

/**
 * A pooled request. The owner fills it and submits it to a channel; from then until `ioDone` it belongs to the device,
 * which may touch its data until it calls `complete` and no longer.
 */
export class BdevIo implements Deliverable {
  type: IoType = IoType.READ
  /** A write must be on stable storage when it completes (FUA). */
  fua = false
  firstBlock = 0
  blockCount = 0
  /**
   * A READ on a lending channel that comes with no segments: the device points the list at its own memory. Set by the
   * owner; after success it owes the channel a `release`.
   */
  lent = false
  /** The data. A filter may let its own request point to its parent's list. */
  segments: Segments
  /** The NVMe status it ended with: status code type * 256 + status code. Valid in `ioDone`. */
  status = 0
  /** For the owner: which of its requests this is. */
  tag = 0
  /** For the device while the I/O is its own: a slot number, a parent, a place in a queue. */
  deviceTag = 0
  context: unknown = null

  owner: IoOwner
  /** Set by `Channel.submit`. */
  channel: Channel | null = null
  /** When it was submitted, in the reactor's microseconds. */
  submittedUs = 0
  /** Intrusive list of the reactor's completion queue, and of whoever holds the I/O in between. */
  next: Deliverable | null = null

  constructor(owner: IoOwner, segmentCapacity = 1) {
    this.owner = owner
    this.segments = new Segments(segmentCapacity)
  }

  /**
   * Ends the I/O with an NVMe status (`Status` in `spec/nvme.ts`). Queued: the owner hears in the reactor's next round.
   * Called exactly once for each submit.
   */
  complete(status: number): void {
    this.status = status
    this.channel!.completed(this)
  }

  /** For the reactor only. */
  deliver(): void {
    this.owner.ioDone(this)
  }
}
