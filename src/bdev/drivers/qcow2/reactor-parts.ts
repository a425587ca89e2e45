/** What an engine needs of a reactor besides files: buffers, the next round, and threads that decompress. */
import * as zlib from 'node:zlib'
import type { Reactor } from '../../../reactor/reactor.ts'
import { Compression } from '../../../spec/qcow2.ts'
import type { Decompressor } from './reader.ts'
import type { Buffers } from './tables.ts'
import type { Steps, Task } from './task.ts'
import { zstdFrameLength } from './zstd-frame.ts'

/** Calls back in the next round. */
export class Soon {
  readonly #reactor: Reactor
  #waiting: (() => void)[] = []

  constructor(reactor: Reactor) {
    this.#reactor = reactor
  }

  add(done: () => void): void {
    if (this.#waiting.length === 0) {
      this.#reactor.addPoller(this.#poll)
      this.#reactor.awaited++
    }
    this.#waiting.push(done)
  }

  readonly #poll = (): number => {
    const waiting = this.#waiting
    this.#waiting = []
    this.#reactor.awaited--
    this.#reactor.removePoller(this.#poll)
    for (const done of waiting) done()
    return waiting.length
  }
}

export class ReactorBuffers implements Buffers {
  readonly #reactor: Reactor
  readonly #soon: Soon

  constructor(reactor: Reactor, soon: Soon) {
    this.#reactor = reactor
    this.#soon = soon
  }

  *acquire(task: Task, sizeBytes: number): Steps<number> {
    for (;;) {
      const address = this.#reactor.buffers.acquire(sizeBytes)
      if (address > 0) return address
      task.park()
      this.#soon.add(() => task.unpark())
      yield
    }
  }

  release(address: number, sizeBytes: number): void {
    this.#reactor.buffers.release(address, sizeBytes)
  }
}

/** In Node since 22.15 and 23.8. */
type ZstdDecompress = (
  input: Uint8Array,
  options: object,
  done: (error: Error | null, output: Buffer) => void,
) => void

const zstdDecompress = (zlib as unknown as { zstdDecompress?: ZstdDecompress }).zstdDecompress

/** Whether images with that compression can be read by this Node. */
export const canDecompress = (compression: number): boolean =>
  compression === Compression.ZLIB || zstdDecompress !== undefined

/** On the threads of Node's pool: 64 KiB take a fifth of a millisecond, in which the reactor serves others. */
export class ZlibDecompressor implements Decompressor {
  readonly #reactor: Reactor

  constructor(reactor: Reactor) {
    this.#reactor = reactor
  }

  decompress(
    compression: number,
    input: Uint8Array,
    size: number,
    done: (output: Uint8Array | null) => void,
  ): void {
    this.#reactor.awaited++
    const finish = (error: Error | null, output: Uint8Array): void => {
      this.#reactor.awaited--
      done(error === null && output.length === size ? output : null)
    }
    if (compression === Compression.ZSTD) {
      const frame = input.subarray(0, zstdFrameLength(input))
      zstdDecompress!(frame, { maxOutputLength: size }, finish)
    } else {
      // The stream may go on behind the cluster's last byte, and end anywhere in the last sector.
      const { Z_SYNC_FLUSH } = zlib.constants
      zlib.inflateRaw(input, { finishFlush: Z_SYNC_FLUSH, maxOutputLength: size }, finish)
    }
  }
}
