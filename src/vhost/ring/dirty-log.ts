/**
 * The log of a live migration: one bit for each 4 KiB page of guest memory that this process wrote to (vhost-user
 * specification, "Migration"). The front end reads and clears bits while we set others, so every access is atomic.
 */
import { viewMemory } from '../../sys/libc.ts'
import type { SharedPart } from '../messages.ts'

const PAGE = 4096

/** Of a log, in bytes: for 32 TiB of guest memory. A view of much more would end this process. */
export const LOG_SIZE_MAX = 2 ** 30

export class DirtyLog {
  readonly #bits: Uint8Array

  constructor(part: SharedPart) {
    this.#bits = new Uint8Array(viewMemory(part.address, part.sizeBytes))
  }

  /** Marks the pages of a range of guest memory. What the log does not cover is not marked. */
  mark(guestAddress: number, sizeBytes: number): void {
    const end = Math.ceil((guestAddress + sizeBytes) / PAGE)
    let page = Math.floor(guestAddress / PAGE)
    if (end - page > 64) page = this.#markBytes(page, end)
    this.#markBits(page, end)
  }

  /** The most of a long range: bytes of eight pages have no bit that a plain store could lose. Returns where it ends. */
  #markBytes(first: number, end: number): number {
    const firstByte = Math.ceil(first / 8)
    const endByte = Math.floor(end / 8)
    this.#markBits(first, firstByte * 8)
    this.#bits.fill(0xff, firstByte, endByte)
    return endByte * 8
  }

  #markBits(first: number, end: number): void {
    const bits = this.#bits
    for (let page = first; page < end; page++) {
      const at = Math.floor(page / 8)
      if (at >= bits.length) return
      Atomics.or(bits, at, 1 << (page % 8))
    }
  }
}
