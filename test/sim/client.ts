/** The host: a simulated machine with the production NVMe host and its multipath device. */
import type { Channel } from '../../src/bdev/channel.ts'
import type { Claim } from '../../src/bdev/claims.ts'
import { ReactorBdevs } from '../../src/bdev/reactor-bdevs.ts'
import { BdevRegistry } from '../../src/bdev/registry.ts'
import { nvmeDriver } from '../../src/nvme/driver.ts'
import type { NvmeContext } from '../../src/nvme/methods/context.ts'
import { nvmeMethods } from '../../src/nvme/methods.ts'
import type { Path } from '../../src/nvme/named-controller.ts'
import { NvmeControllers } from '../../src/nvme/nvme-controllers.ts'
import { installNvme } from '../../src/nvme/reactor-nvme.ts'
import type { Reactor } from '../../src/reactor/reactor.ts'
import { Dispatcher, type RpcInfo } from '../../src/rpc/dispatcher.ts'
import { PORT, SUBSYSTEM } from './gateway.ts'
import { type Boot, SimNode } from './node.ts'
import type { World } from './world.ts'

const CONTROLLER = 'Nvme0'
export const DEVICE = 'Nvme0n1'

/** One life of the client's program. */
interface Service {
  readonly boot: Boot
  readonly bdevs: BdevRegistry
  readonly reactorBdevs: readonly ReactorBdevs[]
  readonly controllers: NvmeControllers
  readonly rpc: Dispatcher<NvmeContext & { readonly rpc: RpcInfo }>
}

export class Client {
  readonly node: SimNode
  #service: Service

  /** Starts it. */
  constructor(world: World, address: string, reactors: number) {
    this.node = new SimNode(world, 'client', [address], reactors)
    this.#service = this.#start()
  }

  /** Starts it again, after a crash: without any controller. */
  start(): void {
    this.#service = this.#start()
  }

  #start(): Service {
    const boot = this.node.start()
    const reactorBdevs = boot.reactors.map(reactor => {
      installNvme(reactor)
      return new ReactorBdevs(reactor, [nvmeDriver])
    })
    const bdevs = new BdevRegistry(boot, [nvmeDriver])
    const controllers = new NvmeControllers(bdevs, boot)
    const info: RpcInfo = { state: 'runtime', methods: nvmeMethods }
    const rpc = new Dispatcher({ methods: nvmeMethods, context: { rpc: info, nvme: controllers } })
    // As a front end does, so that the device does not shrink under its user.
    let claim: Claim | undefined
    bdevs.listen({
      added: ({ name }) => {
        claim = bdevs.claim(name, 'the workload', 'exclusive_write')
      },
      removing: () => claim?.release(),
    })
    return { boot, bdevs, reactorBdevs, controllers, rpc }
  }

  get isUp(): boolean {
    return this.node.running !== null
  }

  /** The reactors of this life, or of the last one. */
  get reactors(): readonly Reactor[] {
    return this.#service.boot.reactors
  }

  /** The device's size as the host sees it, 0 without a device. */
  get blockCount(): number {
    return this.isUp ? (this.#service.bdevs.find(DEVICE)?.blockCount ?? 0) : 0
  }

  rpc(method: string, params: Record<string, unknown>): Promise<unknown> {
    return this.#service.rpc.call(method, params)
  }

  attach(host: string, options: Record<string, unknown>): Promise<unknown> {
    return this.rpc('bdev_nvme_attach_controller', {
      name: CONTROLLER,
      trtype: 'TCP',
      traddr: host,
      adrfam: 'IPv4',
      trsvcid: String(PORT),
      subnqn: SUBSYSTEM,
      hostnqn: 'nqn.2026-01.test:host',
      multipath: 'multipath',
      ...options,
    })
  }

  detach(host: string): Promise<unknown> {
    return this.rpc('bdev_nvme_detach_controller', { name: CONTROLLER, traddr: host, trsvcid: String(PORT) })
  }

  detachAll(): Promise<unknown> {
    return this.rpc('bdev_nvme_detach_controller', { name: CONTROLLER })
  }

  get #paths(): readonly Path[] {
    return this.isUp ? (this.#service.controllers.find(CONTROLLER)?.paths ?? []) : []
  }

  /** The addresses to which there are paths, connected or not. */
  get attached(): string[] {
    return this.#paths.filter(({ isDetaching }) => !isDetaching).map(({ status }) => status.target.host)
  }

  isConnected(host: string): boolean {
    return this.#paths.some(({ status }) => status.target.host === host && status.state === 'ready')
  }

  /** The controller id of the path to that address, if it ever connected. */
  cntlid(host: string): number | undefined {
    return this.#paths.find(({ status }) => status.target.host === host)?.status.controller?.cntlid
  }

  /** `what`: enable, disable, or reset. */
  command(what: string, cntlid: number): Promise<unknown> {
    return this.rpc(`bdev_nvme_${what}_controller`, { name: CONTROLLER, cntlid })
  }

  prefer(cntlid: number): Promise<unknown> {
    return this.rpc('bdev_nvme_set_preferred_path', { name: DEVICE, cntlid })
  }

  setPolicy(policy: Record<string, unknown>): Promise<unknown> {
    return this.rpc('bdev_nvme_set_multipath_policy', { name: DEVICE, ...policy })
  }

  /** A reactor's channel to the device, undefined while there is no device. */
  open(reactor: number): Channel | undefined {
    if (!this.isUp) return undefined
    const bdevs = this.#service.reactorBdevs[reactor]!
    return bdevs.find(DEVICE) === undefined ? undefined : bdevs.open(DEVICE)
  }

  close(reactor: number, channel: Channel): void {
    this.#service.reactorBdevs[reactor]!.close(channel)
  }

  /** What should be gone when everything is detached. */
  get leftovers(): string[] {
    const left: string[] = []
    const { openSockets } = this.node.machine
    if (openSockets > 0) left.push(`the client has ${openSockets} sockets`)
    const { buffersInUse } = this.#service.boot
    if (buffersInUse > 0) left.push(`the client holds ${buffersInUse} buffers`)
    return left
  }
}
