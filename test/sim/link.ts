/** One direction between two addresses: how long bytes take, and whether they arrive at all. */
import type { Prng } from '../../src/core/prng.ts'
import type { SimClock } from './clock.ts'

/** TCP tries again this long after a loss, at least and at most. */
const RETRANSMIT_US = [200_000, 2_000_000] as const

export interface LinkQuality {
  /** Microseconds a segment takes, at least and at most. */
  readonly delayUs: readonly [number, number]
  readonly bytesPerUs: number
}

export const GOOD_LINK: LinkQuality = { delayUs: [20, 200], bytesPerUs: 1000 }

export class Link {
  quality: LinkQuality = GOOD_LINK
  readonly #clock: SimClock
  readonly #prng: Prng
  #isCut = false
  #waiting: (() => void)[] = []

  constructor(clock: SimClock, prng: Prng) {
    this.#clock = clock
    this.#prng = prng
  }

  /** Nothing arrives any more, and nobody is told. */
  get isCut(): boolean {
    return this.#isCut
  }

  cut(): void {
    this.#isCut = true
  }

  /** What was sent meanwhile arrives after all, as TCP sends it again. */
  heal(): void {
    if (!this.#isCut) return
    this.#isCut = false
    const waiting = this.#waiting
    this.#waiting = []
    for (const go of waiting) this.#clock.after(this.#prng.between(...RETRANSMIT_US), go)
  }

  /** Calls `go` some time after the link is whole again. */
  whenWhole(go: () => void): void {
    this.#waiting.push(go)
  }

  /** How long a segment of that size takes. */
  takesUs(sizeBytes: number): number {
    const [min, max] = this.quality.delayUs
    return this.#prng.between(min, max) + sizeBytes / this.quality.bytesPerUs
  }
}
