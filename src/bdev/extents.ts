/** Which parts of a range hold data: what a device tells of its holes. */

/** Bits of an extent's state; 0 means that it is allocated and may hold anything. */
export const ExtentState = {
  /** Nothing is allocated there. */
  HOLE: 1,
  /** It reads as zeroes. */
  ZERO: 2,
} as const

/** A list of neighbouring extents from the start of a range, filled by a device: reused, so that nothing is allocated. */
export class Extents {
  count = 0
  /** In blocks. */
  readonly lengths: Float64Array
  readonly states: Uint8Array

  constructor(capacity: number) {
    this.lengths = new Float64Array(capacity)
    this.states = new Uint8Array(capacity)
  }

  /** True when one more extent of another state than the last would not fit: the device may stop early then. */
  get isFull(): boolean {
    return this.count === this.lengths.length
  }

  clear(): void {
    this.count = 0
  }

  /** Adds `blocks` blocks behind what is there, to the last extent if the state is the same. Ignored when full. */
  push(blocks: number, state: number): void {
    if (this.count > 0 && this.states[this.count - 1] === state) {
      this.lengths[this.count - 1]! += blocks
    } else if (!this.isFull) {
      this.lengths[this.count] = blocks
      this.states[this.count] = state
      this.count++
    }
  }
}
