/**
 * A front end that means harm: a vhost-user session that begins as QEMU's does, and then does what a seed says. It sends
 * messages with random values and descriptors, rewrites its rings while they are polled, and takes memory away that is in
 * use.
 */
import { openSync } from 'node:fs'
import type { Prng } from '../../../src/core/prng.ts'
import {
  InflightDescription,
  LogDescription,
  MemoryTable,
  MessageFlag,
  MessageHeader,
  Request,
  SINGLE_REGION_SIZE,
  VringAddress,
} from '../../../src/spec/vhost-user.ts'
import { eventfd, write } from '../../../src/sys/libc.ts'
import { bytesAt, mapAnonymous, viewAt } from '../../../src/sys/memory.ts'
import { createSharedMemory, mapShared, type SharedMapping } from '../../../src/sys/shared-memory.ts'
import { connectUnix } from '../../../src/sys/socket.ts'
import { closeAll, receiveMessage, sendMessage } from '../../../src/sys/unix-message.ts'
import { jamEventfd } from '../../support/descriptors.ts'

const MEMORY = 1 << 20
/** Where a ring and what belongs to it begin: one after the other. */
const RING_STEP = 1 << 15
const RINGS = 4
const SIZES = [8, 16, 64] as const
/** An address of a process that does not exist. */
const USER = 0x7f00_0000_0000

const PROTOCOL_FEATURES = 1n << 30n
const VERSION_1 = 1n << 32n
const RING_PACKED = 1n << 34n
/** Indirect descriptors, event index, LOG_ALL. */
const OPTIONAL = [1n << 28n, 1n << 29n, 1n << 26n]
/** MQ, LOG_SHMFD, REPLY_ACK, BACKEND_REQ, CONFIG, INFLIGHT_SHMFD, RESET_DEVICE, CONFIGURE_MEM_SLOTS, STATUS. */
const NEGOTIATED = 0b1_1011_0010_0010_1011n

/** How long the payload of a request should be, where it is not 8 bytes or none. */
const PAYLOAD_BYTES = new Map<number, number>([
  [Request.SET_MEM_TABLE, MemoryTable.size + 8 * 32],
  [Request.SET_VRING_ADDR, VringAddress.size],
  [Request.ADD_MEM_REG, SINGLE_REGION_SIZE],
  [Request.REM_MEM_REG, SINGLE_REGION_SIZE],
  [Request.SET_LOG_BASE, LogDescription.size],
  [Request.SET_INFLIGHT_FD, InflightDescription.size],
  [Request.GET_INFLIGHT_FD, InflightDescription.size],
])
const VALUES = [
  0,
  1,
  7,
  8,
  255,
  256,
  4096,
  MEMORY,
  2 ** 32 - 1,
  2 ** 36,
  2 ** 52,
  USER,
  USER + 4096,
  -1,
  -4096,
]
const REQUESTS = Object.values(Request)

const one = mapAnonymous(4096)
viewAt(one, 8).setUint32(0, 1, true)

const u32s = (...values: number[]): Buffer => Buffer.from(Uint32Array.from(values).buffer)
const u64s = (...values: (number | bigint)[]): Buffer =>
  Buffer.from(BigUint64Array.from(values, value => BigInt.asUintN(64, BigInt(value))).buffer)

export class HostileFrontEnd {
  readonly #prng: Prng
  readonly #socket: number
  readonly #own: number[] = []
  readonly #kicks: number[] = []
  #memory: { readonly descriptor: number; readonly mapping: SharedMapping } | undefined

  constructor(path: string, prng: Prng) {
    this.#prng = prng
    this.#socket = connectUnix(path)
  }

  /** Everything that it does before it hangs up. */
  async run(): Promise<void> {
    const prng = this.#prng
    const depth = prng.below(4)
    if (depth > 0) this.#negotiate()
    if (depth > 1) this.#setUp()
    const acts = [
      () => this.#scribble(),
      () => this.#scribble(),
      () => this.#send(Request.GET_VRING_BASE, u32s(prng.below(RINGS), 0)),
      () => this.#shareMemory(prng.oneIn(2)),
      () => this.#send(Request.REM_MEM_REG, u64s(0, 0, MEMORY, USER, 0)),
      () => this.#sendOddly(prng.pick(REQUESTS)),
      () => this.#sendOddly(prng.pick([...PAYLOAD_BYTES.keys()])),
      () => this.#beginAnew(),
    ]
    for (let i = prng.below(30); i > 0; i--) {
      prng.pick(acts)()
      this.#drain()
      if (prng.oneIn(3)) await new Promise(setImmediate)
    }
  }

  hangUp(): void {
    closeAll(this.#own)
    closeAll([this.#socket])
    this.#memory?.mapping.unmap()
  }

  #negotiate(): void {
    let features = PROTOCOL_FEATURES | VERSION_1
    for (const feature of OPTIONAL) if (this.#prng.oneIn(3)) features |= feature
    if (this.#prng.oneIn(3)) features |= RING_PACKED
    this.#send(Request.SET_PROTOCOL_FEATURES, u64s(NEGOTIATED))
    this.#send(Request.SET_OWNER)
    this.#send(Request.SET_FEATURES, u64s(features))
  }

  #setUp(): void {
    this.#shareMemory(true)
    if (this.#prng.oneIn(3)) this.#shareInflight()
    for (let index = 0; index <= this.#prng.below(RINGS); index++) this.#startRing(index)
  }

  #shareMemory(isNew: boolean): void {
    if (isNew || this.#memory === undefined) {
      const descriptor = this.#owns(createSharedMemory('hostile', MEMORY))
      this.#memory?.mapping.unmap()
      this.#memory = { descriptor, mapping: mapShared(descriptor, 0, MEMORY) }
    }
    const table = Buffer.concat([u32s(1, 0), u64s(0, MEMORY, USER, 0)])
    this.#send(Request.SET_MEM_TABLE, table, [this.#memory.descriptor])
  }

  /** Garbage in the memory in which the back end notes what it has in flight. */
  #shareInflight(): void {
    const descriptor = this.#owns(createSharedMemory('hostile', MEMORY))
    const mapping = mapShared(descriptor, 0, MEMORY)
    for (let i = 0; i < 500; i++)
      bytesAt(mapping.address + this.#prng.below(1 << 14), 1)[0] = this.#prng.below(4)
    mapping.unmap()
    const description = Buffer.concat([u64s(MEMORY, 0), u32s(RINGS | (64 << 16), 0)])
    this.#send(Request.SET_INFLIGHT_FD, description, [descriptor])
  }

  /** A ring with requests that a disk may have, and others. */
  #startRing(index: number): void {
    const prng = this.#prng
    const size = prng.pick(SIZES)
    const at = index * RING_STEP
    for (let i = 0; i + 2 < size; i += 3) {
      const header = MEMORY / 2 + 32 * i
      viewAt(this.#host(header), 16).setUint32(0, prng.below(3), true)
      viewAt(this.#host(header), 16).setUint32(8, prng.below(200_000), true)
      this.#describe(at, i, header, 16, 1)
      this.#describe(
        at,
        i + 1,
        MEMORY / 2 + 4096 * prng.between(1, 100),
        512 * prng.between(1, 16),
        prng.pick([1, 3]),
      )
      this.#describe(at, i + 2, header + 16, 1, 2)
    }
    this.#send(Request.SET_VRING_NUM, u32s(index, size))
    this.#send(Request.SET_VRING_BASE, u32s(index, prng.pick([0, 0, 0x8000_8000])))
    const addresses = u64s(USER + at, USER + at + 0x3000, USER + at + 0x2000, 0)
    this.#send(Request.SET_VRING_ADDR, Buffer.concat([u32s(index, prng.below(2)), addresses]))
    this.#send(Request.SET_VRING_CALL, u64s(index), [this.#eventfd()])
    this.#send(Request.SET_VRING_ERR, u64s(index), [this.#eventfd()])
    const kick = this.#eventfd()
    this.#kicks.push(kick)
    this.#send(Request.SET_VRING_KICK, u64s(index), [kick])
    this.#send(Request.SET_VRING_ENABLE, u32s(index, 1))
  }

  /** Descriptor `index`, with the next one behind it. */
  #describe(ring: number, index: number, address: number, length: number, flags: number): void {
    const view = viewAt(this.#host(ring + 16 * index), 16)
    view.setUint32(0, address, true)
    view.setUint32(8, length, true)
    view.setUint16(12, flags, true)
    view.setUint16(14, index + 1, true)
  }

  /** Rewrites some of the rings, most of all the indexes of available rings, and notifies. */
  #scribble(): void {
    const prng = this.#prng
    if (this.#memory === undefined) return
    for (let i = 0; i < 40; i++) {
      const ring = prng.below(RINGS) * RING_STEP
      const at = prng.pick([prng.below(1024), 0x2000, 0x2000 + prng.below(128), 0x3000 + prng.below(512)])
      viewAt(this.#host(ring + at), 4).setUint32(
        0,
        prng.pick([prng.u32(), prng.below(70) << 16, prng.below(64)]),
        true,
      )
    }
    for (const kick of this.#kicks) if (prng.oneIn(2)) write(kick, one, 8)
  }

  #beginAnew(): void {
    this.#send(this.#prng.pick([Request.RESET_DEVICE, Request.SET_STATUS]), u64s(0))
    if (this.#memory === undefined) return
    for (let index = 0; index < RINGS; index++)
      bytesAt(this.#host(index * RING_STEP + 0x2000), 0x2000).fill(0)
    this.#startRing(this.#prng.below(RINGS))
  }

  /** A request with the right size or another, and with values and descriptors of any kind. */
  #sendOddly(request: number): void {
    const prng = this.#prng
    const right = PAYLOAD_BYTES.get(request) ?? prng.pick([0, 8])
    const size = prng.oneIn(5) ? 4 * prng.below(70) : right
    const payload = Buffer.alloc(size)
    for (let at = 0; at + 8 <= size; at += 8) u64s(prng.pick(VALUES)).copy(payload, at)
    const descriptors = Array.from({ length: prng.below(3) }, () => this.#oddDescriptor())
    this.#send(request, payload, descriptors)
  }

  #oddDescriptor(): number {
    switch (this.#prng.below(6)) {
      case 0:
        return this.#owns(openSync('/dev/zero', 'r+'))
      case 1:
        return this.#owns(openSync('/proc/self/maps', 'r'))
      case 2:
        return this.#owns(createSharedMemory('hostile', this.#prng.pick([100, 4096, 2 ** 40])))
      case 3:
        return this.#socket
      case 4: {
        const jammed = this.#eventfd()
        jamEventfd(jammed)
        return jammed
      }
      default:
        return this.#eventfd()
    }
  }

  /** What the back end has closed, or does not read, is not sent. */
  #send(request: number, payload: Uint8Array = new Uint8Array(0), descriptors: readonly number[] = []): void {
    const bytes = new Uint8Array(MessageHeader.size + payload.length)
    const view = new DataView(bytes.buffer)
    MessageHeader.request.set(view, 0, request)
    MessageHeader.flags.set(view, 0, 1 | (this.#prng.oneIn(4) ? MessageFlag.NEED_REPLY : 0))
    MessageHeader.payloadBytes.set(view, 0, payload.length)
    bytes.set(payload, MessageHeader.size)
    sendMessage(this.#socket, bytes, descriptors)
  }

  #drain(): void {
    const descriptors: number[] = []
    while (receiveMessage(this.#socket, new Uint8Array(4096), descriptors, 8) > 0);
    closeAll(descriptors)
  }

  #host(offset: number): number {
    return this.#memory!.mapping.address + offset
  }

  #eventfd(): number {
    return this.#owns(eventfd())
  }

  #owns(descriptor: number): number {
    this.#own.push(descriptor)
    return descriptor
  }
}
