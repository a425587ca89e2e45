/**
 * QEMU's machine protocol (docs/interop/qmp-spec.rst): lines of JSON over a Unix socket.
 *
 *   QEMU    {"QMP": {"version": …, "capabilities": […]}}                        the greeting
 *   client  {"execute": "qmp_capabilities", "id": 1}
 *   QEMU    {"return": {}, "id": 1}
 *   client  {"execute": "query-status", "id": 2}
 *   QEMU    {"event": "RESUME", "timestamp": {…}}                               at any time
 *   QEMU    {"return": {…}, "id": 2}   or   {"error": {"class": "GenericError", "desc": "…"}, "id": 2}
 */
import { once } from 'node:events'
import { createConnection, type Socket } from 'node:net'
import { ProtocolError } from '../core/errors.ts'
import { isRecord, textOf } from './untrusted.ts'

/** For example `{ event: 'DEVICE_DELETED', data: { device: 'disk1' } }`. */
export interface QmpEvent {
  readonly event: string
  readonly data: Readonly<Record<string, unknown>>
}

/** QEMU has refused a command. */
export class QmpError extends Error {
  override readonly name = 'QmpError'
  readonly command: string
  /** QEMU's class of error: `GenericError`, `DeviceNotFound` … */
  readonly class: string
  /** QEMU's own text. */
  readonly desc: string

  constructor(command: string, errorClass: string, desc: string) {
    super(`QEMU's ${command}: ${desc}`)
    this.command = command
    this.class = errorClass
    this.desc = desc
  }
}

/** There is no session, or no longer one, or QEMU does not answer. */
export class QmpClosed extends Error {
  override readonly name = 'QmpClosed'
}

export interface QmpOptions {
  /** For the greeting, and for each command unless that says otherwise. */
  readonly timeoutMs?: number
  readonly onEvent?: (event: QmpEvent) => void
}

interface Waiter {
  readonly command: string
  readonly resolve: (value: unknown) => void
  readonly reject: (error: Error) => void
  readonly timer: NodeJS.Timeout
}

interface Listener {
  readonly hear: (event: QmpEvent) => void
  readonly end: (reason: Error) => void
}

const TIMEOUT_MS = 30_000
/** The longest line; QEMU's own answers, even `qom-list-types`, are far below it. */
const LINE_CHARACTERS_MAX = 16 << 20

export class Qmp {
  /** Settles when the session has ended, whoever ended it, with the reason. */
  readonly closed: Promise<Error>
  readonly #socket: Socket
  readonly #onEvent: (event: QmpEvent) => void
  readonly #timeoutMs: number
  readonly #waiters = new Map<number, Waiter>()
  readonly #listeners = new Set<Listener>()
  #greeted: () => void = () => {}
  #tellClosed!: (reason: Error) => void
  #endReason: Error | undefined
  #lastId = 0
  /** Pieces of a line whose end has not come. */
  #pieces: string[] = []
  #pieceCharacters = 0

  private constructor(socket: Socket, { timeoutMs = TIMEOUT_MS, onEvent = () => {} }: QmpOptions) {
    this.#socket = socket
    this.#onEvent = onEvent
    this.#timeoutMs = timeoutMs
    this.closed = new Promise(resolve => {
      this.#tellClosed = resolve
    })
    socket.setEncoding('utf8').on('data', text => this.#receive(String(text)))
    socket.on('error', error => this.#end(new QmpClosed(`the connection to QEMU broke: ${error.message}`)))
    socket.on('close', () => this.#end(new QmpClosed('QEMU has closed the connection')))
  }

  /** Connects to QEMU's socket, and resolves when commands may be given. Throws `QmpClosed`. */
  static async connect(path: string, options: QmpOptions = {}): Promise<Qmp> {
    const socket = createConnection(path)
    try {
      await once(socket, 'connect')
    } catch (cause) {
      throw new QmpClosed(`QEMU does not listen at ${path}: ${(cause as Error).message}`, { cause })
    }
    return Qmp.#open(socket, options)
  }

  static async #open(socket: Socket, options: QmpOptions): Promise<Qmp> {
    const qmp = new Qmp(socket, options)
    const greeting = new Promise<void>(resolve => {
      qmp.#greeted = resolve
    })
    const timer = setTimeout(
      () => qmp.#end(new QmpClosed(`QEMU has not greeted within ${qmp.#timeoutMs / 1000} s`)),
      qmp.#timeoutMs,
    )
    const failure = await Promise.race([greeting, qmp.closed])
    clearTimeout(timer)
    if (failure !== undefined) throw failure
    try {
      await qmp.execute('qmp_capabilities')
      return qmp
    } catch (error) {
      qmp.close(error as Error)
      throw error
    }
  }

  /** Runs a command. Throws `QmpError` when QEMU refuses it, `QmpClosed` when no answer comes. */
  execute<Result = unknown>(
    command: string,
    args: Readonly<Record<string, unknown>> = {},
    timeoutMs = this.#timeoutMs,
  ): Promise<Result> {
    if (this.#endReason !== undefined) return Promise.reject(this.#endReason)
    const id = ++this.#lastId
    return new Promise<Result>((resolve, reject) => {
      const timer = setTimeout(() => {
        this.#waiters.delete(id)
        reject(new QmpClosed(`QEMU has not answered ${command} within ${timeoutMs / 1000} s`))
      }, timeoutMs)
      this.#waiters.set(id, { command, timer, resolve: value => resolve(value as Result), reject })
      this.#socket.write(`${JSON.stringify({ execute: command, arguments: args, id })}\n`)
    })
  }

  /**
   * Resolves with the next event of a name whose data pass the test, and rejects when the session ends before. To be called
   * before the command that causes it.
   */
  event(name: string, test: (data: QmpEvent['data']) => boolean = () => true): Promise<QmpEvent> {
    const promise = new Promise<QmpEvent>((resolve, reject) => {
      const listener: Listener = {
        hear: event => {
          if (event.event !== name || !test(event.data)) return
          this.#listeners.delete(listener)
          resolve(event)
        },
        end: reject,
      }
      if (this.#endReason !== undefined) reject(this.#endReason)
      else this.#listeners.add(listener)
    })
    // It may be awaited late, after a command that fails for the same reason.
    promise.catch(() => {})
    return promise
  }

  /** Ends the session; what is still waited for is rejected. The guest goes on. */
  close(reason: Error = new QmpClosed('the session with QEMU was closed')): void {
    this.#end(reason)
  }

  #end(reason: Error): void {
    if (this.#endReason !== undefined) return
    this.#endReason = reason
    this.#socket.destroy()
    for (const { reject, timer } of this.#waiters.values()) {
      clearTimeout(timer)
      reject(reason)
    }
    this.#waiters.clear()
    for (const { end } of this.#listeners) end(reason)
    this.#listeners.clear()
    this.#tellClosed(reason)
  }

  #receive(text: string): void {
    const lines = text.split('\n')
    for (const line of lines.slice(0, -1)) {
      this.#pieces.push(line)
      const whole = this.#pieces.splice(0).join('')
      this.#pieceCharacters = 0
      if (whole.trim() !== '') this.#take(whole)
      if (this.#endReason !== undefined) return
    }
    const rest = lines.at(-1)!
    this.#pieces.push(rest)
    this.#pieceCharacters += rest.length
    if (this.#pieceCharacters > LINE_CHARACTERS_MAX) {
      this.#end(new ProtocolError(`QEMU sent a line of more than ${LINE_CHARACTERS_MAX} characters`, 0))
    }
  }

  #take(line: string): void {
    const message = parseMessage(line)
    if (message === undefined) {
      this.#end(new ProtocolError(`QEMU sent what is no message: ${JSON.stringify(line.slice(0, 80))}`, 0))
      return
    }
    const { event, data } = message
    if (message['QMP'] !== undefined) this.#greeted()
    else if (typeof event === 'string') this.#tell({ event, data: isRecord(data) ? data : {} })
    else this.#answer(message)
  }

  #answer(message: Record<string, unknown>): void {
    const { id, error } = message
    const waiter = typeof id === 'number' ? this.#waiters.get(id) : undefined
    // An answer that came too late, or that nobody asked for.
    if (waiter === undefined) return
    this.#waiters.delete(id as number)
    clearTimeout(waiter.timer)
    const { class: errorClass, desc } = isRecord(error) ? error : {}
    if (error === undefined) waiter.resolve(message['return'])
    else waiter.reject(new QmpError(waiter.command, textOf(errorClass), textOf(desc, 'no reason given')))
  }

  #tell(event: QmpEvent): void {
    this.#onEvent(event)
    for (const { hear } of this.#listeners) hear(event)
  }
}

function parseMessage(line: string): Record<string, unknown> | undefined {
  try {
    const message: unknown = JSON.parse(line)
    return isRecord(message) ? message : undefined
  } catch {
    // What is no JSON is no message.
    return undefined
  }
}
