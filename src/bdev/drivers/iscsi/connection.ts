/**
 * One connection to a target: libiscsi's context, with its socket in the reactor's ring.
 *
 *   connecting --POLLOUT, connected--> logging in --answered--> up --close--> closed
 *        +------------- refused, lost, closed ---+----------------+----------> closed
 *
 * Commands are tasks of the context. After each `service` those that ended are found by their status: see `sys/libiscsi.ts`.
 */
import type { Reactor } from '../../../reactor/reactor.ts'
import { Opcode } from '../../../spec/io-uring.ts'
import { Status } from '../../../spec/nvme-status.ts'
import { ScsiStatus, SenseKey } from '../../../spec/scsi.ts'
import { getsockopt } from '../../../sys/libc.ts'
import {
  type Libiscsi,
  RESIDUAL_UNDERFLOW,
  SenseField,
  TASK_STATUS_OWN,
  TaskField,
  TransferDirection,
} from '../../../sys/libiscsi.ts'
import { memcpy } from '../../../sys/memory.ts'
import type { RingHandler, Uring } from '../../../sys/uring.ts'
import { statusFromScsi } from '../../scsi-status.ts'
import { type Command, CommandState } from './command.ts'
import type { Login } from './messages.ts'

const POLLIN = 1
const POLLOUT = 4
const POLLERR = 8
const POLLHUP = 16
const SOL_SOCKET = 1
const SO_ERROR = 4

/** In place of a status: the command has not ended. No SCSI status, and none of libiscsi's. */
const PENDING = 0x0e000000

/** Memory that a connection works with: what is looked at of a task, its sense data, and `PENDING`. */
export const SCRATCH_BYTES = 192
const SENSE_AT = 64
const PENDING_AT = 128

const State = { CONNECTING: 0, LOGGING_IN: 1, UP: 2, CLOSED: 3 } as const

export interface ConnectionOwner {
  /** Commands may be sent. */
  connectionUp(): void
  /** It is of no use any more, and to be closed. `redirection`: where the target has sent us, or empty. */
  connectionLost(why: string, redirection: string): void
  /** With an NVMe status, or one of `Again`; `asc` is its additional sense code. */
  connectionEnded(command: Command, status: number, asc: number): void
}

export interface ConnectionParts {
  readonly reactor: Reactor
  readonly ring: Uring
  readonly library: Libiscsi
  readonly login: Login
  /** `SCRATCH_BYTES` in the reactor's arena, which connections that follow each other share. */
  readonly scratch: number
  /** What the session keeps when it is connected again, so that the target ends what it had of it before. */
  readonly sessionId: number
  readonly qualifier: number
}

export class Connection {
  readonly #parts: ConnectionParts
  readonly #owner: ConnectionOwner
  readonly #context: number
  readonly #scratch: number
  readonly #readable: Poll
  readonly #writable: Poll
  #state: number = State.CONNECTING
  /** What the unit has and has not ended. */
  readonly #running: Command[] = []
  #runningCount = 0
  /** How the command ended that was looked at last. */
  #outcome = 0
  #asc = 0

  constructor(parts: ConnectionParts, owner: ConnectionOwner) {
    const { library, login, reactor, ring } = parts
    this.#parts = parts
    this.#owner = owner
    this.#scratch = reactor.arena.offsetOf(parts.scratch)
    reactor.arena.view.setUint32(this.#scratch + PENDING_AT, PENDING, true)
    this.#context = createContext(library, login)
    library.setSessionId(this.#context, parts.sessionId, parts.qualifier)
    this.#readable = new Poll(ring, POLLIN, events => this.#polled(events))
    this.#writable = new Poll(ring, POLLOUT, events => this.#polled(events))
  }

  get isUp(): boolean {
    return this.#state === State.UP
  }

  get runningCount(): number {
    return this.#runningCount
  }

  /** A command that has not ended; `index` is below `runningCount`. */
  runningAt(index: number): Command {
    return this.#running[index]!
  }

  /** Starts to connect to a numeric address. Its owner hears, also at once. */
  open(portal: string): void {
    const { library } = this.#parts
    if (library.connect(this.#context, portal) < 0) this.#lose()
    else this.#arm()
  }

  /** Hands a command to libiscsi, which sends it in `flush`; false when the connection is lost, as its owner has heard. */
  send(command: Command): boolean {
    const { library } = this.#parts
    const task = library.createTask(command.cdbSize, command.address, command.direction, command.length)
    if (task === 0) {
      this.#lose()
      return false
    }
    if (command.direction === TransferDirection.READ) {
      library.setDataIn(task, command.iovecs, command.iovecCount)
    } else if (command.direction === TransferDirection.WRITE) {
      library.setDataOut(task, command.iovecs, command.iovecCount)
    }
    memcpy(task + TaskField.STATUS, this.#parts.scratch + PENDING_AT, 4)
    if (library.startTask(this.#context, command.lun, task) < 0) {
      library.freeTask(task)
      this.#lose()
      return false
    }
    command.task = task
    command.state = CommandState.RUNNING
    this.#running[this.#runningCount++] = command
    return true
  }

  /** Sends what was handed over. */
  flush(): void {
    if (this.#state === State.UP) this.#polled(POLLOUT)
  }

  /** Asks the target to end the session; the connection is of no use after it. */
  logOut(): void {
    if (this.#state !== State.UP) return
    this.#parts.library.logout(this.#context)
    this.#polled(POLLOUT)
  }

  /** Nothing is outstanding that was handed over. */
  get isQuiet(): boolean {
    return this.#parts.library.queueLength(this.#context) === 0
  }

  /**
   * Closes the socket. Nothing of a command is touched any more after this; those that had not ended stay in `runningAt`,
   * and are the owner's.
   */
  close(): void {
    const { library } = this.#parts
    this.#state = State.CLOSED
    this.#readable.close()
    this.#writable.close()
    library.destroyContext(this.#context)
    for (let i = 0; i < this.#runningCount; i++) library.freeTask(this.#running[i]!.task)
  }

  #polled(events: number): void {
    const { library } = this.#parts
    if (this.#state === State.CLOSED) return
    if (this.#state === State.CONNECTING && (events & (POLLERR | POLLHUP)) !== 0) {
      this.#refused()
      return
    }
    const result = library.service(this.#context, events)
    if (this.#state === State.UP && !this.#reap()) return
    if (result < 0) {
      this.#lose()
      return
    }
    if (this.#state !== State.UP && !this.#advance()) return
    // What an answer has made room for, or a login that goes on, need not wait for the ring to say so.
    const isMore = (events & POLLOUT) === 0 && (library.events(this.#context) & POLLOUT) !== 0
    if (isMore && !this.#writable.isArmed) this.#polled(POLLOUT)
    else this.#arm()
  }

  /** Takes the next step of coming up, if it can be taken; false when it has failed. */
  #advance(): boolean {
    const { library } = this.#parts
    const context = this.#context
    if (this.#state === State.CONNECTING) {
      // It waits for what it can read only once it is connected.
      if ((library.events(context) & POLLIN) === 0) return true
      this.#state = State.LOGGING_IN
      if (library.login(context) === 0) return true
      this.#lose()
      return false
    }
    if (library.isLoggedIn(context) !== 0) {
      this.#state = State.UP
      this.#owner.connectionUp()
      return this.#isUsable
    }
    // One login request at a time is on its way; with none the target has refused us.
    if (library.queueLength(context) > 0) return true
    this.#lose()
    return false
  }

  get #isUsable(): boolean {
    return this.#state !== State.CLOSED
  }

  /** Ends the commands that have ended; false when the connection has not survived it. */
  #reap(): boolean {
    const { library, reactor, scratch } = this.#parts
    const { view } = reactor.arena
    let isLost = false
    for (let i = 0; i < this.#runningCount && this.#isUsable; ) {
      const command = this.#running[i]!
      memcpy(scratch, command.task, TaskField.SIZE)
      const status = view.getUint32(this.#scratch + TaskField.STATUS, true)
      if (status === PENDING || status >= TASK_STATUS_OWN) {
        // What libiscsi gave up itself it did because the connection is lost, or because it does not follow the target.
        if (status !== PENDING) isLost = true
        i++
        continue
      }
      this.#running[i] = this.#running[--this.#runningCount]!
      this.#end(command, status)
      library.freeTask(command.task)
      command.task = 0
      command.state = CommandState.IDLE
      this.#owner.connectionEnded(command, this.#outcome, this.#asc)
    }
    if (isLost && this.#isUsable) this.#lose()
    return this.#isUsable && !isLost
  }

  /** Reads how a command has ended, whose task is in the scratch memory. */
  #end(command: Command, status: number): void {
    const { library, reactor, scratch } = this.#parts
    const { view } = reactor.arena
    let key: number = SenseKey.NO_SENSE
    this.#asc = 0
    if (status === ScsiStatus.CHECK_CONDITION) {
      library.readSense(command.task, scratch + SENSE_AT)
      key = view.getUint32(this.#scratch + SENSE_AT + SenseField.KEY, true)
      this.#asc = view.getUint32(this.#scratch + SENSE_AT + SenseField.ASC, true)
    }
    command.told = (status << 16) | this.#asc
    this.#outcome = statusFromScsi(status, key, this.#asc, command.type)
    // A bdev's I/O is all or nothing. Of parameters, targets say that they have used less than they have.
    const isShort =
      command.isWhole &&
      view.getUint32(this.#scratch + TaskField.RESIDUAL_STATUS, true) === RESIDUAL_UNDERFLOW &&
      view.getUint32(this.#scratch + TaskField.RESIDUAL, true) > 0
    if (this.#outcome === Status.SUCCESS && isShort) this.#outcome = Status.DATA_TRANSFER_ERROR
  }

  /** Nobody took the connection. libiscsi would know why, and says something else after it. */
  #refused(): void {
    const { library, reactor, scratch } = this.#parts
    const { view } = reactor.arena
    view.setUint32(this.#scratch + 4, 4, true)
    getsockopt(library.descriptor(this.#context), SOL_SOCKET, SO_ERROR, scratch, scratch + 4)
    this.#owner.connectionLost(`connect (${view.getUint32(this.#scratch, true)})`, '')
  }

  #lose(): void {
    const { library } = this.#parts
    this.#owner.connectionLost(library.error(this.#context).trim(), library.redirection(this.#context))
  }

  #arm(): void {
    if (this.#state === State.CLOSED) return
    const { library } = this.#parts
    const events = library.events(this.#context)
    const descriptor = library.descriptor(this.#context)
    if ((events & POLLIN) !== 0) this.#readable.arm(descriptor)
    if ((events & POLLOUT) !== 0) this.#writable.arm(descriptor)
  }
}

function createContext(library: Libiscsi, { initiator, address }: Login): number {
  const context = library.createContext(initiator)
  if (context === 0) throw new Error('libiscsi has no memory for a context')
  const { credentials, targetCredentials } = address
  library.setTarget(context, address.target)
  library.setHeaderDigest(context, address.headerDigest)
  if (credentials !== undefined) library.setCredentials(context, credentials.user, credentials.password)
  if (targetCredentials !== undefined) {
    library.setTargetCredentials(context, targetCredentials.user, targetCredentials.password)
  }
  return context
}

/** Waits once for an event of a socket. */
class Poll implements RingHandler {
  readonly #ring: Uring
  readonly #events: number
  readonly #heard: (events: number) => void
  readonly #token: number
  isArmed = false
  #isClosed = false

  constructor(ring: Uring, events: number, heard: (events: number) => void) {
    this.#ring = ring
    this.#events = events
    this.#heard = heard
    this.#token = ring.register(this)
  }

  arm(descriptor: number): void {
    if (this.isArmed) return
    this.isArmed = true
    this.#ring.prepare(Opcode.POLL_ADD, descriptor, 0, 0, 0, this.#events, this.#token)
  }

  complete(result: number): void {
    this.isArmed = false
    if (this.#isClosed) this.#ring.unregister(this.#token)
    else this.#heard(result < 0 ? POLLERR : result)
  }

  close(): void {
    this.#isClosed = true
    if (this.isArmed) this.#ring.cancel(this.#token)
    else this.#ring.unregister(this.#token)
  }
}
