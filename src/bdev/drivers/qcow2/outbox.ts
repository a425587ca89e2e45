/** Requests of a reactor that does not own the image, on their way to the one that does. */
import { RpcError } from '../../../core/errors.ts'
import type { Reactor } from '../../../reactor/reactor.ts'
import { mapAnonymous, unmap } from '../../../sys/memory.ts'
import type { Uring } from '../../../sys/uring.ts'
import { type BdevIo, IoType } from '../../io.ts'
import { ID_MAX, type Lane, Lanes, SLOTS, State, wordOf } from '../../plugin/lanes.ts'
import { Bell } from './bell.ts'
import { Agreement, BLOCK_SIZE, type Qcow2Device } from './device.ts'
import { doublesAt, writeList } from './inbox.ts'

const LIST_BYTES = 4096

/** One request, and memory for its list of segments. */
class Slot {
  readonly index: number
  io: BdevIo | null = null
  id = 0
  #address = 0
  #bytes = 0
  #list: Float64Array = new Float64Array(0)

  constructor(index: number) {
    this.index = index
  }

  /** The address of the I/O's list, 0 for none. */
  listOf(io: BdevIo): number {
    if (io.type > IoType.WRITE) return 0
    const needed = (1 + io.segments.count * 2) * 8
    if (needed > this.#bytes) {
      this.free()
      this.#bytes = Math.ceil(needed / LIST_BYTES) * LIST_BYTES
      this.#address = mapAnonymous(this.#bytes)
      this.#list = doublesAt(this.#address, this.#bytes / 8)
    }
    writeList(io.segments, this.#list)
    return this.#address
  }

  free(): void {
    if (this.#bytes > 0) unmap(this.#address, this.#bytes)
    this.#bytes = 0
  }
}

export class Outbox {
  readonly #reactor: Reactor
  readonly #agreement: Agreement
  readonly #lane: Lane
  readonly #bell: Bell
  readonly #slots = Array.from({ length: SLOTS }, (_, index) => new Slot(index))
  readonly #free = [...this.#slots]
  /** What found no slot; linked by `next`. */
  #firstWaiting: BdevIo | null = null
  #lastWaiting: BdevIo | null = null
  #answersSeen: number

  constructor(device: Qcow2Device, reactor: Reactor, ring: Uring) {
    this.#reactor = reactor
    this.#agreement = new Agreement(device)
    this.#lane = new Lanes(device.lanes).lane(reactor.index)
    this.#answersSeen = this.#lane.answered
    const fd = this.#lane.openEventfd()
    if (fd < 0) {
      throw new RpcError('EMFILE', 'there is no descriptor left for an image: raise the limit (ulimit -n)')
    }
    this.#bell = new Bell(ring, fd)
    reactor.addPoller(this.#poll)
  }

  submit(io: BdevIo): void {
    const slot = this.#firstWaiting === null ? this.#free.pop() : undefined
    if (slot !== undefined) {
      this.#send(slot, io)
      return
    }
    io.next = null
    if (this.#lastWaiting === null) this.#firstWaiting = io
    else this.#lastWaiting.next = io
    this.#lastWaiting = io
  }

  /** Nothing is outstanding. */
  close(): void {
    this.#reactor.removePoller(this.#poll)
    this.#bell.close()
    for (const slot of this.#slots) slot.free()
  }

  #send(slot: Slot, io: BdevIo): void {
    slot.io = io
    slot.id = (slot.id + 1) % ID_MAX
    const word = wordOf(slot.id, State.SUBMITTED)
    const list = slot.listOf(io)
    this.#lane.submit(slot.index, word, io.type, io.fua, io.firstBlock * BLOCK_SIZE, io.blockCount, list)
    this.#agreement.ring()
  }

  readonly #poll = (): number => {
    const { answered } = this.#lane
    if (answered === this.#answersSeen) return 0
    this.#answersSeen = answered
    let events = 0
    for (const slot of this.#slots) {
      const { io } = slot
      if (io === null || this.#lane.word(slot.index) !== wordOf(slot.id, State.DONE)) continue
      slot.io = null
      this.#free.push(slot)
      io.complete(this.#lane.statusOf(slot.index))
      events++
    }
    this.#sendWaiting()
    return events
  }

  #sendWaiting(): void {
    while (this.#firstWaiting !== null && this.#free.length > 0) {
      const io: BdevIo = this.#firstWaiting
      this.#firstWaiting = io.next as BdevIo | null
      if (this.#firstWaiting === null) this.#lastWaiting = null
      io.next = null
      this.#send(this.#free.pop()!, io)
    }
  }
}
