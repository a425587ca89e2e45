/** A request queue on a reactor that a test polls by hand, with a disk on it and a device side to play. */
import type { BdevInfo } from '../../src/bdev/bdev.ts'
import { Channel } from '../../src/bdev/channel.ts'
import { IoType } from '../../src/bdev/io.ts'
import { write } from '../../src/sys/libc.ts'
import { viewAt } from '../../src/sys/memory.ts'
import { ControllerMemory } from '../../src/virtio/controller-memory.ts'
import {
  type GiveUp,
  type HaltAnswer,
  type PrepareAnswer,
  type ScsiNews,
  Topic,
  type Unit,
} from '../../src/virtio/messages.ts'
import { installVirtio, virtioOf } from '../../src/virtio/reactor-virtio.ts'
import { type IoRequest, PendingIo } from '../support/io.ts'
import { LocalReactorGroup } from '../support/reactor.ts'
import { bytesOf, type Chain, DeviceSide } from './device.ts'

/** Its number. */
export const CONTROLLER = 1
const PLAIN = { isPacked: false, hasEventIndex: false, hasIndirect: false }

export class TestQueue {
  readonly reactors = new LocalReactorGroup({ ring: true, arenaBytes: 8 << 20 })
  readonly memory: ControllerMemory
  channel!: Channel
  readonly gaveUp: GiveUp[] = []
  readonly news: ScsiNews[] = []
  device!: DeviceSide
  readonly #ios: PendingIo[] = []
  readonly #unit: Unit

  private constructor(unit: Partial<Unit>, size: number) {
    const kind = unit.kind ?? 'blk'
    const reactor = this.reactors.reactors[0]!
    installVirtio(reactor)
    this.memory = new ControllerMemory('test', kind, 1, size)
    this.reactors.port(0).on<GiveUp>(Topic.GIVE_UP, message => this.gaveUp.push(message))
    this.reactors.port(0).on<ScsiNews>(Topic.NEWS, message => this.news.push(message))
    this.#unit = {
      controller: CONTROLLER,
      kind,
      target: 0,
      segmentBytes: 1 << 20,
      transferBlocks: 2048,
      unmapBlocks: 2048,
      zeroesBlocks: 2048,
      hasCache: true,
      ...unit,
    }
  }

  /** Has a disk on the reactor, and a back end with an empty ring. */
  static async open(unit: Partial<Unit> = {}, size = 64): Promise<TestQueue> {
    const queue = new TestQueue(unit, size)
    const { kind } = queue.#unit
    await queue.call(Topic.OPEN, { controller: CONTROLLER, name: 'V0', kind, ...queue.memory.queues[0]! })
    const info = disk(queue.#unit)
    const reactor = queue.reactors.reactors[0]!
    queue.channel = new Channel(info, reactor, virtioOf(reactor).openChannel(info))
    await queue.start()
    return queue
  }

  /** A back end begins with the ring: with a new one, or where the last one stopped. */
  async start(resumes = false): Promise<number> {
    const { base } = await this.call<PrepareAnswer>(Topic.PREPARE, {
      controller: CONTROLLER,
      features: PLAIN,
      resumes,
    })
    const { address, size } = this.memory.rings.at(-1)!
    this.device = new DeviceSide(address, size)
    this.device.resume(base)
    await this.call(Topic.RUN, CONTROLLER)
    this.poll()
    return base
  }

  halt(): Promise<HaltAnswer> {
    return this.call<HaltAnswer>(Topic.HALT, CONTROLLER)
  }

  call<T = unknown>(topic: string, body: unknown): Promise<T> {
    return this.reactors.run(this.reactors.port(0).call<T>(topic, body))
  }

  /** Submits an I/O, and has it go as far as it goes by itself. */
  submit(request: IoRequest): PendingIo {
    const io = new PendingIo(this.channel, request)
    this.#ios.push(io)
    this.poll()
    return io
  }

  poll(): void {
    this.reactors.settle()
  }

  /** Ends requests to a block device, with a status, and says how many. */
  end(chains: readonly Chain[], status = 0): number {
    for (const chain of chains) {
      bytesOf(chain.pieces.at(-1)!)[0] = status
      const written = chain.pieces.filter(({ isWritable }) => isWritable)
      const length = written.reduce((sum, piece) => sum + piece.length, 0)
      this.device.use(chain, length)
    }
    this.poll()
    return chains.length
  }

  /** As the back end does, by the eventfd that it was given. */
  interrupt(): void {
    const one = this.reactors.reactors[0]!.arena.allocate(8)
    viewAt(one, 8).setUint32(0, 1, true)
    write(this.memory.rings.at(-1)!.call, one, 8)
  }

  close(): void {
    this.reactors.close()
    this.memory.close()
    for (const io of this.#ios) io.free()
  }
}

function disk(unit: Unit): BdevInfo {
  return {
    name: 'V0',
    aliases: [],
    driver: 'virtio',
    product: 'Virtio disk',
    uuid: '9f9b8b0e-5c1a-5f0e-8a4c-0c2f6d9a1b11',
    blockSize: 512,
    physicalBlockSize: 512,
    blockCount: 1 << 20,
    supports: new Set([IoType.READ, IoType.WRITE, IoType.FLUSH, IoType.UNMAP, IoType.WRITE_ZEROES]),
    writeCache: unit.hasCache,
    readOnly: false,
    bases: [],
    device: unit,
    driverSpecific: {},
  }
}
