/** One request of a guest: a descriptor chain whose every address was checked and translated. */
import { BdevIo, type IoOwner, Segments } from '../bdev/io.ts'
import type { GuestMemory } from './guest-memory.ts'

/** A device on a reactor: what stands behind the queues of a session. */
export interface VirtioDevice {
  /** Starts a request. It ends with `request.complete()`, exactly once, now or later. */
  start(request: GuestRequest): void
  /** `request.io`, which the device submitted, has ended. */
  ioDone(request: GuestRequest): void
}

/** The queue that a request came from. */
export interface RequestQueue {
  readonly index: number
  readonly device: VirtioDevice
  readonly memory: GuestMemory
  /** Called once for each request that `VirtioDevice.start` was given. */
  complete(request: GuestRequest, writtenBytes: number): void
}

/** Most requests have a header, one or two pieces of data, and a status. */
const SEGMENTS_MIN = 8

/**
 * Pooled: one for each descriptor that can head a chain, made when it first does. What the guest may write to again at any
 * time (the chain itself) is not looked at once the request has started.
 */
export class GuestRequest implements IoOwner {
  readonly queue: RequestQueue
  /** Head descriptor of a split ring, buffer id of a packed one. */
  readonly id: number
  /** Host addresses: first what the device reads, then what it writes. */
  segments: Segments
  /** How many of them the device reads. */
  readableCount = 0
  readableBytes = 0
  writableBytes = 0
  /** The device's to use. */
  readonly io: BdevIo
  /** The device's own notes, valid until `complete`. */
  step = 0
  context: unknown = null
  /** Submitted to the device and not completed. */
  isOutstanding = false
  /** Packed: how many ring entries the chain takes. */
  entryCount = 1

  constructor(queue: RequestQueue, id: number) {
    this.queue = queue
    this.id = id
    this.segments = new Segments(SEGMENTS_MIN)
    this.io = new BdevIo(this, SEGMENTS_MIN)
  }

  /** Tells the guest: `writtenBytes` of the writable segments, from their start, were written. */
  complete(writtenBytes: number): void {
    this.queue.complete(this, writtenBytes)
  }

  ioDone(): void {
    this.queue.device.ioDone(this)
  }
}
