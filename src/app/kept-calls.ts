/**
 * Saved calls that failed at start. They stay in the saved configuration, and are tried again in the background:
 *
 * - those that failed for something outside that may pass (a Ceph cluster or a file that is not there yet), with a growing
 *   delay, and at once when a device has come;
 * - those that failed for another reason, only when something else has come: they may lean on it (a namespace on a
 *   subsystem, a host on a namespace). They are quiet.
 *
 * They are tried in the order of the configuration, each part after those it depends on. Methods that may take long
 * (`concurrent`: connecting to a cluster that does not answer) have a lane of their own, so that the others are not held
 * up by them; in each lane one call is under way at a time.
 */
import { type Clock, systemClock, type Timer } from '../core/clock.ts'
import { RpcError, SysError, thereAre } from '../core/errors.ts'
import { logger } from '../core/log.ts'
import type { MethodCall } from '../rpc/config.ts'
import { withoutSecrets } from '../rpc/without-secrets.ts'
import { whyHeldBack } from './late-namespaces.ts'

const log = logger('app')

const DELAY_MS_MIN = 1000
const DELAY_MS_MAX = 30_000

/** What another machine, a file system or the operator of another service may put right. */
const MAY_PASS: ReadonlySet<string> = new Set([
  ...[
    'ENOENT',
    'ENODEV',
    'ENXIO',
    'ENOTDIR',
    'EACCES',
    'EPERM',
    'EROFS',
    'EIO',
    'ESTALE',
    'ENOSPC',
    'ENOMEM',
  ],
  ...['ETIMEDOUT', 'EHOSTUNREACH', 'EHOSTDOWN', 'ENETUNREACH', 'ENETDOWN', 'ECONNREFUSED', 'ECONNRESET'],
  ...['ECONNABORTED', 'ENOTCONN', 'EPIPE', 'ESHUTDOWN', 'EADDRNOTAVAIL', 'EADDRINUSE', 'EAGAIN', 'EBUSY'],
])

/** The part whose calls go on with work: one that is refused for good has nothing to go on with, and is not kept. */
const WORK = 'job'

export interface KeptCall {
  readonly id: number
  readonly subsystem: string
  readonly call: MethodCall
  /** Why it failed last. */
  readonly reason: string
  /** The same as an `RpcCode`; empty for what nobody foresaw. */
  readonly code: string
  /** Whether it is tried again by itself; otherwise only after something else has come, and at the next start. */
  readonly isWaiting: boolean
  /** How often it has failed. */
  readonly tries: number
  readonly since: Date
}

interface Entry extends KeptCall {
  /** By the clock. */
  readonly sinceUs: number
  reason: string
  code: string
  isWaiting: boolean
  tries: number
  /** What had come when it was last tried. */
  arrivals: number
  attempt: Promise<boolean> | undefined
}

export interface KeptCallsOptions {
  /** Makes a call, in its turn among the methods. */
  readonly run: (call: MethodCall) => Promise<unknown>
  /** Its method may take long. */
  readonly isSlow: (call: MethodCall) => boolean
  /** Awaited after something has been made or forgotten. */
  readonly save: () => Promise<void>
  readonly clock?: Clock
}

export class KeptCalls {
  readonly #options: KeptCallsOptions
  readonly #clock: Clock
  #entries: Entry[] = []
  #lastId = 0
  /** Grows with everything that comes. */
  #arrivals = 0
  #isRunning = false
  /** Lanes that are under way: slow, quick. */
  readonly #lanes = new Map<boolean, Promise<void>>()
  #delayMs = DELAY_MS_MIN
  #timer: Timer | undefined

  constructor(options: KeptCallsOptions) {
    this.#options = options
    this.#clock = options.clock ?? systemClock
  }

  /** In the order in which they are tried. */
  list(): readonly KeptCall[] {
    return this.#entries
  }

  callsOf(subsystem: string): MethodCall[] {
    return this.#entries.filter(entry => entry.subsystem === subsystem).map(({ call }) => call)
  }

  /** Keeps a call that failed at start. */
  keep(subsystem: string, call: MethodCall, error: unknown): void {
    if (subsystem === WORK && !mayPass(error)) {
      log.warning(`not going on with ${nameOf(call)}: ${(error as Error).message}`)
      return
    }
    const entry = this.#add(subsystem, call, error)
    const next = entry.isWaiting
      ? 'It is tried again until it succeeds, and stays in the saved configuration (qpair config kept).'
      : 'It stays in the saved configuration and is tried again at the next start.'
    log.error(`could not restore ${nameOf(call)}: ${entry.reason}. ${next}`)
  }

  /** Keeps a call that is not to be made yet; false for all others. */
  holdBack(subsystem: string, call: MethodCall): boolean {
    const reason = whyHeldBack(call, this.#entries, 0)
    if (reason === undefined) return false
    this.#add(subsystem, call, new RpcError('EAGAIN', reason))
    log.warning(`not making ${nameOf(call)} yet: ${reason} (qpair config kept)`)
    return true
  }

  /** Keeps a call that has not ended yet, and goes on with it. */
  keepRunning(subsystem: string, call: MethodCall, attempt: Promise<unknown>): void {
    const entry = this.#add(subsystem, call, new RpcError('EAGAIN', 'it has not ended yet'))
    log.warning(`restoring ${nameOf(call)} takes long: not waiting for it (qpair config kept)`)
    entry.attempt = this.#settle(entry, attempt).then(async isMade => {
      if (isMade) await this.#arrived()
      return isMade
    })
  }

  /** From now on they are tried again. */
  start(): void {
    this.#isRunning = true
    this.#schedule()
  }

  /** From now on nothing is tried. Resolves when what is under way has ended, which may take as long as a peer likes. */
  async stop(): Promise<void> {
    this.#isRunning = false
    this.#timer?.cancel()
    await Promise.all([...this.#lanes.values(), ...this.#entries.map(({ attempt }) => attempt)])
  }

  /** A device has come: what waits may be waiting for it. */
  deviceCame(): void {
    if (!this.#isRunning || this.#entries.length === 0) return
    this.#arrivals++
    this.#delayMs = DELAY_MS_MIN
    this.#schedule(0)
  }

  /** Leaves out what has been made by somebody else meanwhile: `made` is what is in force in that part. */
  dropMade(subsystem: string, made: readonly MethodCall[]): void {
    const texts = new Set(made.map(call => JSON.stringify(call)))
    const names = new Set(made.map(identityOf).filter(name => name !== undefined))
    this.#entries = this.#entries.filter(({ subsystem: of, call }) => {
      const identity = identityOf(call)
      return (
        of !== subsystem ||
        !(texts.has(JSON.stringify(call)) || (identity !== undefined && names.has(identity)))
      )
    })
  }

  /** Drops a call for good. Throws `RpcError` ENOENT, or EEXIST when it was under way and has succeeded. */
  async forget(id: number): Promise<void> {
    const entry = this.#entries.find(each => each.id === id)
    if (entry === undefined) {
      throw new RpcError(
        'ENOENT',
        `no call ${id} is kept: ${thereAre(this.#entries.map(each => String(each.id)))}`,
      )
    }
    if (await entry.attempt) {
      throw new RpcError(
        'EEXIST',
        `${nameOf(entry.call)} has succeeded in this moment: undo it by its own method`,
      )
    }
    this.#remove(entry)
  }

  #add(subsystem: string, call: MethodCall, error: unknown): Entry {
    const entry: Entry = {
      ...{ id: ++this.#lastId, subsystem, call, since: new Date(), tries: 1, arrivals: this.#arrivals },
      ...{ reason: (error as Error).message, code: codeOf(error), isWaiting: mayPass(error) },
      ...{ attempt: undefined, sinceUs: this.#clock.nowUs() },
    }
    this.#entries.push(entry)
    return entry
  }

  #remove(entry: Entry): void {
    this.#entries = this.#entries.filter(each => each !== entry)
  }

  /** The next round, sooner than it would be otherwise or at its time. */
  #schedule(delayMs = this.#delayMs): void {
    this.#timer?.cancel()
    if (!this.#isRunning || !this.#entries.some(entry => this.#isDue(entry))) return
    this.#timer = this.#clock.after(delayMs, () => void this.#round())
  }

  #isDue({ isWaiting, arrivals }: Entry): boolean {
    return isWaiting || arrivals < this.#arrivals
  }

  async #round(): Promise<void> {
    const arrivals = this.#arrivals
    await Promise.all([this.#lane(false), this.#lane(true)])
    // Whatever has come has the next round scheduled.
    if (arrivals !== this.#arrivals) return
    this.#delayMs = Math.min(this.#delayMs * 2, DELAY_MS_MAX)
    this.#schedule()
  }

  /** Tries what is due in a lane, one after the other; a lane that is under way goes on instead. */
  #lane(isSlow: boolean): Promise<void> {
    const underWay = this.#lanes.get(isSlow)
    if (underWay !== undefined) return underWay
    const lane = this.#tryAll(isSlow).finally(() => this.#lanes.delete(isSlow))
    this.#lanes.set(isSlow, lane)
    return lane
  }

  async #tryAll(isSlow: boolean): Promise<void> {
    for (const entry of this.#entries.filter(({ call }) => this.#options.isSlow(call) === isSlow)) {
      if (!this.#isRunning) return
      if (!this.#entries.includes(entry) || !this.#isDue(entry) || entry.attempt !== undefined) continue
      entry.arrivals = this.#arrivals
      const heldMs = (this.#clock.nowUs() - entry.sinceUs) / 1000
      if (whyHeldBack(entry.call, this.#entries, heldMs) !== undefined) continue
      entry.attempt = this.#settle(entry, this.#options.run(entry.call))
      if (await entry.attempt) await this.#arrived()
    }
  }

  /** Resolves with whether the call was made. */
  async #settle(entry: Entry, attempt: Promise<unknown>): Promise<boolean> {
    const { call, since } = entry
    try {
      await attempt
      this.#remove(entry)
      log.notice(`restored ${nameOf(call)} after ${Math.round((Date.now() - since.getTime()) / 1000)} s`)
      return true
    } catch (error) {
      const isWaiting = mayPass(error)
      const { message } = error as Error
      if (message !== entry.reason) log.info(`could not restore ${nameOf(call)} yet: ${message}`)
      Object.assign(entry, { reason: message, code: codeOf(error), isWaiting, tries: entry.tries + 1 })
      if (entry.subsystem === WORK && !isWaiting) this.#remove(entry)
      return false
    } finally {
      entry.attempt = undefined
    }
  }

  async #arrived(): Promise<void> {
    this.#arrivals++
    this.#delayMs = DELAY_MS_MIN
    this.#schedule(0)
    if (!this.#isRunning) return
    try {
      await this.#options.save()
    } catch (error) {
      log.error((error as Error).message)
    }
  }
}

/** Whether what made a call fail may pass by itself. */
const mayPass = (error: unknown): boolean => MAY_PASS.has(codeOf(error))

const codeOf = (error: unknown): string =>
  error instanceof RpcError || error instanceof SysError ? error.code : ''

const nameOf = ({ method, params }: MethodCall): string =>
  `${method} ${JSON.stringify(withoutSecrets(params ?? {}))}`

/** What a call makes, where it has a name: another call that makes it has taken the place of this one. */
function identityOf({ method, params }: MethodCall): string | undefined {
  const name = params?.['name']
  // Names of volumes are of their pool.
  const pool = params?.['pool'] ?? ''
  return typeof name === 'string' ? `${method} ${pool} ${name}` : undefined
}
