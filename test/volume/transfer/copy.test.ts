import { describe, expect, it } from 'vitest'
import {
  copyDisk,
  PIECE_BYTES,
  type Piece,
  type Sink,
  type Source,
} from '../../../src/volume/transfer/copy.ts'

/** A disk in memory whose parts are known to it. */
class MemorySource implements Source {
  readonly content: Buffer
  readonly data: readonly (readonly [number, number])[]
  aborted = false
  constructor(content: Buffer, data: readonly (readonly [number, number])[]) {
    this.content = content
    this.data = data
  }
  get sizeBytes(): number {
    return this.content.length
  }
  async *ranges(fromBytes: number): AsyncGenerator<readonly [number, number]> {
    for (const [start, end] of this.data) {
      if (end > fromBytes) yield [Math.max(start, fromBytes), end]
    }
  }
  async read({ bytes }: Piece, offset: number, length: number): Promise<void> {
    this.content.copy(bytes, 0, offset, offset + length)
  }
  abort(): void {
    this.aborted = true
  }
  async close(): Promise<void> {}
}

class MemorySink implements Sink {
  readonly isZeroed: boolean
  readonly content: Buffer
  readonly written: number[] = []
  readonly events: string[] = []
  failAt = -1
  constructor(size: number, fill: number) {
    this.content = Buffer.alloc(size, fill)
    this.isZeroed = fill === 0
  }
  async write({ bytes }: Piece, offset: number, length: number): Promise<void> {
    if (offset === this.failAt) throw new Error('no room')
    await new Promise(setImmediate)
    bytes.copy(this.content, offset, 0, length)
    this.written.push(offset)
  }
  async zero(offset: number, length: number): Promise<void> {
    this.content.fill(0, offset, offset + length)
  }
  async flush(): Promise<void> {
    this.events.push(`flush after ${this.written.length}`)
  }
  async close(): Promise<void> {}
}

const PIECES = 40
const SIZE = PIECES * PIECE_BYTES + 700
function disk(): MemorySource {
  const content = Buffer.alloc(SIZE)
  content.fill(0x11, PIECE_BYTES, 30 * PIECE_BYTES)
  // Data that is only zeroes.
  content.fill(0, 10 * PIECE_BYTES, 12 * PIECE_BYTES)
  content.fill(0x22, PIECES * PIECE_BYTES, SIZE)
  return new MemorySource(content, [
    [PIECE_BYTES, 30 * PIECE_BYTES],
    [PIECES * PIECE_BYTES, SIZE],
  ])
}
const quiet = { report: () => {}, signal: new AbortController().signal, fromBytes: 0 }

describe('copyDisk', () => {
  it('copies all data, and writes no zeroes to a disk that has them', async () => {
    const source = disk()
    const sink = new MemorySink(SIZE, 0)
    await copyDisk(source, sink, quiet)
    expect(sink.content.equals(source.content)).toBe(true)
    expect(sink.written).toHaveLength(28)
    expect(sink.events).toEqual(['flush after 28'])
  })

  it('zeroes holes of a disk that holds something else', async () => {
    const source = disk()
    const sink = new MemorySink(SIZE, 0xff)
    await copyDisk(source, sink, quiet)
    expect(sink.content.equals(source.content)).toBe(true)
  })

  it('tells how far it is, never back, up to all of it', async () => {
    const told: number[] = []
    await copyDisk(disk(), new MemorySink(SIZE, 0), { ...quiet, report: done => void told.push(done) })
    expect(told).toEqual(told.toSorted((a, b) => a - b))
    expect(told.at(-1)).toBe(SIZE)
  })

  it('goes on from where it was', async () => {
    const source = disk()
    const sink = new MemorySink(SIZE, 0)
    source.content.copy(sink.content, 0, 0, 20 * PIECE_BYTES)
    await copyDisk(source, sink, { ...quiet, fromBytes: 20 * PIECE_BYTES })
    expect(sink.content.equals(source.content)).toBe(true)
    expect(Math.min(...sink.written)).toBe(20 * PIECE_BYTES)
  })

  it('notes only what has been flushed', async () => {
    const size = 300 * PIECE_BYTES
    const source = new MemorySource(Buffer.alloc(size, 0x11), [[0, size]])
    const sink = new MemorySink(size, 0)
    const checkpoint = async (doneBytes: number): Promise<void> => {
      sink.events.push(`note ${doneBytes / PIECE_BYTES}`)
    }
    await copyDisk(source, sink, { ...quiet, checkpoint })
    expect(sink.events).toEqual(['flush after 256', 'note 256', 'flush after 300'])
  })

  it('ends with the reason when it cannot write', async () => {
    const sink = new MemorySink(SIZE, 0)
    sink.failAt = 5 * PIECE_BYTES
    await expect(copyDisk(disk(), sink, quiet)).rejects.toThrow('no room')
    expect(sink.events).toEqual([])
  })

  it('ends when it is told to, and has the source end what waits', async () => {
    const abort = new AbortController()
    const source = disk()
    const report = (done: number): void => {
      if (done > 0) abort.abort()
    }
    const copied = copyDisk(source, new MemorySink(SIZE, 0), { ...quiet, report, signal: abort.signal })
    await expect(copied).rejects.toMatchObject({ name: 'AbortError' })
    expect(source.aborted).toBe(true)
  })
})
