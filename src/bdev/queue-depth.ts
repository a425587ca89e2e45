/** How full devices' queues are, looked at periodically for those that were asked for (`bdev_set_qd_sampling_period`). */
import { logger } from '../core/log.ts'
import type { BdevRegistry } from './registry.ts'

const log = logger('bdev')

/** As in `bdev_get_iostat`; times in microseconds. */
export interface QueueDepth {
  readonly queue_depth_polling_period: number
  /** At the last look: I/Os outstanding on all reactors. */
  queue_depth: number
  /** For how long something was outstanding, as far as the looks tell. */
  io_time: number
  /** The same, times how many were outstanding. */
  weighted_io_time: number
}

/** A look costs a message to each reactor, so it comes at most this often. */
const PERIOD_MS_MIN = 1

interface Sample {
  readonly counters: QueueDepth
  readonly timer: NodeJS.Timeout
  isAsking: boolean
}

export class QueueDepths {
  readonly #bdevs: BdevRegistry
  readonly #samples = new Map<string, Sample>()

  constructor(bdevs: BdevRegistry) {
    this.#bdevs = bdevs
    bdevs.listen({ removing: ({ name }) => this.stop(name) })
  }

  /** Undefined for a device that is not looked at. */
  get(name: string): QueueDepth | undefined {
    return this.#samples.get(name)?.counters
  }

  /** Looks every `periodUs` from now on. */
  start(name: string, periodUs: number): void {
    this.stop(name)
    const periodMs = Math.min(Math.max(periodUs / 1000, PERIOD_MS_MIN), 0x7fff_ffff)
    const timer = setInterval(() => void this.#look(name), periodMs)
    timer.unref()
    const counters = {
      queue_depth_polling_period: periodUs,
      queue_depth: 0,
      io_time: 0,
      weighted_io_time: 0,
    }
    this.#samples.set(name, { counters, timer, isAsking: false })
  }

  stop(name: string): void {
    clearInterval(this.#samples.get(name)?.timer)
    this.#samples.delete(name)
  }

  async #look(name: string): Promise<void> {
    const sample = this.#samples.get(name)
    if (sample === undefined || sample.isAsking) return
    sample.isAsking = true
    try {
      const answers = await this.#bdevs.iostat([name], 'none')
      const { counters } = sample
      counters.queue_depth = answers.reduce((sum, [answer]) => sum + answer!.outstanding, 0)
      if (counters.queue_depth === 0) return
      counters.io_time += counters.queue_depth_polling_period
      counters.weighted_io_time += counters.queue_depth_polling_period * counters.queue_depth
    } catch (error) {
      log.debug(`${name}: its queue depth is unknown: ${error}`)
    } finally {
      sample.isAsking = false
    }
  }
}
