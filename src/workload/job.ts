/**
 * One reactor's share of a workload: keeps `queueDepth` I/Os in flight on a device, and, when asked to, knows what every
 * block must contain.
 *
 * Verification. Every write fills each block with (unit, version); a table holds the version last acknowledged for each
 * unit of `ioSize` bytes, and no unit has two I/Os in flight. A read whose blocks carry anything else is a miscompare.
 * Units that this job has not written are not judged. A write that failed leaves two acceptable versions. At the end
 * every unit that was written is read once more, so that nothing that was acknowledged goes unseen.
 */

import type { Channel } from '../bdev/channel.ts'
import { BdevIo, type IoOwner, IoType } from '../bdev/io.ts'
import { RpcError } from '../core/errors.ts'
import { Prng } from '../core/prng.ts'
import type { Reactor } from '../reactor/reactor.ts'
import { Status } from '../spec/nvme-status.ts'
import { Histogram } from './histogram.ts'

export interface JobOptions {
  readonly bdev: string
  /** In bytes, whole blocks, at most 1 MiB. */
  readonly ioSize: number
  readonly queueDepth: number
  /** Share of reads in percent; the rest are writes. */
  readonly readPercent: number
  /** One after the other instead of anywhere. */
  readonly sequential: boolean
  readonly verify: boolean
  readonly seed: number
  /** The part of the device to use, in units of `ioSize`. */
  readonly firstUnit: number
  readonly unitCount: number
  /** Ends by itself after this many I/Os; 0 for never. */
  readonly ioCountMax: number
}

/** Plain data, for the control thread. */
export interface JobReport {
  readonly reads: number
  readonly writes: number
  readonly errors: number
  /** The first few failures, in words. */
  readonly firstErrors: readonly string[]
  readonly miscompares: number
  /** Units read once more at the end of a verified job. */
  readonly readBacks: number
  readonly inFlight: number
  readonly elapsedUs: number
  /** The longest time in which nothing completed, since the start or since it was forgotten. */
  readonly longestPauseUs: number
  readonly latencyUs: {
    readonly mean: number
    readonly p50: number
    readonly p99: number
    readonly p999: number
    readonly max: number
  }
}

const ERRORS_TOLD = 5
/** (unit, version) as two words at the start of every block, and the version again in its last word. */
const STAMP_BYTES = 12

export class Job implements IoOwner {
  readonly options: JobOptions
  readonly #reactor: Reactor
  readonly #channel: Channel
  readonly #prng: Prng
  readonly #ios: BdevIo[] = []
  readonly #buffers: number[] = []
  readonly #latencyUs = new Histogram()
  readonly #startedUs: number
  /** By unit: the version written last and acknowledged; 0 when this job has not written it. */
  readonly #versions: Uint32Array
  /** By unit: the version of a write that failed and may or may not be on the medium. */
  readonly #doubtful = new Map<number, number>()
  readonly #busy: Uint8Array
  /** By the I/O's tag: the version that its write carries. */
  readonly #inFlightVersions: Uint32Array
  #next = 0
  #nextReadBack = 0
  #readBacks = 0
  #nextVersion = 1
  #issued = 0
  #reads = 0
  #writes = 0
  #errors = 0
  readonly #firstErrors: string[] = []
  #miscompares = 0
  #inFlight = 0
  #lastDoneUs: number
  #longestPauseUs = 0
  #endedUs = 0
  #stopping = false
  #readingBack = false
  #onEnd: (() => void) | undefined

  /** Throws `RpcError` ENOMEM when the reactor has not that many buffers; it keeps none then. */
  constructor(reactor: Reactor, channel: Channel, options: JobOptions) {
    this.options = options
    this.#reactor = reactor
    this.#channel = channel
    this.#prng = new Prng(options.seed)
    this.#versions = new Uint32Array(options.verify ? options.unitCount : 0)
    this.#busy = new Uint8Array(options.verify ? options.unitCount : 0)
    this.#inFlightVersions = new Uint32Array(options.queueDepth)
    this.#startedUs = reactor.clock.nowUs()
    this.#lastDoneUs = this.#startedUs
    for (let tag = 0; tag < options.queueDepth; tag++) {
      const io = new BdevIo(this)
      io.tag = tag
      this.#ios.push(io)
      const buffer = reactor.buffers.acquire(options.ioSize)
      if (buffer === 0) {
        this.#releaseBuffers()
        throw new RpcError(
          'ENOMEM',
          `reactor ${reactor.index} has ${tag} buffers of ${options.ioSize} bytes left, and a queue depth of ` +
            `${options.queueDepth} needs as many: make io_size or queue_depth smaller`,
        )
      }
      this.#buffers.push(buffer)
    }
  }

  start(): void {
    for (const io of this.#ios) this.#issue(io)
  }

  /** Issues nothing more but the final reads of a verified job; calls `ended` when nothing is in flight. */
  stop(ended: () => void): void {
    this.#stopping = true
    this.#onEnd = ended
    this.#endedUs ||= this.#reactor.clock.nowUs()
    if (this.#inFlight === 0) this.#startReadingBack()
  }

  /** From now on only pauses to come count. */
  forgetPause(): void {
    this.#longestPauseUs = 0
    this.#lastDoneUs = this.#reactor.clock.nowUs()
  }

  report(): JobReport {
    const latency = this.#latencyUs
    const nowUs = this.#endedUs !== 0 ? this.#endedUs : this.#reactor.clock.nowUs()
    const pauseUs = this.#inFlight > 0 ? nowUs - this.#lastDoneUs : 0
    return {
      reads: this.#reads,
      writes: this.#writes,
      errors: this.#errors,
      firstErrors: [...this.#firstErrors],
      miscompares: this.#miscompares,
      readBacks: this.#readBacks,
      inFlight: this.#inFlight,
      elapsedUs: nowUs - this.#startedUs,
      longestPauseUs: Math.max(this.#longestPauseUs, pauseUs),
      latencyUs: {
        mean: latency.mean,
        p50: latency.percentile(0.5),
        p99: latency.percentile(0.99),
        p999: latency.percentile(0.999),
        max: latency.max,
      },
    }
  }

  ioDone(io: BdevIo): void {
    this.#inFlight--
    if (!this.#readingBack) this.#measure(io)
    if (io.status !== Status.SUCCESS) this.#failed(io)
    if (this.options.verify) this.#settle(io)
    if (io.lent && io.status === Status.SUCCESS) this.#channel.release(io)
    if (this.#readingBack) {
      this.#readBack(io)
    } else if (this.#stopping) {
      if (this.#inFlight === 0) this.#startReadingBack()
    } else if (!this.#channel.isRemoved) {
      // On a device that was taken away every I/O would fail at once, for ever.
      this.#issue(io)
    }
  }

  #measure(io: BdevIo): void {
    const { nowUs } = this.#reactor
    const pauseUs = nowUs - this.#lastDoneUs
    if (pauseUs > this.#longestPauseUs) this.#longestPauseUs = pauseUs
    this.#lastDoneUs = nowUs
    this.#latencyUs.record((nowUs - io.submittedUs) | 0)
    if (io.status !== Status.SUCCESS) return
    if (io.type === IoType.READ) this.#reads++
    else this.#writes++
  }

  #issue(io: BdevIo): void {
    const { readPercent, ioCountMax, verify } = this.options
    if (ioCountMax > 0 && this.#issued >= ioCountMax) {
      if (this.#inFlight === 0) this.#endedUs = this.#reactor.nowUs
      return
    }
    this.#issued++
    const unit = this.#pickUnit()
    const isRead = readPercent === 100 || (readPercent > 0 && this.#prng.below(100) < readPercent)
    if (verify && !isRead) this.#stamp(io, unit)
    this.#submit(io, isRead ? IoType.READ : IoType.WRITE, unit)
  }

  #submit(io: BdevIo, type: IoType, unit: number): void {
    const { ioSize, verify, firstUnit } = this.options
    const blocks = ioSize / this.#channel.info.blockSize
    io.type = type
    io.fua = false
    io.firstBlock = (firstUnit + unit) * blocks
    io.blockCount = blocks
    io.lent = type === IoType.READ && !verify && this.#channel.lends
    if (io.lent) io.segments.count = 0
    else io.segments.set(this.#buffers[io.tag]!, ioSize)
    if (verify) this.#busy[unit] = 1
    this.#inFlight++
    this.#channel.submit(io)
  }

  /** Nothing is in flight: whatever was acknowledged must be there. */
  #startReadingBack(): void {
    this.#readingBack = true
    for (const io of this.#ios) this.#readBack(io)
  }

  /** Reads the next unit that was written; ends the job when there is none left. */
  #readBack(io: BdevIo): void {
    const versions = this.#versions
    while (this.#nextReadBack < versions.length && versions[this.#nextReadBack] === 0) this.#nextReadBack++
    if (this.#nextReadBack >= versions.length || this.#channel.isRemoved) {
      this.#endIfQuiet()
      return
    }
    this.#readBacks++
    this.#submit(io, IoType.READ, this.#nextReadBack++)
  }

  #pickUnit(): number {
    const { unitCount, sequential, verify } = this.options
    let unit = sequential ? this.#next : this.#prng.below(unitCount)
    // There are more units than I/Os in flight, so a free one is found.
    while (verify && this.#busy[unit] !== 0) unit = unit + 1 === unitCount ? 0 : unit + 1
    this.#next = unit + 1 === unitCount ? 0 : unit + 1
    return unit
  }

  /** Writes the stamp of a new version into every block of the I/O's buffer. */
  #stamp(io: BdevIo, unit: number): void {
    const { view } = this.#reactor.arena
    const { blockSize } = this.#channel.info
    const version = this.#nextVersion++
    const base = this.#reactor.arena.offsetOf(this.#buffers[io.tag]!)
    for (let at = base; at < base + this.options.ioSize; at += blockSize) {
      view.setUint32(at, unit, true)
      view.setUint32(at + 4, version, true)
      view.setUint32(at + blockSize - 4, version, true)
    }
    this.#inFlightVersions[io.tag] = version
  }

  /** After an I/O of a verified job: remembers what a write left, or judges what a read found. */
  #settle(io: BdevIo): void {
    const blocks = this.options.ioSize / this.#channel.info.blockSize
    const unit = io.firstBlock / blocks - this.options.firstUnit
    this.#busy[unit] = 0
    if (io.type === IoType.WRITE) {
      const version = this.#inFlightVersions[io.tag]!
      if (io.status === Status.SUCCESS) {
        this.#versions[unit] = version
        this.#doubtful.delete(unit)
      } else {
        this.#doubtful.set(unit, version)
      }
      return
    }
    const expected = this.#versions[unit]!
    if (io.status !== Status.SUCCESS || expected === 0) return
    const { view } = this.#reactor.arena
    const { blockSize } = this.#channel.info
    const base = this.#reactor.arena.offsetOf(this.#buffers[io.tag]!)
    for (let at = base; at < base + this.options.ioSize; at += blockSize) {
      const version = view.getUint32(at + 4, true)
      const isWhole =
        view.getUint32(at, true) === unit && view.getUint32(at + blockSize - 4, true) === version
      if (isWhole && (version === expected || version === this.#doubtful.get(unit))) continue
      this.#miscompares++
      this.#tell(
        `block ${io.firstBlock + (at - base) / blockSize} holds version ${version} of unit ${view.getUint32(at, true)}, ` +
          `not version ${expected} of unit ${unit}`,
      )
      return
    }
  }

  #failed(io: BdevIo): void {
    this.#errors++
    const what = io.type === IoType.READ ? 'read' : 'write'
    this.#tell(`${what} of block ${io.firstBlock} ended with status 0x${io.status.toString(16)}`)
  }

  #tell(text: string): void {
    if (this.#firstErrors.length < ERRORS_TOLD) this.#firstErrors.push(text)
  }

  #endIfQuiet(): void {
    if (this.#inFlight > 0 || this.#onEnd === undefined) return
    this.#releaseBuffers()
    const ended = this.#onEnd
    this.#onEnd = undefined
    ended()
  }

  #releaseBuffers(): void {
    for (const buffer of this.#buffers.splice(0)) this.#reactor.buffers.release(buffer, this.options.ioSize)
  }
}

/** The smallest block that has room for a stamp. */
export const VERIFY_BLOCK_SIZE_MIN = STAMP_BYTES
