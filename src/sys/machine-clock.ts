/**
 * The machine's monotonic clock. A polling loop reads it a million times a second, and a number that a function returns
 * costs 16 bytes of heap: `readInto` leaves the time in an array instead.
 */
import { TimerHeap } from '../core/clock.ts'
import { clockGettime } from './libc.ts'
import type { Arena } from './memory.ts'

const CLOCK_MONOTONIC = 1
const TIMESPEC_SIZE = 16

export class MachineClock extends TimerHeap {
  readonly #i32: Int32Array
  readonly #timespec: number
  /** Of the seconds, in words; the nanoseconds are two words on. */
  readonly #at: number

  constructor(arena: Arena) {
    const cell = new Float64Array(1)
    super(() => {
      this.readInto(cell)
      return cell[0]!
    })
    this.#i32 = arena.i32
    this.#timespec = arena.allocate(TIMESPEC_SIZE)
    this.#at = arena.offsetOf(this.#timespec) >> 2
  }

  override readInto(cell: Float64Array): void {
    clockGettime(CLOCK_MONOTONIC, this.#timespec)
    // Seconds since the machine's start: one word is enough for 68 years.
    cell[0] = this.#i32[this.#at]! * 1e6 + this.#i32[this.#at + 2]! * 1e-3
  }
}
