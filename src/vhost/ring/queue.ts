/**
 * One virtqueue on its reactor: when it is looked at, when the guest sees what was done, when it is interrupted.
 *
 *                start / enable                 quiet for a while, notifications asked for
 *     OFF  -------------------------->  POLLED  ------------------------------------------->  NOTIFIED
 *          <--------------------------          <-------------------------------------------
 *      stop, disable, pause, fault                     the guest notifies
 *
 * In a round: take what is there and start it; at the round's end publish everything that completed, once, then
 * interrupt. A queue that is stopped or paused is drained: nothing of it is outstanding when its promise resolves.
 */
import { assert } from '../../core/assert.ts'
import type { Flushable, Reactor } from '../../reactor/reactor.ts'
import { Signal } from '../../reactor/signal.ts'
import { Status } from '../../spec/nvme-status.ts'
import { descriptorBytes, usedBytes } from '../../spec/virtqueue.ts'
import type { QueueStats, StartQueue, Tuning, UpdateQueue } from '../messages.ts'
import { Coalescing } from './coalescing.ts'
import type { GuestMemory } from './guest-memory.ts'
import { KickWatcher } from './kick.ts'
import { openRing } from './open-ring.ts'
import { GuestRequest, type RequestQueue, type VirtioDevice } from './request.ts'
import type { RequestBudget } from './request-budget.ts'
import { type Ring, RingFault } from './ring.ts'

/**
 * Requests of one queue in one round. So few that the guest has the first ones back, and sends more, while the others are
 * being done; otherwise the two sides work in turn and wait for each other.
 */
const BATCH_MAX = 16
/**
 * Work is counted in pages of data and pieces of memory: a device in memory does it at once, and other guests wait. What a
 * queue takes above its share of a round it owes to the next ones; and it saves up no more than this.
 */
const ROUND_SHARE = 128
const SAVED_MAX = 512
const PAGE = 4096
/** How much longer the gap between requests looks when the guest has to notify and the thread to wake up. */
const WAKE_UP_US = 50

const Mode = { OFF: 0, POLLED: 1, NOTIFIED: 2 } as const
type Mode = (typeof Mode)[keyof typeof Mode]

/** What a queue needs of the session that it belongs to. */
export interface QueueSession {
  readonly reactor: Reactor
  readonly memory: GuestMemory
  readonly budget: RequestBudget
  readonly device: VirtioDevice
  readonly tuning: Tuning
  /** The address of eight bytes with the number 1: see `Signal`. */
  readonly one: number
  /** Told once: the guest broke its ring. */
  broken(index: number, why: string): void
}

export class Queue implements RequestQueue, Flushable {
  readonly index: number
  readonly device: VirtioDevice
  readonly memory: GuestMemory
  readonly #session: QueueSession
  readonly #reactor: Reactor
  readonly #coalescing = new Coalescing()
  readonly #requests: (GuestRequest | undefined)[]
  /** As it was started and updated since. */
  #start: StartQueue
  #ring: Ring
  #kick: KickWatcher | null = null
  /** Where the guest is interrupted, and where the front end hears that it broke its ring. */
  #call: Signal | null
  #error: Signal | null
  #released: Promise<unknown> | null = null

  #mode: Mode = Mode.OFF
  #isPaused = false
  #isStopped = false
  #isBroken = false
  #isClosing = false
  #hasRecovered = false
  #outstanding = 0
  #unpublished = 0
  /** Work that it may take; less than nothing for what it owes. */
  #credit = SAVED_MAX
  #isDirty = false
  #onDrained: (() => void)[] = []

  #lastArrivalUs = 0
  /** Between arrivals of requests, on average, with its peaks cut. */
  #gapUs = 0
  #wasKicked = false
  #requestCount = 0
  #callCount = 0
  /** Those of watchers that were replaced. */
  #kickCount = 0

  /** Throws `RingFault` when the addresses or the size are not those of a ring. */
  constructor(session: QueueSession, start: StartQueue) {
    this.#session = session
    this.#reactor = session.reactor
    this.index = start.index
    this.device = session.device
    this.memory = session.memory
    this.#start = start
    this.#requests = new Array<GuestRequest | undefined>(start.size)
    this.#ring = openRing(start, this.memory, this.#requestOf)
    this.#call = this.#signalAt(start.call)
    this.#error = this.#signalAt(start.error)
    this.#watchKick()
    // Whoever had this queue before may have answered requests and died before it could interrupt.
    this.#interruptIfWanted()
    this.#reconsider()
  }

  take(): GuestRequest | null {
    if (this.#isPaused || this.#isStopped || this.#isBroken || !this.#start.isEnabled) return null
    try {
      const request = this.#ring.takeInflight() ?? this.#ring.take()
      if (request !== null) this.#begin(request)
      return request
    } catch (error) {
      this.#fail(error)
      return null
    }
  }

  complete(request: GuestRequest, writtenBytes: number): void {
    assert(request.isOutstanding, 'a request is completed once')
    request.isOutstanding = false
    this.#outstanding--
    if (!this.#isClosing || request.io.status !== Status.ABORTED_BY_REQUEST) {
      if (this.memory.log !== null) this.#markWritten(request)
      this.#ring.put(request, writtenBytes)
      this.#unpublished++
    }
    if (this.#session.budget.isTight) {
      this.#session.budget.refund(request)
      this.#requests[request.id] = undefined
    }
    if (this.#isDirty) return
    this.#isDirty = true
    this.#reactor.flushLater(this)
  }

  flush(): void {
    this.#isDirty = false
    if (this.#unpublished > 0) this.#publish()
    if (this.#outstanding > 0 || this.#onDrained.length === 0) return
    const waiting = this.#onDrained
    this.#onDrained = []
    for (const resolve of waiting) resolve()
  }

  /** Holds at once. Resolves when the descriptors of before may be closed. */
  async update({ isEnabled, call, kick, error, logAddress }: UpdateQueue): Promise<void> {
    const { isEnabled: wasEnabled, kick: oldKick, logAddress: oldLogAddress } = this.#start
    this.#start = {
      ...this.#start,
      isEnabled: isEnabled ?? wasEnabled,
      kick: kick ?? oldKick,
      logAddress: logAddress ?? oldLogAddress,
    }
    const former = [call === undefined ? null : this.#call, error === undefined ? null : this.#error]
    if (call !== undefined) this.#call = this.#signalAt(call)
    if (error !== undefined) this.#error = this.#signalAt(error)
    if (kick !== undefined) {
      this.#watchKick()
      // Notifications that went to the former descriptor may have been missed.
      if (this.#mode === Mode.NOTIFIED) this.#poll()
    }
    // Interrupts that went to the former descriptor may have been missed, and the ring asks for each one only once.
    if (call !== undefined && !this.#isBroken) this.#interrupt()
    this.#reconsider()
    await Promise.all(former.map(signal => signal?.close()))
  }

  /** Nothing is taken any more until `resume`. Resolves when nothing is outstanding. */
  pause(): Promise<void> {
    this.#isPaused = true
    this.#reconsider()
    return this.#drained()
  }

  /** Goes on where it was, in memory that may be mapped elsewhere now. */
  resume(): void {
    assert(this.#outstanding === 0, 'a queue that goes on in other memory was drained')
    if (this.#isStopped || this.#isBroken) return
    this.#isPaused = false
    try {
      this.#ring = openRing({ ...this.#start, base: this.#ring.base() }, this.memory, this.#requestOf)
    } catch (error) {
      this.#fail(error)
    }
    this.#reconsider()
  }

  /** For ever. Resolves with the ring's base when nothing is outstanding. */
  async stop(): Promise<number> {
    this.#isStopped = true
    this.#reconsider()
    await this.#drained()
    await this.#letGo()
    return this.#ring.base()
  }

  /** As `stop`, with what is outstanding aborted: it is not answered, so that the next front end finds it in flight. */
  async close(): Promise<void> {
    this.#isClosing = true
    this.#isStopped = true
    this.#reconsider()
    for (const request of this.#requests) if (request?.isOutstanding) this.device.abort(request)
    await this.#drained()
    await this.#letGo()
  }

  get stats(): QueueStats {
    return {
      index: this.index,
      requests: this.#requestCount,
      outstanding: this.#outstanding,
      calls: this.#callCount,
      kicks: this.#kickCount + (this.#kick?.count ?? 0),
      isPolled: this.#mode === Mode.POLLED,
    }
  }

  readonly #requestOf = (id: number): GuestRequest => {
    let request = this.#requests[id]
    if (request === undefined) {
      request = new GuestRequest(this, id)
      this.#requests[id] = request
    }
    return request
  }

  readonly #look = (): number => {
    let taken = 0
    let credit = Math.min(this.#credit + ROUND_SHARE, SAVED_MAX)
    try {
      for (; taken < BATCH_MAX && credit > 0 && !this.#isHeldBack; taken++) {
        const request = this.#ring.take()
        if (request === null) break
        this.#begin(request)
        credit -= request.segments.count + (request.readableBytes + request.writableBytes) / PAGE
        this.device.start(request)
      }
    } catch (error) {
      this.#fail(error)
    }
    this.#credit = credit
    if (this.#coalescing.isCallDue && this.#coalescing.mayCall(this.#reactor.nowUs)) this.#interruptIfWanted()
    if (taken > 0) this.#arrived()
    else if (credit > 0 && !this.#isHeldBack) this.#idle()
    return taken
  }

  /** There may be requests that have to wait for those under way. */
  get #isHeldBack(): boolean {
    return this.#outstanding > 0 && this.#session.budget.isSpent
  }

  readonly #kicked = (): void => {
    if (this.#mode !== Mode.NOTIFIED) return
    this.#wasKicked = true
    this.#poll()
  }

  #begin(request: GuestRequest): void {
    request.isOutstanding = true
    this.#outstanding++
    this.#requestCount++
    this.#session.budget.charge(request)
  }

  #arrived(): void {
    const { nowUs } = this.#reactor
    const gapUs = nowUs - this.#lastArrivalUs - (this.#wasKicked ? WAKE_UP_US : 0)
    const capped = Math.max(0, Math.min(gapUs, 4 * this.#session.tuning.quietUs))
    this.#gapUs = (this.#gapUs * 3 + capped) / 4
    this.#lastArrivalUs = nowUs
    this.#wasKicked = false
  }

  /** Nothing was there: how much longer is it worth to look? */
  #idle(): void {
    if (this.#mode !== Mode.POLLED || this.#kick === null || !this.#kick.isArmed) return
    if (this.#coalescing.isCallDue) return
    const { nowUs } = this.#reactor
    const { quietUs } = this.#session.tuning
    // Looking would take processor time from librbd's threads, and the front end may well wait for what they do.
    const isDistant = this.#outstanding > 0 && this.#reactor.distant > 0
    // When requests come further apart than that, it is pure loss to wait for the next one.
    if (!isDistant && this.#gapUs <= quietUs && nowUs - this.#lastArrivalUs < quietUs) return
    if (this.#ring.enableNotifications()) this.#ring.disableNotifications()
    else {
      this.#leave()
      this.#mode = Mode.NOTIFIED
    }
  }

  #publish(): void {
    const { nowUs } = this.#reactor
    const count = this.#unpublished
    this.#unpublished = 0
    this.#ring.publish()
    if (this.memory.log !== null) this.#markRing()
    this.#coalescing.count(count, nowUs, this.#session.tuning)
    // A queue that is not polled has nobody who would interrupt later.
    if (this.#mode === Mode.POLLED && !this.#coalescing.mayCall(nowUs)) this.#coalescing.isCallDue = true
    else this.#interruptIfWanted()
  }

  #interruptIfWanted(): void {
    this.#coalescing.called(this.#reactor.nowUs)
    if (this.#call !== null && this.#ring.wantsCall()) this.#interrupt()
  }

  #interrupt(): void {
    if (this.#call === null) return
    this.#callCount++
    this.#call.send()
  }

  /** What the device has written, or may have. */
  #markWritten(request: GuestRequest): void {
    const { segments, readableCount } = request
    for (let i = readableCount; i < segments.count; i++) {
      this.memory.mark(segments.addresses[i]!, segments.lengths[i]!)
    }
  }

  /** Behind the writes: the front end copies a page some time after it has found and cleared its bit. */
  #markRing(): void {
    const { logAddress, isPacked, size } = this.#start
    if (logAddress >= 0) this.memory.log!.mark(logAddress, isPacked ? descriptorBytes(size) : usedBytes(size))
  }

  /** Brings the mode in line with what was asked for. */
  #reconsider(): void {
    const isWanted = this.#start.isEnabled && !this.#isPaused && !this.#isStopped && !this.#isBroken
    if (!isWanted) {
      this.#leave()
      if (this.#coalescing.isCallDue) this.#interruptIfWanted()
    } else if (this.#mode === Mode.OFF && this.index !== this.device.eventQueue) {
      this.#poll()
      this.#recover()
    }
  }

  #poll(): void {
    this.#mode = Mode.POLLED
    this.#reactor.polled++
    this.#reactor.addPoller(this.#look)
    this.#ring.disableNotifications()
  }

  #leave(): void {
    if (this.#mode === Mode.POLLED) {
      this.#reactor.polled--
      this.#reactor.removePoller(this.#look)
    }
    this.#mode = Mode.OFF
  }

  /** Starts what an earlier process had in flight. */
  #recover(): void {
    if (this.#hasRecovered) return
    this.#hasRecovered = true
    try {
      for (let request = this.#ring.takeInflight(); request !== null; request = this.#ring.takeInflight()) {
        this.#begin(request)
        this.device.start(request)
      }
    } catch (error) {
      this.#fail(error)
    }
  }

  #fail(error: unknown): void {
    if (!(error instanceof RingFault)) throw error
    this.#isBroken = true
    this.#reconsider()
    this.#session.broken(this.index, error.message)
    this.#error?.send()
  }

  #drained(): Promise<void> {
    if (this.#outstanding === 0 && !this.#isDirty) return Promise.resolve()
    return new Promise(resolve => this.#onDrained.push(resolve))
  }

  #signalAt(fd: number): Signal | null {
    return fd < 0 ? null : new Signal(this.#reactor.ring, fd, this.#session.one)
  }

  /** Resolves when the front end's descriptors may be closed. Nothing is outstanding. */
  #letGo(): Promise<unknown> {
    this.#unwatchKick()
    for (const request of this.#requests) if (request !== undefined) this.#session.budget.refund(request)
    this.#released ??= Promise.all([this.#call?.close(), this.#error?.close()])
    this.#call = null
    this.#error = null
    return this.#released
  }

  #watchKick(): void {
    this.#unwatchKick()
    const { ring } = this.#reactor
    if (ring !== null && this.#start.kick >= 0) {
      this.#kick = new KickWatcher(ring, this.#start.kick, this.#kicked)
    }
  }

  #unwatchKick(): void {
    if (this.#kick === null) return
    this.#kickCount += this.#kick.count
    this.#kick.close()
    this.#kick = null
  }
}
