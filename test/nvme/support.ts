/** A host with everything but threads: control side, one or more reactors, and fake controllers over a network in memory. */
import type { Channel } from '../../src/bdev/channel.ts'
import { BdevIo, type IoOwner, IoType } from '../../src/bdev/io.ts'
import { ReactorBdevs } from '../../src/bdev/reactor-bdevs.ts'
import { BdevRegistry } from '../../src/bdev/registry.ts'
import { Prng } from '../../src/core/prng.ts'
import { nvmeDriver } from '../../src/nvme/driver.ts'
import type { ControllerOptions, MultipathMode } from '../../src/nvme/named-controller.ts'
import { NvmeControllers } from '../../src/nvme/nvme-controllers.ts'
import { DEFAULT_POLICY } from '../../src/nvme/path-selector.ts'
import { installNvme } from '../../src/nvme/reactor-nvme.ts'
import { bytesAt } from '../../src/sys/memory.ts'
import { FakeController, type FakeNamespace, type FakeOptions } from '../support/fake-controller.ts'
import { LocalReactorGroup } from '../support/reactor.ts'
import { MemoryNetwork, type MemoryNetworkOptions } from '../support/stream.ts'

export const SUBNQN = 'nqn.2016-06.io.spdk:cnode1'
export const UUID = '2d2d3f0a9a2b4c558b1e6a7f1c3c9d10'

export const namespace = (overrides: Partial<FakeNamespace> = {}): FakeNamespace => ({
  nsid: 1,
  blockSize: 512,
  data: new Prng(7).fill(new Uint8Array(512 * 1024)),
  uuid: UUID,
  anaGroup: 1,
  ...overrides,
})

export class Host {
  readonly network: MemoryNetwork
  readonly reactors: LocalReactorGroup
  readonly bdevs: BdevRegistry
  readonly nvme: NvmeControllers
  readonly locals: readonly ReactorBdevs[]
  readonly #fakes: FakeController[] = []

  constructor(options: { network?: MemoryNetworkOptions; reactors?: number } = {}) {
    this.network = new MemoryNetwork(options.network)
    this.reactors = new LocalReactorGroup({ network: this.network, count: options.reactors ?? 1 })
    this.bdevs = new BdevRegistry(this.reactors, [nvmeDriver])
    this.locals = this.reactors.reactors.map(reactor => {
      installNvme(reactor)
      reactor.addPoller(() => reactor.clock.fireDue())
      return new ReactorBdevs(reactor, [nvmeDriver])
    })
    this.reactors.reactors[0]!.addPoller(this.network.poll)
    this.nvme = new NvmeControllers(this.bdevs, this.reactors)
  }

  fake(options: FakeOptions = {}, namespaces: FakeNamespace[] = [namespace()]): FakeController {
    const fake = new FakeController(this.network, namespaces, options)
    this.#fakes.push(fake)
    this.reactors.reactors[0]!.addPoller(fake.poll)
    return fake
  }

  /** Attaches a path to that controller; with options as `bdev_nvme_attach_controller` has them by default. */
  async attach(
    fake: FakeController,
    options: Partial<ControllerOptions> = {},
    mode: MultipathMode = 'multipath',
  ): Promise<string[]> {
    const target = { host: fake.host, port: fake.port }
    const path = { target, source: undefined, mode }
    const known = this.nvme.find('Nvme0')
    const devices = await this.run(
      known === undefined
        ? this.nvme.attach({ ...DEFAULTS, ...options }, path)
        : this.nvme.addPath(known, path),
    )
    return devices.map(({ name }) => name)
  }

  open(name: string, reactor = 0): Channel {
    return this.locals[reactor]!.open(name)
  }

  run<T>(promise: Promise<T>): Promise<T> {
    return this.reactors.run(promise)
  }

  /** Polls, and lets messages through, until nothing happens any more. */
  async settle(): Promise<void> {
    for (let idle = 0; idle < 3; ) {
      idle = this.reactors.poll() > 0 ? 0 : idle + 1
      await new Promise(setImmediate)
    }
  }

  /** Moves time in steps, so that each timer meets what the one before it brought about. */
  async advance(ms: number, stepMs = 50): Promise<void> {
    for (let passed = 0; passed < ms; passed += stepMs) {
      this.reactors.advance(Math.min(stepMs, ms - passed) * 1000)
      await this.settle()
    }
  }

  close(): void {
    this.reactors.close()
  }
}

export const DEFAULTS: ControllerOptions = {
  name: 'Nvme0',
  subnqn: SUBNQN,
  hostnqn: 'nqn.2014-08.org.nvmexpress:uuid:5b1c6b0e-3f8d-4c0a-9a5d-2f7e41c3d688',
  isHostNqnGiven: false,
  reconnect: { ctrlrLossTimeoutSec: -1, reconnectDelaySec: 2, fastIoFailTimeoutSec: 0 },
  fabricsTimeoutUs: 0,
  policy: DEFAULT_POLICY,
  disableSqFlowControl: false,
}

/** Submits I/Os and keeps their ends. */
export class Submitter implements IoOwner {
  readonly channel: Channel
  readonly #host: Host
  /** Status by tag. */
  readonly ended = new Map<number, number>()
  #nextTag = 1

  constructor(host: Host, channel: Channel) {
    this.#host = host
    this.channel = channel
  }

  ioDone(io: BdevIo): void {
    if (this.ended.has(io.tag)) throw new Error(`I/O ${io.tag} ended twice`)
    this.ended.set(io.tag, io.status)
  }

  /** Submits an I/O whose data lies in pieces of those lengths. */
  submit(
    type: IoType,
    firstBlock: number,
    blockCount: number,
    data?: Uint8Array,
    pieces?: number[],
  ): Submitted {
    const bytes = blockCount * this.channel.info.blockSize
    const lengths = pieces ?? [bytes]
    const io = new BdevIo(this, lengths.length)
    io.type = type
    io.firstBlock = firstBlock
    io.blockCount = blockCount
    io.tag = this.#nextTag++
    const { arena } = this.channel.reactor
    let at = 0
    if (type === IoType.READ || type === IoType.WRITE || type === IoType.COMPARE) {
      for (const length of lengths) {
        // Apart from each other, so that they are pieces indeed.
        const address = arena.allocate(length + 64) + 12
        if (data !== undefined) bytesAt(address, length).set(data.subarray(at, at + length))
        io.segments.push(address, length)
        at += length
      }
    }
    this.channel.submit(io)
    return new Submitted(io, this)
  }

  /** Submits and polls until it has ended; resolves with its status. */
  async end(submitted: Submitted): Promise<number> {
    await this.#host.reactors.until(() => submitted.isEnded)
    return submitted.status
  }

  async read(firstBlock: number, blockCount: number, pieces?: number[]): Promise<Uint8Array> {
    const read = this.submit(IoType.READ, firstBlock, blockCount, undefined, pieces)
    const status = await this.end(read)
    if (status !== 0) throw new Error(`the read ended with 0x${status.toString(16)}`)
    return read.data
  }

  write(firstBlock: number, blockCount: number, data: Uint8Array, pieces?: number[]): Promise<number> {
    return this.end(this.submit(IoType.WRITE, firstBlock, blockCount, data, pieces))
  }
}

export class Submitted {
  readonly io: BdevIo
  readonly #submitter: Submitter

  constructor(io: BdevIo, submitter: Submitter) {
    this.io = io
    this.#submitter = submitter
  }

  get isEnded(): boolean {
    return this.#submitter.ended.has(this.io.tag)
  }

  get status(): number {
    return this.#submitter.ended.get(this.io.tag)!
  }

  get data(): Uint8Array {
    const { segments } = this.io
    const parts = Array.from({ length: segments.count }, (_, i) =>
      bytesAt(segments.addresses[i]!, segments.lengths[i]!),
    )
    return new Uint8Array(Buffer.concat(parts))
  }
}
