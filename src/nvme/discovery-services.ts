/**
 * Discovery services: each stays connected to a discovery controller and keeps attached what its log names, one
 * controller a subsystem (`name0`, `name1` …) with a path to each of its ports.
 */
import { RpcError, thereAre } from '../core/errors.ts'
import { logger } from '../core/log.ts'
import type { SocketAddress } from '../reactor/network.ts'
import type { MethodCall } from '../rpc/config.ts'
import type { DiscoveryEntry, ReconnectOptions } from './messages.ts'
import type { ControllerOptions, Path, PathOptions } from './named-controller.ts'
import type { NvmeControllers } from './nvme-controllers.ts'

const log = logger('nvme')

/** How often a discovery controller that is gone is tried again, and how controllers are that say nothing else. */
const RETRY: ReconnectOptions = { ctrlrLossTimeoutSec: -1, reconnectDelaySec: 10, fastIoFailTimeoutSec: 0 }

export interface DiscoveryOptions {
  /** Name, host and time-outs of every controller it attaches. */
  readonly controller: ControllerOptions
  readonly target: SocketAddress
  /** As it was asked for, to be saved. */
  readonly call: MethodCall
}

export class DiscoveryService {
  readonly options: DiscoveryOptions
  path: Path | undefined
  /** What the log names now. */
  entries: readonly DiscoveryEntry[] = []
  /** Names of controllers, by subsystem. */
  readonly #names = new Map<string, string>()
  readonly #nvme: NvmeControllers
  #work: Promise<void> = Promise.resolve()
  #isStopped = false

  constructor(nvme: NvmeControllers, options: DiscoveryOptions) {
    this.#nvme = nvme
    this.options = options
  }

  /** Resolves once the discovery controller was connected to, or was not. */
  async start(): Promise<void> {
    const { controller, target } = this.options
    const options = { ...controller, reconnect: RETRY }
    const pathOptions: PathOptions = { target, source: undefined, mode: 'disable' }
    this.path = await this.#nvme.openDiscovery(options, pathOptions, status => {
      if (status.state !== 'ready') return
      this.entries = status.discovered
      const done = this.#work.then(() => this.#follow())
      // A log that could not be followed is told of; the next one is another chance.
      this.#work = done.catch(error => this.#warn(error as Error))
    })
  }

  /** Resolves when everything that the log named so far has been attached, or could not be. */
  attached(): Promise<void> {
    return this.#work
  }

  /** Detaches what it attached. */
  async stop(): Promise<void> {
    this.#isStopped = true
    if (this.path !== undefined) await this.#nvme.detachPath(this.path)
    this.entries = []
    await this.#work
    await this.#detachOthers()
  }

  /** Makes what is attached be what the log names. */
  async #follow(): Promise<void> {
    if (this.#isStopped) return
    await this.#detachOthers()
    for (const { kind, target, subnqn } of this.entries) {
      if (kind !== 'subsystem' || target === undefined || this.#isStopped) continue
      try {
        await this.#attach(subnqn, target)
      } catch (error) {
        this.#warn(error as Error)
      }
    }
  }

  #warn({ message }: Error): void {
    log.warning(`discovery service ${this.options.controller.name}: ${message}`)
  }

  async #attach(subnqn: string, target: SocketAddress): Promise<void> {
    const { controller } = this.options
    const name = this.#names.get(subnqn) ?? `${controller.name}${this.#names.size}`
    this.#names.set(subnqn, name)
    const path: PathOptions = { target, source: undefined, mode: 'multipath', isDiscovered: true }
    const existing = this.#nvme.find(name)
    if (existing === undefined) {
      await this.#nvme.attach({ ...controller, name, subnqn }, path)
    } else if (!existing.paths.some(({ targets }) => targets.some(other => isSame(other, target)))) {
      await this.#nvme.addPath(existing, path)
    }
  }

  async #detachOthers(): Promise<void> {
    for (const [subnqn, name] of this.#names) {
      for (const path of [...(this.#nvme.find(name)?.paths ?? [])]) {
        const isNamed = this.entries.some(
          entry => entry.subnqn === subnqn && path.targets.some(target => isSame(entry.target, target)),
        )
        if (path.isDiscovered && !isNamed) await this.#nvme.detachPath(path)
      }
    }
  }
}

export class DiscoveryServices {
  readonly #nvme: NvmeControllers
  readonly #services = new Map<string, DiscoveryService>()

  constructor(nvme: NvmeControllers) {
    this.#nvme = nvme
  }

  list(): DiscoveryService[] {
    return [...this.#services.values()]
  }

  /** Throws `RpcError`: EEXIST when the name or the address is taken, EIO when the controller cannot be reached. */
  async start(options: DiscoveryOptions): Promise<DiscoveryService> {
    const { name } = options.controller
    for (const other of this.#services.values()) {
      const isTaken = other.options.controller.name === name || isSame(other.options.target, options.target)
      if (!isTaken) continue
      const { host, port } = other.options.target
      throw new RpcError(
        'EEXIST',
        `discovery service ${other.options.controller.name} follows ${host} port ${port} already: stop it first`,
      )
    }
    const service = new DiscoveryService(this.#nvme, options)
    this.#services.set(name, service)
    await service.start()
    const { state, reason } = service.path!.status
    if (state === 'ready' || this.#nvme.isRestoring) return service
    await this.stop(name)
    throw new RpcError('EIO', `${options.target.host} port ${options.target.port}: ${reason}`)
  }

  /** Throws `RpcError` ENOENT. */
  async stop(name: string): Promise<void> {
    const service = this.#services.get(name)
    if (service === undefined) {
      throw new RpcError(
        'ENOENT',
        `there is no discovery service ${name}: ${thereAre(this.#services.keys())}`,
      )
    }
    this.#services.delete(name)
    await service.stop()
  }

  savedCalls(): MethodCall[] {
    return this.list().map(({ options }) => options.call)
  }
}

const isSame = (a: SocketAddress | undefined, b: SocketAddress): boolean =>
  a !== undefined && a.host === b.host && a.port === b.port
