/**
 * The commands of one connection, from capsule to response: slots, data buffers, and who executes what. The target
 * executes Connect and everything that is not I/O; I/O goes straight to the device.
 */
import type { BdevIo, IoOwner } from '../../bdev/io.ts'
import { assert } from '../../core/assert.ts'
import type { Stream } from '../../reactor/network.ts'
import type { Reactor } from '../../reactor/reactor.ts'
import { Fuse, NvmOpcode, Sqe } from '../../spec/nvme.ts'
import { DNR, Status } from '../../spec/nvme-status.ts'
import { ADMIN_IN_CAPSULE_SIZE, CapsuleCmd } from '../../spec/nvme-tcp.ts'
import { ConnectSqe, FABRICS_OPCODE, FabricsSqe, FabricsType } from '../../spec/nvmf.ts'
import { ioStatusField, STARTED, Transfer } from '../io.ts'
import type { AdminQueue, Completion, IoQueue, TransportOptions } from '../request.ts'
import { CapsuleRequest, type RequestOwner } from './capsule-request.ts'
import { decodeIo, decodeRequest } from './decode.ts'
import type { ReceiveBuffer } from './receiver.ts'
import { Sender, type SlotOwner } from './sender.ts'
import { Slot, SlotState } from './slot.ts'

/** Memory of a connection besides the data of its commands. */
export interface ConnectionBuffers {
  readonly receive: number
  readonly send: number
  /** As large as the data of a capsule can be. */
  readonly capsule: number
}

/** What a queue needs of its connection. */
export interface QueueHost {
  readonly options: TransportOptions
  /** There is something to flush. */
  markDirty(): void
  /** A buffer was not to be had: `retry` when one is given back, by this connection or another. */
  starve(): void
  /** A buffer was given back. */
  bufferFreed(): void
  /** Hands the first command, a Connect, to the target. */
  connect(request: CapsuleRequest): void
  /** The Connect has succeeded. */
  connected(): void
  /** A slot was given back. */
  slotFreed(): void
  /** A command has done with the data that lies in the receive buffer. */
  unpin(buffer: ReceiveBuffer): void
  /** An I/O has ended, and its slot is being answered or free. */
  ioEnded(): void
}

/** SQHD of a queue without flow control. */
const SQHD_NONE = 0xffff

export class CommandQueue implements IoOwner, RequestOwner, SlotOwner {
  readonly sender: Sender
  /** I/Os that a device has. */
  executing = 0
  /** The queue as the target knows it; both null before the Connect has succeeded. */
  admin: AdminQueue | null = null
  io: IoQueue | null = null

  readonly #host: QueueHost
  readonly #reactor: Reactor
  readonly #view: DataView
  readonly #slots: Slot[] = []
  readonly #free: Slot[] = []
  /** Slots that wait for a buffer, the first come first. */
  readonly #starved: Slot[] = []
  /** The first half of a fused operation whose second half has not come. */
  #fusedFirst: Slot | null = null
  /**
   * A buffer of the queue's own for capsule data. With the pool's alone, a stalled capsule could wait for the buffers
   * of writes whose data is behind it on the wire; with this one its command ends, and the queue goes on.
   */
  readonly #spare: number
  #isSpareTaken = false
  #sqSize = 2
  #sqHead = 0
  #hasFlowControl = true
  #isClosed = false

  constructor(host: QueueHost, reactor: Reactor, stream: Stream, buffers: ConnectionBuffers) {
    this.#host = host
    this.#reactor = reactor
    this.#view = reactor.arena.view
    this.#spare = reactor.arena.offsetOf(buffers.capsule)
    this.sender = new Sender(reactor, stream, this, buffers.send, 1)
    // One slot: until the Connect has been answered no second command is looked at.
    this.#grow(1)
  }

  /** Bytes of data a capsule may hold. Admin queues, and every queue before its Connect, take a full Connect. */
  get capsuleDataMax(): number {
    return this.io === null ? ADMIN_IN_CAPSULE_SIZE : this.#host.options.inCapsuleDataSize
  }

  /** Some command waits for the host to send its data. */
  get isTransferring(): boolean {
    return this.#slots.some(slot => slot.state === SlotState.TRANSFERRING)
  }

  becomeAdmin(queue: AdminQueue, sqSize: number): void {
    assert(this.admin === null && this.io === null, 'a connection becomes a queue once')
    this.admin = queue
    this.#sqSize = sqSize
    this.#grow(sqSize)
  }

  becomeIo(queue: IoQueue, sqSize: number): void {
    assert(this.admin === null && this.io === null, 'a connection becomes a queue once')
    this.io = queue
    this.#sqSize = sqSize
    this.#grow(sqSize)
  }

  #grow(count: number): void {
    this.sender.resize(count)
    while (this.#slots.length < count) {
      const slot = new Slot(this.#slots.length, this, this.#reactor.arena)
      this.#slots.push(slot)
      this.#free.push(slot)
    }
  }

  /** See `PduHandler.capsule`. */
  capsule(at: number, dataBytes: number, dataAt: number, buffer: ReceiveBuffer): Slot | null {
    const slot = this.#free.pop()
    if (slot === undefined) return null
    const sqe = at + CapsuleCmd.sqe.offset
    const view = this.#view
    const { maxIoSize } = this.#host.options
    slot.begin(view.getUint16(sqe + 2, true))
    if (this.io !== null && view.getUint8(sqe) !== FABRICS_OPCODE) {
      decodeIo(slot, view, sqe, dataBytes, this.io, maxIoSize)
    } else {
      slot.request = new CapsuleRequest(this, slot, view, sqe)
      decodeRequest(slot, view, sqe, dataBytes, maxIoSize)
    }
    if (dataBytes > 0) {
      if (dataAt >= 0 && this.#takesInPlace(slot)) this.#pin(slot, dataAt, buffer)
      else if (!this.#takeSpare(slot) && !this.#acquire(slot, dataBytes)) {
        this.#free.push(slot)
        return null
      }
    }
    this.#advance()
    if ((slot.fuse !== Fuse.NORMAL || this.#fusedFirst !== null) && slot.request === null) this.#fuse(slot)
    if (slot.buffer >= 0) {
      slot.state = SlotState.RECEIVING
      slot.dataAt = slot.buffer + slot.dataOffset
    } else this.#admit(slot)
    return slot
  }

  /** One more entry of the submission queue has been taken. */
  #advance(): void {
    this.#sqHead++
    if (this.#sqHead === this.#sqSize) this.#sqHead = 0
    if (this.#hasFlowControl) this.sender.sqhd = this.#sqHead
  }

  #takesInPlace(slot: Slot): boolean {
    const isWrite = slot.request === null && slot.opcode === NvmOpcode.WRITE && slot.fuse === Fuse.NORMAL
    return isWrite && slot.status === 0 && slot.isOnMemory
  }

  #pin(slot: Slot, dataAt: number, buffer: ReceiveBuffer): void {
    slot.pinned = buffer
    slot.dataAt = dataAt + slot.dataOffset
    buffer.pins++
  }

  #unpin(slot: Slot, buffer: ReceiveBuffer): void {
    slot.pinned = null
    this.#host.unpin(buffer)
  }

  /** The slot that waits for data under this transfer tag. */
  transferring(ttag: number): Slot | undefined {
    const slot = this.#slots[ttag]
    return slot?.state === SlotState.TRANSFERRING ? slot : undefined
  }

  /** A PDU's data is in the slot's buffer. */
  placed(slot: Slot, dataBytes: number, isIntact: boolean): void {
    if (!isIntact && slot.status === 0) slot.status = Status.TRANSIENT_TRANSPORT_ERROR
    if (slot.state === SlotState.RECEIVING) {
      this.#admit(slot)
      return
    }
    slot.arrivedBytes += dataBytes
    if (slot.arrivedBytes === slot.lengthBytes) this.#run(slot)
  }

  /** A command that is entirely here: gets a buffer if it needs one, and asks the host for its data. */
  #admit(slot: Slot): void {
    if (slot.status === 0) {
      const wantsData = slot.transfer === Transfer.FROM_HOST && slot.arrivedBytes < slot.lengthBytes
      const givesData = slot.transfer === Transfer.TO_HOST && (slot.request !== null || !slot.isOnMemory)
      if (wantsData || givesData) {
        if (!this.#acquire(slot, slot.lengthBytes)) {
          slot.state = SlotState.STARVED
          this.#starved.push(slot)
          return
        }
        slot.dataAt = slot.buffer
      }
      if (wantsData) {
        slot.state = SlotState.SOLICITING
        this.sender.push(slot)
        this.#host.markDirty()
        return
      }
    }
    this.#run(slot)
  }

  /** Executes a command whose data is here; a command that was refused is answered. */
  #run(slot: Slot): void {
    if (slot.isFused) this.#pair(slot)
    else if (slot.status !== 0) this.#answer(slot)
    else if (slot.request !== null) this.#execute(slot, slot.request)
    else {
      slot.state = SlotState.EXECUTING
      this.executing++
      const status = slot.start(slot.dataAt)
      if (status !== STARTED) this.#ended(slot, status)
    }
  }

  #execute(slot: Slot, request: CapsuleRequest): void {
    slot.state = SlotState.REQUESTED
    if (slot.transfer === Transfer.FROM_HOST) request.dataOut = this.#bytes(slot.dataAt, slot.lengthBytes)
    if (this.admin !== null) this.admin.execute(request)
    else if (this.io !== null) this.io.execute(request)
    else if (isConnect(request.sqe)) this.#host.connect(request)
    else request.complete({ status: Status.COMMAND_SEQUENCE_ERROR, doNotRetry: true })
  }

  /** For `CapsuleRequest` only. */
  requestDone(slot: Slot, completion: Completion): void {
    const { status, data } = completion
    slot.status = completion.doNotRetry === true ? status | DNR : status
    slot.dw0 = (completion.dw0 ?? 0) | 0
    slot.dw1 = (completion.dw1 ?? 0) | 0
    if (status === Status.SUCCESS && data !== undefined && slot.transfer === Transfer.TO_HOST) {
      slot.answerBytes = Math.min(data.length, slot.lengthBytes)
      this.#bytes(slot.dataAt, slot.answerBytes).set(data.subarray(0, slot.answerBytes))
    }
    const { sqe } = slot.request!
    if (status === Status.SUCCESS && isConnect(sqe)) this.#connected(sqe)
    this.#answer(slot)
  }

  #connected(sqe: DataView): void {
    if (ConnectSqe.disableSqFlow.get(sqe, 0) === 1) {
      this.#hasFlowControl = false
      this.sender.sqhd = SQHD_NONE
      // SUCCESS leaves out the response and with it SQHD, which only a queue without flow control can spare.
      this.sender.sendsSuccess = this.#host.options.c2hSuccess
    }
    this.#host.connected()
  }

  /** For the device only. */
  ioDone(io: BdevIo): void {
    const slot = this.#slots[io.tag]!
    const status = this.#isClosed ? io.status : slot.next()
    if (status !== STARTED) this.#ended(slot, status)
  }

  #ended(slot: Slot, status: number): void {
    this.executing--
    if (slot.pinned !== null) this.#unpin(slot, slot.pinned)
    slot.isLoan = slot.io.lent && status === Status.SUCCESS
    if (slot.isFused) this.#endPair(slot, status)
    else {
      slot.status = ioStatusField(slot.io, status)
      if (status === Status.SUCCESS && slot.transfer === Transfer.TO_HOST) slot.answerBytes = slot.lengthBytes
      this.#answer(slot)
    }
    this.#host.ioEnded()
  }

  #answer(slot: Slot): void {
    slot.state = SlotState.ANSWERING
    if (this.#isClosed) {
      this.release(slot)
      return
    }
    this.sender.push(slot)
    this.#host.markDirty()
  }

  // Fused operations: a Compare and the Write right behind it (NVM Command Set 1.1, section 3.3.1; Base 2.1, 3.4.2).

  /** Joins a command to the one before it, or finds that one of them stands alone. */
  #fuse(slot: Slot): void {
    const first = this.#fusedFirst
    this.#fusedFirst = null
    const { fuse, opcode } = slot
    const isSecond = fuse === Fuse.SECOND && opcode === NvmOpcode.WRITE
    if (first !== null && isSecond) {
      first.partner = slot
      slot.partner = first
      slot.isFused = true
      return
    }
    if (first !== null) this.#unfuse(first)
    if (isSecond && slot.status === 0) slot.status = Status.ABORTED_MISSING_FUSED
    if (fuse !== Fuse.FIRST || opcode !== NvmOpcode.COMPARE) return
    slot.isFused = true
    this.#fusedFirst = slot
  }

  /** The command after `first` was not its second half. */
  #unfuse(first: Slot): void {
    first.isFused = false
    if (first.status === 0) first.status = Status.ABORTED_MISSING_FUSED
    // One that still waits for its data is answered when that has come.
    if (first.state === SlotState.PAIRING) this.#answer(first)
  }

  /** One half has its data: executes both when the other has its own. */
  #pair(slot: Slot): void {
    slot.state = SlotState.PAIRING
    const { partner } = slot
    if (partner === null || partner.state !== SlotState.PAIRING) return
    const first = slot.fuse === Fuse.FIRST ? slot : partner
    const second = first === slot ? partner : slot
    first.state = SlotState.EXECUTING
    second.state = SlotState.EXECUTING
    if (first.status !== 0 || second.status !== 0) {
      if (first.status === 0) first.status = Status.ABORTED_FAILED_FUSED
      if (second.status === 0) second.status = Status.ABORTED_FAILED_FUSED
      this.#answer(first)
      this.#answer(second)
      return
    }
    this.executing++
    const status = second.startFused(first, first.dataAt, second.dataAt)
    if (status !== STARTED) this.#ended(second, status)
  }

  /** A fused operation has ended; its failure is the Compare's, and the Write did not take place. */
  #endPair(second: Slot, status: number): void {
    const first = second.partner!
    first.status = ioStatusField(second.io, status)
    second.status = status === Status.SUCCESS ? 0 : Status.ABORTED_FAILED_FUSED
    this.#answer(first)
    this.#answer(second)
  }

  // Buffers and slots.

  #acquire(slot: Slot, size: number): boolean {
    const address = this.#reactor.buffers.acquire(size)
    if (address === 0) {
      this.#host.starve()
      return false
    }
    slot.buffer = this.#reactor.arena.offsetOf(address)
    slot.bufferSize = size
    return true
  }

  #takeSpare(slot: Slot): boolean {
    if (this.#isSpareTaken) return false
    this.#isSpareTaken = true
    slot.buffer = this.#spare
    return true
  }

  #bytes(offset: number, size: number): Uint8Array {
    return this.#reactor.arena.u8.subarray(offset, offset + size)
  }

  /** Nothing refers to the slot's data any more. */
  release(slot: Slot): void {
    if (slot.isLoan) {
      slot.isLoan = false
      const { io } = slot
      io.channel!.release(io)
    }
    if (slot.pinned !== null) this.#unpin(slot, slot.pinned)
    if (slot.buffer === this.#spare) {
      slot.buffer = -1
      this.#isSpareTaken = false
    } else if (slot.buffer >= 0) {
      this.#reactor.buffers.release(this.#reactor.arena.base + slot.buffer, slot.bufferSize)
      slot.buffer = -1
      this.#host.bufferFreed()
    }
    slot.state = SlotState.FREE
    this.#free.push(slot)
    this.#host.slotFreed()
  }

  get isStarved(): boolean {
    return this.#starved.length > 0
  }

  /** Tries again to get buffers for the commands that wait for one. */
  retry(): void {
    for (let count = this.#starved.length; count > 0; count--) {
      const slot = this.#starved.shift()!
      this.#admit(slot)
    }
  }

  /** Asks for the early end of the command `cid`. True when it has been ended with `ABORTED_BY_REQUEST`. */
  abort(cid: number): boolean {
    const slot = this.#slots.find(candidate => candidate.state !== SlotState.FREE && candidate.cid === cid)
    // The halves of a fused operation know each other by their slots, so neither ends without the other.
    if (slot === undefined || slot.isFused) return false
    if (slot.state === SlotState.STARVED) {
      this.#starved.splice(this.#starved.indexOf(slot), 1)
      slot.status = Status.ABORTED_BY_REQUEST
      this.#answer(slot)
      return true
    }
    // A command whose data is on its way ends in its own time.
    if (slot.state !== SlotState.EXECUTING) return false
    const { io } = slot
    io.channel!.abort(io)
    return io.status === Status.ABORTED_BY_REQUEST
  }

  /** The connection has ended: forgets what the target has, asks the devices to hurry, drops the rest in `drain`. */
  close(): void {
    this.#isClosed = true
    for (const slot of this.#slots) {
      slot.request?.forget()
      const hasIo = slot.state === SlotState.EXECUTING && !(slot.isFused && slot.fuse === Fuse.FIRST)
      if (hasIo) slot.io.channel!.abort(slot.io)
    }
    this.admin?.closed()
    this.io?.closed()
  }

  /** The stream refers to no memory any more: releases every slot that no device has. */
  drain(): void {
    for (const slot of this.#slots) {
      if (slot.state !== SlotState.FREE && slot.state !== SlotState.EXECUTING) this.release(slot)
    }
  }
}

function isConnect(sqe: DataView): boolean {
  return Sqe.opcode.get(sqe, 0) === FABRICS_OPCODE && FabricsSqe.fctype.get(sqe, 0) === FabricsType.CONNECT
}
