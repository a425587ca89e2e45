/** Copies a disk from anywhere to anywhere: only its data, several pieces at once, so that it can go on where it stopped. */

import { viewMemory } from '../../sys/libc.ts'
import { mapAnonymous, unmap } from '../../sys/memory.ts'
import type { Progress } from '../pool.ts'

/** Memory that files and reactors can reach alike. */
export interface Piece {
  readonly address: number
  readonly bytes: Buffer
}

/** What a disk's content is read from. */
export interface Source {
  readonly sizeBytes: number
  /** The parts that may hold other than zeroes, in order, as [start, end) in bytes. */
  ranges(fromBytes: number): AsyncIterable<readonly [number, number]>
  /** Fills the first `length` bytes of the piece. */
  read(piece: Piece, offset: number, length: number): Promise<void>
  /** Has what waits for a peer fail at once. */
  abort?(): void
  close(): Promise<void>
}

/** What it is written to. */
export interface Sink {
  /** It reads as zeroes where nothing has been written. */
  readonly isZeroed: boolean
  write(piece: Piece, offset: number, length: number): Promise<void>
  zero(offset: number, length: number): Promise<void>
  /** What was written is safe from now on. */
  flush(): Promise<void>
  close(): Promise<void>
}

export interface CopyOptions extends Progress {
  /** Where an earlier copy came to. */
  readonly fromBytes: number
  /** Everything before that is safe in the sink: what to remember for going on. */
  readonly checkpoint?: (doneBytes: number) => Promise<void>
}

export const PIECE_BYTES = 1 << 20
const PIECES = 16
/** How much work may be done twice. */
const CHECKPOINT_BYTES = 256 << 20
const ZEROES = Buffer.alloc(PIECE_BYTES)

interface Flight {
  readonly end: number
  readonly work: Promise<void>
  readonly piece: Piece
}

export async function copyDisk(source: Source, sink: Sink, options: CopyOptions): Promise<void> {
  const address = mapAnonymous(PIECE_BYTES * PIECES)
  const copy = new Copy(source, sink, options, address)
  const abort = (): void => source.abort?.()
  options.signal.addEventListener('abort', abort)
  try {
    await copy.run()
  } catch (error) {
    options.signal.throwIfAborted()
    throw error
  } finally {
    options.signal.removeEventListener('abort', abort)
    await copy.settle()
    unmap(address, PIECE_BYTES * PIECES)
  }
}

class Copy {
  readonly #source: Source
  readonly #sink: Sink
  readonly #options: CopyOptions
  readonly #free: Piece[] = []
  /** In the order of the disk. */
  readonly #flights: Flight[] = []
  #safe: number

  constructor(source: Source, sink: Sink, options: CopyOptions, address: number) {
    this.#source = source
    this.#sink = sink
    this.#options = options
    this.#safe = options.fromBytes
    const memory = viewMemory(address, PIECE_BYTES * PIECES)
    for (let i = 0; i < PIECES; i++) {
      const bytes = Buffer.from(memory, i * PIECE_BYTES, PIECE_BYTES)
      this.#free.push({ address: address + i * PIECE_BYTES, bytes })
    }
  }

  async run(): Promise<void> {
    const { sizeBytes } = this.#source
    const { fromBytes, report } = this.#options
    report(fromBytes, sizeBytes)
    let at = fromBytes
    for await (const [start, end] of this.#source.ranges(fromBytes)) {
      await this.#hole(at, start)
      for (at = start; at < end; ) {
        const length = Math.min(PIECE_BYTES, end - at)
        await this.#start(at, length)
        at += length
      }
    }
    await this.#hole(at, sizeBytes)
    await this.#drain()
    await this.#sink.flush()
    report(sizeBytes, sizeBytes)
  }

  /** Nothing touches the memory any more. */
  async settle(): Promise<void> {
    await Promise.allSettled(this.#flights.map(({ work }) => work))
  }

  async #hole(start: number, end: number): Promise<void> {
    if (start < end && !this.#sink.isZeroed) await this.#sink.zero(start, end - start)
  }

  async #start(offset: number, length: number): Promise<void> {
    this.#options.signal.throwIfAborted()
    if (this.#free.length === 0) await this.#land()
    if (offset - this.#safe >= CHECKPOINT_BYTES) await this.#checkpoint(offset)
    const piece = this.#free.pop()!
    const work = this.#move(piece, offset, length)
    // It is waited for in turn; until then its failure is nobody's news.
    work.catch(() => {})
    this.#flights.push({ end: offset + length, work, piece })
  }

  async #move(piece: Piece, offset: number, length: number): Promise<void> {
    await this.#source.read(piece, offset, length)
    const isZero = piece.bytes.compare(ZEROES, 0, length, 0, length) === 0
    if (!isZero) await this.#sink.write(piece, offset, length)
    else if (!this.#sink.isZeroed) await this.#sink.zero(offset, length)
  }

  async #land(): Promise<void> {
    const { end, work, piece } = this.#flights[0]!
    await work
    this.#flights.shift()
    this.#free.push(piece)
    this.#options.report(end, this.#source.sizeBytes)
  }

  async #drain(): Promise<void> {
    while (this.#flights.length > 0) await this.#land()
  }

  async #checkpoint(at: number): Promise<void> {
    await this.#drain()
    await this.#sink.flush()
    await this.#options.checkpoint?.(at)
    this.#safe = at
  }
}
