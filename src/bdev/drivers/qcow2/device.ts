/**
 * An open image as plain data, cloned to the reactors, and the memory by which the threads agree on who does what.
 *
 * One reactor owns the image's tables: the first that opens a channel to it, until the device is destroyed. Others hand
 * their requests to it through the lanes. The control thread asks the owner to stop for a while, or for ever, by a word:
 *
 *   wanted  RUN -------> PAUSE ------> RUN …                 STOP
 *   state   RUNNING      PAUSED        RUNNING (reloaded)    STOPPED
 *                        everything is in the file, requests wait
 */
import { assert } from '../../../core/assert.ts'
import { RpcError } from '../../../core/errors.ts'
import { close, eventfd, write } from '../../../sys/libc.ts'
import { mapAnonymous, viewAt } from '../../../sys/memory.ts'
import { Lanes } from '../../plugin/lanes.ts'
import type { RecordingBitmap } from './bitmap-recorder.ts'
import type { Medium } from './medium.ts'

/** Of the devices, in bytes. A disk that is not a whole number of them ends before its last bytes. */
export const BLOCK_SIZE = 512

export interface BackingFile extends Medium {
  readonly fd: number
  readonly path: string
  readonly format: 'raw' | 'qcow2'
}

export interface Qcow2Device extends Medium {
  /** Of this process only. */
  readonly id: string
  readonly path: string
  readonly fd: number
  readonly isReadOnly: boolean
  readonly isDiscarding: boolean
  readonly l2CacheBytes: number
  readonly refcountCacheBytes: number
  /** From the top. */
  readonly backing: readonly BackingFile[]
  readonly words: SharedArrayBuffer
  readonly lanes: SharedArrayBuffer
  /** The bitmaps that record, as `BitmapTable` has them. */
  readonly bitmaps: SharedArrayBuffer
  /** The eventfd that wakes the owner. */
  readonly doorbell: number
}

export const Wanted = { RUN: 0, PAUSE: 1, STOP: 2 } as const
/** ABSENT: no reactor has opened it yet. FAILED: the owner could not read it; every request fails. */
export const State = { ABSENT: 0, RUNNING: 1, PAUSED: 2, STOPPED: 3, FAILED: 4 } as const

const WANTED = 0
const STATE = 1
const OWNER = 2

/** In the language since ES2024, and in every Node that we run on. */
interface WaitAsync {
  waitAsync(
    words: Int32Array,
    index: number,
    value: number,
  ): { async: true; value: Promise<string> } | { async: false; value: string }
}

export class Agreement {
  readonly #words: Int32Array
  readonly #doorbell: number

  constructor({ words, doorbell }: Pick<Qcow2Device, 'words' | 'doorbell'>) {
    this.#words = new Int32Array(words)
    this.#doorbell = doorbell
  }

  static create(): Pick<Qcow2Device, 'words' | 'lanes' | 'bitmaps' | 'doorbell'> {
    const doorbell = eventfd()
    if (doorbell < 0) {
      throw new RpcError('EMFILE', 'there is no descriptor left for an image: raise the limit (ulimit -n)')
    }
    return {
      words: new SharedArrayBuffer(3 * 4),
      lanes: Lanes.create(),
      bitmaps: new SharedArrayBuffer(BitmapTable.BYTES),
      doorbell,
    }
  }

  /** True when that reactor owns the image, from now on or since before. */
  own(reactorIndex: number): boolean {
    const owner = Atomics.compareExchange(this.#words, OWNER, 0, reactorIndex + 1)
    return owner === 0 || owner === reactorIndex + 1
  }

  get hasOwner(): boolean {
    return Atomics.load(this.#words, OWNER) > 0
  }

  get wanted(): number {
    return Atomics.load(this.#words, WANTED)
  }

  /** For the owner. */
  setState(state: number): void {
    Atomics.store(this.#words, STATE, state)
    Atomics.notify(this.#words, STATE)
  }

  get state(): number {
    return Atomics.load(this.#words, STATE)
  }

  /** Wakes the owner. */
  ring(): void {
    write(this.#doorbell, one(), 8)
  }

  /** For the control thread: has the owner, if there is one, do it, and waits until it is done or cannot be. */
  async want(wanted: number, state: number): Promise<void> {
    Atomics.store(this.#words, WANTED, wanted)
    // Who becomes the owner later looks at what is wanted first.
    if (!this.hasOwner) return
    this.ring()
    for (;;) {
      const seen = this.state
      if (seen === state || (seen === State.FAILED && wanted === Wanted.RUN)) return
      const result = (Atomics as unknown as WaitAsync).waitAsync(this.#words, STATE, seen)
      if (result.async) await result.value
    }
  }

  close(): void {
    close(this.#doorbell)
  }
}

let oneAddress = 0

/** The address of a 64-bit 1, for eventfds. */
export function one(): number {
  if (oneAddress === 0) {
    oneAddress = mapAnonymous(4096)
    viewAt(oneAddress, 8).setUint32(0, 1, true)
  }
  return oneAddress
}

/** Where the bits of bitmaps lie, as a table that the control thread changes while the owner is paused. */
export class BitmapTable {
  static readonly MAX = 256
  static readonly BYTES = (1 + BitmapTable.MAX * 3) * 8
  readonly #numbers: Float64Array

  constructor(memory: SharedArrayBuffer) {
    this.#numbers = new Float64Array(memory)
  }

  get all(): RecordingBitmap[] {
    return Array.from({ length: this.#numbers[0]! }, (_, index) => {
      const [address, sizeBytes, granularityBits] = this.#numbers.subarray(1 + index * 3, 4 + index * 3)
      return { address: address!, sizeBytes: sizeBytes!, granularityBits: granularityBits! }
    })
  }

  set(bitmaps: readonly RecordingBitmap[]): void {
    assert(bitmaps.length <= BitmapTable.MAX, `at most ${BitmapTable.MAX} bitmaps record`)
    this.#numbers[0] = bitmaps.length
    for (const [index, { address, sizeBytes, granularityBits }] of bitmaps.entries()) {
      this.#numbers.set([address, sizeBytes, granularityBits], 1 + index * 3)
    }
  }
}
