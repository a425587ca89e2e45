/**
 * NVMe controllers by name, on the control thread: attaches and detaches paths, watches that all paths of a name lead to
 * the same namespaces, makes and removes their devices, and tells every reactor how each path is.
 */
import type { BdevInfo } from '../bdev/bdev.ts'
import type { BdevRegistry } from '../bdev/registry.ts'
import { RpcError } from '../core/errors.ts'
import { logger } from '../core/log.ts'
import type { ReactorGroup } from '../reactor/group.ts'
import type { SocketAddress } from '../reactor/network.ts'
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
  Topic,
} from './messages.ts'
import {
  type ControllerOptions,
  describeDevice,
  NamedController,
  namespaceMismatch,
  Path,
} from './named-controller.ts'

const log = logger('nvme')

export class NvmeControllers {
  /**
   * While a saved configuration is replayed: a path that cannot be reached is kept, and tried again as its options say,
   * instead of being refused.
   */
  isRestoring = false
  options: HostOptions = DEFAULT_HOST_OPTIONS

  readonly #bdevs: BdevRegistry
  readonly #reactors: ReactorGroup
  readonly #controllers = new Map<string, NamedController>()
  readonly #paths = new Map<number, Path>()
  /** Those who wait for a path's status to change. */
  readonly #waiters = new Set<{ readonly path: Path; check(): void }>()
  #nextPathId = 1

  constructor(bdevs: BdevRegistry, reactors: ReactorGroup) {
    this.#bdevs = bdevs
    this.#reactors = reactors
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
    const names = [...this.#controllers.keys()].join(', ') || 'none yet'
    throw new RpcError('ENODEV', `there is no NVMe controller ${name}: there is ${names}`)
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

  /** Makes a controller with its first path. Resolves with the new devices; throws `RpcError` EIO with the reason. */
  async attach(options: ControllerOptions, target: SocketAddress): Promise<BdevInfo[]> {
    const controller = new NamedController(options)
    this.#controllers.set(controller.name, controller)
    return this.#attachPath(controller, target)
  }

  /** Adds a path to a controller. In failover mode that is an address to turn to. */
  async addPath(controller: NamedController, target: SocketAddress): Promise<BdevInfo[]> {
    const first = controller.paths[0]
    if (controller.options.mode !== 'failover' || first === undefined) {
      return this.#attachPath(controller, target)
    }
    first.targets.push(target)
    await this.command(first, { pathId: first.id, command: 'add-target', target })
    return []
  }

  /** Takes a path away; with the last one go the controller and its devices. */
  async detachPath(path: Path): Promise<void> {
    if (path.isDetaching) return
    path.isDetaching = true
    const { controller } = path
    controller.work = controller.work.then(() => this.#detach(path))
    await controller.work
  }

  /** Takes one of several addresses of a failover path away. */
  async removeTarget(path: Path, target: SocketAddress): Promise<void> {
    path.targets = path.targets.filter(other => other.host !== target.host || other.port !== target.port)
    await this.command(path, { pathId: path.id, command: 'remove-target', target })
  }

  /** Sends a command to the path's home. */
  command<T = void>(path: Path, command: PathCommand): Promise<T> {
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

  async setPolicy(controller: NamedController, bdev: string, policy: MultipathPolicy): Promise<void> {
    controller.policies.set(bdev, policy)
    await this.#reactors.broadcast(Topic.POLICY, { bdev, policy })
  }

  /** Asks every reactor; one answer each. */
  askReactors<T>(topic: string, body: unknown): Promise<T[]> {
    return this.#reactors.broadcast<T>(topic, body)
  }

  pathById(pathId: number): Path | undefined {
    return this.#paths.get(pathId)
  }

  async #attachPath(controller: NamedController, target: SocketAddress): Promise<BdevInfo[]> {
    const path = new Path(this.#nextPathId++, controller, target)
    const before = new Set(controller.devices.keys())
    controller.paths.push(path)
    this.#paths.set(path.id, path)
    const settled = this.#until(path, ({ state }) => state !== 'connecting')
    this.#reactors.port(this.#homeOf(path.id)).post(Topic.PATH_OPEN, this.#openMessage(path, target))
    const { state, reason } = await settled
    await controller.work
    const isKept = state === 'ready' || (this.isRestoring && state === 'waiting')
    const fault = isKept
      ? this.#pathFault(path)
      : `connecting to ${target.host} port ${target.port}: ${reason}`
    if (fault !== undefined) {
      await this.detachPath(path)
      throw new RpcError(isKept ? 'EINVAL' : 'EIO', `${controller.name}: ${fault}`)
    }
    if (state !== 'ready') log.warning(`${controller.name}: ${reason}; it is tried again`)
    return [...controller.devices].filter(([nsid]) => !before.has(nsid)).map(([, info]) => info)
  }

  #openMessage(path: Path, target: SocketAddress): PathOpen {
    const { options } = path.controller
    return {
      pathId: path.id,
      controller: options.name,
      targets: [target],
      source: options.source,
      subnqn: options.subnqn,
      hostnqn: options.hostnqn,
      hostId: hostIdOf(options.hostnqn),
      // Each reactor has one queue to the path; more would not be used.
      ioQueues: this.#reactors.count,
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
    if (!path.isDetaching) {
      // What goes wrong here concerns one namespace, and has been said there.
      controller.work = controller.work.then(() => this.#apply(path, status))
    }
    for (const waiter of this.#waiters) if (waiter.path === path) waiter.check()
  }

  async #apply(path: Path, status: PathStatus): Promise<void> {
    if (path.isDetaching) return
    const { controller } = path
    if (status.state === 'lost') {
      path.isDetaching = true
      await this.#detach(path)
      return
    }
    if (status.state === 'ready') {
      path.wasReady = true
      path.accepted = status.namespaces.filter(namespace => this.#accepts(path, namespace))
    }
    const { options } = controller
    const update: PathUpdate = {
      ...status,
      namespaces: path.accepted,
      name: options.name,
      source: options.source,
      subnqn: options.subnqn,
      hostnqn: options.hostnqn,
      hostId: hostIdOf(options.hostnqn),
      disableSqFlowControl: options.disableSqFlowControl,
    }
    await this.#reactors.broadcast(Topic.PATH_UPDATE, update)
    if (status.state === 'ready') await this.#updateDevices(path, status)
  }

  #accepts(path: Path, namespace: NamespaceStatus): boolean {
    for (const other of path.controller.paths) {
      const known = other === path ? undefined : other.accepted.find(({ nsid }) => nsid === namespace.nsid)
      const mismatch = known === undefined ? undefined : namespaceMismatch(namespace, known)
      if (mismatch === undefined) continue
      const { host, port } = path.status.target
      log.error(
        `${path.controller.name}: namespace ${namespace.nsid} at ${host} port ${port} is another one: ${mismatch}`,
      )
      return false
    }
    return true
  }

  /** Makes the devices be those that the paths lead to. */
  async #updateDevices(path: Path, status: PathStatus): Promise<void> {
    const { controller } = path
    for (const [nsid, info] of [...controller.devices]) {
      const known = path.accepted.find(namespace => namespace.nsid === nsid)
      const isSame = known === undefined || known.blockSize === info.blockSize
      if (known === undefined ? !controller.hasPathTo(nsid) : !isSame) {
        await this.#removeDevice(controller, nsid)
      } else if (known !== undefined && known.blockCount !== info.blockCount) {
        await this.#try(`${info.name} cannot be resized`, () =>
          this.#bdevs.resize(info.name, known.blockCount),
        )
      }
    }
    for (const namespace of path.accepted) {
      if (controller.devices.has(namespace.nsid)) continue
      const info = describeDevice(controller, status.controller!, namespace)
      const isAdded = await this.#try(`${info.name} cannot be made`, () => this.#bdevs.add(info))
      if (isAdded) controller.devices.set(namespace.nsid, info)
    }
  }

  async #detach(path: Path): Promise<void> {
    const { controller } = path
    path.accepted = []
    for (const nsid of [...controller.devices.keys()]) {
      if (!controller.hasPathTo(nsid)) await this.#removeDevice(controller, nsid)
    }
    await this.#reactors.broadcast(Topic.PATH_REMOVE, path.id)
    await this.command(path, { pathId: path.id, command: 'close' })
    this.#paths.delete(path.id)
    controller.paths.splice(controller.paths.indexOf(path), 1)
    if (controller.paths.length === 0) this.#controllers.delete(controller.name)
  }

  async #removeDevice(controller: NamedController, nsid: number): Promise<void> {
    const info = controller.devices.get(nsid)!
    controller.devices.delete(nsid)
    controller.policies.delete(info.name)
    if (this.#bdevs.find(info.name) !== undefined) {
      await this.#try(`${info.name} cannot be removed`, () => this.#bdevs.remove(info.name))
    }
    await this.#reactors.broadcast(Topic.POLICY, { bdev: info.name, policy: null })
  }

  /** What is wrong with one device must not hold the others up. */
  async #try(what: string, change: () => Promise<void>): Promise<boolean> {
    try {
      await change()
      return true
    } catch (error) {
      log.error(`${what}: ${(error as Error).message}`)
      return false
    }
  }

  #until(path: Path, isReached: (status: PathStatus) => boolean): Promise<PathStatus> {
    return new Promise(resolve => {
      const waiter = {
        path,
        check: (): void => {
          if (!isReached(path.status)) return
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
