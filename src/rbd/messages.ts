/** What a channel needs to know of an open image. Plain data, cloned to the reactors. */

/** How many I/Os one reactor has in an image at once; more wait. A power of two. */
export const SLOTS = 1024

export interface OpenImage {
  /** librbd's handle: one for all reactors, since two would compete for the image's exclusive lock. */
  readonly image: number
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
