/** An eventfd in a reactor's ring: ends its sleep, and says that it was rung. */
import { CqeFlag } from '../../../spec/io-uring.ts'
import type { RingHandler, Uring } from '../../../sys/uring.ts'

export class Bell implements RingHandler {
  readonly #ring: Uring
  readonly #fd: number
  readonly #token: number
  #isRung = false
  #isClosed = false

  constructor(ring: Uring, fd: number) {
    this.#ring = ring
    this.#fd = fd
    this.#token = ring.register(this)
    ring.pollReadable(fd, this.#token)
  }

  /** Whether it has rung since the last time that this was asked. */
  hasRung(): boolean {
    const isRung = this.#isRung
    this.#isRung = false
    return isRung
  }

  complete(_result: number, flags: number): void {
    this.#isRung = true
    if ((flags & CqeFlag.MORE) !== 0) return
    if (this.#isClosed) this.#ring.unregister(this.#token)
    else this.#ring.pollReadable(this.#fd, this.#token)
  }

  close(): void {
    this.#isClosed = true
    this.#ring.cancel(this.#token)
  }
}
