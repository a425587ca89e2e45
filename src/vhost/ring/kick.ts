/** Hears of a front end's notifications: a poll of an eventfd that stays armed in the reactor's ring. */
import { CqeFlag } from '../../spec/io-uring.ts'
import type { RingHandler, Uring } from '../../sys/uring.ts'

export class KickWatcher implements RingHandler {
  /** False when the descriptor cannot be polled: whoever waits for it would wait for ever. */
  isArmed = true
  /** Notifications heard. */
  count = 0
  readonly #ring: Uring
  readonly #fd: number
  readonly #token: number
  readonly #kicked: () => void
  #isClosed = false

  /** `kicked` is called for each notification, and when it turns out that there will be none. */
  constructor(ring: Uring, fd: number, kicked: () => void) {
    this.#ring = ring
    this.#fd = fd
    this.#kicked = kicked
    this.#token = ring.register(this)
    this.#arm()
  }

  complete(result: number, flags: number): void {
    const isLast = (flags & CqeFlag.MORE) === 0
    if (this.#isClosed) {
      if (isLast) this.#ring.unregister(this.#token)
      return
    }
    if (result >= 0) {
      // The descriptor stays readable: it is the next write to it that wakes us again, so it is never read.
      this.count++
      if (isLast) this.#arm()
    } else this.isArmed = false
    this.#kicked()
  }

  /** The descriptor may be closed afterwards. */
  close(): void {
    this.#isClosed = true
    if (this.isArmed) {
      this.#ring.cancel(this.#token)
      this.#ring.enter()
    } else this.#ring.unregister(this.#token)
  }

  #arm(): void {
    this.#ring.pollReadable(this.#fd, this.#token)
    // At once, while the descriptor is certain to be what it was.
    this.#ring.enter()
  }
}
