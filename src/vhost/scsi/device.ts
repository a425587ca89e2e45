/**
 * A virtio-scsi host adapter on a reactor (Virtual I/O Device specification 1.2, section 5.6): finds the unit that a
 * request is for and starts its command there. What a command does is in the file of its group, by `commands.ts`; what
 * comes on the control queue is in `task-management.ts`.
 */
import type { ChannelContext } from '../../bdev/bdev.ts'
import { assert } from '../../core/assert.ts'
import type { Logger } from '../../core/log.ts'
import type { Flushable, Reactor } from '../../reactor/reactor.ts'
import { Status } from '../../spec/nvme-status.ts'
import { REPORT_LUNS_UNIT } from '../../spec/scsi.ts'
import {
  EVENTS_MISSED,
  LUN_FLAT,
  ScsiEvent,
  ScsiEventType,
  ScsiQueue,
  ScsiRequestHeader,
  ScsiResponse,
  ScsiResponseHeader,
} from '../../spec/virtio-scsi.ts'
import { TARGETS_MAX } from '../backing.ts'
import type { DeviceDescription, ScsiDescription, ScsiTargetDescription, SendEvent } from '../messages.ts'
import type { GuestRequest, RequestQueue, VirtioDevice } from '../ring/request.ts'
import { type CommandHost, ScsiCommand } from './command.ts'
import { execute, executeElsewhere } from './commands.ts'
import type { SelectTasks } from './messages.ts'
import { ReactorScsi, type TaskOwner } from './reactor-scsi.ts'
import { startControl } from './task-management.ts'
import { LogicalUnit } from './unit.ts'

const HEADER_SIZE = ScsiRequestHeader.size
/** In the second 32 bits of a LUN address from byte 0: the target, and the single-level LUN. */
const BYTE = 0xff

export class ScsiDevice implements VirtioDevice, CommandHost, TaskOwner, Flushable {
  readonly eventQueue = ScsiQueue.EVENT
  readonly reactor: Reactor
  readonly scratch: DataView
  readonly scratchAddress: number
  readonly log: Logger
  readonly #bdevs: ChannelContext
  readonly #shared: ReactorScsi
  #description: ScsiDescription
  /** By target. */
  readonly #units = new Array<LogicalUnit | null>(TARGETS_MAX).fill(null)
  /** They have left `#units`, and their last commands are still on their way. */
  readonly #leaving = new Set<LogicalUnit>()
  readonly #free: ScsiCommand[] = []
  /** Those whose next step is to be done, in turn: one in a round, so that large commands do not keep a reactor busy. */
  readonly #waiting: ScsiCommand[] = []
  /** The event queue, when it had no buffer for an event. */
  #missedAt: RequestQueue | null = null

  /** `log`: for what guests cause. */
  constructor(description: ScsiDescription, bdevs: ChannelContext, log: Logger) {
    const { reactor } = bdevs
    this.reactor = reactor
    this.log = log
    this.#bdevs = bdevs
    this.#description = description
    this.#shared = ReactorScsi.of(reactor)
    this.scratch = this.#shared.scratch
    this.scratchAddress = this.#shared.scratchAddress
    for (const target of description.targets) this.#open(target)
    this.#shared.add(this)
  }

  get initiator(): string {
    return this.#description.initiator
  }

  get nexus(): number {
    return this.#description.nexus
  }

  get units(): Int32Array {
    return this.#description.units
  }

  get senseSize(): number {
    return this.#description.senseSize
  }

  get cdbSize(): number {
    return this.#description.cdbSize
  }

  unit(target: number): LogicalUnit | null {
    return this.#units[target] ?? null
  }

  start(request: GuestRequest): void {
    // What an earlier use left there must not look like an I/O of this one.
    request.io.status = Status.SUCCESS
    if (this.#missedAt !== null) this.#tellOfMissed(this.#missedAt)
    if (request.queue.index === ScsiQueue.CONTROL) startControl(this, request)
    else this.#startCommand(request)
  }

  ioDone(request: GuestRequest): void {
    ;(request.context as ScsiCommand).ioDone()
  }

  goOnLater(command: ScsiCommand): void {
    this.#waiting.push(command)
    if (this.#waiting.length === 1) this.reactor.flushLater(this)
  }

  /** At the end of a round: the next step of one command. */
  flush(): void {
    const command = this.#waiting.shift()!
    if (this.#waiting.length > 0) this.reactor.flushLater(this)
    command.goOn()
  }

  ended(command: ScsiCommand): void {
    this.#free.push(command)
  }

  abort(request: GuestRequest): void {
    if (request.context instanceof ScsiCommand) request.context.stop(ScsiResponse.ABORTED)
  }

  async update(description: DeviceDescription): Promise<void> {
    assert(description.kind === 'scsi', 'a host adapter stays one')
    const before = this.#description
    this.#description = description
    const ends: Promise<void>[] = []
    for (const { number, bdev } of before.targets) {
      const unit = this.unit(number)
      const isKept = description.targets.some(target => target.number === number && target.bdev === bdev)
      if (unit === null || isKept) continue
      this.#units[number] = null
      ends.push(this.#end(unit))
    }
    for (const target of description.targets) if (this.unit(target.number) === null) this.#open(target)
    await Promise.all(ends)
  }

  /** Whatever was negotiated: QEMU 7.2 keeps CHANGE to itself, and a guest that gives buffers wants to hear. */
  sendEvent({ event, lun, reason }: SendEvent, queue: RequestQueue): void {
    if (!this.#writeEvent(queue, event, lun, reason)) this.#missedAt = queue
  }

  async select({ nexus, initiator, bdev, id, stopWith }: SelectTasks): Promise<number> {
    if (nexus !== null && nexus !== this.nexus) return 0
    if (initiator !== null && initiator !== this.initiator) return 0
    const units = [...this.#units, ...this.#leaving].filter(unit => unit?.bdev === bdev)
    const commands = units.flatMap(unit => unit!.commands(id))
    if (stopWith !== null) {
      await Promise.all(
        commands.map(command => {
          const end = new Promise<void>(resolve => {
            command.onEnd ??= []
            command.onEnd.push(resolve)
          })
          if (!command.stop(stopWith)) command.respond(stopWith)
          return end
        }),
      )
    }
    return commands.length
  }

  close(): void {
    this.#shared.delete(this)
    assert(this.#leaving.size === 0, 'a device is closed when no unit has commands')
    for (const unit of this.#units) if (unit !== null) this.#bdevs.close(unit.channel)
  }

  #open(target: ScsiTargetDescription): void {
    try {
      this.#units[target.number] = new LogicalUnit(target, this.#bdevs.open(target.bdev))
    } catch (error) {
      // The others are of use all the same.
      this.log.error(`${this.initiator}: ${target.name} is not there: ${(error as Error).message}`)
    }
  }

  async #end(unit: LogicalUnit): Promise<void> {
    this.#leaving.add(unit)
    await unit.quiet()
    this.#leaving.delete(unit)
    this.#bdevs.close(unit.channel)
  }

  #startCommand(request: GuestRequest): void {
    const { readableBytes, writableBytes, segments, queue } = request
    const headerSize = HEADER_SIZE + this.cdbSize
    const responseSize = ScsiResponseHeader.size + this.senseSize
    if (readableBytes < headerSize || writableBytes < responseSize) {
      this.#refuse(request, ScsiResponse.FAILURE)
      return
    }
    let view = this.scratch
    let at = 0
    if (segments.lengths[0]! >= headerSize) {
      at = queue.memory.locate(segments.addresses[0]!, headerSize)
      view = queue.memory.view
    } else {
      segments.copyTo(this.scratchAddress, 0, headerSize)
    }
    // Each word is read once: the guest may rewrite it at any moment.
    const address = view.getUint32(at, true)
    const rest = view.getUint32(at + 4, true)
    const target = (address >>> 8) & BYTE
    const unit = target < TARGETS_MAX ? this.#units[target]! : null
    if ((address & BYTE) !== 1 || rest !== 0 || unit === null) {
      this.#refuse(request, ScsiResponse.BAD_TARGET)
      return
    }
    const command = this.#free.pop() ?? new ScsiCommand(this)
    command.idLow = ScsiRequestHeader.idLow.get(view, at)
    command.idHigh = ScsiRequestHeader.idHigh.get(view, at)
    const { cdb } = command
    for (let offset = 0; offset < cdb.byteLength; offset += 4) {
      cdb.setUint32(offset, view.getUint32(at + HEADER_SIZE + offset))
    }
    command.begin(request, unit)
    const lun = lunOf(address)
    if (lun === 0) execute(command)
    else executeElsewhere(command, lun)
  }

  /** Answers what never became a command, as far as there is room for it. */
  #refuse(request: GuestRequest, response: number): void {
    const { readableBytes, writableBytes, segments } = request
    const size = ScsiResponseHeader.size
    if (writableBytes < size) {
      request.complete(0)
      return
    }
    new Uint8Array(this.scratch.buffer, this.scratch.byteOffset, size).fill(0)
    ScsiResponseHeader.response.set(this.scratch, 0, response)
    segments.copyFrom(this.scratchAddress, readableBytes, size)
    request.complete(size)
  }

  #tellOfMissed(queue: RequestQueue): void {
    this.#writeEvent(queue, ScsiEventType.NO_EVENT, [], 0)
  }

  /** False when the guest has left no buffer that is large enough. */
  #writeEvent(queue: RequestQueue, event: number, lun: readonly number[], reason: number): boolean {
    const request = queue.take()
    if (request === null) return false
    const { readableBytes, writableBytes, segments } = request
    if (writableBytes < ScsiEvent.size) {
      request.complete(0)
      return false
    }
    const { scratch } = this
    const missed = this.#missedAt === null ? 0 : EVENTS_MISSED
    this.#missedAt = null
    ScsiEvent.event.set(scratch, 0, (event | missed) >>> 0)
    ScsiEvent.lun.set(scratch, 0, Uint8Array.from(lun))
    ScsiEvent.reason.set(scratch, 0, reason)
    segments.copyFrom(this.scratchAddress, readableBytes, ScsiEvent.size)
    request.complete(ScsiEvent.size)
    return true
  }
}

/** The single-level LUN in the first word of an address: flat or plain numbers, well-known units as they are. */
function lunOf(address: number): number {
  const high = (address >>> 16) & BYTE
  const lun = (high << 8) | (address >>> 24)
  if (lun === REPORT_LUNS_UNIT) return lun
  return high >>> 6 === LUN_FLAT >>> 6 ? lun & 0x3fff : lun
}
