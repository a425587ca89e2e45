/** One request of a guest: a descriptor chain whose every address was checked and translated. */
import { BdevIo, type IoOwner, Segments } from '../../bdev/io.ts'
import type { DeviceDescription, SendEvent } from '../messages.ts'
import type { GuestMemory } from './guest-memory.ts'

/** A device on a reactor: what stands behind the queues of a session. `open-device.ts` makes it from its description. */
export interface VirtioDevice {
  /** Where the guest leaves buffers for events. They are not started: the device takes one when it has something to tell. */
  readonly eventQueue: number | null
  /** Starts a request. It ends with `request.complete()`, exactly once, now or later. */
  start(request: GuestRequest): void
  /** `request.io`, which the device submitted, has ended. */
  ioDone(request: GuestRequest): void
  /**
   * Goes over to another description of the same kind. Resolves when what that lacks (a bdev, a SCSI target) has nothing
   * outstanding and its channel is closed.
   */
  update(description: DeviceDescription): Promise<void>
  /** Puts the event into a buffer of the event queue, or notes that the guest missed one when there is none. */
  sendEvent(event: SendEvent, queue: RequestQueue): void
  /**
   * The front end is gone: a request that was started and not completed is to end soon. Where that is because it was
   * stopped, `request.io.status` is `ABORTED_BY_REQUEST`: it is then kept for the next front end instead of answered.
   */
  abort(request: GuestRequest): void
  /** Closes its channels. Nothing is outstanding. */
  close(): void
}

/** The queue that a request came from. */
export interface RequestQueue {
  readonly index: number
  readonly device: VirtioDevice
  readonly memory: GuestMemory
  /** The next buffer of the event queue, or null: see `VirtioDevice.eventQueue`. It ends with `complete`, at once. */
  take(): GuestRequest | null
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
  /** Host addresses: first what the device reads, then what it writes. Grows to the longest list seen. */
  readonly segments: Segments
  /** How many of them the device reads. */
  readableCount = 0
  readableBytes = 0
  writableBytes = 0
  /** The device's to use. */
  readonly io: BdevIo
  /** The device's own notes, valid until `complete`. */
  step = 0
  context: unknown = null
  /** Started and not completed: the queue's note. */
  isOutstanding = false
  /** What it is charged with: `RequestBudget`'s note. */
  weight = 0
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
