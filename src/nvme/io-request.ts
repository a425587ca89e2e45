/** What a multipath channel keeps of an I/O, or of a part of one that is too long for one command. Pooled. */
import { type BdevIo, IoType, Segments } from '../bdev/io.ts'
import type { Timer } from '../core/clock.ts'
import { Status } from '../spec/nvme-status.ts'
import type { IoPath } from './io-path.ts'
import type { NvmeChannel } from './nvme-channel.ts'

export class IoRequest {
  readonly channel: NvmeChannel
  /** The I/O; null while the request lies in its pool. */
  io: BdevIo | null = null
  type: IoType = IoType.READ
  firstBlock = 0
  blockCount = 0
  segments: Segments
  /** The path it was last submitted to. */
  path: IoPath | null = null
  /** Attempts that ended with a retryable status of the controller's. */
  retries = 0
  /** To be ended rather than tried again. */
  isAborted = false
  /** The host gave up waiting for this attempt. */
  isOverdue = false
  /** Runs while the controller's retry delay does. */
  timer: Timer | null = null
  /** Waits for a path or for a slot, linked by `next`. */
  isQueued = false
  next: IoRequest | null = null

  /** The request that stands for the whole I/O when it is split; itself otherwise. */
  whole: IoRequest = this
  /** Parts still outstanding, and the first failure among them. */
  parts = 0
  partsStatus: number = Status.SUCCESS

  /** The range list of Dataset Management lies here, 16 bytes in the arena; 0 until it is first needed. */
  rangeAddress = 0
  /** This request's own list: a part of a longer one, or the range list. */
  #own: Segments | null = null

  constructor(channel: NvmeChannel, segments: Segments) {
    this.channel = channel
    this.segments = segments
  }

  start(io: BdevIo, firstBlock: number, blockCount: number): void {
    this.io = io
    this.type = io.type
    this.firstBlock = firstBlock
    this.blockCount = blockCount
    this.segments = io.segments
    this.path = null
    this.retries = 0
    this.isAborted = false
    this.isOverdue = false
    this.isQueued = false
    this.next = null
    this.whole = this
    this.parts = 0
    this.partsStatus = Status.SUCCESS
  }

  /** Makes the request's list `size` bytes of the I/O's data, from `offset` on. */
  takeSlice(offset: number, size: number): void {
    const slice = this.#ownSegments(this.io!.segments.count)
    this.io!.segments.slice(offset, size, slice)
    this.segments = slice
  }

  /** Makes the request's list the 16 bytes of its range list. */
  takeRange(): void {
    this.#ownSegments(1).push(this.rangeAddress, 16)
    this.segments = this.#own!
  }

  #ownSegments(capacity: number): Segments {
    if (this.#own === null || this.#own.capacity < capacity) this.#own = new Segments(capacity)
    this.#own.count = 0
    return this.#own
  }
}
