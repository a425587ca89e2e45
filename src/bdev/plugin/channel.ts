/** A reactor's way to the thread of a user's module: see `lanes.ts`. */
import type { Timer } from '../../core/clock.ts'
import { logger } from '../../core/log.ts'
import type { Reactor } from '../../reactor/reactor.ts'
import { CqeFlag } from '../../spec/io-uring.ts'
import { Status } from '../../spec/nvme-status.ts'
import { BufferPool } from '../../sys/memory.ts'
import type { RingHandler, Uring } from '../../sys/uring.ts'
import type { BdevInfo, DriverChannel } from '../bdev.ts'
import { type BdevIo, IoType } from '../io.ts'
import { ID_MAX, type Lane, Lanes, SLOTS, State, wordOf } from './lanes.ts'

const log = logger('bdev')

/** What a channel needs to know: cloned to the reactors, the memory shared. */
export interface PluginDevice {
  readonly memory: SharedArrayBuffer
  readonly path: string
  readonly timeoutMs: number
}

/** One request to the user's code: a whole I/O, or a piece of one whose data lies in several places. */
class Slot {
  readonly index: number
  io: BdevIo | null = null
  id = 0
  startedUs = 0
  /** It is to end early, and could not yet. */
  isUnwanted = false
  /** Bytes of the I/O that are done, and in the piece that is running. */
  doneBytes = 0
  pieceBytes = 0
  buffer = 0
  bufferBytes = 0

  constructor(index: number) {
    this.index = index
  }
}

export class PluginChannel implements DriverChannel {
  readonly lends = false
  readonly #info: BdevInfo
  readonly #reactor: Reactor
  readonly #device: PluginDevice
  readonly #lanes: Lanes
  readonly #lane: Lane
  readonly #bell: Bell | null
  readonly #slots = Array.from({ length: SLOTS }, (_, index) => new Slot(index))
  readonly #free = [...this.#slots]
  /** What found no slot or no buffer; linked by `next`. */
  #firstWaiting: BdevIo | null = null
  #lastWaiting: BdevIo | null = null
  #running = 0
  #answersSeen: number
  #timer: Timer | null = null
  /** Until what could not be given up is tried again. */
  #soon: Timer | null = null

  constructor(info: BdevInfo, reactor: Reactor) {
    this.#info = info
    this.#reactor = reactor
    this.#device = info.device as PluginDevice
    this.#lanes = new Lanes(this.#device.memory)
    this.#lane = this.#lanes.lane(reactor.index)
    this.#answersSeen = this.#lane.answered
    const fd = this.#lane.openEventfd()
    this.#bell = reactor.ring === null || fd < 0 ? null : new Bell(reactor.ring, fd)
    reactor.addPoller(this.#poll)
  }

  submit(io: BdevIo): void {
    if (this.#lanes.isDead) io.complete(Status.INTERNAL_ERROR)
    else if (this.#firstWaiting !== null || !this.#start(io)) this.#wait(io)
  }

  abort(io: BdevIo | null): void {
    for (const slot of this.#slots) {
      if (slot.io === null || (io !== null && slot.io !== io)) continue
      if (this.#giveUp(slot, Status.ABORTED_BY_REQUEST)) continue
      slot.isUnwanted = true
      this.#giveUpSoon()
    }
    const waiting = this.#firstWaiting
    this.#firstWaiting = null
    this.#lastWaiting = null
    for (let one = waiting; one !== null; ) {
      const next = one.next as BdevIo | null
      if (io === null || one === io) one.complete(Status.ABORTED_BY_REQUEST)
      else this.#wait(one)
      one = next
    }
  }

  /** The thread has ended: the poller finds out. */
  tell(): void {
    this.#poll()
  }

  close(): void {
    this.#timer?.cancel()
    this.#soon?.cancel()
    this.#reactor.removePoller(this.#poll)
    this.#bell?.close()
  }

  readonly #poll = (): number => {
    const { answered } = this.#lane
    if (answered === this.#answersSeen) return 0
    this.#answersSeen = answered
    let events = 0
    for (const slot of this.#slots) {
      if (slot.io === null) continue
      if (this.#lane.word(slot.index) === wordOf(slot.id, State.DONE)) {
        this.#answered(slot, slot.io)
        events++
      } else if (this.#lanes.isDead) {
        this.#end(slot, Status.INTERNAL_ERROR)
        events++
      }
    }
    this.#startWaiting()
    return events
  }

  #start(io: BdevIo): boolean {
    const slot = this.#free.pop()
    if (slot === undefined) return false
    slot.io = io
    slot.isUnwanted = false
    slot.doneBytes = 0
    if (this.#next(slot, io)) {
      if (this.#running++ === 0) {
        if (this.#bell === null) this.#reactor.awaited++
        this.#watch()
      }
      return true
    }
    slot.io = null
    this.#free.push(slot)
    return false
  }

  /** Hands over the I/O, or its next piece. False when there is no buffer for it. */
  #next(slot: Slot, io: BdevIo): boolean {
    const { blockSize } = this.#info
    const left = io.blockCount * blockSize - slot.doneBytes
    const carriesData = io.type === IoType.READ || io.type === IoType.WRITE
    const isDirect = !carriesData || io.segments.count === 1
    slot.pieceBytes = isDirect ? left : Math.min(left, BufferPool.MAX_SIZE)
    let address = carriesData ? io.segments.addresses[0]! : 0
    if (!isDirect) {
      if (slot.buffer === 0) {
        slot.buffer = this.#reactor.buffers.acquire(slot.pieceBytes)
        slot.bufferBytes = slot.pieceBytes
        if (slot.buffer === 0) return false
      }
      address = slot.buffer
      if (io.type === IoType.WRITE) io.segments.copyTo(address, slot.doneBytes, slot.pieceBytes)
    }
    slot.id = (slot.id + 1) % ID_MAX
    slot.startedUs = this.#reactor.clock.nowUs()
    const offset = io.firstBlock * blockSize + slot.doneBytes
    const word = wordOf(slot.id, State.SUBMITTED)
    this.#lane.submit(slot.index, word, io.type, io.fua, offset, slot.pieceBytes, address)
    return true
  }

  #answered(slot: Slot, io: BdevIo): void {
    const status = this.#lane.statusOf(slot.index)
    if (status !== Status.SUCCESS) {
      this.#end(slot, status)
      return
    }
    if (slot.buffer !== 0 && io.type === IoType.READ) {
      io.segments.copyFrom(slot.buffer, slot.doneBytes, slot.pieceBytes)
    }
    slot.doneBytes += slot.pieceBytes
    // A further piece uses the buffer that the first one got.
    if (slot.doneBytes === io.blockCount * this.#info.blockSize) this.#end(slot, Status.SUCCESS)
    else if (slot.isUnwanted) this.#end(slot, Status.ABORTED_BY_REQUEST)
    else this.#next(slot, io)
  }

  /** Tries again what could not be given up, because the thread was copying its data. */
  #giveUpSoon(): void {
    this.#soon ??= this.#reactor.clock.after(1, () => {
      this.#soon = null
      for (const slot of this.#slots) {
        if (slot.io === null || !slot.isUnwanted) continue
        if (!this.#giveUp(slot, Status.ABORTED_BY_REQUEST)) this.#giveUpSoon()
      }
    })
  }

  /** Ends the I/O without an answer, unless its data is being copied at this very moment, to the thread or from it. */
  #giveUp(slot: Slot, status: number): boolean {
    const free = wordOf(slot.id, State.FREE)
    const { index } = slot
    const isOurs =
      this.#lane.change(index, wordOf(slot.id, State.SUBMITTED), free) ||
      this.#lane.change(index, wordOf(slot.id, State.RUNNING), free)
    if (isOurs) this.#end(slot, status)
    return isOurs
  }

  #end(slot: Slot, status: number): void {
    const io = slot.io!
    slot.io = null
    if (slot.buffer !== 0) {
      this.#reactor.buffers.release(slot.buffer, slot.bufferBytes)
      slot.buffer = 0
    }
    this.#free.push(slot)
    if (--this.#running === 0 && this.#bell === null) this.#reactor.awaited--
    io.complete(status)
  }

  #wait(io: BdevIo): void {
    io.next = null
    if (this.#lastWaiting === null) this.#firstWaiting = io
    else this.#lastWaiting.next = io
    this.#lastWaiting = io
    // Nothing runs that could make room by ending: look again soon.
    if (this.#running === 0) this.#watch()
  }

  #startWaiting(): void {
    for (let io = this.#firstWaiting; io !== null; io = this.#firstWaiting) {
      const next = io.next as BdevIo | null
      io.next = null
      if (this.#lanes.isDead) io.complete(Status.INTERNAL_ERROR)
      else if (!this.#start(io)) {
        io.next = next
        return
      }
      this.#firstWaiting = next
      if (next === null) this.#lastWaiting = null
    }
  }

  /** Looks now and then for requests that take too long. */
  #watch(): void {
    if (this.#timer !== null) return
    this.#timer = this.#reactor.clock.after(Math.max(1, this.#device.timeoutMs / 4), () => {
      this.#timer = null
      this.#giveUpLate()
      this.#startWaiting()
      if (this.#running > 0 || this.#firstWaiting !== null) this.#watch()
    })
  }

  #giveUpLate(): void {
    const { timeoutMs, path } = this.#device
    const latestUs = this.#reactor.clock.nowUs() - timeoutMs * 1000
    let late = 0
    for (const slot of this.#slots) {
      if (slot.io === null || slot.startedUs > latestUs) continue
      if (this.#giveUp(slot, Status.INTERNAL_ERROR)) late++
    }
    if (late === 0) return
    log.error(
      `${this.#info.name}: ${late} I/O(s) failed: the plugin ${path} did not answer within ${timeoutMs} ms (timeout_ms)`,
    )
  }
}

/** Wakes the reactor from its sleep when there are answers; the poller finds them. */
class Bell implements RingHandler {
  readonly #ring: Uring
  readonly #fd: number
  readonly #token: number
  #isClosed = false

  constructor(ring: Uring, fd: number) {
    this.#ring = ring
    this.#fd = fd
    this.#token = ring.register(this)
    ring.pollReadable(fd, this.#token)
  }

  complete(_result: number, flags: number): void {
    if ((flags & CqeFlag.MORE) !== 0) return
    if (this.#isClosed) this.#ring.unregister(this.#token)
    else this.#ring.pollReadable(this.#fd, this.#token)
  }

  close(): void {
    this.#isClosed = true
    this.#ring.cancel(this.#token)
  }
}
