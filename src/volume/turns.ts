/** One after the other. */
export class Turns {
  #last: Promise<unknown> = Promise.resolve()
  #waiting = 0

  get isBusy(): boolean {
    return this.#waiting > 0
  }

  /** Runs `work` when all that was asked for before has ended, and resolves as it does. */
  async next<T>(work: () => Promise<T>): Promise<T> {
    this.#waiting++
    const result = this.#last.then(work)
    // Whoever comes next only wants to know that it is over.
    this.#last = result.catch(() => undefined)
    try {
      return await result
    } finally {
      this.#waiting--
    }
  }
}
