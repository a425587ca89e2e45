/**
 * The transmission phase of one connection: requests in, I/Os to the device, replies out.
 *
 *   take() parses a request   start() gives each piece its I/O   pieceDone() writes a reply   sent() gives pieces back
 *        |  a write's data goes to its piece first                                                |
 *        +--- stalled: too much in flight, or no buffer; tried again after something was given back +
 */
import type { Channel } from '../bdev/channel.ts'
import { Extents } from '../bdev/extents.ts'
import { IoType } from '../bdev/io.ts'
import { Command, CommandFlag, NbdError, REQUEST_MAGIC, Request } from '../spec/nbd.ts'
import { Status } from '../spec/nvme-status.ts'
import { type Arena, BufferPool } from '../sys/memory.ts'
import { checkRequest, describeRequest, PIECE_SIZE, type Terms } from './check.ts'
import { errorFromStatus } from './errors.ts'
import { BASE_ALLOCATION_ID } from './negotiation.ts'
import {
  type Output,
  writeBlockStatus,
  writeDataChunk,
  writeErrorChunk,
  writeSimpleData,
  writeSimpleReply,
} from './output.ts'
import type { NbdCommand, Piece, PieceOwner, RequestPool } from './request.ts'

/** Commands that one connection may have in flight; more wait in the socket. */
export const COMMANDS_MAX = 128
/** Pieces of one command in flight. */
const PIECES_MAX = 4
/** Bytes of buffers that one connection may hold. */
const HELD_BYTES_MAX = 32 << 20
/** Bytes that all connections of a reactor may hold: clients that do not read leave the rest of its memory to others. */
const POOL_BYTES_MAX = 192 << 20
/** Without data a device gets more at once, yet not so much that it keeps the reactor for long. */
const DATALESS_PIECE_SIZE = 8 << 20
/** Extents in one answer: the client asks again for the rest. */
const EXTENTS_MAX = 256
const EXTENTS_BUFFER_SIZE = 4096

/** The connection around it. */
export interface TransmissionHost {
  /** Something is to be sent, or there is room again: `flush` is wanted at the end of this round. */
  wake(): void
  /** No buffer is left on this reactor: wants to be woken in a later round. */
  starve(): void
  /** The client broke the protocol: the connection ends now. */
  fail(reason: string): void
  /** The client said goodbye: the connection ends when everything is answered. */
  drain(): void
  warn(message: string): void
}

export interface TransmissionParts {
  readonly host: TransmissionHost
  readonly terms: Terms
  readonly channel: Channel
  readonly arena: Arena
  readonly buffers: BufferPool
  readonly pool: RequestPool
  readonly output: Output
}

export class Transmission implements PieceOwner {
  /** Something is parsed no further until something is given back. */
  isStalled = false
  /** The export is being taken away: what comes now is refused. */
  isShutDown = false
  /** Commands in flight. */
  commandCount = 0

  readonly #host: TransmissionHost
  readonly #terms: Terms
  readonly #channel: Channel
  readonly #arena: Arena
  readonly #buffers: BufferPool
  readonly #pool: RequestPool
  readonly #output: Output
  readonly #readPieceSize: number
  readonly #extents = new Extents(EXTENTS_MAX)
  #heldBytes = 0
  /** The write whose data is arriving, and the piece it goes to; null while it waits for a piece. */
  #writing: NbdCommand | null = null
  #filling: Piece | null = null
  /** Data of a refused write that is still to be thrown away. */
  #discard = 0
  #isAbandoned = false
  #hasWarned = false

  constructor(parts: TransmissionParts) {
    this.#host = parts.host
    this.#terms = parts.terms
    this.#channel = parts.channel
    this.#arena = parts.arena
    this.#buffers = parts.buffers
    this.#pool = parts.pool
    this.#output = parts.output
    // An error in the middle of a simple reply can be told only by hanging up, so these are split late.
    this.#readPieceSize = parts.terms.structuredReplies ? PIECE_SIZE : BufferPool.MAX_SIZE
  }

  /** Where the next bytes of the stream belong: a write's data that has not arrived; 0 bytes when there is none. */
  get wantedBytes(): number {
    return this.#filling === null ? 0 : this.#filling.size - this.#filling.filled
  }

  get wantedAddress(): number {
    return this.#filling === null ? 0 : this.#filling.buffer + this.#filling.filled
  }

  /** `count` bytes, at most `wantedBytes`, were received at `wantedAddress`. */
  received(count: number): void {
    const piece = this.#filling!
    piece.filled += count
    if (piece.filled === piece.size) this.#submitFilled(piece)
  }

  /** Consumes what it can of the arena's bytes from `start` to `end` and returns where it stopped. */
  take(start: number, end: number): number {
    let at = start
    this.isStalled = false
    for (;;) {
      if (this.#writing !== null) {
        at = this.#takeData(at, end)
        if (this.#writing !== null) return at
      } else {
        if (end - at < Request.size || !this.#takeRequest(at)) return at
        at += Request.size
      }
    }
  }

  pieceDone(piece: Piece): void {
    const command = piece.command!
    const { io } = piece
    command.running--
    piece.isLoan = io.lent && io.status === Status.SUCCESS
    if (io.status !== Status.SUCCESS) {
      if (command.error === NbdError.NONE) command.error = errorFromStatus(io.status)
      // What is left of a write still has to be received.
      if (command.type !== Command.WRITE) command.left = 0
    }
    if (this.#isAbandoned) {
      command.left = 0
      this.#release(piece)
    } else if (command.type === Command.READ) this.#readDone(piece, command)
    else if (command.type === Command.WRITE) this.#writeDone(piece, command)
    else if (command.left > 0) this.#startAgain(piece, command)
    else this.#finish(piece, command)
  }

  /** What the last `output.build()` named has been sent, or never will be. */
  sent(first: Piece | null): void {
    for (let piece = first; piece !== null; ) {
      const { next } = piece
      const command = piece.command!
      if (command.left > 0 && command.type === Command.READ) this.#startAgain(piece, command)
      else this.#release(piece)
      piece = next
    }
  }

  /** The stream is gone: gives back everything but the I/Os that the device still has, and asks for the end of those. */
  abandon(): void {
    this.#isAbandoned = true
    const command = this.#writing
    this.#writing = null
    if (this.#filling !== null) this.#release(this.#filling)
    else if (command !== null && command.held === 0) this.#end(command)
    this.#filling = null
    for (const list of [this.#output.takeSent(), this.#output.takeUnsent()]) {
      for (let piece = list; piece !== null; ) {
        const { next } = piece
        piece.command!.left = 0
        this.#release(piece)
        piece = next
      }
    }
    // A device may hold them for ever, and with them the connection, its export and whoever wants to end that.
    this.#pool.abort(this, this.#channel)
  }

  /** False when the request cannot be taken now (or the connection is ending). */
  #takeRequest(at: number): boolean {
    const { view } = this.#arena
    const magic = Request.magic.get(view, at)
    if (magic !== REQUEST_MAGIC) {
      this.#host.fail(
        `a request begins with 0x${magic.toString(16)}, not with 0x${REQUEST_MAGIC.toString(16)}`,
      )
      return false
    }
    const type = Request.type.get(view, at)
    if (type === Command.DISC) {
      this.#host.drain()
      return false
    }
    const flags = Request.flags.get(view, at)
    const offset = Request.offsetBytes.get(view, at)
    const length = Request.lengthBytes.get(view, at)
    const error = this.isShutDown
      ? NbdError.ESHUTDOWN
      : checkRequest(this.#terms, type, flags, offset, length)
    if (this.commandCount >= COMMANDS_MAX) return this.#stall()
    const piece = this.#acquire(error === NbdError.NONE ? this.#bufferSize(type, length) : 0)
    if (piece === null) return this.#stall()

    const command = this.#pool.acquireCommand()
    this.commandCount++
    command.type = type
    command.flags = flags
    command.cookieHigh = Request.cookieHigh.get(view, at)
    command.cookieLow = Request.cookieLow.get(view, at)
    command.offset = offset
    command.length = length
    command.error = error
    command.nextOffset = offset
    command.left = error === NbdError.NONE ? length : 0
    command.running = 0
    command.held = 1
    piece.command = command
    if (error !== NbdError.NONE) this.#refuse(piece, command)
    else this.#begin(piece, command)
    return true
  }

  #bufferSize(type: number, length: number): number {
    if (type === Command.WRITE) return Math.min(length, PIECE_SIZE)
    if (type === Command.READ || type === Command.CACHE) {
      return this.#channel.lends ? 0 : Math.min(length, this.#readPieceSize)
    }
    return type === Command.BLOCK_STATUS ? EXTENTS_BUFFER_SIZE : 0
  }

  #begin(piece: Piece, command: NbdCommand): void {
    if (command.type === Command.WRITE) {
      this.#writing = command
      this.#fill(piece, command)
      return
    }
    if (command.type === Command.BLOCK_STATUS) {
      command.left = 0
      this.#blockStatus(piece, command)
      return
    }
    this.#start(piece, command)
    if (command.left === 0 || command.type !== Command.READ || !this.#terms.structuredReplies) return
    // More pieces are welcome but not needed: the first one comes back for the rest.
    while (command.left > 0 && command.held < PIECES_MAX) {
      const more = this.#acquire(this.#bufferSize(Command.READ, command.left))
      if (more === null) return
      more.command = command
      command.held++
      this.#start(more, command)
    }
  }

  /** Gives a piece the next part of its command and submits it. */
  #start(piece: Piece, command: NbdCommand): void {
    const { io } = piece
    let limit = this.#readPieceSize
    io.fua = false
    io.lent = false
    switch (command.type) {
      case Command.FLUSH:
        io.type = IoType.FLUSH
        break
      case Command.TRIM:
      case Command.WRITE_ZEROES:
        io.type = command.type === Command.TRIM ? IoType.UNMAP : IoType.WRITE_ZEROES
        io.fua = (command.flags & CommandFlag.FUA) !== 0
        limit = DATALESS_PIECE_SIZE
        break
      default:
        io.type = IoType.READ
        io.lent = this.#channel.lends
        if (piece.bufferSize > 0) limit = Math.min(limit, piece.bufferSize)
    }
    this.#cut(piece, command, limit)
    io.segments.count = 0
    if (io.type === IoType.READ && !io.lent) io.segments.set(piece.buffer, piece.size)
    this.#submit(piece, command)
  }

  #startAgain(piece: Piece, command: NbdCommand): void {
    this.#giveBackLoan(piece)
    this.#start(piece, command)
  }

  /** The next part of the command, of at most `limit` bytes, is this piece's. */
  #cut(piece: Piece, command: NbdCommand, limit: number): void {
    const size = Math.min(command.left, limit)
    piece.offset = command.nextOffset
    piece.size = size
    command.nextOffset += size
    command.left -= size
  }

  #submit(piece: Piece, command: NbdCommand): void {
    const { io } = piece
    const { blockSize } = this.#channel.info
    io.firstBlock = piece.offset / blockSize
    io.blockCount = piece.size / blockSize
    command.running++
    this.#channel.submit(io)
  }

  /** The next part of a write's data goes to this piece. */
  #fill(piece: Piece, command: NbdCommand): void {
    this.#cut(piece, command, piece.bufferSize)
    piece.filled = 0
    this.#filling = piece
  }

  #submitFilled(piece: Piece): void {
    const command = piece.command!
    const { io } = piece
    this.#filling = null
    if (command.left === 0) this.#writing = null
    io.type = IoType.WRITE
    io.fua = (command.flags & CommandFlag.FUA) !== 0
    io.lent = false
    io.segments.set(piece.buffer, piece.size)
    this.#submit(piece, command)
  }

  /** Moves a write's data from the receive buffer to where it belongs, or throws away that of a refused one. */
  #takeData(start: number, end: number): number {
    let at = start
    const command = this.#writing!
    if (this.#discard > 0) {
      const count = Math.min(this.#discard, end - at)
      this.#discard -= count
      if (this.#discard === 0) {
        const piece = this.#filling!
        this.#writing = null
        this.#filling = null
        this.#finish(piece, command)
      }
      return at + count
    }
    while (this.#writing === command) {
      if (this.#filling === null && !this.#fillMore(command)) return at
      const piece = this.#filling!
      const count = Math.min(piece.size - piece.filled, end - at)
      if (count === 0) return at
      this.#arena.u8.copyWithin(this.#arena.offsetOf(piece.buffer) + piece.filled, at, at + count)
      at += count
      this.received(count)
    }
    return at
  }

  #fillMore(command: NbdCommand): boolean {
    const piece = command.held < PIECES_MAX ? this.#acquire(Math.min(command.left, PIECE_SIZE)) : null
    if (piece === null) return this.#stall()
    piece.command = command
    command.held++
    this.#fill(piece, command)
    return true
  }

  #readDone(piece: Piece, command: NbdCommand): void {
    const { view } = this.#arena
    if (command.error !== NbdError.NONE) {
      this.#giveBackLoan(piece)
      const hasBegun = !this.#terms.structuredReplies && piece.offset > command.offset
      if (hasBegun) this.#host.fail('a read failed after the first part of its simple reply was sent')
      if (command.running === 0 && !hasBegun) this.#finish(piece, command)
      else this.#release(piece)
      return
    }
    const isLast = command.left === 0 && command.running === 0
    if (this.#terms.structuredReplies) writeDataChunk(view, piece, isLast)
    else writeSimpleData(view, piece, isLast)
    this.#push(piece)
  }

  #writeDone(piece: Piece, command: NbdCommand): void {
    if (this.#writing !== command && command.running === 0) {
      this.#finish(piece, command)
    } else if (command.left > 0 && this.#filling === null) {
      this.#fill(piece, command)
      this.#host.wake()
    } else {
      this.#release(piece)
    }
  }

  /** Answers a command that has no data to give, or failed, with its last piece. */
  #finish(piece: Piece, command: NbdCommand): void {
    this.#giveBackLoan(piece)
    const isStructured = command.type === Command.READ || command.type === Command.BLOCK_STATUS
    if (isStructured && this.#terms.structuredReplies) {
      writeErrorChunk(this.#arena.view, piece, command.error)
    } else {
      writeSimpleReply(this.#arena.view, piece, command.error)
    }
    this.#push(piece)
  }

  #refuse(piece: Piece, command: NbdCommand): void {
    if (!this.#hasWarned && !this.isShutDown) {
      this.#hasWarned = true
      const { type, flags, offset, length, error } = command
      const { blockSize, blockCount } = this.#terms.info
      this.#host.warn(
        `refused with error ${error}: ${describeRequest(type, flags, offset, length)} on ${blockCount} blocks of ` +
          `${blockSize} bytes; further refusals on this connection are not logged`,
      )
    }
    if (command.type === Command.WRITE && command.length > 0) {
      this.#writing = command
      this.#filling = piece
      piece.size = 0
      piece.filled = 0
      this.#discard = command.length
    } else {
      this.#finish(piece, command)
    }
  }

  #blockStatus(piece: Piece, command: NbdCommand): void {
    const { blockSize } = this.#channel.info
    const extents = this.#extents
    this.#channel.extents(command.offset / blockSize, command.length / blockSize, extents)
    const count = (command.flags & CommandFlag.REQ_ONE) !== 0 ? 1 : extents.count
    const { view } = this.#arena
    const at = this.#arena.offsetOf(piece.buffer)
    for (let i = 0; i < count; i++) {
      view.setUint32(at + i * 8, extents.lengths[i]! * blockSize, false)
      // The device's bits are the protocol's: hole 1, zero 2.
      view.setUint32(at + i * 8 + 4, extents.states[i]!, false)
    }
    piece.io.segments.set(piece.buffer, count * 8)
    writeBlockStatus(view, piece, BASE_ALLOCATION_ID, count * 8)
    this.#push(piece)
  }

  #push(piece: Piece): void {
    this.#output.push(piece)
    this.#host.wake()
  }

  #giveBackLoan(piece: Piece): void {
    if (!piece.isLoan) return
    piece.isLoan = false
    this.#channel.release(piece.io)
  }

  #stall(): false {
    this.isStalled = true
    return false
  }

  #acquire(bufferSize: number): Piece | null {
    if (bufferSize > 0 && this.#heldBytes > 0 && this.#heldBytes + bufferSize > HELD_BYTES_MAX) return null
    const piece = this.#pool.heldBytes + bufferSize > POOL_BYTES_MAX ? null : this.#pool.acquirePiece(this)
    if (piece === null) {
      this.#host.starve()
      return null
    }
    const buffer = bufferSize > 0 ? this.#buffers.acquire(bufferSize) : 0
    if (bufferSize > 0 && buffer === 0) {
      this.#pool.releasePiece(piece)
      this.#host.starve()
      return null
    }
    piece.buffer = buffer
    piece.bufferSize = bufferSize
    piece.isLoan = false
    this.#heldBytes += bufferSize
    this.#pool.heldBytes += bufferSize
    return piece
  }

  #release(piece: Piece): void {
    const command = piece.command!
    this.#giveBackLoan(piece)
    if (piece.bufferSize > 0) {
      this.#buffers.release(piece.buffer, piece.bufferSize)
      this.#heldBytes -= piece.bufferSize
      this.#pool.heldBytes -= piece.bufferSize
    }
    this.#pool.releasePiece(piece)
    command.held--
    if (command.held === 0 && this.#writing !== command) this.#end(command)
    else if (this.isStalled) this.#host.wake()
  }

  #end(command: NbdCommand): void {
    this.#pool.releaseCommand(command)
    this.commandCount--
    // Room for a stalled request; and whoever waits for the last command hears of it.
    if (this.isStalled || this.commandCount === 0) this.#host.wake()
  }
}
