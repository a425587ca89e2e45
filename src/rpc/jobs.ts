/**
 * Jobs: what takes long, done in the background, with progress. A method checks what it was given, starts a job, and
 * answers `{job_id}` at once; the command line follows the job until it ends.
 *
 *     export const volumeFill = method({
 *       name: 'volume_fill',
 *       result: jobStarted,                                     // from rpc/job-methods.ts
 *       saves: true,                                            // only when it has `resume`
 *       cli: { job: ({ job_id }) => job_id },                   // the command line follows it
 *       async run({ name }, { volumes, jobs }: NeedsVolumes & NeedsJobs) {
 *         const volume = volumes.get(name)                      // what can be refused is refused here
 *         return jobs.start(
 *           { kind: 'volume_fill', name, unit: 'bytes', total: volume.sizeBytes, isCancellable: true },
 *           async (report, signal) => {
 *             for (let done = 0; done < volume.sizeBytes; done += STEP) {
 *               signal.throwIfAborted()
 *               await volume.fill(done, STEP)
 *               report(done + STEP)
 *             }
 *           },
 *         )
 *       },
 *     })
 *
 * The contract
 * - The job owns what `run` took for it (claims, open files) and gives it back in `finally`, however it ends.
 * - `report(done, total)` is cheap and may be called for every piece; percent, rate and time left are computed here.
 * - `signal` is aborted by `job_cancel` and when the daemon stops. Work that heeds it undoes what is half done, or keeps
 *   what it needs to go on (`DAEMON_STOPS`), and throws the signal's reason; the job is `cancelled` then. Work that cannot heed it says
 *   `isCancellable: false`.
 * - `resume` is the call that starts the job again after the daemon was stopped or killed. It is in the saved
 *   configuration as long as the job runs; the work finds out by itself how far it was, and says so by `done`. A job that
 *   ends by itself, by failure or by `job_cancel` is not resumed.
 *   Work begins when that is safe, so that what was begun is gone on with whenever the daemon is killed.
 * - Two jobs of one kind on one object do not run at once: the second is refused with EBUSY.
 */
import { type Clock, systemClock } from '../core/clock.ts'
import { RpcError, SysError, thereAre } from '../core/errors.ts'
import { logger } from '../core/log.ts'
import type { Configurable, MethodCall } from './config.ts'

const log = logger('rpc')

export type JobUnit = 'bytes' | 'objects'
export type JobState = 'running' | 'completed' | 'failed' | 'cancelled'

export interface JobOptions {
  /** What is done, mostly the name of the method. */
  readonly kind: string
  /** To what it is done. */
  readonly name: string
  readonly unit: JobUnit
  /** How much there is to do, if that is known before the work begins. */
  readonly total?: number
  /** What an earlier run has done already: the rate counts only what this one does. */
  readonly done?: number
  readonly isCancellable: boolean
  readonly resume?: MethodCall
}

/** How far the work is: `done` of `total`, which stays what it was when it is left out. */
export type ReportProgress = (done: number, total?: number) => void
export type JobWork = (report: ReportProgress, signal: AbortSignal) => Promise<void>

/** A job as it is now. */
export interface JobStatus {
  readonly id: number
  readonly kind: string
  readonly name: string
  readonly state: JobState
  readonly unit: JobUnit
  readonly done: number
  /** Undefined as long as nobody knows. */
  readonly total: number | undefined
  /** Whole percents: 100 only when all is done. */
  readonly percent: number | undefined
  /** Units a second, over the last ten seconds; over all of it once it has ended. */
  readonly rate: number
  /** Seconds that are left at this rate; undefined when nobody can tell. */
  readonly etaS: number | undefined
  readonly started: Date
  readonly elapsedS: number
  readonly isCancellable: boolean
  /** Why it failed. */
  readonly error: RpcError | undefined
}

/** The signal's reason when nobody has cancelled the job: work that is resumed keeps what it needs to go on. */
export const DAEMON_STOPS = new DOMException('the daemon stops', 'AbortError')

/** Jobs that have ended and can still be asked about. */
const ENDED_KEPT = 100
const SAMPLE_US = 500_000
const RATE_WINDOW_US = 10_000_000

export class Jobs implements Configurable {
  readonly subsystem = 'job'
  readonly dependsOn = ['bdev']
  readonly #clock: Clock
  readonly #ended: (status: JobStatus, wasSaved: boolean) => void
  readonly #saved: (() => Promise<void>) | undefined
  readonly #jobs = new Map<number, Job>()
  #lastId = 0
  #isStopping = false

  /**
   * `ended` is told of each end, and whether the saved configuration has a call for the job; `saved` resolves, always well,
   * when that has been written.
   */
  constructor(
    ended: (status: JobStatus, wasSaved: boolean) => void = () => {},
    clock: Clock = systemClock,
    saved?: () => Promise<void>,
  ) {
    this.#ended = ended
    this.#clock = clock
    this.#saved = saved
  }

  /** Begins work and answers what a method answers that does so. Throws `RpcError` EBUSY. */
  start(options: JobOptions, work: JobWork): { job_id: number } {
    const { kind, name } = options
    const other = [...this.#jobs.values()].find(
      job => job.isRunning && job.options.kind === kind && job.options.name === name,
    )
    if (other !== undefined) {
      throw new RpcError('EBUSY', `job ${other.id} does ${kind} to ${name} already: see job_get`)
    }
    const job = new Job(++this.#lastId, options, this.#clock)
    this.#jobs.set(job.id, job)
    log.notice(`job ${job.id}: ${kind} of ${name} started`)
    const saved = options.resume === undefined ? undefined : this.#saved
    void job.run(work, saved).then(() => this.#hasEnded(job))
    return { job_id: job.id }
  }

  /** Those that run and those that ended lately, the oldest first. */
  list(): JobStatus[] {
    return [...this.#jobs.values()].map(job => job.status())
  }

  /** Throws `RpcError` ENOENT. */
  get(id: number): JobStatus {
    return this.#get(id).status()
  }

  /** Resolves when the job has ended, or after `timeoutMs`. Throws `RpcError` ENOENT. */
  async wait(id: number, timeoutMs: number): Promise<JobStatus> {
    const job = this.#get(id)
    let late = (): void => {}
    const timeout = new Promise<void>(resolve => {
      late = resolve
    })
    const timer = this.#clock.after(timeoutMs, late)
    await Promise.race([job.ended, timeout])
    timer.cancel()
    return job.status()
  }

  /** Ends a job and resolves when it has ended. Throws `RpcError`: ENOENT, ENOTSUP, EINVAL when it has ended before. */
  async cancel(id: number): Promise<JobStatus> {
    const job = this.#get(id)
    const { state, kind, name, isCancellable } = job.status()
    const what = `job ${id} (${kind} of ${name})`
    if (state !== 'running') throw new RpcError('EINVAL', `${what} has ended already: ${state}`)
    if (!isCancellable) throw new RpcError('ENOTSUP', `${what} cannot be stopped half-way: wait for its end`)
    job.abort()
    await job.ended
    return job.status()
  }

  /** Ends what can be ended. What would be resumed stays in the saved configuration. */
  async stop(): Promise<void> {
    this.#isStopping = true
    const cancellable = [...this.#jobs.values()].filter(job => job.isRunning && job.options.isCancellable)
    for (const job of cancellable) job.abort(DAEMON_STOPS)
    await Promise.all(cancellable.map(job => job.ended))
  }

  config(): MethodCall[] {
    return [...this.#jobs.values()].flatMap(job => (job.isRunning ? (job.options.resume ?? []) : []))
  }

  #get(id: number): Job {
    const job = this.#jobs.get(id)
    if (job === undefined) {
      throw new RpcError('ENOENT', `there is no job ${id}: ${thereAre([...this.#jobs.keys()].map(String))}`)
    }
    return job
  }

  #hasEnded(job: Job): void {
    const status = job.status()
    const what = `job ${job.id}: ${status.kind} of ${status.name}`
    const time = `after ${Math.round(status.elapsedS)} s`
    if (status.error !== undefined) log.error(`${what} failed ${time}: ${status.error.message}`)
    else log.notice(`${what} ${status.state} ${time}`)
    const ended = [...this.#jobs.values()].filter(({ isRunning }) => !isRunning)
    for (const { id } of ended.slice(0, -ENDED_KEPT)) this.#jobs.delete(id)
    if (!this.#isStopping) this.#ended(status, job.options.resume !== undefined)
  }
}

class Job {
  readonly id: number
  readonly options: JobOptions
  /** Settles, always well, when the work has ended. */
  readonly ended: Promise<void>
  readonly #clock: Clock
  readonly #startedUs: number
  readonly #started = new Date()
  readonly #abort = new AbortController()
  #tellEnded: () => void = () => {}
  #state: JobState = 'running'
  #done: number
  #total: number | undefined
  #endedUs = 0
  #error: RpcError | undefined
  /** The start, and then at most one every `SAMPLE_US`, not much older than the window. */
  #samples: { readonly atUs: number; readonly done: number }[]

  constructor(id: number, options: JobOptions, clock: Clock) {
    this.id = id
    this.options = options
    this.#clock = clock
    this.#startedUs = clock.nowUs()
    this.#done = options.done ?? 0
    this.#total = options.total
    this.#samples = [{ atUs: this.#startedUs, done: this.#done }]
    this.ended = new Promise(resolve => {
      this.#tellEnded = resolve
    })
  }

  get isRunning(): boolean {
    return this.#state === 'running'
  }

  abort(reason?: DOMException): void {
    this.#abort.abort(reason)
  }

  async run(work: JobWork, saved?: () => Promise<void>): Promise<void> {
    try {
      if (saved !== undefined) await saved()
      await work((done, total) => this.#report(done, total), this.#abort.signal)
      this.#done = this.#total ?? this.#done
      this.#state = 'completed'
    } catch (error) {
      const isCancelled = this.#abort.signal.aborted && (error as Error).name === 'AbortError'
      this.#state = isCancelled ? 'cancelled' : 'failed'
      if (!isCancelled) this.#error = asRpcError(error)
    }
    this.#endedUs = this.#clock.nowUs()
    this.#tellEnded()
  }

  status(): JobStatus {
    const { kind, name, unit, isCancellable } = this.options
    const nowUs = this.isRunning ? this.#clock.nowUs() : this.#endedUs
    const rate = this.#rate(nowUs)
    const [done, total] = [this.#done, this.#total]
    const left = total === undefined ? undefined : total - done
    return {
      ...{ id: this.id, kind, name, state: this.#state, unit, done, total, rate, isCancellable },
      percent: total === undefined || total === 0 ? undefined : Math.floor((done * 100) / total),
      etaS: this.isRunning && left !== undefined && rate > 0 ? Math.ceil(left / rate) : undefined,
      started: this.#started,
      elapsedS: (nowUs - this.#startedUs) / 1e6,
      error: this.#error,
    }
  }

  #report(done: number, total: number | undefined): void {
    this.#total = total ?? this.#total
    // Never more than there is, and never back: a percentage that falls tells nobody anything.
    this.#done = Math.max(this.#done, Math.min(done, this.#total ?? done))
    const nowUs = this.#clock.nowUs()
    if (nowUs - this.#samples.at(-1)!.atUs < SAMPLE_US) return
    this.#samples.push({ atUs: nowUs, done: this.#done })
    while (this.#samples.length > 1 && this.#samples[1]!.atUs <= nowUs - RATE_WINDOW_US) this.#samples.shift()
  }

  #rate(nowUs: number): number {
    if (!this.isRunning) return perSecond(this.#done - (this.options.done ?? 0), nowUs - this.#startedUs)
    // The newest sample that is older than the window, so that the rate of work that stands still falls to nothing.
    const since = this.#samples.findLast(({ atUs }) => atUs <= nowUs - RATE_WINDOW_US) ?? this.#samples[0]!
    return perSecond(this.#done - since.done, nowUs - since.atUs)
  }
}

const perSecond = (amount: number, durationUs: number): number =>
  durationUs <= 0 ? 0 : (amount * 1e6) / durationUs

/** What nobody foresaw is logged whole: no caller waits for it. */
function asRpcError(error: unknown): RpcError {
  if (error instanceof RpcError) return error
  if (error instanceof SysError) return new RpcError(error.code as 'EIO', error.message, { cause: error })
  const { message, stack } = error instanceof Error ? error : new Error(String(error))
  log.error(stack ?? message)
  return new RpcError('INTERNAL', `Internal error: ${message}`, { cause: error })
}
