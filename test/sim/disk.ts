/**
 * A disk that several gateways share, as an image on shared storage: it outlives them all. Every write takes a while and
 * becomes visible block by block, each at a moment of its own. When a gateway crashes, what it had under way is lost, or
 * lands, or lands later: the storage decides, not the gateway.
 */
import { z } from 'zod'
import { type AnyDriver, type BdevInfo, type DriverChannel, defineDriver } from '../../src/bdev/bdev.ts'
import { type BdevIo, IoType } from '../../src/bdev/io.ts'
import type { Prng } from '../../src/core/prng.ts'
import type { Reactor } from '../../src/reactor/reactor.ts'
import { Status } from '../../src/spec/nvme-status.ts'
import { bytesAt } from '../../src/sys/memory.ts'
import type { SimClock } from './clock.ts'
import type { World } from './world.ts'

export const BLOCK_SIZE = 512

/** However slow the disk is. */
const LATENCY_MAX_US = 3_000_000

/** Hears of everything that reaches the medium. */
export interface DiskObserver {
  landed(block: number, content: Uint8Array): void
  /** Something that no correct program does. */
  violated(what: string): void
}

/** Faults of the driver itself, to prove that they are noticed: each happens once in so many I/Os, 0 for never. */
export interface Sabotage {
  dropWrite: number
  tearWrite: number
  staleRead: number
  completeTwice: number
  forget: number
}

export const NO_SABOTAGE: Sabotage = {
  dropWrite: 0,
  tearWrite: 0,
  staleRead: 0,
  completeTwice: 0,
  forget: 0,
}

interface Step {
  readonly timer: { cancel(): void }
}

interface UnderWay {
  readonly steps: Set<Step>
  /** I/Os that have not ended. */
  outstanding: number
}

export class SharedDisk {
  readonly uuid: string
  blockCount: number
  readonly #clock: SimClock
  readonly #prng: Prng
  readonly #observer: DiskObserver
  #bytes: Uint8Array
  /** What was there before the last write, for `staleRead`. */
  #old: Uint8Array
  readonly sabotage: Sabotage
  /** Microseconds an I/O takes, at least and at most. */
  latencyUs: readonly [number, number] = [30, 400]
  /** What each reactor has under way: gone with it. */
  readonly #underWay = new Map<Reactor, UnderWay>()

  constructor(world: World, uuid: string, blockCount: number, observer: DiskObserver, sabotage: Sabotage) {
    this.uuid = uuid
    this.blockCount = blockCount
    this.sabotage = sabotage
    this.#clock = world.clock
    this.#prng = world.fork()
    this.#observer = observer
    this.#bytes = new Uint8Array(blockCount * BLOCK_SIZE)
    this.#old = this.#bytes.slice()
  }

  grow(blockCount: number): void {
    const grow = (old: Uint8Array): Uint8Array => {
      const bytes = new Uint8Array(blockCount * BLOCK_SIZE)
      bytes.set(old)
      return bytes
    }
    this.#bytes = grow(this.#bytes)
    this.#old = grow(this.#old)
    this.blockCount = blockCount
  }

  content(block: number): Uint8Array {
    return this.#bytes.subarray(block * BLOCK_SIZE, (block + 1) * BLOCK_SIZE)
  }

  /** I/Os of all gateways that have not ended. */
  get outstanding(): number {
    return [...this.#underWay.values()].reduce((sum, { outstanding }) => sum + outstanding, 0)
  }

  /** The gateway that the reactors belonged to is gone. */
  dropInFlight(reactors: readonly Reactor[]): void {
    for (const reactor of reactors) {
      for (const { timer } of this.#underWay.get(reactor)?.steps ?? []) {
        if (this.#prng.oneIn(2)) timer.cancel()
      }
      this.#underWay.delete(reactor)
    }
  }

  submit(io: BdevIo, reactor: Reactor): void {
    this.#of(reactor).outstanding++
    const tookUs = this.#takesUs()
    const { firstBlock, blockCount } = io
    if (io.type === IoType.READ) {
      const data = new Uint8Array(blockCount * BLOCK_SIZE)
      this.#eachBlock(reactor, firstBlock, blockCount, tookUs, block => {
        const source = this.#happens('staleRead') ? this.#old : this.#bytes
        const from = block * BLOCK_SIZE
        data.set(source.subarray(from, from + BLOCK_SIZE), (block - firstBlock) * BLOCK_SIZE)
      })
      this.#complete(io, reactor, tookUs, () => scatter(data, io))
      return
    }
    if (io.type === IoType.WRITE || io.type === IoType.WRITE_ZEROES) {
      const data = new Uint8Array(blockCount * BLOCK_SIZE)
      if (io.type === IoType.WRITE) gather(io, data)
      if (!this.#happens('dropWrite')) {
        this.#eachBlock(reactor, firstBlock, blockCount, tookUs, block => {
          const at = (block - firstBlock) * BLOCK_SIZE
          this.#land(block, data.subarray(at, at + BLOCK_SIZE))
        })
      }
      this.#complete(io, reactor, tookUs, () => {
        if (io.type === IoType.WRITE) this.#checkUnchanged(io, data)
      })
      return
    }
    this.#complete(io, reactor, tookUs, () => {})
  }

  /** The data of a write belongs to the device until it ends. */
  #checkUnchanged(io: BdevIo, data: Uint8Array): void {
    const now = new Uint8Array(data.length)
    gather(io, now)
    if (Buffer.compare(now, data) !== 0)
      this.#observer.violated('the data of a write changed under the device')
  }

  #takesUs(): number {
    const slow = this.#prng.oneIn(50) ? 20 : 1
    return Math.min(this.#prng.between(...this.latencyUs) * slow, LATENCY_MAX_US)
  }

  #eachBlock(
    reactor: Reactor,
    first: number,
    count: number,
    withinUs: number,
    act: (block: number) => void,
  ): void {
    const isTogether = this.#prng.oneIn(2)
    const together = this.#prng.between(0, withinUs)
    for (let block = first; block < first + count; block++) {
      this.#later(reactor, isTogether ? together : this.#prng.between(0, withinUs), () => act(block))
    }
  }

  #land(block: number, content: Uint8Array): void {
    const from = block * BLOCK_SIZE
    this.#old.set(this.content(block), from)
    const size = this.#happens('tearWrite') ? BLOCK_SIZE / 2 : BLOCK_SIZE
    this.#bytes.set(content.subarray(0, size), from)
    this.#observer.landed(block, this.content(block))
  }

  /** After everything that was to happen within `afterUs`. */
  #complete(io: BdevIo, reactor: Reactor, afterUs: number, before: () => void): void {
    this.#later(reactor, afterUs + 1, () => {
      // The gateway may have crashed, and then nobody waits.
      if (!this.#underWay.has(reactor)) return
      if (this.#happens('forget')) return
      before()
      this.#of(reactor).outstanding--
      io.complete(Status.SUCCESS)
      if (this.#happens('completeTwice')) io.complete(Status.SUCCESS)
    })
  }

  #later(reactor: Reactor, delayUs: number, act: () => void): void {
    const { steps } = this.#of(reactor)
    const step: Step = {
      timer: this.#clock.after(delayUs, () => {
        steps.delete(step)
        act()
      }),
    }
    steps.add(step)
  }

  #of(reactor: Reactor): UnderWay {
    let underWay = this.#underWay.get(reactor)
    if (underWay === undefined) {
      underWay = { steps: new Set(), outstanding: 0 }
      this.#underWay.set(reactor, underWay)
    }
    return underWay
  }

  #happens(fault: keyof Sabotage): boolean {
    const oneIn = this.sabotage[fault]
    return oneIn > 0 && this.#prng.oneIn(oneIn)
  }
}

function gather(io: BdevIo, target: Uint8Array): void {
  let at = 0
  for (let i = 0; i < io.segments.count; i++) {
    const length = io.segments.lengths[i]!
    target.set(bytesAt(io.segments.addresses[i]!, length), at)
    at += length
  }
}

function scatter(data: Uint8Array, io: BdevIo): void {
  let at = 0
  for (let i = 0; i < io.segments.count; i++) {
    const length = io.segments.lengths[i]!
    bytesAt(io.segments.addresses[i]!, length).set(data.subarray(at, at + length))
    at += length
  }
}

/** The driver of a gateway. `zeroes`: whether it writes zeroes itself or leaves that to the channel. */
export function diskDriver(disk: SharedDisk, zeroes: boolean): AnyDriver {
  return defineDriver({
    name: 'image',
    summary: 'An image on shared storage.',
    params: z.object({}),
    create: (name): BdevInfo => ({
      name,
      aliases: [],
      driver: 'image',
      product: 'Shared image',
      uuid: disk.uuid,
      blockSize: BLOCK_SIZE,
      physicalBlockSize: BLOCK_SIZE,
      blockCount: disk.blockCount,
      supports: new Set([IoType.READ, IoType.WRITE, IoType.FLUSH, ...(zeroes ? [IoType.WRITE_ZEROES] : [])]),
      writeCache: true,
      readOnly: false,
      bases: [],
      device: null,
      driverSpecific: {},
    }),
    openChannel: (_info, { reactor }): DriverChannel => ({
      submit: io => disk.submit(io, reactor),
      abort() {},
      lends: false,
      close() {},
    }),
  })
}
