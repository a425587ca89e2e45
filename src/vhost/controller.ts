/** One controller: a name, a socket, the device behind it, and the front ends that are connected at this moment. */
import { type Logger, logger } from '../core/log.ts'
import { limitLines } from '../core/log-limit.ts'
import type { SocketAccess } from '../reactor/socket-access.ts'
import type { Backing } from './backing.ts'
import type { SessionStats, Tuning } from './messages.ts'
import type { DeviceModel } from './model.ts'

const log = logger('vhost')

/** What SPDK's controllers do until they are told otherwise: nothing is delayed. */
export const DEFAULT_TUNING: Tuning = { quietUs: 50, delayBaseUs: 0, iopsThreshold: 60_000 }

/**
 * Front ends of one controller at a time: guests that share a disk, and those that migrate. Each may have hundreds of
 * descriptors and as many pieces of memory.
 */
const SESSIONS_MAX = 32

/** What holds for every controller, from the next front end on. */
export interface VhostOptions {
  /**
   * Memory that is not sealed against shrinking is refused, and not only noted in the log: a front end that truncates what
   * is in use ends this process by a signal (SIGBUS).
   */
  readonly requireSealedMemory: boolean
}

/** Something for the event queue of a SCSI front end: the fields of `virtio_scsi_event`. */
export interface DeviceEvent {
  readonly event: number
  readonly lun: readonly number[]
  readonly reason: number
}

/** One front end that is connected, as its controller sees it. */
export interface ControllerSession {
  /**
   * The model describes something else now. The reactors hear of it first, so that a guest finds it as it is told; then the
   * guest, by `event` and if its configuration space differs. Resolves when nothing is outstanding on what is described no longer.
   */
  deviceChanged(event?: DeviceEvent): Promise<void>
  tune(tuning: Tuning): Promise<void>
  stats(): Promise<SessionStats>
  /** Ends what is outstanding, then the connection. */
  close(): Promise<void>
}

export interface SessionOptions {
  /** Of all sessions there ever were. */
  readonly number: number
  readonly controllerName: string
  readonly model: DeviceModel
  /** Where its queues live: the first on the first of these, the next on the next, and so on. */
  readonly reactorIndexes: readonly number[]
  readonly tuning: Tuning
  readonly offerPacked: boolean
  readonly options: VhostOptions
  /** For what the front end causes. */
  readonly log: Logger
  /** Called once, after the front end has gone or was thrown out, when nothing of it is left. */
  readonly onEnd: () => void
}

/** Begins a session with a front end that has just connected. */
export type StartSession = (options: SessionOptions) => ControllerSession

export interface SocketListener {
  /** Nobody can connect any more; who is connected stays. */
  close(): Promise<void>
}

/**
 * Listens at `path`. Throws `RpcError` when the path cannot be, or its mode and owner cannot be set. `onFrontEnd` returns
 * false for one that is to be turned away.
 */
export type Listen = (
  path: string,
  access: SocketAccess,
  onFrontEnd: (start: StartSession) => boolean,
) => Promise<SocketListener>

/** A session as `vhost_get_controllers` shows it. */
export interface SessionView {
  /** Of all sessions of the daemon. */
  readonly vid: number
  /** Of those of the controller. */
  readonly id: number
  readonly name: string
  readonly stats: SessionStats
}

interface Entry extends Omit<SessionView, 'stats'> {
  readonly session: ControllerSession
}

export interface ControllerOptions {
  readonly name: string
  readonly socketPath: string
  readonly backing: Backing
  readonly model: DeviceModel
  readonly reactorIndexes: readonly number[]
  readonly access: SocketAccess
  readonly offerPacked: boolean
  readonly listen: Listen
  /** As they are when a front end connects. */
  readonly options: () => VhostOptions
  readonly nextVid: () => number
}

export class VhostController {
  readonly name: string
  readonly socketPath: string
  readonly backing: Backing
  readonly reactorIndexes: readonly number[]
  readonly #options: ControllerOptions
  readonly #sessions = new Map<number, Entry>()
  readonly #log = limitLines(log)
  #lastId = -1
  /** One was turned away, and none has gone since. */
  #isFull = false
  #listener: SocketListener | null = null
  #tuning = DEFAULT_TUNING

  constructor(options: ControllerOptions) {
    this.name = options.name
    this.socketPath = options.socketPath
    this.backing = options.backing
    this.reactorIndexes = options.reactorIndexes
    this.#options = options
  }

  get tuning(): Tuning {
    return this.#tuning
  }

  get sessionCount(): number {
    return this.#sessions.size
  }

  /** Front ends may connect. */
  get isOpen(): boolean {
    return this.#listener !== null
  }

  get offersPacked(): boolean {
    return this.#options.offerPacked
  }

  async open(): Promise<void> {
    const { listen, access } = this.#options
    this.#listener = await listen(this.socketPath, access, start => this.#accept(start))
    log.notice(`${this.name} waits for front ends at ${this.socketPath}`)
  }

  /** Nobody new connects, and those who are connected are shown out once what they have in flight has ended. */
  async close(): Promise<void> {
    const listener = this.#listener
    this.#listener = null
    await listener?.close()
    await Promise.all([...this.#sessions.values()].map(({ session }) => session.close()))
  }

  async tune(change: Partial<Tuning>): Promise<void> {
    this.#tuning = { ...this.#tuning, ...change }
    await this.#everySession(session => session.tune(this.#tuning))
  }

  /** `event`: what its guests are told. Resolves when nothing is outstanding on what the device no longer has. */
  async deviceChanged(event?: DeviceEvent): Promise<void> {
    await this.#everySession(session => session.deviceChanged(event))
  }

  sessions(): Promise<SessionView[]> {
    return Promise.all(
      [...this.#sessions.values()].map(async ({ session, ...view }) => ({
        ...view,
        stats: await session.stats(),
      })),
    )
  }

  #accept(start: StartSession): boolean {
    if (this.#sessions.size >= SESSIONS_MAX) {
      if (!this.#isFull) {
        this.#log.warning(
          `${this.name} has ${SESSIONS_MAX} front ends, and turns further ones away until one goes: make another ` +
            'controller for the same bdev',
        )
      }
      this.#isFull = true
      return false
    }
    const { nextVid, reactorIndexes, model, offerPacked, options } = this.#options
    const id = ++this.#lastId
    const vid = nextVid()
    const name = `${this.name}s${vid}`
    const session = start({
      number: vid,
      controllerName: this.name,
      model,
      // Most guests have few queues: each session begins with another reactor.
      reactorIndexes: reactorIndexes.map((_, i) => reactorIndexes[(vid + i) % reactorIndexes.length]!),
      tuning: this.#tuning,
      offerPacked,
      options: options(),
      log: this.#log,
      onEnd: () => {
        this.#sessions.delete(id)
        this.#isFull = false
        this.#log.notice(`${name}: the front end has gone`)
      },
    })
    this.#sessions.set(id, { vid, id, name, session })
    this.#log.notice(`${name}: a front end is connected at ${this.socketPath}`)
    return true
  }

  async #everySession(act: (session: ControllerSession) => Promise<void>): Promise<void> {
    await Promise.all([...this.#sessions.values()].map(({ session }) => act(session)))
  }
}
