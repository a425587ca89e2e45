/**
 * One reactor's way to one device: checks the range, counts, and hands on to the driver. Front ends and filters see only
 * this class. It is shared by everything on the reactor that uses the device.
 */
import { assert } from '../core/assert.ts'
import type { Reactor } from '../reactor/reactor.ts'
import { Status } from '../spec/nvme-status.ts'
import type { BdevInfo, DriverChannel } from './bdev.ts'
import type { BdevIo } from './io.ts'
import { IoStat } from './iostat.ts'

export class Channel {
  readonly info: BdevInfo
  readonly reactor: Reactor
  readonly stat = new IoStat()
  /** Submitted and not yet completed (for a loan: not yet released). */
  outstanding = 0

  readonly #driver: DriverChannel
  #removed = false
  #onQuiet: (() => void) | null = null

  constructor(info: BdevInfo, reactor: Reactor, driver: DriverChannel) {
    this.info = info
    this.reactor = reactor
    this.#driver = driver
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
   * `INVALID_OPCODE`, `NAMESPACE_NOT_READY` for a device that was taken away, or what the device says.
   */
  submit(io: BdevIo): void {
    io.channel = this
    io.submittedUs = this.reactor.nowUs
    this.outstanding++
    const status = this.#check(io)
    if (status !== Status.SUCCESS) io.complete(status)
    else this.#driver.submit(io)
  }

  /** Asks for the early end of an outstanding I/O, or of all of them: see `DriverChannel.abort`. */
  abort(io: BdevIo | null): void {
    this.#driver.abort(io)
  }

  /** For `BdevIo.complete` only. */
  completed(io: BdevIo): void {
    this.stat.count(io, this.reactor.nowUs - io.submittedUs)
    if (!this.#isLoan(io)) this.#settle()
    this.reactor.deliverLater(io)
  }

  /** Gives back what a READ on a lending channel lent. Called once for each such READ that succeeded. */
  release(io: BdevIo): void {
    assert(this.#isLoan(io), 'only a successful READ on a lending channel is released')
    this.#settle()
  }

  /**
   * From now on every new I/O fails; what is outstanding is aborted. Calls `quiet` when nothing is outstanding any
   * more, which may be at once.
   */
  remove(quiet: () => void): void {
    assert(!this.#removed, `channel to ${this.info.name} is removed once`)
    this.#removed = true
    this.#onQuiet = quiet
    if (this.outstanding > 0) this.#driver.abort(null)
    this.#tellIfQuiet()
  }

  /** Nothing may be outstanding. */
  close(): void {
    assert(this.outstanding === 0, `${this.outstanding} I/Os to ${this.info.name} are outstanding at close`)
    this.#driver.close()
  }

  #isLoan(io: BdevIo): boolean {
    return io.lent && io.status === Status.SUCCESS
  }

  #settle(): void {
    this.outstanding--
    if (this.#removed) this.#tellIfQuiet()
  }

  #tellIfQuiet(): void {
    if (this.outstanding > 0 || this.#onQuiet === null) return
    const quiet = this.#onQuiet
    this.#onQuiet = null
    quiet()
  }

  #check(io: BdevIo): number {
    const { info } = this
    if (this.#removed) return Status.NAMESPACE_NOT_READY
    if (!info.supports.has(io.type)) return Status.INVALID_OPCODE
    // A sum beyond 2^53 is inexact but still far beyond any device, so the comparison stays right.
    if (io.firstBlock + io.blockCount > info.blockCount) return Status.LBA_OUT_OF_RANGE
    return Status.SUCCESS
  }
}
