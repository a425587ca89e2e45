/**
 * The device's side of a virtqueue, whatever its layout (Virtual I/O Device specification 1.2, sections 2.7 split and 2.8
 * packed). `Queue` decides when to look, when to publish and when to interrupt; a ring knows how.
 */
import type { GuestRequest } from './request.ts'

/** What a guest did that no driver does: the queue is not looked at any more. */
export class RingFault extends Error {
  override readonly name = 'RingFault'
}

/** How a ring gets the pooled request of a descriptor or buffer id. */
export type RequestOf = (id: number) => GuestRequest

/** Made with `(start: StartQueue, memory: GuestMemory, requestOf: RequestOf)`, which throws `RingFault` too. */
export interface Ring {
  /**
   * Takes the next request that the guest made available: checked, translated and noted in the inflight region. Null when
   * there is none. Throws `RingFault` (that is no I/O path: the queue ends).
   */
  take(): GuestRequest | null
  /** The requests that an earlier process had taken and not answered, in their order, one a call; then null. */
  takeInflight(): GuestRequest | null
  /** Writes the used entry of a request that `take` returned. The guest does not see it before `publish`. */
  put(request: GuestRequest, writtenBytes: number): void
  /** Shows the guest everything that was put, and forgets it in the inflight region. A full memory fence. */
  publish(): void
  /** After `publish`: whether the guest wants an interrupt for what was published since this was last asked. */
  wantsCall(): boolean
  /** Asks the guest for a notification of the next request. Returns true when one is there already: look again then. */
  enableNotifications(): boolean
  /** The guest need not notify. Best effort: it may do so. */
  disableNotifications(): void
  /** As SET_VRING_BASE has it: where to go on. Valid while nothing is outstanding. */
  base(): number
}
