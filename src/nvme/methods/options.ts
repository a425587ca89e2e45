/** `bdev_nvme_set_options` */
import { z } from 'zod'
import { RpcError } from '../../core/errors.ts'
import { method } from '../../rpc/method.ts'
import { done, int32, uint32, uint64 } from '../../rpc/params.ts'
import { checkReconnect } from '../attach-options.ts'
import { DEFAULT_HOST_OPTIONS } from '../messages.ts'
import { toPolicy } from '../multipath-options.ts'
import { multipathOpts, type NvmeContext } from './context.ts'

export const bdevNvmeSetOptions = method({
  name: 'bdev_nvme_set_options',
  summary: 'Sets what holds for all NVMe controllers. Only before the first is attached.',
  state: 'any',
  params: z.object({
    action_on_timeout: z
      .enum(['none', 'reset', 'abort'])
      .default('none')
      .describe('What to do when a command takes longer than timeout_us'),
    timeout_us: uint64.default(0).describe('Time for a command; 0 for no limit'),
    timeout_admin_us: uint64.default(0).describe('Time for an admin command; 0 for timeout_us'),
    keep_alive_timeout_ms: uint32
      .default(10_000)
      .describe('A path whose controller does not answer for so long is given up; 0 switches that off'),
    transport_retry_count: uint32.default(4).describe('Without meaning for TCP, which retries by itself'),
    bdev_retry_count: int32
      .min(-1)
      .default(3)
      .describe('How often an I/O that failed for the time being is tried again; -1 for no limit'),
    io_queue_requests: uint32
      .min(1)
      .default(512)
      .describe('Commands outstanding on an I/O queue, at most; the controller has the last word'),
    ctrlr_loss_timeout_sec: int32.default(0).describe('Default of bdev_nvme_attach_controller'),
    reconnect_delay_sec: uint32.default(0).describe('Default of bdev_nvme_attach_controller'),
    fast_io_fail_timeout_sec: uint32.default(0).describe('Default of bdev_nvme_attach_controller'),
    disable_auto_failback: z
      .boolean()
      .default(false)
      .describe('Stay on a path after a preferred one came back, until bdev_nvme_set_preferred_path'),
    generate_uuids: z
      .boolean()
      .default(false)
      .describe('Accepted: every namespace without a UUID gets one that stays the same'),
    nvme_error_stat: z.boolean().default(false).describe('Accepted: errors are counted in any case'),
    io_path_stat: z.boolean().default(false).describe('Count the I/O of each path'),
    tcp_connect_timeout_ms: uint32.default(0).describe('Time to connect; 0 for ten seconds'),
    enable_flush: z
      .boolean()
      .default(true)
      .describe('Pass flushes on to controllers that have a write cache. SPDK does not by default'),
    multipath_opts: multipathOpts.optional().describe('Default of bdev_nvme_attach_controller'),
  }),
  result: done,
  errors: { EPERM: 'a controller is attached', EINVAL: 'time-outs that contradict each other' },
  saves: true,
  // Arbitration, polling periods, RDMA, acceleration and authentication: nothing here corresponds to them.
  ignored: [
    'arbitration_burst',
    'low_priority_weight',
    'medium_priority_weight',
    'high_priority_weight',
    'nvme_adminq_poll_period_us',
    'nvme_ioq_poll_period_us',
    'delay_cmd_submit',
    'transport_ack_timeout',
    'transport_tos',
    'rdma_srq_size',
    'allow_accel_sequence',
    'rdma_max_cq_size',
    'rdma_cm_event_timeout_ms',
    'dhchap_digests',
    'dhchap_dhgroups',
    'rdma_umr_per_io',
  ],
  cli: {
    flags: {
      action_on_timeout: 'a',
      timeout_us: 't',
      keep_alive_timeout_ms: 'k',
      transport_retry_count: 'c',
      nvme_error_stat: 'm',
      bdev_retry_count: 'r',
      io_queue_requests: 's',
      ctrlr_loss_timeout_sec: 'l',
      reconnect_delay_sec: 'o',
      fast_io_fail_timeout_sec: 'u',
      disable_auto_failback: 'f',
      nvme_adminq_poll_period_us: 'p',
      nvme_ioq_poll_period_us: 'i',
      delay_cmd_submit: { off: ['d', 'disable-delay-cmd-submit'] },
      transport_ack_timeout: 'e',
      rdma_srq_size: 'q',
      allow_accel_sequence: { on: 'allow-accel-sequence' },
      rdma_umr_per_io: { on: 'rdma-umr-per-io' },
    },
  },
  async run(params, { nvme }: NvmeContext) {
    if (!nvme.isEmpty) {
      const names = nvme.list().map(({ name }) => name)
      throw new RpcError(
        'EPERM',
        `RPC not permitted with nvme controllers already attached: detach ${names.join(', ')} first`,
      )
    }
    const { timeout_us, timeout_admin_us } = params
    if (timeout_us === 0 && timeout_admin_us !== 0) {
      throw new RpcError('EINVAL', `timeout_admin_us ${timeout_admin_us} needs timeout_us, which is 0`)
    }
    const reconnect = {
      ctrlrLossTimeoutSec: params.ctrlr_loss_timeout_sec,
      reconnectDelaySec: params.reconnect_delay_sec,
      fastIoFailTimeoutSec: params.fast_io_fail_timeout_sec,
    }
    checkReconnect(reconnect)
    nvme.defaults = { reconnect, policy: toPolicy(params.multipath_opts) }
    nvme.passesFlush = params.enable_flush
    nvme.givenOptions = params
    await nvme.setOptions({
      keepAliveTimeoutMs: params.keep_alive_timeout_ms,
      ioTimeoutUs: timeout_us,
      adminTimeoutUs: timeout_admin_us,
      actionOnTimeout: params.action_on_timeout,
      retryCount: params.bdev_retry_count,
      ioQueueDepth: Math.min(params.io_queue_requests, DEFAULT_HOST_OPTIONS.ioQueueDepth),
      disableAutoFailback: params.disable_auto_failback,
      countPathIo: params.io_path_stat,
      connectTimeoutMs: params.tcp_connect_timeout_ms,
    })
    return true as const
  },
})
