/**
 * One path as one reactor uses it: an I/O queue of its own, shared by all devices of the controller. The queue is opened
 * while the controller is ready and a device is in use, and belongs to one connection of the controller (`generation`).
 */
import { IoType } from '../bdev/io.ts'
import type { Timer } from '../core/clock.ts'
import { logger } from '../core/log.ts'
import type { Reactor } from '../reactor/reactor.ts'
import { DsmRange } from '../spec/nvme.ts'
import { STATUS_MASK, Status } from '../spec/nvme-status.ts'
import { opcodeOf, transferOf, writeCommand } from './commands.ts'
import { type ConnectOptions, submitConnect } from './fabrics.ts'
import { IoRequest } from './io-request.ts'
import { type HostOptions, type PathUpdate, Topic } from './messages.ts'
import type { NvmeChannel } from './nvme-channel.ts'
import { type QueueEvents, TcpQueue } from './tcp/queue.ts'
import { Transfer } from './tcp/slots.ts'

const log = logger('nvme')

/** A controller may still hold the queue of the connection before: so often, and so long, a connect is tried again. */
const CONNECT_RETRIES = 3
const CONNECT_RETRY_MS = 50
const CONNECT_TIMEOUT_MS = 10_000

/** Bytes of data that the command of a request moves. */
function lengthOf(request: IoRequest, blockSize: number): number {
  if (transferOf(request.type) === Transfer.NONE) return 0
  return request.type === IoType.UNMAP ? DsmRange.size : request.blockCount * blockSize
}

export class IoPath implements QueueEvents {
  readonly id: number
  status: PathUpdate
  /** I/O can be submitted now. */
  isConnected = false

  readonly #reactor: Reactor
  readonly #channels = new Set<NvmeChannel>()
  #options: HostOptions
  #queue: TcpQueue | null = null
  /** The connection of the controller to which the queue belongs. */
  #queueGeneration = 0
  #wasConnected = false
  #retriesLeft = CONNECT_RETRIES
  /** The controller was asked to connect anew: nothing is tried before it has. */
  #isGivenUp = false
  #timer: Timer | null = null
  #overdueTimer: Timer | null = null
  #isRemoved = false
  #onGone: (() => void) | null = null
  /** Channels that found every slot taken. */
  #starved: NvmeChannel[] = []
  #feeding: NvmeChannel[] = []

  constructor(reactor: Reactor, update: PathUpdate, options: HostOptions) {
    this.#reactor = reactor
    this.#options = options
    this.id = update.pathId
    this.status = update
  }

  /** Commands outstanding. */
  get outstanding(): number {
    return this.#queue === null ? 0 : this.#queue.slots.used
  }

  /** I/O may wait for this path: it can be used now, or is expected back. */
  get mayReturn(): boolean {
    return this.isConnected || this.status.mayReturn
  }

  set options(options: HostOptions) {
    this.#options = options
    this.#watchTime()
  }

  addChannel(channel: NvmeChannel): void {
    this.#channels.add(channel)
    this.#openIfWanted()
  }

  removeChannel(channel: NvmeChannel): void {
    this.#channels.delete(channel)
    this.#starved = this.#starved.filter(starved => starved !== channel)
    if (this.#channels.size === 0) this.#queue?.close('no device uses the path any more')
  }

  update(update: PathUpdate): void {
    const isNew = update.generation !== this.status.generation
    this.status = update
    if (isNew || update.state !== 'ready') {
      this.#retriesLeft = CONNECT_RETRIES
      this.#isGivenUp = false
      this.#queue?.close(update.reason === '' ? 'the controller connected anew' : update.reason)
    }
    this.#openIfWanted()
    this.#tellChannels()
  }

  /** Ends the queue and forgets the path; calls `gone` when nothing of it is left. */
  remove(gone: () => void): void {
    this.#isRemoved = true
    this.#timer?.cancel()
    this.#onGone = gone
    if (this.#queue === null) this.#tellGone()
    else this.#queue.close('the path is detached')
  }

  /** Drops the queue with everything outstanding on it, and connects again. */
  reconnect(reason: string): void {
    this.#queue?.close(reason)
  }

  /** Submits to this path, which is connected; false when every slot is taken. */
  submit(request: IoRequest, nsid: number, blockSize: number): boolean {
    const queue = this.#queue!
    const slot = queue.acquire()
    if (slot < 0) return false
    const { type } = request
    const transfer = transferOf(type)
    const at = queue.begin(slot, opcodeOf(type))
    writeCommand(queue.words, at, request, nsid)
    request.path = this
    request.isOverdue = false
    queue.submit(slot, transfer, request.segments, lengthOf(request, blockSize), request)
    return true
  }

  /** Calls `channel.feed()` once a slot is free. */
  awaitSlot(channel: NvmeChannel): void {
    if (!this.#starved.includes(channel)) this.#starved.push(channel)
  }

  /** Asks the controller to end a command early; it may not be able to. */
  abort(request: IoRequest): void {
    const queue = this.#queue
    if (queue === null || !this.isConnected) return
    const cid = queue.slots.contexts.indexOf(request)
    if (cid < 0) return
    const { generation } = this.status
    this.#reactor.control.post(Topic.ABORT, { pathId: this.id, generation, sqid: this.#qid, cid })
  }

  onReady(): void {
    const { status } = this
    const options: ConnectOptions = {
      qid: this.#qid,
      cntlid: status.controller!.cntlid,
      sqSize: status.controller!.ioQueueDepth + 1,
      keepAliveMs: 0,
      disableSqFlowControl: status.disableSqFlowControl,
      subnqn: status.subnqn,
      hostnqn: status.hostnqn,
      hostId: status.hostId,
    }
    submitConnect(this.#reactor, this.#queue!, options, statusField => this.#connectEnded(statusField))
  }

  onEnding(): void {
    this.isConnected = false
    this.#overdueTimer?.cancel()
    this.#tellChannels()
  }

  onCompleted(context: unknown, statusField: number, dw0: number, dw1: number): void {
    if (context instanceof IoRequest) {
      context.channel.ended(context, this, statusField)
      if (this.#starved.length > 0) this.#feed()
    } else {
      ;(context as (statusField: number, dw0: number, dw1: number) => void)(statusField, dw0, dw1)
    }
  }

  onEnded(reason: string): void {
    const wasConnected = this.#wasConnected
    this.#wasConnected = false
    this.#queue = null
    if (this.#isRemoved) {
      this.#tellGone()
      return
    }
    const { state, generation } = this.status
    log.debug(`path ${this.id} of ${this.status.name}: I/O queue ended: ${reason}`)
    if (state !== 'ready' || generation !== this.#queueGeneration || this.#channels.size === 0) {
      // As it had to be; perhaps the controller has connected anew meanwhile.
      this.#openIfWanted()
    } else if (wasConnected || this.#retriesLeft === 0) {
      this.#giveUp(reason, wasConnected)
    } else {
      this.#retriesLeft--
      this.#timer = this.#reactor.clock.after(CONNECT_RETRY_MS, () => this.#openIfWanted())
    }
  }

  get #qid(): number {
    return this.#reactor.index + 1
  }

  #openIfWanted(): void {
    const { state, controller, target, source } = this.status
    if (this.#queue !== null || this.#isRemoved || this.#channels.size === 0) return
    if (state !== 'ready' || controller === undefined || this.#isGivenUp) return
    if (this.#qid > controller.ioQueues) {
      log.warning(
        `path ${this.id} of ${this.status.name} grants ${controller.ioQueues} I/O queues: none is left for reactor ${this.#reactor.index}`,
      )
      return
    }
    this.#timer?.cancel()
    const options = {
      remote: target,
      source,
      timeoutMs: this.#options.connectTimeoutMs || CONNECT_TIMEOUT_MS,
      depth: controller.ioQueueDepth,
    }
    this.#queueGeneration = this.status.generation
    try {
      this.#queue = new TcpQueue(this.#reactor, options, this)
    } catch (error) {
      this.#giveUp((error as Error).message, false)
    }
  }

  /** Leaves it to the controller to connect anew, at its own pace. */
  #giveUp(reason: string, wasConnected: boolean): void {
    this.#isGivenUp = true
    const { generation } = this.status
    this.#reactor.control.post(Topic.QUEUE_LOST, { pathId: this.id, generation, reason, wasConnected })
  }

  #connectEnded(statusField: number): void {
    const status = statusField & STATUS_MASK
    if (status !== Status.SUCCESS) {
      this.#queue?.close(`the controller refused the I/O queue with status 0x${status.toString(16)}`)
      return
    }
    this.#queue!.inCapsuleBytes = this.status.controller!.inCapsuleBytes
    this.#retriesLeft = CONNECT_RETRIES
    this.isConnected = true
    this.#wasConnected = true
    this.#watchTime()
    this.#tellChannels()
  }

  #tellChannels(): void {
    for (const channel of this.#channels) channel.pathChanged()
  }

  #tellGone(): void {
    const gone = this.#onGone
    this.#onGone = null
    gone?.()
  }

  /** Lets those that wait for a slot try again, each once. */
  #feed(): void {
    const hungry = this.#starved
    this.#starved = this.#feeding
    this.#feeding = hungry
    for (let i = 0; i < hungry.length; i++) hungry[i]!.feed()
    hungry.length = 0
  }

  #watchTime(): void {
    this.#overdueTimer?.cancel()
    const { ioTimeoutUs } = this.#options
    if (ioTimeoutUs === 0 || !this.isConnected) return
    const look = (): void => {
      this.#queue?.findOverdue(this.#reactor.clock.nowUs() - ioTimeoutUs, (_, context) =>
        this.#overdue(context),
      )
      if (this.isConnected) this.#overdueTimer = this.#reactor.clock.after(periodMs, look)
    }
    const periodMs = Math.max(1, ioTimeoutUs / 4000)
    this.#overdueTimer = this.#reactor.clock.after(periodMs, look)
  }

  #overdue(context: unknown): void {
    const { actionOnTimeout, ioTimeoutUs } = this.#options
    const what = `a command on path ${this.id} of ${this.status.name} took longer than ${ioTimeoutUs} µs`
    if (actionOnTimeout === 'none' || !(context instanceof IoRequest)) {
      log.warning(what)
      return
    }
    if (actionOnTimeout === 'reset') {
      this.reconnect(what)
      return
    }
    log.warning(`${what}: it is aborted`)
    context.isOverdue = true
    this.abort(context)
    // An abort that brings nothing in as much time again means that the path is not to be trusted.
    this.#reactor.clock.after(ioTimeoutUs / 1000, () => {
      if (context.isOverdue && context.path === this) this.reconnect(`${what}, and could not be aborted`)
    })
  }
}
