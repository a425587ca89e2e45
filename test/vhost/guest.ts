/**
 * The other side of vhost queues, by hand: a guest's memory and a driver of split rings that writes each field where the
 * specification puts it, right or wrong.
 */
import { expect } from 'vitest'
import { bytesAt, mapAnonymous, unmap, viewAt } from '../../src/sys/memory.ts'
import type { MappedRegion, SharedPart, StartQueue, Tuning } from '../../src/vhost/messages.ts'
import { GuestMemory } from '../../src/vhost/ring/guest-memory.ts'
import { Queue, type QueueSession } from '../../src/vhost/ring/queue.ts'
import type { GuestRequest, RequestQueue, VirtioDevice } from '../../src/vhost/ring/request.ts'
import { RequestBudget } from '../../src/vhost/ring/request-budget.ts'
import type { LocalReactorGroup } from '../support/reactor.ts'

/** Far from guest addresses, so that nothing works when the two are mixed up. */
const USER_BASE = 0x7000_0000_0000
export const userOf = (guestAddress: number): number => USER_BASE + guestAddress

/** Memory of a guest: regions with a gap of their own size between them. */
export class GuestRam {
  readonly regions: readonly MappedRegion[]
  #used = 0x1000

  constructor(sizeBytes = 1 << 20, count = 1) {
    this.regions = Array.from({ length: count }, (_, i) => ({
      guestAddress: 2 * i * sizeBytes,
      userAddress: userOf(2 * i * sizeBytes),
      sizeBytes,
      address: mapAnonymous(sizeBytes),
    }))
  }

  /** A guest address in the first region. */
  allocate(sizeBytes: number, alignment = 16): number {
    const address = Math.ceil(this.#used / alignment) * alignment
    this.#used = address + sizeBytes
    expect(this.#used, 'the first region is large enough').toBeLessThanOrEqual(this.regions[0]!.sizeBytes)
    return address
  }

  hostOf(guestAddress: number): number {
    for (const { guestAddress: start, sizeBytes, address } of this.regions) {
      if (guestAddress >= start && guestAddress < start + sizeBytes) return address + guestAddress - start
    }
    throw new Error(`${guestAddress} is not in the guest's memory`)
  }

  bytes(guestAddress: number, sizeBytes: number): Uint8Array {
    return bytesAt(this.hostOf(guestAddress), sizeBytes)
  }

  view(guestAddress: number, sizeBytes: number): DataView {
    return viewAt(this.hostOf(guestAddress), sizeBytes)
  }

  free(): void {
    for (const { address, sizeBytes } of this.regions) unmap(address, sizeBytes)
  }
}

export interface Descriptor {
  readonly address: number
  readonly length: number
  readonly flags: number
  readonly next?: number
}

export interface Used {
  readonly id: number
  readonly length: number
}

/** Guest address and bytes. */
export type Piece = readonly [address: number, length: number]

const NEXT = 1
const WRITE = 2
const INDIRECT = 4

export class SplitDriver {
  readonly ram: GuestRam
  readonly size: number
  readonly descriptors: number
  readonly available: number
  readonly used: number
  #availableIndex = 0
  #usedIndex = 0
  #nextFree = 0

  constructor(ram: GuestRam, size: number) {
    this.ram = ram
    this.size = size
    this.descriptors = ram.allocate(16 * size, 16)
    this.available = ram.allocate(6 + 2 * size, 2)
    this.used = ram.allocate(6 + 8 * size, 4)
  }

  start(given: Partial<StartQueue> = {}): StartQueue {
    return {
      session: 1,
      index: 0,
      size: this.size,
      isPacked: false,
      hasEventIndex: false,
      hasIndirect: true,
      descriptors: userOf(this.descriptors),
      driverArea: userOf(this.available),
      deviceArea: userOf(this.used),
      logAddress: -1,
      base: 0,
      kick: -1,
      call: -1,
      error: -1,
      inflight: null,
      isEnabled: true,
      ...given,
    }
  }

  describe(index: number, descriptor: Descriptor): void {
    write(this.ram.view(this.descriptors + 16 * index, 16), 0, descriptor)
  }

  /** A chain of readable, then writable buffers, in descriptors that follow one another. Returns its head. */
  chain(readable: readonly Piece[], writable: readonly Piece[]): number {
    const head = this.#nextFree
    const at = (i: number): number => (head + i) % this.size
    for (const [i, entry] of entriesOf(readable, writable).entries()) {
      this.describe(at(i), { ...entry, next: at(i + 1) })
    }
    this.#nextFree = at(readable.length + writable.length)
    return head
  }

  /** The same in a table of its own. Returns the head, which points to it. */
  indirect(readable: readonly Piece[], writable: readonly Piece[]): number {
    return this.table(entriesOf(readable, writable))
  }

  table(entries: readonly Descriptor[]): number {
    const address = this.ram.allocate(16 * entries.length, 16)
    const view = this.ram.view(address, 16 * entries.length)
    for (const [i, entry] of entries.entries()) write(view, 16 * i, entry)
    const head = this.#nextFree
    this.describe(head, { address, length: 16 * entries.length, flags: INDIRECT })
    this.#nextFree = (head + 1) % this.size
    return head
  }

  /** Makes chains available: the device may see them. */
  offer(...heads: readonly number[]): void {
    const ring = this.ram.view(this.available, 6 + 2 * this.size)
    for (const head of heads) {
      ring.setUint16(4 + 2 * (this.#availableIndex % this.size), head, true)
      this.#availableIndex = (this.#availableIndex + 1) & 0xffff
    }
    ring.setUint16(2, this.#availableIndex, true)
  }

  /** Of the available ring: what the driver says of interrupts. */
  set flags(value: number) {
    this.ram.view(this.available, 2).setUint16(0, value, true)
  }

  set usedEvent(value: number) {
    this.ram.view(this.available + 4 + 2 * this.size, 2).setUint16(0, value, true)
  }

  get availEvent(): number {
    return this.ram.view(this.used + 4 + 8 * this.size, 2).getUint16(0, true)
  }

  /** Of the used ring: what the device says of notifications. */
  get usedFlags(): number {
    return this.ram.view(this.used, 2).getUint16(0, true)
  }

  get usedIndex(): number {
    return this.ram.view(this.used, 4).getUint16(2, true)
  }

  /** Makes both indexes what they are after so many requests. */
  skipTo(index: number): void {
    this.ram.view(this.used, 4).setUint16(2, index, true)
    this.ram.view(this.available, 4).setUint16(2, index, true)
    this.#availableIndex = index
    this.#usedIndex = index
  }

  /** What was used since the last call. */
  collect(): Used[] {
    const ring = this.ram.view(this.used, 6 + 8 * this.size)
    const found: Used[] = []
    for (; this.#usedIndex !== this.usedIndex; this.#usedIndex = (this.#usedIndex + 1) & 0xffff) {
      const at = 4 + 8 * (this.#usedIndex % this.size)
      found.push({ id: ring.getUint32(at, true), length: ring.getUint32(at + 4, true) })
    }
    return found
  }
}

/** Descriptors that are linked to the next one of the list. */
function entriesOf(readable: readonly Piece[], writable: readonly Piece[]): Descriptor[] {
  return [...readable, ...writable].map(([address, length], i, { length: count }) => ({
    address,
    length,
    flags: (i >= readable.length ? WRITE : 0) | (i < count - 1 ? NEXT : 0),
    next: i + 1,
  }))
}

function write(view: DataView, at: number, { address, length, flags, next = 0 }: Descriptor): void {
  view.setUint32(at, address % 2 ** 32, true)
  view.setUint32(at + 4, Math.floor(address / 2 ** 32), true)
  view.setUint32(at + 8, length, true)
  view.setUint16(at + 12, flags, true)
  view.setUint16(at + 14, next, true)
}

/** Keeps what it is given until the test ends it. */
export class FakeDevice implements VirtioDevice {
  readonly eventQueue: number | null
  readonly started: GuestRequest[] = []
  readonly aborted: GuestRequest[] = []

  constructor(eventQueue: number | null = null) {
    this.eventQueue = eventQueue
  }

  start(request: GuestRequest): void {
    this.started.push(request)
  }

  /** Ends everything that was started, in that order. */
  completeAll(writtenBytes = 1): void {
    for (const request of this.started.splice(0)) request.complete(writtenBytes)
  }

  abort(request: GuestRequest): void {
    this.aborted.push(request)
  }

  sendEvent(_event: unknown, queue: RequestQueue): void {
    queue.take()?.complete(1)
  }

  ioDone(): void {}
  async update(): Promise<void> {}
  close(): void {}
}

/** What a queue needs around it, and what it told. */
export class FakeSession implements QueueSession {
  readonly reactor: QueueSession['reactor']
  readonly memory: GuestMemory
  readonly budget = new RequestBudget()
  readonly device: FakeDevice
  readonly one: number
  tuning: Tuning = { quietUs: 0, delayBaseUs: 0, iopsThreshold: 60_000 }
  readonly faults: string[] = []

  constructor(reactors: LocalReactorGroup, ram: GuestRam, device = new FakeDevice()) {
    this.reactor = reactors.reactors[0]!
    this.memory = new GuestMemory(ram.regions)
    this.device = device
    this.one = this.reactor.arena.allocate(8)
    viewAt(this.one, 8).setUint32(0, 1, true)
  }

  open(start: StartQueue): Queue {
    return new Queue(this, start)
  }

  broken(_index: number, why: string): void {
    this.faults.push(why)
  }
}

/** A request's segments by their guest addresses. Each of them lies within a region. */
export function segmentsOf(request: GuestRequest, ram: GuestRam): Piece[] {
  const { addresses, lengths, count } = request.segments
  return Array.from({ length: count }, (_, i) => {
    const [host, length] = [addresses[i]!, lengths[i]!]
    const region = ram.regions.find(
      ({ address, sizeBytes }) => host >= address && host + length <= address + sizeBytes,
    )
    expect(region, 'a segment lies within a region').toBeDefined()
    return [region!.guestAddress + host - region!.address, length]
  })
}

/** Zeroed memory that outlives queues. */
export function sharedPart(sizeBytes: number): SharedPart {
  return { address: mapAnonymous(sizeBytes), sizeBytes }
}
