/** Workloads as an operator sees them: I/O that the daemon itself sends to one of its devices, to measure or to verify it. */

import type { BdevRegistry } from '../bdev/registry.ts'
import { RpcError } from '../core/errors.ts'
import type { ReactorGroup } from '../reactor/group.ts'
import { BufferPool } from '../sys/memory.ts'
import { type JobOptions, type JobReport, VERIFY_BLOCK_SIZE_MIN } from './job.ts'

export interface WorkloadOptions {
  readonly bdev_name: string
  readonly io_size: number
  readonly queue_depth: number
  readonly read_percent: number
  readonly sequential: boolean
  readonly verify: boolean
  readonly seed: number
  readonly io_count: number
}

interface Workload {
  readonly options: WorkloadOptions
  /** How many reactors take part: the first ones. */
  readonly reactorCount: number
}

export interface WorkloadReport extends JobReport {
  readonly id: number
  readonly bdevName: string
}

export class Workloads {
  readonly #bdevs: BdevRegistry
  readonly #reactors: ReactorGroup
  readonly #running = new Map<number, Workload>()
  #lastId = 0

  constructor(bdevs: BdevRegistry, reactors: ReactorGroup) {
    this.#bdevs = bdevs
    this.#reactors = reactors
  }

  /** Starts I/O on every reactor that gets at least one place of the queue; returns the workload's number. */
  async start(options: WorkloadOptions): Promise<number> {
    const { bdev_name, io_size, queue_depth, verify } = options
    const bdev = this.#bdevs.get(bdev_name)
    if (io_size % bdev.blockSize !== 0 || io_size > BufferPool.MAX_SIZE) {
      throw new RpcError(
        'EINVAL',
        `io_size ${io_size} must be whole blocks of ${bdev_name} (${bdev.blockSize} bytes) and at most ${BufferPool.MAX_SIZE}`,
      )
    }
    const unitCount = Math.floor((bdev.blockCount * bdev.blockSize) / io_size)
    const reactorCount = Math.min(this.#reactors.count, queue_depth)
    if (unitCount <= queue_depth) {
      throw new RpcError(
        'EINVAL',
        `${bdev_name} has room for ${unitCount} units of ${io_size} bytes, too few for a queue depth of ${queue_depth}`,
      )
    }
    if (verify && bdev.blockSize < VERIFY_BLOCK_SIZE_MIN) {
      throw new RpcError('EINVAL', `blocks of ${bdev.blockSize} bytes have no room for a stamp`)
    }
    const id = ++this.#lastId
    const share = Math.floor(unitCount / reactorCount)
    for (let index = 0; index < reactorCount; index++) {
      const job: JobOptions = {
        bdev: bdev.name,
        ioSize: io_size,
        queueDepth: Math.floor((queue_depth + index) / reactorCount),
        readPercent: options.read_percent,
        sequential: options.sequential,
        verify,
        seed: options.seed + index,
        firstUnit: index * share,
        unitCount: share,
        ioCountMax: Math.floor((options.io_count + index) / reactorCount),
      }
      // From the first on it runs, on one reactor more each time; if one cannot, all end.
      try {
        await this.#reactors.port(index).call('workload.start', { id, options: job })
      } catch (error) {
        if (this.#running.has(id)) await this.stop(id)
        throw error
      }
      this.#running.set(id, { options, reactorCount: index + 1 })
    }
    return id
  }

  /** One running workload, or all. */
  async report(id?: number): Promise<WorkloadReport[]> {
    const ids = id === undefined ? [...this.#running.keys()] : [id]
    return Promise.all(ids.map(async number => this.#gather(number, 'workload.report')))
  }

  /** Has the longest pause of a workload counted from now on. */
  async forgetPause(id: number): Promise<void> {
    await this.#ask(id, 'workload.forget-pause')
  }

  /** Ends a workload, waits for what is in flight, and tells how it went. */
  async stop(id: number): Promise<WorkloadReport> {
    const report = await this.#gather(id, 'workload.stop')
    this.#running.delete(id)
    return report
  }

  async #gather(id: number, topic: string): Promise<WorkloadReport> {
    const reports = (await this.#ask(id, topic)) as JobReport[]
    return { id, bdevName: this.#running.get(id)!.options.bdev_name, ...merge(reports) }
  }

  /** One answer from each reactor that takes part. */
  #ask(id: number, topic: string): Promise<unknown[]> {
    const workload = this.#running.get(id)
    if (workload === undefined) {
      const known = [...this.#running.keys()].join(', ')
      throw new RpcError(
        'ENOENT',
        `workload ${id} does not run; ${known === '' ? 'none does' : `these do: ${known}`}`,
      )
    }
    return Promise.all(
      Array.from({ length: workload.reactorCount }, (_, index) => this.#reactors.port(index).call(topic, id)),
    )
  }
}

/** The reports of several reactors as one. Percentiles are the worst of them: a bound, not an average. */
function merge(reports: readonly JobReport[]): JobReport {
  const sum = (of: (report: JobReport) => number): number =>
    reports.reduce((total, report) => total + of(report), 0)
  const max = (of: (report: JobReport) => number): number => Math.max(...reports.map(of))
  const count = sum(report => report.reads + report.writes)
  return {
    reads: sum(report => report.reads),
    writes: sum(report => report.writes),
    errors: sum(report => report.errors),
    firstErrors: reports.flatMap(report => report.firstErrors),
    miscompares: sum(report => report.miscompares),
    readBacks: sum(report => report.readBacks),
    inFlight: sum(report => report.inFlight),
    elapsedUs: max(report => report.elapsedUs),
    longestPauseUs: max(report => report.longestPauseUs),
    latencyUs: {
      mean: count === 0 ? 0 : sum(report => report.latencyUs.mean * (report.reads + report.writes)) / count,
      p50: max(report => report.latencyUs.p50),
      p99: max(report => report.latencyUs.p99),
      p999: max(report => report.latencyUs.p999),
      max: max(report => report.latencyUs.max),
    },
  }
}
