/** One request in a virtqueue: its memory, which the back end sees, and what it is about. */
import { IoType, Segments } from '../bdev/io.ts'
import type { Execution } from './execution.ts'
import type { Transfer } from './transfer.ts'

/**
 * What a slot has in shared memory. Requests of both kinds of device fit:
 *
 *   0 header, CDB      64 what follows it (range, parameter list)      128 status, response, sense
 */
export const SLOT_BYTES = 256
export const PAYLOAD_AT = 64
export const RESPONSE_AT = 128

export const SlotState = {
  FREE: 0,
  /** The back end has it, or will have it with the next publish. */
  IN_RING: 1,
  /** Waits for room in the ring. */
  READY: 2,
  /** Waits for its time to be tried again. */
  DELAYED: 3,
} as const
export type SlotState = (typeof SlotState)[keyof typeof SlotState]

export class Slot {
  readonly index: number
  readonly address: number
  /** Over the memory of all slots, and where this one's begins. */
  readonly view: DataView
  readonly base: number
  readonly segments: Segments
  /** How many of the segments the device reads; it writes the others. */
  readableCount = 0

  state: SlotState = SlotState.FREE
  /** Whose it is: part of an I/O, or a command of the control thread; neither when its owner has given it up. */
  transfer: Transfer | null = null
  execution: Execution | null = null
  type: IoType = IoType.READ
  firstBlock = 0
  blockCount = 0
  /** Where its data is within that of the I/O. */
  offsetBytes = 0
  /** Its data, in shared memory; 0 when there is none. */
  buffer = 0
  bufferBytes = 0
  /** In which order requests were first sent. */
  sequence = 0
  retries = 0

  constructor(index: number, address: number, view: DataView, segmentCapacity: number) {
    this.index = index
    this.address = address
    this.view = view
    this.base = index * SLOT_BYTES
    this.segments = new Segments(segmentCapacity)
  }

  /** Adds a segment that the device reads. Those come before the ones that it writes. */
  addReadable(address: number, length: number): void {
    this.addWritable(address, length)
    this.readableCount++
  }

  addWritable(address: number, length: number): void {
    const { segments } = this
    segments.addresses[segments.count] = address
    segments.lengths[segments.count] = length
    segments.count++
  }

  /** Adds the buffer, in segments of at most `segmentBytes`. */
  addData(segmentBytes: number): void {
    const isRead = this.type === IoType.READ
    for (let done = 0; done < this.bufferBytes; done += segmentBytes) {
      const length = Math.min(segmentBytes, this.bufferBytes - done)
      if (isRead) this.addWritable(this.buffer + done, length)
      else this.addReadable(this.buffer + done, length)
    }
  }

  clearSegments(): void {
    this.segments.count = 0
    this.readableCount = 0
  }
}
