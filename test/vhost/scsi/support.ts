/**
 * Guests with SCSI controllers and no rings: requests are laid out by hand, as a driver's descriptors would be.
 *
 *     const host = await ScsiHost.start()                    // m0: 64 blocks of 512 bytes in memory
 *     const guest = await host.guest('vhost.0', ['m0'])      // as target 0; its unit attention is taken already
 *     await guest.ask('00 0000000000')                       // TEST UNIT READY
 */

import { z } from 'zod'
import { type AnyDriver, type BdevInfo, type DriverChannel, defineDriver } from '../../../src/bdev/bdev.ts'
import { drivers } from '../../../src/bdev/drivers/index.ts'
import { type BdevIo, IO_TYPE_NAMES, IoType } from '../../../src/bdev/io.ts'
import { ReactorBdevs } from '../../../src/bdev/reactor-bdevs.ts'
import { BdevRegistry } from '../../../src/bdev/registry.ts'
import { logger } from '../../../src/core/log.ts'
import { bytesAt, mapAnonymous, unmap } from '../../../src/sys/memory.ts'
import type { ScsiBacking, ScsiTarget } from '../../../src/vhost/backing.ts'
import type { ModelState } from '../../../src/vhost/model.ts'
import { GuestMemory } from '../../../src/vhost/ring/guest-memory.ts'
import { GuestRequest, type RequestQueue } from '../../../src/vhost/ring/request.ts'
import { ScsiCoordinator } from '../../../src/vhost/scsi/coordinator.ts'
import { ScsiDevice } from '../../../src/vhost/scsi/device.ts'
import { ScsiModel } from '../../../src/vhost/scsi/model.ts'
import { LocalReactorGroup } from '../../support/reactor.ts'

const MEMORY_SIZE = 64 << 20
const GUEST_ADDRESS = 0x4000_0000
/** What no device writes by itself. */
export const UNTOUCHED = 0xa5

export const bytes = (dump: string): Uint8Array =>
  Uint8Array.from(Buffer.from(dump.replaceAll(/\s/g, ''), 'hex'))
export const hexOf = (data: Uint8Array): string => Buffer.from(data).toString('hex')
export const filled = (size: number, value: number): Uint8Array => new Uint8Array(size).fill(value)

/** LUN 0 of a target. */
export const lunOf = (target: number, lun = 0): Uint8Array =>
  Uint8Array.of(1, target, 0x40 | (lun >> 8), lun & 0xff, 0, 0, 0, 0)

/** A bdev whose I/Os the test sees and ends. */
export class HeldBdev {
  readonly held: BdevIo[] = []
  readonly seen: string[] = []
  aborted: BdevIo[] = []
  readonly driver: AnyDriver = defineDriver({
    name: 'held',
    summary: 'Ends nothing by itself.',
    params: z.object({}),
    create: name => this.#info(name),
    openChannel: () => this.#channel(),
  })

  end(status: number, io = this.held[0]!): void {
    this.held.splice(this.held.indexOf(io), 1)
    io.complete(status)
  }

  #info(name: string): BdevInfo {
    return {
      name,
      aliases: [],
      driver: 'held',
      product: 'Held disk',
      uuid: '11111111-2222-4333-8444-555555555555',
      blockSize: 512,
      physicalBlockSize: 4096,
      blockCount: 2 ** 33,
      supports: new Set([
        IoType.READ,
        IoType.WRITE,
        IoType.FLUSH,
        IoType.UNMAP,
        IoType.WRITE_ZEROES,
        IoType.COMPARE,
      ]),
      writeCache: true,
      readOnly: false,
      bases: [],
      device: null,
      driverSpecific: {},
    }
  }

  #channel(): DriverChannel {
    return {
      lends: false,
      submit: io => {
        this.held.push(io)
        this.seen.push(`${IO_TYPE_NAMES[io.type]} ${io.firstBlock}+${io.blockCount}${io.fua ? ' fua' : ''}`)
      },
      abort: io => {
        if (io !== null) this.aborted.push(io)
      },
      close() {},
    }
  }
}

export class ScsiHost {
  readonly reactors: LocalReactorGroup
  readonly bdevs: BdevRegistry
  readonly coordinator: ScsiCoordinator
  readonly local: readonly ReactorBdevs[]
  readonly held = new HeldBdev()
  readonly #guests: ScsiGuest[] = []

  private constructor(reactorCount: number) {
    const all = [...drivers, this.held.driver]
    this.reactors = new LocalReactorGroup({ count: reactorCount, arenaBytes: 32 << 20 })
    this.bdevs = new BdevRegistry(this.reactors, all)
    this.local = this.reactors.reactors.map(reactor => new ReactorBdevs(reactor, all))
    this.coordinator = new ScsiCoordinator(this.reactors, this.bdevs)
  }

  static async start(reactorCount = 1): Promise<ScsiHost> {
    const host = new ScsiHost(reactorCount)
    await host.create('malloc', 'm0', { block_size: 512, num_blocks: 64 })
    return host
  }

  create(driver: string, name: string, params: object): Promise<BdevInfo> {
    return this.reactors.run(this.bdevs.create(driver, name, params))
  }

  /** A controller with these bdevs as targets 0, 1 …, and its front end. */
  async guest(name: string, targets: readonly string[]): Promise<ScsiGuest> {
    const guest = new ScsiGuest(this, name)
    this.#guests.push(guest)
    for (const [number, bdev] of targets.entries()) guest.add(number, bdev)
    guest.connect()
    for (const number of targets.keys()) await guest.ask('00 0000000000', { lun: lunOf(number) })
    return guest
  }

  close(): void {
    for (const guest of this.#guests) guest.close()
    this.reactors.close()
  }
}

export interface Options {
  readonly out?: Uint8Array
  /** Bytes of data in. */
  readonly in?: number
  readonly lun?: Uint8Array
  readonly id?: number
  /** Where what the device reads, and what it writes, is cut into descriptors. */
  readonly cuts?: readonly number[]
  readonly reactor?: number
  readonly queue?: number
}

export interface Answer {
  readonly response: number
  readonly status: number
  readonly residual: number
  /** Sense key and ASC with ASCQ, or '' without sense. */
  readonly sense: string
  /** All of the sense area. */
  readonly senseBytes: Uint8Array
  readonly data: Uint8Array
  /** Of the used entry. */
  readonly length: number
}

/** One request on its way. */
export class Sent {
  readonly request: GuestRequest
  readonly places: readonly Uint8Array[]
  /** The byte behind each piece of the guest's memory, and what the guest wrote for the device to read. */
  readonly guards: readonly Uint8Array[]
  readonly readable: readonly Uint8Array[]
  /** One for each time that it completed: must become exactly one. */
  readonly lengths: number[] = []

  constructor(request: GuestRequest, readable: readonly Uint8Array[], places: readonly Uint8Array[]) {
    this.request = request
    this.readable = readable
    this.places = places
    const { addresses, lengths, count } = request.segments
    this.guards = Array.from({ length: count }, (_, i) => bytesAt(addresses[i]! + lengths[i]!, 1))
  }

  get isDone(): boolean {
    return this.lengths.length > 0
  }

  get written(): Uint8Array {
    return Buffer.concat(this.places)
  }
}

class Queue implements RequestQueue {
  readonly index: number
  readonly device: ScsiDevice
  readonly memory: GuestMemory
  readonly sent = new Map<GuestRequest, Sent>()
  readonly events: Sent[] = []

  constructor(index: number, device: ScsiDevice, memory: GuestMemory) {
    this.index = index
    this.device = device
    this.memory = memory
  }

  take(): GuestRequest | null {
    return this.events.shift()?.request ?? null
  }

  complete(request: GuestRequest, writtenBytes: number): void {
    this.sent.get(request)!.lengths.push(writtenBytes)
  }
}

export class ScsiGuest {
  readonly host: ScsiHost
  readonly backing: ScsiBacking = { kind: 'scsi', targets: new Map<number, ScsiTarget>() }
  readonly model: ScsiModel
  state: ModelState = { writeback: true }
  /** One for each reactor. */
  devices: ScsiDevice[] = []
  readonly memory: GuestMemory
  senseSize = 96
  cdbSize = 32
  readonly #address = mapAnonymous(MEMORY_SIZE)
  readonly #queues = new Map<string, Queue>()
  #used = 0

  constructor(host: ScsiHost, name: string) {
    this.host = host
    this.model = new ScsiModel(this.backing, name, 4, host.coordinator)
    this.memory = new GuestMemory([
      {
        guestAddress: GUEST_ADDRESS,
        userAddress: GUEST_ADDRESS,
        sizeBytes: MEMORY_SIZE,
        address: this.#address,
      },
    ])
  }

  add(number: number, bdev: string): void {
    const claim = this.host.bdevs.claim(bdev, 'a test', 'read')
    const info = this.host.bdevs.get(bdev)
    this.backing.targets.set(number, { number, id: number, name: `Target ${number}`, bdev: info, claim })
  }

  connect(): void {
    const description = structuredClone(this.model.describe(0n, this.state))
    this.devices = this.host.local.map(bdevs => new ScsiDevice(description, bdevs, logger('vhost')))
  }

  /** What the session does when the model has changed. */
  async update(): Promise<void> {
    const description = structuredClone(this.model.describe(0n, this.state))
    await Promise.all(this.devices.map(device => device.update(description)))
  }

  queue(index: number, reactor = 0): Queue {
    const key = `${index} ${reactor}`
    let queue = this.#queues.get(key)
    if (queue === undefined) {
      queue = new Queue(index, this.devices[reactor]!, this.memory)
      this.#queues.set(key, queue)
    }
    return queue
  }

  /** Starts a command. */
  send(cdb: string, options: Options = {}): Sent {
    const { out = new Uint8Array(), lun = lunOf(0), id = 1, cuts = [] } = options
    const header = new Uint8Array(19 + this.cdbSize)
    header.set(lun)
    new DataView(header.buffer).setUint32(8, id, true)
    header.set(bytes(cdb), 19)
    return this.start(
      cut(Buffer.concat([header, out]), cuts.length > 0 ? cuts : [19 + this.cdbSize]),
      sizes(12 + this.senseSize + (options.in ?? 0), cuts.length > 0 ? cuts : [12 + this.senseSize]),
      options,
    )
  }

  /** The same, until it has ended. */
  async ask(cdb: string, options: Options = {}): Promise<Answer> {
    const sent = this.send(cdb, options)
    await this.host.reactors.until(() => sent.isDone)
    return this.answerOf(sent)
  }

  /** A request on the control queue, until it has ended: what the device wrote. */
  async control(readable: string, writableBytes: number): Promise<string> {
    const sent = this.start([bytes(readable)], writableBytes > 0 ? [writableBytes] : [], { queue: 0 })
    await this.host.reactors.until(() => sent.isDone)
    return hexOf(sent.written)
  }

  /** Task management for LUN 0 of a target. */
  async manage(subtype: number, id = 0, target = 0): Promise<number> {
    const request = new DataView(new ArrayBuffer(24))
    request.setUint32(4, subtype, true)
    new Uint8Array(request.buffer).set(lunOf(target), 8)
    request.setUint32(16, id, true)
    return Number.parseInt(await this.control(hexOf(new Uint8Array(request.buffer)), 1), 16)
  }

  /** Gives the device a buffer of the event queue. */
  offerEvent(size = 16): Sent {
    const queue = this.queue(1)
    const sent = this.#lay(queue, [], [size])
    queue.events.push(sent)
    return sent
  }

  start(readable: readonly Uint8Array[], writable: readonly number[], options: Options = {}): Sent {
    const queue = this.queue(options.queue ?? 2, options.reactor ?? 0)
    const sent = this.#lay(queue, readable, writable)
    queue.device.start(sent.request)
    return sent
  }

  answerOf(sent: Sent): Answer {
    if (sent.lengths.length !== 1) throw new Error(`completed ${sent.lengths.length} times`)
    const written = Uint8Array.from(sent.written)
    const view = new DataView(written.buffer)
    const senseLength = view.getUint32(0, true)
    const senseBytes = written.slice(12, 12 + this.senseSize)
    const sense =
      senseLength === 0 ? '' : `${hexOf(senseBytes.slice(2, 3)).slice(1)}/${hexOf(senseBytes.slice(12, 14))}`
    return {
      residual: view.getUint32(4, true),
      status: view.getUint8(10),
      response: view.getUint8(11),
      sense,
      senseBytes,
      data: written.slice(12 + this.senseSize),
      length: sent.lengths[0]!,
    }
  }

  close(): void {
    for (const device of this.devices) device.close()
    unmap(this.#address, MEMORY_SIZE)
  }

  #lay(queue: Queue, readable: readonly Uint8Array[], writable: readonly number[]): Sent {
    const request = new GuestRequest(queue, 0)
    const { segments } = request
    const readablePlaces = readable.map(piece => {
      const at = this.#place(piece.length)
      this.memory.translate(GUEST_ADDRESS + at, piece.length, segments)
      const place = bytesAt(this.#address + at, piece.length)
      place.set(piece)
      return place
    })
    request.readableCount = readable.length
    request.readableBytes = sum(readable.map(({ length }) => length))
    request.writableBytes = sum(writable)
    request.isOutstanding = true
    const places = writable.map(size => {
      const at = this.#place(size)
      this.memory.translate(GUEST_ADDRESS + at, size, segments)
      return bytesAt(this.#address + at, size).fill(UNTOUCHED)
    })
    const sent = new Sent(request, readablePlaces, places)
    queue.sent.set(request, sent)
    return sent
  }

  /** Pieces never touch, so that what is written beside one is seen. */
  #place(size: number): number {
    if (this.#used + size + 1 > MEMORY_SIZE) this.#used = 0
    const at = this.#used
    this.#used += size + 1
    bytesAt(this.#address + at + size, 1)[0] = UNTOUCHED
    return at
  }
}

/** Cuts behind the offsets that lie inside. */
function cut(data: Uint8Array, cuts: readonly number[]): Uint8Array[] {
  const inside = [0, ...cuts.filter(at => at < data.length), data.length]
  return inside.slice(1).map((end, i) => data.subarray(inside[i]!, end))
}

function sizes(total: number, cuts: readonly number[]): number[] {
  const inside = [0, ...cuts.filter(at => at < total), total]
  return inside.slice(1).map((end, i) => end - inside[i]!)
}

const sum = (values: readonly number[]): number => values.reduce((total, value) => total + value, 0)
