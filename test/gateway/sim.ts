/**
 * A group of gateways in one process, under a seed: a clock that jumps from event to event, a store with delays, losses
 * and conflicts, gateways that freeze, are cut off from Ceph, die and come back, and a disk that knows which writes may
 * still land. What must never be: a write that lands after another gateway has taken its ANA group over, and two
 * gateways that serve the same group.
 */
import type { Clock, Timer } from '../../src/core/clock.ts'
import { Prng } from '../../src/core/prng.ts'
import { joinGroup } from '../../src/gateway/join.ts'
import { Keeper, type Serving } from '../../src/gateway/keeper.ts'
import { FencedError, type GroupStore, type StoredText, StoreError } from '../../src/gateway/store.ts'

export const LEASE_MS = 1000
const OBJECT = 'lease'

interface Event {
  readonly atMs: number
  readonly sequence: number
  /** Waits while this gateway is frozen. */
  readonly of: SimGateway | null
  run: (() => void) | null
}

/** Time that passes only between events. */
export class SimWorld {
  readonly prng: Prng
  nowMs = 0
  readonly keys: readonly string[]
  readonly faults: string[] = []
  /** What Ceph keeps. */
  readonly objects = new Map<string, { text: string; version: number }>()
  /** The map of the cluster that shut each client out, and the newest one. */
  readonly shutOut = new Map<string, number>()
  mapEpoch = 1
  /** The newest map that the storage behind each group has seen. */
  readonly seenEpoch = new Map<string, number>()
  /** Who has written to each group last, and how often it has changed hands. */
  readonly openings = new Map<string, { readonly instance: string; readonly count: number }>()
  /** The newest of these of which a write has landed. */
  readonly landedOpenings = new Map<string, number>()
  landed = 0
  #events: Event[] = []
  #sequence = 0
  #version = 0

  constructor(seed: number, keyCount: number) {
    this.prng = new Prng(seed)
    this.keys = Array.from({ length: keyCount }, (_, i) => `nqn.example:${i % 2} ${i + 1}`)
  }

  at(delayMs: number, of: SimGateway | null, run: () => void): Event {
    const event: Event = { atMs: this.nowMs + delayMs, sequence: this.#sequence++, of, run }
    this.#events.push(event)
    return event
  }

  fault(what: string): void {
    this.faults.push(`${this.nowMs.toFixed(1)}: ${what}`)
  }

  /** Runs until that much time has passed. */
  async run(forMs: number): Promise<void> {
    const endMs = this.nowMs + forMs
    for (;;) {
      const next = this.#next(endMs)
      if (next === undefined) break
      this.#events.splice(this.#events.indexOf(next), 1)
      this.nowMs = Math.max(this.nowMs, next.atMs)
      next.run?.()
      // Chains of promises are short.
      for (let i = 0; i < 24; i++) await null
    }
    this.nowMs = endMs
  }

  #next(endMs: number): Event | undefined {
    let best: Event | undefined
    for (const event of this.#events) {
      if (event.of?.isFrozen === true || event.atMs > endMs) continue
      const isSooner =
        best === undefined ||
        event.atMs < best.atMs ||
        (event.atMs === best.atMs && event.sequence < best.sequence)
      if (isSooner) best = event
    }
    return best
  }

  /** What is executed by Ceph: read, or replaced if nobody else was first. */
  write(object: string, text: string, expected: number | undefined): boolean {
    if (this.objects.get(object)?.version !== expected) return false
    this.objects.set(object, { text, version: ++this.#version })
    return true
  }

  isRefused(instance: string, seen: number): boolean {
    const since = this.shutOut.get(instance)
    return since !== undefined && seen >= since
  }
}

interface Write {
  readonly key: string
  /** See `SimWorld.openings`. */
  readonly opening: number
}

/** One life of a gateway: a Ceph client, a keeper, and the I/O of its hosts. */
export class SimGateway implements Clock, GroupStore, Serving {
  readonly world: SimWorld
  readonly name: string
  readonly instance: string
  readonly groups: readonly string[]
  readonly unable: readonly string[] = []
  readonly version = 1
  isFrozen = false
  isCut = false
  isDead = false
  /** Others have shut it out. */
  isLost = false
  keeper: Keeper | undefined
  epoch = 1
  /** Shutting somebody out, and settling, wait for this: monitors may be slow. */
  monitors: Promise<void> = Promise.resolve()
  /** What reactors let through, and until when. */
  #served: ReadonlySet<string> = new Set()
  #untilUs = 0
  #wanted: ReadonlySet<string> = new Set()
  readonly #writes = new Set<Write>()
  readonly #rate: number

  constructor(world: SimWorld, name: string, life: number) {
    this.world = world
    this.name = name
    this.instance = `${name}#${life}`
    this.groups = world.keys
    // Clocks do not run alike.
    this.#rate = 0.95 + world.prng.below(1000) / 10_000
    this.#load()
  }

  async join(): Promise<void> {
    const state = await joinGroup({
      store: this,
      clock: this,
      object: OBJECT,
      group: 'g',
      newcomer: { name: this.name, incarnation: this.instance, instance: this.instance, address: '' },
      former: undefined,
      leaseMs: LEASE_MS,
    })
    const { prng } = this.world
    this.keeper = new Keeper(
      {
        clock: this,
        store: this,
        object: OBJECT,
        incarnation: this.instance,
        name: this.name,
        serving: this,
        events: {
          changed: () => {},
          told: () => this.#tell(),
          lost: () => {
            this.isLost = true
          },
        },
        random: () => prng.below(1000) / 1000,
      },
      state,
    )
    void this.keeper.start()
  }

  /** To each of the others, as fast as may be; now and then to none. */
  #tell(): void {
    const { world } = this
    for (const other of gateways(world)) {
      if (other === this || other.isDead || this.isCut || world.prng.oneIn(4)) continue
      world.at(world.prng.between(0, 10), other, () => {
        if (!other.isCut) other.keeper?.hurry()
      })
    }
  }

  // Clock.

  nowUs(): number {
    return this.world.nowMs * 1000 * this.#rate
  }

  after(delayMs: number, fire: () => void): Timer {
    const event = this.world.at(delayMs / this.#rate, this, () => {
      if (!this.isDead) fire()
    })
    return {
      cancel: () => {
        event.run = null
      },
    }
  }

  // GroupStore: a way there, an execution, a way back; each may take its time, and none is made while cut off.

  read(object: string): Promise<StoredText | undefined> {
    return this.#operate(() => this.world.objects.get(object))
  }

  write(object: string, text: string, expected: number | undefined): Promise<boolean> {
    return this.#operate(() => this.world.write(object, text, expected))
  }

  async fence(instance: string): Promise<void> {
    await this.monitors
    return this.#operate(() => {
      if (!this.world.shutOut.has(instance)) this.world.shutOut.set(instance, ++this.world.mapEpoch)
      this.epoch = this.world.mapEpoch
    })
  }

  async settle(): Promise<void> {
    await this.monitors
    return this.#operate(() => {
      this.epoch = this.world.mapEpoch
    })
  }

  #operate<T>(execute: () => T): Promise<T> {
    const { world } = this
    const { prng } = world
    return new Promise((resolve, reject) => {
      const timeout = this.after(LEASE_MS / 4, () => reject(new StoreError('no answer')))
      const answer = (settle: () => void): void => {
        world.at(prng.between(0, prng.oneIn(20) ? 200 : 8), this, () => {
          if (this.isDead || (this.isCut && prng.oneIn(2))) return
          timeout.cancel()
          settle()
        })
      }
      const arrive = (): void => {
        if (this.isDead && prng.oneIn(2)) return
        // Cut off: it waits and arrives later, or not at all.
        if (this.isCut) {
          if (!prng.oneIn(3)) world.at(prng.between(50, 1500), null, arrive)
          return
        }
        if (world.isRefused(this.instance, world.mapEpoch)) {
          answer(() => reject(new FencedError('shut out')))
          return
        }
        const result = execute()
        answer(() => resolve(result))
      }
      world.at(prng.between(0, prng.oneIn(20) ? 200 : 8), null, arrive)
    })
  }

  // Serving.

  hosts(): Record<string, number> {
    return {}
  }

  serveUntil(us: number): void {
    this.#untilUs = us
  }

  open(keys: ReadonlySet<string>): Promise<void> {
    const { world } = this
    this.#wanted = new Set(keys)
    return new Promise(resolve => {
      world.at(world.prng.between(0, 5), this, () => {
        // A later call has the last word.
        const wanted = this.#wanted
        this.#served = wanted
        resolve()
      })
    })
  }

  drain(keys: readonly string[]): Promise<void> {
    return new Promise(resolve => {
      const look = (): void => {
        if ([...this.#writes].some(({ key }) => keys.includes(key))) this.after(5, look)
        else resolve()
      }
      look()
    })
  }

  disconnect(): void {}

  serves(key: string): boolean {
    return !this.isDead && this.#served.has(key) && this.nowUs() < this.#untilUs
  }

  /** Hosts write to everything that is served. */
  #load(): void {
    const { world } = this
    const { prng } = world
    this.after(prng.between(5, 30), () => {
      for (const key of world.keys) if (this.serves(key)) this.#write(key)
      this.#load()
    })
  }

  /** How often the group has changed hands, this write included. */
  #take(key: string): number {
    const { world } = this
    const last = world.openings.get(key)
    for (const other of gateways(world)) {
      if (other !== this && other.serves(key)) {
        world.fault(`${key} is served by ${other.instance} and ${this.instance}`)
      }
    }
    if (last?.instance === this.instance) return last.count
    const count = (last?.count ?? 0) + 1
    world.openings.set(key, { instance: this.instance, count })
    return count
  }

  /** It lands some time later, even of a gateway that is frozen or dead by then. */
  #write(key: string): void {
    const { world } = this
    const { prng } = world
    const write = { key, opening: this.#take(key) }
    this.#writes.add(write)
    const land = (): void => {
      if (this.isCut) {
        world.at(prng.between(50, 1000), null, land)
        return
      }
      this.#writes.delete(write)
      // Maps travel by themselves as well.
      if (prng.oneIn(10)) world.seenEpoch.set(key, world.mapEpoch)
      const seen = Math.max(world.seenEpoch.get(key) ?? 0, this.epoch)
      if (world.isRefused(this.instance, seen)) return
      world.seenEpoch.set(key, seen)
      world.landed++
      const newest = world.landedOpenings.get(key) ?? 0
      if (write.opening < newest) {
        world.fault(`a write of ${this.instance} to ${key} lands after one of whoever took over`)
      }
      world.landedOpenings.set(key, Math.max(newest, write.opening))
    }
    world.at(prng.between(1, prng.oneIn(10) ? 2500 : 40), null, land)
  }
}

const groups = new WeakMap<SimWorld, SimGateway[]>()

/** Every life there ever was. */
export function gateways(world: SimWorld): SimGateway[] {
  let list = groups.get(world)
  if (list === undefined) {
    list = []
    groups.set(world, list)
  }
  return list
}

/** Starts a life of a gateway; it tries until it is a member. */
export function bringUp(world: SimWorld, name: string): SimGateway {
  const all = gateways(world)
  const gateway = new SimGateway(world, name, all.length)
  all.push(gateway)
  const attempt = (): void => {
    gateway.join().catch(() => {
      if (!gateway.isDead) world.at(50, gateway, attempt)
    })
  }
  attempt()
  return gateway
}
