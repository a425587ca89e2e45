/**
 * The controllers of all subsystems and their queues, on whichever reactor they are. Every queue is admitted here and
 * its end is told here, so this is where identifiers are given out and where the queues of a controller end together.
 *
 *   admin queue admitted --> CC.EN set --> I/O queues admitted
 *   admin queue closed, or CC.EN cleared --> its I/O queues are told to end, on all reactors
 *   last queue closed --> the identifier is free again
 */
import type { Clock } from '../core/clock.ts'
import { logger } from '../core/log.ts'
import { Status } from '../spec/nvme-status.ts'
import { ConnectData, ConnectSqe, FabricsStatus, InvalidIn } from '../spec/nvmf.ts'
import { invalidParameter } from './connect.ts'
import type { ConnectAnswer, ConnectQuestion, Refused } from './messages.ts'
import type { Subsystem } from './subsystem.ts'

const log = logger('nvmf')

/**
 * How long a queue whose identifier is in use waits for the other to end. Hosts that reconnect fast (ESXi) come before
 * the end of their old connection is known.
 */
const DUPLICATE_QID_WAIT_MS = 1000
/** Orders to end a queue are repeated: one may have overtaken the answer that admits the queue. */
const DISCONNECT_INTERVAL_MS = 50
/** A transport gives up on a peer that takes nothing well before. */
const DISCONNECT_WAIT_MS = 10_000

export interface Queue {
  readonly token: number
  readonly reactor: number
  readonly question: ConnectQuestion
  readonly controller: ControllerEntry
  readonly closed: Promise<void>
}

export interface ControllerEntry {
  readonly subsystem: Subsystem
  readonly cntlid: number
  readonly hostnqn: string
  readonly hostid: string
  readonly listenerId: number
  readonly traffic: SharedArrayBuffer
  /** By qid; the admin queue is 0. */
  readonly queues: Map<number, Queue>
  isEnabled: boolean
}

export type DuplicateHostPolicy = 'allow' | 'restrict_per_listener'

export interface DirectoryOptions {
  readonly clock: Clock
  readonly maxIoQueues: () => number
  readonly duplicateHostPolicy: () => DuplicateHostPolicy
  /** Orders a reactor to end queues. */
  readonly disconnect: (reactor: number, tokens: readonly number[], reason: string) => void
}

export class Directory {
  readonly #options: DirectoryOptions
  readonly #queues = new Map<number, Queue & { readonly tellClosed: () => void }>()
  readonly #controllers = new Map<Subsystem, Map<number, ControllerEntry>>()
  /** The identifier to try next, so that one is used again as late as possible. */
  readonly #nextCntlid = new Map<Subsystem, number>()
  #lastToken = 0

  constructor(options: DirectoryOptions) {
    this.#options = options
  }

  /** The controllers of a subsystem, ascending. */
  controllers(subsystem: Subsystem): ControllerEntry[] {
    const entries = this.#controllers.get(subsystem)?.values() ?? []
    return [...entries].sort((a, b) => a.cntlid - b.cntlid)
  }

  queue(token: number): Queue | undefined {
    return this.#queues.get(token)
  }

  /** May this host have this queue? `subsystem` is undefined when there is none of the name it gave. */
  async connect(
    question: ConnectQuestion,
    reactor: number,
    subsystem: Subsystem | undefined,
  ): Promise<ConnectAnswer> {
    const { subnqn, hostnqn } = question
    if (subsystem === undefined) {
      return invalidParameter(InvalidIn.DATA, ConnectData.subnqn.offset, `there is no subsystem ${subnqn}`)
    }
    // Any listener leads to the discovery service: people point their hosts at the port they know.
    if (!subsystem.isDiscovery && !subsystem.listeners.has(question.listenerId)) {
      const { host, port } = question.local
      return refuse(
        FabricsStatus.CONNECT_INVALID_HOST,
        `subsystem ${subnqn} has no listener at ${host}:${port}`,
      )
    }
    if (!subsystem.allows(hostnqn)) {
      const reason = `subsystem ${subnqn} does not allow host ${hostnqn} (nvmf_subsystem_add_host allows it)`
      return refuse(FabricsStatus.CONNECT_INVALID_HOST, reason)
    }
    return question.qid === 0
      ? this.#admitAdmin(question, reactor, subsystem)
      : this.#admitIo(question, reactor, subsystem)
  }

  /** CC.EN or a shutdown, as the admin queue with that token saw it. When it is off, resolves when no I/O queue is left. */
  async setEnabled(token: number, isEnabled: boolean): Promise<void> {
    const controller = this.#queues.get(token)?.controller
    if (controller === undefined) return
    controller.isEnabled = isEnabled
    if (!isEnabled) await this.end(ioQueuesOf(controller), 'the host resets the controller')
  }

  /** A queue is over. The end of an admin queue is the end of its controller. */
  closed(token: number): void {
    const queue = this.#queues.get(token)
    if (queue === undefined) return
    const { controller, question } = queue
    this.#queues.delete(token)
    controller.queues.delete(question.qid)
    queue.tellClosed()
    if (question.qid === 0) {
      controller.isEnabled = false
      void this.end(ioQueuesOf(controller), 'the admin queue of its controller has ended')
    }
    if (controller.queues.size > 0) return
    this.#controllers.get(controller.subsystem)?.delete(controller.cntlid)
    log.info(`controller ${controller.cntlid} of ${controller.subsystem.nqn} has ended`)
  }

  /** Ends queues, and resolves when all have: true, or false when some have not within `timeoutMs`. */
  async end(
    queues: readonly Queue[],
    reason: string,
    timeoutMs: number = DISCONNECT_WAIT_MS,
  ): Promise<boolean> {
    const { clock } = this.#options
    const deadlineUs = clock.nowUs() + timeoutMs * 1000
    for (;;) {
      const open = queues.filter(queue => this.#queues.has(queue.token))
      if (open.length === 0) return true
      if (clock.nowUs() >= deadlineUs) {
        log.warning(`${open.length} queues that should end did not within ${timeoutMs} ms: ${reason}`)
        return false
      }
      this.#order(open, reason)
      const allClosed = Promise.all(open.map(queue => queue.closed))
      await Promise.race([allClosed, this.#sleep(DISCONNECT_INTERVAL_MS)])
    }
  }

  /** Ends controllers, with all their queues. */
  endControllers(
    controllers: readonly ControllerEntry[],
    reason: string,
    timeoutMs?: number,
  ): Promise<boolean> {
    return this.end(
      controllers.flatMap(controller => [...controller.queues.values()]),
      reason,
      timeoutMs,
    )
  }

  /** A subsystem is gone, and its controllers with it. */
  forget(subsystem: Subsystem): void {
    this.#controllers.delete(subsystem)
    this.#nextCntlid.delete(subsystem)
  }

  #admitAdmin(question: ConnectQuestion, reactor: number, subsystem: Subsystem): ConnectAnswer {
    const { hostnqn, hostid, listenerId } = question
    const isRestricted =
      !subsystem.isDiscovery && this.#options.duplicateHostPolicy() === 'restrict_per_listener'
    const twin = this.controllers(subsystem).find(
      other => other.hostid === hostid && other.listenerId === listenerId,
    )
    if (isRestricted && twin !== undefined) {
      const reason = `host ${hostnqn} has controller ${twin.cntlid} on this listener, and dup_host_policy allows one`
      return refuse(FabricsStatus.CONTROLLER_BUSY, reason)
    }
    const cntlid = this.#takeCntlid(subsystem)
    if (cntlid === undefined) {
      const { nqn, minCntlid, maxCntlid } = subsystem
      const reason = `subsystem ${nqn} has used up its controller identifiers ${minCntlid} to ${maxCntlid}`
      return refuse(FabricsStatus.CONTROLLER_BUSY, reason)
    }
    const controller: ControllerEntry = {
      subsystem,
      cntlid,
      hostnqn,
      hostid,
      listenerId,
      traffic: new SharedArrayBuffer(4),
      queues: new Map(),
      isEnabled: false,
    }
    let controllers = this.#controllers.get(subsystem)
    if (controllers === undefined) {
      controllers = new Map()
      this.#controllers.set(subsystem, controllers)
    }
    controllers.set(cntlid, controller)
    return this.#admit(question, reactor, controller)
  }

  async #admitIo(question: ConnectQuestion, reactor: number, subsystem: Subsystem): Promise<ConnectAnswer> {
    const { qid, cntlid } = question
    const duplicate = this.#controllers.get(subsystem)?.get(cntlid)?.queues.get(qid)
    if (duplicate !== undefined) {
      log.info(`queue ${qid} of controller ${cntlid} comes before the end of its old connection is known`)
      await Promise.race([duplicate.closed, this.#sleep(DUPLICATE_QID_WAIT_MS)])
    }
    const controller = this.#controllers.get(subsystem)?.get(cntlid)
    const refusal = this.#checkIo(question, controller)
    if (refusal !== undefined) return refusal
    if (controller!.queues.has(qid)) {
      return refuse(Status.INVALID_QUEUE_IDENTIFIER, `queue ${qid} of controller ${cntlid} exists`)
    }
    return this.#admit(question, reactor, controller!)
  }

  /** Why an I/O queue may not belong to that controller. */
  #checkIo(question: ConnectQuestion, controller: ControllerEntry | undefined): Refused | undefined {
    const { qid, cntlid, hostnqn, hostid, listenerId } = question
    if (controller === undefined || controller.subsystem.isDiscovery || !controller.queues.has(0)) {
      return invalidParameter(
        InvalidIn.DATA,
        ConnectData.cntlid.offset,
        `there is no I/O controller ${cntlid}`,
      )
    }
    if (controller.hostnqn !== hostnqn) {
      return invalidParameter(
        InvalidIn.DATA,
        ConnectData.hostnqn.offset,
        `controller ${cntlid} belongs to host ${controller.hostnqn}, not ${hostnqn}`,
      )
    }
    if (controller.hostid !== hostid) {
      return invalidParameter(
        InvalidIn.DATA,
        ConnectData.hostid.offset,
        `controller ${cntlid} belongs to host identifier ${controller.hostid}, not ${hostid}`,
      )
    }
    const qidMax = this.#options.maxIoQueues()
    if (qid > qidMax) {
      return invalidParameter(
        InvalidIn.SQE,
        ConnectSqe.qid.offset,
        `queue ${qid} is above the ${qidMax} granted`,
      )
    }
    // The state of a path is the listener's: a controller with queues on two of them would have two states.
    if (controller.listenerId !== listenerId) {
      const reason = `queue ${qid} comes by another listener than controller ${cntlid}`
      return invalidParameter(InvalidIn.DATA, ConnectData.cntlid.offset, reason)
    }
    if (!controller.isEnabled) {
      return refuse(Status.COMMAND_SEQUENCE_ERROR, `controller ${cntlid} is not enabled`)
    }
    return undefined
  }

  #admit(question: ConnectQuestion, reactor: number, controller: ControllerEntry): ConnectAnswer {
    const token = ++this.#lastToken
    let tellClosed = (): void => {}
    const closed = new Promise<void>(resolve => {
      tellClosed = resolve
    })
    const queue = { token, reactor, question, controller, closed, tellClosed }
    this.#queues.set(token, queue)
    controller.queues.set(question.qid, queue)
    const { cntlid, traffic, hostnqn, subsystem } = controller
    if (question.qid === 0) log.info(`${hostnqn} has controller ${cntlid} of ${subsystem.nqn}`)
    return { admitted: true, token, cntlid, traffic }
  }

  #takeCntlid(subsystem: Subsystem): number | undefined {
    const { minCntlid, maxCntlid } = subsystem
    const taken = this.#controllers.get(subsystem)
    let cntlid = this.#nextCntlid.get(subsystem) ?? minCntlid
    for (let tried = minCntlid; tried <= maxCntlid; tried++) {
      const next = cntlid === maxCntlid ? minCntlid : cntlid + 1
      if (taken?.has(cntlid) !== true) {
        this.#nextCntlid.set(subsystem, next)
        return cntlid
      }
      cntlid = next
    }
    return undefined
  }

  #order(queues: readonly Queue[], reason: string): void {
    const byReactor = new Map<number, number[]>()
    for (const { reactor, token } of queues) {
      byReactor.set(reactor, [...(byReactor.get(reactor) ?? []), token])
    }
    for (const [reactor, tokens] of byReactor) this.#options.disconnect(reactor, tokens, reason)
  }

  #sleep(ms: number): Promise<void> {
    return new Promise(resolve => this.#options.clock.after(ms, resolve))
  }
}

export const ioQueuesOf = (controller: ControllerEntry): Queue[] =>
  [...controller.queues.values()].filter(queue => queue.question.qid !== 0)

const refuse = (status: number, reason: string): Refused => ({ admitted: false, status, dw0: 0, reason })
