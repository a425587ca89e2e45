/**
 * Keep alive (Base specification 2.1, section 3.9), traffic based: any command on any queue of the controller counts.
 * The queues only set a word; twice in each time-out it is looked at and cleared.
 *
 *   |--- half ---|--- half ---|--- half ---|
 *      traffic        none        none        -> expired: between one and one and a half time-outs after the last command
 */
import type { Clock, Timer } from '../core/clock.ts'

const KATO_UNIT_MS = 100
const SILENT_HALVES_MAX = 2

export interface KeepAliveOptions {
  readonly clock: Clock
  /** One word, set to 1 by every queue of the controller. */
  readonly traffic: Int32Array
  /** Granularity, in units of 100 ms. */
  readonly kas: number
  readonly minKatoMs: number
  /** Nothing was heard for a whole time-out. */
  readonly expired: () => void
}

export class KeepAlive {
  readonly #options: KeepAliveOptions
  #katoMs = 0
  #silentHalves = 0
  #timer: Timer | null = null

  constructor(options: KeepAliveOptions) {
    this.#options = options
  }

  /** What was granted; 0 is no time-out. */
  get katoMs(): number {
    return this.#katoMs
  }

  /** Grants the wish, not less than the least time-out and in whole units, and starts the timer anew. */
  start(katoMs: number): void {
    const { kas, minKatoMs } = this.#options
    const unitMs = kas * KATO_UNIT_MS
    this.stop()
    this.#katoMs = katoMs === 0 ? 0 : Math.ceil(Math.max(katoMs, minKatoMs) / unitMs) * unitMs
    this.#silentHalves = 0
    if (this.#katoMs > 0) this.#wait()
  }

  stop(): void {
    this.#timer?.cancel()
    this.#timer = null
  }

  #wait(): void {
    this.#timer = this.#options.clock.after(this.#katoMs / 2, () => this.#look())
  }

  #look(): void {
    const { traffic, expired } = this.#options
    if (Atomics.exchange(traffic, 0, 0) !== 0) this.#silentHalves = 0
    else this.#silentHalves++
    if (this.#silentHalves < SILENT_HALVES_MAX) this.#wait()
    else {
      this.#timer = null
      expired()
    }
  }
}
