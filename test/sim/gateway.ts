/** A gateway: a simulated machine with the production target, which serves the shared disk. */
import { ReactorBdevs } from '../../src/bdev/reactor-bdevs.ts'
import { BdevRegistry } from '../../src/bdev/registry.ts'
import type { NvmfContext } from '../../src/nvmf/methods/context.ts'
import { nvmfMethods } from '../../src/nvmf/methods.ts'
import { serveNvmf } from '../../src/nvmf/reactor-services.ts'
import { NvmfTarget } from '../../src/nvmf/target.ts'
import { Acceptor, ReactorAcceptor } from '../../src/reactor/acceptor.ts'
import { Dispatcher, type RpcInfo } from '../../src/rpc/dispatcher.ts'
import { diskDriver, type SharedDisk } from './disk.ts'
import { type Boot, SimNode } from './node.ts'
import type { World } from './world.ts'

export const SUBSYSTEM = 'nqn.2026-01.test:disk'
export const PORT = 4420
const BDEV = 'image0'

export type AnaName = 'optimized' | 'non_optimized' | 'inaccessible'

export interface GatewayOptions {
  readonly name: string
  readonly addresses: readonly string[]
  readonly reactors: number
  readonly minCntlid: number
  readonly anaReporting: boolean
  readonly writesZeroes: boolean
  /** Of `nvmf_create_transport`. */
  readonly transport: Record<string, unknown>
}

/** An address that the operator wants the gateway to listen at, and in what state. */
interface Wish {
  isListening: boolean
  ana: AnaName
}

type GatewayContext = NvmfContext & { readonly rpc: RpcInfo }

/** One life of the gateway's program. */
interface Service {
  readonly boot: Boot
  readonly bdevs: BdevRegistry
  readonly rpc: Dispatcher<GatewayContext>
  /** What the program has done of the operator's wishes. */
  readonly done: Map<string, Wish>
  /** What the operator asks for, one after another. */
  work: Promise<void>
  isUp: boolean
}

export class Gateway {
  readonly name: string
  readonly node: SimNode
  /** Survives crashes, as the saved configuration does. */
  readonly wishes: ReadonlyMap<string, Wish>
  readonly #world: World
  readonly #disk: SharedDisk
  readonly #options: GatewayOptions
  #service: Service | null = null

  constructor(world: World, disk: SharedDisk, options: GatewayOptions) {
    this.name = options.name
    this.node = new SimNode(world, options.name, options.addresses, options.reactors)
    this.wishes = new Map(options.addresses.map(host => [host, { isListening: true, ana: 'optimized' }]))
    this.#world = world
    this.#disk = disk
    this.#options = options
  }

  /** Listens, at least at one address, and has done what the operator wants. */
  get isUp(): boolean {
    return this.#service?.isUp === true
  }

  /** The size that the gateway serves, or undefined while it is down. */
  get blockCount(): number | undefined {
    return this.#service?.bdevs.find(BDEV)?.blockCount
  }

  /** Resolves when the gateway is up. When it crashes before, never. */
  async start(): Promise<void> {
    const boot = this.node.start()
    const drivers = [diskDriver(this.#disk, this.#options.writesZeroes)]
    for (const reactor of boot.reactors) {
      const bdevs = new ReactorBdevs(reactor, drivers)
      serveNvmf(reactor, bdevs, new ReactorAcceptor(reactor))
    }
    const bdevs = new BdevRegistry(boot, drivers)
    const nvmf = new NvmfTarget({
      reactors: boot,
      sockets: new Acceptor(boot),
      bdevs,
      firmwareRevision: '1',
      clock: boot.timers,
    })
    const context: GatewayContext = { rpc: { state: 'runtime', methods: nvmfMethods }, nvmf }
    const rpc = new Dispatcher({ methods: nvmfMethods, context })
    const service: Service = { boot, bdevs, rpc, done: new Map(), work: Promise.resolve(), isUp: false }
    this.#service = service
    service.work = this.#setUp(service)
    await service.work
    await this.reconcile()
    service.isUp = true
  }

  async #setUp({ bdevs, rpc }: Service): Promise<void> {
    await bdevs.create('image', BDEV, {})
    await rpc.call('nvmf_create_transport', { trtype: 'TCP', ...this.#options.transport })
    const { minCntlid, anaReporting } = this.#options
    await rpc.call('nvmf_create_subsystem', {
      nqn: SUBSYSTEM,
      allow_any_host: true,
      ana_reporting: anaReporting,
      min_cntlid: minCntlid,
      max_cntlid: minCntlid + 999,
    })
    await rpc.call('nvmf_subsystem_add_ns', { nqn: SUBSYSTEM, namespace: { bdev_name: BDEV } })
  }

  /** Makes the gateway be as the operator wants it, in its turn; nothing when it is down. */
  reconcile(): Promise<void> {
    const service = this.#service
    if (service === null) return Promise.resolve()
    service.work = service.work.then(() => this.#reconcile(service))
    return service.work
  }

  async #reconcile({ bdevs, rpc, done }: Service): Promise<void> {
    if (bdevs.get(BDEV).blockCount < this.#disk.blockCount) await bdevs.resize(BDEV, this.#disk.blockCount)
    for (const [host, wish] of this.wishes) {
      const listen_address = { trtype: 'TCP', adrfam: 'IPv4', traddr: host, trsvcid: String(PORT) }
      const { isListening, ana } = wish
      const now = done.get(host) ?? { isListening: false, ana: 'optimized' }
      if (isListening && !now.isListening) {
        await rpc.call('nvmf_subsystem_add_listener', { nqn: SUBSYSTEM, listen_address, ana_state: ana })
      } else if (!isListening && now.isListening) {
        await rpc.call('nvmf_subsystem_remove_listener', { nqn: SUBSYSTEM, listen_address })
      } else if (isListening && now.ana !== ana) {
        await rpc.call('nvmf_subsystem_listener_set_ana_state', {
          nqn: SUBSYSTEM,
          listen_address,
          ana_state: ana,
        })
      }
      done.set(host, { isListening, ana })
    }
  }

  crash(kind: 'program' | 'power'): void {
    const boot = this.node.running
    if (boot === null) return
    this.#service = null
    this.#disk.dropInFlight(boot.reactors)
    this.node.crash(kind)
    this.#world.trace(`${this.name} has crashed (${kind})`)
  }

  /** What should be gone when no host is connected any more. */
  get leftovers(): string[] {
    const { machine, running } = this.node
    const left: string[] = []
    if (machine.openSockets > 0) left.push(`${this.name} has ${machine.openSockets} sockets`)
    const buffers = running?.buffersInUse ?? 0
    if (buffers > 0) left.push(`${this.name} holds ${buffers} buffers`)
    return left
  }
}
