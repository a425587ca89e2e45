/**
 * I/Os of one reactor that other reactors found ended: any number of them writes, one reads.
 *
 *   word 0   tail: how many were put so far          words 2, 3   slot + 1 and result of the first, and so on
 *   word 1   head: how many were taken
 *
 * Both counts outlive the channel that reads: a reactor may close its channel and open another one.
 * A reactor has at most `SLOTS` I/Os outstanding, so the ring of as many entries never overflows.
 */
import { SLOTS } from './messages.ts'

const ENTRIES_AT = 2
const ENTRY_WORDS = 2

export class CompletionInbox {
  readonly #words: Int32Array<SharedArrayBuffer>

  constructor(ring: SharedArrayBuffer) {
    this.#words = new Int32Array(ring)
  }

  static allocate(): SharedArrayBuffer {
    return new SharedArrayBuffer((ENTRIES_AT + SLOTS * ENTRY_WORDS) * 4)
  }

  put(slot: number, result: number): void {
    const words = this.#words
    const at = ENTRIES_AT + (Atomics.add(words, 0, 1) & (SLOTS - 1)) * ENTRY_WORDS
    words[at + 1] = result
    Atomics.store(words, at, slot + 1)
  }

  /** The slot of the next one, or -1; its result is in `result`. */
  take(): number {
    const words = this.#words
    const at = ENTRIES_AT + (words[1]! & (SLOTS - 1)) * ENTRY_WORDS
    const slot = Atomics.load(words, at) - 1
    if (slot < 0) return -1
    this.result = words[at + 1]!
    words[at] = 0
    words[1] = (words[1]! + 1) | 0
    return slot
  }

  /** Of what `take` returned last. */
  result = 0
}
