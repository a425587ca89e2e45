/** A disk and a guest's memory without rings: requests are laid out by hand, as a driver's descriptors would be. */
import type { AnyDriver, BdevInfo, DriverChannel } from '../../../src/bdev/bdev.ts'
import { drivers } from '../../../src/bdev/drivers/index.ts'
import { type BdevIo, IO_TYPE_NAMES } from '../../../src/bdev/io.ts'
import { ReactorBdevs } from '../../../src/bdev/reactor-bdevs.ts'
import { BdevRegistry } from '../../../src/bdev/registry.ts'
import { logger } from '../../../src/core/log.ts'
import { bytesAt, mapAnonymous, unmap } from '../../../src/sys/memory.ts'
import { BlkDevice } from '../../../src/vhost/blk/device.ts'
import type { BlkDescription } from '../../../src/vhost/messages.ts'
import { GuestMemory } from '../../../src/vhost/ring/guest-memory.ts'
import { GuestRequest, type RequestQueue } from '../../../src/vhost/ring/request.ts'
import { hex } from '../../spec/wire.ts'
import { LocalReactorGroup } from '../../support/reactor.ts'

const MEMORY_SIZE = 64 << 20
const GUEST_ADDRESS = 0x4000_0000

/** What no device writes by itself. */
export const UNTOUCHED = 0xa5

/** One request on its way. */
export interface Sent {
  readonly request: GuestRequest
  /** What the device wrote to the writable pieces, with the status. */
  readonly written: Uint8Array
  /** Bytes in the used entry, one for each time that it completed: must become exactly one. */
  readonly lengths: number[]
}

export class Guest implements RequestQueue {
  readonly index = 0
  readonly reactors = new LocalReactorGroup({ arenaBytes: 16 << 20 })
  readonly bdevs: BdevRegistry
  readonly memory: GuestMemory
  device!: BlkDevice
  readonly #local: ReactorBdevs
  readonly #address = mapAnonymous(MEMORY_SIZE)
  readonly #sent = new Map<GuestRequest, Sent>()
  #used = 0

  constructor(more: readonly AnyDriver[] = []) {
    const all = [...drivers, ...more]
    this.bdevs = new BdevRegistry(this.reactors, all)
    this.#local = new ReactorBdevs(this.reactors.reactors[0]!, all)
    this.memory = new GuestMemory([
      {
        guestAddress: GUEST_ADDRESS,
        userAddress: GUEST_ADDRESS,
        sizeBytes: MEMORY_SIZE,
        address: this.#address,
      },
    ])
  }

  /** Opens the disk over a bdev. */
  open(bdev: string, description: Partial<BlkDescription> = {}): BlkDevice {
    this.device = new BlkDevice(
      { kind: 'blk', bdev, readOnly: false, writeThrough: false, serial: bdev, ...description },
      this.#local,
      logger('vhost'),
    )
    return this.device
  }

  /** Puts pieces into guest memory and starts the request. Readable ones are bytes, writable ones sizes. */
  send(
    readable: readonly Uint8Array[],
    writable: readonly number[],
    request = new GuestRequest(this, 0),
  ): Sent {
    const { segments } = request
    segments.count = 0
    for (const piece of readable) {
      const at = this.#place(piece.length)
      bytesAt(this.#address + at, piece.length).set(piece)
      this.memory.translate(GUEST_ADDRESS + at, piece.length, segments)
    }
    request.readableCount = readable.length
    request.readableBytes = sum(readable.map(piece => piece.length))
    request.writableBytes = sum(writable)
    const places = writable.map(size => {
      const at = this.#place(size)
      this.memory.translate(GUEST_ADDRESS + at, size, segments)
      return bytesAt(this.#address + at, size).fill(UNTOUCHED)
    })
    const sent: Sent = {
      request,
      lengths: [],
      get written() {
        return Buffer.concat(places)
      },
    }
    this.#sent.set(request, sent)
    this.device.start(request)
    return sent
  }

  /** The same, until it has ended. */
  ask(readable: readonly Uint8Array[], writable: readonly number[]): Answer {
    const sent = this.send(readable, writable)
    this.reactors.settle()
    return answerOf(sent)
  }

  take(): null {
    return null
  }

  complete(request: GuestRequest, writtenBytes: number): void {
    this.#sent.get(request)!.lengths.push(writtenBytes)
  }

  close(): void {
    this.device.close()
    this.reactors.close()
    unmap(this.#address, MEMORY_SIZE)
  }

  /** Pieces never touch, so that what is written beside one is seen. */
  #place(size: number): number {
    const at = this.#used
    this.#used += size + 1
    if (this.#used > MEMORY_SIZE) {
      this.#used = 0
      return this.#place(size)
    }
    return at
  }
}

export interface Answer {
  readonly status: number
  /** What the device wrote before the status. */
  readonly data: Uint8Array
  readonly length: number
}

export function answerOf({ written, lengths }: Sent): Answer {
  if (lengths.length !== 1) throw new Error(`completed ${lengths.length} times`)
  return {
    status: written[written.length - 1]!,
    data: new Uint8Array(written.subarray(0, -1)),
    length: lengths[0]!,
  }
}

export const sum = (numbers: readonly number[]): number =>
  numbers.reduce((total, number) => total + number, 0)

/** struct virtio_blk_req up to its data: le32 type, le32 reserved, le64 sector. */
export function header(type: number, sector = 0): Uint8Array {
  const view = new DataView(new ArrayBuffer(16))
  view.setUint32(0, type, true)
  view.setBigUint64(8, BigInt(sector), true)
  return new Uint8Array(view.buffer)
}

/** struct virtio_blk_discard_write_zeroes: le64 sector, le32 num_sectors, le32 flags. */
export function range(sector: number, sectors: number, flags = 0): Uint8Array {
  const view = new DataView(new ArrayBuffer(16))
  view.setBigUint64(0, BigInt(sector), true)
  view.setUint32(8, sectors, true)
  view.setUint32(12, flags, true)
  return new Uint8Array(view.buffer)
}

export const raw = (dump: string): Uint8Array => new Uint8Array(hex(dump).buffer)

/** Cuts bytes at the places given. */
export function cut(bytes: Uint8Array, ...places: readonly number[]): Uint8Array[] {
  const borders = [0, ...places, bytes.length]
  return borders.slice(1).map((end, i) => bytes.subarray(borders[i]!, end))
}

/** A bdev whose I/Os end when the test says so. */
export class HeldDisk implements DriverChannel {
  readonly lends = false
  /** In the order of their arrival. */
  readonly ios: BdevIo[] = []
  /** The same in words: type, first block, blocks, and `fua`. */
  readonly asked: string[] = []
  readonly aborted: BdevIo[] = []

  submit(io: BdevIo): void {
    this.ios.push(io)
    this.asked.push(`${IO_TYPE_NAMES[io.type]} ${io.firstBlock}+${io.blockCount}${io.fua ? ' fua' : ''}`)
  }

  abort(io: BdevIo): void {
    this.aborted.push(io)
  }

  close(): void {}
}

export const heldDriver = (
  disk: HeldDisk,
  info: Partial<BdevInfo>,
  params: AnyDriver['params'],
): AnyDriver => ({
  name: 'held',
  summary: 'Ends I/O when a test says so.',
  params,
  create: name => ({
    name,
    aliases: [],
    driver: 'held',
    product: 'Held disk',
    uuid: '01234567-89ab-4def-8123-456789abcdef',
    blockSize: 512,
    physicalBlockSize: 512,
    blockCount: 1 << 20,
    supports: new Set(),
    writeCache: true,
    readOnly: false,
    bases: [],
    device: null,
    driverSpecific: {},
    ...info,
  }),
  openChannel: () => disk,
})
