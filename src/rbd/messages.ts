/** What a channel needs to know of an open image. Plain data, cloned to the reactors. */

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
  readonly image: number
}

/** What is shared by all threads that use an image, and may change while they do. */
export class ImageState {
  readonly #handle: Float64Array
  readonly #flags: Int32Array

  constructor(shared: SharedArrayBuffer) {
    this.#handle = new Float64Array(shared, 0, 1)
    this.#flags = new Int32Array(shared, 8, 1)
  }

  static allocate(image: number): SharedArrayBuffer {
    const shared = new SharedArrayBuffer(16)
    new ImageState(shared).image = image
    return shared
  }

  /** librbd's handle. Control thread writes it before it tells the channels; a channel reads it when it is opened. */
  get image(): number {
    return this.#handle[0]!
  }

  set image(image: number) {
    this.#handle[0] = image
  }

  /** Ceph refuses this client: reactors find out, the control thread opens the image anew. */
  get isShutOut(): boolean {
    return Atomics.load(this.#flags, 0) !== 0
  }

  set isShutOut(value: boolean) {
    Atomics.store(this.#flags, 0, value ? 1 : 0)
  }
}
