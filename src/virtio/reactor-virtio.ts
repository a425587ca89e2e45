/** One reactor's part of the virtio controllers: its request queue of each, and the channels of their disks. */
import type { BdevInfo, DriverChannel } from '../bdev/bdev.ts'
import { assert } from '../core/assert.ts'
import type { Reactor } from '../reactor/reactor.ts'
import { DeviceQueue } from './device-queue.ts'
import { EventQueue } from './event-queue.ts'
import {
  type ExecuteScsi,
  type HaltAnswer,
  type OpenQueue,
  type PrepareAnswer,
  type PrepareQueue,
  type ScsiAnswer,
  Topic,
  type Unit,
} from './messages.ts'
import { News } from './news.ts'
import { VirtioChannel } from './virtio-channel.ts'

/** What is there for each reactor, once `installVirtio` was called. */
const installed = new WeakMap<Reactor, ReactorVirtio>()

/** Puts the virtio driver on a reactor: to be called once, before the control thread says anything. */
export function installVirtio(reactor: Reactor): void {
  assert(!installed.has(reactor), 'the virtio driver is put on a reactor once')
  installed.set(reactor, new ReactorVirtio(reactor))
}

/** The virtio driver of a reactor. */
export function virtioOf(reactor: Reactor): ReactorVirtio {
  const virtio = installed.get(reactor)
  assert(virtio, 'the virtio driver was put on the reactor')
  return virtio
}

interface Queues {
  readonly requests: DeviceQueue
  readonly events: EventQueue | null
}

export class ReactorVirtio {
  readonly #reactor: Reactor
  /** Eight bytes that say 1, to be written to eventfds. */
  readonly #one: number
  /** By the controller's number. */
  readonly #queues = new Map<number, Queues>()

  constructor(reactor: Reactor) {
    this.#reactor = reactor
    const { arena, control } = reactor
    this.#one = arena.allocate(8)
    assert(this.#one !== 0, 'the arena has eight bytes for a notification')
    arena.view.setUint32(arena.offsetOf(this.#one), 1, true)
    control.on<OpenQueue>(Topic.OPEN, open => this.#open(open))
    control.on<PrepareQueue>(Topic.PREPARE, message => this.#prepare(message))
    control.on<number>(Topic.RUN, controller => {
      const { requests, events } = this.#of(controller)
      requests.run()
      events?.run()
    })
    control.on<number>(Topic.HALT, (controller): HaltAnswer => {
      const { requests, events } = this.#of(controller)
      events?.halt()
      return requests.halt()
    })
    control.on<number>(Topic.CLOSE, controller => this.#close(controller))
    control.on<ExecuteScsi>(Topic.EXECUTE, command => this.#execute(command))
  }

  openChannel(info: BdevInfo): DriverChannel {
    const { controller } = info.device as Unit
    return new VirtioChannel(info, this.#of(controller).requests)
  }

  #of(controller: number): Queues {
    const queues = this.#queues.get(controller)
    assert(queues, `the reactor has a queue of virtio controller ${controller}`)
    return queues
  }

  #open(open: OpenQueue): void {
    const reactor = this.#reactor
    const news = new News(reactor.control, open.controller)
    this.#queues.set(open.controller, {
      requests: new DeviceQueue(reactor, open, this.#one, news),
      events: open.events && new EventQueue(reactor, open, open.events, this.#one, news),
    })
  }

  #prepare(message: PrepareQueue): PrepareAnswer {
    const { requests, events } = this.#of(message.controller)
    return { base: requests.prepare(message), eventBase: events?.prepare(message) ?? 0 }
  }

  async #close(controller: number): Promise<void> {
    const { requests, events } = this.#of(controller)
    this.#queues.delete(controller)
    await Promise.all([requests.close(), events?.close()])
  }

  #execute(command: ExecuteScsi): Promise<ScsiAnswer> {
    const { requests } = this.#of(command.controller)
    return new Promise((done, failed) => requests.execute({ command, done, failed }))
  }
}
