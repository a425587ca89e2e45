/**
 * How members hear at once of what another has written, instead of with their next renewal. Whoever has written tells all
 * who watch the group's object; whoever is told looks for itself. What is missed costs no more than the wait for the
 * renewal: nothing depends on news.
 *
 *   tell() --notify--> OSD --> a thread of librados, on each member: eventfd += number of the notification
 *                       ^                                                 |
 *                       +---------- acknowledged <--------- rung() -------+
 */
import { systemClock } from '../core/clock.ts'
import { errnoName } from '../core/errors.ts'
import { logger } from '../core/log.ts'
import type { ObjectName } from '../sys/librados.ts'
import type { RadosWatches } from '../sys/librados-watch.ts'

const log = logger('gateway')

/** For so long an OSD keeps a notification for members that are about to watch again: it, or they, have lost a connection. */
const NOTIFY_MS = 5000
/** For those who end. */
const PATIENCE_MS = 1000

export interface NewsOptions {
  readonly rados: RadosWatches
  /** It exists. */
  readonly object: ObjectName
  readonly eventfd: number
  /** There may be news: also when some may have been missed. */
  readonly heard: () => void
}

export class News {
  readonly #options: NewsOptions
  /** The watch's handle; 0 while there is none. */
  #watch = 0
  #isBeginning = false
  #isClosed = false
  #lastProblem = ''

  constructor(options: NewsOptions) {
    this.#options = options
  }

  /** The eventfd was written to: the number of a notification, several numbers, or the watch is lost. */
  rung(sum: bigint): void {
    if (this.#isClosed) return
    const { rados, object, heard } = this.#options
    // A sum of several is the number of none: they are acknowledged by nobody, and time out.
    if (this.#stands()) rados.acknowledge(object, this.#watch, sum)
    this.ensure()
    heard()
  }

  /** Watches, if it does not any more. To be called now and then. */
  ensure(): void {
    if (this.#isClosed || this.#isBeginning || this.#stands()) return
    this.#isBeginning = true
    void this.#begin().finally(() => {
      this.#isBeginning = false
    })
  }

  /** Tells all members. Resolves when those who can have heard it. */
  async tell(): Promise<void> {
    const { rados, object } = this.#options
    if (this.#isClosed) return
    const patience = new Promise<void>(resolve => void systemClock.after(PATIENCE_MS, resolve))
    await Promise.race([rados.notify(object, NOTIFY_MS), patience])
  }

  /** The pool is to be closed next: what is under way is given up with it, and what comes of that ends with the client. */
  async close(): Promise<void> {
    this.#isClosed = true
    await this.#end()
  }

  /** False once the watch is lost: this client was not heard of for too long, or is shut out. */
  #stands(): boolean {
    const { rados, object } = this.#options
    return this.#watch !== 0 && rados.checkWatch(object.pool, this.#watch) >= 0
  }

  async #begin(): Promise<void> {
    const { rados, object, eventfd, heard } = this.#options
    await this.#end()
    if (this.#isClosed) return
    const result = await rados.watch(object, eventfd)
    if (this.#isClosed) return
    if (result > 0) {
      this.#watch = result
      this.#lastProblem = ''
      // There may have been some since the watch before.
      heard()
      return
    }
    const problem = errnoName(-result)
    if (problem !== this.#lastProblem)
      log.warning(`${object.name} cannot be watched (${problem}): changes are seen with the next renewal`)
    this.#lastProblem = problem
  }

  async #end(): Promise<void> {
    const { rados, object } = this.#options
    const watch = this.#watch
    this.#watch = 0
    if (watch !== 0) await rados.unwatch(object.pool, watch, PATIENCE_MS)
  }
}
