/**
 * Compare, compare-and-write and write zeroes for devices that have only reads and writes. Slow in comparison, and right:
 *
 *   COMPARE            read a piece into a buffer, memcmp, next piece
 *   COMPARE_AND_WRITE  take the device's lock, compare, write the second half in one WRITE, give the lock back
 *   WRITE_ZEROES       write a piece of zeroes, next piece
 *
 * A compare-and-write is atomic with respect to every other compare-and-write of the device, on all reactors of this
 * process. It is not with respect to plain writes that are outstanding at the same time, nor to other processes that have
 * the medium open: a device that can do better lists the type in `supports`.
 */
import { assert } from '../core/assert.ts'
import type { Reactor } from '../reactor/reactor.ts'
import { Status } from '../spec/nvme-status.ts'
import { BufferPool } from '../sys/memory.ts'
import type { Channel } from './channel.ts'
import { BdevIo, type IoOwner, IoType, Segments } from './io.ts'

/** Not a status: it ends later. */
const PENDING = -1

const ZERO_PIECE = 65536
/** Pieces of zeroes in one WRITE: 1 MiB. */
const ZERO_SEGMENTS = 16

/** For each reactor, `ZERO_PIECE` zeroed bytes that nobody writes to. */
const zeroes = new WeakMap<Reactor, number>()

function zeroesOf(reactor: Reactor): number {
  let address = zeroes.get(reactor)
  if (address === undefined) {
    address = reactor.arena.allocate(ZERO_PIECE, 4096)
    assert(address > 0, `reactor ${reactor.index} has 64 KiB left for zeroes`)
    zeroes.set(reactor, address)
  }
  return address
}

export class Emulation {
  readonly channel: Channel
  readonly lock: Int32Array
  readonly #free: Emulated[] = []
  readonly #active = new Set<Emulated>()
  /** Those that wait for a buffer or for the lock, which give no sign when they are free. */
  readonly #waiting: Emulated[] = []

  constructor(channel: Channel, lock: Int32Array) {
    this.channel = channel
    this.lock = lock
  }

  submit(io: BdevIo): void {
    const request = this.#free.pop() ?? new Emulated(this)
    this.#active.add(request)
    request.start(io)
  }

  abort(io: BdevIo | null): void {
    for (const request of this.#active) {
      if (io === null || request.parent === io) request.abort()
    }
  }

  wait(request: Emulated): void {
    if (this.#waiting.length === 0) {
      this.channel.reactor.addPoller(this.#retry)
      this.channel.reactor.awaited++
    }
    this.#waiting.push(request)
  }

  done(request: Emulated): void {
    this.#active.delete(request)
    this.#free.push(request)
  }

  readonly #retry = (): number => {
    const waiting = this.#waiting.splice(0)
    this.channel.reactor.awaited--
    this.channel.reactor.removePoller(this.#retry)
    for (const request of waiting) request.resume()
    return waiting.length - this.#waiting.length
  }
}

/** One request that is being emulated: a chain of children, one at a time. */
class Emulated implements IoOwner {
  parent: BdevIo | null = null
  readonly #emulation: Emulation
  readonly #child: BdevIo
  readonly #piece = new Segments(ZERO_SEGMENTS)
  /** Grows to the longest list seen. */
  #tail = new Segments(4)
  #doneBlocks = 0
  #pieceBlocks = 0
  #buffer = 0
  #holdsLock = false
  #isWriting = false
  #isWaiting = false
  #isAborted = false

  constructor(emulation: Emulation) {
    this.#emulation = emulation
    this.#child = new BdevIo(this)
    this.#child.segments = this.#piece
  }

  start(parent: BdevIo): void {
    this.parent = parent
    this.#doneBlocks = 0
    this.#isWriting = false
    this.#isAborted = false
    this.resume()
  }

  /** Goes on from wherever it is. */
  resume(): void {
    this.#isWaiting = false
    const parent = this.parent!
    let status: number = Status.ABORTED_BY_REQUEST
    if (!this.#isAborted) {
      status = parent.type === IoType.WRITE_ZEROES ? this.#writeZeroes(parent) : this.#compare(parent)
    }
    if (status !== PENDING) this.#finish(status)
  }

  abort(): void {
    this.#isAborted = true
    // What waits is resumed, and ended, in the next round; what has a child ends with it.
    if (!this.#isWaiting) this.#emulation.channel.abort(this.#child)
  }

  ioDone(child: BdevIo): void {
    if (child.status !== Status.SUCCESS) this.#finish(child.status)
    else if (this.#isWriting) this.#finish(Status.SUCCESS)
    else if (!this.#isPieceAsWanted()) this.#finish(Status.COMPARE_FAILURE)
    else {
      this.#doneBlocks += this.#pieceBlocks
      this.resume()
    }
  }

  #isPieceAsWanted(): boolean {
    const parent = this.parent!
    if (parent.type === IoType.WRITE_ZEROES) return true
    const { blockSize } = this.#emulation.channel.info
    return parent.segments.equals(this.#buffer, this.#doneBlocks * blockSize, this.#pieceBlocks * blockSize)
  }

  #writeZeroes(parent: BdevIo): number {
    const { channel } = this.#emulation
    const left = parent.blockCount - this.#doneBlocks
    if (left === 0) return Status.SUCCESS
    const { blockSize } = channel.info
    this.#pieceBlocks = Math.min(left, (ZERO_PIECE * ZERO_SEGMENTS) / blockSize)
    this.#piece.count = 0
    for (let bytes = this.#pieceBlocks * blockSize; bytes > 0; bytes -= ZERO_PIECE) {
      this.#piece.push(zeroesOf(channel.reactor), Math.min(bytes, ZERO_PIECE))
    }
    this.#submitChild(IoType.WRITE, parent.firstBlock + this.#doneBlocks, this.#pieceBlocks, this.#piece)
    return PENDING
  }

  #compare(parent: BdevIo): number {
    const { channel, lock } = this.#emulation
    const left = parent.blockCount - this.#doneBlocks
    if (this.#buffer === 0 && left > 0) {
      this.#buffer = channel.reactor.buffers.acquire(this.#bufferBytes(parent))
      if (this.#buffer === 0) return this.#wait()
    }
    // Last, so that nobody who holds the lock waits for what those behind him may have.
    if (parent.type === IoType.COMPARE_AND_WRITE && !this.#holdsLock) {
      if (Atomics.compareExchange(lock, 0, 0, 1) !== 0) return this.#wait()
      this.#holdsLock = true
    }
    if (left === 0) {
      if (parent.type === IoType.COMPARE) return Status.SUCCESS
      this.#writeSecondHalf(parent)
      return PENDING
    }
    const { blockSize } = channel.info
    this.#pieceBlocks = Math.min(left, BufferPool.MAX_SIZE / blockSize)
    this.#piece.set(this.#buffer, this.#pieceBlocks * blockSize)
    this.#submitChild(IoType.READ, parent.firstBlock + this.#doneBlocks, this.#pieceBlocks, this.#piece)
    return PENDING
  }

  #writeSecondHalf(parent: BdevIo): void {
    this.#isWriting = true
    if (this.#tail.capacity < parent.segments.count) this.#tail = new Segments(parent.segments.count)
    this.#tail.count = 0
    const half = parent.blockCount * this.#emulation.channel.info.blockSize
    parent.segments.slice(half, half, this.#tail)
    this.#submitChild(IoType.WRITE, parent.firstBlock, parent.blockCount, this.#tail)
  }

  #submitChild(type: IoType, firstBlock: number, blockCount: number, segments: Segments): void {
    const child = this.#child
    child.type = type
    child.fua = this.parent!.fua
    child.firstBlock = firstBlock
    child.blockCount = blockCount
    child.segments = segments
    this.#emulation.channel.submit(child)
  }

  #wait(): number {
    this.#isWaiting = true
    this.#emulation.wait(this)
    return PENDING
  }

  #finish(status: number): void {
    const parent = this.parent!
    if (this.#buffer !== 0) {
      this.#emulation.channel.reactor.buffers.release(this.#buffer, this.#bufferBytes(parent))
      this.#buffer = 0
    }
    if (this.#holdsLock) {
      this.#holdsLock = false
      Atomics.store(this.#emulation.lock, 0, 0)
    }
    this.parent = null
    this.#emulation.done(this)
    parent.complete(status)
  }

  #bufferBytes(parent: BdevIo): number {
    return Math.min(parent.blockCount * this.#emulation.channel.info.blockSize, BufferPool.MAX_SIZE)
  }
}
