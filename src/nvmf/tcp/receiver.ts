/**
 * Everything that comes from the host. One receive buffer is parsed in place; a payload that is not all there is
 * received straight to where it belongs, and what follows it into the buffer again.
 *
 *   buffer  | capsule | capsule + data | H2CData | the beginning of a hea|
 *             in place   copied out      copied     moved to the front before the next receive
 *
 * Parsing stops ("stalls") at a command for which there is no slot or no buffer; nothing more is received until it goes
 * on. That is the back-pressure a host feels.
 */
import { crc32c } from '../../core/crc32c.ts'
import type { Stream } from '../../reactor/network.ts'
import type { Reactor } from '../../reactor/reactor.ts'
import { DIGEST_SIZE, H2cData, PduHeader, PduType } from '../../spec/nvme-tcp.ts'
import { type Arena, memcpy, viewAt } from '../../sys/memory.ts'
import { checkCommonHeader, checkH2cData, Fault, headerBytes, type PduFault, type PduRules } from './check.ts'
import type { Slot } from './slot.ts'

/** What the PDUs are for. Offsets are into the arena's views. */
export interface PduHandler {
  /** False once no further PDU is wanted. */
  readonly isListening: boolean
  icReq(at: number): PduFault | null
  termReq(at: number): void
  /** A command with `dataBytes` of data in its capsule. Null when it cannot be taken now. */
  capsule(at: number, dataBytes: number): Slot | null
  /** The slot that waits for data under this transfer tag. */
  transferring(ttag: number): Slot | undefined
  /** All data of a PDU is in its place, `isIntact` unless its digest says otherwise. */
  placed(slot: Slot, dataBytes: number, isIntact: boolean): void
}

const RECEIVE_SIZE = 65536

export class Receiver {
  static readonly BUFFER_SIZE = RECEIVE_SIZE

  readonly rules: PduRules
  /** A command waits for a slot or a buffer: `parse` again when there may be one. */
  isStalled = false
  /** Where the PDU begins that a fault was found in. */
  faultAt = 0

  readonly #handler: PduHandler
  readonly #arena: Arena
  readonly #buffer: number
  /** What has been received and not yet parsed, as offsets into the arena's views. */
  readonly #start: number
  #head: number
  #tail: number

  /** The payload that is arriving: whose it is, where its rest goes, how much that is. */
  #slot: Slot | null = null
  #address = 0
  #missing = 0
  #payload = 0
  #payloadBytes = 0

  /** `buffer` is of at least `Receiver.BUFFER_SIZE` bytes. */
  constructor(reactor: Reactor, handler: PduHandler, rules: PduRules, buffer: number) {
    this.rules = rules
    this.#handler = handler
    this.#arena = reactor.arena
    this.#buffer = buffer
    this.#start = reactor.arena.offsetOf(buffer)
    this.#head = this.#start
    this.#tail = this.#start
  }

  /** A data PDU has begun and not ended. */
  get isWithinPayload(): boolean {
    return this.#slot !== null
  }

  /** Bytes of the PDU at `faultAt` that are there. */
  get availableBytes(): number {
    return this.#tail - this.faultAt
  }

  /** Starts the next receive. Everything before a stall has been parsed, so less than a header is left. */
  arm(stream: Stream): void {
    if (this.#missing > 0) {
      this.#head = this.#start
      this.#tail = this.#start
      stream.receiveSplit(this.#address, this.#missing, this.#buffer, RECEIVE_SIZE)
      return
    }
    const left = this.#tail - this.#head
    if (left > 0 && this.#head > this.#start) this.#arena.u8.copyWithin(this.#start, this.#head, this.#tail)
    this.#head = this.#start
    this.#tail = this.#start + left
    stream.receive(this.#buffer + left, RECEIVE_SIZE - left)
  }

  /** Takes note of `size` received bytes. */
  received(size: number): void {
    if (this.#missing > 0) {
      const placed = Math.min(size, this.#missing)
      this.#address += placed
      this.#missing -= placed
      size -= placed
    }
    this.#tail += size
  }

  /** Forgets what has come: the connection is given up. */
  discard(): void {
    this.#slot = null
    this.#missing = 0
    this.#head = this.#start
    this.#tail = this.#start
    this.isStalled = false
  }

  /** Takes all complete PDUs. Returns what is wrong with one that must not be. */
  parse(): PduFault | null {
    const { view } = this.#arena
    const { rules } = this
    const handler = this.#handler
    this.isStalled = false
    while (handler.isListening) {
      if (this.#slot !== null && !this.#endPayload(this.#slot)) return null
      const at = this.#head
      const available = this.#tail - at
      if (available < PduHeader.size) return null
      this.faultAt = at
      const fault = checkCommonHeader(view, at, rules)
      if (fault !== null) return fault
      const bare = headerBytes(view, at, rules)
      const plen = view.getUint32(at + 4, true)
      // A digest follows the data, so a PDU with data is longer than its header; a PDO beyond the header means padding.
      const type = view.getUint8(at)
      const hasData = plen > bare && type >= PduType.CAPSULE_CMD
      const dataAt = hasData ? view.getUint8(at + 3) : bare
      if (available < dataAt) return null
      const failed = this.#dispatch(type, at, dataAt, hasData ? plen - dataAt - rules.dataDigest : 0)
      if (failed !== null) return failed
      if (this.isStalled) return null
    }
    return null
  }

  #dispatch(type: number, at: number, dataAt: number, dataBytes: number): PduFault | null {
    switch (type) {
      case PduType.CAPSULE_CMD:
        if (!this.#isHeaderIntact(at, dataAt, dataBytes)) return Fault.HEADER_DIGEST
        return this.#capsule(at, dataAt, dataBytes)
      case PduType.H2C_DATA:
        if (!this.#isHeaderIntact(at, dataAt, dataBytes)) return Fault.HEADER_DIGEST
        return this.#h2cData(at, dataAt, dataBytes)
      case PduType.IC_REQ: {
        const fault = this.#handler.icReq(at)
        this.#head = at + dataAt
        return fault
      }
      default:
        this.#handler.termReq(at)
        return null
    }
  }

  #capsule(at: number, dataAt: number, dataBytes: number): PduFault | null {
    const slot = this.#handler.capsule(at, dataBytes)
    if (slot === null) {
      this.isStalled = true
      return null
    }
    this.#head = at + dataAt
    if (dataBytes > 0) this.#beginPayload(slot, slot.buffer, dataBytes)
    return null
  }

  #h2cData(at: number, dataAt: number, dataBytes: number): PduFault | null {
    const { view } = this.#arena
    const slot = this.#handler.transferring(H2cData.ttag.get(view, at))
    const fault = checkH2cData(view, at, dataBytes, slot)
    if (fault !== null) return fault
    this.#head = at + dataAt
    this.#beginPayload(slot!, slot!.buffer + slot!.arrivedBytes, dataBytes)
    return null
  }

  /** Copies what is there of `size` bytes, and remembers where the rest belongs. */
  #beginPayload(slot: Slot, address: number, size: number): void {
    const here = Math.min(this.#tail - this.#head, size)
    if (here > 0) memcpy(address, this.#arena.base + this.#head, here)
    this.#head += here
    this.#slot = slot
    this.#payload = address
    this.#payloadBytes = size
    this.#address = address + here
    this.#missing = size - here
  }

  /** True when the payload and its digest are complete: they have been handed on. */
  #endPayload(slot: Slot): boolean {
    if (this.#missing > 0) return false
    let isIntact = true
    if (this.rules.dataDigest > 0) {
      if (this.#tail - this.#head < DIGEST_SIZE) return false
      const wanted = this.#arena.view.getUint32(this.#head, true)
      const size = this.#payloadBytes
      isIntact = crc32c(viewAt(this.#payload, size), 0, size) === wanted
      this.#head += DIGEST_SIZE
    }
    this.#slot = null
    this.#handler.placed(slot, this.#payloadBytes, isIntact)
    return true
  }

  #isHeaderIntact(at: number, dataAt: number, dataBytes: number): boolean {
    if (this.rules.headerDigest === 0) return true
    const { view } = this.#arena
    const hlen = PduHeader.hlen.get(view, at)
    // Without data the header and its digest are the whole PDU.
    const end = dataBytes > 0 ? hlen + DIGEST_SIZE : dataAt
    return crc32c(view, at, hlen) === view.getUint32(at + end - DIGEST_SIZE, true)
  }
}
