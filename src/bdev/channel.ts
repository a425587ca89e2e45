/**
 * One reactor's way to one device: checks the range, counts, and hands on to the driver. Front ends and filters see only
 * this class. It is shared by everything on the reactor that uses the device.
 */
import { assert } from '../core/assert.ts'
import type { Reactor } from '../reactor/reactor.ts'
import { Status } from '../spec/nvme-status.ts'
import type { BdevInfo, DriverChannel } from './bdev.ts'
import { Emulation } from './emulation.ts'
import type { Extents } from './extents.ts'
import { type BdevIo, IoType } from './io.ts'
import { IoStat } from './iostat.ts'
import { EMULATED_TYPES, maskOf, WRITING_TYPES } from './support.ts'

/** Not a status: what the device lacks and the channel makes up for. */
const EMULATED = -1

/** What outlives a channel: shared by all channels of the device on all reactors, or by those that follow on this one. */
export interface ChannelState {
  /** One word, the same for every channel of the device: who is in the middle of a compare-and-write. */
  readonly lock: Int32Array
  readonly stat: IoStat
}

export class Channel {
  readonly info: BdevInfo
  readonly reactor: Reactor
  readonly stat: IoStat
  /** Submitted and not yet completed (for a loan: not yet released). */
  outstanding = 0

  readonly #driver: DriverChannel
  readonly #lock: Int32Array
  readonly #native: number
  readonly #emulated: number
  #emulation: Emulation | null = null
  /** What every I/O is refused with, or `SUCCESS`. */
  #refusal: number = Status.SUCCESS
  #removed = false
  #closed = false
  #loans = 0
  #reset: BdevIo | null = null
  #onQuiet: (() => void) | null = null

  constructor(info: BdevInfo, reactor: Reactor, driver: DriverChannel, state?: ChannelState) {
    this.info = info
    this.reactor = reactor
    this.stat = state?.stat ?? new IoStat()
    this.#driver = driver
    this.#lock = state?.lock ?? new Int32Array(1)
    const allowed = info.readOnly ? ~WRITING_TYPES : ~0
    this.#native = maskOf(info.supports) & allowed
    this.#emulated = EMULATED_TYPES & allowed & ~this.#native
  }

  /** See `DriverChannel.lends`. */
  get lends(): boolean {
    return this.#driver.lends
  }

  /** True once the device is being taken away: every further I/O ends with `NAMESPACE_NOT_READY`. */
  get isRemoved(): boolean {
    return this.#removed
  }

  /**
   * Starts an I/O. Whatever is wrong with it is told by its status, in the usual way: `LBA_OUT_OF_RANGE`,
   * `INVALID_OPCODE`, `NAMESPACE_WRITE_PROTECTED` for a device that is read only, `NAMESPACE_NOT_READY` for one that was
   * taken away, `ABORTED_BY_REQUEST` while it is being reset, or what the device says.
   */
  submit(io: BdevIo): void {
    io.channel = this
    io.submittedUs = this.reactor.nowUs
    this.outstanding++
    const status = this.#check(io)
    if (status === Status.SUCCESS) this.#driver.submit(io)
    else if (status === EMULATED) this.#emulate(io)
    else io.complete(status)
  }

  /** Asks for the early end of an outstanding I/O, or of all of them: see `DriverChannel.abort`. */
  abort(io: BdevIo | null): void {
    if (this.#closed) return
    this.#emulation?.abort(io)
    this.#driver.abort(io)
  }

  /**
   * Fills `extents` with what is known of the holes in a range within the device, from its start: the list may end
   * early, but is never empty.
   */
  extents(firstBlock: number, blockCount: number, extents: Extents): void {
    extents.clear()
    if (!this.#closed && !this.#removed) this.#driver.extents?.(firstBlock, blockCount, extents)
    if (extents.count === 0) extents.push(blockCount, 0)
  }

  /** For the driver's control side, which waits when it is a promise. */
  tell(message: unknown): Promise<void> | void {
    return this.#driver.tell?.(message)
  }

  /** For `BdevIo.complete` only. */
  completed(io: BdevIo): void {
    this.stat.count(io, this.reactor)
    if (this.#isLoan(io)) this.#loans++
    else this.outstanding--
    this.reactor.deliverLater(io)
    if (this.#refusal !== Status.SUCCESS) this.#tellIfQuiet()
  }

  /** Gives back what a READ on a lending channel lent. Called once for each such READ that succeeded. */
  release(io: BdevIo): void {
    assert(this.#isLoan(io), 'only a successful READ on a lending channel is released')
    this.#driver.released?.(io)
    this.#loans--
    this.outstanding--
    if (this.#refusal !== Status.SUCCESS) this.#tellIfQuiet()
  }

  /**
   * From now on every new I/O fails; what is outstanding is aborted. Calls `quiet` when nothing is outstanding any
   * more, which may be at once.
   */
  remove(quiet: () => void): void {
    assert(!this.#removed, `channel to ${this.info.name} is removed once`)
    this.#removed = true
    this.#refusal = Status.NAMESPACE_NOT_READY
    this.#onQuiet = quiet
    if (this.outstanding > 0) this.abort(null)
    this.#tellIfQuiet()
  }

  /** Nothing may be outstanding. */
  close(): void {
    assert(this.outstanding === 0, `${this.outstanding} I/Os to ${this.info.name} are outstanding at close`)
    assert(!this.#closed, `channel to ${this.info.name} is closed once`)
    this.#closed = true
    this.#refusal = Status.NAMESPACE_NOT_READY
    this.#driver.close()
  }

  #isLoan(io: BdevIo): boolean {
    return io.lent && io.status === Status.SUCCESS
  }

  #tellIfQuiet(): void {
    const reset = this.#reset
    if (reset !== null && this.outstanding === 1 + this.#loans) {
      this.#reset = null
      if (!this.#removed) this.#refusal = Status.SUCCESS
      reset.complete(Status.SUCCESS)
      return
    }
    if (this.outstanding > 0 || this.#onQuiet === null) return
    const quiet = this.#onQuiet
    this.#onQuiet = null
    quiet()
  }

  #check(io: BdevIo): number {
    if (this.#refusal !== Status.SUCCESS) return this.#refusal
    const { info } = this
    const type = 1 << io.type
    if (((this.#native | this.#emulated) & type) === 0) {
      return (WRITING_TYPES & type) !== 0 && info.readOnly
        ? Status.NAMESPACE_WRITE_PROTECTED
        : Status.INVALID_OPCODE
    }
    // A sum beyond 2^53 is inexact but still far beyond any device, so the comparison stays right.
    if (io.firstBlock + io.blockCount > info.blockCount) return Status.LBA_OUT_OF_RANGE
    return (this.#native & type) !== 0 ? Status.SUCCESS : EMULATED
  }

  #emulate(io: BdevIo): void {
    if (io.type === IoType.FLUSH) {
      // A device that cannot flush has no cache to flush.
      io.complete(Status.SUCCESS)
    } else if (io.type === IoType.RESET) {
      this.#reset = io
      this.#refusal = Status.ABORTED_BY_REQUEST
      this.abort(null)
      if (this.#reset !== null) this.#tellIfQuiet()
    } else {
      this.#emulation ??= new Emulation(this, this.#lock)
      this.#emulation.submit(io)
    }
  }
}
