/**
 * Requests in progress. A command is what a client asked; it is carried out in pieces, each with an I/O and at most one
 * buffer, so that a read of 32 MiB does not need 32 MiB. Both are pooled by the reactor and reused for ever.
 *
 *   command READ 1 MiB at 0      piece 0: 0..256K      piece 1: 256K..512K   …at most `PIECES_MAX` at once; a piece that
 *                                                                             was sent takes the next part of its command
 */
import type { Channel } from '../bdev/channel.ts'
import { BdevIo, type IoOwner } from '../bdev/io.ts'
import type { Arena } from '../sys/memory.ts'

/** The space for what precedes the data of a reply: 28 bytes at most. */
const HEADER_ROOM = 32
/** Parts of memory that a device may lend for one read. */
const SEGMENTS_MAX = 4

export class NbdCommand {
  type = 0
  flags = 0
  cookieHigh = 0
  cookieLow = 0
  offset = 0
  length = 0
  /** The first error, as an NBD error. */
  error = 0
  /** Where the next piece begins, and how many bytes belong to no piece yet. */
  nextOffset = 0
  left = 0
  /** Pieces whose I/O is outstanding, and pieces in all. */
  running = 0
  held = 0
}

/** Whoever gives pieces their work. */
export interface PieceOwner {
  pieceDone(piece: Piece): void
}

export class Piece implements IoOwner {
  readonly io = new BdevIo(this, SEGMENTS_MAX)
  /** The address of `HEADER_ROOM` bytes, and their offset within the arena's views. */
  readonly header: number
  readonly headerAt: number
  command: NbdCommand | null = null
  owner: PieceOwner | null = null
  buffer = 0
  /** What was asked of the buffer pool; 0 when there is no buffer. */
  bufferSize = 0
  offset = 0
  size = 0
  /** How much of a write's data has arrived. */
  filled = 0
  /** Whether the device's memory is borrowed until the reply is sent. */
  isLoan = false
  /** What is sent: so many bytes of the header, then, perhaps, what the I/O's segments name. */
  headerSize = 0
  sendsData = false
  /** What follows on the wire must be more of this command: the rest of a simple reply. */
  holdsOutput = false
  next: Piece | null = null

  constructor(header: number, headerAt: number) {
    this.header = header
    this.headerAt = headerAt
  }

  ioDone(): void {
    this.owner!.pieceDone(this)
  }
}

/** The commands and pieces of one reactor. Grows to the most that were ever in use; bounded by the connections. */
export class RequestPool {
  /** Bytes of buffers that all connections hold together. */
  heldBytes = 0
  readonly #arena: Arena
  readonly #all: Piece[] = []
  readonly #pieces: Piece[] = []
  readonly #commands: NbdCommand[] = []

  constructor(arena: Arena) {
    this.#arena = arena
  }

  /** Null when the arena is used up. */
  acquirePiece(owner: PieceOwner): Piece | null {
    let piece = this.#pieces.pop()
    if (piece === undefined) {
      const header = this.#arena.allocate(HEADER_ROOM, HEADER_ROOM)
      if (header === 0) return null
      piece = new Piece(header, this.#arena.offsetOf(header))
      this.#all.push(piece)
    }
    piece.owner = owner
    return piece
  }

  releasePiece(piece: Piece): void {
    piece.owner = null
    piece.command = null
    this.#pieces.push(piece)
  }

  /** Asks `channel` for the early end of every I/O that `owner` has there. */
  abort(owner: PieceOwner, channel: Channel): void {
    for (const piece of this.#all) if (piece.owner === owner) channel.abort(piece.io)
  }

  acquireCommand(): NbdCommand {
    return this.#commands.pop() ?? new NbdCommand()
  }

  releaseCommand(command: NbdCommand): void {
    this.#commands.push(command)
  }
}
