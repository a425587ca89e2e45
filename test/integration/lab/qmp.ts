/** QEMU's machine protocol, QMP: commands and events of the virtual machine. */
import { LineSocket } from './line-socket.ts'

/** An event, for example `{ event: 'RESET', data: { guest: true, reason: 'guest-reset' } }`. */
export interface QmpEvent {
  readonly event: string
  readonly data: Record<string, unknown>
}

interface Waiter {
  resolve(value: unknown): void
  reject(error: Error): void
}

export class Qmp {
  #lines!: LineSocket
  readonly #onEvent: (event: QmpEvent) => void
  readonly #waiters = new Map<number, Waiter>()
  readonly #listeners = new Set<(event: QmpEvent | Error) => void>()
  #lastId = 0

  private constructor(onEvent: (event: QmpEvent) => void) {
    this.#onEvent = onEvent
  }

  /** Waits on a socket for QEMU, which is started next. */
  static async listen(path: string, onEvent: (event: QmpEvent) => void): Promise<Qmp> {
    const qmp = new Qmp(onEvent)
    qmp.#lines = await LineSocket.listen(path, line => qmp.#receive(line))
    return qmp
  }

  /** Runs a command; an error of QEMU's rejects with its text. */
  execute<T = unknown>(command: string, args: Record<string, unknown> = {}): Promise<T> {
    const id = ++this.#lastId
    return new Promise<T>((resolve, reject) => {
      this.#waiters.set(id, {
        resolve: value => resolve(value as T),
        reject: error => reject(new Error(`QMP ${command}: ${error.message}`)),
      })
      void this.#lines.send(JSON.stringify({ execute: command, arguments: args, id }))
    })
  }

  /** Resolves with the next event of a name whose data pass the test. */
  event(name: string, test: (data: Record<string, unknown>) => boolean = () => true): Promise<QmpEvent> {
    const promise = new Promise<QmpEvent>((resolve, reject) => {
      const listener = (event: QmpEvent | Error): void => {
        if (!(event instanceof Error) && !(event.event === name && test(event.data))) return
        this.#listeners.delete(listener)
        if (event instanceof Error) reject(event)
        else resolve(event)
      }
      this.#listeners.add(listener)
    })
    // It may be awaited late, after a command that fails for the same reason.
    promise.catch(() => {})
    return promise
  }

  /** Ends the session; what is still waited for is rejected. */
  close(reason: Error): void {
    for (const waiter of this.#waiters.values()) waiter.reject(reason)
    this.#waiters.clear()
    for (const listener of this.#listeners) listener(reason)
    this.#lines.close()
  }

  #receive(line: string): void {
    const message = JSON.parse(line)
    if (message.event !== undefined) this.#hear({ event: message.event, data: message.data ?? {} })
    const waiter = this.#waiters.get(message.id)
    // The greeting carries no id; it needs no answer but the first command.
    if (waiter === undefined) return
    this.#waiters.delete(message.id)
    if (message.error === undefined) waiter.resolve(message.return)
    else waiter.reject(new Error(message.error.desc))
  }

  #hear(event: QmpEvent): void {
    this.#onEvent(event)
    for (const listener of this.#listeners) listener(event)
  }
}
