/** An image in memory behind librbd's calls: what ends, and when, is up to a seed. */
import { constants } from 'node:os'
import { Prng } from '../../src/core/prng.ts'
import type { OpenImage } from '../../src/rbd/messages.ts'
import { write } from '../../src/sys/libc.ts'
import type { ImageIo } from '../../src/sys/librbd.ts'
import { bytesAt, mapAnonymous, unmap, viewAt } from '../../src/sys/memory.ts'

const TWO_32 = 2 ** 32
const { EIO, EILSEQ } = constants.errno
const IOVEC_SIZE = 16

interface Completion {
  readonly argument: number
  result: number
  isComplete: boolean
}

export class FakeImage implements ImageIo {
  readonly data: Buffer
  /** Calls so far, by name. */
  readonly calls: string[] = []
  /** How often somebody asked whether something has ended. */
  looks = 0
  /** Calls of these names are refused at once, or end with an error. */
  refuse = ''
  fail = ''
  errno = EIO
  /** Of each call. */
  readonly handles: number[] = []
  /** A handle that nobody may use any more. */
  closed = 0
  readonly #eventfd: number
  readonly #prng: Prng
  readonly #one = mapAnonymous(4096)
  /** Made and not yet released, by handle. */
  readonly #completions = new Map<number, Completion>()
  /** Started, in no order. */
  readonly #running: (() => void)[] = []
  readonly #ended: number[] = []
  #nextHandle = TWO_32

  constructor(image: Pick<OpenImage, 'eventfd'>, sizeBytes: number, seed: number) {
    this.data = Buffer.alloc(sizeBytes)
    this.#eventfd = image.eventfd
    this.#prng = new Prng(seed)
    viewAt(this.#one, 8).setUint32(0, 1, true)
  }

  get running(): number {
    return this.#running.length
  }

  get liveCompletions(): number {
    return this.#completions.size
  }

  /** Ends some of what is running, in any order. */
  work(): void {
    let count = this.#prng.below(this.#running.length + 1)
    if (count === 0) count = this.#running.length
    for (; count > 0; count--) this.#running.splice(this.#prng.below(this.#running.length), 1)[0]!()
  }

  free(): void {
    unmap(this.#one, 4096)
  }

  createCompletion(argument: number, result: number): number {
    const handle = this.#nextHandle
    this.#nextHandle += 16
    this.#completions.set(handle, { argument, result: 0, isComplete: false })
    const view = viewAt(result, 8)
    view.setUint32(0, handle % TWO_32, true)
    view.setUint32(4, Math.floor(handle / TWO_32), true)
    return 0
  }

  releaseCompletion(completion: number): void {
    if (!this.#completions.delete(completion)) throw new Error(`completion ${completion} is released once`)
  }

  isComplete(completion: number): number {
    this.looks++
    return this.#completions.get(completion)!.isComplete ? 1 : 0
  }

  completionResult(completion: number): number {
    return this.#completions.get(completion)!.result
  }

  completionArgument(completion: number): number {
    return this.#completions.get(completion)!.argument
  }

  pollEvents(image: number, address: number, count: number): number {
    if (image === this.closed) throw new Error(`the handle ${image} is closed`)
    const taken = this.#ended.splice(0, Math.min(count, this.#prng.below(count) + 1))
    const view = viewAt(address, count * 8)
    for (const [i, handle] of taken.entries()) {
      view.setUint32(i * 8, handle % TWO_32, true)
      view.setUint32(i * 8 + 4, Math.floor(handle / TWO_32), true)
    }
    if (this.#ended.length > 0) this.#ring()
    return taken.length
  }

  readv(image: number, iovecs: number, count: number, offset: number, completion: number): number {
    // As librbd does, the list is looked at when the data is there.
    return this.#start('readv', image, completion, () => {
      let at = offset
      for (const piece of pieces(iovecs, count)) {
        piece.set(this.data.subarray(at, at + piece.length))
        at += piece.length
      }
      return at - offset
    })
  }

  writev(image: number, iovecs: number, count: number, offset: number, completion: number): number {
    return this.#start('writev', image, completion, () => {
      Buffer.concat(pieces(iovecs, count)).copy(this.data, offset)
      return 0
    })
  }

  flush(image: number, completion: number): number {
    return this.#start('flush', image, completion, () => 0)
  }

  discard(image: number, offset: number, length: number, completion: number): number {
    return this.#start('discard', image, completion, () => this.#zero(offset, length))
  }

  writeZeroes(image: number, offset: number, length: number, completion: number): number {
    return this.#start('writeZeroes', image, completion, () => this.#zero(offset, length))
  }

  compareAndWrite(
    image: number,
    offset: number,
    length: number,
    expected: number,
    data: number,
    completion: number,
  ): number {
    return this.#start('compareAndWrite', image, completion, () => {
      const old = this.data.subarray(offset, offset + length)
      if (!old.equals(bytesAt(expected, length))) return -EILSEQ
      old.set(bytesAt(data, length))
      return 0
    })
  }

  #zero(offset: number, length: number): number {
    this.data.fill(0, offset, offset + length)
    return 0
  }

  #start(name: string, image: number, completion: number, end: () => number): number {
    if (name === this.refuse) return -EIO
    this.calls.push(name)
    this.handles.push(image)
    this.#running.push(() => {
      const ended = this.#completions.get(completion)!
      ended.result = name === this.fail ? -this.errno : end()
      ended.isComplete = true
      // As librbd does, which tells of all others.
      if (name === 'compareAndWrite') return
      this.#ended.push(completion)
      this.#ring()
    })
    return 0
  }

  #ring(): void {
    write(this.#eventfd, this.#one, 8)
  }
}

/** The buffers that a list of iovecs points to. */
function pieces(iovecs: number, count: number): Uint8Array[] {
  const view = viewAt(iovecs, count * IOVEC_SIZE)
  return Array.from({ length: count }, (_, i) =>
    bytesAt(
      view.getUint32(i * IOVEC_SIZE, true) + view.getUint32(i * IOVEC_SIZE + 4, true) * TWO_32,
      view.getUint32(i * IOVEC_SIZE + 8, true),
    ),
  )
}
