/** What a channel needs to know of an open image. Plain data, cloned to the reactors. */
import type { Retention } from './cache/rules.ts'

/** How many I/Os one reactor has in an image at once; more wait. A power of two. */
export const SLOTS = 1024

export interface OpenImage {
  /** See `ImageState`: the same for all reactors, since two handles would compete for the image's exclusive lock. */
  readonly state: SharedArrayBuffer
  /** Readable when I/Os have ended, whichever reactor they came from. */
  readonly eventfd: number
  /** By reactor: where others put what they found ended of its I/Os. */
  readonly inboxes: readonly ReactorInbox[]
  /** In bytes: compare-and-write stays within one. */
  readonly stripeUnit: number
}

/** Ended I/Os of one reactor that another found. See `CompletionInbox`. */
export interface ReactorInbox {
  readonly ring: SharedArrayBuffer
  /** An eventfd that its reactor waits for. */
  readonly doorbell: number
}

/** To the channels of an image: it was opened anew. The answer comes when nothing is outstanding under the old handle. */
export interface OpenedAnewMessage {
  /** See `ImageState.opening`. */
  readonly opening: number
}

const HANDLES_SIZE = 16
const CURRENT = 0
const SHUT_OUT = 1
const LOST = 2
/** Of the first opening; the other's is behind it. */
const UNFLUSHED = 3
/** The same order: whether somebody flushed. */
const FLUSHED = 5
const WORDS = 7

/**
 * What is shared by all threads that use an image, and may change while they do. Openings of the image take turns as 0
 * and 1: while it is opened anew there are two, each with a handle of librbd's and words for what librbd may have kept
 * back under it.
 */
export class ImageState {
  readonly #handles: Float64Array
  readonly #words: Int32Array

  constructor(shared: SharedArrayBuffer) {
    this.#handles = new Float64Array(shared, 0, 2)
    this.#words = new Int32Array(shared, HANDLES_SIZE, WORDS)
  }

  static allocate(image: number): SharedArrayBuffer {
    const shared = new SharedArrayBuffer(HANDLES_SIZE + WORDS * 4)
    new ImageState(shared).#handles[0] = image
    return shared
  }

  /** The one under which I/O is to be started, 0 or 1. The control thread changes it before it tells the channels. */
  get opening(): number {
    return Atomics.load(this.#words, CURRENT)
  }

  /** librbd's handle of an opening. */
  imageOf(opening: number): number {
    return this.#handles[opening]!
  }

  /** Ceph refuses this client: reactors find out, the control thread opens the image anew. No flush succeeds meanwhile. */
  get isShutOut(): boolean {
    return Atomics.load(this.#words, SHUT_OUT) !== 0
  }

  set isShutOut(value: boolean) {
    Atomics.store(this.#words, SHUT_OUT, value ? 1 : 0)
  }

  /** A write was acknowledged, or a flush failed: librbd may keep something back. */
  markUnflushed(opening: number): void {
    // Reactors that write all the time only read the word, and do not take it from each other.
    if (Atomics.load(this.#words, UNFLUSHED + opening) === 0)
      Atomics.store(this.#words, UNFLUSHED + opening, 1)
  }

  /**
   * Before each flush: whether something is unflushed. It is not any more, unless the flush fails and marks it again.
   * librbd may keep back from here on what it wrote through before.
   */
  takeUnflushed(opening: number): boolean {
    if (Atomics.load(this.#words, FLUSHED + opening) === 0) Atomics.store(this.#words, FLUSHED + opening, 1)
    return Atomics.exchange(this.#words, UNFLUSHED + opening, 0) !== 0
  }

  /** Whether acknowledged writes were lost and nobody was told: whoever asks has to tell. */
  takeLoss(): boolean {
    // Only one of millions of flushes has to write the word.
    return Atomics.load(this.#words, LOST) !== 0 && Atomics.exchange(this.#words, LOST, 0) !== 0
  }

  /** The image is open under another handle, to which the channels are to change. Returns the new opening. */
  openAnew(image: number): number {
    // A flush under the new handle must not succeed before `settle` knows what was lost with the old one.
    this.isShutOut = true
    const opening = 1 - this.opening
    this.#handles[opening] = image
    Atomics.store(this.#words, UNFLUSHED + opening, 0)
    Atomics.store(this.#words, FLUSHED + opening, 0)
    Atomics.store(this.#words, CURRENT, opening)
    return opening
  }

  /**
   * All channels have changed over, and nothing is outstanding under the old handle. `retention`: what librbd kept back
   * under it. Returns whether something may be lost, which one flush is going to tell.
   */
  settle(retention: Retention): boolean {
    const old = 1 - this.opening
    const kept = retention === 'always' || (retention === 'after a flush' && this.#is(FLUSHED + old))
    const isLost = kept && this.#is(UNFLUSHED + old)
    if (isLost) Atomics.store(this.#words, LOST, 1)
    this.isShutOut = false
    return isLost
  }

  #is(word: number): boolean {
    return Atomics.load(this.#words, word) !== 0
  }
}
