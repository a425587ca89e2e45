/** The admin queue of a controller: commands as promises. Control path only. */
import { Segments } from '../bdev/io.ts'
import type { SocketAddress } from '../reactor/network.ts'
import type { Reactor } from '../reactor/reactor.ts'
import { AdminOpcode, GetLogPageSqe, IdentifySqe, SetFeaturesSqe, Sqe } from '../spec/nvme.ts'
import type { Cns } from '../spec/nvme-identify.ts'
import { IDENTIFY_SIZE } from '../spec/nvme-identify.ts'
import { STATUS_MASK, Status, statusName } from '../spec/nvme-status.ts'
import {
  CNTLID_DYNAMIC,
  FABRICS_OPCODE,
  FabricsSqe,
  FabricsType,
  fabricsStatusName,
  PropertyGetSqe,
  PropertySetSqe,
  PropertySize,
} from '../spec/nvmf.ts'
import { type CommandEnd, type ConnectOptions, submitConnect } from './fabrics.ts'
import { type QueueEvents, TcpQueue } from './tcp/queue.ts'
import { Transfer } from './tcp/slots.ts'

/** Entries of the admin queue. */
const SIZE = 32

export interface Completion {
  readonly status: number
  readonly dw0: number
  readonly dw1: number
  /** What the command read. */
  readonly data: Uint8Array
}

/** A command that the controller refused, or that was lost with the connection. */
export class CommandError extends Error {
  override readonly name = 'CommandError'
  /** As in `Status`. */
  readonly status: number

  constructor(message: string, status: number) {
    super(message)
    this.status = status
  }
}

export interface AdminQueueOptions {
  readonly remote: SocketAddress
  readonly source: SocketAddress | undefined
  readonly connectTimeoutMs: number
  /** For each command; its end without an answer ends the connection. */
  readonly commandTimeoutMs: number
}

export class AdminQueue implements QueueEvents {
  readonly #reactor: Reactor
  readonly #queue: TcpQueue
  readonly #commandTimeoutMs: number
  readonly #onLost: (reason: string) => void
  #opened: { resolve(): void; reject(error: Error): void } | null = null
  #isOver = false

  /** Starts to connect. `lost` is called once, when the connection is over and every command has ended. */
  constructor(reactor: Reactor, options: AdminQueueOptions, lost: (reason: string) => void) {
    this.#reactor = reactor
    this.#commandTimeoutMs = options.commandTimeoutMs
    this.#onLost = lost
    const { remote, source, connectTimeoutMs } = options
    this.#queue = new TcpQueue(
      reactor,
      { remote, source, timeoutMs: connectTimeoutMs, depth: SIZE - 1 },
      this,
    )
  }

  /** Resolves once the connection is initialised; rejects with the reason why it is not. */
  opened(): Promise<void> {
    return new Promise((resolve, reject) => {
      this.#opened = { resolve, reject }
    })
  }

  /** Idempotent. */
  close(reason: string): void {
    this.#queue.close(reason)
  }

  /** Connects the queue; resolves with dword 0 of the answer. */
  connect(options: Omit<ConnectOptions, 'qid' | 'cntlid' | 'sqSize'>): Promise<number> {
    const connect: ConnectOptions = { ...options, qid: 0, cntlid: CNTLID_DYNAMIC, sqSize: SIZE }
    return new Promise((resolve, reject) => {
      const end = this.#withTimeout('Connect', (statusField, dw0) => {
        const status = statusField & STATUS_MASK
        if (status === Status.SUCCESS) resolve(dw0)
        else reject(new CommandError(`Connect was refused: ${fabricsStatusName(status)}`, status))
      })
      submitConnect(this.#reactor, this.#queue, connect, end)
    })
  }

  /** Reads a property of four or eight bytes. */
  async getProperty(offset: number, size: 4 | 8): Promise<Completion> {
    return this.#execute('Property Get', FABRICS_OPCODE, 0, this.#commandTimeoutMs, (view, at) => {
      FabricsSqe.fctype.set(view, at, FabricsType.PROPERTY_GET)
      const propertySize = size === 8 ? PropertySize.BYTES_8 : PropertySize.BYTES_4
      PropertyGetSqe.propertySize.set(view, at, propertySize)
      PropertyGetSqe.ofst.set(view, at, offset)
    })
  }

  async setProperty(offset: number, value: number): Promise<void> {
    await this.#execute('Property Set', FABRICS_OPCODE, 0, this.#commandTimeoutMs, (view, at) => {
      FabricsSqe.fctype.set(view, at, FabricsType.PROPERTY_SET)
      PropertySetSqe.ofst.set(view, at, offset)
      PropertySetSqe.valueLow.set(view, at, value)
    })
  }

  async identify(cns: Cns, nsid: number): Promise<DataView> {
    const fill = (view: DataView, at: number): void => {
      Sqe.nsid.set(view, at, nsid)
      IdentifySqe.cns.set(view, at, cns)
    }
    const name = `Identify ${cns}`
    const { data } = await this.#execute(
      name,
      AdminOpcode.IDENTIFY,
      IDENTIFY_SIZE,
      this.#commandTimeoutMs,
      fill,
    )
    return new DataView(data.buffer, data.byteOffset, data.length)
  }

  /** Reads `size` bytes, a multiple of four, of a log page from `offset` on; `retain` leaves its event unarmed. */
  async getLogPage(lid: number, offset: number, size: number, retain = false): Promise<DataView> {
    const fill = (view: DataView, at: number): void => {
      Sqe.nsid.set(view, at, 0xffff_ffff)
      GetLogPageSqe.lid.set(view, at, lid)
      GetLogPageSqe.rae.set(view, at, retain ? 1 : 0)
      const dwords = size / 4 - 1
      GetLogPageSqe.numdl.set(view, at, dwords & 0xffff)
      GetLogPageSqe.numdu.set(view, at, dwords >>> 16)
      GetLogPageSqe.lpol.set(view, at, offset)
    }
    const name = `Get Log Page 0x${lid.toString(16)}`
    const { data } = await this.#execute(name, AdminOpcode.GET_LOG_PAGE, size, this.#commandTimeoutMs, fill)
    return new DataView(data.buffer, data.byteOffset, data.length)
  }

  /** Resolves with dword 0 of the answer. */
  async setFeatures(fid: number, cdw11: number): Promise<number> {
    const { dw0 } = await this.#execute(
      `Set Features 0x${fid.toString(16)}`,
      AdminOpcode.SET_FEATURES,
      0,
      this.#commandTimeoutMs,
      (view, at) => {
        SetFeaturesSqe.fid.set(view, at, fid)
        SetFeaturesSqe.cdw11.set(view, at, cdw11)
      },
    )
    return dw0
  }

  /** Resolves with dword 0 of the event, whenever there is one. */
  async awaitEvent(): Promise<number> {
    const { dw0 } = await this.#execute(
      'Asynchronous Event Request',
      AdminOpcode.ASYNC_EVENT_REQUEST,
      0,
      0,
      () => {},
    )
    return dw0
  }

  /** Rejects, and ends the connection, when no answer comes within `timeoutMs`. */
  async keepAlive(timeoutMs: number): Promise<void> {
    await this.#execute('Keep Alive', AdminOpcode.KEEP_ALIVE, 0, timeoutMs, () => {})
  }

  /** Asks for the early end of a command. Resolves with true when the controller did end it. */
  async abort(sqid: number, cid: number): Promise<boolean> {
    const { dw0 } = await this.#execute('Abort', AdminOpcode.ABORT, 0, this.#commandTimeoutMs, (view, at) => {
      Sqe.cdw10.set(view, at, (sqid | (cid << 16)) >>> 0)
    })
    return (dw0 & 1) === 0
  }

  onReady(): void {
    this.#opened?.resolve()
    this.#opened = null
  }

  /** Nothing to do: commands are refused from now on, and `onEnded` follows. */
  onEnding(): void {}

  onCompleted(context: unknown, statusField: number, dw0: number, dw1: number): void {
    ;(context as CommandEnd)(statusField, dw0, dw1)
  }

  onEnded(reason: string): void {
    this.#isOver = true
    this.#opened?.reject(new CommandError(reason, Status.HOST_PATHING_ERROR))
    this.#opened = null
    this.#onLost(reason)
  }

  #execute(
    name: string,
    opcode: number,
    readBytes: number,
    timeoutMs: number,
    fill: (view: DataView, at: number) => void,
  ): Promise<Completion> {
    return new Promise((resolve, reject) => {
      if (this.#isOver || !this.#queue.isReady) {
        reject(new CommandError(`${name}: the connection is over`, Status.HOST_PATHING_ERROR))
        return
      }
      const { arena, buffers } = this.#reactor
      const slot = this.#queue.acquire()
      if (slot < 0) {
        const message = `${name}: ${SIZE - 1} admin commands are outstanding already: try again later`
        reject(new CommandError(message, Status.INTERNAL_ERROR))
        return
      }
      const buffer = readBytes === 0 ? 0 : buffers.acquire(readBytes)
      if (readBytes > 0 && buffer === 0) {
        this.#queue.slots.release(slot)
        reject(new CommandError(`${name}: the reactor has no memory left`, Status.INTERNAL_ERROR))
        return
      }
      const segments = new Segments(1)
      if (buffer !== 0) segments.set(buffer, readBytes)
      const end: CommandEnd = (statusField, dw0, dw1) => {
        const at = buffer - arena.base
        const data = buffer === 0 ? new Uint8Array() : arena.u8.slice(at, at + readBytes)
        if (buffer !== 0) buffers.release(buffer, readBytes)
        const status = statusField & STATUS_MASK
        if (status === Status.SUCCESS) resolve({ status, dw0, dw1, data })
        else reject(new CommandError(`${name} failed: ${statusName(status)}`, status))
      }
      fill(arena.view, this.#queue.begin(slot, opcode) * 4)
      const transfer = readBytes === 0 ? Transfer.NONE : Transfer.FROM_CONTROLLER
      this.#queue.submit(slot, transfer, segments, readBytes, this.#withTimeout(name, end, timeoutMs))
    })
  }

  #withTimeout(name: string, end: CommandEnd, timeoutMs = this.#commandTimeoutMs): CommandEnd {
    if (timeoutMs === 0) return end
    const timer = this.#reactor.clock.after(timeoutMs, () =>
      this.#queue.close(`no answer to ${name} within ${timeoutMs} ms`),
    )
    return (statusField, dw0, dw1) => {
      timer.cancel()
      end(statusField, dw0, dw1)
    }
  }
}
