/**
 * Whether the storage of a pool answers. A file system on a server that has gone makes whoever touches it wait in the kernel,
 * maybe for ever, on a thread that nobody can take back. So a program is asked first, which can be given up, and the daemon
 * touches the storage only after an answer:
 *
 *     no question    --->  answers           the work begins
 *                    --->  no answer         the work is refused; so is all that comes, and what waits hears of it,
 *                                            until an answer comes
 */
import { answerWithin } from '../core/answer-within.ts'
import { RpcError } from '../core/errors.ts'
import { logger } from '../core/log.ts'

const log = logger('volume')

/** Storage at the other end of a network. */
export interface Remote {
  /** For messages: `store:/exports/vms`. */
  readonly where: string
  /** Rejects with what is wrong. It is told when it has had its time, and nobody waits for it from then on. */
  ask(signal: AbortSignal): Promise<unknown>
}

/** As long as a server that is only slow may take. */
const LIMIT_MS = 10_000

export class Reach {
  readonly #pool: string
  readonly #remote: Remote | undefined
  readonly #limitMs: number
  #trouble: RpcError | undefined
  /** As long as the program is there, so that those which nobody can end do not gather. */
  #answer: Promise<void> | undefined
  readonly #waiting = new Set<(trouble: RpcError) => void>()

  /** Storage without `remote` is there. */
  constructor(pool: string, remote: Remote | undefined, limitMs = LIMIT_MS) {
    this.#pool = pool
    this.#remote = remote
    this.#limitMs = limitMs
  }

  /** What was wrong when it was asked last. */
  get trouble(): RpcError | undefined {
    return this.#trouble
  }

  /** Asks, and rejects with what is wrong: `RpcError` ETIMEDOUT without an answer. */
  async check(): Promise<void> {
    if (this.#remote === undefined) return
    this.#answer ??= this.#ask(this.#remote)
    await this.#answer
  }

  /** The same as a yes or no. */
  answers(): Promise<boolean> {
    return this.check().then(
      () => true,
      () => false,
    )
  }

  /** What `work` comes to, or the trouble that comes before; then its end is nobody's concern any more. */
  during<T>(work: Promise<T>): Promise<T> {
    return new Promise((resolve, reject) => {
      this.#waiting.add(reject)
      const over = (): void => void this.#waiting.delete(reject)
      void work.then(resolve, reject).finally(over)
    })
  }

  #ask(remote: Remote): Promise<void> {
    const over = (): void => {
      this.#answer = undefined
    }
    return answerWithin(this.#limitMs, signal => remote.ask(signal).finally(over)).then(
      () => this.#judge(undefined, remote),
      (error: RpcError) => {
        this.#judge(error, remote)
        throw this.#trouble
      },
    )
  }

  #judge(error: RpcError | undefined, { where }: Remote): void {
    const before = this.#trouble
    if (error === undefined) {
      this.#trouble = undefined
      if (before !== undefined) log.notice(`pool ${this.#pool}: ${where} answers again`)
      return
    }
    this.#trouble = new RpcError(
      error.code,
      `pool ${this.#pool} is inaccessible: ${where}: ${error.message}. It goes on when that answers again; ` +
        `qpair pool destroy ${this.#pool} --force gives it up`,
      { cause: error },
    )
    if (before === undefined) log.error(this.#trouble.message)
    for (const fail of this.#waiting) fail(this.#trouble)
  }
}
