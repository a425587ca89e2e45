/**
 * Watches a ring for what the device has used.
 *
 *   off --start--> polled each round --quiet for QUIET_US--> asleep, interrupts on
 *    ^                  ^                                        |
 *    +------stop--------+--------------- interrupt --------------+
 *
 * When the device was slower than `QUIET_US` the last time, polling would only have burned the processor: then interrupts
 * are asked for at once.
 */
import { assert } from '../core/assert.ts'
import type { Reactor } from '../reactor/reactor.ts'
import { CqeFlag } from '../spec/io-uring.ts'
import type { RingHandler, Uring } from '../sys/uring.ts'
import type { DriverRing } from './driver-ring.ts'

const QUIET_US = 50

export class UsedWatch implements RingHandler {
  readonly #reactor: Reactor
  readonly #uring: Uring
  readonly #call: number
  readonly #token: number
  /** Takes in what was used, and says how much. */
  readonly #take: () => number
  #ring: DriverRing | null = null
  #isAsleep = false
  /** When something was last used, or there was first something to wait for. */
  #newsUs = 0
  #isFast = true
  #closed: (() => void) | null = null

  constructor(reactor: Reactor, call: number, take: () => number) {
    const { ring } = reactor
    assert(ring, 'the kernel tells of interrupts by a ring')
    this.#reactor = reactor
    this.#uring = ring
    this.#call = call
    this.#take = take
    this.#token = ring.register(this)
    ring.pollReadable(call, this.#token)
    reactor.addPoller(this.#poll)
  }

  /** There is something to wait for now. */
  start(ring: DriverRing): void {
    if (this.#ring !== null) return
    this.#ring = ring
    this.#newsUs = this.#reactor.nowUs
    this.#isAsleep = false
    this.#reactor.polled++
    ring.disableInterrupts()
  }

  /** There is nothing to wait for any more. */
  stop(): void {
    if (this.#ring === null) return
    this.#ring = null
    if (!this.#isAsleep) this.#reactor.polled--
  }

  /** Resolves when the kernel does not look at the eventfd any more. */
  close(): Promise<void> {
    this.stop()
    this.#reactor.removePoller(this.#poll)
    return new Promise(resolve => {
      this.#closed = resolve
      this.#uring.cancel(this.#token)
    })
  }

  /** An interrupt, whether it was asked for or not. */
  complete(_result: number, flags: number): void {
    const isOver = (flags & CqeFlag.MORE) === 0
    if (this.#closed !== null) {
      if (!isOver) return
      this.#uring.unregister(this.#token)
      this.#closed()
      return
    }
    if (isOver) this.#uring.pollReadable(this.#call, this.#token)
    if (this.#ring === null || !this.#isAsleep) return
    this.#isAsleep = false
    this.#reactor.polled++
    this.#ring.disableInterrupts()
  }

  readonly #poll = (): number => {
    const ring = this.#ring
    if (ring === null || this.#isAsleep) return 0
    const { nowUs } = this.#reactor
    const count = this.#take()
    if (count > 0) {
      this.#isFast = nowUs - this.#newsUs <= QUIET_US
      this.#newsUs = nowUs
    } else if (this.#ring !== null && (!this.#isFast || nowUs - this.#newsUs > QUIET_US)) {
      if (!ring.enableInterrupts()) {
        this.#isAsleep = true
        this.#reactor.polled--
      }
    }
    return count
  }
}
