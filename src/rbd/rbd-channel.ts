/**
 * One reactor's way to an image. librbd does the work on threads of its own and tells by an eventfd that something has
 * ended; the reactor that looks first finds what has, its own I/Os and those of others:
 *
 *   submit -> slot, completion -> rbd_aio_*          eventfd -> rbd_poll_io_events -> own slot: complete
 *                                                                                  -> another reactor's: its inbox
 *
 * Of a compare-and-write librbd tells nothing: while there are some, each is looked at now and then.
 */

import type { BdevInfo, DriverChannel } from '../bdev/bdev.ts'
import { statusFromErrno } from '../bdev/errno-status.ts'
import { type BdevIo, IoType } from '../bdev/io.ts'
import { assert } from '../core/assert.ts'
import { errnoName } from '../core/errors.ts'
import { logger } from '../core/log.ts'
import type { Reactor } from '../reactor/reactor.ts'
import { IOVEC_SIZE } from '../spec/io-uring.ts'
import { Status } from '../spec/nvme-status.ts'
import { write } from '../sys/libc.ts'
import type { ImageIo } from '../sys/librbd.ts'
import { BufferPool, viewAt } from '../sys/memory.ts'
import type { Uring } from '../sys/uring.ts'
import { CompletionInbox } from './completion-inbox.ts'
import { ImageState, type OpenedAnewMessage, type OpenImage, SLOTS } from './messages.ts'
import { Watch } from './watch.ts'

const log = logger('rbd')
const EINVAL = 22
const EILSEQ = 84
/** Ceph has shut this client out. */
const ESHUTDOWN = 108
const ENOMEM = 12
const TWO_32 = 2 ** 32
const SCRATCH_SIZE = 4096
const MISMATCH_AT = 8
const ONE_AT = 16
const EVENTS_AT = 64
const EVENTS_MAX = 128
const LOG_PAUSE_US = 10e6
/** How often compare-and-writes are looked at, each of which takes Ceph longer than that … */
const LOOK_MS = 0.2
/** … and how rarely, while Ceph keeps them waiting. */
const LOOK_MS_MAX = 10
/** From one look to the next: of an end is heard late by an eighth of what it took, at most. */
const LOOK_GROWTH = 1.125
const IOVECS_MIN = 16
const IOVECS_SIZE = 16384

/** What librbd acknowledges before it is in the cluster, with its cache on; compare-and-write goes past the cache. */
const IS_KEPT_BACK = new Uint8Array(256)
for (const type of [IoType.WRITE, IoType.WRITE_ZEROES, IoType.UNMAP]) IS_KEPT_BACK[type] = 1

/** The image under one of librbd's handles. */
interface Opening {
  /** See `ImageState.opening`. */
  readonly number: number
  readonly image: number
  /** This reactor's I/Os under it. */
  running: number
  /** It was opened anew: called when nothing is running. */
  onIdle: (() => void) | null
}

export class RbdChannel implements DriverChannel {
  readonly lends = false
  readonly info: BdevInfo
  readonly reactor: Reactor
  readonly library: ImageIo
  readonly image: OpenImage
  readonly state: ImageState
  /** The last one is for what is started; in those before it something is running. */
  readonly #openings: Opening[]
  readonly #slots: Slot[] = []
  readonly #free: Slot[] = []
  /** What found no slot, oldest first. */
  readonly #waiting: BdevIo[] = []
  readonly #inboxes: readonly CompletionInbox[]
  readonly #buffers: { readonly address: number; readonly sizeBytes: number }[] = []
  /** Where librbd writes: a handle at 0, an offset that nobody looks at at 8; a 1 at 16, and a list of events. */
  readonly #scratch: number
  readonly #scratchView: DataView
  /** Wanted while something of this reactor's is running: the I/O of others is not to wake it. */
  readonly #events: Watch
  readonly #doorbell: Watch
  /** What is left of a buffer for iovecs, from its start. */
  #iovecs = 0
  #iovecsLeft = 0
  /** Under all openings. */
  #running = 0
  #lastLogUs = Number.NEGATIVE_INFINITY
  /** Whose end no event tells. */
  #unannounced: Slot[] = []
  #isLooking = false
  #lookMs = LOOK_MS
  readonly #look = (): void => this.#lookAtAll()

  constructor(info: BdevInfo, reactor: Reactor, ring: Uring, library: ImageIo) {
    this.info = info
    this.reactor = reactor
    this.library = library
    this.image = info.device as OpenImage
    this.state = new ImageState(this.image.state)
    this.#openings = [this.#opening(this.state.opening)]
    this.#inboxes = this.image.inboxes.map(inbox => new CompletionInbox(inbox.ring))
    this.#scratch = this.allocate(SCRATCH_SIZE)
    if (this.#scratch === 0) throw new Error(`the reactor has no memory left for a channel to ${info.name}`)
    this.#scratchView = viewAt(this.#scratch, SCRATCH_SIZE)
    this.#scratchView.setUint32(ONE_AT, 1, true)
    this.#scratchView.setUint32(ONE_AT + 4, 0, true)
    this.#events = new Watch(ring, this.image.eventfd, () => this.#takeEvents())
    this.#doorbell = new Watch(ring, this.image.inboxes[reactor.index]!.doorbell, () => this.#takeInbox())
    this.#doorbell.start()
  }

  submit(io: BdevIo): void {
    const slot = this.#free.pop() ?? this.#grow()
    if (slot === undefined) this.#waiting.push(io)
    else slot.start(io)
  }

  /** librbd ends what it has begun in its own time. */
  abort(io: BdevIo | null): void {
    for (const waiting of this.#waiting.splice(0)) {
      if (io === null || waiting === io) waiting.complete(Status.ABORTED_BY_REQUEST)
      else this.#waiting.push(waiting)
    }
  }

  /** Resolves when nothing is outstanding under the handle that was used until now. */
  tell(message: unknown): Promise<void> | void {
    const { opening } = message as OpenedAnewMessage
    const old = this.#openings.at(-1)!
    // A channel that was opened just now knows it already.
    if (old.number === opening) return
    this.#openings.push(this.#opening(opening))
    if (old.running === 0) this.#forget(old)
    else {
      return new Promise(resolve => {
        old.onIdle = resolve
      })
    }
  }

  close(): void {
    this.#events.close()
    this.#doorbell.close()
    for (const { address, sizeBytes } of this.#buffers) this.reactor.buffers.release(address, sizeBytes)
  }

  /** The address of memory that lasts until the channel is closed, or 0 when there is none. */
  allocate(sizeBytes: number): number {
    const address = this.reactor.buffers.acquire(sizeBytes)
    if (address !== 0) this.#buffers.push({ address, sizeBytes })
    return address
  }

  /** Memory for the iovecs of a slot that has no more than most have, or 0. */
  allocateIovecs(): number {
    if (this.#iovecsLeft === 0) {
      this.#iovecs = this.allocate(IOVECS_SIZE)
      if (this.#iovecs === 0) return 0
      this.#iovecsLeft = IOVECS_SIZE
    }
    this.#iovecsLeft -= IOVECS_MIN * IOVEC_SIZE
    return this.#iovecs + this.#iovecsLeft
  }

  /** A new completion for the slot that librbd is to hand back `argument` for, or -errno. */
  createCompletion(argument: number): number {
    const result = this.library.createCompletion(argument, this.#scratch)
    const view = this.#scratchView
    return result < 0 ? result : view.getUint32(0, true) + view.getUint32(4, true) * TWO_32
  }

  /** Where a compare-and-write tells at which offset it failed, which NVMe does not ask for. */
  get mismatchAddress(): number {
    return this.#scratch + MISMATCH_AT
  }

  /** Where an I/O is to be started. */
  begin(): Opening {
    const opening = this.#openings[this.#openings.length - 1]!
    opening.running++
    this.reactor.distant++
    if (this.#running++ === 0) this.#events.start()
    return opening
  }

  /** Takes back what has ended, and starts what waits. */
  recycle(slot: Slot, opening: Opening): void {
    opening.running--
    this.#running--
    this.reactor.distant--
    if (opening.running === 0 && opening.onIdle !== null) {
      this.#forget(opening)
      opening.onIdle()
    }
    const next = this.#waiting.shift()
    if (next === undefined) this.#free.push(slot)
    else slot.start(next)
  }

  /** What the slot has begun is looked at until it has ended. */
  watch(slot: Slot): void {
    this.#unannounced.push(slot)
    this.#lookMs = LOOK_MS
    if (this.#isLooking) return
    this.#isLooking = true
    this.reactor.clock.after(LOOK_MS, this.#look)
  }

  complain(io: BdevIo, errno: number): void {
    if (errno === ESHUTDOWN) {
      // The control thread has a word for it, once for all I/Os.
      this.state.isShutOut = true
      return
    }
    const { nowUs } = this.reactor
    if (nowUs - this.#lastLogUs < LOG_PAUSE_US) return
    this.#lastLogUs = nowUs
    log.error(
      `${this.info.name}: I/O of ${io.blockCount} blocks at block ${io.firstBlock} failed: ${errnoName(errno)}`,
    )
  }

  #grow(): Slot | undefined {
    if (this.#slots.length === SLOTS) return undefined
    const slot = new Slot(this, this.#slots.length)
    this.#slots.push(slot)
    return slot
  }

  #opening(number: number): Opening {
    return { number, image: this.state.imageOf(number), running: 0, onIdle: null }
  }

  #forget(opening: Opening): void {
    this.#openings.splice(this.#openings.indexOf(opening), 1)
  }

  #takeEvents(): void {
    if (this.#running === 0) {
      // Another reactor's, which hears of it as well. Not stopped before: the next I/O often follows at once.
      this.#events.stop()
      return
    }
    const openings = this.#openings
    // The last one first: those before it leave the list when their last I/O has ended.
    for (let i = openings.length - 1; i >= 0; i--) this.#takeEventsOf(openings[i]!)
  }

  #takeEventsOf(opening: Opening): void {
    const { library, image, reactor } = this
    const view = this.#scratchView
    for (;;) {
      const count = library.pollEvents(opening.image, this.#scratch + EVENTS_AT, EVENTS_MAX)
      assert(count >= 0, `rbd_poll_io_events answers, instead of ${errnoName(-count)}`)
      for (let i = 0; i < count; i++) {
        const at = EVENTS_AT + i * 8
        const completion = view.getUint32(at, true) + view.getUint32(at + 4, true) * TWO_32
        const argument = library.completionArgument(completion)
        const result = library.completionResult(completion)
        library.releaseCompletion(completion)
        const slot = (argument - 1) % SLOTS
        const owner = (argument - 1 - slot) / SLOTS
        if (owner === reactor.index) this.#slots[slot]!.ended(result)
        else {
          this.#inboxes[owner]!.put(slot, result)
          write(image.inboxes[owner]!.doorbell, this.#scratch + ONE_AT, 8)
        }
      }
      // A handle under which nothing is running may be closed any moment.
      if (count < EVENTS_MAX || !this.#openings.includes(opening)) return
    }
  }

  #lookAtAll(): void {
    const watched = this.#unannounced
    this.#lookMs = Math.min(this.#lookMs * LOOK_GROWTH, LOOK_MS_MAX)
    // One that ends may start another, which is watched in its turn.
    this.#unannounced = []
    for (const slot of watched) if (!slot.endIfComplete()) this.#unannounced.push(slot)
    this.#isLooking = this.#unannounced.length > 0
    if (this.#isLooking) this.reactor.clock.after(this.#lookMs, this.#look)
  }

  #takeInbox(): void {
    const inbox = this.#inboxes[this.reactor.index]!
    for (let slot = inbox.take(); slot >= 0; slot = inbox.take()) this.#slots[slot]!.ended(inbox.result)
  }
}

/** One I/O at a time: its list of iovecs and librbd's completion. */
class Slot {
  readonly #channel: RbdChannel
  /** What librbd hands back: reactor and slot, never 0. */
  readonly #argument: number
  #iovecs = 0
  #iovecCapacity = 0
  #io: BdevIo | null = null
  #opening: Opening | null = null
  #isSyncing = false
  /** Of a compare-and-write under way. */
  #completion = 0
  /** It took the word of what is unflushed, and puts it back when it fails. */
  #hasTaken = false
  #bounce = 0
  #bounceSize = 0

  constructor(channel: RbdChannel, number: number) {
    this.#channel = channel
    this.#argument = channel.reactor.index * SLOTS + number + 1
  }

  start(io: BdevIo): void {
    this.#io = io
    this.#opening = this.#channel.begin()
    this.#isSyncing = false
    this.#hasTaken = false
    if (this.#isAtomic(io)) this.#submit(io)
    else this.#end(Status.ATOMIC_WRITE_UNIT_EXCEEDED)
  }

  /** False while its compare-and-write is under way. */
  endIfComplete(): boolean {
    const { library } = this.#channel
    if (library.isComplete(this.#completion) === 0) return false
    const result = library.completionResult(this.#completion)
    library.releaseCompletion(this.#completion)
    this.ended(result)
    return true
  }

  /** 0 or more, or -errno. */
  ended(result: number): void {
    const io = this.#io!
    if (result < 0) this.#fail(io, -result)
    else if (this.#isFlush(io)) this.#flushed()
    else if (io.fua && io.type !== IoType.READ) {
      this.#isSyncing = true
      this.#submit(io)
    } else {
      if (IS_KEPT_BACK[io.type] === 1) this.#channel.state.markUnflushed(this.#opening!.number)
      this.#end(Status.SUCCESS)
    }
  }

  #isFlush(io: BdevIo): boolean {
    return this.#isSyncing || io.type === IoType.FLUSH
  }

  /** False when there is no point in asking librbd: it has ended then. */
  #mayFlush(): boolean {
    const { state } = this.#channel
    if (state.isShutOut) {
      this.#end(Status.INTERNAL_PATH_ERROR)
      return false
    }
    if (state.takeLoss()) {
      this.#end(Status.WRITE_FAULT)
      return false
    }
    this.#hasTaken = state.takeUnflushed(this.#opening!.number)
    return true
  }

  #flushed(): void {
    if (this.#channel.state.isShutOut) {
      // librbd drops what it kept back once it knows, and has nothing left to flush.
      this.#putBack()
      this.#end(Status.INTERNAL_PATH_ERROR)
    } else this.#end(Status.SUCCESS)
  }

  #putBack(): void {
    if (this.#hasTaken) this.#channel.state.markUnflushed(this.#opening!.number)
  }

  #submit(io: BdevIo): void {
    if (this.#isFlush(io) && !this.#mayFlush()) return
    const { library, info } = this.#channel
    const completion = this.#channel.createCompletion(this.#argument)
    if (completion < 0) {
      this.#fail(io, -completion)
      return
    }
    const result = this.#call(io, this.#opening!.image, io.firstBlock * info.blockSize, completion)
    if (result >= 0) {
      if (io.type !== IoType.COMPARE_AND_WRITE || this.#isSyncing) return
      this.#completion = completion
      this.#channel.watch(this)
      return
    }
    library.releaseCompletion(completion)
    this.#fail(io, -result)
  }

  #call(io: BdevIo, image: number, offset: number, completion: number): number {
    const { library, info } = this.#channel
    const length = io.blockCount * info.blockSize
    if (this.#isSyncing) return library.flush(image, completion)
    switch (io.type) {
      case IoType.READ:
        if (!this.#fill(io)) return -ENOMEM
        return library.readv(image, this.#iovecs, io.segments.count, offset, completion)
      case IoType.WRITE:
        if (!this.#fill(io)) return -ENOMEM
        return library.writev(image, this.#iovecs, io.segments.count, offset, completion)
      case IoType.FLUSH:
        return library.flush(image, completion)
      case IoType.UNMAP:
        return library.discard(image, offset, length, completion)
      case IoType.WRITE_ZEROES:
        return library.writeZeroes(image, offset, length, completion, 0, 0)
      default:
        return this.#compareAndWrite(io, image, offset, length, completion)
    }
  }

  #compareAndWrite(io: BdevIo, image: number, offset: number, length: number, completion: number): number {
    const { library, reactor, mismatchAddress } = this.#channel
    const size = 2 * length
    const bounce = reactor.buffers.acquire(size)
    if (bounce === 0) return -ENOMEM
    this.#bounce = bounce
    this.#bounceSize = size
    io.segments.copyTo(bounce, 0, size)
    return library.compareAndWrite(
      image,
      offset,
      length,
      bounce,
      bounce + length,
      completion,
      mismatchAddress,
      0,
    )
  }

  /** Ceph compares and writes within one object's piece only, and both buffers have to lie in one of ours. */
  #isAtomic(io: BdevIo): boolean {
    if (io.type !== IoType.COMPARE_AND_WRITE) return true
    const { blockSize } = this.#channel.info
    const { stripeUnit } = this.#channel.image
    const length = io.blockCount * blockSize
    const left = stripeUnit - ((io.firstBlock * blockSize) % stripeUnit)
    return length <= left && 2 * length <= BufferPool.MAX_SIZE
  }

  /** Writes the iovecs, which librbd reads until the I/O ends; false when memory is short. */
  #fill(io: BdevIo): boolean {
    const { segments } = io
    const { arena } = this.#channel.reactor
    if (segments.count > this.#iovecCapacity && !this.#growIovecs(segments.count)) return false
    const words = arena.i32
    let at = arena.offsetOf(this.#iovecs) / 4
    for (let i = 0; i < segments.count; i++) {
      const address = segments.addresses[i]!
      words[at] = address | 0
      words[at + 1] = (address / TWO_32) | 0
      words[at + 2] = segments.lengths[i]! | 0
      words[at + 3] = 0
      at += 4
    }
    return true
  }

  #growIovecs(wanted: number): boolean {
    let capacity = IOVECS_MIN
    while (capacity < wanted) capacity *= 2
    const channel = this.#channel
    const iovecs =
      capacity === IOVECS_MIN ? channel.allocateIovecs() : channel.allocate(capacity * IOVEC_SIZE)
    if (iovecs === 0) return false
    this.#iovecs = iovecs
    this.#iovecCapacity = capacity
    return true
  }

  #fail(io: BdevIo, errno: number): void {
    if (io.type === IoType.COMPARE_AND_WRITE && (errno === EILSEQ || errno === EINVAL)) {
      // librbd 16 compares within one sector only, and finds anything longer invalid.
      this.#end(errno === EILSEQ ? Status.COMPARE_FAILURE : Status.ATOMIC_WRITE_UNIT_EXCEEDED)
      return
    }
    this.#putBack()
    this.#channel.complain(io, errno)
    this.#end(statusFromErrno(errno, io.type !== IoType.READ))
  }

  #end(status: number): void {
    const io = this.#io!
    if (this.#bounce !== 0) {
      this.#channel.reactor.buffers.release(this.#bounce, this.#bounceSize)
      this.#bounce = 0
    }
    const opening = this.#opening!
    this.#io = null
    this.#opening = null
    io.complete(status)
    this.#channel.recycle(this, opening)
  }
}
