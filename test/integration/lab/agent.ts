/** The test's end of the serial port on which the guest runs commands; `guest-files/agent` has the protocol. */
import { LineSocket } from './line-socket.ts'

/** What a command wrote and how it ended; a code above 128 stands for the signal `code - 128`. */
export interface CommandResult {
  readonly stdout: string
  readonly stderr: string
  readonly code: number
}

/** A promise with its two ends in hand. */
class Deferred<T> {
  resolve!: (value: T) => void
  reject!: (error: Error) => void
  readonly promise = new Promise<T>((resolve, reject) => {
    this.resolve = resolve
    this.reject = reject
  })

  constructor() {
    // Whoever waits for the promise hears of the failure; that nobody waits is no second failure.
    this.promise.catch(() => {})
  }
}

/** Commands that a guest has been asked to run and has not answered. */
class Pending {
  readonly commands = new Map<number, Deferred<CommandResult>>()
  lastId = 0
}

export class Agent {
  #lines!: LineSocket
  #booted = new Deferred<void>()
  #isBooted = false
  #pending = new Pending()

  /** Waits on a socket for the machine, which is started next. */
  static async listen(path: string): Promise<Agent> {
    const agent = new Agent()
    agent.#lines = await LineSocket.listen(path, line => agent.#receive(line))
    return agent
  }

  /** Settles when the guest takes commands, again after each reset; rejects when it died before. */
  get booted(): Promise<void> {
    return this.#booted.promise
  }

  /** Whether the guest takes commands now. */
  get isBooted(): boolean {
    return this.#isBooted
  }

  /** Starts a shell command in the guest. */
  start(command: string): { readonly id: number; readonly done: Promise<CommandResult> } {
    const pending = this.#pending
    const id = ++pending.lastId
    const result = new Deferred<CommandResult>()
    pending.commands.set(id, result)
    this.booted.then(
      () => this.#lines.send(`${id} ${Buffer.from(command).toString('base64')}`),
      error => pending.commands.delete(id) && result.reject(error),
    )
    return { id, done: result.promise }
  }

  /** The guest of another agent moves here, with its commands: who answers them first, there or here, does not matter. */
  adopt(other: Agent): void {
    this.#pending = other.#pending
    this.#isBooted = other.#isBooted
    this.#booted.resolve()
  }

  /** The guest has moved away: its end here means nothing to its commands. */
  release(): void {
    this.#pending = new Pending()
  }

  /** The guest starts anew: its commands are gone, and the next ones wait until it has booted. */
  rebooting(reason: Error): void {
    this.#isBooted = false
    this.#booted.reject(reason)
    this.#booted = new Deferred()
    this.#rejectCommands(reason)
  }

  /** The guest is gone for good. */
  close(reason: Error): void {
    this.rebooting(reason)
    // Later commands fail too.
    this.#booted.reject(reason)
    this.#lines.close()
  }

  #rejectCommands(reason: Error): void {
    const commands = [...this.#pending.commands.values()]
    this.#pending.commands.clear()
    for (const command of commands) command.reject(reason)
  }

  #receive(line: string): void {
    if (line === 'ready') {
      this.#isBooted = true
      this.#booted.resolve()
      return
    }
    const [id, code, stdout, stderr] = line.split(' ')
    const command = this.#pending.commands.get(Number(id))
    // What an agent still sent before a reset belongs to commands that were rejected then.
    if (command === undefined) return
    this.#pending.commands.delete(Number(id))
    command.resolve({ code: Number(code), stdout: decode(stdout), stderr: decode(stderr) })
  }
}

const decode = (base64 = ''): string => Buffer.from(base64, 'base64').toString()
