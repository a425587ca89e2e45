/**
 * One reactor's way to one NVMe device: spreads I/O over paths, and hides their failures from the layer above.
 *
 *     submit --> path? --yes--> on its way --success, or final status--------------------------------> ended
 *                  |               |  retryable status: again, after the delay the controller asks for
 *                  |               |  path lost, or path-related status: again at once on another path
 *                  no              v
 *                  +--> waiting, while a path may return; else ended with INTERNAL_PATH_ERROR
 *
 * How much waits is bounded by the depth of those who submit.
 */
import type { BdevInfo, DriverChannel } from '../bdev/bdev.ts'
import { type BdevIo, IoType } from '../bdev/io.ts'
import { IoStat } from '../bdev/iostat.ts'
import { assert } from '../core/assert.ts'
import type { Reactor } from '../reactor/reactor.ts'
import { DsmRange } from '../spec/nvme.ts'
import { AnaState } from '../spec/nvme-log.ts'
import { DNR, STATUS_MASK, Status, StatusCodeType } from '../spec/nvme-status.ts'
import { NLB_MAX, writeRange } from './commands.ts'
import type { IoPath } from './io-path.ts'
import { IoRequest } from './io-request.ts'
import type { HostOptions, MultipathPolicy } from './messages.ts'
import { PathSelector } from './path-selector.ts'

/** What of a device the channels need: `BdevInfo.device`. */
export interface NvmeDevice {
  readonly controller: string
  readonly nsid: number
}

/** After a path-related status of a path that is up and has no alternative. */
const PATH_RETRY_MS = 100
/** How long an abort may take before the connection is given up for it. */
const ABORT_PATIENCE_MS = 1000

/** An I/O path, and how this device fares on it. */
export class ChannelPath {
  readonly io: IoPath
  readonly stat = new IoStat()
  /** The ANA state was contradicted by a status: not used until the log says what holds. */
  isDoubted = false
  /** Writes that were on their way on the connection when it was lost: see `NvmeChannel.#fence`. */
  unfencedWrites = 0
  readonly #nsid: number

  constructor(io: IoPath, nsid: number) {
    this.io = io
    this.#nsid = nsid
  }

  get id(): number {
    return this.io.id
  }

  get isConnected(): boolean {
    return this.io.isConnected && !this.isDoubted
  }

  get outstanding(): number {
    return this.io.outstanding
  }

  get anaState(): AnaState | undefined {
    return this.io.status.namespaces.find(({ nsid }) => nsid === this.#nsid)?.anaState
  }

  get isAccessible(): boolean {
    const { anaState } = this
    return anaState === AnaState.OPTIMIZED || anaState === AnaState.NON_OPTIMIZED
  }
}

export class NvmeChannel implements DriverChannel {
  readonly info: BdevInfo
  readonly nsid: number
  readonly lends = false
  /** In the order in which the paths were attached. */
  paths: readonly ChannelPath[] = []
  readonly #reactor: Reactor
  readonly #selector = new PathSelector<ChannelPath>()
  readonly #onClose: (channel: NvmeChannel) => void
  readonly #onAnaDoubt: (path: IoPath) => void
  #options: HostOptions
  #maxBlocks = 1
  /** All requests ever made, and those that are free. */
  readonly #requests: IoRequest[] = []
  readonly #free: IoRequest[] = []
  #firstWaiting: IoRequest | null = null
  #lastWaiting: IoRequest | null = null

  constructor(
    info: BdevInfo,
    reactor: Reactor,
    options: HostOptions,
    events: { closed(channel: NvmeChannel): void; anaDoubted(path: IoPath): void },
  ) {
    this.info = info
    this.nsid = (info.device as NvmeDevice).nsid
    this.#reactor = reactor
    this.#options = options
    this.#onClose = events.closed
    this.#onAnaDoubt = events.anaDoubted
  }

  get controller(): string {
    return (this.info.device as NvmeDevice).controller
  }

  get currentPath(): ChannelPath | null {
    return this.#selector.current
  }

  set options(options: HostOptions) {
    this.#options = options
  }

  /** Sets the paths to this device, in the order in which they were attached. */
  setPaths(paths: readonly IoPath[]): void {
    const known = new Map(this.paths.map(path => [path.io, path]))
    for (const path of this.paths) if (!paths.includes(path.io)) path.io.removeChannel(this)
    this.paths = paths.map(path => known.get(path) ?? new ChannelPath(path, this.nsid))
    for (const path of paths) if (!known.has(path)) path.addChannel(this)
    this.pathChanged()
  }

  setPolicy(policy: MultipathPolicy): void {
    this.#selector.setPolicy(policy, !this.#options.disableAutoFailback)
    this.pathChanged()
  }

  /** Something about a path changed: chooses anew, and starts what waited. */
  pathChanged(): void {
    this.#selector.refresh(this.paths)
    const limits = this.paths.flatMap(({ io }) => io.status.controller?.maxTransferBytes ?? [])
    this.#maxBlocks = Math.max(1, Math.floor(Math.min(...limits, 1 << 30) / this.info.blockSize))
    this.feed()
  }

  /** The ANA log of a path was read: its states hold again. */
  trust(path: IoPath): void {
    for (const own of this.paths) if (own.io === path) own.isDoubted = false
  }

  submit(io: BdevIo): void {
    const limit = this.#blocksPerCommand(io.type)
    if (io.blockCount > limit) {
      this.#split(io, limit)
      return
    }
    const request = this.#acquire(io)
    request.start(io, io.firstBlock, io.blockCount)
    if (io.type === IoType.UNMAP) this.#describeRange(request)
    this.#dispatchInTurn(request)
  }

  abort(io: BdevIo | null): void {
    let isUnderWay = false
    for (const request of this.#requests) {
      if (request.io === null || (io !== null && request.io !== io)) continue
      request.isAborted = true
      if (request.path !== null) {
        isUnderWay = true
        // What is under way on a healthy path ends by itself sooner than a crowd of Abort commands would end it.
        if (io !== null) request.path.abort(request)
      } else if (request.timer !== null) {
        request.timer.cancel()
        request.timer = null
        this.#finish(request, Status.ABORTED_BY_REQUEST)
      }
    }
    this.#endAbortedWaiting()
    // The device goes away or is reset: nobody waits for a silent path.
    if (io === null && isUnderWay) {
      this.#reactor.clock.after(ABORT_PATIENCE_MS, () => this.#dropPaths('an abort took too long'))
    }
  }

  close(): void {
    for (const path of this.paths) path.io.removeChannel(this)
    this.paths = []
    this.#onClose(this)
  }

  /** Starts what waits, as far as there are paths and slots. */
  feed(): void {
    let request = this.#firstWaiting
    this.#firstWaiting = null
    this.#lastWaiting = null
    while (request !== null) {
      const { next } = request
      request.next = null
      request.isQueued = false
      if (!this.#dispatch(request)) {
        // No slot and no path for this one means none for those behind it: they keep their order.
        this.#requeue(next)
        return
      }
      request = next
    }
  }

  /** A command ended with that status field; a path's word, so it may be tried again. */
  ended(request: IoRequest, path: IoPath, statusField: number): void {
    request.path = null
    request.isOverdue = false
    const status = statusField & STATUS_MASK
    if (this.#options.countPathIo) this.#count(request, path, status)
    if (status === Status.SUCCESS) this.#finish(request, Status.SUCCESS)
    else this.#failed(request, path, statusField)
  }

  #failed(request: IoRequest, path: IoPath, statusField: number): void {
    const status = statusField & STATUS_MASK
    // From a connection that is up these would be the controller's words, and count like others.
    const isLost =
      !path.isConnected &&
      (status === Status.ABORTED_BY_HOST ||
        status === Status.HOST_PATHING_ERROR ||
        status === Status.ABORTED_SQ_DELETION)
    if (isLost && status !== Status.HOST_PATHING_ERROR) this.#fence(request, path)
    if (request.isAborted) {
      this.#finish(request, Status.ABORTED_BY_REQUEST)
      return
    }
    if (isLost) {
      this.#dispatch(request)
      return
    }
    const { retryCount } = this.#options
    // Nobody above asked for this abort: it was for a command that took too long, or hit another one than meant.
    const isStrayAbort = status === Status.ABORTED_BY_REQUEST
    const isFinal = (statusField & DNR) !== 0 && !isStrayAbort
    if (isFinal || (retryCount !== -1 && request.retries >= retryCount)) {
      this.#finish(request, status)
      return
    }
    if (status >> 8 === StatusCodeType.PATH || isStrayAbort) {
      this.#retryElsewhere(request, path, status)
      return
    }
    request.retries++
    const delays = path.status.controller?.retryDelaysMs
    this.#retryAfter(request, delays?.[(statusField >> 11) & 3] ?? 0)
  }

  /** The path is up, but this I/O did not get through. */
  #retryElsewhere(request: IoRequest, path: IoPath, status: number): void {
    const own = this.paths.find(({ io }) => io === path)
    if (own === undefined) {
      this.#dispatch(request)
      return
    }
    const isAna =
      status === Status.ANA_INACCESSIBLE ||
      status === Status.ANA_PERSISTENT_LOSS ||
      status === Status.ANA_TRANSITION
    if (isAna) {
      own.isDoubted = true
      this.#onAnaDoubt(path)
      this.#selector.refresh(this.paths)
      this.#dispatch(request)
      return
    }
    request.retries++
    const other = this.#selector.other(own)
    if (other === null) this.#retryAfter(request, PATH_RETRY_MS)
    else this.#submitTo(request, other)
  }

  #retryAfter(request: IoRequest, delayMs: number): void {
    if (delayMs === 0) {
      this.#dispatch(request)
      return
    }
    request.timer = this.#reactor.clock.after(delayMs, () => {
      request.timer = null
      this.#dispatch(request)
    })
  }

  /**
   * The place where a fence belongs. The connection is gone, but a command that had left may still be executed by the
   * controller, and so a write may land after a later one that went another way. Until the controller can be asked to
   * confirm the end of what it had accepted (TP4129, Cross-Controller Reset), such writes are counted.
   */
  #fence({ type }: IoRequest, path: IoPath): void {
    if (type === IoType.READ || type === IoType.FLUSH || type === IoType.COMPARE) return
    const own = this.paths.find(({ io }) => io === path)
    if (own !== undefined) own.unfencedWrites++
  }

  /** Behind those that wait already. */
  #dispatchInTurn(request: IoRequest): void {
    if (this.#firstWaiting === null) this.#dispatch(request)
    else this.#wait(request)
  }

  /** False when the request has to wait. */
  #dispatch(request: IoRequest): boolean {
    if (request.isAborted) {
      this.#finish(request, Status.ABORTED_BY_REQUEST)
      return true
    }
    const path = this.#selector.next()
    if (path !== null) return this.#submitTo(request, path)
    for (const { io } of this.paths) {
      if (io.mayReturn) {
        this.#wait(request)
        return false
      }
    }
    this.#finish(request, Status.INTERNAL_PATH_ERROR)
    return true
  }

  #submitTo(request: IoRequest, path: ChannelPath): boolean {
    if (path.io.submit(request, this.nsid, this.info.blockSize)) return true
    path.io.awaitSlot(this)
    this.#wait(request)
    return false
  }

  #wait(request: IoRequest): void {
    request.isQueued = true
    request.next = null
    if (this.#lastWaiting === null) this.#firstWaiting = request
    else this.#lastWaiting.next = request
    this.#lastWaiting = request
  }

  #requeue(first: IoRequest | null): void {
    for (let request = first; request !== null; ) {
      const { next } = request
      this.#wait(request)
      request = next
    }
  }

  #endAbortedWaiting(): void {
    let request = this.#firstWaiting
    this.#firstWaiting = null
    this.#lastWaiting = null
    while (request !== null) {
      const { next } = request
      if (request.isAborted) {
        request.isQueued = false
        this.#finish(request, Status.ABORTED_BY_REQUEST)
      } else {
        this.#wait(request)
      }
      request = next
    }
  }

  #finish(request: IoRequest, status: number): void {
    const { whole } = request
    const io = request.io!
    this.#release(request)
    if (whole === request) {
      io.complete(status)
    } else {
      if (status !== Status.SUCCESS && whole.partsStatus === Status.SUCCESS) whole.partsStatus = status
      if (--whole.parts > 0) return
      this.#release(whole)
      io.complete(whole.partsStatus)
    }
  }

  #acquire(io: BdevIo): IoRequest {
    const free = this.#free.pop()
    if (free !== undefined) return free
    const request = new IoRequest(this, io.segments)
    this.#requests.push(request)
    return request
  }

  #release(request: IoRequest): void {
    request.io = null
    request.isOverdue = false
    this.#free.push(request)
  }

  #blocksPerCommand(type: IoType): number {
    if (type === IoType.READ || type === IoType.WRITE || type === IoType.COMPARE) {
      return Math.min(this.#maxBlocks, NLB_MAX)
    }
    // A range of Dataset Management has 32 bits for its length, Write Zeroes 16; Flush has none.
    return type === IoType.WRITE_ZEROES ? NLB_MAX : 0xffff_ffff
  }

  /** Makes as many commands of an I/O as its length takes; it ends when all have ended. */
  #split(io: BdevIo, limit: number): void {
    const whole = this.#acquire(io)
    whole.start(io, io.firstBlock, io.blockCount)
    whole.parts = Math.ceil(io.blockCount / limit)
    const { blockSize } = this.info
    const hasData = io.type !== IoType.WRITE_ZEROES && io.type !== IoType.UNMAP
    for (let done = 0; done < io.blockCount; done += limit) {
      const part = this.#acquire(io)
      const blockCount = Math.min(limit, io.blockCount - done)
      part.start(io, io.firstBlock + done, blockCount)
      part.whole = whole
      if (hasData) part.takeSlice(done * blockSize, blockCount * blockSize)
      if (io.type === IoType.UNMAP) this.#describeRange(part)
      this.#dispatchInTurn(part)
    }
  }

  /** Writes the range list that an UNMAP sends as its data. */
  #describeRange(request: IoRequest): void {
    const { arena } = this.#reactor
    if (request.rangeAddress === 0) {
      request.rangeAddress = arena.allocate(DsmRange.size, DsmRange.size)
      assert(request.rangeAddress !== 0, 'the arena has 16 bytes for a range list')
    }
    const at = (request.rangeAddress - arena.base) >> 2
    writeRange(arena.i32, at, request.firstBlock, request.blockCount)
    request.takeRange()
  }

  /** Ends the connections on which something of ours is outstanding; that ends what is outstanding. */
  #dropPaths(reason: string): void {
    for (const { io } of this.paths) {
      if (this.#requests.some(({ path, isAborted }) => path === io && isAborted)) io.reconnect(reason)
    }
  }

  #count({ io, whole }: IoRequest, path: IoPath, status: number): void {
    // The last part counts for the whole.
    if (whole.parts > 1) return
    const own = this.paths.find(own => own.io === path)
    io!.status = status
    own?.stat.count(io!, this.#reactor)
  }
}
