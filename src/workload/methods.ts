import { z } from 'zod'
import { method } from '../rpc/method.ts'
import type { WorkloadReport, Workloads } from './workloads.ts'

export interface NeedsWorkloads {
  readonly workloads: Workloads
}

const report = z.object({
  id: z.int(),
  bdev_name: z.string(),
  elapsed_us: z.int(),
  reads: z.int(),
  writes: z.int(),
  errors: z.int(),
  miscompares: z.int(),
  read_backs: z.int(),
  first_errors: z.array(z.string()),
  in_flight: z.int(),
  iops: z.number(),
  longest_pause_us: z.int(),
  latency_us: z.object({
    mean: z.number(),
    p50: z.number(),
    p99: z.number(),
    p999: z.number(),
    max: z.number(),
  }),
})

const start = method({
  name: 'workload_start',
  summary:
    'Sends I/O to a device from within the daemon, to measure or to verify it. Writes destroy what is on it.',
  params: z.object({
    bdev_name: z.string().describe('The device'),
    io_size: z.int().min(512).default(4096).describe('Bytes in one I/O'),
    queue_depth: z.int().min(1).max(4096).default(32).describe('I/Os in flight, over all reactors'),
    read_percent: z.int().min(0).max(100).default(100).describe('Share of reads; the rest are writes'),
    sequential: z.boolean().default(false).describe('One after the other instead of anywhere'),
    verify: z
      .boolean()
      .default(false)
      .describe(
        'Stamp every block written, judge every block read, and at the end read back all that was written',
      ),
    seed: z.int().min(0).default(1).describe('The same seed gives the same I/O'),
    io_count: z.int().min(0).default(0).describe('Ends after so many I/Os; 0 runs until workload_stop'),
  }),
  result: z.int(),
  errors: {
    ENODEV: 'no device has that name',
    EINVAL: 'the device is too small, or the size is not whole blocks',
    ENOMEM: 'a reactor has too few buffers for that queue depth',
  },
  cli: { positional: ['bdev_name'] },
  run: (options, { workloads }: NeedsWorkloads) => workloads.start(options),
})

const get = method({
  name: 'workload_get',
  summary: 'Tells how running workloads go.',
  params: z.object({ id: z.int().optional().describe('One workload; all of them without it') }),
  result: z.array(report),
  errors: { ENOENT: 'no workload has that number' },
  cli: {
    positional: ['id'],
    columns: [
      'id',
      'bdev_name',
      'iops',
      { title: 'P50 USEC', value: row => row.latency_us.p50 },
      { title: 'P99 USEC', value: row => row.latency_us.p99 },
      'errors',
      'miscompares',
    ],
    commands: ['workload list'],
  },
  run: async ({ id }, { workloads }: NeedsWorkloads) => (await workloads.report(id)).map(toWire),
})

const stop = method({
  name: 'workload_stop',
  summary: 'Ends a workload and tells how it went.',
  params: z.object({ id: z.int().describe('The workload') }),
  result: report,
  errors: { ENOENT: 'no workload has that number' },
  concurrent: true,
  cli: { positional: ['id'] },
  run: async ({ id }, { workloads }: NeedsWorkloads) => toWire(await workloads.stop(id)),
})

const forgetPause = method({
  name: 'workload_forget_pause',
  summary: "Has a running workload's longest pause counted from now on.",
  params: z.object({ id: z.int().describe('The workload') }),
  result: z.literal(true),
  errors: { ENOENT: 'no workload has that number' },
  cli: { positional: ['id'] },
  async run({ id }, { workloads }: NeedsWorkloads) {
    await workloads.forgetPause(id)
    return true as const
  },
})

function toWire(report: WorkloadReport) {
  return {
    id: report.id,
    bdev_name: report.bdevName,
    elapsed_us: Math.round(report.elapsedUs),
    reads: report.reads,
    writes: report.writes,
    errors: report.errors,
    miscompares: report.miscompares,
    read_backs: report.readBacks,
    first_errors: [...report.firstErrors],
    in_flight: report.inFlight,
    iops: report.elapsedUs === 0 ? 0 : Math.round(((report.reads + report.writes) * 1e6) / report.elapsedUs),
    longest_pause_us: Math.round(report.longestPauseUs),
    latency_us: report.latencyUs,
  }
}

export const workloadMethods = [start, get, forgetPause, stop]
