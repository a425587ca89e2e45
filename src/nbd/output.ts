/**
 * Replies on their way out. What is ready during a round goes to the socket in one gathering send at its end:
 *
 *   ready: piece -> piece -> piece …   build()   iovecs [header][data][header][data] …   sent()   pieces are given back
 *
 * While one send is in flight the next replies gather in `ready`, so batches grow with the load by themselves.
 */
import { IOVEC_SIZE } from '../spec/io-uring.ts'
import {
  NbdError,
  REPLY_FLAG_DONE,
  ReplyType,
  SIMPLE_REPLY_MAGIC,
  SimpleReply,
  STRUCTURED_REPLY_MAGIC,
  StructuredReply,
} from '../spec/nbd.ts'
import type { Arena } from '../sys/memory.ts'
import type { NbdCommand, Piece } from './request.ts'

const TWO_32 = 2 ** 32

export class Output {
  readonly #arena: Arena
  /** The iovecs' place in the arena's 32-bit view, and how many there is room for. */
  readonly #iovecsAt: number
  readonly #capacity: number
  #first: Piece | null = null
  #last: Piece | null = null
  #sending: Piece | null = null
  /** The command whose simple reply has begun and not ended. */
  #holder: NbdCommand | null = null
  #count = 0

  constructor(arena: Arena, iovecs: number, sizeBytes: number) {
    this.#arena = arena
    this.#iovecsAt = arena.offsetOf(iovecs) / 4
    this.#capacity = sizeBytes / IOVEC_SIZE
  }

  /** A reply, or a part of one, whose header is written. */
  push(piece: Piece): void {
    if (this.#holder !== null && piece.command === this.#holder) {
      piece.next = this.#first
      this.#first = piece
      this.#last ??= piece
      return
    }
    piece.next = null
    if (this.#last === null) this.#first = piece
    else this.#last.next = piece
    this.#last = piece
  }

  /** Writes the iovecs of what may be sent now, and returns their number. The last send must have ended. */
  build(): number {
    this.#count = 0
    let sendingLast: Piece | null = null
    for (let piece = this.#first; piece !== null; piece = this.#first) {
      if (this.#holder !== null && piece.command !== this.#holder) break
      const segmentCount = piece.sendsData ? piece.io.segments.count : 0
      if (this.#count + 1 + segmentCount > this.#capacity) break
      this.#first = piece.next
      if (this.#first === null) this.#last = null
      piece.next = null
      if (piece.headerSize > 0) this.#add(piece.header, piece.headerSize)
      const { addresses, lengths } = piece.io.segments
      for (let i = 0; i < segmentCount; i++) this.#add(addresses[i]!, lengths[i]!)
      this.#holder = piece.holdsOutput ? piece.command : null
      if (sendingLast === null) this.#sending = piece
      else sendingLast.next = piece
      sendingLast = piece
    }
    return this.#count
  }

  /** The pieces of the last `build`, linked by `next`; they are the caller's from now on. */
  takeSent(): Piece | null {
    const sent = this.#sending
    this.#sending = null
    return sent
  }

  /** The pieces that were never sent. */
  takeUnsent(): Piece | null {
    const first = this.#first
    this.#first = null
    this.#last = null
    return first
  }

  #add(address: number, length: number): void {
    const { i32 } = this.#arena
    const at = this.#iovecsAt + this.#count * (IOVEC_SIZE / 4)
    i32[at] = address | 0
    i32[at + 1] = (address / TWO_32) | 0
    i32[at + 2] = length
    i32[at + 3] = 0
    this.#count++
  }
}

/** Makes `piece` the whole answer to its command: no data, and its error. */
export function writeSimpleReply(view: DataView, piece: Piece, error: number): void {
  const { headerAt } = piece
  const command = piece.command!
  SimpleReply.magic.set(view, headerAt, SIMPLE_REPLY_MAGIC)
  SimpleReply.error.set(view, headerAt, error)
  SimpleReply.cookieHigh.set(view, headerAt, command.cookieHigh)
  SimpleReply.cookieLow.set(view, headerAt, command.cookieLow)
  piece.headerSize = SimpleReply.size
  piece.sendsData = false
  piece.holdsOutput = false
}

/** Makes `piece` a chunk; `length` counts what follows the header, of which the caller has set `piece.sendsData`. */
function writeChunk(view: DataView, piece: Piece, type: number, flags: number, length: number): void {
  const { headerAt } = piece
  const command = piece.command!
  StructuredReply.magic.set(view, headerAt, STRUCTURED_REPLY_MAGIC)
  StructuredReply.flags.set(view, headerAt, flags)
  StructuredReply.type.set(view, headerAt, type)
  StructuredReply.cookieHigh.set(view, headerAt, command.cookieHigh)
  StructuredReply.cookieLow.set(view, headerAt, command.cookieLow)
  StructuredReply.length.set(view, headerAt, length)
  piece.headerSize = StructuredReply.size
  piece.holdsOutput = false
}

/** The last chunk of a command that failed. */
export function writeErrorChunk(view: DataView, piece: Piece, error: number): void {
  writeChunk(view, piece, ReplyType.ERROR, REPLY_FLAG_DONE, 6)
  view.setUint32(piece.headerAt + StructuredReply.size, error, false)
  view.setUint16(piece.headerAt + StructuredReply.size + 4, 0, false)
  piece.headerSize += 6
  piece.sendsData = false
}

/** The data of a piece as a chunk of its own. */
export function writeDataChunk(view: DataView, piece: Piece, isLast: boolean): void {
  writeChunk(view, piece, ReplyType.OFFSET_DATA, isLast ? REPLY_FLAG_DONE : 0, 8 + piece.size)
  const at = piece.headerAt + StructuredReply.size
  view.setUint32(at, piece.offset / TWO_32, false)
  view.setUint32(at + 4, piece.offset % TWO_32, false)
  piece.headerSize += 8
  piece.sendsData = true
}

/** The data of a piece within a simple reply: only the first has a header, and nothing may come between. */
export function writeSimpleData(view: DataView, piece: Piece, isLast: boolean): void {
  const isFirst = piece.offset === piece.command!.offset
  if (isFirst) writeSimpleReply(view, piece, NbdError.NONE)
  else piece.headerSize = 0
  piece.sendsData = true
  piece.holdsOutput = !isLast
}

/** Context id, then `sizeBytes` of extents that the I/O's segments name. */
export function writeBlockStatus(view: DataView, piece: Piece, contextId: number, sizeBytes: number): void {
  writeChunk(view, piece, ReplyType.BLOCK_STATUS, REPLY_FLAG_DONE, 4 + sizeBytes)
  view.setUint32(piece.headerAt + StructuredReply.size, contextId, false)
  piece.headerSize += 4
  piece.sendsData = true
}
