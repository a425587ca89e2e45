/**
 * One queue of an NVMe/TCP host: a connection that carries one submission and one completion queue.
 *
 *     CONNECTING --stream, ICReq--> INITIALISING --ICResp--> READY --fault--> TERMINATING --H2CTermReq sent--+
 *          |                             |                     |                                             |
 *          +-----------------------------+---------------------+-------- close() ------------------------> CLOSING
 *                                                                                                            |
 *                                             every command that is left ends, then onEnded <--onClosed------+
 *
 * A command that was given to the queue ends exactly once, and only when nothing refers to its data any more: not
 * before what carried it was taken by the stream, and on a broken connection not before the stream has closed.
 */

import type { Segments } from '../../bdev/io.ts'
import { assert } from '../../core/assert.ts'
import type { Timer } from '../../core/clock.ts'
import { errnoName } from '../../core/errors.ts'
import { logger } from '../../core/log.ts'
import type { SocketAddress, Stream, StreamEvents } from '../../reactor/network.ts'
import type { Flushable, Reactor } from '../../reactor/reactor.ts'
import { DNR, Status } from '../../spec/nvme-status.ts'
import { ADMIN_IN_CAPSULE_SIZE, IcReq, PduType, TERM_DATA_MAX, TermReq } from '../../spec/nvme-tcp.ts'
import { Inbox, type InboxEvents } from './inbox.ts'
import { Outbox } from './outbox.ts'
import type { Fault } from './pdu-fault.ts'
import { Slots, Transfer } from './slots.ts'

const log = logger('nvme')

const State = { CONNECTING: 0, INITIALISING: 1, READY: 2, TERMINATING: 3, CLOSING: 4, CLOSED: 5 } as const
type State = (typeof State)[keyof typeof State]

/** How long a connection is kept so that the controller can read why it ends. */
const TERMINATION_MS = 1000

/** What a queue tells its owner, from the reactor's round and, but for `onEnding`, never from inside a call to the queue. */
export interface QueueEvents {
  /** Commands may be submitted. */
  onReady(): void
  /** The connection ends: nothing may be submitted any more. Told once, also from inside `close`. */
  onEnding(): void
  /**
   * A command ended. `statusField` is the 15-bit status field of its completion; `ABORTED_BY_HOST` when the connection
   * was lost after the command left, `HOST_PATHING_ERROR` when it never did.
   */
  onCompleted(context: unknown, statusField: number, dw0: number, dw1: number): void
  /** The queue is over, and every command has ended. */
  onEnded(reason: string): void
}

export interface QueueOptions {
  readonly remote: SocketAddress
  readonly source: SocketAddress | undefined
  /** For the connection and for ICResp, each. */
  readonly timeoutMs: number
  /** Commands outstanding at most; the queue's size is one more. At most 512. */
  readonly depth: number
}

export class TcpQueue implements StreamEvents, InboxEvents, Flushable {
  readonly slots: Slots
  /** The arena's words, in which submission queue entries are written. */
  readonly words: Int32Array
  readonly remote: SocketAddress

  readonly #reactor: Reactor
  readonly #events: QueueEvents
  readonly #outbox: Outbox
  readonly #inbox: Inbox
  readonly #timeoutMs: number
  #state: State = State.CONNECTING
  #stream: Stream | null = null
  #cancelConnect: (() => void) | null = null
  #timer: Timer | null = null
  #reason = ''
  #isDirty = false
  /** Commands whose end came while their last bytes were still being sent. */
  readonly #deferred: Uint16Array
  #deferredCount = 0
  /** The header that the controller got wrong, until it is sent back. */
  #fault: Fault | null = null
  #faultAt = 0
  #faultBytes = 0

  /** Starts to connect at once. Throws when the reactor has no memory left for a queue. */
  constructor(reactor: Reactor, options: QueueOptions, events: QueueEvents) {
    this.#reactor = reactor
    this.#events = events
    this.#timeoutMs = options.timeoutMs
    this.remote = options.remote
    this.words = reactor.arena.i32
    this.slots = new Slots(options.depth)
    this.#deferred = new Uint16Array(options.depth)
    this.#outbox = new Outbox(reactor, this.slots)
    try {
      this.#inbox = new Inbox(reactor, this.slots, this)
    } catch (error) {
      this.#outbox.close()
      throw error
    }
    // Fabrics and Admin commands may carry this much whatever the controller announces for I/O.
    this.#outbox.inCapsuleBytes = ADMIN_IN_CAPSULE_SIZE
    this.#cancelConnect = reactor.network.connect(
      options.remote,
      options.source,
      options.timeoutMs,
      this,
      (stream, errno) => this.#connected(stream, errno),
    )
  }

  get isReady(): boolean {
    return this.#state === State.READY
  }

  /** Bytes of data in one capsule of an I/O command, as the controller announces it. */
  set inCapsuleBytes(size: number) {
    this.#outbox.inCapsuleBytes = size
  }

  /** A slot for a command, or -1 when `depth` commands are outstanding. */
  acquire(): number {
    return this.slots.acquire()
  }

  /**
   * Starts the submission queue entry of an acquired slot: returns its index in `words`, zeroed but for opcode and command
   * identifier. Fill it and call `submit` at once.
   */
  begin(slot: number, opcode: number): number {
    return this.#outbox.beginCapsule(slot, opcode)
  }

  /** Submits the entry begun last. `segments` hold at least `lengthBytes` and stay as they are until the end. */
  submit(
    slot: number,
    transfer: Transfer,
    segments: Segments | null,
    lengthBytes: number,
    context: unknown,
  ): void {
    this.slots.start(slot, transfer, segments, lengthBytes, this.#reactor.nowUs)
    this.slots.contexts[slot] = context
    this.#outbox.finishCapsule(slot)
    this.#flushLater()
  }

  /** Ends the connection; idempotent. Commands end once the stream has closed, then `onEnded` is told. */
  close(reason: string): void {
    if (this.#state >= State.CLOSING) return
    if (this.#reason === '') this.#reason = reason
    const before = this.#state
    this.#state = State.CLOSING
    this.#timer?.cancel()
    if (before !== State.TERMINATING) this.#events.onEnding()
    if (before === State.CONNECTING) this.#cancelConnect!()
    else this.#stream!.close()
  }

  /** Calls `found` with each command that was submitted before `beforeUs` and was not yet found by this. */
  findOverdue(beforeUs: number, found: (slot: number, context: unknown) => void): void {
    const { slots } = this
    for (let slot = 0; slot < slots.depth; slot++) {
      if (slots.active[slot] !== 1 || slots.overdue[slot] === 1 || slots.submittedUs[slot]! >= beforeUs)
        continue
      slots.overdue[slot] = 1
      found(slot, slots.contexts[slot])
    }
  }

  /** Reactor: sends what was gathered in this round. */
  flush(): void {
    this.#isDirty = false
    if (this.#state <= State.TERMINATING && this.#stream !== null) this.#outbox.flush(this.#stream)
  }

  #flushLater(): void {
    if (this.#isDirty) return
    this.#isDirty = true
    this.#reactor.flushLater(this)
  }

  #connected(stream: Stream | undefined, errno: number): void {
    this.#cancelConnect = null
    if (stream === undefined) {
      const { host, port } = this.remote
      if (this.#reason === '') this.#reason = `connecting to ${host} port ${port}: ${errnoName(errno)}`
      if (this.#state === State.CONNECTING) this.#events.onEnding()
      this.#state = State.CLOSING
      this.onClosed()
      return
    }
    this.#stream = stream
    if (this.#state === State.CLOSING) {
      stream.close()
      return
    }
    this.#state = State.INITIALISING
    this.#timer = this.#reactor.clock.after(this.#timeoutMs, () =>
      this.close('the controller did not answer ICReq'),
    )
    const at = this.#outbox.addControl(IcReq.size) - this.#reactor.arena.base
    const { view } = this.#reactor.arena
    IcReq.type.set(view, at, PduType.IC_REQ)
    IcReq.hlen.set(view, at, IcReq.size)
    IcReq.plen.set(view, at, IcReq.size)
    this.#flushLater()
    this.#inbox.arm(stream)
  }

  onReceived(result: number): void {
    if (this.#state >= State.TERMINATING) return
    if (result <= 0) {
      this.close(result === 0 ? 'the controller closed the connection' : `receive: ${errnoName(-result)}`)
      return
    }
    if (this.#inbox.received(result)) this.#inbox.arm(this.#stream!)
  }

  onSent(result: number): void {
    this.#outbox.noteSent()
    if (this.#state >= State.CLOSING) return
    if (result < 0) {
      this.close(`send: ${errnoName(-result)}`)
      return
    }
    if (this.#state === State.TERMINATING) {
      if (this.#fault === null) this.close(this.#reason)
      else this.#sendTermination()
      return
    }
    this.#endDeferred()
    if (!this.#outbox.isEmpty) this.#flushLater()
  }

  onClosed(): void {
    assert(this.#state !== State.CLOSED, 'a queue ends once')
    this.#state = State.CLOSED
    this.#timer?.cancel()
    const { slots } = this
    for (let slot = 0; slot < slots.depth; slot++) {
      if (slots.active[slot] === 0) continue
      if (slots.active[slot] === 2) {
        this.#end(slot, slots.status[slot]!, slots.dw0[slot]!, slots.dw1[slot]!)
        continue
      }
      const wasSent = slots.batch[slot]! < this.#outbox.building
      this.#end(slot, wasSent ? Status.ABORTED_BY_HOST : Status.HOST_PATHING_ERROR, 0, 0)
    }
    this.#outbox.close()
    this.#inbox.close()
    this.#events.onEnded(this.#reason)
  }

  onInitialised(cpda: number, maxH2cData: number): boolean {
    this.#timer!.cancel()
    this.#outbox.align(cpda)
    this.#outbox.maxH2cData = maxH2cData
    this.#state = State.READY
    this.#events.onReady()
    return this.#state === State.READY
  }

  onResponse(slot: number, statusField: number, dw0: number, dw1: number): boolean {
    const { slots } = this
    const isShort =
      slots.transfer[slot] === Transfer.FROM_CONTROLLER && slots.movedBytes[slot] !== slots.lengthBytes[slot]
    const status = statusField === 0 && isShort ? DNR | Status.DATA_TRANSFER_ERROR : statusField
    if (this.#isSettled(slot)) {
      this.#end(slot, status, dw0, dw1)
    } else {
      // From now on the controller may not refer to it any more.
      slots.active[slot] = 2
      slots.status[slot] = status
      slots.dw0[slot] = dw0
      slots.dw1[slot] = dw1
      this.#deferred[this.#deferredCount++] = slot
    }
    return this.#state === State.READY
  }

  onR2t(slot: number): boolean {
    this.#outbox.addR2t(slot)
    this.#flushLater()
    return true
  }

  onTerminated(fes: number, fei: number): boolean {
    this.close(`the controller ended the connection: fatal error status ${fes}, information ${fei}`)
    return false
  }

  onFault(fault: Fault, at: number, headerBytes: number): boolean {
    const { host, port } = this.remote
    const sent = Buffer.from(this.#reactor.arena.u8.slice(at, at + headerBytes)).toString('hex')
    log.warning(`${host} port ${port} sent ${fault.reason} (${sent}): the connection ends`)
    this.#reason = `the controller sent ${fault.reason}`
    this.#state = State.TERMINATING
    this.#events.onEnding()
    this.#fault = fault
    this.#faultAt = at
    this.#faultBytes = Math.min(headerBytes, TERM_DATA_MAX)
    this.#timer?.cancel()
    this.#timer = this.#reactor.clock.after(TERMINATION_MS, () => this.close(this.#reason))
    if (!this.#outbox.isSending) this.#sendTermination()
    return false
  }

  /** Tells the controller what it did wrong, instead of everything that was not sent yet. */
  #sendTermination(): void {
    const fault = this.#fault!
    this.#fault = null
    this.#outbox.discard()
    const { u8, view, base } = this.#reactor.arena
    const size = TermReq.size + this.#faultBytes
    const at = this.#outbox.addControl(size) - base
    TermReq.type.set(view, at, PduType.H2C_TERM_REQ)
    TermReq.hlen.set(view, at, TermReq.size)
    TermReq.plen.set(view, at, size)
    TermReq.fes.set(view, at, fault.fes)
    TermReq.fei.set(view, at, fault.fei)
    u8.copyWithin(at + TermReq.size, this.#faultAt, this.#faultAt + this.#faultBytes)
    this.#flushLater()
  }

  /** Nothing that was sent or is to be sent refers to the command's data any more. */
  #isSettled(slot: number): boolean {
    return this.slots.batch[slot]! <= this.#outbox.sent && this.slots.r2tBytes[slot] === 0
  }

  #endDeferred(): void {
    let kept = 0
    const count = this.#deferredCount
    for (let i = 0; i < count; i++) {
      const slot = this.#deferred[i]!
      if (this.#isSettled(slot)) {
        this.#end(slot, this.slots.status[slot]!, this.slots.dw0[slot]!, this.slots.dw1[slot]!)
      } else {
        this.#deferred[kept++] = slot
      }
    }
    this.#deferredCount = kept
  }

  #end(slot: number, statusField: number, dw0: number, dw1: number): void {
    const context = this.slots.contexts[slot]
    this.slots.release(slot)
    this.#events.onCompleted(context, statusField, dw0, dw1)
  }
}
