/**
 * NVMe controllers by name, on the control thread: attaches and detaches paths, watches that all paths of a name lead to
 * the same namespaces, makes and removes their devices, and tells every reactor how each path is.
 */
import type { BdevInfo } from '../bdev/bdev.ts'
import type { BdevRegistry } from '../bdev/registry.ts'
import { RpcError, thereAre } from '../core/errors.ts'
import { logger } from '../core/log.ts'
import type { ReactorGroup } from '../reactor/group.ts'
import type { SocketAddress } from '../reactor/network.ts'
import { DiscoveryServices } from './discovery-services.ts'
import { hostIdOf } from './host-identity.ts'
import {
  type AbortCommand,
  DEFAULT_HOST_OPTIONS,
  type HostOptions,
  type MultipathPolicy,
  type NamespaceStatus,
  type PathCommand,
  type PathOpen,
  type PathStatus,
  type PathUpdate,
  type QueueLost,
  type ReconnectOptions,
  Topic,
} from './messages.ts'
import {
  type ControllerOptions,
  describeDevice,
  NamedController,
  namespaceMismatch,
  Path,
  type PathOptions,
} from './named-controller.ts'
import { DEFAULT_POLICY } from './path-selector.ts'
import { savedCalls } from './saved-calls.ts'

const log = logger('nvme')

export class NvmeControllers {
  /**
   * While a saved configuration is replayed: a path that cannot be reached is kept, and tried again as its options say,
   * instead of being refused.
   */
  isRestoring = false
  options: HostOptions = DEFAULT_HOST_OPTIONS
  /** The parameters of the last `bdev_nvme_set_options`, to be saved. */
  givenOptions: Readonly<Record<string, unknown>> | undefined
  /** Of controllers that say nothing else. */
  defaults: { readonly reconnect: ReconnectOptions; readonly policy: MultipathPolicy } = {
    reconnect: { ctrlrLossTimeoutSec: 0, reconnectDelaySec: 0, fastIoFailTimeoutSec: 0 },
    policy: DEFAULT_POLICY,
  }
  /** A flush goes to the controller; otherwise it succeeds by itself. */
  passesFlush = true

  readonly discovery = new DiscoveryServices(this)
  readonly #bdevs: BdevRegistry
  readonly #reactors: ReactorGroup
  readonly #controllers = new Map<string, NamedController>()
  readonly #paths = new Map<number, Path>()
  /** By the name of the device, which may not be there yet. */
  readonly #policies = new Map<string, MultipathPolicy>()
  /** Those who follow a path to a discovery controller. */
  readonly #followers = new Map<Path, (status: PathStatus) => void>()
  /** Those who wait for a path's status to change. */
  readonly #waiters = new Set<{ readonly path: Path; check(): void }>()
  #nextPathId = 1

  constructor(bdevs: BdevRegistry, reactors: ReactorGroup) {
    this.#bdevs = bdevs
    this.#reactors = reactors
    bdevs.saveWith(() => savedCalls(this))
    for (let i = 0; i < reactors.count; i++) {
      const port = reactors.port(i)
      port.on<PathStatus>(Topic.PATH_STATUS, status => this.#noteStatus(status))
      port.on<QueueLost>(Topic.QUEUE_LOST, lost => this.#passHome(lost.pathId, Topic.QUEUE_LOST, lost))
      port.on<AbortCommand>(Topic.ABORT, abort => this.#passHome(abort.pathId, Topic.ABORT, abort))
      port.on<number>(Topic.CHECK_ANA, pathId => this.#passHome(pathId, Topic.CHECK_ANA, pathId))
    }
  }

  get isEmpty(): boolean {
    return this.#controllers.size === 0
  }

  /** In the order of attachment. */
  list(): NamedController[] {
    return [...this.#controllers.values()]
  }

  find(name: string): NamedController | undefined {
    return this.#controllers.get(name)
  }

  /** Throws `RpcError` ENODEV naming the controllers there are. */
  get(name: string): NamedController {
    const controller = this.#controllers.get(name)
    if (controller !== undefined) return controller
    throw new RpcError('ENODEV', `there is no NVMe controller ${name}: ${thereAre(this.#controllers.keys())}`)
  }

  /** The controller whose device that is; throws `RpcError` ENODEV when it is not one of ours. */
  ownerOf(bdevName: string): { readonly controller: NamedController; readonly info: BdevInfo } {
    const info = this.#bdevs.get(bdevName)
    for (const controller of this.#controllers.values()) {
      for (const own of controller.devices.values()) if (own.name === info.name) return { controller, info }
    }
    throw new RpcError('ENODEV', `${info.name} is a ${info.driver} bdev, not one of an NVMe controller`)
  }

  async setOptions(options: HostOptions): Promise<void> {
    this.options = options
    await this.#reactors.broadcast(Topic.OPTIONS, options)
  }

  /**
   * Makes a controller with its first path. Resolves with the new devices. Throws `RpcError`: EIO when the controller
   * cannot be reached, EINVAL when what it has cannot be used.
   */
  async attach(options: ControllerOptions, path: PathOptions): Promise<BdevInfo[]> {
    const controller = new NamedController(options)
    this.#controllers.set(controller.name, controller)
    return this.#attachPath(controller, path)
  }

  /** Adds a path to a controller: in failover mode an address to turn to. Throws as `attach`. */
  async addPath(controller: NamedController, options: PathOptions): Promise<BdevInfo[]> {
    const first = controller.paths[0]
    if (options.mode !== 'failover' || first === undefined) return this.#attachPath(controller, options)
    const { target } = options
    first.targets.push(target)
    await this.command(first, { pathId: first.id, command: 'add-target', target })
    return []
  }

  /** Opens a path to a discovery controller; `follow` hears of every change of its status. Resolves as it settles. */
  async openDiscovery(
    options: ControllerOptions,
    pathOptions: PathOptions,
    follow: (status: PathStatus) => void,
  ): Promise<Path> {
    const controller = new NamedController(options)
    const path = new Path(this.#nextPathId++, controller, pathOptions)
    controller.paths.push(path)
    this.#paths.set(path.id, path)
    this.#followers.set(path, follow)
    const settled = this.#until(path, ({ state }) => state !== 'connecting')
    this.#reactors.port(this.#homeOf(path.id)).post(Topic.PATH_OPEN, this.#openMessage(path, 'discovery'))
    await settled
    return path
  }

  /** Takes a path away; with the last one go the controller and its devices. */
  async detachPath(path: Path): Promise<void> {
    if (path.isDetaching) return
    path.isDetaching = true
    this.#checkWaiters(path)
    const { controller } = path
    await controller.inTurn(() => this.#detach(path))
  }

  /** Takes one of several addresses of a failover path away. */
  async removeTarget(path: Path, target: SocketAddress): Promise<void> {
    path.targets = path.targets.filter(other => other.host !== target.host || other.port !== target.port)
    await this.command(path, { pathId: path.id, command: 'remove-target', target })
  }

  /** Sends a command to the path's home. Throws `RpcError` ENODEV for a path that is being detached. */
  async command<T = void>(path: Path, command: PathCommand): Promise<T> {
    if (path.isDetaching && command.command !== 'close') {
      const { host, port } = path.status.target
      throw new RpcError(
        'ENODEV',
        `${path.controller.name}: the path to ${host} port ${port} is being detached`,
      )
    }
    return this.#reactors.port(this.#homeOf(path.id)).call<T>(Topic.PATH_COMMAND, command)
  }

  /**
   * Sends a command that changes the state of a path, and resolves with the first status after it that `isDone` takes.
   */
  async commandAndWait(
    path: Path,
    command: PathCommand,
    isDone: (status: PathStatus) => boolean,
  ): Promise<PathStatus> {
    const { generation } = path.status
    const done = this.#until(path, status => status.generation > generation && isDone(status))
    await this.command(path, command)
    return done
  }

  /** Sends a command and resolves once the path is in that state. */
  async commandUntil(path: Path, command: PathCommand, state: PathStatus['state']): Promise<void> {
    await this.command(path, command)
    await this.#until(path, status => status.state === state)
  }

  policyOf(bdev: string): MultipathPolicy {
    const own = this.#policies.get(bdev)
    if (own !== undefined) return own
    const isOf = ({ devices }: NamedController): boolean =>
      [...devices.values()].some(({ name }) => name === bdev)
    return this.list().find(isOf)?.options.policy ?? DEFAULT_POLICY
  }

  /** Those that were set by the device's name. */
  get policies(): ReadonlyMap<string, MultipathPolicy> {
    return this.#policies
  }

  async setPolicy(bdev: string, policy: MultipathPolicy): Promise<void> {
    this.#policies.set(bdev, policy)
    await this.#reactors.broadcast(Topic.POLICY, { bdev, policy })
  }

  /** Detaches everything: for the end of the daemon, when nothing serves the devices any more. */
  async stop(): Promise<void> {
    const services = this.discovery.list().map(({ options }) => options.controller.name)
    await Promise.all(services.map(name => this.discovery.stop(name)))
    await Promise.all([...this.#paths.values()].map(path => this.detachPath(path)))
  }

  /** Asks every reactor; one answer each. */
  askReactors<T>(topic: string, body: unknown): Promise<T[]> {
    return this.#reactors.broadcast<T>(topic, body)
  }

  pathById(pathId: number): Path | undefined {
    return this.#paths.get(pathId)
  }

  async #attachPath(controller: NamedController, options: PathOptions): Promise<BdevInfo[]> {
    const path = new Path(this.#nextPathId++, controller, options)
    const before = new Set(controller.devices.keys())
    controller.paths.push(path)
    this.#paths.set(path.id, path)
    const settled = this.#until(path, ({ state }) => state !== 'connecting')
    this.#reactors.port(this.#homeOf(path.id)).post(Topic.PATH_OPEN, this.#openMessage(path, 'io'))
    const { state, reason } = await settled
    await controller.inTurn(async () => {})
    const isPatient = this.isRestoring || path.isDiscovered
    const isKept = state === 'ready' || (isPatient && state === 'waiting')
    const { host, port } = options.target
    const fault = isKept ? this.#pathFault(path) : `${host} port ${port}: ${reason}`
    const isNew = ([nsid]: [number, BdevInfo]): boolean => !before.has(nsid)
    const devices = [...controller.devices].filter(isNew).map(([, info]) => info)
    const faults = [...path.faults.values(), ...path.status.unusable]
    // A path that leads to something is kept, whatever else is there.
    const unusable = path.accepted.some(({ nsid }) => controller.devices.has(nsid)) ? undefined : faults[0]
    if (fault !== undefined || unusable !== undefined) {
      await this.detachPath(path)
      throw new RpcError(isKept ? 'EINVAL' : 'EIO', `${controller.name}: ${fault ?? unusable}`)
    }
    if (state !== 'ready') log.warning(`${controller.name}: ${reason}; it is tried again`)
    return devices
  }

  #openMessage(path: Path, kind: PathOpen['kind']): PathOpen {
    const { options } = path.controller
    return {
      pathId: path.id,
      kind,
      controller: options.name,
      targets: path.targets,
      source: path.source,
      subnqn: options.subnqn,
      hostnqn: options.hostnqn,
      hostId: hostIdOf(options.hostnqn),
      // Each reactor has one queue to the path; more would not be used.
      ioQueues: this.#reactors.count,
      fabricsTimeoutUs: options.fabricsTimeoutUs,
      disableSqFlowControl: options.disableSqFlowControl,
      reconnect: options.reconnect,
      options: this.options,
    }
  }

  /** What forbids that a path that is ready joins its siblings. */
  #pathFault(path: Path): string | undefined {
    const siblings = path.controller.paths.filter(
      other => other !== path && other.status.controller !== undefined,
    )
    const { controller, namespaces } = path.status
    if (controller === undefined || siblings.length === 0) return undefined
    const { host, port } = path.status.target
    if (!controller.isMultiController) {
      return `the subsystem at ${host} port ${port} does not say that it has several controllers (CMIC)`
    }
    for (const sibling of siblings) {
      const { cntlid } = sibling.status.controller!
      if (cntlid !== controller.cntlid) continue
      const other = sibling.status.target
      return `${host} port ${port} and ${other.host} port ${other.port} both have the controller id ${cntlid}: give the gateways disjoint ranges (min_cntlid, max_cntlid)`
    }
    const rejected = namespaces.find(namespace => !path.accepted.includes(namespace))
    if (rejected === undefined) return undefined
    const known = path.controller.namespace(rejected.nsid)!
    return `namespace ${rejected.nsid} at ${host} port ${port} is not the one of the other paths: ${namespaceMismatch(rejected, known)}`
  }

  #noteStatus(status: PathStatus): void {
    const path = this.#paths.get(status.pathId)
    if (path === undefined) return
    path.status = status
    const { controller } = path
    const follow = this.#followers.get(path)
    if (follow !== undefined) {
      follow(status)
    } else if (!path.isDetaching) {
      const applied = controller.inTurn(() => this.#apply(path, status))
      applied.catch((error: Error) => log.error(`${controller.name}: ${error.stack ?? error.message}`))
    }
    this.#checkWaiters(path)
  }

  #checkWaiters(path: Path): void {
    for (const waiter of this.#waiters) if (waiter.path === path) waiter.check()
  }

  async #apply(path: Path, status: PathStatus): Promise<void> {
    if (path.isDetaching) return
    const { controller } = path
    if (status.state === 'ready') {
      path.accepted = this.#acceptable(path)
      for (const namespace of status.namespaces) {
        const mismatch = this.#conflict(path, namespace)
        if (mismatch === undefined) continue
        const { host, port } = status.target
        const where = `namespace ${namespace.nsid} at ${host} port ${port}`
        log.error(`${controller.name}: ${where} is not the one of the other paths: ${mismatch}`)
      }
    }
    const { options } = controller
    const update: PathUpdate = {
      ...status,
      namespaces: path.accepted,
      name: options.name,
      source: path.source,
      subnqn: options.subnqn,
      hostnqn: options.hostnqn,
      hostId: hostIdOf(options.hostnqn),
      disableSqFlowControl: options.disableSqFlowControl,
    }
    await this.#reactors.broadcast(Topic.PATH_UPDATE, update)
    if (status.state === 'ready') {
      await this.#updateDevices(path, status)
      await this.#reconsiderSiblings(path)
    } else if (status.state === 'lost') {
      path.isDetaching = true
      this.#checkWaiters(path)
      await this.#detach(path)
    }
  }

  /** What makes a namespace another one than that which the paths that are up lead to. */
  #conflict(path: Path, namespace: NamespaceStatus): string | undefined {
    for (const other of path.controller.paths) {
      if (other === path || other.status.state !== 'ready') continue
      const known = other.accepted.find(({ nsid }) => nsid === namespace.nsid)
      const mismatch = known === undefined ? undefined : namespaceMismatch(namespace, known)
      if (mismatch !== undefined) return mismatch
    }
    return undefined
  }

  #acceptable(path: Path): NamespaceStatus[] {
    return path.status.namespaces.filter(namespace => this.#conflict(path, namespace) === undefined)
  }

  /** When a namespace is replaced, one path hears of it first, and is in the wrong until the others have heard too. */
  async #reconsiderSiblings(path: Path): Promise<void> {
    for (const other of path.controller.paths) {
      if (other === path || other.status.state !== 'ready') continue
      if (this.#acceptable(other).length > other.accepted.length) await this.#apply(other, other.status)
    }
  }

  /** Makes the devices be those that the paths lead to. */
  async #updateDevices(path: Path, status: PathStatus): Promise<void> {
    const { controller } = path
    for (const [nsid, info] of [...controller.devices]) {
      const known = path.accepted.find(namespace => namespace.nsid === nsid)
      const origin = controller.origins.get(nsid)!
      // Another namespace under the same number is another device.
      const isGone = known === undefined ? !controller.hasPathTo(nsid) : namespaceMismatch(known, origin)
      if (isGone) {
        await this.#removeDevice(controller, nsid)
      } else if (known !== undefined && known.blockCount !== info.blockCount) {
        await this.#try(`${info.name} cannot be resized`, () =>
          this.#bdevs.resize(info.name, known.blockCount),
        )
      }
    }
    for (const namespace of path.accepted) {
      if (controller.devices.has(namespace.nsid)) continue
      const info = describeDevice(controller, status.controller!, namespace, this)
      const policy = this.#policies.get(info.name) ?? controller.options.policy
      await this.#reactors.broadcast(Topic.POLICY, { bdev: info.name, policy })
      const fault = await this.#try(`${info.name} cannot be made`, () => this.#bdevs.add(info))
      if (fault === undefined) {
        controller.devices.set(namespace.nsid, info)
        controller.origins.set(namespace.nsid, namespace)
      } else {
        path.faults.set(namespace.nsid, fault)
      }
    }
  }

  async #detach(path: Path): Promise<void> {
    // A path may be lost and detached by the operator at once: whoever comes second finds it gone.
    if (!this.#paths.has(path.id)) return
    const { controller } = path
    path.accepted = []
    for (const nsid of [...controller.devices.keys()]) {
      if (!controller.hasPathTo(nsid)) await this.#removeDevice(controller, nsid)
    }
    await this.#reactors.broadcast(Topic.PATH_REMOVE, path.id)
    await this.command(path, { pathId: path.id, command: 'close' })
    this.#paths.delete(path.id)
    controller.paths.splice(controller.paths.indexOf(path), 1)
    this.#followers.delete(path)
    const isLast = controller.paths.length === 0
    if (isLast && this.#controllers.get(controller.name) === controller) {
      this.#controllers.delete(controller.name)
    }
  }

  async #removeDevice(controller: NamedController, nsid: number): Promise<void> {
    const info = controller.devices.get(nsid)!
    controller.devices.delete(nsid)
    controller.origins.delete(nsid)
    if (this.#bdevs.find(info.name) !== undefined) {
      await this.#try(`${info.name} cannot be removed`, () => this.#bdevs.remove(info.name))
    }
    await this.#reactors.broadcast(Topic.POLICY, { bdev: info.name, policy: null })
  }

  /** What is wrong with one device must not hold the others up: answers with it. */
  async #try(what: string, change: () => Promise<void>): Promise<string | undefined> {
    try {
      await change()
      return undefined
    } catch (error) {
      const { message } = error as Error
      log.error(`${what}: ${message}`)
      return message
    }
  }

  /** Resolves once the path's status is like that, or the path is being detached. */
  #until(path: Path, isReached: (status: PathStatus) => boolean): Promise<PathStatus> {
    return new Promise(resolve => {
      const waiter = {
        path,
        check: (): void => {
          if (!isReached(path.status) && !path.isDetaching) return
          this.#waiters.delete(waiter)
          resolve(path.status)
        },
      }
      this.#waiters.add(waiter)
      waiter.check()
    })
  }

  #homeOf(pathId: number): number {
    return pathId % this.#reactors.count
  }

  #passHome(pathId: number, topic: string, body: unknown): void {
    if (this.#paths.has(pathId)) this.#reactors.port(this.#homeOf(pathId)).post(topic, body)
  }
}
