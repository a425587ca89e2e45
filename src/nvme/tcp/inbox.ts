/**
 * What a host's queue receives: parsed in place in one buffer; the data of a read that has not arrived yet goes straight
 * to where it belongs.
 *
 *     buffer   |  parsed  | head … tail: arrived, not parsed |  free  |
 *
 * While a C2HData PDU is incomplete the next receive has two places: the rest of its data within the I/O's own
 * segment, and what follows it (the next segment, or the buffer).
 */
import type { Stream } from '../../reactor/network.ts'
import type { Reactor } from '../../reactor/reactor.ts'
import { IcResp, PduFlag, PduType, TermReq } from '../../spec/nvme-tcp.ts'
import { memcpy } from '../../sys/memory.ts'
import { bodyFault, type Fault, headerFault } from './pdu-fault.ts'
import type { Slots } from './slots.ts'

const BUFFER_SIZE = 65536

/** What the inbox finds, in the order in which it arrived. Each function returns false to stop parsing. */
export interface InboxEvents {
  onInitialised(cpda: number, maxH2cData: number): boolean
  /** A command ended: `statusField` is the 15-bit status field of its completion. */
  onResponse(slot: number, statusField: number, dw0: number, dw1: number): boolean
  /** The slot's `r2tBytes` and `ttag` say what the controller wants. */
  onR2t(slot: number): boolean
  /** The controller gives up the connection. */
  onTerminated(fes: number, fei: number): boolean
  /** `at` is the offset of the header within the arena. */
  onFault(fault: Fault, at: number, headerBytes: number): boolean
}

export class Inbox {
  readonly #reactor: Reactor
  readonly #slots: Slots
  readonly #events: InboxEvents
  readonly #view: DataView<ArrayBuffer>
  readonly #buffer: number
  /** Offset of the buffer within the arena, and of what has arrived in it. */
  readonly #base: number
  #head = 0
  #tail = 0
  #isInitialised = false
  /** The C2HData PDU whose data is arriving: its command, bytes still to come, flags. */
  #slot = 0
  #dataLeft = 0
  #flags = 0
  /** Bytes of the receive under way that go to segments; what it brings beyond them goes to the buffer. */
  #directBytes = 0

  /** Throws when the reactor has no memory left. */
  constructor(reactor: Reactor, slots: Slots, events: InboxEvents) {
    this.#reactor = reactor
    this.#slots = slots
    this.#events = events
    this.#view = reactor.arena.view
    this.#buffer = reactor.buffers.acquire(BUFFER_SIZE)
    if (this.#buffer === 0) throw new Error('the reactor has no memory left for a queue')
    this.#base = this.#buffer - reactor.arena.base
    this.#head = this.#base
    this.#tail = this.#base
  }

  /** Gives the memory back; no receive may be outstanding. */
  close(): void {
    this.#reactor.buffers.release(this.#buffer, BUFFER_SIZE)
  }

  /** Starts the next receive. */
  arm(stream: Stream): void {
    if (this.#dataLeft > 0) {
      this.#armDirect(stream)
      return
    }
    const size = this.#tail - this.#head
    if (this.#head > this.#base) {
      if (size > 0) this.#reactor.arena.u8.copyWithin(this.#base, this.#head, this.#tail)
      this.#head = this.#base
      this.#tail = this.#base + size
    }
    this.#directBytes = 0
    stream.receive(this.#buffer + size, BUFFER_SIZE - size)
  }

  /** Takes note of `size` received bytes and acts on every PDU that is complete. False when parsing was stopped. */
  received(size: number): boolean {
    const direct = Math.min(size, this.#directBytes)
    if (direct > 0) {
      this.#slots.advance(this.#slot, direct)
      this.#dataLeft -= direct
      if (this.#dataLeft === 0 && !this.#endData()) return false
    }
    this.#tail += size - direct
    return this.#parse()
  }

  #armDirect(stream: Stream): void {
    // Parsing went on until the buffer was empty, or there would be no data left to come.
    this.#head = this.#base
    this.#tail = this.#base
    const slots = this.#slots
    const slot = this.#slot
    const address = slots.address(slot)
    const first = Math.min(slots.contiguousBytes(slot), this.#dataLeft)
    const rest = this.#dataLeft - first
    if (rest === 0) {
      this.#directBytes = first
      stream.receiveSplit(address, first, this.#buffer, BUFFER_SIZE)
      return
    }
    const next = slots.nextSegment(slot)
    const { addresses, lengths } = slots.segments[slot]!
    const second = Math.min(lengths[next]!, rest)
    this.#directBytes = first + second
    stream.receiveSplit(address, first, addresses[next]!, second)
  }

  #parse(): boolean {
    const view = this.#view
    for (;;) {
      if (this.#dataLeft > 0) {
        this.#takeData()
        if (this.#dataLeft > 0) return true
        if (!this.#endData()) return false
        continue
      }
      const have = this.#tail - this.#head
      if (have < 8) return true
      const at = this.#head
      const headFault = headerFault(view, at, this.#isInitialised)
      if (headFault !== null) return this.#events.onFault(headFault, at, 8)
      // The header and, for data, the padding before it; every other PDU is short, so it is awaited whole.
      const isData = view.getUint8(at) === PduType.C2H_DATA
      const needed = isData ? view.getUint8(at + 3) : view.getUint32(at + 4, true)
      if (have < needed) return true
      const fault = bodyFault(view, at, this.#slots)
      if (fault !== null) return this.#events.onFault(fault, at, view.getUint8(at + 2))
      this.#head += needed
      if (!this.#act(at)) return false
    }
  }

  #act(at: number): boolean {
    const view = this.#view
    switch (view.getUint8(at)) {
      case PduType.C2H_DATA:
        this.#slot = view.getUint16(at + 8, true)
        this.#dataLeft = view.getUint32(at + 16, true)
        this.#flags = view.getUint8(at + 1)
        this.#slots.movedBytes[this.#slot]! += this.#dataLeft
        return true
      case PduType.CAPSULE_RESP:
        return this.#events.onResponse(
          view.getUint16(at + 20, true),
          view.getUint16(at + 22, true) >>> 1,
          view.getUint32(at + 8, true),
          view.getUint32(at + 12, true),
        )
      case PduType.R2T: {
        const slot = view.getUint16(at + 8, true)
        this.#slots.ttag[slot] = view.getUint16(at + 10, true)
        this.#slots.r2tBytes[slot] = view.getUint32(at + 16, true)
        return this.#events.onR2t(slot)
      }
      case PduType.IC_RESP:
        this.#isInitialised = true
        return this.#events.onInitialised(IcResp.cpda.get(view, at), IcResp.maxh2cdata.get(view, at))
      default:
        return this.#events.onTerminated(TermReq.fes.get(view, at), TermReq.fei.get(view, at))
    }
  }

  /** Moves data that lies in the buffer to the I/O's segments. */
  #takeData(): void {
    const slots = this.#slots
    const slot = this.#slot
    let size = Math.min(this.#dataLeft, this.#tail - this.#head)
    this.#dataLeft -= size
    while (size > 0) {
      const piece = Math.min(size, slots.contiguousBytes(slot))
      const { base, sizeBytes, u8 } = this.#reactor.arena
      const target = slots.address(slot) - base
      // Within the arena offsets are small integers; addresses given to a library call would each be an allocation.
      if (target >= 0 && target < sizeBytes) u8.copyWithin(target, this.#head, this.#head + piece)
      else memcpy(target + base, base + this.#head, piece)
      slots.advance(slot, piece)
      this.#head += piece
      size -= piece
    }
  }

  /** All data of a PDU is in its place; with the SUCCESS flag that is also the end of its command. */
  #endData(): boolean {
    return (this.#flags & PduFlag.SUCCESS) === 0 || this.#events.onResponse(this.#slot, 0, 0, 0)
  }
}
