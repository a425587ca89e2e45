/** The list of iovecs of one transfer to or from a file, in memory that the kernel reads; kept for the next transfer. */
import { assert } from '../../core/assert.ts'
import { IOVEC_SIZE } from '../../spec/io-uring.ts'
import type { Arena } from '../../sys/memory.ts'
import type { Segments } from '../io.ts'

/** What the kernel takes at once (limits.h). */
const IOV_MAX = 1024
const CAPACITY_MIN = 16
const TWO_32 = 2 ** 32

export class IovecList {
  /** Of the first one; 0 before the first `fill`. */
  address = 0
  readonly #arena: Arena
  #capacity = 0

  constructor(arena: Arena) {
    this.#arena = arena
  }

  /**
   * Lists `left` bytes (at least 1) of the segments that begin `first` bytes into them, up to `IOV_MAX` parts. Answers how
   * many parts that are; 0 when there is no memory for the list.
   */
  fill({ count: segmentCount, addresses, lengths }: Segments, first: number, left: number): number {
    const wanted = Math.min(segmentCount, IOV_MAX)
    if (wanted > this.#capacity && !this.#grow(wanted)) return 0
    const words = this.#arena.i32
    let at = this.#arena.offsetOf(this.address) / 4
    let count = 0
    let skip = first
    let rest = left
    for (let i = 0; i < segmentCount && count < wanted && rest > 0; i++) {
      const length = lengths[i]!
      if (skip >= length) {
        skip -= length
        continue
      }
      const address = addresses[i]! + skip
      const part = Math.min(length - skip, rest)
      words[at] = address | 0
      words[at + 1] = (address / TWO_32) | 0
      words[at + 2] = part | 0
      words[at + 3] = 0
      at += 4
      count++
      rest -= part
      skip = 0
    }
    assert(count > 0, 'there is something left to transfer')
    return count
  }

  #grow(wanted: number): boolean {
    let capacity = CAPACITY_MIN
    while (capacity < wanted) capacity *= 2
    const address = this.#arena.allocate(capacity * IOVEC_SIZE)
    if (address === 0) return false
    this.address = address
    this.#capacity = capacity
    return true
  }
}
