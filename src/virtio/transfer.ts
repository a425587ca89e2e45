/** One I/O on its way through a virtqueue: one request, or several when it is larger than a request may be. Pooled. */
import { type BdevIo, IoType, Segments } from '../bdev/io.ts'
import { Status } from '../spec/nvme-status.ts'
import { blocksMax, carriesData } from './codec.ts'
import type { VirtioChannel } from './virtio-channel.ts'

export class Transfer {
  readonly channel: VirtioChannel
  /** Null while the transfer lies in its pool. */
  io: BdevIo | null = null
  /** What is being sent: a flush at last, for a write that must be on stable storage. */
  type: IoType = IoType.READ
  /** Blocks for which requests were made, of `blockCount`. */
  issuedBlocks = 0
  blockCount = 0
  /** Requests that were made and have not ended. */
  outstanding = 0
  /** The first failure. */
  status: number = Status.SUCCESS
  isIssued = false
  /** Its early end was asked for. */
  isAborted = false
  /** Waits for room in the ring or for the connection, linked by `next`. */
  isQueued = false
  next: Transfer | null = null
  /** Blocks in each request but the last. */
  #partBlocks = 1
  #mustFlush = false
  #isCut = false

  constructor(channel: VirtioChannel) {
    this.channel = channel
  }

  start(io: BdevIo): void {
    const { unit } = this.channel
    this.io = io
    this.type = io.type
    this.issuedBlocks = 0
    this.blockCount = io.blockCount
    this.outstanding = 0
    this.status = Status.SUCCESS
    this.isIssued = false
    this.isAborted = false
    this.isQueued = false
    this.next = null
    this.#isCut = false
    this.#partBlocks = Math.max(1, blocksMax(unit, io.type))
    this.#mustFlush = io.fua && unit.hasCache && io.type !== IoType.READ && io.type !== IoType.FLUSH
    if (io.lent) this.#makeRoomForLoans(io)
  }

  /** Blocks of the next request. */
  get nextBlocks(): number {
    return Math.min(this.#partBlocks, this.blockCount - this.issuedBlocks)
  }

  /** The next request was made. */
  issued(): void {
    this.outstanding++
    if (this.type === IoType.FLUSH) {
      this.isIssued = true
      return
    }
    this.issuedBlocks += this.nextBlocks
    this.isIssued = this.issuedBlocks === this.blockCount
  }

  /** No more requests are to be made. */
  abort(): void {
    this.isAborted = true
    if (!this.isIssued) this.cut()
  }

  /** Not all of it was done, and no more of it will be. */
  cut(): void {
    this.isIssued = true
    this.#isCut = true
  }

  /** How its I/O ends: with the first failure, if there was one. */
  get outcome(): number {
    if (this.status !== Status.SUCCESS) return this.status
    return this.#isCut ? Status.ABORTED_BY_REQUEST : Status.SUCCESS
  }

  /** A request ended. True when there is a flush to be sent now; otherwise see `isDone`. */
  ended(status: number): boolean {
    this.outstanding--
    if (status !== Status.SUCCESS && this.status === Status.SUCCESS) this.status = status
    if (this.status !== Status.SUCCESS) this.isIssued = true
    if (!this.isDone || this.outcome !== Status.SUCCESS || !this.#mustFlush) return false
    if (this.isAborted) {
      this.cut()
      return false
    }
    this.#mustFlush = false
    this.type = IoType.FLUSH
    this.isIssued = false
    return true
  }

  get isDone(): boolean {
    return this.isIssued && this.outstanding === 0
  }

  /** Points the I/O to what was read for it. */
  lend(offsetBytes: number, address: number, length: number): void {
    const { segments } = this.io!
    const part = offsetBytes / (this.#partBlocks * this.channel.info.blockSize)
    segments.addresses[part] = address
    segments.lengths[part] = length
  }

  get hasData(): boolean {
    return carriesData(this.type)
  }

  #makeRoomForLoans(io: BdevIo): void {
    const parts = Math.ceil(io.blockCount / this.#partBlocks)
    // The owner keeps the longer list for its next I/O, so this happens once.
    if (io.segments.capacity < parts) io.segments = new Segments(parts)
    io.segments.addresses.fill(0, 0, parts)
    io.segments.count = parts
  }
}
