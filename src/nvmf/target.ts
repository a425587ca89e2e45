/**
 * The target, on the control thread: subsystems and what operators do with them. Every change is made here, sent to all
 * reactors as a snapshot, and holds everywhere when the method that made it resolves.
 */
import type { BdevInfo } from '../bdev/bdev.ts'
import type { BdevRegistry } from '../bdev/registry.ts'
import { type Clock, systemClock } from '../core/clock.ts'
import { RpcError } from '../core/errors.ts'
import { logger } from '../core/log.ts'
import type { ReactorGroup } from '../reactor/group.ts'
import type { Configurable, MethodCall } from '../rpc/config.ts'
import type { AnaState } from '../spec/nvme-log.ts'
import { DISCOVERY_NQN } from '../spec/nvmf.ts'
import { formatTransportAddress, type TransportAddress } from './address.ts'
import { targetConfig } from './config.ts'
import { Directory, type DuplicateHostPolicy } from './directory.ts'
import { Discovery } from './discovery.ts'
import { Listeners, type ListeningSockets } from './listeners.ts'
import {
  type AbortOrder,
  type AbortQuestion,
  type ConnectQuestion,
  type DiscoveryFilter,
  type DrainQuestion,
  type EnableMessage,
  type HealthCounters,
  type TargetSnapshot,
  type TargetUpdate,
  Topic,
  type TransportSettings,
} from './messages.ts'
import {
  checkNqn,
  type Namespace,
  type NamespaceOptions,
  Subsystem,
  type SubsystemOptions,
} from './subsystem.ts'

const log = logger('nvmf')

export const MAX_SUBSYSTEMS_DEFAULT = 1024

export interface TargetParts {
  readonly reactors: ReactorGroup
  readonly sockets: ListeningSockets
  readonly bdevs: Pick<BdevRegistry, 'get' | 'claim' | 'listen'>
  /** As hosts see it, eight characters at most. */
  readonly firmwareRevision: string
  readonly clock?: Clock
}

/** What may only be set before the first subsystem is there. */
export interface TargetSettings {
  maxSubsystems: number
  crdt: [number, number, number]
  duplicateHostPolicy: DuplicateHostPolicy
}

export class NvmfTarget implements Configurable {
  readonly subsystem = 'nvmf'
  readonly dependsOn: readonly string[] = ['bdev']
  readonly settings: TargetSettings = {
    maxSubsystems: MAX_SUBSYSTEMS_DEFAULT,
    crdt: [0, 0, 0],
    duplicateHostPolicy: 'allow',
  }
  readonly discovery = new Discovery()
  readonly directory: Directory
  transport: TransportSettings | null = null
  /** Until when subsystems that report ANA states let I/O through, at [0]: see `TargetSnapshot`. */
  readonly lease = new Float64Array(new SharedArrayBuffer(8)).fill(Number.POSITIVE_INFINITY)

  readonly #reactors: ReactorGroup
  readonly #bdevs: TargetParts['bdevs']
  readonly #listeners: Listeners
  readonly #firmwareRevision: string
  /** The discovery subsystem first. */
  readonly #subsystems = new Map<string, Subsystem>()

  constructor({ reactors, sockets, bdevs, firmwareRevision, clock = systemClock }: TargetParts) {
    this.#reactors = reactors
    this.#bdevs = bdevs
    this.#listeners = new Listeners(sockets)
    this.#firmwareRevision = firmwareRevision.slice(0, 8)
    this.directory = new Directory({
      clock,
      maxIoQueues: () => this.transport?.maxIoQpairsPerCtrlr ?? 0,
      duplicateHostPolicy: () => this.settings.duplicateHostPolicy,
      disconnect: (reactor, tokens, reason) =>
        reactors.port(reactor).post(Topic.DISCONNECT, { tokens, reason }),
    })
    const discovery = new Subsystem({ nqn: DISCOVERY_NQN, allow_any_host: true })
    this.#subsystems.set(discovery.nqn, discovery)
    for (let index = 0; index < reactors.count; index++) this.#serve(index)
    bdevs.listen({
      removing: info => this.#bdevRemoving(info),
      resized: info => this.#bdevResized(info),
    })
  }

  // Subsystems.

  /** The discovery subsystem first, then in the order of creation. */
  list(): Subsystem[] {
    return [...this.#subsystems.values()]
  }

  /** Throws INVALID_PARAMS in SPDK's words. `discovery` is short for the discovery subsystem. */
  get(nqn: string): Subsystem {
    const subsystem = this.#subsystems.get(nqn === 'discovery' ? DISCOVERY_NQN : nqn)
    if (subsystem === undefined) throw new RpcError('INVALID_PARAMS', `Subsystem with NQN '${nqn}' not found`)
    return subsystem
  }

  /** A subsystem that has namespaces. */
  getNvm(nqn: string): Subsystem {
    const subsystem = this.get(nqn)
    if (!subsystem.isDiscovery) return subsystem
    throw new RpcError(
      'INVALID_PARAMS',
      `${nqn} is the discovery subsystem, which has no namespaces or hosts of its own`,
    )
  }

  async createSubsystem(options: SubsystemOptions): Promise<void> {
    const subsystem = new Subsystem(options)
    const { nqn } = subsystem
    if (this.#subsystems.has(nqn)) {
      throw new RpcError(
        'INTERNAL',
        `Unable to create subsystem ${nqn}: one of that NQN exists already; choose another, or delete that one first`,
      )
    }
    const { maxSubsystems } = this.settings
    if (this.#subsystems.size >= maxSubsystems) {
      throw new RpcError(
        'INTERNAL',
        `Unable to create subsystem ${nqn}: there are ${this.#subsystems.size} of at most ${maxSubsystems} already; ` +
          'raise the limit with nvmf_set_max_subsystems before start',
      )
    }
    this.#subsystems.set(nqn, subsystem)
    await this.#publish({ subsystem: subsystem.snapshot() })
  }

  async deleteSubsystem(nqn: string): Promise<void> {
    const subsystem = this.getNvm(nqn)
    // No host gets in from here on, and none is told of the subsystem.
    this.#subsystems.delete(subsystem.nqn)
    this.discovery.changed()
    const controllers = this.directory.controllers(subsystem)
    await this.directory.endControllers(controllers, `subsystem ${subsystem.nqn} is deleted`)
    await this.#publish({ removed: subsystem.nqn })
    this.directory.forget(subsystem)
    for (const { claim } of subsystem.namespaces.values()) claim.release()
    for (const id of subsystem.listeners.keys()) await this.#unlisten(id)
    await this.#publish({})
  }

  // Transport and listeners.

  async createTransport(settings: TransportSettings): Promise<void> {
    this.transport = settings
    await this.#publish({ subsystem: this.get(DISCOVERY_NQN).snapshot() })
  }

  async addListener(nqn: string, address: TransportAddress, anaState: AnaState): Promise<void> {
    const subsystem = this.get(nqn)
    if (this.transport === null) {
      throw new RpcError(
        'INVALID_PARAMS',
        `there is no TCP transport for listener ${formatTransportAddress(address)}: create it first with nvmf_create_transport`,
      )
    }
    if (subsystem.listenerAt(address) !== undefined) {
      throw new RpcError(
        'INVALID_PARAMS',
        `Listener already exists: subsystem ${subsystem.nqn} listens at ${formatTransportAddress(address)}`,
      )
    }
    const listener = await this.#listeners.open(address)
    subsystem.addListener(listener.id, listener.address, anaState)
    this.discovery.changed()
    await this.#publish({ subsystem: subsystem.snapshot() })
    log.notice(`${subsystem.nqn} listens at ${formatTransportAddress(listener.address)}`)
  }

  async removeListener(nqn: string, address: TransportAddress): Promise<void> {
    const subsystem = this.get(nqn)
    const { id } = subsystem.requireListener(address)
    subsystem.listeners.delete(id)
    this.discovery.changed()
    await this.#publish({ subsystem: subsystem.snapshot() })
    const affected = this.directory.controllers(subsystem).filter(({ listenerId }) => listenerId === id)
    await this.directory.endControllers(affected, `listener ${formatTransportAddress(address)} is removed`)
    await this.#unlisten(id)
  }

  async setAnaState(
    nqn: string,
    address: TransportAddress,
    state: AnaState,
    anagrpid: number | undefined,
  ): Promise<void> {
    const subsystem = this.getNvm(nqn)
    const listener = subsystem.requireListener(address)
    if (!subsystem.anaReporting) {
      throw new RpcError(
        'INVALID_PARAMS',
        `subsystem ${nqn} does not report ANA states, so its hosts would not hear of one: ` +
          'create it with ana_reporting (nvmf_create_subsystem -r)',
      )
    }
    if (anagrpid !== undefined) subsystem.checkAnaGroup(anagrpid)
    subsystem.setAnaState(listener, state, anagrpid)
    await this.#publish({ subsystem: subsystem.snapshot() })
  }

  /** Sets the state of every group on every listener. */
  async setAnaStates(nqn: string, stateOf: (anagrpid: number) => AnaState): Promise<void> {
    const subsystem = this.getNvm(nqn)
    let isChanged = false
    for (const listener of subsystem.listeners.values()) {
      const states = Uint8Array.from(listener.anaStates, (_, index) => stateOf(index + 1))
      if (states.every((state, index) => state === listener.anaStates[index])) continue
      listener.anaStates.set(states)
      listener.anaChanges++
      isChanged = true
    }
    if (isChanged) await this.#publish({ subsystem: subsystem.snapshot() })
  }

  /** Resolves when nothing is outstanding on the namespaces of those groups, which let nothing through any more. */
  async drain(nqn: string, anagrpids: readonly number[]): Promise<void> {
    await this.#reactors.broadcast(Topic.DRAIN, { nqn, anagrpids } satisfies DrainQuestion)
  }

  /** Ends the controllers of a subsystem; hosts may connect again at once. */
  async disconnectHosts(nqn: string, reason: string): Promise<void> {
    await this.directory.endControllers(this.directory.controllers(this.get(nqn)), reason)
  }

  // Namespaces.

  /** Resolves with the nsid. */
  async addNamespace(nqn: string, options: NamespaceOptions): Promise<number> {
    const subsystem = this.getNvm(nqn)
    const plan = subsystem.planNamespace(options)
    const bdev = this.#bdevs.get(options.bdev_name)
    if (this.transport !== null && bdev.blockSize > this.transport.maxIoSize) {
      throw new RpcError(
        'INVALID_PARAMS',
        `bdev ${bdev.name} has blocks of ${bdev.blockSize} bytes, more than the transport's max_io_size ${this.transport.maxIoSize}`,
      )
    }
    subsystem.checkBdev(bdev)
    const claim = this.#bdevs.claim(bdev.name, `subsystem ${subsystem.nqn}`, 'exclusive_write')
    subsystem.addNamespace(options, plan, bdev, claim)
    await this.#publish({ subsystem: subsystem.snapshot() })
    warnOfHeldWrites(plan.nsid, subsystem, bdev)
    return plan.nsid
  }

  async removeNamespace(nqn: string, nsid: number): Promise<void> {
    const subsystem = this.getNvm(nqn)
    await this.#removeNamespace(subsystem, subsystem.namespace(nsid))
  }

  async setNamespaceAnaGroup(nqn: string, nsid: number, anagrpid: number): Promise<void> {
    const subsystem = this.getNvm(nqn)
    const namespace = subsystem.namespace(nsid)
    subsystem.checkAnaGroup(anagrpid)
    namespace.anagrpid = anagrpid
    await this.#publish({ subsystem: subsystem.snapshot() })
  }

  /** Shows a namespace to a host, or hides it. Only for namespaces that not every host sees. */
  async setNamespaceVisible(nqn: string, nsid: number, host: string, isVisible: boolean): Promise<void> {
    const subsystem = this.getNvm(nqn)
    const namespace = subsystem.namespace(nsid)
    checkNqn(host, 'host')
    if (!namespace.noAutoVisible) {
      throw new RpcError(
        'INVALID_PARAMS',
        `namespace ${nsid} of subsystem ${nqn} is visible to every host: add it with no_auto_visible to choose them`,
      )
    }
    if (isVisible) namespace.hosts.add(host)
    else if (!namespace.hosts.delete(host)) {
      throw new RpcError(
        'INVALID_PARAMS',
        `namespace ${nsid} of subsystem ${nqn} is not shown to host ${host}`,
      )
    }
    await this.#publish({ subsystem: subsystem.snapshot() })
  }

  // Hosts.

  async addHost(nqn: string, host: string): Promise<void> {
    const subsystem = this.getNvm(nqn)
    checkNqn(host, 'host')
    if (subsystem.hosts.has(host)) {
      throw new RpcError('INVALID_PARAMS', `subsystem ${nqn} allows host ${host} already`)
    }
    subsystem.hosts.add(host)
    this.discovery.changed()
    await this.#publish({ subsystem: subsystem.snapshot() })
  }

  /** Its controllers end, unless any host is allowed; resolves when they have. */
  async removeHost(nqn: string, host: string, timeoutMs: number | undefined): Promise<void> {
    const subsystem = this.getNvm(nqn)
    if (!subsystem.hosts.delete(host)) {
      throw new RpcError('INVALID_PARAMS', `host ${host} is not in the list of subsystem ${nqn}`)
    }
    this.discovery.changed()
    await this.#publish({ subsystem: subsystem.snapshot() })
    const isEnded = await this.#endForbidden(subsystem, timeoutMs)
    if (!isEnded) {
      throw new RpcError(
        'INTERNAL',
        `Timeout reached during host removal: ${host} still has queues of ${nqn}`,
      )
    }
  }

  async allowAnyHost(nqn: string, isAllowed: boolean): Promise<void> {
    const subsystem = this.getNvm(nqn)
    subsystem.allowAnyHost = isAllowed
    this.discovery.changed()
    await this.#publish({ subsystem: subsystem.snapshot() })
    await this.#endForbidden(subsystem)
  }

  // Discovery.

  async addReferral(
    address: TransportAddress,
    subnqn: string | undefined,
    secureChannel: boolean,
  ): Promise<void> {
    if (!this.discovery.addReferral(address, subnqn, secureChannel)) return
    this.discovery.changed()
    await this.#publish({})
  }

  async removeReferral(address: TransportAddress, subnqn: string | undefined): Promise<void> {
    this.discovery.removeReferral(address, subnqn)
    this.discovery.changed()
    await this.#publish({})
  }

  setDiscoveryFilter(filter: DiscoveryFilter): void {
    this.discovery.filter = filter
  }

  config(): MethodCall[] {
    return targetConfig(this)
  }

  /** Takes no more hosts, and ends those that are here. */
  async stop(): Promise<void> {
    for (const subsystem of this.list()) {
      for (const id of subsystem.listeners.keys()) await this.#unlisten(id)
      subsystem.listeners.clear()
    }
    const controllers = this.list().flatMap(subsystem => this.directory.controllers(subsystem))
    await this.directory.endControllers(controllers, 'the target stops')
  }

  /** Answers of every reactor, in the order of their numbers. */
  stats<T>(): Promise<T[]> {
    return this.#reactors.broadcast<T>(Topic.STATS, null)
  }

  #serve(reactor: number): void {
    const port = this.#reactors.port(reactor)
    port.on<ConnectQuestion>(Topic.CONNECT, question =>
      this.directory.connect(question, reactor, this.#subsystems.get(question.subnqn)),
    )
    port.on<EnableMessage>(Topic.ENABLE, ({ token, isEnabled }) =>
      this.directory.setEnabled(token, isEnabled),
    )
    port.on<number>(Topic.CLOSED, token => this.directory.closed(token))
    port.on<string>(Topic.RESET, nqn => void this.#resetSubsystem(nqn))
    port.on<string>(Topic.CONTROLLERS, nqn => this.#controllerIds(nqn))
    port.on<AbortQuestion>(Topic.ABORT, question => this.#abort(question))
    port.on<string>(Topic.HEALTH, nqn => this.#health(nqn))
  }

  #controllerIds(nqn: string): number[] {
    const subsystem = this.#subsystems.get(nqn)
    return subsystem === undefined ? [] : this.directory.controllers(subsystem).map(({ cntlid }) => cntlid)
  }

  async #resetSubsystem(nqn: string): Promise<void> {
    const subsystem = this.#subsystems.get(nqn)
    if (subsystem === undefined) return
    const controllers = this.directory.controllers(subsystem)
    await this.directory.endControllers(controllers, `a host resets subsystem ${nqn}`)
  }

  async #abort({ token, sqid, cid }: AbortQuestion): Promise<boolean> {
    const queue = this.directory.queue(token)?.controller.queues.get(sqid)
    if (queue === undefined) return false
    const order: AbortOrder = { token: queue.token, cid }
    return this.#reactors.port(queue.reactor).call<boolean>(Topic.ABORT, order)
  }

  async #health(nqn: string): Promise<HealthCounters> {
    const sum = { bytesRead: 0, bytesWritten: 0, reads: 0, writes: 0, busyUs: 0 }
    for (const part of await this.#reactors.broadcast<HealthCounters | undefined>(Topic.HEALTH, nqn)) {
      if (part === undefined) continue
      sum.bytesRead += part.bytesRead
      sum.bytesWritten += part.bytesWritten
      sum.reads += part.reads
      sum.writes += part.writes
      sum.busyUs += part.busyUs
    }
    return sum
  }

  #endForbidden(subsystem: Subsystem, timeoutMs?: number): Promise<boolean> {
    const forbidden = this.directory
      .controllers(subsystem)
      .filter(({ hostnqn }) => !subsystem.allows(hostnqn))
    return this.directory.endControllers(
      forbidden,
      `the host may no longer use subsystem ${subsystem.nqn}`,
      timeoutMs,
    )
  }

  async #unlisten(id: number): Promise<void> {
    if (await this.#listeners.close(id)) await this.#reactors.broadcast(Topic.UNLISTEN, id)
  }

  async #removeNamespace(subsystem: Subsystem, namespace: Namespace): Promise<void> {
    subsystem.namespaces.delete(namespace.nsid)
    await this.#publish({ subsystem: subsystem.snapshot() })
    namespace.claim.release()
  }

  async #bdevRemoving(info: BdevInfo): Promise<void> {
    for (const subsystem of this.list()) {
      for (const namespace of [...subsystem.namespaces.values()]) {
        if (namespace.bdev.name !== info.name) continue
        log.notice(`namespace ${namespace.nsid} of ${subsystem.nqn} goes with its bdev ${info.name}`)
        await this.#removeNamespace(subsystem, namespace)
      }
    }
  }

  #bdevResized(info: BdevInfo): void {
    for (const subsystem of this.list()) {
      const isConcerned = [...subsystem.namespaces.values()].some(({ bdev }) => bdev.name === info.name)
      if (!isConcerned) continue
      this.#publish({ subsystem: subsystem.snapshot() }).catch((error: Error) => {
        log.error(`hosts of ${subsystem.nqn} were not told of the new size of ${info.name}: ${error.message}`)
      })
    }
  }

  /** Sends a change to all reactors; it holds when this resolves. */
  async #publish(change: Omit<TargetUpdate, 'target'>): Promise<void> {
    await this.#reactors.broadcast(Topic.UPDATE, {
      target: this.#snapshot(),
      ...change,
    } satisfies TargetUpdate)
  }

  #snapshot(): TargetSnapshot {
    return {
      genctr: this.discovery.genctr,
      referrals: this.discovery.referrals,
      discoveryFilter: this.discovery.filter,
      transport: this.transport,
      listeners: this.#listeners.list(),
      firmwareRevision: this.#firmwareRevision,
      crdt: this.settings.crdt,
      lease: this.lease.buffer,
    }
  }
}

function warnOfHeldWrites(nsid: number, { nqn }: Subsystem, { name, privateCache }: BdevInfo): void {
  if (privateCache === undefined || privateCache.heldBytesMax === 0) return
  log.warning(
    `namespace ${nsid} of ${nqn}: bdev ${name} keeps acknowledged writes in this daemon's memory until a flush ` +
      `(${privateCache.what}): hosts that connect again after a crash are not told that they are lost`,
  )
}
