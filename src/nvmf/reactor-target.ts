/**
 * One reactor's part of the target: replicas of the subsystems, the queues that were admitted, and the controllers
 * whose admin queue is here. What concerns more than this reactor is asked of the control thread.
 *
 *   Connect --parse--> question --control--> admitted: a Controller, or an I/O queue of one
 *                                       `--> refused: the host hears why, and the connection ends
 */
import { assert } from '../core/assert.ts'
import type { Clock } from '../core/clock.ts'
import { logger } from '../core/log.ts'
import type { Reactor } from '../reactor/reactor.ts'
import { Status } from '../spec/nvme-status.ts'
import { ConnectData, InvalidIn } from '../spec/nvmf.ts'
import { AdminSession } from './admin-session.ts'
import { answer } from './completion.ts'
import { invalidParameter, type ParsedConnect, parseConnect } from './connect.ts'
import { Controller, type ControllerHost } from './controller.ts'
import { discoveryLog } from './discovery-log.ts'
import { IoSession } from './io-session.ts'
import {
  type AbortOrder,
  type AbortQuestion,
  type Admitted,
  type ConnectAnswer,
  type DisconnectOrder,
  type DrainQuestion,
  type EnableMessage,
  type HealthCounters,
  type Refused,
  type TargetSnapshot,
  type TargetUpdate,
  Topic,
  type TransportSettings,
} from './messages.ts'
import { type ChannelSource, type Lease, SubsystemReplica } from './replica.ts'
import type { CommandRequest, Connection, ReactorTarget } from './request.ts'

const log = logger('nvmf')

type Session = AdminSession | IoSession

export class NvmfReactor implements ReactorTarget, ControllerHost {
  readonly #reactor: Reactor
  readonly #channels: ChannelSource
  readonly #transportCreated: (settings: TransportSettings) => void
  readonly #subsystems = new Map<string, SubsystemReplica>()
  /** Queues that were admitted, by token. */
  readonly #sessions = new Map<number, Session>()
  readonly #startedUs: number
  #target: TargetSnapshot | null = null
  #lease: Lease | null = null

  /** `transportCreated` hears once, before any connection is to be adopted. */
  constructor(
    reactor: Reactor,
    channels: ChannelSource,
    transportCreated: (settings: TransportSettings) => void,
  ) {
    this.#reactor = reactor
    this.#startedUs = reactor.clock.nowUs()
    this.#channels = channels
    this.#transportCreated = transportCreated
    const { control } = reactor
    control.on<TargetUpdate>(Topic.UPDATE, update => this.#apply(update))
    control.on<DisconnectOrder>(Topic.DISCONNECT, order => this.#disconnect(order))
    control.on<AbortOrder>(
      Topic.ABORT,
      ({ token, cid }) => this.#sessions.get(token)?.connection.abort(cid) ?? false,
    )
    control.on<DrainQuestion>(Topic.DRAIN, ({ nqn, anagrpids }) =>
      this.#subsystems.get(nqn)?.drain(anagrpids),
    )
    control.on<string>(Topic.HEALTH, nqn => this.#subsystems.get(nqn)?.health())
  }

  // What controllers ask for.

  get clock(): Clock {
    return this.#reactor.clock
  }

  get target(): TargetSnapshot {
    assert(this.#target, 'the target is known before hosts come')
    return this.#target
  }

  get uptimeMs(): number {
    return (this.clock.nowUs() - this.#startedUs) / 1000
  }

  discoveryLog({ hostnqn, connection }: Controller): Uint8Array {
    const subsystems = [...this.#subsystems.values()].map(replica => replica.snapshot)
    const { listenerId, local } = connection
    return discoveryLog(subsystems, this.target, { hostnqn, listenerId, local })
  }

  async setEnabled({ token }: Controller, isEnabled: boolean): Promise<void> {
    await this.#reactor.control.call(Topic.ENABLE, { token, isEnabled } satisfies EnableMessage)
  }

  resetSubsystem({ subsystem }: Controller): void {
    this.#reactor.control.post(Topic.RESET, subsystem.nqn)
  }

  abort({ token }: Controller, sqid: number, cid: number): Promise<boolean> {
    return this.#reactor.control.call(Topic.ABORT, { token, sqid, cid } satisfies AbortQuestion)
  }

  health({ subsystem }: Controller): Promise<HealthCounters> {
    return this.#reactor.control.call(Topic.HEALTH, subsystem.nqn)
  }

  controllers({ subsystem }: Controller): Promise<readonly number[]> {
    return this.#reactor.control.call(Topic.CONTROLLERS, subsystem.nqn)
  }

  ended({ token }: Controller): void {
    this.#closed(token)
  }

  // What the transport asks for.

  connect(connection: Connection, request: CommandRequest): void {
    const { transport } = this.target
    assert(transport, 'connections come by a transport')
    const parsed = parseConnect(request, connection, transport)
    if ('admitted' in parsed) {
      refuseConnect(connection, request, parsed)
      return
    }
    // It becomes a queue at once, so that its end is told; before it is admitted it executes nothing.
    const { question, sqSize } = parsed
    let session: Session
    if (question.qid === 0) {
      session = new AdminSession(connection)
      connection.becomeAdminQueue(session, sqSize)
    } else {
      session = new IoSession(connection)
      connection.becomeIoQueue(session, sqSize)
    }
    void this.#ask(session, request, parsed, transport)
  }

  async #ask(
    session: Session,
    request: CommandRequest,
    parsed: ParsedConnect,
    transport: TransportSettings,
  ): Promise<void> {
    const { connection } = session
    try {
      const verdict = await this.#reactor.control.call<ConnectAnswer>(Topic.CONNECT, parsed.question)
      if (verdict.admitted) this.#admit(session, request, parsed, transport, verdict)
      else refuseConnect(connection, request, verdict)
    } catch (error) {
      const reason = (error as Error).message
      log.error(`Connect of ${parsed.question.hostnqn} to ${parsed.question.subnqn} failed: ${reason}`)
      refuseConnect(connection, request, { admitted: false, status: Status.INTERNAL_ERROR, dw0: 0, reason })
    }
  }

  #admit(
    session: Session,
    request: CommandRequest,
    { question, katoMs }: ParsedConnect,
    transport: TransportSettings,
    { token, cntlid, traffic }: Admitted,
  ): void {
    const { connection } = session
    const replica = this.#subsystems.get(question.subnqn)
    if (replica === undefined || session.isClosed) {
      this.#reactor.control.post(Topic.CLOSED, token)
      const reason = `subsystem ${question.subnqn} has just been deleted`
      refuseConnect(connection, request, invalidParameter(InvalidIn.DATA, ConnectData.subnqn.offset, reason))
      return
    }
    this.#sessions.set(token, session)
    if (session instanceof AdminSession) {
      const subsystem = replica.snapshot
      const options = { token, cntlid, question, connection, subsystem, transport, traffic, katoMs }
      session.controller = new Controller(options, this)
    } else {
      session.admit(replica, question.hostnqn, traffic, () => this.#closed(token))
    }
    request.complete(answer(cntlid))
  }

  #closed(token: number): void {
    this.#sessions.delete(token)
    this.#reactor.control.post(Topic.CLOSED, token)
  }

  // What the control thread asks for.

  /** In force when this returns; resolves when the I/O of what is gone has ended. */
  #apply({ target, subsystem, removed }: TargetUpdate): Promise<unknown> {
    const ending: Promise<void>[] = []
    const last = this.#target
    this.#target = target
    this.#lease ??= new Float64Array(target.lease)
    if (target.transport !== null && (last === null || last.transport === null)) {
      this.#transportCreated(target.transport)
    }
    if (subsystem !== undefined) {
      const replica = this.#subsystems.get(subsystem.nqn)
      if (replica !== undefined) ending.push(replica.apply(subsystem))
      else {
        this.#subsystems.set(
          subsystem.nqn,
          new SubsystemReplica(subsystem, this.#reactor, this.#channels, this.#lease),
        )
      }
    }
    if (removed !== undefined) {
      const replica = this.#subsystems.get(removed)
      this.#subsystems.delete(removed)
      if (replica !== undefined) ending.push(replica.close())
    }
    for (const session of this.#sessions.values()) {
      if (!(session instanceof AdminSession)) continue
      const { controller } = session
      if (subsystem !== undefined && controller?.subsystem.nqn === subsystem.nqn) controller.apply(subsystem)
      if (target.genctr !== last?.genctr) controller?.discoveryLogChanged()
    }
    return Promise.all(ending)
  }

  #disconnect({ tokens, reason }: DisconnectOrder): void {
    for (const token of tokens) {
      const session = this.#sessions.get(token)
      if (session instanceof AdminSession) session.end(reason)
      else session?.connection.disconnect(reason)
    }
  }
}

function refuseConnect(
  connection: Connection,
  request: CommandRequest,
  { status, dw0, reason }: Refused,
): void {
  log.info(`Connect from ${connection.remote.host}:${connection.remote.port} refused: ${reason}`)
  // Without Do Not Retry: what is refused now may be allowed, configured or free in a moment.
  request.complete({ status, dw0 })
  connection.disconnect(reason)
}
