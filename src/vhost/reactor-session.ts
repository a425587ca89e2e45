/** A front end's session on one reactor: its memory, its device, and those of its queues that are at home here. */
import type { ChannelContext } from '../bdev/bdev.ts'
import type { Logger } from '../core/log.ts'
import type { Reactor } from '../reactor/reactor.ts'
import type {
  DeviceDescription,
  MappedRegion,
  OpenSession,
  SendEvent,
  SessionStats,
  SharedPart,
  StartQueue,
  Tuning,
  UpdateQueue,
} from './messages.ts'
import { openDevice } from './open-device.ts'
import { DirtyLog } from './ring/dirty-log.ts'
import { GuestMemory } from './ring/guest-memory.ts'
import { Queue, type QueueSession } from './ring/queue.ts'
import type { VirtioDevice } from './ring/request.ts'
import { RequestBudget } from './ring/request-budget.ts'

export class ReactorSession implements QueueSession {
  readonly reactor: Reactor
  readonly memory = new GuestMemory([])
  readonly budget = new RequestBudget()
  readonly device: VirtioDevice
  readonly one: number
  tuning: Tuning
  /** Resolves when what the device had, and has no longer, has nothing outstanding. */
  settled: Promise<unknown> = Promise.resolve()
  readonly #controller: string
  readonly #log: Logger
  readonly #queues = new Map<number, Queue>()
  #isClosing = false

  /** Throws `RpcError` ENODEV when a bdev of the device is not there. `one`: see `QueueSession`. `log`: for what guests cause. */
  constructor(reactor: Reactor, context: ChannelContext, one: number, open: OpenSession, log: Logger) {
    this.reactor = reactor
    this.one = one
    this.tuning = open.tuning
    this.#controller = open.controller
    this.#log = log
    this.device = openDevice(open.device, context, log)
  }

  /** Throws `RingFault`. */
  start(start: StartQueue): void {
    if (this.#isClosing || this.#queues.has(start.index)) {
      throw new Error(`queue ${start.index} of ${this.#controller} runs already, or its session ends`)
    }
    this.#queues.set(start.index, new Queue(this, start))
  }

  /**
   * A queue that does not run is started with everything that it needs, so there is nothing to note for it. Resolves when
   * the descriptors of before may be closed.
   */
  async update(update: UpdateQueue): Promise<void> {
    await this.#queues.get(update.index)?.update(update)
  }

  /** Resolves with the queue's base. */
  async stop(index: number): Promise<number> {
    const queue = this.#queues.get(index)
    if (queue === undefined) throw new Error(`queue ${index} of ${this.#controller} does not run`)
    const base = await queue.stop()
    this.#queues.delete(index)
    return base
  }

  /** Resolves when nothing of what the new table lacks is in use. */
  async setMemory(regions: readonly MappedRegion[]): Promise<void> {
    if (this.memory.regions.every(region => regions.some(other => isSame(region, other)))) {
      this.memory.replace(regions)
      return
    }
    const queues = [...this.#queues.values()]
    await Promise.all(queues.map(queue => queue.pause()))
    if (this.#isClosing) return
    this.memory.replace(regions)
    for (const queue of queues) queue.resume()
  }

  setLog(part: SharedPart | null): void {
    this.memory.log = part === null ? null : new DirtyLog(part)
  }

  /** Holds for every later request. */
  setDevice(description: DeviceDescription): void {
    this.settled = Promise.all([this.settled, this.device.update(description)])
  }

  sendEvent(event: SendEvent): void {
    const { eventQueue } = this.device
    const queue = eventQueue === null ? undefined : this.#queues.get(eventQueue)
    if (queue !== undefined) this.device.sendEvent(event, queue)
  }

  stats(): SessionStats {
    return { queues: [...this.#queues.values()].map(({ stats }) => stats) }
  }

  async close(): Promise<void> {
    this.#isClosing = true
    await Promise.all([...this.#queues.values()].map(queue => queue.close()))
    this.#queues.clear()
    this.device.close()
  }

  broken(index: number, why: string): void {
    this.#log.error(
      `${this.#controller}: queue ${index} is broken, and stopped until its guest resets it: ${why}`,
    )
  }
}

function isSame(a: MappedRegion, b: MappedRegion): boolean {
  return (
    a.guestAddress === b.guestAddress &&
    a.userAddress === b.userAddress &&
    a.sizeBytes === b.sizeBytes &&
    a.address === b.address
  )
}
