/** A ring on its reactor, with a back end at the other side: notifications to it, interrupts from it, and what it has used. */
import { ProtocolError } from '../core/errors.ts'
import type { Reactor } from '../reactor/reactor.ts'
import { Signal } from '../reactor/signal.ts'
import type { DriverRing } from './driver-ring.ts'
import { createRing } from './memory-layout.ts'
import type { PrepareQueue, RingDescription } from './messages.ts'
import { UsedWatch } from './used-watch.ts'

/** Whose buffers are in the ring. */
export interface RingUser {
  /** The device has used the buffer that was added with this token. */
  used(token: number): void
  /** So many have been told, all there were. */
  taken(count: number): void
  /** The back end did what no device does: nothing that is in the ring can be relied on any more. */
  broken(why: string): void
}

export class DrivenRing {
  readonly #description: RingDescription
  readonly #user: RingUser
  readonly #watch: UsedWatch
  readonly #kick: Signal
  #ring: DriverRing | null = null

  /** `one`: see `Signal`. */
  constructor(reactor: Reactor, description: RingDescription, one: number, user: RingUser) {
    this.#description = description
    this.#user = user
    this.#watch = new UsedWatch(reactor, description.call, () => this.take())
    this.#kick = new Signal(reactor.ring, description.kick, one)
  }

  /** Null before the first back end. */
  get ring(): DriverRing | null {
    return this.#ring
  }

  /** What the next back end is to find. Returns whether that is a new and empty ring. */
  prepare({ features, resumes }: PrepareQueue): boolean {
    if (resumes && this.#ring !== null) return false
    this.#ring = createRing(this.#description, features)
    return true
  }

  /** There is something to wait for now. */
  watch(): void {
    this.#watch.start(this.#ring!)
  }

  unwatch(): void {
    this.#watch.stop()
  }

  /** Tells the back end to look, whether it wants to hear of it or not. */
  kick(): void {
    this.#kick.send()
  }

  /** Takes in what the device has used. Returns how much. */
  take(): number {
    const ring = this.#ring!
    let count = 0
    try {
      for (let token = ring.next(); token >= 0; token = ring.next()) {
        count++
        this.#user.used(token)
      }
    } catch (error) {
      if (!(error instanceof ProtocolError)) throw error
      this.#watch.stop()
      this.#user.broken(`its ring ${this.#description.index} is broken: ${error.message}`)
      return count
    }
    this.#user.taken(count)
    return count
  }

  /** Resolves when the descriptors may be closed. */
  async close(): Promise<void> {
    await Promise.all([this.#watch.close(), this.#kick.close()])
  }
}
