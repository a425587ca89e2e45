/** Counters of one channel, as `bdev_get_iostat` shows them. Latencies are in microseconds. */
import type { Reactor } from '../reactor/reactor.ts'
import { Status } from '../spec/nvme-status.ts'
import type { BdevIo } from './io.ts'

/** The four kinds of operation that SPDK's statistics know, and their order in the counters. */
const READ = 0
const WRITE = 1
const UNMAP = 2
/** Flushes, compares, zeroes and resets are counted as operations but belong to none of the kinds above. */
const OTHER = 3

const PER_KIND = 5
const BYTES = 0
const OPS = 1
const LATENCY_US = 2
const MAX_LATENCY_US = 3
const MIN_LATENCY_US = 4

const KIND_OF_TYPE = new Int32Array([READ, WRITE, OTHER, OTHER, UNMAP, OTHER, OTHER, OTHER])

export interface IoCounters {
  bytes_read: number
  num_read_ops: number
  bytes_written: number
  num_write_ops: number
  bytes_unmapped: number
  num_unmap_ops: number
  bytes_copied: number
  num_copy_ops: number
  read_latency_ticks: number
  max_read_latency_ticks: number
  min_read_latency_ticks: number
  write_latency_ticks: number
  max_write_latency_ticks: number
  min_write_latency_ticks: number
  unmap_latency_ticks: number
  max_unmap_latency_ticks: number
  min_unmap_latency_ticks: number
  copy_latency_ticks: number
  max_copy_latency_ticks: number
  min_copy_latency_ticks: number
  /** How many I/Os ended with each NVMe status other than success, by name: `lba_out_of_range`. */
  io_error: Record<string, number>
}

export class IoStat {
  readonly #counters = new Float64Array(PER_KIND * 4)
  #errors = new Map<number, number>()

  constructor() {
    this.#forgetExtremes()
  }

  /** Counts a completed I/O. The time is not handed in, since a number with a fraction is an object of its own then. */
  count(io: BdevIo, { nowUs }: Pick<Reactor, 'nowUs'>): void {
    if (io.status !== Status.SUCCESS) {
      this.#errors.set(io.status, (this.#errors.get(io.status) ?? 0) + 1)
      return
    }
    const latencyUs = nowUs - io.submittedUs
    const counters = this.#counters
    const at = KIND_OF_TYPE[io.type]! * PER_KIND
    counters[at + BYTES]! += io.blockCount * io.channel!.info.blockSize
    counters[at + LATENCY_US]! += latencyUs
    if (latencyUs > counters[at + MAX_LATENCY_US]!) counters[at + MAX_LATENCY_US] = latencyUs
    if (latencyUs < counters[at + MIN_LATENCY_US]!) counters[at + MIN_LATENCY_US] = latencyUs
    counters[at + OPS]!++
  }

  /** `all` forgets everything, `maxmin` the extremes, `error` the errors. */
  reset(mode: 'all' | 'maxmin' | 'error' | 'none'): void {
    if (mode === 'all') this.#counters.fill(0)
    if (mode === 'all' || mode === 'maxmin') this.#forgetExtremes()
    if (mode === 'all' || mode === 'error') this.#errors = new Map()
  }

  /** Plain data, for the control thread. */
  snapshot(): IoCounters {
    const at = (kind: number, counter: number): number => {
      const value = this.#counters[kind * PER_KIND + counter]!
      return value === Number.POSITIVE_INFINITY ? 0 : Math.round(value)
    }
    return {
      bytes_read: at(READ, BYTES),
      num_read_ops: at(READ, OPS),
      bytes_written: at(WRITE, BYTES),
      num_write_ops: at(WRITE, OPS),
      bytes_unmapped: at(UNMAP, BYTES),
      num_unmap_ops: at(UNMAP, OPS),
      bytes_copied: 0,
      num_copy_ops: 0,
      read_latency_ticks: at(READ, LATENCY_US),
      max_read_latency_ticks: at(READ, MAX_LATENCY_US),
      min_read_latency_ticks: at(READ, MIN_LATENCY_US),
      write_latency_ticks: at(WRITE, LATENCY_US),
      max_write_latency_ticks: at(WRITE, MAX_LATENCY_US),
      min_write_latency_ticks: at(WRITE, MIN_LATENCY_US),
      unmap_latency_ticks: at(UNMAP, LATENCY_US),
      max_unmap_latency_ticks: at(UNMAP, MAX_LATENCY_US),
      min_unmap_latency_ticks: at(UNMAP, MIN_LATENCY_US),
      copy_latency_ticks: 0,
      max_copy_latency_ticks: 0,
      min_copy_latency_ticks: 0,
      io_error: Object.fromEntries([...this.#errors].map(([status, count]) => [statusName(status), count])),
    }
  }

  #forgetExtremes(): void {
    for (let at = 0; at < this.#counters.length; at += PER_KIND) {
      this.#counters[at + MAX_LATENCY_US] = 0
      this.#counters[at + MIN_LATENCY_US] = Number.POSITIVE_INFINITY
    }
  }
}

/** As a key of `io_error`: the status's name, or its number where it has none. */
function statusName(status: number): string {
  const name = Object.entries(Status).find(([, value]) => value === status)?.[0]
  return name === undefined ? `status_0x${status.toString(16)}` : name.toLowerCase()
}

/** What all reactors counted, as one. */
export function sumCounters(all: readonly IoCounters[]): IoCounters {
  const total: Record<string, unknown> = { ...new IoStat().snapshot() }
  const errors: Record<string, number> = {}
  for (const { io_error, ...counters } of all) {
    for (const [key, value] of Object.entries(counters)) {
      const sum = total[key] as number
      if (key.startsWith('max_')) total[key] = Math.max(sum, value)
      else if (!key.startsWith('min_')) total[key] = sum + value
      else if (sum === 0 || (value > 0 && value < sum)) total[key] = value
    }
    for (const [name, count] of Object.entries(io_error)) errors[name] = (errors[name] ?? 0) + count
  }
  return { ...(total as unknown as IoCounters), io_error: errors }
}
