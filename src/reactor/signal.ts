/**
 * Wakes whoever waits at an eventfd that a stranger has as well. Its flags and its counter are the stranger's, too: with
 * O_NONBLOCK cleared and the counter full, write(2) would keep this thread for ever. So the write goes through the
 * reactor's ring, where it waits without us.
 */
import { Opcode } from '../spec/io-uring.ts'
import { write } from '../sys/libc.ts'
import type { RingHandler, Uring } from '../sys/uring.ts'

export class Signal implements RingHandler {
  readonly #ring: Uring | null
  readonly #fd: number
  readonly #one: number
  readonly #token: number
  #isUnderWay = false
  /** Asked for again since: what was under way may have been too early. */
  #isWanted = false
  #onClosed: (() => void) | null = null

  /** `one`: the address of eight bytes with the number 1. A reactor without a ring, in a simulation, has no strangers. */
  constructor(ring: Uring | null, fd: number, one: number) {
    this.#ring = ring
    this.#fd = fd
    this.#one = one
    this.#token = ring?.register(this) ?? -1
  }

  /** At the end of this round at the latest. */
  send(): void {
    if (this.#ring === null) write(this.#fd, this.#one, 8)
    else if (this.#isUnderWay) this.#isWanted = true
    else {
      this.#isUnderWay = true
      this.#ring.prepare(Opcode.WRITE, this.#fd, 0, this.#one, 8, 0, this.#token)
    }
  }

  complete(): void {
    this.#isUnderWay = false
    if (this.#onClosed !== null) {
      this.#ring!.unregister(this.#token)
      this.#onClosed()
    } else if (this.#isWanted) {
      this.#isWanted = false
      this.send()
    }
  }

  /** Resolves when the descriptor may be closed: a write that is still to be made would hit whatever has its number then. */
  close(): Promise<void> {
    if (this.#ring === null) return Promise.resolve()
    if (!this.#isUnderWay) {
      this.#ring.unregister(this.#token)
      return Promise.resolve()
    }
    this.#ring.cancel(this.#token)
    return new Promise(resolve => {
      this.#onClosed = resolve
    })
  }
}
