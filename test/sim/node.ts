/**
 * A simulated machine that runs the daemon: a control side, reactors without a ring, and ports between them on which
 * messages take time. A crash loses everything but what is on disks; a boot builds it anew.
 */
import type { TimerHeap } from '../../src/core/clock.ts'
import type { Prng } from '../../src/core/prng.ts'
import type { ReactorGroup } from '../../src/reactor/group.ts'
import { type Channel, ChannelPort } from '../../src/reactor/message-port.ts'
import type { Port } from '../../src/reactor/port.ts'
import { Reactor } from '../../src/reactor/reactor.ts'
import { Arena, BufferPool } from '../../src/sys/memory.ts'
import type { SimClock } from './clock.ts'
import { NetworkMachine, SimNetwork } from './network.ts'
import type { World } from './world.ts'

const MESSAGE_US = [1, 60] as const
/** Now and then a thread is late to look at its messages. */
const LATE_MESSAGE_US = [500, 5_000] as const
const ARENA_BYTES = 32 << 20

/** A buffer pool that knows how much of it is in use. */
export class CountingPool extends BufferPool {
  inUse = 0

  override acquire(sizeBytes: number): number {
    const address = super.acquire(sizeBytes)
    if (address !== 0) this.inUse++
    return address
  }

  override release(address: number, sizeBytes: number): void {
    this.inUse--
    super.release(address, sizeBytes)
  }
}

/** One end of a message channel: what is posted arrives at the other end, in order, a little later. */
class SimChannel implements Channel {
  peer!: SimChannel
  readonly #clock: SimClock
  readonly #prng: Prng
  readonly #boot: Boot
  #lastDueUs = 0
  #listener: (message: unknown) => void = () => {}

  constructor(clock: SimClock, prng: Prng, boot: Boot) {
    this.#clock = clock
    this.#prng = prng
    this.#boot = boot
  }

  postMessage(message: unknown): void {
    const clone = structuredClone(message)
    const [min, max] = this.#prng.oneIn(100) ? LATE_MESSAGE_US : MESSAGE_US
    const { nowUs } = this.#clock
    this.#lastDueUs = Math.max(this.#lastDueUs, nowUs + this.#prng.between(min, max))
    this.#clock.after(this.#lastDueUs - nowUs, () => {
      if (this.#boot.isAlive) this.peer.#listener(clone)
    })
  }

  on(_event: 'message', listener: (message: unknown) => void): void {
    this.#listener = listener
  }
}

/** One life of a node's program, from its start to its crash. */
export class Boot implements ReactorGroup {
  isAlive = true
  readonly reactors: readonly Reactor[]
  readonly pools: readonly CountingPool[]
  /** The control thread's timers. */
  readonly timers: TimerHeap
  readonly #world: World
  readonly #ports: readonly Port[]

  constructor(world: World, machine: NetworkMachine, reactorCount: number) {
    this.#world = world
    this.timers = world.clock.newTimers()
    const { clock } = world
    const prng = world.fork()
    const ports: Port[] = []
    const pools: CountingPool[] = []
    this.reactors = Array.from({ length: reactorCount }, (_, index) => {
      const [near, far] = [new SimChannel(clock, prng, this), new SimChannel(clock, prng, this)]
      near.peer = far
      far.peer = near
      ports.push(new ChannelPort(near))
      const arena = new Arena(ARENA_BYTES)
      const buffers = new CountingPool(arena)
      pools.push(buffers)
      const network = new SimNetwork(machine)
      const reactor = new Reactor({
        index,
        clock: clock.newTimerHeap(),
        network,
        arena,
        buffers,
        control: new ChannelPort(far),
        ring: null,
      })
      reactor.addPoller(network.poll)
      clock.add(`${machine.name}/${index}`, reactor)
      return reactor
    })
    this.#ports = ports
    this.pools = pools
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

  /** Buffers of all reactors that somebody holds. */
  get buffersInUse(): number {
    return this.pools.reduce((sum, pool) => sum + pool.inUse, 0)
  }

  /** Nothing of it runs any more. What it shares memory with must be told before. */
  end(): void {
    this.isAlive = false
    this.#world.clock.dropTimers(this.timers)
    for (const reactor of this.reactors) {
      this.#world.clock.remove(reactor)
      reactor.arena.close()
    }
  }
}

export class SimNode {
  readonly name: string
  readonly world: World
  readonly machine: NetworkMachine
  readonly #reactorCount: number
  #boot: Boot | null = null

  constructor(world: World, name: string, addresses: readonly string[], reactorCount: number) {
    this.world = world
    this.name = name
    this.machine = new NetworkMachine(name, world.internet, addresses)
    this.#reactorCount = reactorCount
  }

  /** The program that runs now, null after a crash. */
  get running(): Boot | null {
    return this.#boot
  }

  /** Starts the program: the caller puts services on what is returned. */
  start(): Boot {
    this.machine.powerOn()
    this.#boot = new Boot(this.world, this.machine, this.#reactorCount)
    return this.#boot
  }

  /** Ends the program. `power`: the whole machine goes dark, and nobody is told. */
  crash(kind: 'program' | 'power'): void {
    const boot = this.#boot
    if (boot === null) return
    if (kind === 'power') this.machine.powerOff()
    else this.machine.endPrograms()
    this.#boot = null
    boot.end()
  }
}
