/** An image on the reactor that owns it: loads it, takes requests of this reactor and of others, pauses and stops. */
import { readSync } from 'node:fs'
import { ProtocolError, SysError } from '../../../core/errors.ts'
import { logger } from '../../../core/log.ts'
import type { Reactor } from '../../../reactor/reactor.ts'
import type { Uring } from '../../../sys/uring.ts'
import { statusFromErrno } from '../../errno-status.ts'
import type { Extents } from '../../extents.ts'
import { ExtentState } from '../../extents.ts'
import { type BdevIo, IoType, Segments } from '../../io.ts'
import { Bell } from './bell.ts'
import { BitmapRecorder } from './bitmap-recorder.ts'
import {
  Agreement,
  type BackingFile,
  BitmapTable,
  BLOCK_SIZE,
  type Qcow2Device,
  State,
  Wanted,
} from './device.ts'
import { Engine } from './engine.ts'
import { HEADER_BYTES_MAX, type Header, parseHeader } from './header.ts'
import { Inbox } from './inbox.ts'
import { type Layer, Qcow2Layer, RawLayer } from './layer.ts'
import { ReactorBuffers, Soon, ZlibDecompressor } from './reactor-parts.ts'
import { Request, type RequestOwner } from './request.ts'
import { RingFile } from './ring-file.ts'
import { Scheduler, type Steps, type Task } from './task.ts'

const log = logger('bdev')
const EIO = 5
/** One line about failing I/O in this time, so that a full disk does not fill the log's disk too. */
const LOG_PAUSE_US = 10e6

/** The images that reactors of this thread own, by their id. */
const hosts = new Map<string, Host>()

/** For the reactor that owns the image; there from then on until the device is destroyed. */
export function hostOf(device: Qcow2Device, name: string, reactor: Reactor, ring: Uring): Host {
  let host = hosts.get(device.id)
  if (host === undefined) {
    host = new Host(device, name, reactor, ring)
    hosts.set(device.id, host)
  }
  return host
}

export class Host implements RequestOwner {
  readonly #device: Qcow2Device
  readonly #name: string
  readonly #reactor: Reactor
  readonly #ring: Uring
  readonly #agreement: Agreement
  readonly #bell: Bell
  readonly #inbox: Inbox
  readonly #scheduler = new Scheduler()
  readonly #soon: Soon
  readonly #buffers: ReactorBuffers
  readonly #decompressor: ZlibDecompressor
  readonly #free: Request[] = []
  /** In use while no I/O has a list of its own. */
  readonly #noSegments = new Segments(1)
  #files: RingFile[] = []
  #engine: Engine | null = null
  /** It is being loaded or drained. */
  #isChanging = false
  #firstHeld: Request | null = null
  #lastHeld: Request | null = null
  #lastLogUs = Number.NEGATIVE_INFINITY
  /** A file of it was made shorter by somebody else. What it has lost cannot be told any more once it is opened anew. */
  #isCutOff = false

  constructor(device: Qcow2Device, name: string, reactor: Reactor, ring: Uring) {
    this.#device = device
    this.#name = name
    this.#reactor = reactor
    this.#ring = ring
    this.#agreement = new Agreement(device)
    this.#soon = new Soon(reactor)
    this.#buffers = new ReactorBuffers(reactor, this.#soon)
    this.#decompressor = new ZlibDecompressor(reactor)
    this.#inbox = new Inbox(device.lanes, request => this.start(request))
    this.#bell = new Bell(ring, device.doorbell)
    reactor.addPoller(this.#poll)
    this.#follow()
  }

  /** An I/O of this reactor. */
  submit(io: BdevIo): void {
    const request = this.#free.pop() ?? new Request(this, this.#noSegments)
    request.io = io
    request.type = io.type
    request.isFua = io.fua
    request.offset = io.firstBlock * BLOCK_SIZE
    request.length = io.blockCount * BLOCK_SIZE
    request.segments = io.segments
    this.start(request)
  }

  /** Any request: held while the image is not ready. */
  start(request: Request): void {
    if (this.#agreement.state === State.FAILED) {
      request.result = -EIO
      request.owner.requestDone(request)
    } else if (this.#engine !== null && !this.#isChanging) this.#engine.submit(request)
    else this.#hold(request)
  }

  requestDone(request: Request): void {
    const io = request.io!
    const { result } = request
    request.io = null
    request.segments = this.#noSegments
    this.#free.push(request)
    io.complete(result === 0 ? 0 : statusFromErrno(-result, io.type !== IoType.READ))
  }

  /** See `DriverChannel.extents`: what is not in memory counts as allocated. */
  extents(firstBlock: number, blockCount: number, extents: Extents): void {
    const engine = this.#isChanging ? null : this.#engine
    let block = firstBlock
    const end = firstBlock + blockCount
    while (engine !== null && block < end && !extents.isFull) {
      const bytes = engine.extent(block * BLOCK_SIZE, (end - block) * BLOCK_SIZE)
      // A block that is only partly zero holds data.
      const isZero = engine.isZeroFound && bytes >= BLOCK_SIZE
      const blocks = isZero ? Math.floor(bytes / BLOCK_SIZE) : Math.ceil(bytes / BLOCK_SIZE)
      extents.push(Math.min(blocks, end - block), isZero ? ExtentState.HOLE | ExtentState.ZERO : 0)
      block += blocks
    }
  }

  readonly #poll = (): number => {
    if (this.#bell.hasRung()) this.#follow()
    return this.#inbox.poll()
  }

  #hold(request: Request): void {
    request.next = null
    if (this.#lastHeld === null) this.#firstHeld = request
    else this.#lastHeld.next = request
    this.#lastHeld = request
  }

  #letGo(): void {
    let held = this.#firstHeld
    this.#firstHeld = null
    this.#lastHeld = null
    while (held !== null) {
      const { next } = held
      held.next = null
      this.start(held)
      held = next
    }
  }

  /** Does what the control thread wants next. */
  #follow(): void {
    if (this.#isChanging) return
    const { wanted, state } = this.#agreement
    if (wanted === Wanted.RUN && state !== State.RUNNING && state !== State.FAILED) {
      this.#change(task => this.#load(task))
    } else if (wanted === Wanted.PAUSE && state !== State.PAUSED) this.#change(task => this.#pause(task))
    else if (wanted === Wanted.STOP && state !== State.STOPPED) this.#change(task => this.#stop(task))
  }

  #change(steps: (task: Task) => Steps): void {
    this.#isChanging = true
    this.#scheduler.start(task => this.#changeSteps(task, steps))
  }

  *#changeSteps(task: Task, steps: (task: Task) => Steps): Steps {
    yield* steps(task)
    this.#isChanging = false
    if (this.#agreement.state === State.STOPPED) return
    if (this.#agreement.state !== State.PAUSED) this.#letGo()
    this.#follow()
  }

  *#load(task: Task): Steps {
    try {
      if (this.#isCutOff) throw new SysError('read', EIO, 'of a file that somebody made shorter')
      this.#engine = this.#build()
      yield* this.#engine.open(task)
      this.#agreement.setState(State.RUNNING)
    } catch (error) {
      if (!(error instanceof SysError) && !(error instanceof ProtocolError)) throw error
      log.error(`${this.#name}: ${this.#device.path} cannot be used: ${error.message}`)
      this.#agreement.setState(State.FAILED)
    }
  }

  *#pause(task: Task): Steps {
    yield* this.#unload(task)
    this.#agreement.setState(State.PAUSED)
  }

  *#stop(task: Task): Steps {
    yield* this.#unload(task)
    this.#reactor.removePoller(this.#poll)
    this.#bell.close()
    hosts.delete(this.#device.id)
    this.#agreement.setState(State.STOPPED)
  }

  *#unload(task: Task): Steps {
    const engine = this.#engine
    if (engine === null) return
    try {
      yield* engine.drain(task)
    } catch (error) {
      if (!(error instanceof SysError)) throw error
      log.error(`${this.#name}: what changed in ${this.#device.path} was not written: ${error.message}`)
    }
    this.#engine = null
    engine.close()
    for (const file of this.#files) file.close()
    this.#files = []
  }

  #build(): Engine {
    const device = this.#device
    const file = this.#open(device)
    const below = device.backing.map((backing): Layer => {
      const { format } = backing
      const underneath = this.#open(backing)
      if (format === 'raw') return new RawLayer(underneath)
      return new Qcow2Layer(underneath, readHeader(underneath), device.l2CacheBytes)
    })
    const bitmaps = new BitmapTable(device.bitmaps).all
    return new Engine(file, readHeader(file), below, device, {
      scheduler: this.#scheduler,
      buffers: this.#buffers,
      decompressor: this.#decompressor,
      soon: done => this.#soon.add(done),
      complain: message => this.#complain(message),
      recorder: bitmaps.length === 0 ? null : new BitmapRecorder(bitmaps),
    })
  }

  #open(opened: BackingFile | Qcow2Device): RingFile {
    const file = new RingFile(opened.fd, opened, this.#reactor, this.#ring, message => {
      this.#isCutOff = true
      log.error(`${this.#name}: ${opened.path} is damaged: ${message}`)
    })
    this.#files.push(file)
    return file
  }

  #complain(message: string): void {
    const { nowUs } = this.#reactor
    if (nowUs - this.#lastLogUs < LOG_PAUSE_US) return
    this.#lastLogUs = nowUs
    log.error(`${this.#name}: ${message} (${this.#device.path})`)
  }
}

/** Once when an image is loaded: a few KiB that were read a moment ago. */
function readHeader({ fd, sizeBytes }: RingFile): Header {
  const bytes = Buffer.alloc(Math.min(HEADER_BYTES_MAX, sizeBytes))
  readSync(fd, bytes, 0, bytes.length, 0)
  return parseHeader(bytes, sizeBytes)
}
