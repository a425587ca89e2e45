/**
 * How much memory the requests of one session may take on one reactor. Requests are pooled, and their lists grow to the
 * longest seen; 256 queues of 32768 entries, with thousands of pieces in each chain, would be gigabytes.
 *
 *   0 ------------- kept -------------- KEPT_MAX ------- given back when they end ------- SPENT ---- no new ones
 */
import type { GuestRequest } from './request.ts'

/** In segments, of 16 bytes: what a request takes beside its lists. */
const REQUEST = 80
/** 32 MiB. */
const KEPT_MAX = 2 << 20
/** 64 MiB. */
const SPENT = 4 << 20

export class RequestBudget {
  #used = 0

  /** Requests are to be given back when they end. */
  get isTight(): boolean {
    return this.#used > KEPT_MAX
  }

  /** A queue that has requests under way is to wait until they end. */
  get isSpent(): boolean {
    return this.#used > SPENT
  }

  /** Notes what a request takes now. */
  charge(request: GuestRequest): void {
    // The device's list is a copy, in whole or in part.
    const weight = REQUEST + 2 * request.segments.capacity
    if (weight === request.weight) return
    this.#used += weight - request.weight
    request.weight = weight
  }

  /** The request is not pooled any more. */
  refund(request: GuestRequest): void {
    this.#used -= request.weight
    request.weight = 0
  }
}
