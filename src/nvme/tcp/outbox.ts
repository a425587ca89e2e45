/**
 * What a host's queue sends: command capsules, and data for the R2Ts it got. Everything of one round leaves in one send,
 * gathered from where it lies; while that is under way the next batch is built beside it.
 *
 *     heads    [capsule][capsule]    [capsule]        [H2CData head]
 *     iovecs   [ one    ][    data   ][ one   ]        [ one        ][ data … ]
 *
 * Heads that follow each other share an iovec, so that thirty reads are one. There is always room for one capsule for
 * every free slot; data goes by room.
 */
import { assert } from '../../core/assert.ts'
import type { Stream } from '../../reactor/network.ts'
import type { Reactor } from '../../reactor/reactor.ts'
import { H2cData, PduFlag, PduType } from '../../spec/nvme-tcp.ts'
import { type Slots, Transfer } from './slots.ts'

/** The kernel's limit of one send. */
const IOVECS_MAX = 1024
const IOVEC_SIZE = 16
const CAPSULE_SIZE = 72
/** Room for the heads of data PDUs, beside that for capsules. */
const DATA_HEADS_SIZE = 8192
/** Data of one batch: enough to fill the socket, and new commands need not wait behind much. */
const BATCH_DATA_MAX = 1 << 20
/** A write in more pieces waits for the controller's R2T rather than crowd a batch. */
const IN_CAPSULE_SEGMENTS_MAX = 8

class Batch {
  /** Addresses. */
  readonly heads: number
  readonly iovecs: number
  headBytes = 0
  /** How much of that is heads of data PDUs. */
  dataHeadBytes = 0
  iovecCount = 0
  dataBytes = 0
  /** Address after the last piece when that was a head, so that the next head can join it; else 0. */
  headEnd = 0

  constructor(heads: number, iovecs: number) {
    this.heads = heads
    this.iovecs = iovecs
  }

  clear(): void {
    this.headBytes = 0
    this.dataHeadBytes = 0
    this.iovecCount = 0
    this.dataBytes = 0
    this.headEnd = 0
  }
}

export class Outbox {
  /** Number of the batch being built, and of the last one that was taken whole. */
  building = 1
  sent = 0
  /** Bytes of data in a capsule, at most: what the controller announces, 0 for none. */
  inCapsuleBytes = 0
  /** Bytes of data in one H2CData PDU, at most. */
  maxH2cData = 0
  isSending = false

  readonly #reactor: Reactor
  readonly #slots: Slots
  readonly #words: Int32Array
  readonly #memory: number
  readonly #memorySize: number
  readonly #headsSize: number
  #batch: Batch
  #other: Batch
  /** Bytes of a capsule and of an H2CData head with the padding the controller asked for. */
  #capsuleBytes = CAPSULE_SIZE
  #dataHeadBytes: number = H2cData.size

  /** Slots whose R2T waits for room: a ring. */
  readonly #waiting: Uint16Array
  #waitingFirst = 0
  #waitingCount = 0

  /** Throws when the reactor has no memory left. */
  constructor(reactor: Reactor, slots: Slots) {
    assert(slots.depth <= IOVECS_MAX / 2, `${slots.depth} slots leave room for data in a batch`)
    this.#reactor = reactor
    this.#slots = slots
    this.#words = reactor.arena.i32
    this.#waiting = new Uint16Array(slots.depth)
    // Padded capsules take 128 bytes.
    this.#headsSize = slots.depth * 128 + DATA_HEADS_SIZE
    this.#memorySize = 2 * (this.#headsSize + IOVECS_MAX * IOVEC_SIZE)
    this.#memory = reactor.buffers.acquire(this.#memorySize)
    if (this.#memory === 0) throw new Error('the reactor has no memory left for a queue')
    const half = this.#memorySize / 2
    const batchAt = (address: number): Batch => new Batch(address, address + this.#headsSize)
    this.#batch = batchAt(this.#memory)
    this.#other = batchAt(this.#memory + half)
  }

  /** Gives the memory back; no send may be outstanding. */
  close(): void {
    this.#reactor.buffers.release(this.#memory, this.#memorySize)
  }

  /** `cpda` as in ICResp: the alignment of data, in dwords, 0's based. */
  align(cpda: number): void {
    const unit = (cpda + 1) * 4
    this.#capsuleBytes = Math.ceil(CAPSULE_SIZE / unit) * unit
    this.#dataHeadBytes = Math.ceil(H2cData.size / unit) * unit
  }

  get isEmpty(): boolean {
    return this.#batch.iovecCount === 0 && this.#waitingCount === 0
  }

  /**
   * Starts a capsule for a slot and returns where its zeroed submission queue entry is, as an index into the arena's
   * `i32`. `finishCapsule` must follow before anything else.
   */
  beginCapsule(slot: number, opcode: number): number {
    const batch = this.#batch
    const words = this.#words
    const at = (batch.heads + batch.headBytes - this.#reactor.arena.base) >> 2
    words.fill(0, at, at + (this.#capsuleBytes >> 2))
    // FUSE 0, and PSDT 1: the data is described by SGLs, as Fabrics has it.
    words[at + 2] = opcode | 0x4000 | (slot << 16)
    return at + 2
  }

  /** Completes the capsule begun last: its data pointer, its PDU header, and in-capsule data where that is allowed. */
  finishCapsule(slot: number): void {
    const batch = this.#batch
    const slots = this.#slots
    const words = this.#words
    const at = (batch.heads + batch.headBytes - this.#reactor.arena.base) >> 2
    const length = slots.lengthBytes[slot]!
    const transfer = slots.transfer[slot]!
    let inCapsule = 0
    if (transfer !== Transfer.NONE) {
      words[at + 10] = length
      if (
        transfer === Transfer.TO_CONTROLLER &&
        length <= this.inCapsuleBytes &&
        this.#takesInCapsule(slot)
      ) {
        inCapsule = length
        words[at + 11] = 0x0100_0000 // data block, offset from the start of the in-capsule data
      } else {
        words[at + 11] = 0x5a00_0000 // transport data block
      }
    }
    const head = inCapsule > 0 ? this.#capsuleBytes : CAPSULE_SIZE
    words[at] = PduType.CAPSULE_CMD | (CAPSULE_SIZE << 16) | (inCapsule > 0 ? this.#capsuleBytes << 24 : 0)
    words[at + 1] = head + inCapsule
    this.#addHead(head)
    if (inCapsule > 0) {
      slots.movedBytes[slot] = length
      this.#addData(slot, length)
    }
    slots.batch[slot] = this.building
  }

  /** Queues the answer to an R2T, which the slot's `r2tBytes` and `ttag` describe. */
  addR2t(slot: number): void {
    this.#waiting[(this.#waitingFirst + this.#waitingCount) % this.#slots.depth] = slot
    this.#waitingCount++
  }

  /** Sends what was gathered, unless a send is still under way. */
  flush(stream: Stream): void {
    if (this.isSending) return
    this.#answerR2ts()
    const batch = this.#batch
    if (batch.iovecCount === 0) return
    this.#batch = this.#other
    this.#other = batch
    this.building++
    this.isSending = true
    stream.send(batch.iovecs, batch.iovecCount)
  }

  /** What was sent last has been taken whole. */
  noteSent(): void {
    this.isSending = false
    this.sent = this.building - 1
    this.#other.clear()
  }

  /** Forgets everything that was not handed to the stream yet. */
  discard(): void {
    this.#batch.clear()
    this.#waitingCount = 0
  }

  /** Queues bytes of the caller's own: ICReq and termination requests. Returns where to write `size` bytes. */
  addControl(size: number): number {
    const address = this.#batch.heads + this.#batch.headBytes
    this.#reactor.arena.u8.fill(
      0,
      address - this.#reactor.arena.base,
      address - this.#reactor.arena.base + size,
    )
    this.#addHead(size)
    return address
  }

  #takesInCapsule(slot: number): boolean {
    const batch = this.#batch
    const { count } = this.#slots.segments[slot]!
    return count <= IN_CAPSULE_SEGMENTS_MAX && batch.iovecCount + count + 1 <= this.#iovecsForData()
  }

  /** Iovecs that may be used before only those reserved for the capsules of free slots are left. */
  #iovecsForData(): number {
    return IOVECS_MAX - this.#slots.depth
  }

  #answerR2ts(): void {
    const batch = this.#batch
    while (this.#waitingCount > 0 && batch.dataBytes < BATCH_DATA_MAX) {
      const slot = this.#waiting[this.#waitingFirst]!
      if (!this.#answerR2t(slot)) return
      this.#waitingFirst = (this.#waitingFirst + 1) % this.#slots.depth
      this.#waitingCount--
    }
  }

  /** Puts the data an R2T asked for into the batch; false when there is no room for all of it. */
  #answerR2t(slot: number): boolean {
    const batch = this.#batch
    const slots = this.#slots
    while (slots.r2tBytes[slot]! > 0) {
      const pieces = this.#iovecsForData() - batch.iovecCount - 1
      if (pieces < 1 || batch.dataHeadBytes + this.#dataHeadBytes > DATA_HEADS_SIZE) return false
      const left = slots.r2tBytes[slot]!
      let size = slots.reach(slot, Math.min(left, this.maxH2cData), pieces)
      if (size < left) size -= size % 4
      if (size === 0) return false
      const isLast = size === left
      this.#addDataHead(slot, size, isLast)
      batch.dataHeadBytes += this.#dataHeadBytes
      this.#addData(slot, size)
      slots.movedBytes[slot]! += size
      slots.r2tBytes[slot]! -= size
    }
    slots.batch[slot] = this.building
    return true
  }

  #addDataHead(slot: number, size: number, isLast: boolean): void {
    const batch = this.#batch
    const slots = this.#slots
    const words = this.#words
    const at = (batch.heads + batch.headBytes - this.#reactor.arena.base) >> 2
    words.fill(0, at, at + (this.#dataHeadBytes >> 2))
    const flags = isLast ? PduFlag.LAST_PDU : 0
    words[at] = PduType.H2C_DATA | (flags << 8) | (H2cData.size << 16) | (this.#dataHeadBytes << 24)
    words[at + 1] = this.#dataHeadBytes + size
    words[at + 2] = slot | (slots.ttag[slot]! << 16)
    words[at + 3] = slots.movedBytes[slot]!
    words[at + 4] = size
    this.#addHead(this.#dataHeadBytes)
  }

  #addHead(size: number): void {
    const batch = this.#batch
    const address = batch.heads + batch.headBytes
    batch.headBytes += size
    if (batch.headEnd === address) {
      const at = (batch.iovecs + (batch.iovecCount - 1) * IOVEC_SIZE - this.#reactor.arena.base) >> 2
      this.#words[at + 2]! += size
    } else {
      this.#addIovec(address, size)
    }
    batch.headEnd = address + size
  }

  #addData(slot: number, size: number): void {
    const slots = this.#slots
    let left = size
    while (left > 0) {
      const piece = Math.min(left, slots.contiguousBytes(slot))
      if (piece > 0) this.#addIovec(slots.address(slot), piece)
      slots.advance(slot, piece)
      left -= piece
    }
    this.#batch.headEnd = 0
    this.#batch.dataBytes += size
  }

  #addIovec(address: number, size: number): void {
    const batch = this.#batch
    const at = (batch.iovecs + batch.iovecCount * IOVEC_SIZE - this.#reactor.arena.base) >> 2
    const words = this.#words
    words[at] = address | 0
    words[at + 1] = Math.floor(address / 0x1_0000_0000)
    words[at + 2] = size
    words[at + 3] = 0
    batch.iovecCount++
  }
}
