/**
 * A controller, on the reactor of its admin queue: what each admin command does, and what its host must hear when the
 * subsystem changes. I/O queues may live on other reactors; the directory of the control thread ends them.
 */

import type { Clock } from '../core/clock.ts'
import { logger } from '../core/log.ts'
import { AbortSqe, AdminOpcode, Sqe } from '../spec/nvme.ts'
import { Status } from '../spec/nvme-status.ts'
import { FABRICS_OPCODE, FabricsSqe, FabricsStatus, FabricsType } from '../spec/nvmf.ts'
import { AsyncEvents, Notices } from './admin/async-events.ts'
import { ErrorLog } from './admin/error-log.ts'
import { type FeatureHost, Features } from './admin/features.ts'
import { type Identity, identify, supportedEvents } from './admin/identify.ts'
import { getLogPage, type LogSource } from './admin/log-pages.ts'
import { Properties, type PropertyEffects } from './admin/properties.ts'
import { answer, refuse, SUCCESS } from './completion.ts'
import { KeepAlive } from './keep-alive.ts'
import type {
  ConnectQuestion,
  HealthCounters,
  ListenerSnapshot,
  NamespaceSnapshot,
  SubsystemSnapshot,
  TargetSnapshot,
  TransportSettings,
} from './messages.ts'
import { anaStateAt, isVisible } from './replica.ts'
import type { AdminQueue, CommandRequest, Completion, Connection } from './request.ts'

const log = logger('nvmf')

/** A discovery controller without keep alive ends when it is silent for so long: its host may be gone for good. */
const DISCOVERY_SILENCE_MS = 120_000

/** How long a host that is setting up a controller has for its next command, when that controller is ended. */
const FAREWELL_MS = 1000

/** What a controller asks of the rest of the target. */
export interface ControllerHost {
  readonly clock: Clock
  readonly target: TargetSnapshot
  /** How long the target has been there. */
  readonly uptimeMs: number
  discoveryLog(controller: Controller): Uint8Array
  /** CC.EN changed; resolves when I/O queues may connect, or when all have ended. */
  setEnabled(controller: Controller, isEnabled: boolean): Promise<void>
  /** Ends all controllers of the subsystem. */
  resetSubsystem(controller: Controller): void
  /** Asks for the end of a command on an I/O queue, wherever that is: true when it was ended early. */
  abort(controller: Controller, sqid: number, cid: number): Promise<boolean>
  health(controller: Controller): Promise<HealthCounters>
  controllers(controller: Controller): Promise<readonly number[]>
  /** The connection is over. */
  ended(controller: Controller): void
}

export interface ControllerOptions {
  readonly token: number
  readonly cntlid: number
  readonly question: ConnectQuestion
  readonly connection: Connection
  readonly subsystem: SubsystemSnapshot
  readonly transport: TransportSettings
  readonly traffic: SharedArrayBuffer
  readonly katoMs: number
}

export class Controller implements AdminQueue, Identity, LogSource, FeatureHost, PropertyEffects {
  readonly token: number
  readonly cntlid: number
  readonly hostnqn: string
  readonly hostid: Uint8Array
  readonly connection: Connection
  readonly transport: TransportSettings
  readonly errors = new ErrorLog()
  readonly changedNamespaces = new Set<number>()
  subsystem: SubsystemSnapshot

  readonly #host: ControllerHost
  readonly #traffic: Int32Array
  readonly #keepAlive: KeepAlive
  readonly #events: AsyncEvents
  readonly #properties: Properties
  readonly #features: Features
  #isClosed = false
  /** The host asked for no keep alive, and its silence is watched all the same. */
  #isSilenceWatched = false

  constructor(options: ControllerOptions, host: ControllerHost) {
    const { question, subsystem, transport } = options
    this.token = options.token
    this.cntlid = options.cntlid
    this.hostnqn = question.hostnqn
    this.hostid = Buffer.from(question.hostid, 'hex')
    this.connection = options.connection
    this.transport = transport
    this.subsystem = subsystem
    this.#host = host
    this.#traffic = new Int32Array(options.traffic)
    this.#events = new AsyncEvents(supportedEvents(subsystem))
    this.defaultKatoMs = options.katoMs
    this.#keepAlive = new KeepAlive({
      clock: host.clock,
      traffic: this.#traffic,
      kas: transport.kas,
      minKatoMs: transport.minKatoMs,
      expired: () => this.#expired(),
    })
    this.#properties = new Properties(
      { maxQueueDepth: transport.maxQueueDepth, enableNssr: subsystem.enableNssr },
      this,
    )
    this.#features = new Features(this)
    this.#startKeepAlive(options.katoMs)
  }

  // What features, log pages and Identify ask of the controller.

  readonly defaultKatoMs: number

  get isDiscovery(): boolean {
    return this.subsystem.isDiscovery
  }

  get target(): TargetSnapshot {
    return this.#host.target
  }

  get firmwareRevision(): string {
    return this.#host.target.firmwareRevision
  }

  get uptimeMs(): number {
    return this.#host.uptimeMs
  }

  get maxIoQueues(): number {
    return this.transport.maxIoQpairsPerCtrlr
  }

  get supportedEvents(): number {
    return supportedEvents(this.subsystem)
  }

  get defaultEvents(): number {
    return this.supportedEvents
  }

  get eventConfiguration(): number {
    return this.#events.configuration
  }

  set eventConfiguration(value: number) {
    this.#events.configuration = value
  }

  get katoMs(): number {
    return this.#isSilenceWatched ? 0 : this.#keepAlive.katoMs
  }

  set katoMs(value: number) {
    this.#startKeepAlive(value)
  }

  get supportedFeatures(): { fid: number; isChangeable: boolean }[] {
    return this.#features.supported
  }

  get listener(): ListenerSnapshot | undefined {
    return listenerOf(this.subsystem, this.connection.listenerId)
  }

  get namespaces(): readonly NamespaceSnapshot[] {
    return visibleTo(this.subsystem, this.hostnqn)
  }

  health(): Promise<HealthCounters> {
    return this.#host.health(this)
  }

  controllers(): Promise<readonly number[]> {
    return this.#host.controllers(this)
  }

  discoveryLog(): Uint8Array {
    return this.#host.discoveryLog(this)
  }

  logPageRead(lid: number): void {
    this.#events.logPageRead(lid)
    if (lid === Notices.NAMESPACES.lid) this.changedNamespaces.clear()
  }

  // What a host does with properties.

  async enable(): Promise<void> {
    await this.#host.setEnabled(this, true)
  }

  async reset(): Promise<void> {
    await this.#host.setEnabled(this, false)
    this.#events.reset(this.defaultEvents)
    this.changedNamespaces.clear()
  }

  async shutdown(): Promise<void> {
    await this.#host.setEnabled(this, false)
  }

  resetSubsystem(): void {
    this.#host.resetSubsystem(this)
  }

  // What the target tells.

  /** The subsystem has changed: finds what this host has to hear. */
  apply(next: SubsystemSnapshot): void {
    const last = this.subsystem
    const before = this.namespaces
    const listenerBefore = this.listener
    this.subsystem = next
    const after = this.namespaces
    const changed = changedNamespaces(before, after)
    for (const nsid of changed) this.changedNamespaces.add(nsid)
    if (changed.length > 0) this.#events.notify(Notices.NAMESPACES)
    const statesBefore = anaStates(last, listenerBefore, before)
    const statesAfter = anaStates(next, this.listener, after)
    if (next.anaReporting && statesBefore !== statesAfter) this.#events.notify(Notices.ANA)
  }

  discoveryLogChanged(): void {
    if (this.isDiscovery) this.#events.notify(Notices.DISCOVERY)
  }

  // The admin queue.

  noteTraffic(): void {
    this.#traffic[0] = 1
  }

  execute(request: CommandRequest): void {
    const { sqe } = request
    const opcode = Sqe.opcode.get(sqe, 0)
    if (this.#isClosed) {
      // Without Do Not Retry: the host is to come back.
      request.complete({ status: Status.INTERNAL_PATH_ERROR })
      this.connection.disconnect('its host has heard that the controller is gone')
    } else if (opcode === FABRICS_OPCODE) this.#run(request, () => this.#fabrics(request))
    else if (!this.#properties.isReady) this.#finish(request, refuse(Status.COMMAND_SEQUENCE_ERROR))
    else if (opcode === AdminOpcode.ASYNC_EVENT_REQUEST) this.#events.add(request)
    else this.#run(request, () => this.#admin(opcode, request))
  }

  /**
   * Ends the controller at once, and its connection when the host will notice. One that still sets the controller up,
   * before its first Asynchronous Event Request, hears it as the answer to its next command: Linux waits 60 s for that
   * answer, and does not look meanwhile whether the connection still stands.
   */
  end(reason: string): void {
    if (this.#events.wasAsked) {
      this.connection.disconnect(reason)
      return
    }
    this.closed()
    this.#host.clock.after(FAREWELL_MS, () => this.connection.disconnect(reason))
  }

  closed(): void {
    if (this.#isClosed) return
    this.#isClosed = true
    this.#keepAlive.stop()
    this.#events.forget()
    this.#host.ended(this)
  }

  #run(request: CommandRequest, execute: () => Completion | Promise<Completion>): void {
    const completion = execute()
    if (!(completion instanceof Promise)) {
      this.#finish(request, completion)
      return
    }
    completion.then(
      result => this.#finish(request, result),
      error => {
        log.error(`controller ${this.cntlid} of ${this.subsystem.nqn}: ${(error as Error).message}`)
        this.#finish(request, { status: Status.INTERNAL_ERROR })
      },
    )
  }

  #finish(request: CommandRequest, completion: Completion): void {
    if (completion.status !== Status.SUCCESS) this.errors.add(request, completion)
    request.complete(completion)
  }

  #fabrics(request: CommandRequest): Completion | Promise<Completion> {
    switch (FabricsSqe.fctype.get(request.sqe, 0)) {
      case FabricsType.PROPERTY_GET:
        return this.#properties.get(request)
      case FabricsType.PROPERTY_SET:
        return this.#properties.set(request)
      case FabricsType.CONNECT:
        return refuse(Status.COMMAND_SEQUENCE_ERROR)
      case FabricsType.DISCONNECT:
        // It deletes I/O queues only.
        return refuse(FabricsStatus.INVALID_QUEUE_TYPE)
      default:
        return refuse(Status.INVALID_OPCODE)
    }
  }

  #admin(opcode: number, request: CommandRequest): Completion | Promise<Completion> {
    switch (opcode) {
      case AdminOpcode.IDENTIFY:
        return identify(request, this)
      case AdminOpcode.GET_LOG_PAGE:
        return getLogPage(request, this)
      case AdminOpcode.GET_FEATURES:
        return this.#features.get(request)
      case AdminOpcode.SET_FEATURES:
        return this.#features.set(request)
      case AdminOpcode.KEEP_ALIVE:
        return SUCCESS
      case AdminOpcode.ABORT:
        return this.#abort(request)
      default:
        return refuse(Status.INVALID_OPCODE)
    }
  }

  async #abort({ sqe }: CommandRequest): Promise<Completion> {
    const sqid = AbortSqe.sqid.get(sqe, 0)
    const cid = AbortSqe.abortCid.get(sqe, 0)
    const isAborted = sqid === 0 ? this.#events.abort(cid) : await this.#host.abort(this, sqid, cid)
    return answer(isAborted ? 0 : 1)
  }

  #startKeepAlive(katoMs: number): void {
    this.#isSilenceWatched = this.isDiscovery && katoMs === 0
    this.#keepAlive.start(this.#isSilenceWatched ? DISCOVERY_SILENCE_MS : katoMs)
  }

  #expired(): void {
    const reason = `nothing was heard for ${this.#keepAlive.katoMs} ms`
    log.warning(`controller ${this.cntlid} of ${this.subsystem.nqn}: ${this.hostnqn} is lost, ${reason}`)
    this.#properties.setFatal()
    this.connection.disconnect(reason)
    // The I/O queues end now, however long the admin connection takes.
    this.closed()
  }
}

const listenerOf = (subsystem: SubsystemSnapshot, id: number): ListenerSnapshot | undefined =>
  subsystem.listeners.find(listener => listener.id === id)

const visibleTo = (subsystem: SubsystemSnapshot, hostnqn: string): NamespaceSnapshot[] =>
  subsystem.namespaces.filter(namespace => isVisible(namespace, hostnqn)).sort((a, b) => a.nsid - b.nsid)

/** Namespaces that came, went or are not what they were; the ANA group is told of by the ANA log. */
function changedNamespaces(
  before: readonly NamespaceSnapshot[],
  after: readonly NamespaceSnapshot[],
): number[] {
  const last = new Map(before.map(namespace => [namespace.nsid, namespace]))
  const changed: number[] = []
  for (const namespace of after) {
    const old = last.get(namespace.nsid)
    last.delete(namespace.nsid)
    const isSame = old?.generation === namespace.generation && old.blockCount === namespace.blockCount
    if (!isSame) changed.push(namespace.nsid)
  }
  return [...changed, ...last.keys()]
}

/** The content of the ANA log, as far as it can change. */
function anaStates(
  subsystem: SubsystemSnapshot,
  listener: ListenerSnapshot | undefined,
  namespaces: readonly NamespaceSnapshot[],
): string {
  return namespaces
    .map(namespace => `${namespace.nsid} ${namespace.anagrpid} ${anaStateAt(subsystem, listener, namespace)}`)
    .join()
}
