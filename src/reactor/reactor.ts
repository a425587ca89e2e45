/**
 * A reactor: one thread's polling loop. One round is the whole unit of progress:
 *
 *   reap completions of the ring -> timers -> pollers -> completions queued by devices -> flush what became dirty -> enter the ring
 *
 * Production calls `poll` in a loop (`worker.ts`), tests call it by hand, the simulation calls it from a seed.
 */
import type { TimerHeap } from '../core/clock.ts'
import type { Arena, BufferPool } from '../sys/memory.ts'
import type { Uring } from '../sys/uring.ts'
import type { Network } from './network.ts'
import type { Port } from './port.ts'

/** Does a bounded amount of work without waiting, and says how many events it handled. */
export type Poller = () => number

/** Something that gathers work during a round and hands it on at the end, once. */
export interface Flushable {
  flush(): void
}

/** Keeps the place of what was flushed, so that nothing is kept alive by it. */
const CLEAN: Flushable = { flush() {} }

/** What was completed and waits for its owner to hear: linked by `next`. */
export interface Deliverable {
  next: Deliverable | null
  deliver(): void
}

export interface ReactorParts {
  /** From 0; `reactor_0` is also its name in statistics. */
  readonly index: number
  readonly clock: TimerHeap
  readonly network: Network
  readonly arena: Arena
  readonly buffers: BufferPool
  /** To the control thread. */
  readonly control: Port
  /** The kernel's ring; a simulated reactor has none, and devices that need it say so. */
  readonly ring: Uring | null
}

export class Reactor {
  readonly index: number
  readonly clock: TimerHeap
  readonly network: Network
  readonly arena: Arena
  readonly buffers: BufferPool
  readonly control: Port
  readonly ring: Uring | null

  /**
   * How many requests wait for something that becomes readable on no descriptor (a promise of user code): while there
   * are any, the reactor sleeps for at most a millisecond at a time.
   */
  awaited = 0
  /** How many things tell of news in memory alone (virtqueues without notifications): while there are any, it never sleeps. */
  polled = 0
  /**
   * How many operations may be with the ring's worker threads, which kernels since 6.2 keep on the reactor's processor:
   * while there are any, a round that finds nothing leaves the processor to them.
   */
  offloaded = 0
  /**
   * How many operations are with threads of a library that talks to a network (librbd). They take many times as long as a
   * wake-up, and looking for their end takes processor time from those threads: while there are any, a round that finds
   * nothing is followed by sleep at once, also where that makes something nearer wait for the wake-up.
   */
  distant = 0
  /** The clock's microseconds at the start of this round: good enough for statistics, and free. */
  nowUs = 0
  /** When a round last found something to do. */
  lastEventUs = 0

  readonly #time = new Float64Array(1)
  readonly #pollers: Poller[] = []
  // Lists that keep their length: emptying an array gives its memory back, and every push then allocates anew.
  #dirty: Flushable[] = []
  #flushing: Flushable[] = []
  #dirtyCount = 0
  #firstDone: Deliverable | null = null
  #lastDone: Deliverable | null = null

  constructor(parts: ReactorParts) {
    this.index = parts.index
    this.clock = parts.clock
    this.network = parts.network
    this.arena = parts.arena
    this.buffers = parts.buffers
    this.control = parts.control
    this.ring = parts.ring
  }

  addPoller(poller: Poller): void {
    this.#pollers.push(poller)
  }

  removePoller(poller: Poller): void {
    const index = this.#pollers.indexOf(poller)
    if (index >= 0) this.#pollers.splice(index, 1)
  }

  get pollerCount(): number {
    return this.#pollers.length
  }

  /** Has `flushable.flush()` called at the end of this round. The caller sees to it that it registers once a round. */
  flushLater(flushable: Flushable): void {
    this.#dirty[this.#dirtyCount++] = flushable
  }

  /** Queues a completion: its owner hears in this round or the next, never from inside this call. */
  deliverLater(done: Deliverable): void {
    done.next = null
    if (this.#lastDone === null) this.#firstDone = done
    else this.#lastDone.next = done
    this.#lastDone = done
  }

  /** One round. Returns the number of events handled. */
  poll(): number {
    this.clock.readInto(this.#time)
    this.nowUs = this.#time[0]!
    let events = this.ring === null ? 0 : this.ring.reap()
    if (this.clock.isDue(this.#time)) events += this.clock.fireDue()
    const pollers = this.#pollers
    for (let i = 0; i < pollers.length; i++) events += pollers[i]!()
    events += this.#deliver()
    if (this.#dirtyCount > 0) this.#flush()
    if (this.ring !== null) this.ring.enter()
    if (events > 0) this.lastEventUs = this.nowUs
    return events
  }

  /** True when nothing is queued within the reactor itself, so that it may sleep. */
  get isQuiet(): boolean {
    return this.#firstDone === null && this.#dirtyCount === 0
  }

  /** Delivers what was completed so far; what completes meanwhile waits behind it, up to a bound. */
  #deliver(): number {
    let delivered = 0
    for (let done = this.#firstDone; done !== null && delivered < 4096; done = this.#firstDone) {
      this.#firstDone = done.next
      if (this.#firstDone === null) this.#lastDone = null
      done.next = null
      delivered++
      done.deliver()
    }
    return delivered
  }

  #flush(): void {
    const dirty = this.#dirty
    const count = this.#dirtyCount
    this.#dirty = this.#flushing
    this.#flushing = dirty
    this.#dirtyCount = 0
    for (let i = 0; i < count; i++) {
      const flushable = dirty[i]!
      dirty[i] = CLEAN
      flushable.flush()
    }
  }
}
