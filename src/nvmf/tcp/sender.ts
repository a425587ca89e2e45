/**
 * Everything that goes to the host. What is ready during a round waits in a ring of slots; `flush` turns the ring into
 * one gather-send. Headers are written one after the other into an area of their own, so that neighbours become one
 * iovec: the responses to 32 writes are a single one. Payloads are sent from where they are.
 *
 *   header area  | resp | resp | data header | resp | data header | resp …
 *   iovecs        [--------------------------]        [------------------]
 *                                         [payload]                    [payload]
 *
 * At most one send is outstanding. The area and the iovecs belong to it until `sent`.
 */
import { assert } from '../../core/assert.ts'
import { crc32c } from '../../core/crc32c.ts'
import type { Stream } from '../../reactor/network.ts'
import type { Reactor } from '../../reactor/reactor.ts'
import { DIGEST_SIZE, IcResp, PduFlag, PduType, TERM_PLEN_MAX } from '../../spec/nvme-tcp.ts'
import { viewAt } from '../../sys/memory.ts'
import { type Slot, SlotState } from './slot.ts'

/** One buffer of the pool holds iovecs and headers. */
const AREA_SIZE = 16384
const IOVEC_SIZE = 16
const IOVECS_MAX = 512
const HEADERS_AT = IOVECS_MAX * IOVEC_SIZE
/** The most that one slot adds: a header padded to 128 bytes with its digest, a data digest, a response with its own. */
const ITEM_HEADERS_MAX = 256
const ITEM_IOVECS_MAX = 6
/** More in one send gains nothing, and what was sent is released later. */
const SEND_BYTES_MAX = 1 << 20

const HEADER_SIZE = 24
const TYPE_C2H_DATA = PduType.C2H_DATA | (HEADER_SIZE << 16)
const TYPE_RESPONSE = PduType.CAPSULE_RESP | (HEADER_SIZE << 16)
const TYPE_R2T = PduType.R2T | (HEADER_SIZE << 16)
const HIGH = 0x1_0000_0000

/** Hears which slots need nothing any more. */
export interface SlotOwner {
  release(slot: Slot): void
}

export class Sender {
  /** What was agreed with the host. */
  headerDigest = 0
  dataDigest = 0
  /** C2HData payloads start at a multiple of this many bytes. */
  dataAlignment = 4
  /** A successful read ends with its data PDU. Only allowed without submission queue flow control. */
  sendsSuccess = false
  /** What responses carry as SQHD. */
  sqhd = 0
  /** When the outstanding send began, in the reactor's microseconds. */
  sendingSinceUs = 0

  readonly #stream: Stream
  readonly #owner: SlotOwner
  readonly #reactor: Reactor
  readonly #i32: Int32Array
  readonly #area: number
  readonly #areaOffset: number
  readonly #arenaHigh: number

  /** Slots ready to be sent: a ring, never full, as a slot is in it at most once. */
  #ready: (Slot | null)[]
  #readyHead = 0
  #readyTail = 0
  /** Control PDUs: the ICResp goes before everything, a C2HTermReq after everything. */
  #icResp: Uint8Array | null = null
  #termReq: Uint8Array | null = null
  #hasTerminated = false

  #isSending = false
  /** Slots whose data the outstanding send refers to. */
  #sent: (Slot | null)[]
  #sentCount = 0

  /** The batch being built: offsets in the arena's Int32Array, and the bytes it holds. */
  #iovec = 0
  #header = 0
  #isHeaderRun = false
  #bytes = 0

  /** `area` is a buffer of at least `Sender.AREA_SIZE` bytes. */
  constructor(reactor: Reactor, stream: Stream, owner: SlotOwner, area: number, slotCount: number) {
    this.#reactor = reactor
    this.#stream = stream
    this.#owner = owner
    this.#i32 = reactor.arena.i32
    this.#area = area
    this.#areaOffset = reactor.arena.offsetOf(area)
    this.#arenaHigh = reactor.arena.base / HIGH
    this.#ready = ringOf(slotCount)
    this.#sent = ringOf(slotCount)
  }

  static readonly AREA_SIZE = AREA_SIZE

  get isSending(): boolean {
    return this.#isSending
  }

  /** Nothing is being sent, and nothing is to be. */
  get isIdle(): boolean {
    return !this.#isSending && !this.hasWork
  }

  get hasWork(): boolean {
    if (this.#hasTerminated) return false
    return this.#readyHead !== this.#readyTail || this.#icResp !== null || this.#termReq !== null
  }

  /** Makes room for `slotCount` slots. */
  resize(slotCount: number): void {
    const ready = ringOf(slotCount)
    let count = 0
    for (let at = this.#readyHead; at !== this.#readyTail; at++)
      ready[count++] = this.#ready[at & (this.#ready.length - 1)]!
    this.#ready = ready
    this.#readyHead = 0
    this.#readyTail = count
    const sent = ringOf(slotCount)
    for (let i = 0; i < this.#sentCount; i++) sent[i] = this.#sent[i]!
    this.#sent = sent
  }

  /** Queues a slot: its R2T when it is SOLICITING, its answer when it is ANSWERING. */
  push(slot: Slot): void {
    this.#ready[this.#readyTail & (this.#ready.length - 1)] = slot
    this.#readyTail = (this.#readyTail + 1) | 0
  }

  pushIcResp(pdu: Uint8Array): void {
    assert(pdu.length === IcResp.size, 'an ICResp has 128 bytes')
    this.#icResp = pdu
  }

  /** After this PDU nothing more is sent. */
  pushTermReq(pdu: Uint8Array): void {
    assert(pdu.length <= TERM_PLEN_MAX, 'a termination request is small')
    this.#termReq = pdu
  }

  /** Sends what is ready, unless a send is outstanding: then `sent` is followed by another flush. */
  flush(): void {
    if (this.#isSending || !this.hasWork) return
    this.#iovec = (this.#areaOffset >> 2) - 4
    this.#header = (this.#areaOffset + HEADERS_AT) >> 2
    this.#isHeaderRun = false
    this.#bytes = 0
    if (this.#icResp !== null) {
      this.#appendControl(this.#icResp)
      this.#icResp = null
    }
    this.#appendSlots()
    if (this.#termReq !== null && this.#readyHead === this.#readyTail) {
      this.#appendControl(this.#termReq)
      this.#termReq = null
      this.#hasTerminated = true
    }
    const count = (this.#iovec - (this.#areaOffset >> 2)) / 4 + 1
    this.#isSending = true
    this.sendingSinceUs = this.#reactor.nowUs
    this.#stream.send(this.#area, count)
  }

  #appendSlots(): void {
    const headerLimit = (this.#areaOffset + AREA_SIZE - ITEM_HEADERS_MAX - TERM_PLEN_MAX) >> 2
    const iovecLimit = (this.#areaOffset + HEADERS_AT - ITEM_IOVECS_MAX * IOVEC_SIZE) >> 2
    const ready = this.#ready
    const mask = ready.length - 1
    while (
      this.#readyHead !== this.#readyTail &&
      this.#header <= headerLimit &&
      this.#iovec <= iovecLimit &&
      this.#bytes < SEND_BYTES_MAX
    ) {
      const slot = ready[this.#readyHead & mask]!
      this.#readyHead = (this.#readyHead + 1) | 0
      if (slot.state === SlotState.SOLICITING) this.#appendR2t(slot)
      else this.#appendAnswer(slot)
    }
  }

  /** The outstanding send has ended: what it referred to is released. */
  sent(): void {
    this.#isSending = false
    const count = this.#sentCount
    this.#sentCount = 0
    for (let i = 0; i < count; i++) {
      const slot = this.#sent[i]!
      this.#owner.release(slot)
    }
  }

  #appendAnswer(slot: Slot): void {
    if (slot.answerBytes === 0) {
      this.#appendResponse(slot)
      // The response was copied, so nothing refers to the slot any more.
      this.#owner.release(slot)
      return
    }
    this.#sent[this.#sentCount++] = slot
    const endsHere = this.sendsSuccess && slot.dw0 === 0 && slot.dw1 === 0
    this.#appendData(slot, endsHere)
    if (!endsHere) this.#appendResponse(slot)
  }

  #appendData(slot: Slot, endsHere: boolean): void {
    const { headerDigest, dataDigest, dataAlignment } = this
    const i32 = this.#i32
    const at = this.#header
    const length = slot.answerBytes
    let pdo = HEADER_SIZE + headerDigest
    if (dataAlignment > 4) pdo = Math.ceil(pdo / dataAlignment) * dataAlignment
    let flags: number = PduFlag.LAST_PDU
    if (endsHere) flags |= PduFlag.SUCCESS
    if (headerDigest > 0) flags |= PduFlag.HDGSTF
    if (dataDigest > 0) flags |= PduFlag.DDGSTF
    i32[at] = TYPE_C2H_DATA | (flags << 8) | (pdo << 24)
    i32[at + 1] = pdo + length + dataDigest
    i32[at + 2] = slot.cid
    i32[at + 3] = 0
    i32[at + 4] = length
    i32[at + 5] = 0
    if (headerDigest > 0) this.#digestHeader(at)
    for (let pad = HEADER_SIZE + headerDigest; pad < pdo; pad += 4) i32[at + (pad >> 2)] = 0
    this.#appendHeader(pdo)
    this.#appendPayload(slot, length)
  }

  /** The data itself, from the slot's buffer or from the device's memory, and its digest. */
  #appendPayload(slot: Slot, length: number): void {
    const { segments } = slot.io
    let crc = 0
    if (slot.dataAt >= 0) {
      this.#appendOwn(slot.dataAt, length)
      if (this.dataDigest > 0) crc = crc32c(this.#reactor.arena.view, slot.dataAt, length)
    } else {
      for (let i = 0; i < segments.count; i++) {
        const address = segments.addresses[i]!
        const size = segments.lengths[i]!
        this.#appendMemory(address, size)
        if (this.dataDigest > 0) crc = digestOf(address, size, crc)
      }
    }
    if (this.dataDigest === 0) return
    this.#i32[this.#header] = crc
    this.#appendHeader(DIGEST_SIZE)
  }

  #appendResponse(slot: Slot): void {
    const i32 = this.#i32
    const at = this.#header
    const { headerDigest } = this
    i32[at] = TYPE_RESPONSE | (headerDigest > 0 ? PduFlag.HDGSTF << 8 : 0)
    i32[at + 1] = HEADER_SIZE + headerDigest
    i32[at + 2] = slot.dw0
    i32[at + 3] = slot.dw1
    i32[at + 4] = this.sqhd
    i32[at + 5] = slot.cid | (slot.status << 17)
    if (headerDigest > 0) this.#digestHeader(at)
    this.#appendHeader(HEADER_SIZE + headerDigest)
  }

  #appendR2t(slot: Slot): void {
    // Only from here on may the host answer: an earlier H2CData is out of turn.
    slot.state = SlotState.TRANSFERRING
    const i32 = this.#i32
    const at = this.#header
    const { headerDigest } = this
    i32[at] = TYPE_R2T | (headerDigest > 0 ? PduFlag.HDGSTF << 8 : 0)
    i32[at + 1] = HEADER_SIZE + headerDigest
    i32[at + 2] = slot.cid | (slot.index << 16)
    i32[at + 3] = 0
    i32[at + 4] = slot.lengthBytes
    i32[at + 5] = 0
    if (headerDigest > 0) this.#digestHeader(at)
    this.#appendHeader(HEADER_SIZE + headerDigest)
  }

  #digestHeader(at: number): void {
    this.#i32[at + (HEADER_SIZE >> 2)] = crc32c(this.#reactor.arena.view, at << 2, HEADER_SIZE)
  }

  /** Neither ICResp nor termination request has digests. */
  #appendControl(pdu: Uint8Array): void {
    this.#reactor.arena.u8.set(pdu, this.#header << 2)
    this.#appendHeader(pdu.length)
  }

  /** Adds the `size` bytes at the end of the header area that were just written: a multiple of four. */
  #appendHeader(size: number): void {
    if (this.#isHeaderRun) {
      this.#i32[this.#iovec + 2]! += size
      this.#bytes += size
    } else {
      this.#appendOwn(this.#header << 2, size)
      this.#isHeaderRun = true
    }
    this.#header += size >> 2
  }

  /** Adds memory of the arena: whole numbers all the way, as its base is a multiple of 4 GiB. */
  #appendOwn(offset: number, size: number): void {
    const i32 = this.#i32
    const at = this.#iovec + 4
    this.#iovec = at
    i32[at] = offset
    i32[at + 1] = this.#arenaHigh
    i32[at + 2] = size
    i32[at + 3] = 0
    this.#isHeaderRun = false
    this.#bytes += size
  }

  /** Adds memory of anybody. */
  #appendMemory(address: number, size: number): void {
    const i32 = this.#i32
    const at = this.#iovec + 4
    this.#iovec = at
    const high = Math.floor(address / HIGH)
    i32[at] = address - high * HIGH
    i32[at + 1] = high
    i32[at + 2] = size
    i32[at + 3] = 0
    this.#isHeaderRun = false
    this.#bytes += size
  }
}

/** A power of two, so that positions in the ring are masked. */
function ringOf(slotCount: number): (Slot | null)[] {
  return new Array<Slot | null>(2 ** Math.ceil(Math.log2(slotCount))).fill(null)
}

function digestOf(address: number, size: number, crc: number): number {
  return crc32c(viewAt(address, size), 0, size, crc)
}
