/**
 * The commands of one queue, as flat arrays. A slot's number is its command identifier on the wire. Slots are made once,
 * so that a command costs no allocation.
 */
import type { Segments } from '../../bdev/io.ts'

/** Which way a command's data goes. */
export const Transfer = { NONE: 0, TO_CONTROLLER: 1, FROM_CONTROLLER: 2 } as const
export type Transfer = (typeof Transfer)[keyof typeof Transfer]

export class Slots {
  readonly depth: number
  /** Slots in use. */
  used = 0

  /** 1 while the slot stands for a command that was submitted and has not ended. */
  readonly active: Uint8Array
  readonly transfer: Uint8Array
  /** Bytes of data the command moves. */
  readonly lengthBytes: Float64Array
  /** Bytes that arrived (from the controller), or that went out or were asked for by an R2T (to it). */
  readonly movedBytes: Float64Array
  /** Bytes of the present R2T not yet in a batch; 0 when there is none. */
  readonly r2tBytes: Float64Array
  readonly ttag: Uint16Array
  /** The batch that carries the last of what was sent for this command. */
  readonly batch: Float64Array
  /** The end that was told while the command was still being sent: it is passed on after that. */
  readonly status: Uint16Array
  readonly dw0: Uint32Array
  readonly dw1: Uint32Array
  /** Reactor's microseconds. */
  readonly submittedUs: Float64Array
  /** 1 once a time-out was acted upon. */
  readonly overdue: Uint8Array
  readonly segments: (Segments | null)[]
  /** Whatever the submitter wants back with the end of the command. */
  readonly contexts: unknown[]

  /** Where the next byte of data belongs: a segment, and bytes within it. */
  readonly #segment: Int32Array
  readonly #within: Float64Array
  readonly #free: Int32Array

  constructor(depth: number) {
    this.depth = depth
    this.active = new Uint8Array(depth)
    this.transfer = new Uint8Array(depth)
    this.lengthBytes = new Float64Array(depth)
    this.movedBytes = new Float64Array(depth)
    this.r2tBytes = new Float64Array(depth)
    this.ttag = new Uint16Array(depth)
    this.batch = new Float64Array(depth)
    this.status = new Uint16Array(depth)
    this.dw0 = new Uint32Array(depth)
    this.dw1 = new Uint32Array(depth)
    this.submittedUs = new Float64Array(depth)
    this.overdue = new Uint8Array(depth)
    this.segments = new Array<Segments | null>(depth).fill(null)
    this.contexts = new Array<unknown>(depth).fill(null)
    this.#segment = new Int32Array(depth)
    this.#within = new Float64Array(depth)
    this.#free = new Int32Array(depth)
    for (let i = 0; i < depth; i++) this.#free[i] = depth - 1 - i
  }

  /** A free slot, or -1 when all are in use. */
  acquire(): number {
    if (this.used === this.depth) return -1
    this.used++
    return this.#free[this.depth - this.used]!
  }

  release(slot: number): void {
    this.active[slot] = 0
    this.segments[slot] = null
    this.contexts[slot] = null
    this.#free[this.depth - this.used] = slot
    this.used--
  }

  start(
    slot: number,
    transfer: Transfer,
    segments: Segments | null,
    lengthBytes: number,
    nowUs: number,
  ): void {
    this.active[slot] = 1
    this.transfer[slot] = transfer
    this.segments[slot] = segments
    this.lengthBytes[slot] = lengthBytes
    this.movedBytes[slot] = 0
    this.r2tBytes[slot] = 0
    this.submittedUs[slot] = nowUs
    this.overdue[slot] = 0
    this.#segment[slot] = 0
    this.#within[slot] = 0
    if (segments !== null) this.advance(slot, 0)
  }

  /** Where the slot's next byte of data lies. Valid while there is a next byte. */
  address(slot: number): number {
    return this.segments[slot]!.addresses[this.#segment[slot]!]! + this.#within[slot]!
  }

  /** Bytes from there to the end of its segment. */
  contiguousBytes(slot: number): number {
    return this.segments[slot]!.lengths[this.#segment[slot]!]! - this.#within[slot]!
  }

  /** Number of the next segment after the present one that is not empty, or -1. */
  nextSegment(slot: number): number {
    const { lengths, count } = this.segments[slot]!
    for (let next = this.#segment[slot]! + 1; next < count; next++) {
      if (lengths[next]! > 0) return next
    }
    return -1
  }

  /** Moves on by `size` bytes, over as many segments as that takes, to where the next byte is. */
  advance(slot: number, size: number): void {
    const { lengths, count } = this.segments[slot]!
    let segment = this.#segment[slot]!
    let within = this.#within[slot]! + size
    while (segment < count && within >= lengths[segment]!) {
      within -= lengths[segment]!
      segment++
    }
    this.#segment[slot] = segment
    this.#within[slot] = within
  }

  /** How many of the next `maxBytes` bytes lie in at most `maxPieces` segments. */
  reach(slot: number, maxBytes: number, maxPieces: number): number {
    const { lengths, count } = this.segments[slot]!
    let bytes = 0
    let within = this.#within[slot]!
    for (let i = this.#segment[slot]!, pieces = 0; i < count && pieces < maxPieces; i++, pieces++) {
      bytes += lengths[i]! - within
      within = 0
      if (bytes >= maxBytes) return maxBytes
    }
    return bytes
  }
}
