/** One reactor's way to one disk of a virtio controller. */
import type { BdevInfo, DriverChannel } from '../bdev/bdev.ts'
import type { BdevIo } from '../bdev/io.ts'
import type { Timer } from '../core/clock.ts'
import { BlkCodec } from './blk-codec.ts'
import type { Codec } from './codec.ts'
import type { DeviceQueue } from './device-queue.ts'
import type { Unit } from './messages.ts'
import { ScsiCodec } from './scsi-codec.ts'
import { Transfer } from './transfer.ts'

/** How long I/O that is to end early may stay with the back end before the connection is given up for it. */
const ABORT_PATIENCE_MS = 1000

export class VirtioChannel implements DriverChannel {
  readonly lends = true
  readonly info: BdevInfo
  readonly unit: Unit
  readonly codec: Codec
  readonly #queue: DeviceQueue
  /** All transfers ever made, and those that are free. */
  readonly #transfers: Transfer[] = []
  readonly #free: Transfer[] = []
  #patience: Timer | null = null

  constructor(info: BdevInfo, queue: DeviceQueue) {
    this.info = info
    this.unit = info.device as Unit
    this.codec = this.unit.kind === 'blk' ? new BlkCodec(this.unit, info.blockSize) : new ScsiCodec(this.unit)
    this.#queue = queue
  }

  submit(io: BdevIo): void {
    const transfer = this.#free.pop() ?? this.#grow()
    transfer.start(io)
    this.#queue.submit(transfer)
  }

  abort(io: BdevIo | null): void {
    for (const transfer of this.#transfers) {
      if (transfer.io !== null && (io === null || transfer.io === io)) this.#queue.abort(transfer)
    }
    // A single I/O ends when the back end has done it. Where all are to end, nobody waits for a back end that hangs.
    if (io === null) {
      this.#patience?.cancel()
      this.#patience = this.#queue.reactor.clock.after(ABORT_PATIENCE_MS, () => this.#loseOverdue())
    }
  }

  released(io: BdevIo): void {
    this.#queue.takeBack(io.segments)
  }

  close(): void {
    this.#patience?.cancel()
  }

  /** The transfer has ended: its I/O ends with its status. */
  finish(transfer: Transfer): void {
    const io = transfer.io!
    transfer.io = null
    this.#free.push(transfer)
    io.complete(transfer.outcome)
  }

  #loseOverdue(): void {
    this.#patience = null
    const isOverdue = this.#transfers.some(({ io, isAborted }) => io !== null && isAborted)
    if (isOverdue)
      this.#queue.giveUp(`I/O to ${this.info.name} was to end and has not after ${ABORT_PATIENCE_MS} ms`)
  }

  #grow(): Transfer {
    const transfer = new Transfer(this)
    this.#transfers.push(transfer)
    return transfer
  }
}
