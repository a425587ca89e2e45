/** A target's transport with a network, a device and a target in the test's hand. PDUs are written as the specification draws them. */

import type { BdevInfo, DriverChannel } from '../../../src/bdev/bdev.ts'
import { Channel } from '../../../src/bdev/channel.ts'
import { type BdevIo, IoType } from '../../../src/bdev/io.ts'
import { TimerHeap } from '../../../src/core/clock.ts'
import type {
  AdminQueue,
  CommandRequest,
  Connection,
  IoQueue,
  ReactorTarget,
  TransportOptions,
} from '../../../src/nvmf/request.ts'
import type { TcpTimeouts } from '../../../src/nvmf/tcp/connection.ts'
import { TcpTransport } from '../../../src/nvmf/tcp/transport.ts'
import type { Port } from '../../../src/reactor/port.ts'
import { Reactor } from '../../../src/reactor/reactor.ts'
import { Status } from '../../../src/spec/nvme-status.ts'
import { Arena, BufferPool, bytesAt, mapAnonymous } from '../../../src/sys/memory.ts'
import { hex, zeroes } from '../../spec/wire.ts'
import { MemoryNetwork, type MemoryNetworkOptions, type Peer } from '../../support/stream.ts'

export const BLOCK_SIZE = 512
export const BLOCK_COUNT = 4096

export const bytes = (dump: string): Uint8Array => new Uint8Array(hex(dump).buffer)
export const join = (...parts: Uint8Array[]): Uint8Array => Uint8Array.from(Buffer.concat(parts))
const le16 = (value: number): string => Buffer.from([value & 0xff, value >>> 8]).toString('hex')
const le32 = (value: number): string => le16(value & 0xffff) + le16(value >>> 16)

/** A pool that counts what is out. */
class CountingPool extends BufferPool {
  taken = 0
  /** How many more may be taken. */
  allowance = Number.POSITIVE_INFINITY

  override acquire(sizeBytes: number): number {
    if (this.allowance <= 0) return 0
    this.taken++
    this.allowance--
    return super.acquire(sizeBytes)
  }

  override release(address: number, sizeBytes: number): void {
    this.taken--
    this.allowance++
    // What is given back must not be read any more.
    bytesAt(address, sizeBytes).fill(0xee)
    super.release(address, sizeBytes)
  }
}

/** A disk in memory that can hold its I/Os back. */
export class Device implements DriverChannel {
  lends = false
  /** While true, I/Os wait in `held` until `letGo`. */
  isHolding = false
  readonly held: BdevIo[] = []
  readonly log: string[] = []
  /** What the next I/Os end with instead of success. */
  failure: number = Status.SUCCESS
  readonly address = mapAnonymous(BLOCK_COUNT * BLOCK_SIZE)
  isClosed = false

  submit(io: BdevIo): void {
    this.log.push(`${Object.keys(IoType)[io.type]} ${io.firstBlock}+${io.blockCount}${io.fua ? ' FUA' : ''}`)
    if (this.isHolding) this.held.push(io)
    else this.#perform(io)
  }

  abort(io: BdevIo | null): void {
    for (const each of this.held.splice(0)) {
      if (io === null || each === io) each.complete(Status.ABORTED_BY_REQUEST)
      else this.held.push(each)
    }
  }

  letGo(): void {
    for (const io of this.held.splice(0)) this.#perform(io)
  }

  close(): void {
    this.isClosed = true
  }

  get contents(): Uint8Array {
    return bytesAt(this.address, BLOCK_COUNT * BLOCK_SIZE)
  }

  #perform(io: BdevIo): void {
    io.complete(this.failure !== Status.SUCCESS ? this.failure : this.#transfer(io))
  }

  #transfer(io: BdevIo): number {
    const { segments } = io
    const at = io.firstBlock * BLOCK_SIZE
    const size = io.blockCount * BLOCK_SIZE
    const medium = this.contents.subarray(at, at + size)
    if (io.lent) segments.set(this.address + at, size)
    else if (io.type === IoType.READ) bytesAt(segments.addresses[0]!, size).set(medium)
    else if (io.type === IoType.WRITE) medium.set(bytesAt(segments.addresses[0]!, size))
    else if (io.type === IoType.WRITE_ZEROES || io.type === IoType.UNMAP) medium.fill(0)
    else if (io.type === IoType.COMPARE || io.type === IoType.COMPARE_AND_WRITE) {
      if (Buffer.compare(medium, bytesAt(segments.addresses[0]!, size)) !== 0) return Status.COMPARE_FAILURE
      if (io.type === IoType.COMPARE_AND_WRITE) medium.set(bytesAt(segments.addresses[1]!, size))
    }
    return Status.SUCCESS
  }
}

const PORT: Port = { post() {}, call: () => Promise.reject(new Error('no control thread')), on() {} }

export interface LabOptions extends MemoryNetworkOptions {
  readonly transport?: Partial<TransportOptions>
  readonly timeouts?: Partial<TcpTimeouts>
  readonly sqSize?: number
}

/** One reactor with a transport, a target that lets everybody in, and namespace 1. */
export class Lab implements ReactorTarget {
  nowUs = 0
  readonly arena = new Arena(1 << 27)
  readonly pool = new CountingPool(this.arena)
  readonly network: MemoryNetwork
  readonly reactor: Reactor
  readonly transport: TcpTransport
  readonly device = new Device()
  readonly channel: Channel
  readonly namespace: { channel: Channel | null; gate: number }
  /** What the target has been given: connections, and commands that wait for a test to complete them. */
  readonly connections: Connection[] = []
  readonly requests: CommandRequest[] = []
  closedQueues = 0
  endedConnections = 0
  traffic = 0
  readonly #sqSize: number

  constructor(options: LabOptions = {}) {
    this.network = new MemoryNetwork(options)
    this.#sqSize = options.sqSize ?? 32
    this.reactor = new Reactor({
      index: 0,
      clock: new TimerHeap(() => this.nowUs),
      network: this.network,
      arena: this.arena,
      buffers: this.pool,
      control: PORT,
      ring: null,
    })
    this.reactor.addPoller(this.network.poll)
    const info: BdevInfo = {
      name: 'disk',
      aliases: [],
      driver: 'test',
      product: 'Test disk',
      uuid: '00000000-0000-4000-8000-000000000000',
      blockSize: BLOCK_SIZE,
      physicalBlockSize: BLOCK_SIZE,
      blockCount: BLOCK_COUNT,
      supports: new Set(Object.values(IoType)),
      writeCache: false,
      readOnly: false,
      bases: [],
      device: null,
      driverSpecific: {},
    }
    this.channel = new Channel(info, this.reactor, this.device)
    this.namespace = { channel: this.channel, gate: Status.SUCCESS }
    this.transport = new TcpTransport({
      reactor: this.reactor,
      target: this,
      onEnded: () => void this.endedConnections++,
      options: {
        maxQueueDepth: 128,
        maxAqDepth: 128,
        maxIoQpairsPerCtrlr: 127,
        inCapsuleDataSize: 4096,
        maxIoSize: 131072,
        c2hSuccess: true,
        ...options.transport,
      },
      ...(options.timeouts === undefined ? {} : { timeouts: options.timeouts }),
    })
  }

  connect(connection: Connection, request: CommandRequest): void {
    this.connections.push(connection)
    const qid = request.sqe.getUint16(42, true)
    if (qid === 0xffff) {
      request.complete({ status: 0x182, doNotRetry: true, dw0: 0x0001_0100 })
      return
    }
    const queue: AdminQueue & IoQueue = {
      namespace: nsid => (nsid === 1 ? this.namespace : undefined),
      execute: given => void this.requests.push(given),
      noteTraffic: () => void this.traffic++,
      end: reason => connection.disconnect(reason),
      closed: () => void this.closedQueues++,
    }
    if (qid === 0) connection.becomeAdminQueue(queue, this.#sqSize)
    else connection.becomeIoQueue(queue, this.#sqSize)
    request.complete({ status: Status.SUCCESS, dw0: 1 })
  }

  /** A new connection of a host that has said nothing yet. */
  dial(): Peer {
    const { socket, peer } = this.network.dial()
    this.transport.adopt(socket, 7)
    return peer
  }

  /** A connection that has become a queue: 0 is the admin queue. */
  open(qid: number, { icReq = IC_REQ, cattr = '00' }: { icReq?: string; cattr?: string } = {}): Peer {
    const peer = this.dial()
    peer.send(join(bytes(icReq), connect(qid, cattr)))
    this.settle()
    peer.take()
    return peer
  }

  /** Polls until nothing happens any more. */
  settle(): void {
    for (let quiet = 0; quiet < 3; ) quiet = this.reactor.poll() > 0 || !this.reactor.isQuiet ? 0 : quiet + 1
  }

  /** All that a host hears which goes on reading. */
  hear(peer: Peer): Uint8Array {
    const heard: Uint8Array[] = []
    for (this.settle(); peer.waiting > 0; this.settle()) heard.push(peer.take())
    return join(...heard)
  }

  /** Lets `ms` pass. */
  pass(ms: number): void {
    this.nowUs += ms * 1000
    this.settle()
  }

  /** Sends and returns the answer. */
  exchange(peer: Peer, ...pdus: Uint8Array[]): string {
    peer.send(join(...pdus))
    return show(this.hear(peer))
  }
}

export const show = (data: Uint8Array): string => Buffer.from(data).toString('hex')

// PDUs of a host, by section 3.6.2 of the TCP transport specification.

/** PFV 0, HPDA 0, DGST 0, MAXR2T 0. */
export const IC_REQ = `00 00 80 00 80000000  0000 00 00 00000000 ${zeroes(112)}`
/** CPDA 0, DGST 0, MAXH2CDATA 131072. */
export const IC_RESP = `01 00 80 00 80000000  0000 00 00 00000200 ${zeroes(112)}`

/** A command capsule without data. */
export const capsule = (sqe: string): Uint8Array => bytes(`04 00 48 00 48000000 ${sqe}`)

/** A command capsule with data right behind the entry. */
export const capsuleWith = (sqe: string, data: Uint8Array): Uint8Array =>
  join(bytes(`04 00 48 48 ${le32(72 + data.length)} ${sqe}`), data)

/** SGL descriptors (Base 2.1, section 4.3.2). */
export const inCapsule = (length: number, offset = 0): string =>
  `${le32(offset)} 00000000 ${le32(length)} 000000 01`
export const byTransport = (length: number): string => `0000000000000000 ${le32(length)} 000000 5a`

/** An entry: opcode, flags (PSDT 01b unless given), CID, NSID, SGL, CDW10 to 12. */
export function entry(
  opcode: string,
  cid: number,
  sgl: string,
  {
    nsid = 1,
    flags = '40',
    cdw10 = 0,
    cdw11 = 0,
    cdw12 = 0,
  }: { nsid?: number; flags?: string; cdw10?: number; cdw11?: number; cdw12?: number } = {},
): string {
  return `${opcode} ${flags} ${le16(cid)} ${le32(nsid)} ${zeroes(16)} ${sgl}
          ${le32(cdw10)} ${le32(cdw11)} ${le32(cdw12)} ${zeroes(12)}`
}

export type EntryFields = Parameters<typeof entry>[3]

export const read = (cid: number, block: number, blocks: number, fields: EntryFields = {}): string =>
  entry('02', cid, byTransport(blocks * BLOCK_SIZE), { cdw10: block, cdw12: blocks - 1, ...fields })

export const write = (
  cid: number,
  block: number,
  blocks: number,
  sgl: string,
  fields: EntryFields = {},
): string => entry('01', cid, sgl, { cdw10: block, cdw12: blocks - 1, ...fields })

/** Connect with 1024 bytes of data in its capsule: FCTYPE 01h, RECFMT 0, QID, SQSIZE 31, CATTR. */
export const connect = (qid: number, cattr = '00'): Uint8Array =>
  capsuleWith(
    `7f 40 0000 01 000000 ${zeroes(16)} ${inCapsule(1024)} 0000 ${le16(qid)} 1f00 ${cattr} 00 ${zeroes(16)}`,
    new Uint8Array(1024),
  )

/** H2CData: flags LAST_PDU is 04h. */
export const h2cData = (
  cid: number,
  ttag: number,
  offset: number,
  data: Uint8Array,
  flags = '04',
): Uint8Array =>
  join(
    bytes(
      `06 ${flags} 18 18 ${le32(24 + data.length)} ${le16(cid)} ${le16(ttag)} ${le32(offset)} ${le32(data.length)} 00000000`,
    ),
    data,
  )

// PDUs of a controller.

/** A response capsule; `status` is the 15-bit status field. */
export const response = (cid: number, sqhd: number, status = 0, dw0 = 0): string =>
  show(
    bytes(`05 00 18 00 18000000 ${le32(dw0)} 00000000 ${le16(sqhd)} 0000 ${le16(cid)} ${le16(status * 2)}`),
  )

/** C2HData with the whole of a command's data. */
export const c2hData = (cid: number, data: Uint8Array, flags = '04'): string =>
  show(
    join(
      bytes(
        `07 ${flags} 18 18 ${le32(24 + data.length)} ${le16(cid)} 0000 00000000 ${le32(data.length)} 00000000`,
      ),
      data,
    ),
  )

export const r2t = (cid: number, ttag: number, length: number): string =>
  show(bytes(`09 00 18 00 18000000 ${le16(cid)} ${le16(ttag)} 00000000 ${le32(length)} 00000000`))

/** C2HTermReq with the header that it complains of. */
export const termReq = (fes: number, fei: number, header: Uint8Array): string =>
  show(join(bytes(`03 00 18 00 ${le32(24 + header.length)} ${le16(fes)} ${le32(fei)} ${zeroes(10)}`), header))

/** Bytes that differ from block to block. */
export function pattern(size: number, seed = 1): Uint8Array {
  const bytes = new Uint8Array(size)
  for (let i = 0; i < size; i++) bytes[i] = i * 7 + (i >> 9) * 13 + seed
  return bytes
}
