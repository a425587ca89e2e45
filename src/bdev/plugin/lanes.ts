/**
 * Memory that the reactors share with the thread of a user's module: for each reactor a lane of request slots.
 *
 *   reactor                                          the module's thread
 *   fills a slot, SUBMITTED, rings the doorbell -->  takes it: RUNNING, calls the user's function
 *   hears the lane's eventfd, sees DONE         <--  LOCKED while it copies, then DONE
 *
 * The state and the request's number are one word, changed by compare-and-exchange only: a reactor that gives a request up
 * (a late answer, an abort) changes the word, and the thread then finds that it may not touch the I/O's memory any more.
 */
import { close, eventfd, write } from '../../sys/libc.ts'

export const LANES = 64
export const SLOTS = 128
const HEADER_WORDS = 16
const LANE_HEADER_WORDS = 16
const SLOT_WORDS = 8
const LANE_WORDS = LANE_HEADER_WORDS + SLOTS * SLOT_WORDS
const TWO_32 = 2 ** 32

export const State = { FREE: 0, SUBMITTED: 1, RUNNING: 2, LOCKED: 3, DONE: 4 } as const

/** Words of the header. */
const DOORBELL = 0
const DEAD = 1
/** Words of a lane's header. An eventfd is kept as its number + 1. */
const EVENTFD = 0
const SUBMITTED = 1
const ANSWERED = 2
/** Words of a slot. */
const WORD = 0
const TYPE = 1
const OFFSET = 2
const LENGTH = 4
const ADDRESS = 5
const STATUS = 7
const FUA = 0x100

export class Lanes {
  readonly words: Int32Array

  constructor(memory: SharedArrayBuffer) {
    this.words = new Int32Array(memory)
  }

  static create(): SharedArrayBuffer {
    return new SharedArrayBuffer((HEADER_WORDS + LANES * LANE_WORDS) * 4)
  }

  get isDead(): boolean {
    return Atomics.load(this.words, DEAD) !== 0
  }

  /** The thread has ended and answers nothing any more. */
  setDead(): void {
    Atomics.store(this.words, DEAD, 1)
    for (let index = 0; index < LANES; index++) this.lane(index).wake()
  }

  lane(index: number): Lane {
    return new Lane(this.words, HEADER_WORDS + index * LANE_WORDS)
  }

  /** How often the doorbell has rung. */
  get doorbell(): number {
    return Atomics.load(this.words, DOORBELL)
  }

  /** Resolves when the doorbell has rung since it stood at `seen`. */
  async waitForDoorbell(seen: number): Promise<void> {
    const wait = Atomics as unknown as WaitAsync
    const result = wait.waitAsync(this.words, DOORBELL, seen)
    if (result.async) await result.value
  }

  /** No thread uses the lanes any more. */
  close(): void {
    for (let index = 0; index < LANES; index++) this.lane(index).close()
  }
}

/** In the language since ES2024, and in every Node that we run on. */
interface WaitAsync {
  waitAsync(
    words: Int32Array,
    index: number,
    value: number,
  ): { async: true; value: Promise<string> } | { async: false; value: string }
}

export class Lane {
  readonly #words: Int32Array
  readonly #at: number

  constructor(words: Int32Array, at: number) {
    this.#words = words
    this.#at = at
  }

  /** The eventfd that tells the reactor of answers; made when it is first asked for, and kept until the lanes close. */
  openEventfd(): number {
    const present = Atomics.load(this.#words, this.#at + EVENTFD)
    if (present > 0) return present - 1
    const fd = eventfd()
    if (fd >= 0) Atomics.store(this.#words, this.#at + EVENTFD, fd + 1)
    return fd
  }

  get isOpen(): boolean {
    return Atomics.load(this.#words, this.#at + EVENTFD) > 0
  }

  get submitted(): number {
    return Atomics.load(this.#words, this.#at + SUBMITTED)
  }

  get answered(): number {
    return Atomics.load(this.#words, this.#at + ANSWERED)
  }

  /** For the thread: an answer is there. `one` is the address of a 64-bit 1. */
  answer(one: number): void {
    Atomics.add(this.#words, this.#at + ANSWERED, 1)
    write(Atomics.load(this.#words, this.#at + EVENTFD) - 1, one, 8)
  }

  /** Makes the reactor look, without an answer: only its counter moves. */
  wake(): void {
    Atomics.add(this.#words, this.#at + ANSWERED, 1)
  }

  close(): void {
    const fd = Atomics.exchange(this.#words, this.#at + EVENTFD, 0) - 1
    if (fd >= 0) close(fd)
  }

  /** For the reactor: hands a request over. `word` is its number and SUBMITTED. */
  submit(
    slot: number,
    word: number,
    type: number,
    fua: boolean,
    offset: number,
    length: number,
    address: number,
  ): void {
    const words = this.#words
    const at = this.#slotAt(slot)
    words[at + TYPE] = type | (fua ? FUA : 0)
    words[at + OFFSET] = offset | 0
    words[at + OFFSET + 1] = (offset / TWO_32) | 0
    words[at + LENGTH] = length
    words[at + ADDRESS] = address | 0
    words[at + ADDRESS + 1] = (address / TWO_32) | 0
    Atomics.store(words, at + WORD, word)
    Atomics.add(words, this.#at + SUBMITTED, 1)
    Atomics.add(words, DOORBELL, 1)
    Atomics.notify(words, DOORBELL)
  }

  word(slot: number): number {
    return Atomics.load(this.#words, this.#slotAt(slot) + WORD)
  }

  /** True when the word was `from` and is now `to`. */
  change(slot: number, from: number, to: number): boolean {
    return Atomics.compareExchange(this.#words, this.#slotAt(slot) + WORD, from, to) === from
  }

  typeOf(slot: number): number {
    return this.#words[this.#slotAt(slot) + TYPE]! & 0xff
  }

  isFua(slot: number): boolean {
    return (this.#words[this.#slotAt(slot) + TYPE]! & FUA) !== 0
  }

  offsetOf(slot: number): number {
    return this.#number(this.#slotAt(slot) + OFFSET)
  }

  lengthOf(slot: number): number {
    return this.#words[this.#slotAt(slot) + LENGTH]! >>> 0
  }

  addressOf(slot: number): number {
    return this.#number(this.#slotAt(slot) + ADDRESS)
  }

  statusOf(slot: number): number {
    return this.#words[this.#slotAt(slot) + STATUS]!
  }

  setStatus(slot: number, status: number): void {
    this.#words[this.#slotAt(slot) + STATUS] = status
  }

  #slotAt(slot: number): number {
    return this.#at + LANE_HEADER_WORDS + slot * SLOT_WORDS
  }

  #number(at: number): number {
    return (this.#words[at]! >>> 0) + (this.#words[at + 1]! >>> 0) * TWO_32
  }
}

/** A request's number and its state in one word. */
export const wordOf = (id: number, state: number): number => id * 8 + state
export const stateOf = (word: number): number => word & 7
export const idOf = (word: number): number => word >>> 3
/** Numbers of requests wrap here, so that a word stays a positive small integer. */
export const ID_MAX = 2 ** 27
