/** Time as the program sees it: the machine's, or a simulation's. */
export interface Clock {
  /** Monotonic, in microseconds, from an arbitrary start. */
  nowUs(): number
  /** Calls `fire` once, `delayMs` from now or a little later. */
  after(delayMs: number, fire: () => void): Timer
}

export interface Timer {
  /** Harmless after it fired. */
  cancel(): void
}

/**
 * Timers of an event loop that is polled rather than blocked in: a binary heap, looked at once per slice. The owner
 * calls `fireDue` and asks `nextDueUs` how long it may sleep.
 */
export class TimerHeap implements Clock {
  readonly nowUs: () => number
  readonly #heap: HeapTimer[] = []
  #sequence = 0

  constructor(nowUs: () => number) {
    this.nowUs = nowUs
  }

  after(delayMs: number, fire: () => void): Timer {
    const timer = new HeapTimer(this.nowUs() + delayMs * 1000, this.#sequence++, fire)
    this.#push(timer)
    return timer
  }

  /** Leaves the time in `cell[0]`. A clock that is read in a loop overrides this so that it allocates nothing. */
  readInto(cell: Float64Array): void {
    cell[0] = this.nowUs()
  }

  /** Fires every timer that is due, in order of due time, and says how many. */
  fireDue(): number {
    let fired = 0
    const now = this.nowUs()
    for (let first = this.#heap[0]; first !== undefined && first.dueUs <= now; first = this.#heap[0]) {
      this.#pop()
      if (first.fire === undefined) continue
      const { fire } = first
      first.cancel()
      fired++
      fire()
    }
    return fired
  }

  /** Timers that are set, those cancelled but not yet forgotten included. */
  get pending(): number {
    return this.#heap.length
  }

  /** Whether `fireDue` has something to do at the time in `cell[0]`. */
  isDue(cell: Float64Array): boolean {
    const first = this.#heap[0]
    return first !== undefined && first.dueUs <= cell[0]!
  }

  /** When the next timer is due, or `Infinity`. */
  nextDueUs(): number {
    while (this.#heap[0] !== undefined && this.#heap[0].fire === undefined) this.#pop()
    return this.#heap[0]?.dueUs ?? Number.POSITIVE_INFINITY
  }

  #push(timer: HeapTimer): void {
    const heap = this.#heap
    let index = heap.push(timer) - 1
    while (index > 0) {
      const parent = (index - 1) >> 1
      if (heap[parent]!.isBefore(timer)) break
      heap[index] = heap[parent]!
      index = parent
    }
    heap[index] = timer
  }

  #pop(): void {
    const heap = this.#heap
    const last = heap.pop()!
    if (heap.length === 0) return
    let index = 0
    for (;;) {
      let child = index * 2 + 1
      if (child >= heap.length) break
      if (child + 1 < heap.length && heap[child + 1]!.isBefore(heap[child]!)) child++
      if (last.isBefore(heap[child]!)) break
      heap[index] = heap[child]!
      index = child
    }
    heap[index] = last
  }
}

class HeapTimer implements Timer {
  readonly dueUs: number
  readonly sequence: number
  fire: (() => void) | undefined

  constructor(dueUs: number, sequence: number, fire: () => void) {
    this.dueUs = dueUs
    this.sequence = sequence
    this.fire = fire
  }

  /** Timers due at the same moment fire in the order in which they were set. */
  isBefore(other: HeapTimer): boolean {
    return this.dueUs < other.dueUs || (this.dueUs === other.dueUs && this.sequence < other.sequence)
  }

  cancel(): void {
    this.fire = undefined
  }
}

/** The machine's time, with the timers of Node's own event loop: for the control thread. They keep no process alive. */
export const systemClock: Clock = {
  nowUs: () => performance.now() * 1000,
  after(delayMs, fire) {
    const timer = setTimeout(fire, delayMs)
    timer.unref()
    return { cancel: () => clearTimeout(timer) }
  },
}
