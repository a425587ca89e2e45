/** Reads, writes, flushes, compares and zeroes on the multipath device, each told to the checker. */
import type { Channel } from '../../src/bdev/channel.ts'
import { BdevIo, type IoOwner, IoType } from '../../src/bdev/io.ts'
import type { Timer } from '../../src/core/clock.ts'
import type { Prng } from '../../src/core/prng.ts'
import { Status } from '../../src/spec/nvme-status.ts'
import { bytesAt } from '../../src/sys/memory.ts'
import { type Checker, describe, type Op } from './checker.ts'
import type { Client } from './client.ts'
import { fillBlock, ZEROES } from './content.ts'
import { BLOCK_SIZE } from './disk.ts'
import type { World } from './world.ts'

export interface WorkloadOptions {
  /** I/Os outstanding, at most. */
  readonly depth: number
  readonly blocksMax: number
  /** Milliseconds between an end and the next submission, at most. */
  readonly thinkMs: number
  /** Whether two writes to one block may be under way at once. */
  readonly overlaps: boolean
}

/** One of the `depth` that submit: it has at most one I/O under way. */
interface Worker {
  readonly reactor: number
  readonly buffer: number
  op: Op | null
  /** Runs until the next submission. */
  pause: Timer | null
  /** Called when the I/O has ended, instead of going on. */
  onEnd: (() => void) | null
}

const RETRY_MS = 200
const HURRIED_MS = 20
const TYPES = [
  ...Array<IoType>(8).fill(IoType.READ),
  ...Array<IoType>(8).fill(IoType.WRITE),
  IoType.FLUSH,
  IoType.WRITE_ZEROES,
  IoType.COMPARE,
  IoType.COMPARE,
]

export class Workload implements IoOwner {
  /** Blocks beyond are not used. */
  blockLimit: number
  submitted = 0
  readonly #world: World
  readonly #prng: Prng
  readonly #client: Client
  readonly #checker: Checker
  readonly #options: WorkloadOptions
  readonly #workers: Worker[] = []
  readonly #channels: (Channel | undefined)[] = []
  /** For each block, how many writes are under way. */
  readonly #writing = new Map<number, number>()
  #isStopped = false
  #hurriesUntilUs = 0
  #lastId = 0

  constructor(world: World, client: Client, checker: Checker, blockLimit: number, options: WorkloadOptions) {
    this.#world = world
    this.#prng = world.fork()
    this.#client = client
    this.#checker = checker
    this.#options = options
    this.blockLimit = blockLimit
  }

  /** Starts, or starts again after a crash of the client. */
  start(): void {
    const { depth, blocksMax } = this.#options
    const { reactors } = this.#client
    for (let i = 0; i < depth; i++) {
      const reactor = i % reactors.length
      const buffer = reactors[reactor]!.arena.allocate(blocksMax * BLOCK_SIZE)
      this.#workers.push({ reactor, buffer, op: null, pause: null, onEnd: null })
    }
    for (const worker of this.#workers) this.#goOn(worker)
  }

  /** No more I/O is submitted; what is under way ends. */
  stop(): void {
    this.#isStopped = true
  }

  /** The client is gone, and what was under way with it. */
  crashed(): void {
    for (const { op } of this.#workers) {
      if (op === null) continue
      this.#checker.abandon(op)
      this.#mark(op, -1)
    }
    this.#workers.length = 0
    this.#channels.length = 0
  }

  get isIdle(): boolean {
    return this.#workers.every(({ op }) => op === null)
  }

  /** Reads every block once. Only when stopped and idle. */
  async readAll(): Promise<void> {
    const worker = this.#workers[0]!
    const { blocksMax } = this.#options
    for (let first = 0; first < this.blockLimit; first += blocksMax) {
      const blockCount = Math.min(blocksMax, this.blockLimit - first)
      await new Promise<void>(resolve => {
        worker.onEnd = resolve
        if (!this.#submit(worker, IoType.READ, first, blockCount)) throw new Error('the device is gone')
      })
    }
    worker.onEnd = null
  }

  close(): void {
    this.#channels.forEach((channel, reactor) => {
      if (channel !== undefined) this.#client.close(reactor, channel)
    })
    this.#channels.length = 0
  }

  ioDone(io: BdevIo): void {
    // An I/O is never used again, so that one that ends twice is noticed.
    const { worker, op } = io.context as { worker: Worker; op: Op }
    const data = op.type === IoType.READ ? bytesAt(worker.buffer, op.blockCount * BLOCK_SIZE) : null
    this.#world.trace(`${describe(op)} ended: 0x${io.status.toString(16)}`)
    this.#checker.end(op, io.status, io.status === Status.SUCCESS ? data : null)
    this.#mark(op, -1)
    worker.op = null
    if (worker.onEnd === null) this.#goOn(worker)
    else worker.onEnd()
  }

  /** Submits without much of a pause for a while: something interesting is about to happen. */
  hurry(durationUs: number): void {
    this.#hurriesUntilUs = this.#world.clock.nowUs + durationUs
    for (const worker of this.#workers) {
      if (worker.pause === null) continue
      worker.pause.cancel()
      this.#goOn(worker)
    }
  }

  #goOn(worker: Worker): void {
    const isHurried = this.#world.clock.nowUs < this.#hurriesUntilUs
    const thinkMs = isHurried ? HURRIED_MS : this.#options.thinkMs
    this.#after(this.#prng.below(thinkMs * 1000) / 1000, worker)
  }

  #after(delayMs: number, worker: Worker): void {
    const { clock } = this.#client.reactors[worker.reactor]!
    worker.pause = clock.after(delayMs, () => this.#next(worker))
  }

  #next(worker: Worker): void {
    worker.pause = null
    if (this.#isStopped) return
    const wanted = this.#prng.pick(TYPES)
    const range = this.#chooseRange(wanted)
    // Everything is being written just now.
    const type = range === undefined ? IoType.FLUSH : wanted
    const [firstBlock, blockCount] = range ?? [0, 1]
    if (this.#submit(worker, type, firstBlock, blockCount)) return
    this.#after(RETRY_MS, worker)
  }

  #chooseRange(type: IoType): [number, number] | undefined {
    const { blocksMax, overlaps } = this.#options
    const isWrite = type === IoType.WRITE || type === IoType.WRITE_ZEROES
    for (let attempt = 0; attempt < 50; attempt++) {
      const blockCount = attempt > 20 ? 1 : this.#prng.between(1, Math.min(blocksMax, this.blockLimit))
      const firstBlock = this.#prng.below(this.blockLimit - blockCount + 1)
      if (overlaps || !isWrite || !this.#isWritten(firstBlock, blockCount)) return [firstBlock, blockCount]
    }
    return undefined
  }

  #isWritten(firstBlock: number, blockCount: number): boolean {
    for (let block = firstBlock; block < firstBlock + blockCount; block++) {
      if ((this.#writing.get(block) ?? 0) > 0) return true
    }
    return false
  }

  #mark({ type, firstBlock, blockCount }: Op, change: number): void {
    if (type !== IoType.WRITE && type !== IoType.WRITE_ZEROES) return
    for (let block = firstBlock; block < firstBlock + blockCount; block++) {
      this.#writing.set(block, (this.#writing.get(block) ?? 0) + change)
    }
  }

  /** False when there is no device now. */
  #submit(worker: Worker, type: IoType, firstBlock: number, blockCount: number): boolean {
    const channel = this.#channel(worker.reactor)
    if (channel === undefined) return false
    const id = ++this.#lastId
    const expected: number[] = []
    for (let block = firstBlock; block < firstBlock + blockCount; block++) {
      const at = bytesAt(worker.buffer + (block - firstBlock) * BLOCK_SIZE, BLOCK_SIZE).fill(0)
      const likely = this.#checker.likely(block)
      if (type === IoType.WRITE) fillBlock(at, id, block)
      else if (type === IoType.COMPARE && likely !== ZEROES) fillBlock(at, likely, block)
      else if (type === IoType.READ) at.fill(0xa5)
      expected.push(likely)
    }
    const submittedUs = this.#world.clock.nowUs
    const op: Op = { id, type, firstBlock, blockCount, submittedUs, expected }
    worker.op = op
    this.#mark(op, 1)
    this.#checker.begin(op)
    this.#world.trace(describe(op))
    const io = new BdevIo(this, 4)
    io.type = type
    io.firstBlock = type === IoType.FLUSH ? 0 : firstBlock
    io.blockCount = type === IoType.FLUSH ? 0 : blockCount
    io.context = { worker, op }
    if (type === IoType.READ || type === IoType.WRITE || type === IoType.COMPARE) {
      this.#segment(io, worker.buffer, blockCount * BLOCK_SIZE)
    }
    this.submitted++
    channel.submit(io)
    return true
  }

  /** The data in one to three pieces. */
  #segment(io: BdevIo, address: number, size: number): void {
    let at = 0
    for (let pieces = this.#prng.between(1, 3); pieces > 1 && size - at > 8; pieces--) {
      const part = this.#prng.between(1, (size - at) >> 2) * 4
      if (part >= size - at) break
      io.segments.push(address + at, part)
      at += part
    }
    io.segments.push(address + at, size - at)
  }

  #channel(reactor: number): Channel | undefined {
    const channel = this.#channels[reactor]
    if (channel !== undefined && !channel.isRemoved) return channel
    const opened = this.#client.open(reactor)
    this.#channels[reactor] = opened
    return opened
  }
}
