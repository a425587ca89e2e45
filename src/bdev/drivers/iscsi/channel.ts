/**
 * One reactor's way to an iSCSI disk: a session of its own with the target. Nothing waits for it: I/O that comes before the
 * session is up, or while it is lost, is sent when it is, or fails after the disk's timeout.
 */
import type { Timer } from '../../../core/clock.ts'
import { logger } from '../../../core/log.ts'
import type { Reactor } from '../../../reactor/reactor.ts'
import { Status } from '../../../spec/nvme-status.ts'
import type { Libiscsi } from '../../../sys/libiscsi.ts'
import { memset } from '../../../sys/memory.ts'
import type { Uring } from '../../../sys/uring.ts'
import type { BdevInfo, DriverChannel } from '../../bdev.ts'
import { statusFromErrno } from '../../errno-status.ts'
import { type BdevIo, IO_TYPE_NAMES, IoType } from '../../io.ts'
import { COMMAND_BYTES } from './command.ts'
import { SCRATCH_BYTES } from './connection.ts'
import type { Failure } from './failure.ts'
import { type IscsiDevice, type News, Topic, type Unit } from './messages.ts'
import { Session, type SessionOwner } from './session.ts'
import { Transfer } from './transfer.ts'

const log = logger('iscsi')
const ENOMEM = 12
const POOL_BYTES = 16384
const LOG_PAUSE_US = 10e6
const TRANSFERS_MAX = 1024
/** How long I/O that is to end early may stay with the target before the connection is given up for it. */
const ABORT_PATIENCE_MS = 1000
/** Additional sense codes of a fresh session, or of a unit that was reset: nothing to look into. */
const ASC_RESET = 0x29

export class IscsiChannel implements DriverChannel, SessionOwner {
  readonly lends = false
  readonly info: BdevInfo
  readonly login: IscsiDevice
  readonly unit: Unit
  readonly reactor: Reactor
  readonly session: Session
  /** All transfers ever made, and those that are free. */
  readonly #transfers: Transfer[] = []
  readonly #free: Transfer[] = []
  /** What found no transfer, oldest first. */
  readonly #waiting: BdevIo[] = []
  readonly #buffers: { readonly address: number; readonly sizeBytes: number }[] = []
  /** What is left of a buffer for commands. */
  #pool = 0
  #poolLeft = 0
  #zeroes = 0
  #lastLogUs = Number.NEGATIVE_INFINITY
  #patience: Timer | null = null
  /** When the session was lost, or never there, in the reactor's microseconds; negative while it is up. */
  #downSinceUs = -1

  constructor(info: BdevInfo, reactor: Reactor, ring: Uring, library: Libiscsi) {
    this.info = info
    this.reactor = reactor
    this.login = info.device as IscsiDevice
    this.unit = this.login.unit
    const scratch = this.#allocate(POOL_BYTES)
    if (scratch === 0) throw new Error(`the reactor has no memory left for a channel to ${info.name}`)
    this.#pool = scratch + SCRATCH_BYTES
    this.#poolLeft = POOL_BYTES - SCRATCH_BYTES
    this.session = new Session(reactor, ring, library, this.login, scratch, this)
    this.session.open()
  }

  submit(io: BdevIo): void {
    const transfer = this.#free.pop() ?? this.#grow()
    if (transfer !== undefined) transfer.start(io)
    else if (this.#transfers.length > 0) this.#waiting.push(io)
    else io.complete(statusFromErrno(ENOMEM, io.type !== IoType.READ))
  }

  abort(io: BdevIo | null): void {
    for (const waiting of this.#waiting.splice(0)) {
      if (io === null || waiting === io) waiting.complete(Status.ABORTED_BY_REQUEST)
      else this.#waiting.push(waiting)
    }
    for (const transfer of this.#transfers) {
      if (transfer.io !== null && (io === null || transfer.io === io)) transfer.abort()
    }
    // A single I/O ends when the target has done it. Where all are to end, nobody waits for a target that hangs.
    if (io !== null) return
    this.#patience?.cancel()
    this.#patience = this.reactor.clock.after(ABORT_PATIENCE_MS, () => {
      this.#patience = null
      if (!this.#transfers.some(({ isAborted }) => isAborted)) return
      this.session.giveUp(`I/O to ${this.info.name} was to end and has not after ${ABORT_PATIENCE_MS} ms`)
    })
  }

  close(): void {
    this.#patience?.cancel()
    for (const transfer of this.#transfers) transfer.close()
    this.session.close(() => {
      for (const { address, sizeBytes } of this.#buffers) this.reactor.buffers.release(address, sizeBytes)
    })
  }

  /** Takes back a transfer whose I/O has ended, and starts what waits. */
  recycle(transfer: Transfer): void {
    const next = this.#waiting.shift()
    if (next === undefined) this.#free.push(transfer)
    else transfer.start(next)
  }

  /** Once in a while, and only of what the unit itself has refused: that it is not there was said. */
  complain(io: BdevIo, status: number, told: number): void {
    if (told === 0 || this.reactor.nowUs - this.#lastLogUs < LOG_PAUSE_US) return
    this.#lastLogUs = this.reactor.nowUs
    const sense = `SCSI status 0x${(told >> 16).toString(16)}, sense code 0x${(told & 0xffff).toString(16)}`
    log.error(
      `${this.info.name}: ${IO_TYPE_NAMES[io.type]} of ${io.blockCount} blocks at block ${io.firstBlock} failed with NVMe status 0x${status.toString(16)}: ${sense}`,
    )
  }

  /** The address of a block of zeroes, or 0 when memory is short. */
  get zeroes(): number {
    if (this.#zeroes === 0) {
      this.#zeroes = this.#allocate(this.info.blockSize)
      if (this.#zeroes !== 0) memset(this.#zeroes, 0, this.info.blockSize)
    }
    return this.#zeroes
  }

  sessionUp(): void {
    if (this.#downSinceUs < 0) return
    const seconds = ((this.reactor.nowUs - this.#downSinceUs) / 1e6).toFixed(1)
    this.#downSinceUs = -1
    log.notice(`${this.info.name}: the target is back after ${seconds} s`)
    // It may have come back with another disk behind it.
    this.#tell('it was not there for a while')
  }

  sessionDown({ message }: Failure): void {
    if (this.#downSinceUs >= 0) return
    this.#downSinceUs = this.reactor.nowUs
    log.warning(`${this.info.name}: ${message}; it is tried again`)
  }

  unitChanged(asc: number): void {
    if (asc >> 8 !== ASC_RESET) this.#tell(`it reports sense code 0x${asc.toString(16)}`)
  }

  #tell(what: string): void {
    this.reactor.control.post(Topic.NEWS, { name: this.info.name, what } satisfies News)
  }

  #grow(): Transfer | undefined {
    if (this.#transfers.length === TRANSFERS_MAX) return undefined
    if (this.#poolLeft < COMMAND_BYTES) {
      const pool = this.#allocate(POOL_BYTES)
      if (pool === 0) return undefined
      this.#pool = pool
      this.#poolLeft = POOL_BYTES
    }
    const transfer = new Transfer(this, this.#pool)
    this.#pool += COMMAND_BYTES
    this.#poolLeft -= COMMAND_BYTES
    this.#transfers.push(transfer)
    return transfer
  }

  #allocate(sizeBytes: number): number {
    const address = this.reactor.buffers.acquire(sizeBytes)
    if (address !== 0) this.#buffers.push({ address, sizeBytes })
    return address
  }
}
