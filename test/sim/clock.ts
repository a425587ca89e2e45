/**
 * Virtual time for several machines in one process. Nothing happens between two events, so the clock jumps from one to
 * the next: a minute of silence costs nothing.
 *
 *   step: jump to the next event or timer --> fire it --> promises --> poll every reactor, in a seeded order --+
 *                                                             ^                                                 |
 *                                                             +------------ until nothing is left to do <-------+
 */
import { TimerHeap } from '../../src/core/clock.ts'
import type { Prng } from '../../src/core/prng.ts'

/** What the clock needs of a reactor. */
export interface Polled {
  readonly clock: TimerHeap
  readonly awaited: number
  readonly isQuiet: boolean
  poll(): number
}

interface Member {
  readonly name: string
  readonly polled: Polled
  pausedUntilUs: number
}

/** More rounds than this at one moment are a loop that waits for nothing. */
const ROUNDS_MAX = 20_000
/** How often a reactor is polled whose requests wait for something that gives no sign (`Reactor.awaited`). */
const AWAITED_US = 1000

export class SimClock {
  nowUs = 0
  /** Whose code runs, for the trace. */
  running = 'world'
  readonly #prng: Prng
  readonly #events = new TimerHeap(() => this.nowUs)
  readonly #timers = new Set<TimerHeap>()
  #members: Member[] = []
  /** The order of the next round. */
  #order: Member[] = []
  steps = 0
  #failure: Error | null = null

  constructor(prng: Prng) {
    this.#prng = prng
  }

  /** Calls `fire` after `delayUs`. */
  after(delayUs: number, fire: () => void): { cancel(): void } {
    return this.#events.after(delayUs / 1000, fire)
  }

  /** Resolves after `delayUs`. */
  sleep(delayUs: number): Promise<void> {
    return new Promise(resolve => this.after(delayUs, resolve))
  }

  /** Timers of a reactor, which fires them itself in its round. */
  newTimerHeap(): TimerHeap {
    return new TimerHeap(() => this.nowUs)
  }

  /** Timers of a thread that is not polled, such as a node's control thread. */
  newTimers(): TimerHeap {
    const timers = new TimerHeap(() => this.nowUs)
    this.#timers.add(timers)
    return timers
  }

  dropTimers(timers: TimerHeap): void {
    this.#timers.delete(timers)
  }

  add(name: string, polled: Polled): void {
    this.#members.push({ name, polled, pausedUntilUs: 0 })
    this.#order = [...this.#members]
  }

  /** A reactor that is never polled again: its machine crashed. */
  remove(polled: Polled): void {
    this.#members = this.#members.filter(member => member.polled !== polled)
    this.#order = [...this.#members]
  }

  /** Takes the processor away from a reactor for a while. */
  pause(polled: Polled, durationUs: number): void {
    const member = this.#members.find(candidate => candidate.polled === polled)
    if (member !== undefined) member.pausedUntilUs = this.nowUs + durationUs
  }

  /** Runs until `promise` is settled. Throws when nothing is left that could settle it, or after `limitUs`. */
  async run<T>(promise: Promise<T>, limitUs = Number.POSITIVE_INFINITY): Promise<T> {
    let isSettled = false
    const settle = (): void => {
      isSettled = true
    }
    promise.then(settle, settle)
    await this.until(() => isSettled, limitUs)
    return promise
  }

  /** Ends the run with that error. */
  fail(error: Error): void {
    this.#failure ??= error
  }

  /** Runs until `condition` holds. */
  async until(condition: () => boolean, limitUs = Number.POSITIVE_INFINITY): Promise<void> {
    const endUs = this.nowUs + limitUs
    for (;;) {
      await this.#settle()
      if (this.#failure !== null) throw this.#failure
      if (condition()) return
      const next = this.#nextDueUs()
      if (next === Number.POSITIVE_INFINITY) throw new Hang('nothing is left that could happen')
      if (next > endUs) throw new Hang(`it takes longer than ${limitUs / 1e6} s`)
      this.nowUs = Math.max(this.nowUs, next)
    }
  }

  #nextDueUs(): number {
    let next = this.#events.nextDueUs()
    for (const timers of this.#timers) next = Math.min(next, timers.nextDueUs())
    for (const { polled, pausedUntilUs } of this.#members) {
      if (pausedUntilUs > this.nowUs) {
        // Much may have come for it meanwhile.
        next = Math.min(next, pausedUntilUs)
        continue
      }
      next = Math.min(next, polled.isQuiet ? polled.clock.nextDueUs() : this.nowUs)
      if (polled.awaited > 0) next = Math.min(next, this.nowUs + AWAITED_US)
    }
    return next
  }

  /** Everything that happens at this moment. */
  async #settle(): Promise<void> {
    for (let round = 0; round < ROUNDS_MAX; round++) {
      this.steps++
      this.running = 'world'
      let happened = this.#events.nextDueUs() <= this.nowUs ? this.#events.fireDue() : 0
      for (const timers of this.#timers) {
        if (timers.nextDueUs() <= this.nowUs) happened += timers.fireDue()
      }
      if (happened > 0) await promises()
      const polled = this.#pollAll()
      // A round without events may still have armed something that is due now, but nothing that a promise waits for.
      if (polled > 0) await promises()
      else if (happened === 0) return
    }
    throw new Hang(`${ROUNDS_MAX} rounds at one moment and no end`)
  }

  #pollAll(): number {
    const order = this.#order
    if (order.length > 1) {
      const at = this.#prng.below(order.length)
      const last = order.length - 1
      const first = order[at]!
      order[at] = order[last]!
      order[last] = first
    }
    let events = 0
    for (const { name, polled, pausedUntilUs } of order) {
      if (pausedUntilUs > this.nowUs) continue
      this.running = name
      events += polled.poll()
    }
    this.running = 'world'
    return events
  }
}

/** The simulated machines do not get anywhere. */
export class Hang extends Error {
  override readonly name = 'Hang'
}

/** Lets every promise that can go on do so: those are all run before the event loop's next turn. */
function promises(): Promise<void> {
  return new Promise(setImmediate)
}
