/**
 * Clusters that nothing refers to any more, until they may be used again.
 *
 *   add --> committed: the file does not refer to them either --> sealed: a new epoch begins
 *       --> every request of the old epoch has ended, so nobody reads or writes them --> counted down, maybe punched
 *
 * Requests count themselves into the epoch in which they begin. Only two epochs have requests at any time, so a counter
 * each is enough.
 */
export interface FreeRun {
  readonly start: number
  readonly count: number
  /** Give the room back to the file system, if nothing else refers to them. */
  readonly isDiscarded: boolean
}

export class Reclaimer {
  /** For the engine: the runs are to be counted down. */
  readonly #reap: (runs: readonly FreeRun[]) => void
  #added: FreeRun[] = []
  #committed: FreeRun[] = []
  #sealed: FreeRun[] = []
  #epoch = 0
  readonly #inside: [number, number] = [0, 0]

  constructor(reap: (runs: readonly FreeRun[]) => void) {
    this.#reap = reap
  }

  add(start: number, count: number, isDiscarded: boolean): void {
    const last = this.#added.at(-1)
    if (last !== undefined && last.start + last.count === start && last.isDiscarded === isDiscarded) {
      this.#added[this.#added.length - 1] = { start: last.start, count: last.count + count, isDiscarded }
    } else this.#added.push({ start, count, isDiscarded })
  }

  get isEmpty(): boolean {
    return this.#added.length + this.#committed.length + this.#sealed.length === 0
  }

  get hasUncommitted(): boolean {
    return this.#added.length > 0
  }

  /** A request begins; it keeps the epoch until `leave`. */
  enter(): number {
    this.#inside[this.#epoch]!++
    return this.#epoch
  }

  leave(epoch: number): void {
    this.#inside[epoch]!--
    if (this.#sealed.length > 0) this.#trySealed()
  }

  /** Requests that have not ended. */
  get active(): number {
    return this.#inside[0] + this.#inside[1]
  }

  /** What a commit that begins now takes with it. */
  take(): readonly FreeRun[] {
    const runs = this.#added
    this.#added = []
    return runs
  }

  /** The commit has failed. */
  giveBack(runs: readonly FreeRun[]): void {
    this.#added.unshift(...runs)
  }

  /** The file does not refer to them any more, for certain. */
  committed(runs: readonly FreeRun[]): void {
    if (runs.length === 0) return
    for (const run of runs) this.#committed.push(run)
    this.#trySealed()
  }

  #trySealed(): void {
    for (;;) {
      const old = this.#epoch === 0 ? 1 : 0
      if (this.#sealed.length > 0) {
        if (this.#inside[old] > 0) return
        const runs = this.#sealed
        this.#sealed = []
        this.#reap(runs)
      }
      // Nobody of the epoch before the present one is left, so the present one can become the old one.
      if (this.#committed.length === 0 || this.#inside[old] > 0) return
      this.#sealed = this.#committed
      this.#committed = []
      this.#epoch = old
    }
  }
}
