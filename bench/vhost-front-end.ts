/**
 * A vhost-user front end with as little between the clock and the virtqueue as there can be: it loads a back end, ours or
 * another, from one thread. Set-up follows QEMU's docs/interop/vhost-user.rst and waits for each answer in place.
 */
import koffi from 'koffi'
import { Segments } from '../src/bdev/io.ts'
import {
  ConfigHeader,
  MemoryRegion,
  MemoryTable,
  MessageFlag,
  MessageHeader,
  ProtocolFeature,
  Request,
  U64,
  VHOST_USER_VERSION,
  VhostFeature,
  VringAddress,
  VringState,
} from '../src/spec/vhost-user.ts'
import { VirtioFeature } from '../src/spec/virtio.ts'
import { BlkConfig, BlkFeature, BlkHeader, BlkStatus, BlkType, SECTOR_SIZE } from '../src/spec/virtio-blk.ts'
import { eventfd, read, write } from '../src/sys/libc.ts'
import { mapAnonymous, viewAt } from '../src/sys/memory.ts'
import { createSharedMemory, mapShared } from '../src/sys/shared-memory.ts'
import { connectUnix } from '../src/sys/socket.ts'
import { receiveMessage, sendMessage } from '../src/sys/unix-message.ts'
import { type DriverRing, driverRingBytes } from '../src/virtio/driver-ring.ts'
import { PackedDriver } from '../src/virtio/packed-driver.ts'
import { SplitDriver } from '../src/virtio/split-driver.ts'
import { Histogram } from '../src/workload/histogram.ts'

/** Each with a piece of data of its own. */
const SLOTS = 128
const DATA_SIZE = 131072
/** Header at 0, status at 16; a slot never shares a cache line. */
const SLOT_SIZE = 64
const STATUS_AT = BlkHeader.size
/** A header, data, a status: as a table, which is what Linux makes of every request. */
const TABLE_ENTRIES = 3
const PAGE = 4096
const EAGAIN = 11
/** A `struct pollfd` behind the counter: descriptor, and the events that are wanted. */
const POLL_AT = 8
const POLLIN = 1

const poll: (address: number, count: number, timeoutMs: number) => number = koffi
  .load('libc.so.6')
  .func('int poll(uintptr_t, ulong, int)')

export interface Work {
  readonly isRead: boolean
  readonly ioSize: number
  /** At most 128. */
  readonly depth: number
  readonly seconds: number
  /** Sleep until the device interrupts, as a guest does with nothing else to do, instead of polling. */
  readonly sleeps: boolean
}

export interface Report {
  readonly count: number
  readonly iops: number
  readonly p50Us: number
  readonly p99Us: number
  readonly p999Us: number
}

export class FrontEnd {
  readonly #socket: number
  readonly #ring: DriverRing
  readonly #slots: DataView
  readonly #lists: readonly Segments[]
  readonly #kick = eventfd()
  readonly #call = eventfd()
  /** Eight bytes: what is written to one eventfd and read from the other. */
  readonly #counter = mapAnonymous(PAGE)
  readonly #submitted = new Float64Array(SLOTS)
  readonly #capacityBytes: number
  #random = 1

  /** Throws when the back end refuses anything. */
  constructor(path: string, isPacked: boolean) {
    this.#socket = connectUnix(path)
    const offered = this.#ask(Request.GET_FEATURES).getBigUint64(0, true)
    const wanted =
      bit(VirtioFeature.VERSION_1) |
      bit(VirtioFeature.EVENT_IDX) |
      bit(VirtioFeature.INDIRECT_DESC) |
      VhostFeature.PROTOCOL_FEATURES |
      BlkFeature.FLUSH |
      (isPacked ? bit(VirtioFeature.RING_PACKED) : 0n)
    if ((offered & wanted) !== wanted) throw new Error(`${path} offers 0x${offered.toString(16)} only`)
    this.#tell(Request.SET_OWNER, new Uint8Array(0))
    this.#ask(Request.GET_PROTOCOL_FEATURES)
    this.#tell(Request.SET_PROTOCOL_FEATURES, u64(ProtocolFeature.CONFIG))
    this.#tell(Request.SET_FEATURES, u64(wanted))
    this.#capacityBytes = this.#readCapacity()

    const ringBytes = pages(driverRingBytes(SLOTS, isPacked, TABLE_ENTRIES))
    const slotsAt = ringBytes
    const dataAt = slotsAt + pages(SLOTS * SLOT_SIZE)
    const sizeBytes = dataAt + SLOTS * DATA_SIZE
    const memory = createSharedMemory('bench', sizeBytes)
    const { address } = mapShared(memory, 0, sizeBytes)
    // Guest addresses are this process's own.
    const table = new DataView(new ArrayBuffer(MemoryTable.size + MemoryRegion.size))
    MemoryTable.regionCount.set(table, 0, 1)
    MemoryRegion.guestAddress.set(table, MemoryTable.size, address)
    MemoryRegion.sizeBytes.set(table, MemoryTable.size, sizeBytes)
    MemoryRegion.userAddress.set(table, MemoryTable.size, address)
    this.#tell(Request.SET_MEM_TABLE, new Uint8Array(table.buffer), [memory])

    const options = {
      address,
      deviceAddress: address,
      entries: SLOTS,
      hasEventIndex: true,
      tableEntries: TABLE_ENTRIES,
    }
    this.#ring = isPacked ? new PackedDriver(options) : new SplitDriver(options)
    this.#slots = viewAt(address + slotsAt, SLOTS * SLOT_SIZE)
    this.#lists = Array.from({ length: SLOTS }, (_, slot) => {
      const list = new Segments(TABLE_ENTRIES)
      list.push(address + slotsAt + slot * SLOT_SIZE, BlkHeader.size)
      list.push(address + dataAt + slot * DATA_SIZE, DATA_SIZE)
      list.push(address + slotsAt + slot * SLOT_SIZE + STATUS_AT, 1)
      return list
    })
    this.#startQueue(isPacked)
  }

  run(work: Work): Report {
    const { depth, ioSize, isRead, sleeps } = work
    const ring = this.#ring
    const histogram = new Histogram()
    const readableCount = isRead ? 1 : 2
    const begin = performance.now()
    const end = begin + work.seconds * 1000
    for (const list of this.#lists) list.lengths[1] = ioSize
    for (let slot = 0; slot < depth; slot++) this.#add(slot, work, readableCount, begin)
    this.#publish()
    let outstanding = depth
    let now = begin
    while (outstanding > 0) {
      let count = 0
      for (let slot = ring.next(); slot >= 0; slot = ring.next()) {
        if (count === 0) now = performance.now()
        count++
        // In units of 100 ns.
        histogram.record(Math.round((now - this.#submitted[slot]!) * 1e4))
        const status = this.#slots.getUint8(slot * SLOT_SIZE + STATUS_AT)
        if (status !== BlkStatus.OK) throw new Error(`a request ended with status ${status}`)
        if (now < end) this.#add(slot, work, readableCount, now)
        else outstanding--
      }
      if (count > 0) this.#publish()
      else if (sleeps) this.#sleep()
    }
    return {
      count: histogram.count,
      iops: (histogram.count * 1000) / (now - begin),
      p50Us: histogram.percentile(0.5) / 10,
      p99Us: histogram.percentile(0.99) / 10,
      p999Us: histogram.percentile(0.999) / 10,
    }
  }

  #add(slot: number, work: Work, readableCount: number, now: number): void {
    const at = slot * SLOT_SIZE
    BlkHeader.type.set(this.#slots, at, work.isRead ? BlkType.IN : BlkType.OUT)
    // Any place at a multiple of the size: xorshift.
    let random = this.#random
    random ^= random << 13
    random ^= random >>> 17
    random ^= random << 5
    this.#random = random
    const places = Math.floor(this.#capacityBytes / work.ioSize)
    BlkHeader.sector.set(this.#slots, at, ((random >>> 0) % places) * (work.ioSize / SECTOR_SIZE))
    this.#slots.setUint8(at + STATUS_AT, 0xff)
    this.#submitted[slot] = now
    this.#ring.add(this.#lists[slot]!, readableCount, slot)
  }

  #publish(): void {
    if (!this.#ring.publish()) return
    viewAt(this.#counter, 8).setUint32(0, 1, true)
    write(this.#kick, this.#counter, 8)
  }

  #sleep(): void {
    if (!this.#ring.enableInterrupts()) {
      // Interrupts are not waited for in read(2): it returns at once, as back ends want their side of it.
      if (poll(this.#counter + POLL_AT, 1, -1) !== 1) throw new Error('an interrupt cannot be waited for')
      read(this.#call, this.#counter, 8)
    }
    this.#ring.disableInterrupts()
  }

  #readCapacity(): number {
    const request = new DataView(new ArrayBuffer(ConfigHeader.size + BlkConfig.size))
    ConfigHeader.sizeBytes.set(request, 0, BlkConfig.size)
    const answer = this.#ask(Request.GET_CONFIG, new Uint8Array(request.buffer))
    return BlkConfig.capacity.get(answer, ConfigHeader.size) * SECTOR_SIZE
  }

  #startQueue(isPacked: boolean): void {
    const wanted = viewAt(this.#counter + POLL_AT, 8)
    wanted.setInt32(0, this.#call, true)
    wanted.setUint32(4, POLLIN, true)
    this.#ring.disableInterrupts()
    const address = new DataView(new ArrayBuffer(VringAddress.size))
    VringAddress.descriptor.set(address, 0, this.#ring.addresses.descriptors)
    VringAddress.available.set(address, 0, this.#ring.addresses.driverArea)
    VringAddress.used.set(address, 0, this.#ring.addresses.deviceArea)
    this.#tell(Request.SET_VRING_NUM, vring(SLOTS))
    // Both wrap counters of a packed ring begin at 1.
    this.#tell(Request.SET_VRING_BASE, vring(isPacked ? 0x8000_8000 : 0))
    this.#tell(Request.SET_VRING_ADDR, new Uint8Array(address.buffer))
    this.#tell(Request.SET_VRING_CALL, u64(0n), [this.#call])
    this.#tell(Request.SET_VRING_KICK, u64(0n), [this.#kick])
    this.#tell(Request.SET_VRING_ENABLE, vring(1))
    // Everything before it is done when this is answered.
    this.#ask(Request.GET_FEATURES)
  }

  #tell(request: number, payload: Uint8Array, descriptors: readonly number[] = []): void {
    const message = new Uint8Array(MessageHeader.size + payload.length)
    const view = new DataView(message.buffer)
    MessageHeader.request.set(view, 0, request)
    MessageHeader.flags.set(view, 0, VHOST_USER_VERSION)
    MessageHeader.payloadBytes.set(view, 0, payload.length)
    message.set(payload, MessageHeader.size)
    const sent = sendMessage(this.#socket, message, descriptors)
    if (sent !== message.length) throw new Error(`request ${request}: ${sent} bytes were sent`)
  }

  #ask(request: number, payload = new Uint8Array(0)): DataView {
    this.#tell(request, payload)
    const header = this.#receive(MessageHeader.size)
    if (MessageHeader.request.get(header, 0) !== request) throw new Error(`request ${request} has no answer`)
    if ((MessageHeader.flags.get(header, 0) & MessageFlag.REPLY) === 0) throw new Error('no answer')
    return this.#receive(MessageHeader.payloadBytes.get(header, 0))
  }

  #receive(size: number): DataView {
    const bytes = new Uint8Array(size)
    for (let done = 0; done < size; ) {
      const count = receiveMessage(this.#socket, bytes.subarray(done), [], 0)
      if (count > 0) done += count
      else if (count !== -EAGAIN) throw new Error(`the back end has hung up (${count})`)
    }
    return new DataView(bytes.buffer)
  }
}

const bit = (number: number): bigint => 1n << BigInt(number)

const pages = (size: number): number => Math.ceil(size / PAGE) * PAGE

function u64(value: bigint): Uint8Array {
  const view = new DataView(new ArrayBuffer(U64.size))
  view.setBigUint64(0, value, true)
  return new Uint8Array(view.buffer)
}

/** Of queue 0. */
function vring(num: number): Uint8Array {
  const view = new DataView(new ArrayBuffer(VringState.size))
  VringState.num.set(view, 0, num)
  return new Uint8Array(view.buffer)
}
