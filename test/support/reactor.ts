/**
 * Reactors that a test polls by hand, and a `ReactorGroup` over them. No threads: control thread and reactors share one.
 *
 *     const reactors = new LocalReactorGroup()                 // one reactor, no ring, a clock that the test moves
 *     const bdevs = new BdevRegistry(reactors, drivers)
 *     const local = new ReactorBdevs(reactors.reactors[0]!, drivers)
 *     await reactors.run(bdevs.create('null', 'n0', { block_size: 512, num_blocks: 8 }))
 *     reactors.close()
 *
 * Never give a reactor or a channel to `expect`: on the way to a message it walks through all of their memory.
 */
import { TimerHeap } from '../../src/core/clock.ts'
import type { ReactorGroup } from '../../src/reactor/group.ts'
import type { Network } from '../../src/reactor/network.ts'
import type { Port } from '../../src/reactor/port.ts'
import { Reactor } from '../../src/reactor/reactor.ts'
import { UringNetwork } from '../../src/reactor/uring-network.ts'
import { Arena, BufferPool } from '../../src/sys/memory.ts'
import { Uring } from '../../src/sys/uring.ts'
import { linkedPorts } from './ports.ts'

export interface LocalReactorOptions {
  readonly count?: number
  /** A real io_uring each, and a real network through it. */
  readonly ring?: boolean
  /** `manual`: time stands still until `advance` moves it. `real`: the machine's. */
  readonly time?: 'manual' | 'real'
  readonly arenaBytes?: number
  /** The network of a reactor without a ring. */
  readonly network?: Network
}

const NO_NETWORK: Network = {
  adopt: () => refuse(),
  connect: () => refuse(),
  listen: () => refuse(),
}

function refuse(): never {
  throw new Error('this reactor of a test has no network')
}

export class LocalReactorGroup implements ReactorGroup {
  readonly reactors: readonly Reactor[]
  readonly #ports: readonly Port[]
  #nowUs = 0
  #isClosed = false

  constructor(options: LocalReactorOptions = {}) {
    const { count = 1, ring = false, time = 'manual', arenaBytes = 64 << 20 } = options
    const ports: Port[] = []
    this.reactors = Array.from({ length: count }, (_, index) => {
      const arena = new Arena(arenaBytes)
      const uring = ring ? Uring.open(arena, { entries: 256, completions: 1024 }) : null
      const network = uring === null ? (options.network ?? NO_NETWORK) : new UringNetwork(uring, arena)
      const [control, own] = linkedPorts()
      ports.push(control)
      const reactor = new Reactor({
        index,
        clock: new TimerHeap(() => (time === 'manual' ? this.#nowUs : performance.now() * 1000)),
        network,
        arena,
        buffers: new BufferPool(arena),
        control: own,
        ring: uring,
      })
      if (network instanceof UringNetwork) network.attach(reactor)
      return reactor
    })
    this.#ports = ports
  }

  get count(): number {
    return this.reactors.length
  }

  port(index: number): Port {
    return this.#ports[index]!
  }

  broadcast<T = unknown>(topic: string, body: unknown): Promise<T[]> {
    return Promise.all(this.#ports.map(port => port.call<T>(topic, body)))
  }

  /** One round of every reactor. Returns the events handled. */
  poll(): number {
    let events = 0
    for (const reactor of this.reactors) events += reactor.poll()
    return events
  }

  /** Moves the manual clock, then polls. */
  advance(us: number): void {
    this.#nowUs += us
    this.poll()
  }

  /** Polls, and lets the event loop turn, until `promise` is settled. */
  async run<T>(promise: Promise<T>): Promise<T> {
    let isSettled = false
    const settle = (): void => {
      isSettled = true
    }
    promise.then(settle, settle)
    await this.until(() => isSettled)
    return promise
  }

  /** Polls, and lets the event loop turn, until `condition` holds. The test's own time limit ends a wait in vain. */
  async until(condition: () => boolean): Promise<void> {
    while (!condition()) {
      // Their memory is gone: who still waits belongs to a test that has failed.
      if (this.#isClosed) throw new Error('the reactors were closed while something was waited for')
      if (this.poll() === 0) for (const { ring } of this.reactors) ring?.wait(200)
      await new Promise(setImmediate)
    }
  }

  /** Polls until no reactor finds anything to do. Only for devices that complete without the kernel or a timer. */
  settle(): void {
    while (this.poll() > 0 || this.reactors.some(reactor => !reactor.isQuiet));
  }

  close(): void {
    this.#isClosed = true
    for (const { ring, arena } of this.reactors) {
      ring?.close()
      arena.close()
    }
  }
}
