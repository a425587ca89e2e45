/**
 * One NVMe/TCP connection as the controller has it, from the ICReq to the end.
 *
 *   NEW --ICReq--> OPEN --disconnect()--> DRAINING --all sent--> CLOSED
 *    |               |                                              ^
 *    +---- fault ----+--> FAULTED: C2HTermReq sent ---- peer closes, or time is up
 *
 * Everything ends in CLOSED; the connection is gone (`ended`) when the stream refers to no memory any more and no
 * device has an I/O of it.
 */
import type { Timer } from '../../core/clock.ts'
import { errnoName } from '../../core/errors.ts'
import { logger } from '../../core/log.ts'
import type { SocketAddress, Stream, StreamEvents } from '../../reactor/network.ts'
import type { Flushable, Reactor } from '../../reactor/reactor.ts'
import {
  DIGEST_SIZE,
  DigestEnable,
  FatalErrorStatus,
  IcReq,
  IcResp,
  PduHeader,
  PduType,
  TERM_DATA_MAX,
  TermReq,
} from '../../spec/nvme-tcp.ts'
import type { AdminQueue, Connection, IoQueue, TransportOptions } from '../request.ts'
import type { CapsuleRequest } from './capsule-request.ts'
import { checkIcReq, describeHeader, Fault, type PduFault, type PduRules } from './check.ts'
import { CommandQueue, type ConnectionBuffers, type QueueHost } from './command-queue.ts'
import { type PduHandler, type ReceiveBuffer, Receiver } from './receiver.ts'
import type { Slot } from './slot.ts'

const log = logger('nvmf_tcp')

const Phase = { NEW: 0, OPEN: 1, DRAINING: 2, FAULTED: 3, CLOSED: 4 } as const
type Phase = (typeof Phase)[keyof typeof Phase]

/** How long a peer may take for what it owes, in milliseconds. */
export interface TcpTimeouts {
  /** From the connection's start to its Connect. */
  readonly connectMs: number
  /** From a termination request, or the last response before a disconnect, to the end of the connection. */
  readonly endMs: number
  /** To take or to send the next of data that is under way. */
  readonly stallMs: number
}

/** What a connection needs of its transport. */
export interface ConnectionHost {
  readonly options: TransportOptions
  readonly timeouts: TcpTimeouts
  connect(connection: TcpConnection, request: CapsuleRequest): void
  /** The Connect has succeeded. */
  connected(connection: TcpConnection): void
  /** The connection wants a buffer as soon as one is given back. */
  starve(connection: TcpConnection): void
  bufferFreed(): void
  ioEnded(): void
  /** The connection is gone, and its buffers are free again. */
  ended(connection: TcpConnection, buffers: ConnectionBuffers): void
}

export class TcpConnection implements Connection, StreamEvents, Flushable, PduHandler, QueueHost {
  readonly listenerId: number
  readonly options: TransportOptions

  readonly #host: ConnectionHost
  readonly #reactor: Reactor
  readonly #stream: Stream
  readonly #rules: PduRules
  readonly #receiver: Receiver
  readonly #queue: CommandQueue
  readonly #buffers: ConnectionBuffers
  #phase: Phase = Phase.NEW
  #isConnected = false
  /** Why it ends as soon as its Connect is answered. */
  #farewell: string | null = null
  #isDirty = false
  #isReceiving = false
  #isStreamClosed = false
  #isEnded = false
  #receivedUs = 0
  #timer: Timer

  constructor(
    host: ConnectionHost,
    reactor: Reactor,
    socket: number,
    listenerId: number,
    buffers: ConnectionBuffers,
  ) {
    this.#host = host
    this.#reactor = reactor
    this.#buffers = buffers
    this.options = host.options
    this.listenerId = listenerId
    this.#stream = reactor.network.adopt(socket, this)
    this.#queue = new CommandQueue(this, reactor, this.#stream, buffers)
    this.#rules = {
      isInitialized: false,
      headerDigest: 0,
      dataDigest: 0,
      capsuleDataMax: this.#queue.capsuleDataMax,
      maxh2cdata: host.options.maxIoSize,
    }
    this.#receiver = new Receiver(reactor, this, this.#rules, reactor.arena.offsetOf(buffers.receive))
    const { connectMs } = host.timeouts
    this.#timer = reactor.clock.after(connectMs, () => this.#giveUp(`no Connect within ${connectMs} ms`))
    this.markDirty()
  }

  get local(): SocketAddress {
    return this.#stream.local
  }

  get remote(): SocketAddress {
    return this.#stream.remote
  }

  get isAdminQueue(): boolean {
    return this.#queue.admin !== null
  }

  get isIoQueue(): boolean {
    return this.#queue.io !== null
  }

  // Called by the target.

  becomeAdminQueue(queue: AdminQueue, sqSize: number): void {
    this.#queue.becomeAdmin(queue, sqSize)
  }

  becomeIoQueue(queue: IoQueue, sqSize: number): void {
    this.#queue.becomeIo(queue, sqSize)
    this.#rules.capsuleDataMax = this.#queue.capsuleDataMax
  }

  disconnect(reason: string): void {
    if (this.#phase > Phase.OPEN) return
    log.info(`${this.#name}: disconnecting: ${reason}`)
    this.#phase = Phase.DRAINING
    this.#awaitEnd()
    this.markDirty()
  }

  /**
   * The listener that it came by is closed. A host that has its ICResp gets the answer to its Connect first, which the
   * target refuses: Linux waits 60 s for that answer, and does not look whether the connection still stands.
   */
  listenerClosed(reason: string): void {
    if (this.#phase === Phase.OPEN && !this.#isConnected) this.#farewell = reason
    else if (this.#queue.admin !== null) this.#queue.admin.end(reason)
    else this.disconnect(reason)
  }

  abort(cid: number): boolean {
    return this.#queue.abort(cid)
  }

  // Called by the queue.

  markDirty(): void {
    if (this.#isDirty) return
    this.#isDirty = true
    this.#reactor.flushLater(this)
  }

  starve(): void {
    this.#host.starve(this)
  }

  bufferFreed(): void {
    this.#host.bufferFreed()
  }

  unpin(buffer: ReceiveBuffer): void {
    this.#receiver.unpin(buffer)
    if (!this.#isReceiving) this.markDirty()
  }

  slotFreed(): void {
    if (this.#receiver.isStalled) this.markDirty()
  }

  connect(request: CapsuleRequest): void {
    this.#host.connect(this, request)
  }

  connected(): void {
    this.#timer.cancel()
    this.#isConnected = true
    this.#host.connected(this)
    if (this.#farewell !== null) this.listenerClosed(this.#farewell)
  }

  ioEnded(): void {
    this.#host.ioEnded()
    if (this.#phase === Phase.CLOSED) this.#endIfQuiet()
  }

  // Called by the stream.

  onReceived(result: number): void {
    this.#isReceiving = false
    if (this.#phase === Phase.CLOSED) return
    if (result <= 0) {
      log.info(
        `${this.#name}: ${result === 0 ? 'has closed the connection' : `receive: ${errnoName(-result)}`}`,
      )
      this.#close()
      return
    }
    this.#receivedUs = this.#reactor.nowUs
    this.markDirty()
    if (!this.isListening) return
    this.#receiver.received(result)
    this.#queue.io?.noteTraffic()
    this.#queue.admin?.noteTraffic()
    this.#parse()
  }

  onSent(result: number): void {
    this.#queue.sender.sent()
    if (this.#phase === Phase.CLOSED) return
    if (result > 0) this.markDirty()
    else {
      log.info(`${this.#name}: send: ${errnoName(-result)}`)
      this.#close()
    }
  }

  onClosed(): void {
    this.#isStreamClosed = true
    this.#queue.drain()
    this.#endIfQuiet()
  }

  /** At the end of a round: sends what is ready, goes on with what had to wait, then receives again. */
  flush(): void {
    this.#isDirty = false
    if (this.#phase === Phase.CLOSED) return
    if (this.#queue.isStarved) this.#queue.retry()
    this.#queue.sender.flush()
    if (this.#receiver.isStalled) this.#parse()
    if (this.#phase === Phase.DRAINING) {
      if (this.#queue.sender.isIdle) this.#close()
      return
    }
    if (this.#isReceiving || this.#receiver.isStalled) return
    if (this.#phase === Phase.FAULTED) this.#receiver.discard()
    this.#isReceiving = this.#receiver.arm(this.#stream)
  }

  #parse(): void {
    const fault = this.#receiver.parse()
    if (fault !== null) this.#fail(fault)
  }

  // PDUs, as the receiver finds them.

  get isListening(): boolean {
    return this.#phase <= Phase.OPEN
  }

  /** Answers with what of the host's wishes is granted: its digests, and the alignment it wants for its data. */
  icReq(at: number): PduFault | null {
    const { view } = this.#reactor.arena
    const fault = checkIcReq(view, at)
    if (fault !== null) return fault
    const digests = IcReq.dgst.get(view, at) & (DigestEnable.HEADER | DigestEnable.DATA)
    const response = new DataView(new ArrayBuffer(IcResp.size))
    IcResp.type.set(response, 0, PduType.IC_RESP)
    IcResp.hlen.set(response, 0, IcResp.size)
    IcResp.plen.set(response, 0, IcResp.size)
    IcResp.dgst.set(response, 0, digests)
    IcResp.maxh2cdata.set(response, 0, this.#rules.maxh2cdata)
    this.#rules.isInitialized = true
    this.#rules.headerDigest = (digests & DigestEnable.HEADER) !== 0 ? DIGEST_SIZE : 0
    this.#rules.dataDigest = (digests & DigestEnable.DATA) !== 0 ? DIGEST_SIZE : 0
    const { sender } = this.#queue
    sender.headerDigest = this.#rules.headerDigest
    sender.dataDigest = this.#rules.dataDigest
    sender.dataAlignment = (IcReq.hpda.get(view, at) + 1) * 4
    sender.pushIcResp(new Uint8Array(response.buffer))
    this.#phase = Phase.OPEN
    return null
  }

  termReq(at: number): void {
    const { view } = this.#reactor.arena
    const fes = `${TermReq.fes.get(view, at).toString(16).padStart(2, '0')}h`
    this.#giveUp(`the host gave up the connection: FES ${fes}, FEI ${TermReq.fei.get(view, at)}`)
  }

  capsule(at: number, dataBytes: number, dataAt: number, buffer: ReceiveBuffer): Slot | null {
    return this.#queue.capsule(at, dataBytes, dataAt, buffer)
  }

  acquireBuffer(): number {
    const { buffers, arena } = this.#reactor
    const address = buffers.acquire(Receiver.BUFFER_SIZE)
    if (address === 0) this.starve()
    return address === 0 ? -1 : arena.offsetOf(address)
  }

  releaseBuffer(offset: number): void {
    const { buffers, arena } = this.#reactor
    buffers.release(arena.base + offset, Receiver.BUFFER_SIZE)
    this.bufferFreed()
  }

  transferring(ttag: number): Slot | undefined {
    return this.#queue.transferring(ttag)
  }

  placed(slot: Slot, dataBytes: number, isIntact: boolean): void {
    this.#queue.placed(slot, dataBytes, isIntact)
  }

  /** The peer broke the protocol: tells it so, and waits for it to close. */
  #fail(fault: PduFault): void {
    const { view, u8 } = this.#reactor.arena
    const at = this.#receiver.faultAt
    const hlen = PduHeader.hlen.get(view, at)
    const size = Math.min(Math.max(hlen, PduHeader.size), this.#receiver.availableBytes, TERM_DATA_MAX)
    const pdu = new DataView(new ArrayBuffer(TermReq.size + (size & ~3)))
    TermReq.type.set(pdu, 0, PduType.C2H_TERM_REQ)
    TermReq.hlen.set(pdu, 0, TermReq.size)
    TermReq.plen.set(pdu, 0, pdu.byteLength)
    TermReq.fes.set(pdu, 0, fault.fes)
    TermReq.fei.set(pdu, 0, fault === Fault.HEADER_DIGEST ? view.getUint32(at + hlen, true) : fault.fei)
    const bytes = new Uint8Array(pdu.buffer)
    bytes.set(u8.subarray(at, at + (size & ~3)), TermReq.size)
    log.warning(
      `${this.#name}: ${fault.reason} (${describeHeader(view, at)}); terminating (${fesName(fault.fes)})`,
    )
    this.#queue.sender.pushTermReq(bytes)
    this.#phase = Phase.FAULTED
    this.#awaitEnd()
    this.markDirty()
  }

  /** Bounds what is left of the connection. */
  #awaitEnd(): void {
    this.#timer.cancel()
    const { endMs } = this.#host.timeouts
    this.#timer = this.#reactor.clock.after(endMs, () =>
      this.#giveUp(`the host did not let go within ${endMs} ms`),
    )
  }

  /** Closes a connection whose host neither takes nor sends what is under way. Called every now and then. */
  closeIfStalled(): void {
    if (this.#phase === Phase.CLOSED) return
    const sinceUs = this.#reactor.nowUs - this.#host.timeouts.stallMs * 1000
    const { sender } = this.#queue
    if (sender.isSending && sender.sendingSinceUs < sinceUs) this.#giveUp('the host takes no data')
    else if (this.#receivedUs < sinceUs && (this.#receiver.isWithinPayload || this.#queue.isTransferring)) {
      this.#giveUp('the host does not send the data of its commands')
    }
  }

  /** Ends a connection whose host did what it should not, or not what it should. */
  #giveUp(reason: string): void {
    if (this.#phase === Phase.CLOSED) return
    log.warning(`${this.#name}: ${reason}; closing the connection`)
    this.#close()
  }

  #close(): void {
    if (this.#phase === Phase.CLOSED) return
    this.#phase = Phase.CLOSED
    this.#timer.cancel()
    this.#queue.close()
    this.#stream.close()
  }

  #endIfQuiet(): void {
    if (!this.#isStreamClosed || this.#queue.executing > 0 || this.#isEnded) return
    this.#isEnded = true
    const receive = this.#reactor.arena.base + this.#receiver.bufferOffset
    this.#host.ended(this, { ...this.#buffers, receive })
  }

  get #name(): string {
    const { host, port } = this.#stream.remote
    return `host at ${host}:${port}`
  }
}

const FES_NAMES = new Map<number, string>(
  Object.entries(FatalErrorStatus).map(([name, value]) => [value, name]),
)

function fesName(fes: number): string {
  return FES_NAMES.get(fes)!
}
