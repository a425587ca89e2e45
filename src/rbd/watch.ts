/**
 * Hears of a descriptor that is readable, while that is wanted. Once begun the watch stays armed:
 *
 *             start             stop               the poll has ended
 *      idle ---------> armed ---------> ending ---------------------> idle, or armed again when it is wanted again
 *
 * Nobody reads the descriptor, an eventfd: what came while it was not watched is told as soon as it is.
 */

import { CqeFlag } from '../spec/io-uring.ts'
import type { RingHandler, Uring } from '../sys/uring.ts'

type State = 'idle' | 'armed' | 'ending'

export class Watch implements RingHandler {
  readonly #ring: Uring
  readonly #fd: number
  readonly #onEvent: () => void
  readonly #token: number
  #state: State = 'idle'
  #isWanted = false
  #isClosed = false

  constructor(ring: Uring, fd: number, onEvent: () => void) {
    this.#ring = ring
    this.#fd = fd
    this.#onEvent = onEvent
    this.#token = ring.register(this)
  }

  start(): void {
    this.#isWanted = true
    if (this.#state === 'idle') this.#arm()
  }

  stop(): void {
    this.#isWanted = false
    if (this.#state !== 'armed') return
    this.#state = 'ending'
    this.#ring.cancel(this.#token)
  }

  /** Nothing is heard any more, and it cannot be started again. */
  close(): void {
    this.stop()
    this.#isClosed = true
    if (this.#state === 'idle') this.#ring.unregister(this.#token)
  }

  complete(_result: number, flags: number): void {
    const isOver = (flags & CqeFlag.MORE) === 0
    if (isOver) this.#state = 'idle'
    if (this.#isWanted) this.#onEvent()
    if (this.#state !== 'idle') return
    if (this.#isClosed) this.#ring.unregister(this.#token)
    else if (this.#isWanted) this.#arm()
  }

  #arm(): void {
    this.#state = 'armed'
    this.#ring.pollReadable(this.#fd, this.#token)
  }
}
