/**
 * A member's life: renews its lease, shuts out who is silent, takes over and hands back ANA groups.
 *
 *   turn: read the state -> who is silent? -> write it back, renewed          every tenth of the lease
 *   reconcile: owned, not open      -> settle with Ceph, once -> open
 *              to be let go of      -> close -> nothing outstanding -> released with the next turn
 *   no renewal for SERVE_SHARE of the lease -> halt: everything closed, hosts disconnected
 *
 * Turns never wait for anything else: shutting somebody out, settling and draining run beside them.
 */
import type { Clock, Timer } from '../core/clock.ts'
import { RpcError } from '../core/errors.ts'
import { logger } from '../core/log.ts'
import { type GroupState, type Member, parseState } from './group-state.ts'
import { isNews, memberOf, ownedBy, renew, retire, SERVE_SHARE, toLetGo, Watch } from './lease.ts'
import { FencedError, type GroupStore } from './store.ts'

const log = logger('gateway')

/** Turns in a lease. */
const TURNS = 10
/** After another member was first, the next try follows after a random time below this. */
const CONFLICT_PAUSE_MS = 20

/** What a member serves, as the keeper directs it. */
export interface Serving {
  /** ANA groups of the configuration. */
  readonly groups: readonly string[]
  /** Of these, what cannot be served here. */
  readonly unable: readonly string[]
  readonly version: number
  /** How many hosts each subsystem has here. */
  hosts(): Readonly<Record<string, number>>
  /** Until this time, in microseconds of the clock, I/O is let through; later none is, whatever else happens. */
  serveUntil(us: number): void
  /** These are served, others are not. Resolves when it holds for every I/O that starts. */
  open(keys: ReadonlySet<string>): Promise<void>
  /** Resolves when nothing is outstanding of what was closed before. */
  drain(keys: readonly string[]): Promise<void>
  /** The lease is over: ends the connections of hosts, so that none waits for I/O that goes nowhere. */
  disconnect(reason: string): void
}

export interface KeeperEvents {
  /** A state was read or written that has news in it. */
  changed(state: GroupState): void
  /** This member has written what others should look at, instead of with their next turn. */
  told(): void
  /** This member was shut out, or somebody else has its name: it ends. */
  lost(reason: string, isReplaced: boolean): void
}

export interface KeeperOptions {
  readonly clock: Clock
  readonly store: GroupStore
  /** The name of the object. */
  readonly object: string
  readonly incarnation: string
  readonly name: string
  readonly serving: Serving
  readonly events: KeeperEvents
  /** From 0 to 1, for pauses. */
  readonly random: () => number
}

export class Keeper {
  readonly #options: KeeperOptions
  readonly #watch = new Watch()
  /** As it was written last. */
  #state: GroupState
  #servesUntilUs = 0
  /** Counts halts: what was begun before one opens nothing after it. */
  #epoch = 0
  #open = new Set<string>()
  readonly #closing = new Set<string>()
  readonly #released = new Set<string>()
  /** Owned without a break since settling began, and which settling that is. */
  readonly #taking = new Map<string, number>()
  #settlings = 0
  /**
   * Owned without a break since settling ended: what others had under way is over for good, also when this member has
   * lost its lease meanwhile. So it goes on with the next one, though no monitor answers.
   */
  readonly #settled = new Set<string>()
  readonly #fencing = new Set<string>()
  readonly #fenced = new Set<string>()
  #isLeaving = false
  #isEnded = false
  #isTurning = false
  /** Another turn is to follow at once. */
  #isHurried = false
  #turnTimer: Timer | undefined
  #haltTimer: Timer | undefined
  #lastProblem = ''
  #tellStarted: (() => void) | undefined
  #tellEmpty: (() => void) | undefined

  /** `state` has this member in it. */
  constructor(options: KeeperOptions, state: GroupState) {
    this.#options = options
    this.#state = state
    options.serving.serveUntil(0)
  }

  get state(): GroupState {
    return this.#state
  }

  get me(): Member | undefined {
    return memberOf(this.#state, this.#options.incarnation)
  }

  /** For how long this member may still serve. */
  get leaseLeftMs(): number {
    return Math.max(0, (this.#servesUntilUs - this.#options.clock.nowUs()) / 1000)
  }

  get open(): ReadonlySet<string> {
    return this.#open
  }

  /** Why the last turn failed, or nothing. */
  get problem(): string {
    return this.#lastProblem
  }

  /** For how long nothing was heard of another member. */
  silentMs(incarnation: string): number {
    return this.#watch.silentMs(incarnation, this.#nowMs())
  }

  /** Resolves when the first turn has ended: most often there is a lease then. */
  start(): Promise<void> {
    const started = new Promise<void>(resolve => {
      this.#tellStarted = resolve
    })
    void this.#turn()
    return started
  }

  /** There is news to tell, or to hear. */
  hurry(): void {
    if (this.#isTurning) this.#isHurried = true
    else void this.#turn()
  }

  /** What is served has changed under way: brings it in line again. */
  async refresh(): Promise<void> {
    await this.#options.serving.open(this.#open)
    this.hurry()
  }

  /** Hands everything over to others, as far as that can be done in time, and ends. `isForgotten`: for good. */
  async leave(isForgotten: boolean, timeoutMs: number): Promise<void> {
    const { clock } = this.#options
    this.#isLeaving = true
    const isEmpty = new Promise<void>(resolve => {
      this.#tellEmpty = resolve
    })
    this.hurry()
    // Without a lease nothing is served that could be handed over, and nobody to hear of it can be reached.
    const patienceMs = this.leaseLeftMs > 0 ? timeoutMs : 0
    await Promise.race([isEmpty, new Promise<void>(resolve => void clock.after(patienceMs, resolve))])
    this.#end()
    // A turn that was under way has written by now, or will find itself retired.
    if (this.#ownedKeys().length === 0) await this.#retire(isForgotten)
  }

  #end(): void {
    if (this.#isEnded) return
    this.#isEnded = true
    this.#tellStarted?.()
    this.#turnTimer?.cancel()
    this.#halt('this gateway leaves its group')
  }

  async #retire(isForgotten: boolean): Promise<void> {
    const { store, object, incarnation } = this.#options
    try {
      for (;;) {
        const read = await store.read(object)
        if (read === undefined) return
        const state = parseState(object, read.text)
        if (memberOf(state, incarnation) === undefined) return
        const next = retire(state, incarnation, isForgotten, Date.now())
        if (await store.write(object, JSON.stringify(next), read.version)) return
      }
    } catch (error) {
      log.warning(`the group does not hear that this gateway leaves: ${(error as Error).message}`)
    }
  }

  async #turn(): Promise<void> {
    if (this.#isEnded || this.#isTurning) return
    this.#isTurning = true
    this.#isHurried = false
    this.#turnTimer?.cancel()
    let pauseMs = this.#state.leaseMs / TURNS
    try {
      if (await this.#renew()) this.#tellStarted?.()
      else pauseMs = this.#options.random() * CONFLICT_PAUSE_MS
      this.#lastProblem = ''
    } catch (error) {
      this.#failed(error as Error)
      this.#tellStarted?.()
    }
    this.#isTurning = false
    if (this.#isEnded) return
    const delayMs = this.#isHurried ? 0 : pauseMs
    this.#turnTimer = this.#options.clock.after(delayMs, () => void this.#turn())
  }

  #failed(error: Error): void {
    if (this.#isEnded) return
    if (error instanceof FencedError) {
      this.#lose(error.message, false)
      return
    }
    if (error.message !== this.#lastProblem) log.warning(`the lease is not renewed: ${error.message}`)
    this.#lastProblem = error.message
  }

  #lose(reason: string, isReplaced: boolean): void {
    this.#end()
    this.#options.events.lost(reason, isReplaced)
  }

  /** One renewal; false when another member was first. */
  async #renew(): Promise<boolean> {
    const { clock, store, object, incarnation, serving, events } = this.#options
    const read = await store.read(object)
    if (this.#isEnded) return true
    if (read === undefined) throw new FencedError(`the object ${object} is gone`)
    const before = parseState(object, read.text)
    const me = memberOf(before, incarnation)
    if (me === undefined || me.successor !== undefined) {
      this.#missing(before)
      return true
    }
    this.#watch.observe(before, this.#nowMs())
    for (const member of this.#watch.overdue(before, me, this.#nowMs())) void this.#fence(member)
    const released = new Set(this.#released)
    const next = renew(before, {
      incarnation,
      isLeaving: this.#isLeaving,
      version: serving.version,
      hosts: serving.hosts(),
      unable: serving.unable,
      groups: serving.groups,
      // One that renewed its lease while it was being shut out still serves what needs no writing, until it is over.
      fenced: this.#fencedAndSilent(before.leaseMs),
      dateMs: Date.now(),
      released,
    })
    const startUs = clock.nowUs()
    if (!(await store.write(object, JSON.stringify(next), read.version))) return false
    if (this.#isEnded) return true
    for (const key of released) this.#released.delete(key)
    this.#state = next
    this.#extend(startUs)
    if (isNews(before, next)) events.told()
    events.changed(next)
    this.#reconcile()
    return true
  }

  /** Somebody has declared this member dead, or is about to take its place. */
  #missing({ members }: GroupState): void {
    const { name } = this.#options
    const isReplaced = members.some(
      ({ name: other, isAlive, successor }) => other === name && (isAlive || successor !== undefined),
    )
    this.#lose(
      isReplaced
        ? `another gateway joins as ${name}`
        : `the others have not heard of this gateway in time, and have shut it out`,
      isReplaced,
    )
  }

  #extend(startUs: number): void {
    const { clock, serving } = this.#options
    this.#servesUntilUs = startUs + this.#state.leaseMs * 1000 * SERVE_SHARE
    serving.serveUntil(this.#servesUntilUs)
    this.#haltTimer?.cancel()
    const leftMs = (this.#servesUntilUs - clock.nowUs()) / 1000
    this.#haltTimer = clock.after(Math.max(0, leftMs), () =>
      this.#halt(`the lease is over: ${this.#lastProblem || 'Ceph did not answer in time'}`),
    )
  }

  /** Serves nothing any more, until a renewal succeeds. */
  #halt(reason: string): void {
    const { serving } = this.#options
    this.#epoch++
    this.#haltTimer?.cancel()
    serving.serveUntil(0)
    this.#servesUntilUs = 0
    this.#closing.clear()
    this.#released.clear()
    this.#taking.clear()
    if (this.#open.size === 0) return
    log.warning(`nothing is served any more: ${reason}`)
    this.#open = new Set()
    serving.open(this.#open).catch(logFailure)
    serving.disconnect(reason)
  }

  #fencedAndSilent(leaseMs: number): Set<string> {
    return new Set([...this.#fenced].filter(incarnation => this.silentMs(incarnation) >= leaseMs))
  }

  #ownedKeys(): string[] {
    const { me } = this
    return me === undefined ? [] : ownedBy(this.#state, me.number)
  }

  #reconcile(): void {
    const { me } = this
    if (me === undefined || this.#servesUntilUs === 0) return
    const leaving = new Set(toLetGo(this.#state, me, this.#options.serving.groups))
    const owned = this.#ownedKeys()
    if (owned.length === 0) this.#tellEmpty?.()
    const toClose = [...leaving].filter(key => !this.#isUnderWay(key))
    if (toClose.length > 0) void this.#close(toClose)
    for (const keys of [this.#taking, this.#settled])
      for (const key of keys.keys()) if (!owned.includes(key)) keys.delete(key)
    const toOpen = owned.filter(
      key => !leaving.has(key) && !this.#isUnderWay(key) && !this.#open.has(key) && !this.#taking.has(key),
    )
    // What is settled does not wait for the rest.
    for (const isSettled of [true, false]) {
      const keys = toOpen.filter(key => this.#settled.has(key) === isSettled)
      if (keys.length > 0) void this.#take(keys, isSettled)
    }
  }

  /** On its way out. */
  #isUnderWay(key: string): boolean {
    return this.#closing.has(key) || this.#released.has(key)
  }

  async #close(keys: readonly string[]): Promise<void> {
    const { serving } = this.#options
    const epoch = this.#epoch
    for (const key of keys) {
      this.#closing.add(key)
      this.#open.delete(key)
      // From here on it may be released by a write of which no answer comes, and be somebody else's in between.
      this.#taking.delete(key)
      this.#settled.delete(key)
    }
    try {
      await serving.open(this.#open)
      await serving.drain(keys)
    } catch (error) {
      logFailure(error as Error)
      if (epoch === this.#epoch) for (const key of keys) this.#closing.delete(key)
      return
    }
    if (epoch !== this.#epoch) return
    for (const key of keys) {
      this.#closing.delete(key)
      this.#released.add(key)
    }
    log.notice(`handing over ${keys.length} ANA groups: ${keys.join(', ')}`)
    this.hurry()
  }

  /** Opens what this member owns: what it has come to own, after everybody who was shut out for it. */
  async #take(keys: readonly string[], isSettled: boolean): Promise<void> {
    const { serving, store } = this.#options
    const epoch = this.#epoch
    const settling = ++this.#settlings
    for (const key of keys) this.#taking.set(key, settling)
    try {
      if (!isSettled) await store.settle()
      if (epoch !== this.#epoch) return
      const opened = keys.filter(key => this.#taking.get(key) === settling)
      if (opened.length === 0) return
      for (const key of opened) {
        this.#taking.delete(key)
        this.#settled.add(key)
        this.#open.add(key)
      }
      await serving.open(this.#open)
      log.notice(`serving ${opened.length} ANA groups: ${opened.join(', ')}`)
    } catch (error) {
      logFailure(error as Error)
      for (const key of keys) if (this.#taking.get(key) === settling) this.#taking.delete(key)
    }
  }

  async #fence({ name, incarnation, instance }: Member): Promise<void> {
    if (this.#fencing.has(incarnation) || this.#fenced.has(incarnation)) return
    this.#fencing.add(incarnation)
    log.warning(
      `nothing was heard of gateway ${name} for its lease: shutting out its Ceph client ${instance}`,
    )
    try {
      await this.#options.store.fence(instance)
      this.#fenced.add(incarnation)
      this.hurry()
    } catch (error) {
      log.error(
        `gateway ${name} cannot be shut out, so nobody takes over from it yet: ${(error as Error).message}`,
      )
    } finally {
      this.#fencing.delete(incarnation)
    }
  }

  #nowMs(): number {
    return this.#options.clock.nowUs() / 1000
  }
}

const logFailure = (error: Error): void => {
  if (error instanceof RpcError) log.warning(error.message)
  else log.error(error.stack ?? error.message)
}
