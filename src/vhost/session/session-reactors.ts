/**
 * The reactors on which a session has queues. A reactor hears of the session when its first queue starts there, and of every
 * change after that; a disk with one queue is open on one reactor.
 */
import type { ReactorGroup } from '../../reactor/group.ts'
import type { Port } from '../../reactor/port.ts'
import {
  type DeviceDescription,
  type MappedRegion,
  type OpenSession,
  type QueueStats,
  type SendEvent,
  type SessionStats,
  type SetDevice,
  type SetLog,
  type SetMemory,
  type SetTuning,
  type SharedPart,
  Topic,
  type Tuning,
} from '../messages.ts'

export interface SessionReactorsOptions {
  readonly session: number
  readonly controller: string
  readonly reactors: ReactorGroup
  readonly reactorIndexes: readonly number[]
  readonly device: DeviceDescription
  readonly tuning: Tuning
}

export class SessionReactors {
  readonly #options: SessionReactorsOptions
  readonly #opened = new Map<number, Port>()
  #device: DeviceDescription
  #tuning: Tuning
  #regions: readonly MappedRegion[] = []
  #log: SharedPart | null = null
  #closed: Promise<unknown> | null = null

  constructor(options: SessionReactorsOptions) {
    this.#options = options
    this.#device = options.device
    this.#tuning = options.tuning
  }

  /** Where queue `index` lives, and the session with it from now on. Throws after `close`. */
  async portOf(index: number): Promise<Port> {
    if (this.#closed !== null) throw new Error('the session has ended')
    const { session, controller, reactors, reactorIndexes } = this.#options
    const reactor = reactorIndexes[index % reactorIndexes.length]!
    const opened = this.#opened.get(reactor)
    if (opened !== undefined) return opened
    const port = reactors.port(reactor)
    // From here on it is told of the end, even if it cannot open everything.
    this.#opened.set(reactor, port)
    const open: OpenSession = { session, controller, device: this.#device, tuning: this.#tuning }
    await port.call(Topic.OPEN, open)
    await port.call(Topic.MEMORY, { session, regions: this.#regions } satisfies SetMemory)
    if (this.#log !== null) await port.call(Topic.LOG, { session, log: this.#log } satisfies SetLog)
    return port
  }

  /** Resolves when no reactor starts anything on what the new description lacks. */
  async setDevice(device: DeviceDescription): Promise<void> {
    this.#device = device
    await this.#everywhere(Topic.DEVICE, { session: this.#options.session, device } satisfies SetDevice)
  }

  /** Resolves when nothing is outstanding on what the device no longer has. */
  async settled(): Promise<void> {
    await this.#change(Topic.SETTLED, this.#options.session)
  }

  async setTuning(tuning: Tuning): Promise<void> {
    this.#tuning = tuning
    await this.#everywhere(Topic.TUNING, { session: this.#options.session, tuning } satisfies SetTuning)
  }

  /** Resolves when nobody uses the memory of before. */
  async setMemory(regions: readonly MappedRegion[]): Promise<void> {
    this.#regions = regions
    await this.#change(Topic.MEMORY, { session: this.#options.session, regions } satisfies SetMemory)
  }

  /** Resolves when everything that is written is logged there, and nowhere else. */
  async setLog(log: SharedPart | null): Promise<void> {
    this.#log = log
    await this.#change(Topic.LOG, { session: this.#options.session, log } satisfies SetLog)
  }

  async sendEvent(event: Omit<SendEvent, 'session'>): Promise<void> {
    await this.#everywhere(Topic.EVENT, { ...event, session: this.#options.session } satisfies SendEvent)
  }

  async stats(): Promise<SessionStats> {
    const parts = await this.#everywhere<SessionStats>(Topic.STATS, this.#options.session)
    const queues: QueueStats[] = parts.flatMap(part => [...part.queues])
    return { queues: queues.sort((a, b) => a.index - b.index) }
  }

  /** Ends what is outstanding. Resolves when nothing of the session is left on any reactor. Idempotent. */
  async close(): Promise<void> {
    const ports = [...this.#opened.values()]
    this.#opened.clear()
    this.#closed ??= Promise.all(ports.map(port => port.call(Topic.CLOSE, this.#options.session)))
    await this.#closed
  }

  /** As `#everywhere`, for changes after which something is in use no more: a session that is being closed uses all of it. */
  async #change(topic: string, body: unknown): Promise<void> {
    await this.#everywhere(topic, body)
    await this.#closed
  }

  #everywhere<T = unknown>(topic: string, body: unknown): Promise<T[]> {
    return Promise.all([...this.#opened.values()].map(port => port.call<T>(topic, body)))
  }
}
