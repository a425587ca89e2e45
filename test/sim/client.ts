/** The host: a simulated machine with the production NVMe host and its multipath device. */
import type { Channel } from '../../src/bdev/channel.ts'
import type { Claim } from '../../src/bdev/claims.ts'
import { ReactorBdevs } from '../../src/bdev/reactor-bdevs.ts'
import { BdevRegistry } from '../../src/bdev/registry.ts'
import { nvmeDriver } from '../../src/nvme/driver.ts'
import type { NvmeContext } from '../../src/nvme/methods/context.ts'
import { nvmeMethods } from '../../src/nvme/methods.ts'
import { NvmeControllers } from '../../src/nvme/nvme-controllers.ts'
import { installNvme } from '../../src/nvme/reactor-nvme.ts'
import { Dispatcher, type RpcInfo } from '../../src/rpc/dispatcher.ts'
import { PORT, SUBSYSTEM } from './gateway.ts'
import { type Boot, SimNode } from './node.ts'
import type { World } from './world.ts'

const CONTROLLER = 'Nvme0'
export const DEVICE = 'Nvme0n1'

export class Client {
  readonly node: SimNode
  readonly boot: Boot
  readonly bdevs: BdevRegistry
  readonly controllers: NvmeControllers
  readonly reactorBdevs: readonly ReactorBdevs[]
  readonly #rpc: Dispatcher<NvmeContext & { readonly rpc: RpcInfo }>
  #claim: Claim | null = null

  constructor(world: World, address: string, reactors: number) {
    this.node = new SimNode(world, 'client', [address], reactors)
    this.boot = this.node.start()
    this.reactorBdevs = this.boot.reactors.map(reactor => {
      installNvme(reactor)
      return new ReactorBdevs(reactor, [nvmeDriver])
    })
    this.bdevs = new BdevRegistry(this.boot, [nvmeDriver])
    this.controllers = new NvmeControllers(this.bdevs, this.boot)
    const rpc: RpcInfo = { state: 'runtime', methods: nvmeMethods }
    const context: NvmeContext & { readonly rpc: RpcInfo } = { rpc, nvme: this.controllers }
    this.#rpc = new Dispatcher({ methods: nvmeMethods, context })
    // As a front end does, so that the device does not shrink under its user.
    this.bdevs.listen({
      added: ({ name }) => {
        this.#claim = this.bdevs.claim(name, 'the workload', 'exclusive_write')
      },
      removing: () => this.#claim?.release(),
    })
  }

  rpc(method: string, params: Record<string, unknown>): Promise<unknown> {
    return this.#rpc.call(method, params)
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

  /** The addresses to which there are paths, connected or not. */
  get attached(): string[] {
    const paths = this.controllers.find(CONTROLLER)?.paths ?? []
    return paths.filter(({ isDetaching }) => !isDetaching).map(({ status }) => status.target.host)
  }

  isConnected(host: string): boolean {
    const paths = this.controllers.find(CONTROLLER)?.paths ?? []
    return paths.some(({ status }) => status.target.host === host && status.state === 'ready')
  }

  /** The controller id of the path to that address, if it ever connected. */
  cntlid(host: string): number | undefined {
    const paths = this.controllers.find(CONTROLLER)?.paths ?? []
    return paths.find(({ status }) => status.target.host === host)?.status.controller?.cntlid
  }

  reset(cntlid: number): Promise<unknown> {
    return this.rpc('bdev_nvme_reset_controller', { name: CONTROLLER, cntlid })
  }

  setPolicy(policy: Record<string, unknown>): Promise<unknown> {
    return this.rpc('bdev_nvme_set_multipath_policy', { name: DEVICE, ...policy })
  }

  /** A reactor's channel to the device, undefined while there is no device. */
  open(reactor: number): Channel | undefined {
    const bdevs = this.reactorBdevs[reactor]!
    return bdevs.find(DEVICE) === undefined ? undefined : bdevs.open(DEVICE)
  }

  close(reactor: number, channel: Channel): void {
    this.reactorBdevs[reactor]!.close(channel)
  }

  /** What should be gone when everything is detached. */
  get leftovers(): string[] {
    const left: string[] = []
    const { openSockets } = this.node.machine
    if (openSockets > 0) left.push(`the client has ${openSockets} sockets`)
    if (this.boot.buffersInUse > 0) left.push(`the client holds ${this.boot.buffersInUse} buffers`)
    return left
  }
}
