/**
 * A SCSI command on its way. A request of a guest is
 *
 *   device reads    header (19 bytes) | CDB | data out
 *   device writes   response (12 bytes) | sense | data in
 *
 * cut into descriptors at any place. Header and CDB are copied before they are looked at. A command that needs the bdev
 * goes from step to step, with one I/O between them; one that waits for its next step, or for the control thread, has none.
 * However it ends, it ends in one of the functions that answer, once.
 */
import type { BdevInfo } from '../../bdev/bdev.ts'
import type { BdevIo, IoType } from '../../bdev/io.ts'
import { assert } from '../../core/assert.ts'
import type { Reactor } from '../../reactor/reactor.ts'
import { Status } from '../../spec/nvme-status.ts'
import { Asc, FieldFlag, ScsiStatus, SenseKey } from '../../spec/scsi.ts'
import { ScsiRequestHeader, ScsiResponse, ScsiResponseHeader } from '../../spec/virtio-scsi.ts'
import { copySegments } from '../ring/copy-segments.ts'
import type { GuestRequest } from '../ring/request.ts'
import { OUTCOME_OF, writeFixedSense } from './sense.ts'
import { Mode, UnitWord, unitWord } from './shared-units.ts'
import type { LogicalUnit } from './unit.ts'

/** What all that answers or submits returns, so that no way through a command can forget both. */
export const HANDLED = true
export type Handled = typeof HANDLED

/** What a command does when its I/O has ended well. */
export type Step = (command: ScsiCommand) => Handled

/** What the commands of a device share. */
export interface CommandHost {
  readonly reactor: Reactor
  readonly initiator: string
  readonly units: Int32Array
  readonly senseSize: number
  readonly cdbSize: number
  /** Where data in is put together before it goes to the guest: never kept from one command to the next. */
  readonly scratch: DataView
  readonly scratchAddress: number
  /** Calls the command's `goOn` when its turn comes: one of many steps must not keep the reactor from others. */
  goOnLater(command: ScsiCommand): void
  /** The unit has forgotten the command; it may be used again. */
  ended(command: ScsiCommand): void
}

/** Not a `ScsiResponse`: the command is not stopped. */
const RUNS = -1

/** The part of a CDB that is kept: no command of a disk is longer. */
const CDB_KEPT = 16

export class ScsiCommand {
  readonly host: CommandHost
  /** Zero behind the CDB's end. */
  readonly cdb = new DataView(new ArrayBuffer(CDB_KEPT))
  request!: GuestRequest
  unit!: LogicalUnit
  /** The driver's own name for it. */
  idLow = 0
  idHigh = 0
  /** Where the data is in the request's list, and how much; as sense and CDB sizes were when it began. */
  dataOutAt = 0
  dataOutBytes = 0
  dataInAt = 0
  dataInBytes = 0
  senseSize = 0
  /** Counts uses, for those who hold a command over a wait. */
  serial = 0

  /** For commands of several I/Os: where the next one begins, and how many blocks and bytes of data are left. */
  nextBlock = 0
  blocksLeft = 0
  dataOffset = 0
  /** What the command transfers when it ends well. */
  transferBytes = 0
  /** A buffer of ours, and its size as asked for; 0 when there is none. */
  buffer = 0
  bufferSize = 0
  /** A parameter list that is worked through, made when it is first needed. */
  parameters: DataView | null = null
  parameterAt = 0
  parameterEnd = 0

  /** Told when the command has ended; null when nobody waits. */
  onEnd: (() => void)[] | null = null
  /** The unit's list. */
  previous: ScsiCommand | null = null
  next: ScsiCommand | null = null

  #step: Step = good
  #hasIo = false
  /** For its turn: the device has it in its list, so that it must not end before. */
  #isWaiting = false
  /** What it is answered with if it is not too late to stop. */
  #stopWith: number = RUNS

  constructor(host: CommandHost) {
    this.host = host
  }

  begin(request: GuestRequest, unit: LogicalUnit): void {
    this.request = request
    this.unit = unit
    this.#stopWith = RUNS
    const { cdbSize, senseSize } = this.host
    this.senseSize = senseSize
    this.dataOutAt = ScsiRequestHeader.size + cdbSize
    this.dataOutBytes = request.readableBytes - this.dataOutAt
    this.dataInAt = request.readableBytes + ScsiResponseHeader.size + senseSize
    this.dataInBytes = request.writableBytes - ScsiResponseHeader.size - senseSize
    this.transferBytes = 0
    request.context = this
    unit.enter(this)
  }

  get info(): BdevInfo {
    return this.unit.channel.info
  }

  /** A write has to be on stable storage, whatever its FUA bit says. */
  get isWriteThrough(): boolean {
    return (unitWord(this.host.units, this.unit.number, UnitWord.MODE) & Mode.WRITE_THROUGH) !== 0
  }

  /** A reservation of another initiator forbids it: `needs` has bits of `Gate`. */
  isBarred(needs: number): boolean {
    return (unitWord(this.host.units, this.unit.number, UnitWord.GATE) & needs) !== 0
  }

  /** Points the I/O's list at a part of the data. */
  sliceDataOut(offset: number, size: number): void {
    const { io, segments, readableCount } = this.request
    // As every driver that we know cuts requests: the data is whole segments.
    const isWhole = segments.lengths[0] === this.dataOutAt && size === this.dataOutBytes
    if (isWhole) copySegments(segments, 1, readableCount, io.segments)
    else this.#slice(this.dataOutAt + offset, size)
  }

  sliceDataIn(offset: number, size: number): void {
    const { io, segments, readableCount, readableBytes } = this.request
    const isWhole =
      segments.lengths[readableCount] === this.dataInAt - readableBytes && size === this.dataInBytes
    if (isWhole) copySegments(segments, readableCount + 1, segments.count, io.segments)
    else this.#slice(this.dataInAt + offset, size)
  }

  /** Copies from the data out; the range is within it. */
  copyDataOut(address: number, offset: number, size: number): void {
    this.request.segments.copyTo(address, this.dataOutAt + offset, size)
  }

  /** A buffer of ours, until the command ends; false when there is none left: the command has been answered. */
  acquireBuffer(size: number): boolean {
    assert(this.buffer === 0, 'a command has one buffer')
    this.buffer = this.host.reactor.buffers.acquire(size)
    this.bufferSize = size
    if (this.buffer !== 0) return true
    // The guest comes again.
    this.end(ScsiStatus.BUSY)
    return false
  }

  /** Fills the I/O but for its list of segments. */
  aim(type: IoType, firstBlock: number, blockCount: number, fua: boolean): BdevIo {
    const { io } = this.request
    io.type = type
    io.fua = fua
    io.firstBlock = firstBlock
    io.blockCount = blockCount
    return io
  }

  /** Submits the I/O; `step` goes on when it has succeeded. */
  submit(step: Step): Handled {
    if (this.#stopWith !== RUNS) return this.#respondStopped()
    this.#step = step
    this.#hasIo = true
    this.unit.channel.submit(this.request.io)
    return HANDLED
  }

  ioDone(): void {
    this.#hasIo = false
    const { status } = this.request.io
    if (status === Status.SUCCESS) this.#goOnInTurn()
    else if (this.#stopWith !== RUNS) this.respond(this.#stopWith)
    else this.fail(status)
  }

  /** Its turn has come. */
  goOn(): void {
    this.#isWaiting = false
    if (this.#stopWith === RUNS) this.#step(this)
    else this.#respondStopped()
  }

  /**
   * Ends it early if that is still possible: with the response, where the bdev gives up the I/O, or when its turn comes.
   * Returns false for a command that waits for the control thread.
   */
  stop(response: number): boolean {
    this.#stopWith = response
    if (this.#hasIo) this.unit.channel.abort(this.request.io)
    return this.#hasIo || this.#isWaiting
  }

  /** GOOD, with `transferred` bytes of the data in or out. */
  good(transferred: number): Handled {
    return this.#answer(ScsiResponse.OK, ScsiStatus.GOOD, 0, transferred)
  }

  /** Another status without sense. */
  end(status: number): Handled {
    return this.#answer(ScsiResponse.OK, status, 0, 0)
  }

  /** Ends below SCSI: a `ScsiResponse`. */
  respond(response: number): Handled {
    return this.#answer(response, ScsiStatus.GOOD, 0, 0)
  }

  /** CHECK CONDITION; `asc` is an `Asc`. */
  check(key: number, asc: number, fieldFlags = 0, fieldPointer = 0): Handled {
    const size = writeFixedSense(this.host.scratch, ScsiResponseHeader.size, key, asc)
    if (fieldFlags !== 0) {
      this.host.scratch.setUint8(ScsiResponseHeader.size + 15, fieldFlags)
      this.host.scratch.setUint16(ScsiResponseHeader.size + 16, fieldPointer)
    }
    return this.#answer(ScsiResponse.OK, ScsiStatus.CHECK_CONDITION, Math.min(size, this.senseSize), 0)
  }

  /** ILLEGAL REQUEST for what a byte of the CDB says. */
  refuseField(byte: number): Handled {
    return this.check(
      SenseKey.ILLEGAL_REQUEST,
      Asc.INVALID_FIELD_IN_CDB,
      FieldFlag.VALID | FieldFlag.IN_CDB,
      byte,
    )
  }

  /** ILLEGAL REQUEST for what a byte of the parameter list says. */
  refuseParameter(byte: number): Handled {
    return this.check(SenseKey.ILLEGAL_REQUEST, Asc.INVALID_FIELD_IN_PARAMETER_LIST, FieldFlag.VALID, byte)
  }

  /** Ends with the NVMe status of an I/O that failed. */
  fail(status: number): Handled {
    const outcome = OUTCOME_OF.get(status)
    if (outcome === undefined) return this.check(SenseKey.HARDWARE_ERROR, Asc.INTERNAL_TARGET_FAILURE)
    if (outcome.status !== ScsiStatus.CHECK_CONDITION) return this.end(outcome.status)
    return this.check(outcome.key, outcome.asc)
  }

  /** Gives the guest the first bytes of the scratch area: as many as there are, as it allows, and not more. */
  reply(sizeBytes: number, allocationLength: number): Handled {
    const size = Math.min(sizeBytes, allocationLength)
    if (size > this.dataInBytes) return this.respond(ScsiResponse.OVERRUN)
    if (size > 0) this.request.segments.copyFrom(this.host.scratchAddress, this.dataInAt, size)
    return this.good(size)
  }

  /** The first `size` bytes of the scratch area, zeroed. */
  clearScratch(size: number): DataView {
    const { scratch } = this.host
    new Uint8Array(scratch.buffer, scratch.byteOffset, size).fill(0)
    return scratch
  }

  /** The last step only answers. */
  #goOnInTurn(): void {
    if (this.#step === good) {
      good(this)
      return
    }
    this.#isWaiting = true
    this.host.goOnLater(this)
  }

  /** The bdev did not end it, so that the queue hears of it from here. */
  #respondStopped(): Handled {
    this.request.io.status = Status.ABORTED_BY_REQUEST
    return this.respond(this.#stopWith)
  }

  #slice(offset: number, size: number): void {
    const { io, segments } = this.request
    io.segments.count = 0
    if (io.segments.capacity < segments.count) io.segments.reserve(segments.count)
    segments.slice(offset, size, io.segments)
  }

  /** With `senseBytes` of sense that lie in the scratch area, behind where the response is put together. */
  #answer(response: number, status: number, senseBytes: number, transferred: number): Handled {
    const { request, host } = this
    const dataBytes = this.dataOutBytes > 0 ? this.dataOutBytes : this.dataInBytes
    const residual = dataBytes > transferred ? dataBytes - transferred : 0
    const { segments, readableCount, queue } = request
    const size = ScsiResponseHeader.size + senseBytes
    if (senseBytes === 0 && segments.lengths[readableCount]! >= size) {
      const at = queue.memory.locate(segments.addresses[readableCount]!, size)
      writeResponse(queue.memory.view, at, response, status, 0, residual)
    } else {
      writeResponse(host.scratch, 0, response, status, senseBytes, residual)
      segments.copyFrom(host.scratchAddress, request.readableBytes, size)
    }
    this.#release()
    const headerSize = ScsiResponseHeader.size + this.senseSize
    request.complete(this.dataOutBytes > 0 ? headerSize : headerSize + transferred)
    host.ended(this)
    return HANDLED
  }

  #release(): void {
    this.serial++
    if (this.buffer !== 0) {
      this.host.reactor.buffers.release(this.buffer, this.bufferSize)
      this.buffer = 0
    }
    this.unit.leave(this)
    this.request.context = null
    if (this.onEnd === null) return
    const waiting = this.onEnd
    this.onEnd = null
    for (const tell of waiting) tell()
  }
}

function writeResponse(
  view: DataView,
  at: number,
  response: number,
  status: number,
  senseLen: number,
  residual: number,
): void {
  ScsiResponseHeader.senseLen.set(view, at, senseLen)
  ScsiResponseHeader.residual.set(view, at, residual)
  ScsiResponseHeader.statusQualifier.set(view, at, 0)
  ScsiResponseHeader.status.set(view, at, status)
  ScsiResponseHeader.response.set(view, at, response)
}

/** The step of commands that are one I/O. */
export const good: Step = command => command.good(command.transferBytes)
