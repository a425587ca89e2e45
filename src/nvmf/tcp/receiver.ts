/**
 * Everything that comes from the host. One receive buffer is parsed in place; a payload that is not all there is
 * received straight to where it belongs, and what follows it into the buffer again.
 *
 *   buffer  | capsule | capsule + data | H2CData | the beginning of a hea|
 *             in place   see below       copied     moved to the front before the next receive
 *
 * A memory device takes capsule data from where it is: until it has, the buffer is pinned, and receiving goes on behind
 * the data or in another buffer. For any other device it is copied, as a disk wants it aligned.
 *
 * Parsing stops ("stalls") at a command for which there is no slot or no buffer; nothing more is received until it goes
 * on. That is the back-pressure a host feels.
 */
import { crc32c } from '../../core/crc32c.ts'
import type { Stream } from '../../reactor/network.ts'
import type { Reactor } from '../../reactor/reactor.ts'
import { DIGEST_SIZE, H2cData, PduHeader, PduType } from '../../spec/nvme-tcp.ts'
import { type Arena, memcpy } from '../../sys/memory.ts'
import { checkCommonHeader, checkH2cData, Fault, headerBytes, type PduFault, type PduRules } from './check.ts'
import type { Slot } from './slot.ts'

/** What the PDUs are for. Offsets are into the arena's views. */
export interface PduHandler {
  /** False once no further PDU is wanted. */
  readonly isListening: boolean
  icReq(at: number): PduFault | null
  termReq(at: number): void
  /**
   * A command with `dataBytes` of data in its capsule, all of it at `dataAt` unless that is negative. Null when it
   * cannot be taken now. A slot with a `pinned` buffer uses the data where it is; any other has it copied to `buffer`.
   */
  capsule(at: number, dataBytes: number, dataAt: number, buffer: ReceiveBuffer): Slot | null
  /** Another receive buffer: its offset, or -1 while there is none. */
  acquireBuffer(): number
  releaseBuffer(offset: number): void
  /** The slot that waits for data under this transfer tag. */
  transferring(ttag: number): Slot | undefined
  /** All data of a PDU is in its place, `isIntact` unless its digest says otherwise. */
  placed(slot: Slot, dataBytes: number, isIntact: boolean): void
}

const RECEIVE_SIZE = 131072
/** With less room than this behind data that is still in use, the next receive goes to another buffer. */
const ROOM_MIN = 16384

/** What is received into, and how many commands use the data that lies in it. */
export class ReceiveBuffer {
  /** Within the arena's views. */
  readonly offset: number
  pins = 0

  constructor(offset: number) {
    this.offset = offset
  }
}

export class Receiver {
  static readonly BUFFER_SIZE = RECEIVE_SIZE

  readonly rules: PduRules
  /** A command waits for a slot or a buffer: `parse` again when there may be one. */
  isStalled = false
  /** Where the PDU begins that a fault was found in. */
  faultAt = 0

  readonly #handler: PduHandler
  readonly #arena: Arena
  #buffer: ReceiveBuffer
  /** What has been received and not yet parsed, as offsets into the arena's views. */
  #head: number
  #tail: number

  /** The payload that is arriving: whose it is, where its rest goes, how much that is. */
  #slot: Slot | null = null
  #placeAt = 0
  #missing = 0
  #payloadAt = 0
  #payloadBytes = 0

  /** `offset` is that of a buffer of at least `Receiver.BUFFER_SIZE` bytes. */
  constructor(reactor: Reactor, handler: PduHandler, rules: PduRules, offset: number) {
    this.rules = rules
    this.#handler = handler
    this.#arena = reactor.arena
    this.#buffer = new ReceiveBuffer(offset)
    this.#head = offset
    this.#tail = offset
  }

  /** The buffer that the owner has to give back in the end: not always the one it gave. */
  get bufferOffset(): number {
    return this.#buffer.offset
  }

  /** A data PDU has begun and not ended. */
  get isWithinPayload(): boolean {
    return this.#slot !== null
  }

  /** Bytes of the PDU at `faultAt` that are there. */
  get availableBytes(): number {
    return this.#tail - this.faultAt
  }

  /**
   * Starts the next receive. Everything before a stall has been parsed, so less than a header is left. False when there
   * is no room: all of it holds data in use, and there is no other buffer.
   */
  arm(stream: Stream): boolean {
    if (this.#buffer.pins === 0) this.#restartAt(this.#buffer.offset)
    else if (this.#room < ROOM_MIN && !this.#changeBuffer()) return false
    const { base } = this.#arena
    if (this.#missing > 0) {
      stream.receiveSplit(base + this.#placeAt, this.#missing, base + this.#tail, this.#room)
    } else stream.receive(base + this.#tail, this.#room)
    return true
  }

  get #room(): number {
    return this.#buffer.offset + RECEIVE_SIZE - this.#tail
  }

  /** Moves what is left to `offset`, and goes on behind it. */
  #restartAt(offset: number): void {
    const left = this.#tail - this.#head
    if (left > 0) this.#arena.u8.copyWithin(offset, this.#head, this.#tail)
    this.#head = offset
    this.#tail = offset + left
  }

  #changeBuffer(): boolean {
    const offset = this.#handler.acquireBuffer()
    if (offset < 0) return false
    this.#buffer = new ReceiveBuffer(offset)
    this.#restartAt(offset)
    return true
  }

  /** A command has done with data in `buffer`. */
  unpin(buffer: ReceiveBuffer): void {
    buffer.pins--
    if (buffer.pins === 0 && buffer !== this.#buffer) this.#handler.releaseBuffer(buffer.offset)
  }

  /** Takes note of `size` received bytes. */
  received(size: number): void {
    if (this.#missing > 0) {
      const placed = Math.min(size, this.#missing)
      this.#placeAt += placed
      this.#missing -= placed
      size -= placed
    }
    this.#tail += size
  }

  /** Forgets what has come: the connection is given up. */
  discard(): void {
    this.#slot = null
    this.#missing = 0
    this.#head = this.#tail
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
      const word = view.getUint32(at, true)
      const plen = view.getUint32(at + 4, true)
      const fault = checkCommonHeader(word, plen, rules)
      if (fault !== null) return fault
      const type = word & 0xff
      const bare = headerBytes(type, rules)
      const hasData = plen > bare && type >= PduType.CAPSULE_CMD
      // A PDO beyond the header leaves padding, which is taken with the header.
      const dataAt = hasData ? word >>> 24 : bare
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
    const end = at + dataAt + dataBytes
    const isWhole = dataBytes > 0 && end <= this.#tail && this.rules.dataDigest === 0
    const slot = this.#handler.capsule(at, dataBytes, isWhole ? at + dataAt : -1, this.#buffer)
    if (slot === null) {
      this.isStalled = true
      return null
    }
    if (dataBytes === 0 || slot.pinned !== null) {
      this.#head = end
      return null
    }
    this.#head = at + dataAt
    this.#beginPayload(slot, slot.buffer, dataBytes)
    return null
  }

  #h2cData(at: number, dataAt: number, dataBytes: number): PduFault | null {
    const { view } = this.#arena
    const slot = this.#handler.transferring(H2cData.ttag.get(view, at))
    const fault = checkH2cData(view, at, dataBytes, slot)
    if (fault !== null) return fault
    this.#head = at + dataAt
    this.#beginPayload(slot!, slot!.dataAt + slot!.arrivedBytes, dataBytes)
    return null
  }

  /** Copies what is there of `size` bytes, and remembers where the rest belongs. */
  #beginPayload(slot: Slot, placeAt: number, size: number): void {
    const { base } = this.#arena
    const here = Math.min(this.#tail - this.#head, size)
    if (here > 0) memcpy(base + placeAt, base + this.#head, here)
    this.#head += here
    this.#slot = slot
    this.#payloadAt = placeAt
    this.#payloadBytes = size
    this.#placeAt = placeAt + here
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
      isIntact = crc32c(this.#arena.view, this.#payloadAt, size) === wanted
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
