/** A command on its way through the target: what is not on the fast path may allocate. */
import { assert } from '../../core/assert.ts'
import { Sqe } from '../../spec/nvme.ts'
import type { CommandRequest, Completion } from '../request.ts'
import type { Slot } from './slot.ts'

/** Who started a request and hears of its end. */
export interface RequestOwner {
  requestDone(slot: Slot, completion: Completion): void
}

const NOTHING = new Uint8Array(0)

export class CapsuleRequest implements CommandRequest {
  readonly sqe: DataView
  dataOut: Uint8Array = NOTHING
  readonly #slot: Slot
  /** Null once the request is over: completed, or forgotten because its connection has ended. */
  #owner: RequestOwner | null
  #isComplete = false

  /** Copies the entry at `sqe`: the receive buffer is used again. */
  constructor(owner: RequestOwner, slot: Slot, view: DataView, sqe: number) {
    this.#owner = owner
    this.#slot = slot
    const copy = new Uint8Array(Sqe.size)
    copy.set(new Uint8Array(view.buffer, view.byteOffset + sqe, Sqe.size))
    this.sqe = new DataView(copy.buffer)
  }

  get lengthBytes(): number {
    return this.#slot.lengthBytes
  }

  complete(completion: Completion): void {
    assert(!this.#isComplete, 'a request is completed once')
    this.#isComplete = true
    const owner = this.#owner
    this.#owner = null
    owner?.requestDone(this.#slot, completion)
  }

  /** The connection has ended: nobody wants the completion any more. */
  forget(): void {
    this.#owner = null
  }
}
