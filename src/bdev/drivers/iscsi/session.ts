/**
 * A session with a target that outlives its connections: what a lost one had not ended is sent again by the next.
 *
 *   start --> queue --connection is up--> running --ended--> owner
 *               ^                            |
 *               +------ lost, unit attention, busy
 *
 * Each connection logs in under the same session identifier, upon which the target ends what it still had of the one before
 * (session reinstatement, RFC 7143, section 6.3.5). So a write that was sent again is never overtaken by its first self.
 * libiscsi has a reconnection of its own, which looks up names on the calling thread and cannot be bounded in time.
 */
import { randomInt } from 'node:crypto'
import type { Timer } from '../../../core/clock.ts'
import type { Flushable, Reactor } from '../../../reactor/reactor.ts'
import { Status } from '../../../spec/nvme-status.ts'
import type { Libiscsi } from '../../../sys/libiscsi.ts'
import type { Uring } from '../../../sys/uring.ts'
import { Again } from '../../scsi-status.ts'
import { type Command, CommandState } from './command.ts'
import { CommandQueue } from './command-queue.ts'
import { Connection, type ConnectionOwner, type ConnectionParts } from './connection.ts'
import { explainFailure, type Failure, portalOf, sentAround, timedOut } from './failure.ts'
import { type Login, Topic } from './messages.ts'

const BACK_OFF_MS_MIN = 100
const BACK_OFF_MS_MAX = 1000
/** How long it may take to connect and log in. */
const LOGIN_SEC = 10
const LOGOUT_MS = 1000
const LOGOUT_LOOK_MS = 10
/** A target that is busy is left alone for so long. */
const BUSY_DELAY_MS = 10
const DEADLINE_LOOK_MS = 500
/** From portal to portal in a row. */
const REDIRECTIONS_MAX = 4
/** A command that comes back is sent so often; then it fails. */
const TRIES_MAX = 100

export interface SessionOwner {
  /** The target takes commands. */
  sessionUp(): void
  /** It does not, or has not been reached: it is tried again. */
  sessionDown(failure: Failure): void
  /** The unit says that something about it has changed. */
  unitChanged(asc: number): void
}

export class Session implements ConnectionOwner, Flushable {
  readonly #parts: ConnectionParts
  readonly #owner: SessionOwner
  readonly #reactor: Reactor
  readonly #login: Login
  readonly #queue = new CommandQueue()
  #connection: Connection | null = null
  /** Where it connects to, when the target has sent us elsewhere. */
  #redirection = ''
  #redirections = 0
  #backOffMs = BACK_OFF_MS_MIN
  /** The next attempt, the end of this one, or the end of a logout. */
  #attempt: Timer | null = null
  /** The target is busy until then. */
  #busy: Timer | null = null
  #deadlines: Timer | null = null
  #isDirty = false
  #isClosed = false

  /** Throws an `Error` when the reactor has no memory left. */
  constructor(
    reactor: Reactor,
    ring: Uring,
    library: Libiscsi,
    login: Login,
    scratch: number,
    owner: SessionOwner,
  ) {
    const sessionId = randomInt(1 << 24)
    this.#parts = { reactor, ring, library, login, scratch, sessionId, qualifier: randomInt(1 << 16) }
    this.#reactor = reactor
    this.#login = login
    this.#owner = owner
  }

  /** Starts to log in, and goes on until it is closed. */
  open(): void {
    const { host } = this.#login.address
    this.#attempt = this.#reactor.clock.after(LOGIN_SEC * 1000, () =>
      this.#fail(timedOut(this.#login.address, LOGIN_SEC)),
    )
    const at = splitPortal(this.#redirection) ?? { host, port: this.#login.address.port }
    const attempt = this.#attempt
    this.#reactor.control.call<string>(Topic.RESOLVE, at.host).then(
      address => {
        if (this.#attempt === attempt && !this.#isClosed) this.#connect(portalOf({ ...at, host: address }))
      },
      (error: Error) => {
        if (this.#attempt === attempt) this.#fail({ code: 'EHOSTUNREACH', message: error.message })
      },
    )
  }

  /** Its owner hears of the end of it, at the earliest when this call returns or the connection is found lost in it. */
  start(command: Command): void {
    command.startedUs = this.#reactor.nowUs
    command.tries = 0
    command.told = 0
    command.isAborted = false
    this.#queue.push(command)
    if (this.#deadlines === null && this.#login.timeoutSec > 0) this.#watchDeadlines()
    this.#pump()
  }

  /** Ends a command that waits; one that the unit has is marked: it ends with the connection at the latest. */
  abort(command: Command): void {
    command.isAborted = true
    if (command.state !== CommandState.QUEUED) return
    this.#queue.remove(command)
    finish(command, Status.ABORTED_BY_REQUEST)
  }

  /** Ends the connection, and makes another one. */
  giveUp(why: string): void {
    if (this.#connection !== null) this.#lose({ code: 'ETIMEDOUT', message: why })
  }

  /** Nothing is outstanding. Logs out in the background, and calls `closed` when the scratch memory is free. */
  close(closed: () => void): void {
    this.#isClosed = true
    this.#attempt?.cancel()
    this.#busy?.cancel()
    this.#deadlines?.cancel()
    const connection = this.#connection
    if (connection === null || !connection.isUp) {
      this.#disconnect()
      closed()
      return
    }
    connection.logOut()
    this.#awaitLogout(closed, this.#reactor.clock.nowUs() + LOGOUT_MS * 1000)
  }

  flush(): void {
    this.#isDirty = false
    this.#connection?.flush()
  }

  connectionUp(): void {
    this.#attempt?.cancel()
    this.#backOffMs = BACK_OFF_MS_MIN
    this.#owner.sessionUp()
    this.#pump()
  }

  connectionLost(why: string, redirection: string): void {
    const wasUp = this.#connection?.isUp === true
    if (!wasUp && redirection !== '' && !this.#isClosed && this.#redirections < REDIRECTIONS_MAX) {
      this.#redirections++
      this.#redirection = redirection
      this.#disconnect()
      this.#attempt?.cancel()
      this.open()
      return
    }
    // The portal that it was sent to is asked again only where it has said so again.
    this.#redirection = ''
    const { address } = this.#login
    const isRound = !wasUp && redirection !== ''
    this.#lose(isRound ? sentAround(address, REDIRECTIONS_MAX) : explainFailure(why, address))
  }

  connectionEnded(command: Command, status: number, asc: number): void {
    if (status >= 0 || command.isAborted) {
      finish(command, status >= 0 ? status : Status.ABORTED_BY_REQUEST)
      return
    }
    if (status === Again.CHANGED) this.#owner.unitChanged(asc)
    if (status === Again.LATER) this.#rest()
    else if (++command.tries > TRIES_MAX) {
      finish(command, Status.INTERNAL_ERROR)
      return
    }
    this.#queue.push(command)
    this.#pump()
  }

  #connect(portal: string): void {
    this.#connection = new Connection(this.#parts, this)
    this.#connection.open(portal)
  }

  #pump(): void {
    const connection = this.#connection
    if (connection === null || !connection.isUp || this.#busy !== null) return
    for (let command = this.#queue.shift(); command !== undefined; command = this.#queue.shift()) {
      if (connection.send(command)) continue
      // It is lost, and so the command waits with the others.
      this.#queue.push(command)
      return
    }
    if (this.#isDirty) return
    this.#isDirty = true
    this.#reactor.flushLater(this)
  }

  #rest(): void {
    this.#busy ??= this.#reactor.clock.after(BUSY_DELAY_MS, () => {
      this.#busy = null
      this.#pump()
    })
  }

  #fail(failure: Failure): void {
    if (!this.#isClosed) this.#lose(failure)
  }

  #lose(failure: Failure): void {
    this.#attempt?.cancel()
    this.#disconnect()
    this.#redirections = 0
    if (this.#isClosed) return
    this.#owner.sessionDown(failure)
    if (this.#isClosed) return
    this.#attempt = this.#reactor.clock.after(this.#backOffMs, () => this.open())
    this.#backOffMs = Math.min(this.#backOffMs * 2, BACK_OFF_MS_MAX)
  }

  /** What the unit had waits again. */
  #disconnect(): void {
    const connection = this.#connection
    if (connection === null) return
    this.#connection = null
    connection.close()
    for (let i = 0; i < connection.runningCount; i++) {
      const command = connection.runningAt(i)
      command.task = 0
      if (command.isAborted) finish(command, Status.ABORTED_BY_REQUEST)
      else if (++command.tries > TRIES_MAX) finish(command, Status.INTERNAL_PATH_ERROR)
      else this.#queue.push(command)
    }
  }

  #awaitLogout(closed: () => void, untilUs: number): void {
    const connection = this.#connection
    if (connection === null || connection.isQuiet || this.#reactor.clock.nowUs() >= untilUs) {
      this.#disconnect()
      closed()
      return
    }
    this.#reactor.clock.after(LOGOUT_LOOK_MS, () => this.#awaitLogout(closed, untilUs))
  }

  #watchDeadlines(): void {
    this.#deadlines = this.#reactor.clock.after(DEADLINE_LOOK_MS, () => {
      this.#deadlines = null
      this.#enforceDeadlines()
      if (this.#isClosed || (this.#queue.isEmpty && (this.#connection?.runningCount ?? 0) === 0)) return
      this.#watchDeadlines()
    })
  }

  /** Fails what has waited for too long; a connection on which something is overdue is no good. */
  #enforceDeadlines(): void {
    const { timeoutSec, name } = this.#login
    const beforeUs = this.#reactor.clock.nowUs() - timeoutSec * 1e6
    const connection = this.#connection
    let isOverdue = false
    for (let i = 0; connection !== null && i < connection.runningCount; i++) {
      isOverdue ||= connection.runningAt(i).startedUs < beforeUs
    }
    if (isOverdue) this.giveUp(`${name}: a command has not been answered within ${timeoutSec} s`)
    for (let command = this.#queue.first; command !== null; ) {
      const next: Command | null = command.next
      if (command.startedUs < beforeUs) {
        this.#queue.remove(command)
        finish(command, Status.INTERNAL_PATH_ERROR)
      }
      command = next
    }
  }
}

function finish(command: Command, status: number): void {
  command.state = CommandState.IDLE
  command.owner.commandEnded(command, status)
}

/** `host:port,group` as a target sends it; undefined when it has not. */
function splitPortal(portal: string): { readonly host: string; readonly port: number } | undefined {
  const parts = /^(\[[^\]]*\]|[^:,]*)(?::(\d+))?(?:,\d+)?$/.exec(portal)
  if (portal === '' || parts === null) return undefined
  return { host: parts[1]!.replace(/^\[|\]$/g, ''), port: Number(parts[2] ?? 3260) }
}
