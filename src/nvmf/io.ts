/**
 * I/O commands of the NVM command set: from a submission queue entry to an I/O of a block device, whatever the
 * transport. Validity is checked here, in one function per command, in the order of the specification's fields.
 *
 *   decode(…) -> status        the entry is checked and copied; nothing refers to it afterwards
 *   (the transport moves the data of a command that sends some)
 *   start(…)  -> STARTED       the device has the I/O; its owner hears by `ioDone`, and asks `next()`
 */
import { BdevIo, type IoOwner, IoType } from '../bdev/io.ts'
import { DSM_RANGES_MAX, DsmRange, Fuse, NvmOpcode } from '../spec/nvme.ts'
import { DNR, Status, StatusCodeType } from '../spec/nvme-status.ts'
import type { Arena } from '../sys/memory.ts'
import type { IoQueue, NamespaceView } from './request.ts'

/** Which way a command's data goes: the two lowest bits of every opcode. */
export const Transfer = { NONE: 0, FROM_HOST: 1, TO_HOST: 2 } as const
export type Transfer = (typeof Transfer)[keyof typeof Transfer]

/** `IoCommand.start`: the device has it. Everything else that `start` returns is a status. */
export const STARTED = -1

const FUSE_MASK = 0x03
const BLOCK_COUNT_MASK = 0xffff
const CDW12_FUA = 0x4000_0000
const DSM_DEALLOCATE = 0x04
const RANGE_COUNT_MASK = DSM_RANGES_MAX - 1

/** One I/O command in flight: preallocated, and used again and again. A transport's request slot extends it. */
export class IoCommand {
  readonly io: BdevIo
  opcode = 0
  fuse: Fuse = Fuse.NORMAL
  /** What the command's data is to be, as decoded: the transport checks it against the SGL. */
  transfer: Transfer = Transfer.NONE
  lengthBytes = 0
  /**
   * The longest SGL that is taken for it. Linux always sends room for the most ranges a Dataset Management command can
   * have, however many it has (drivers/nvme/host/core.c, nvme_setup_discard).
   */
  sglLengthMaxBytes = 0
  namespace: NamespaceView | null = null

  /** Ranges of a Dataset Management command that are still to be done: where the next lies, and how many. */
  #rangeAt = 0
  #rangesLeft = 0
  readonly #arena: Arena

  /** `arena` is where the data lies whose place `start` is given. */
  constructor(owner: IoOwner, tag: number, arena: Arena) {
    // Two segments: a fused compare and write has its halves in two buffers.
    this.io = new BdevIo(owner, 2)
    this.io.tag = tag
    this.#arena = arena
  }

  /** Takes the entry at `sqe` apart. Returns the status to refuse it with, or `SUCCESS`. */
  decode(view: DataView, sqe: number, queue: IoQueue, maxIoSize: number): number {
    this.opcode = view.getUint8(sqe)
    this.fuse = (view.getUint8(sqe + 1) & FUSE_MASK) as Fuse
    this.transfer = Transfer.NONE
    this.lengthBytes = 0
    this.io.fua = false
    this.io.lent = false
    const nsid = view.getUint32(sqe + 4, true)
    switch (this.opcode) {
      case NvmOpcode.READ:
        return this.#decodeTransfer(view, sqe, queue.namespace(nsid), maxIoSize, IoType.READ)
      case NvmOpcode.WRITE:
        return this.#decodeTransfer(view, sqe, queue.namespace(nsid), maxIoSize, IoType.WRITE)
      case NvmOpcode.COMPARE:
        return this.#decodeTransfer(view, sqe, queue.namespace(nsid), maxIoSize, IoType.COMPARE)
      case NvmOpcode.FLUSH:
        return this.#decodeFlush(queue.namespace(nsid))
      case NvmOpcode.WRITE_ZEROES:
        return this.#decodeWriteZeroes(view, sqe, queue.namespace(nsid))
      case NvmOpcode.DATASET_MANAGEMENT:
        return this.#decodeDatasetManagement(view, sqe, queue.namespace(nsid))
      default:
        return Status.INVALID_OPCODE
    }
  }

  /** Read, Write and Compare: `slba` and `nlb`, and data of exactly that many blocks. */
  #decodeTransfer(
    view: DataView,
    sqe: number,
    namespace: NamespaceView | undefined,
    maxIoSize: number,
    type: IoType,
  ): number {
    if (this.fuse !== Fuse.NORMAL && !this.#mayBeFused()) return Status.INVALID_FIELD
    const status = this.#enter(namespace, type)
    if (status !== Status.SUCCESS) return status
    const { io } = this
    const cdw12 = view.getUint32(sqe + 48, true)
    const { info } = this.namespace!.channel!
    const firstBlock = view.getUint32(sqe + 44, true) * 0x1_0000_0000 + view.getUint32(sqe + 40, true)
    const blockCount = (cdw12 & BLOCK_COUNT_MASK) + 1
    const lengthBytes = blockCount * info.blockSize
    if (lengthBytes > maxIoSize) return Status.INVALID_FIELD
    if (firstBlock + blockCount > info.blockCount) return Status.LBA_OUT_OF_RANGE
    io.firstBlock = firstBlock
    io.blockCount = blockCount
    io.fua = (cdw12 & CDW12_FUA) !== 0
    this.transfer = type === IoType.READ ? Transfer.TO_HOST : Transfer.FROM_HOST
    this.lengthBytes = lengthBytes
    this.sglLengthMaxBytes = lengthBytes
    return Status.SUCCESS
  }

  #decodeFlush(namespace: NamespaceView | undefined): number {
    if (this.fuse !== Fuse.NORMAL) return Status.INVALID_FIELD
    this.io.firstBlock = 0
    this.io.blockCount = 0
    return this.#enter(namespace, IoType.FLUSH)
  }

  #decodeWriteZeroes(view: DataView, sqe: number, namespace: NamespaceView | undefined): number {
    if (this.fuse !== Fuse.NORMAL) return Status.INVALID_FIELD
    const status = this.#enter(namespace, IoType.WRITE_ZEROES)
    if (status !== Status.SUCCESS) return status
    const { io } = this
    const cdw12 = view.getUint32(sqe + 48, true)
    io.firstBlock = view.getUint32(sqe + 44, true) * 0x1_0000_0000 + view.getUint32(sqe + 40, true)
    io.blockCount = (cdw12 & BLOCK_COUNT_MASK) + 1
    // DEAC only allows to deallocate; whether a device of ours zeroes by deallocating is its own affair.
    io.fua = (cdw12 & CDW12_FUA) !== 0
    const { info } = this.namespace!.channel!
    return io.firstBlock + io.blockCount > info.blockCount ? Status.LBA_OUT_OF_RANGE : Status.SUCCESS
  }

  #decodeDatasetManagement(view: DataView, sqe: number, namespace: NamespaceView | undefined): number {
    if (this.fuse !== Fuse.NORMAL) return Status.INVALID_FIELD
    const status = this.#enter(namespace, IoType.UNMAP)
    if (status !== Status.SUCCESS) return status
    const count = (view.getUint32(sqe + 40, true) & RANGE_COUNT_MASK) + 1
    const isDeallocate = (view.getUint32(sqe + 44, true) & DSM_DEALLOCATE) !== 0
    // The other attributes are hints about access patterns, and a device that cannot deallocate may ignore that too.
    this.#rangesLeft = isDeallocate && this.namespace!.channel!.info.supports.has(IoType.UNMAP) ? count : 0
    this.transfer = Transfer.FROM_HOST
    this.lengthBytes = count * DsmRange.size
    this.sglLengthMaxBytes = DSM_RANGES_MAX * DsmRange.size
    return Status.SUCCESS
  }

  /** What every command asks of its namespace: it exists, this path may serve it, it is there, it may be written. */
  #enter(namespace: NamespaceView | undefined, type: IoType): number {
    if (namespace === undefined) return Status.INVALID_NAMESPACE_OR_FORMAT
    this.namespace = namespace
    this.io.type = type
    const status = admission(namespace)
    if (status !== Status.SUCCESS) return status
    const isWrite = type !== IoType.READ && type !== IoType.COMPARE && type !== IoType.FLUSH
    if (isWrite && namespace.channel!.info.readOnly) return Status.NAMESPACE_WRITE_PROTECTED
    return Status.SUCCESS
  }

  /** Compare and Write are the one fused operation there is, in this order. */
  #mayBeFused(): boolean {
    return this.fuse === Fuse.FIRST ? this.opcode === NvmOpcode.COMPARE : this.opcode === NvmOpcode.WRITE
  }

  /**
   * True where the device is memory: a read can point to it instead of filling a buffer, and a write may lie anywhere,
   * aligned or not.
   */
  get isOnMemory(): boolean {
    return this.namespace!.channel?.lends === true
  }

  /**
   * Hands the command to the device. `dataAt` is where its data is, or is to go, as an offset into the arena;
   * negative borrows the device's memory. Between `decode` and `start` the namespace may have changed: it is looked at
   * again.
   */
  start(dataAt: number): number {
    const status = admission(this.namespace!)
    if (status !== Status.SUCCESS) return status
    if (this.opcode === NvmOpcode.DATASET_MANAGEMENT) return this.#startRanges(dataAt)
    const { io } = this
    io.segments.count = 0
    io.lent = dataAt < 0 && io.type === IoType.READ
    if (dataAt >= 0) io.segments.set(this.#arena.base + dataAt, this.lengthBytes)
    return this.#submit()
  }

  /** Hands a whole fused operation to the device: this is the Write, `compare` the Compare before it. */
  startFused(compare: IoCommand, compareAt: number, writeAt: number): number {
    const status = admission(this.namespace!)
    if (status !== Status.SUCCESS) return status
    const { io } = this
    const isSameRange =
      compare.namespace === this.namespace &&
      compare.io.firstBlock === io.firstBlock &&
      compare.io.blockCount === io.blockCount
    if (!isSameRange) return Status.INVALID_FIELD
    io.type = IoType.COMPARE_AND_WRITE
    io.lent = false
    io.segments.count = 0
    io.segments.push(this.#arena.base + compareAt, this.lengthBytes)
    io.segments.push(this.#arena.base + writeAt, this.lengthBytes)
    return this.#submit()
  }

  /** After the device has ended its I/O: `STARTED` when the command goes on with another, or the command's status. */
  next(): number {
    const { status } = this.io
    if (status !== Status.SUCCESS || this.opcode !== NvmOpcode.DATASET_MANAGEMENT) return status
    const admitted = admission(this.namespace!)
    return admitted === Status.SUCCESS ? this.#nextRange() : admitted
  }

  /** All ranges are checked before the first is given away. */
  #startRanges(rangesAt: number): number {
    const { blockCount } = this.namespace!.channel!.info
    for (let i = 0; i < this.#rangesLeft; i++) {
      const at = rangesAt + i * DsmRange.size
      const end = DsmRange.slba.get(this.#arena.view, at) + DsmRange.nlb.get(this.#arena.view, at)
      if (end > blockCount) return Status.LBA_OUT_OF_RANGE
    }
    this.#rangeAt = rangesAt
    return this.#nextRange()
  }

  #nextRange(): number {
    const { io } = this
    while (this.#rangesLeft > 0) {
      const at = this.#rangeAt
      this.#rangeAt += DsmRange.size
      this.#rangesLeft--
      io.firstBlock = DsmRange.slba.get(this.#arena.view, at)
      io.blockCount = DsmRange.nlb.get(this.#arena.view, at)
      io.segments.count = 0
      if (io.blockCount > 0) return this.#submit()
    }
    return Status.SUCCESS
  }

  #submit(): number {
    this.io.status = Status.SUCCESS
    this.namespace!.channel!.submit(this.io)
    return STARTED
  }
}

function admission(namespace: NamespaceView): number {
  if (namespace.gate !== Status.SUCCESS) return namespace.gate
  return namespace.channel === null ? Status.NAMESPACE_NOT_READY : Status.SUCCESS
}

/**
 * As `statusField`, of an I/O that a device has ended. A flush that failed is not to be sent again: the next one may
 * succeed though what this one was for is lost, and nobody would be told. Linux repeats it up to five times otherwise.
 */
export function ioStatusField({ type, fua }: BdevIo, status: number): number {
  const isFlush = type === IoType.FLUSH || fua
  return isFlush && status === Status.WRITE_FAULT ? status | DNR : statusField(status)
}

/**
 * The status field of a completion: with Do Not Retry when the same command can only end the same way. What another
 * path or a later moment may cure is left to the host's judgement.
 */
export function statusField(status: number): number {
  switch (status) {
    case Status.SUCCESS:
    case Status.DATA_TRANSFER_ERROR:
    case Status.INTERNAL_ERROR:
    case Status.ABORTED_POWER_LOSS:
    case Status.ABORTED_BY_REQUEST:
    case Status.ABORTED_SQ_DELETION:
    case Status.ABORTED_FAILED_FUSED:
    case Status.ABORTED_MISSING_FUSED:
    case Status.COMMAND_INTERRUPTED:
    case Status.TRANSIENT_TRANSPORT_ERROR:
    case Status.NAMESPACE_NOT_READY:
    case Status.CAPACITY_EXCEEDED:
      return status
    case Status.COMPARE_FAILURE:
      return status | DNR
    default: {
      const type = status >> 8
      return type === StatusCodeType.PATH || type === StatusCodeType.MEDIA ? status : status | DNR
    }
  }
}
