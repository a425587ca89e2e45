/**
 * Judges a run, from two sides:
 *
 *   the client's    what an I/O may return follows from the I/Os that ended before it and those beside it, per block:
 *                   a read returns the last acknowledged write, or one that was under way at the same time
 *   the medium's    what each block held when: a read returns what was there during the read, and a write that is
 *                   acknowledged was there before
 *
 * A write that lands after its I/O has ended, or once more after another one landed, comes from an attempt on a path that
 * was given up. Until there is a fence this cannot be prevented, so it is counted instead: `late` when it was harmless,
 * `lateHarmful` when it hid newer data. From then on the old content counts as a content that the block may have.
 */
import { IoType } from '../../src/bdev/io.ts'
import { Status, statusName } from '../../src/spec/nvme-status.ts'
import { GARBAGE, writerOf, ZEROES } from './content.ts'
import { BLOCK_SIZE, type DiskObserver } from './disk.ts'

export interface Op {
  /** From 1. */
  readonly id: number
  readonly type: IoType
  readonly firstBlock: number
  readonly blockCount: number
  readonly submittedUs: number
  /** For a compare: the value that each block is compared with. */
  readonly expected: readonly number[]
}

/** What the checker keeps of an I/O. Moments are numbers that count everything that happens. */
interface History {
  readonly op: Op
  readonly start: number
  end: number
  /** For each block, whether it was on the medium before the end. */
  readonly landed: Uint8Array
  /** For a read or compare, for each block: the values that it may have, and how many writes there were, at the start. */
  readonly candidates: readonly { readonly values: readonly number[]; readonly from: number }[]
}

interface LiveWrite {
  readonly value: number
  /** The write, or when the value appeared without one: at the start, or by a late landing. */
  readonly source: History | { readonly end: number }
}

interface Block {
  /** Values that the block may have, from the client's side. */
  live: LiveWrite[]
  /** Values of all writes, in the order of their start. */
  readonly started: number[]
  /** What the medium held, each from a moment on. */
  readonly held: { readonly from: number; readonly value: number }[]
}

export interface CheckerOptions {
  readonly blockCount: number
  /** Hears of a violation as soon as it is found. */
  readonly violated: (what: string) => void
  /** Whether that I/O may end with an error. */
  readonly mayFail: (op: Op, status: number) => boolean
}

const isWriting = (type: IoType): boolean => type === IoType.WRITE || type === IoType.WRITE_ZEROES
const PENDING = Number.POSITIVE_INFINITY

export class Checker implements DiskObserver {
  /** Landings after the end of their I/O that changed nothing, and those that hid newer data. */
  late = 0
  lateHarmful = 0
  ended = 0
  failed = 0
  readonly #options: CheckerOptions
  readonly #blocks: Block[] = []
  readonly #records = new Map<number, History>()
  readonly #outstanding = new Set<History>()
  #moment = 0

  constructor(options: CheckerOptions) {
    this.#options = options
    this.grow(options.blockCount)
  }

  get outstanding(): Op[] {
    return [...this.#outstanding].map(({ op }) => op)
  }

  grow(blockCount: number): void {
    while (this.#blocks.length < blockCount) {
      this.#blocks.push({
        live: [{ value: ZEROES, source: { end: 0 } }],
        started: [],
        held: [{ from: 0, value: ZEROES }],
      })
    }
  }

  /** What a client may take the block to hold: the newest write that it knows of. */
  likely(block: number): number {
    return this.#blocks[block]!.live.at(-1)!.value
  }

  begin(op: Op): void {
    const blocks = this.#of(op)
    const record: History = {
      op,
      start: ++this.#moment,
      end: PENDING,
      landed: new Uint8Array(op.blockCount),
      candidates: isWriting(op.type)
        ? []
        : blocks.map(({ live, started }) => ({
            values: live.map(({ value }) => value),
            from: started.length,
          })),
    }
    this.#records.set(op.id, record)
    this.#outstanding.add(record)
    if (!isWriting(op.type)) return
    const value = valueWritten(op)
    for (const block of blocks) {
      block.live.push({ value, source: record })
      block.started.push(value)
    }
  }

  /** The client has crashed: nobody will hear of the end, and a write may land at any time, or not at all. */
  abandon(op: Op): void {
    this.#outstanding.delete(this.#records.get(op.id)!)
  }

  /** `data`: what a read returned. */
  end(op: Op, status: number, data: Uint8Array | null): void {
    const record = this.#records.get(op.id)!
    if (record.end !== PENDING) {
      this.violated(`${describe(op)} ended twice`)
      return
    }
    record.end = ++this.#moment
    this.#outstanding.delete(record)
    this.ended++
    const isAnswer =
      status === Status.SUCCESS || (op.type === IoType.COMPARE && status === Status.COMPARE_FAILURE)
    if (!isAnswer) {
      this.failed++
      if (!this.#options.mayFail(op, status)) {
        this.violated(`${describe(op)} failed with ${statusName(status)}, though a path could be used`)
      }
      return
    }
    if (isWriting(op.type)) this.#acknowledged(record)
    else if (op.type === IoType.READ) this.#checkRead(record, data!)
    else if (op.type === IoType.COMPARE) this.#checkCompare(record, status === Status.SUCCESS)
  }

  landed(number: number, content: Uint8Array): void {
    const moment = ++this.#moment
    const block = this.#blocks[number]!
    const value = writerOf(content, number)
    const before = block.held.at(-1)!.value
    block.held.push({ from: moment, value })
    const owners = this.#ownersOf(value, number)
    if (value === GARBAGE || owners.length === 0) {
      this.violated(`block ${number} got what nobody wrote there`)
      return
    }
    const pending = owners.filter(({ end }) => end === PENDING)
    for (const record of pending) {
      const index = number - record.op.firstBlock
      // Again after something else landed: an attempt that was given up, or the one that replaced it.
      if (record.landed[index] === 1 && before !== value) this.#landedLate(block, record.op, number, before)
      record.landed[index] = 1
    }
    if (pending.length > 0) return
    if (before === value) this.late++
    else this.#landedLate(block, owners[0]!.op, number, before)
  }

  violated(what: string): void {
    this.#options.violated(what)
  }

  /** Writes that may have that value in that block. */
  #ownersOf(value: number, number: number): History[] {
    const covers = ({ op }: History): boolean =>
      number >= op.firstBlock && number < op.firstBlock + op.blockCount && isWriting(op.type)
    if (value !== ZEROES) {
      const record = this.#records.get(value)
      return record !== undefined && covers(record) && record.op.type === IoType.WRITE ? [record] : []
    }
    const zeroing = (record: History): boolean => record.op.type === IoType.WRITE_ZEROES && covers(record)
    const pending = [...this.#outstanding].filter(zeroing)
    return pending.length > 0 ? pending : [...this.#records.values()].filter(zeroing)
  }

  #landedLate(block: Block, op: Op, number: number, hidden: number): void {
    this.late++
    this.lateHarmful++
    this.onLate(`${describe(op)} landed late in block ${number}, over ${hidden}`)
    const value = valueWritten(op)
    block.live.push({ value, source: { end: this.#moment } })
    block.started.push(value)
  }

  /** Hears of each harmful late landing. */
  onLate: (what: string) => void = () => {}

  #acknowledged(record: History): void {
    const { op } = record
    this.#of(op).forEach((block, index) => {
      if (record.landed[index] === 0) {
        this.violated(
          `${describe(op)} was acknowledged, and block ${op.firstBlock + index} is not on the medium`,
        )
      }
      // Whatever had ended before this one began cannot be read any more.
      block.live = block.live.filter(({ source }) => source === record || source.end > record.start)
    })
  }

  #checkRead(record: History, data: Uint8Array): void {
    const { op } = record
    this.#of(op).forEach((block, index) => {
      const number = op.firstBlock + index
      const value = writerOf(data.subarray(index * BLOCK_SIZE, (index + 1) * BLOCK_SIZE), number)
      const { values, from } = record.candidates[index]!
      if (value === GARBAGE) {
        this.violated(`${describe(op)} returned garbage in block ${number}`)
      } else if (!values.includes(value) && !block.started.includes(value, from)) {
        this.violated(
          `${describe(op)} returned write ${value} in block ${number}: it may only hold ${[...values, ...block.started.slice(from)].join(', ')}`,
        )
      } else if (!this.#heldDuring(block, record).includes(value)) {
        this.violated(
          `${describe(op)} returned write ${value} in block ${number}, which the medium did not hold then`,
        )
      }
    })
  }

  #checkCompare(record: History, isEqual: boolean): void {
    const { op } = record
    const blocks = this.#of(op)
    const possible = blocks.map(block => this.#heldDuring(block, record))
    const couldBeEqual = possible.every((values, index) => values.includes(op.expected[index]!))
    const couldDiffer = possible.some((values, index) => values.some(value => value !== op.expected[index]))
    if (isEqual ? !couldBeEqual : !couldDiffer) {
      this.violated(
        `${describe(op)} found ${isEqual ? 'no ' : 'a '}difference that the medium did not have then`,
      )
    }
  }

  /** What the medium held between the start and the end of an I/O. */
  #heldDuring(block: Block, { start, end }: History): number[] {
    const values: number[] = []
    for (let i = block.held.length - 1; i >= 0; i--) {
      const { from, value } = block.held[i]!
      if (from > end) continue
      values.push(value)
      if (from <= start) break
    }
    return values
  }

  #of({ firstBlock, blockCount, type }: Op): Block[] {
    return type === IoType.FLUSH ? [] : this.#blocks.slice(firstBlock, firstBlock + blockCount)
  }
}

const valueWritten = (op: Op): number => (op.type === IoType.WRITE ? op.id : ZEROES)

const NAMES: { readonly [type: number]: string } = {
  [IoType.READ]: 'read',
  [IoType.WRITE]: 'write',
  [IoType.FLUSH]: 'flush',
  [IoType.WRITE_ZEROES]: 'write zeroes',
  [IoType.COMPARE]: 'compare',
}

export const describe = ({ id, type, firstBlock, blockCount }: Op): string =>
  `${NAMES[type]} ${id} of blocks ${firstBlock} to ${firstBlock + blockCount - 1}`
