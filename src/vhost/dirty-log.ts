/**
 * The log of a live migration: one bit for each 4 KiB page of guest memory that this process wrote to (vhost-user
 * specification, "Migration"). The front end reads and clears bits while we set others, so every access is atomic.
 */
import { viewMemory } from '../sys/libc.ts'
import type { SharedPart } from './messages.ts'

const PAGE = 4096

export class DirtyLog {
  readonly #bits: Uint8Array

  constructor(part: SharedPart) {
    this.#bits = new Uint8Array(viewMemory(part.address, part.sizeBytes))
  }

  /** Marks the pages of a range of guest memory. What the log does not cover is not marked. */
  mark(guestAddress: number, sizeBytes: number): void {
    const bits = this.#bits
    const end = Math.ceil((guestAddress + sizeBytes) / PAGE)
    for (let page = Math.floor(guestAddress / PAGE); page < end; page++) {
      const at = Math.floor(page / 8)
      if (at >= bits.length) return
      Atomics.or(bits, at, 1 << (page % 8))
    }
  }
}
