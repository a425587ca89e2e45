/** The RPC methods that concern every device, whatever its driver. */
import { z } from 'zod'
import { RpcError } from '../../core/errors.ts'
import { formatSize } from '../../core/format-size.ts'
import { method } from '../../rpc/method.ts'
import { done, uint32, uint64 } from '../../rpc/params.ts'
import { BdevDescription, describeBdev } from '../describe.ts'
import { sumCounters } from '../iostat.ts'
import type { BdevContext } from '../method.ts'
import type { BdevRegistry } from '../registry.ts'

/** Times in statistics are in microseconds. */
const TICK_RATE = 1_000_000
const ticks = (): number => Math.round(performance.now() * 1000)

const bdevSetOptions = method({
  name: 'bdev_set_options',
  summary: 'Accepts the options of SPDK, all of which size pools that grow by themselves here.',
  params: z.object({
    bdev_io_pool_size: uint32.optional().describe('Accepted: requests are pooled by their front ends'),
    bdev_io_cache_size: uint32.optional().describe('Accepted, see bdev_io_pool_size'),
    bdev_auto_examine: z
      .boolean()
      .optional()
      .describe('Accepted: no driver claims devices by what is on them'),
    iobuf_small_cache_size: uint32.optional().describe('Accepted: buffers are pooled per reactor'),
    iobuf_large_cache_size: uint32.optional().describe('Accepted, see iobuf_small_cache_size'),
  }),
  result: done,
  state: 'startup',
  cli: {
    flags: {
      bdev_io_pool_size: 'p',
      bdev_io_cache_size: 'c',
      bdev_auto_examine: { on: ['e', 'auto-examine'], off: ['d', 'no-auto-examine'] },
    },
  },
  run: () => true as const,
})

const bdevGetBdevs = method({
  name: 'bdev_get_bdevs',
  summary: 'Lists block devices.',
  params: z.object({
    name: z.string().optional().describe('Only the device of that name, alias or UUID'),
    timeout: uint64.optional().describe('How long to wait for it to appear, in milliseconds'),
  }),
  result: z.array(BdevDescription),
  errors: { ENODEV: 'no device has that name' },
  cli: {
    positional: ['name'],
    flags: { name: 'b', timeout: ['t', 'timeout-ms'] },
    commands: ['bdev list'],
    columns: [
      'name',
      { title: 'PRODUCT', value: row => row.product_name },
      { title: 'SIZE', value: row => formatSize(row.num_blocks * row.block_size) },
      { title: 'BLOCK', value: row => row.block_size },
      { title: 'CLAIMED', value: row => row.claim_type ?? '-' },
      'uuid',
    ],
  },
  async run({ name, timeout = 0 }, { bdevs }: BdevContext) {
    const infos = name === undefined ? bdevs.list() : [await appearance(bdevs, name, timeout)]
    return infos.map(info => describeBdev(info, bdevs.exclusiveClaim(info.name)))
  },
})

/** The device of that name, waited for if it must be. */
function appearance(
  bdevs: BdevRegistry,
  name: string,
  timeoutMs: number,
): Promise<ReturnType<typeof bdevs.get>> {
  return new Promise((resolve, reject) => {
    const look = (): boolean => {
      const info = bdevs.find(name)
      if (info === undefined) return false
      bdevs.unlisten(listener)
      clearTimeout(timer)
      resolve(info)
      return true
    }
    const giveUp = (): void => {
      bdevs.unlisten(listener)
      try {
        resolve(bdevs.get(name))
      } catch (error) {
        reject(error)
      }
    }
    const listener = { added: (): void => void look() }
    bdevs.listen(listener)
    const timer = setTimeout(giveUp, Math.min(timeoutMs, 0x7fff_ffff))
    if (!look() && timeoutMs === 0) {
      clearTimeout(timer)
      giveUp()
    }
  })
}

const bdevExamine = method({
  name: 'bdev_examine',
  summary: 'Answers at once: no driver here makes devices of what it finds on others.',
  params: z.object({ name: z.string().describe('The device') }),
  result: done,
  errors: { ENODEV: 'no device has that name' },
  cli: { flags: { name: 'b' } },
  run({ name }, { bdevs }: BdevContext) {
    bdevs.get(name)
    return true as const
  },
})

const bdevWaitForExamine = method({
  name: 'bdev_wait_for_examine',
  summary: 'Answers at once: no driver here makes devices of what it finds on others.',
  params: z.object({}),
  result: done,
  run: () => true as const,
})

const Counters = z.object({
  bytes_read: z.int(),
  num_read_ops: z.int(),
  bytes_written: z.int(),
  num_write_ops: z.int(),
  bytes_unmapped: z.int(),
  num_unmap_ops: z.int(),
  bytes_copied: z.int(),
  num_copy_ops: z.int(),
  read_latency_ticks: z.int(),
  max_read_latency_ticks: z.int(),
  min_read_latency_ticks: z.int(),
  write_latency_ticks: z.int(),
  max_write_latency_ticks: z.int(),
  min_write_latency_ticks: z.int(),
  unmap_latency_ticks: z.int(),
  max_unmap_latency_ticks: z.int(),
  min_unmap_latency_ticks: z.int(),
  copy_latency_ticks: z.int(),
  max_copy_latency_ticks: z.int(),
  min_copy_latency_ticks: z.int(),
  io_error: z.record(z.string(), z.int()).optional(),
})

const QueueDepth = z.object({
  queue_depth_polling_period: z.int(),
  queue_depth: z.int(),
  io_time: z.int(),
  weighted_io_time: z.int(),
})

const resetMode = z.enum(['all', 'maxmin', 'error', 'none'])

/** `io_error` is there only when something failed. */
function shown<T extends { io_error: Record<string, number> }>({ io_error, ...counters }: T) {
  return { ...counters, ...(Object.keys(io_error).length > 0 && { io_error }) }
}

const bdevGetIostat = method({
  name: 'bdev_get_iostat',
  summary: 'Shows what devices have done. Ticks are microseconds.',
  params: z.object({
    names: z.array(z.string()).optional().describe('Only these devices'),
    per_channel: z.boolean().default(false).describe('Show each reactor on its own; for a single device'),
    reset_mode: resetMode.default('none').describe('What to forget after it was read'),
  }),
  result: z.object({
    tick_rate: z.int(),
    ticks: z.int(),
    bdevs: z.array(Counters.extend({ name: z.string(), ...QueueDepth.partial().shape })).optional(),
    name: z.string().optional(),
    channels: z.array(Counters.extend({ thread_id: z.int() })).optional(),
  }),
  errors: {
    ENODEV: 'no device has one of the names',
    EINVAL: 'per_channel without exactly one name',
  },
  cli: { flags: { names: 'b', per_channel: 'c' } },
  async run({ names, per_channel, reset_mode }, { bdevs }: BdevContext) {
    const wanted = (names ?? bdevs.list().map(info => info.name)).map(name => bdevs.get(name).name)
    if (per_channel && (names === undefined || wanted.length !== 1)) {
      throw new RpcError(
        'EINVAL',
        `per_channel shows one device and ${names === undefined ? 'none is' : `${wanted.length} are`} named: give one in names`,
      )
    }
    const answers = await bdevs.iostat(wanted, reset_mode)
    const head = { tick_rate: TICK_RATE, ticks: ticks() }
    if (per_channel) {
      const channels = answers.map((answer, index) => ({
        thread_id: index + 1,
        ...shown(answer[0]!.counters),
      }))
      return { ...head, name: wanted[0]!, channels }
    }
    const rows = wanted.map((name, index) => ({
      name,
      ...shown(sumCounters(answers.map(answer => answer[index]!.counters))),
      ...bdevs.queueDepths.get(name),
    }))
    return { ...head, bdevs: rows.filter(({ name }) => bdevs.find(name) !== undefined) }
  },
})

const bdevResetIostat = method({
  name: 'bdev_reset_iostat',
  summary: 'Forgets what devices have done.',
  params: z.object({
    name: z.string().optional().describe('Only this device'),
    mode: resetMode.default('all').describe('What to forget'),
  }),
  result: done,
  errors: { ENODEV: 'no device has that name' },
  cli: { flags: { name: 'b', mode: 'm' } },
  async run({ name, mode }, { bdevs }: BdevContext) {
    const names = name === undefined ? bdevs.list().map(info => info.name) : [bdevs.get(name).name]
    await bdevs.iostat(names, mode)
    return true as const
  },
})

const bdevSetQdSamplingPeriod = method({
  name: 'bdev_set_qd_sampling_period',
  summary: "Looks at the depth of a device's queue periodically; bdev_get_iostat then shows it.",
  params: z.object({
    name: z.string().describe('The device'),
    period: uint64.describe('Microseconds, looked at every millisecond at most; 0 ends it'),
  }),
  result: done,
  errors: { ENODEV: 'no device has that name' },
  cli: { positional: ['name', 'period'] },
  run({ name, period }, { bdevs }: BdevContext) {
    const info = bdevs.get(name)
    if (period === 0) bdevs.queueDepths.stop(info.name)
    else bdevs.queueDepths.start(info.name, period)
    return true as const
  },
})

export const deviceMethods = [
  bdevSetOptions,
  bdevGetBdevs,
  bdevExamine,
  bdevWaitForExamine,
  bdevGetIostat,
  bdevResetIostat,
  bdevSetQdSamplingPeriod,
]
