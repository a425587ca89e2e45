/** Transports. */
import { z } from 'zod'
import { RpcError } from '../../core/errors.ts'
import { method } from '../../rpc/method.ts'
import { done, int32, nameSet, uint16, uint32 } from '../../rpc/params.ts'
import { checkTrtype } from '../address.ts'
import type { TransportSettings } from '../messages.ts'
import { transportSettings } from '../transport-settings.ts'
import { type NvmfContext, tgtName } from './context.ts'

const ACCEPTED_POOL = 'Accepted: buffers are pooled by each reactor'
const ACCEPTED_RDMA = 'Accepted: of RDMA only'
const ACCEPTED_VFIO = 'Accepted: of vfio-user only'

const createTransport = method({
  name: 'nvmf_create_transport',
  summary: 'Prepares the target for hosts that come by TCP.',
  params: z.object({
    trtype: z.string().describe('Transport type: TCP'),
    tgt_name: tgtName,
    max_queue_depth: uint16.optional().describe('Entries of an I/O queue (default 128)'),
    max_io_qpairs_per_ctrlr: uint16.optional().describe('I/O queues of a controller (default 127)'),
    in_capsule_data_size: uint32.optional().describe('Bytes of data within a command (default 4096)'),
    max_io_size: uint32
      .optional()
      .describe('Bytes of one I/O, a power of two from 8192 to 1048576 (default 131072)'),
    io_unit_size: uint32.optional().describe(ACCEPTED_POOL),
    max_aq_depth: uint32.optional().describe('Entries of an admin queue, at least 32 (default 128)'),
    num_shared_buffers: uint32.optional().describe(ACCEPTED_POOL),
    buf_cache_size: uint32.optional().describe(ACCEPTED_POOL),
    iobuf_small_cache_size: uint32.optional().describe(ACCEPTED_POOL),
    iobuf_large_cache_size: uint32.optional().describe(ACCEPTED_POOL),
    zcopy: z.boolean().optional().describe('Accepted: devices that can lend their memory always do'),
    num_cqe: int32.optional().describe(ACCEPTED_RDMA),
    max_srq_depth: uint32.optional().describe(ACCEPTED_RDMA),
    no_srq: z.boolean().optional().describe(ACCEPTED_RDMA),
    c2h_success: z
      .boolean()
      .optional()
      .describe('Let the last data of a read say that it succeeded (default true)'),
    dif_insert_or_strip: z.boolean().optional().describe('Accepted: no device here has metadata'),
    sock_priority: uint32.optional().describe('Accepted: sockets keep the priority of the system'),
    acceptor_backlog: int32.optional().describe('Accepted: 1024 connections may wait to be accepted'),
    abort_timeout_sec: uint32.optional().describe('Accepted: an abort is answered at once'),
    no_wr_batching: z.boolean().optional().describe(ACCEPTED_RDMA),
    control_msg_num: uint16.optional().describe(ACCEPTED_POOL),
    disable_mappable_bar0: z.boolean().optional().describe(ACCEPTED_VFIO),
    disable_adaptive_irq: z.boolean().optional().describe(ACCEPTED_VFIO),
    disable_shadow_doorbells: z.boolean().optional().describe(ACCEPTED_VFIO),
    acceptor_poll_rate: uint32.optional().describe('Accepted: sockets are accepted as they come'),
    ack_timeout: uint32.optional().describe(ACCEPTED_RDMA),
    data_wr_pool_size: uint32.optional().describe(ACCEPTED_RDMA),
    disable_command_passthru: z.boolean().optional().describe('Accepted: no command is passed through'),
    kas: uint16.optional().describe('Granularity of keep alive in units of 100 ms (default 10)'),
    min_kato: uint32.optional().describe('The shortest keep-alive time-out in milliseconds (default 10000)'),
    masked_oncs: nameSet
      .optional()
      .describe(
        'Optional commands that hosts are not offered: all, nvmcmps, nvmdsmsv, nvmwzsv, reservs, nvmcpys',
      ),
    masked_fuses: nameSet.optional().describe('Fused operations that hosts are not offered: all, fcws'),
  }),
  result: done,
  errors: {
    INVALID_PARAMS: 'the transport type is not TCP, or an option cannot be',
    INTERNAL: 'there is a transport of that type already',
  },
  relaxed: true,
  saves: true,
  cli: {
    flags: {
      trtype: 't',
      tgt_name: 'g',
      max_queue_depth: 'q',
      max_io_qpairs_per_ctrlr: 'm',
      in_capsule_data_size: 'c',
      max_io_size: 'i',
      io_unit_size: 'u',
      max_aq_depth: 'a',
      num_shared_buffers: 'n',
      buf_cache_size: 'b',
      zcopy: 'z',
      num_cqe: 'd',
      max_srq_depth: 's',
      no_srq: 'r',
      c2h_success: { off: ['o', 'c2h-success'] },
      dif_insert_or_strip: 'f',
      sock_priority: 'y',
      acceptor_backlog: 'l',
      abort_timeout_sec: 'x',
      no_wr_batching: 'w',
      control_msg_num: 'e',
      disable_mappable_bar0: 'M',
      disable_adaptive_irq: 'I',
      disable_shadow_doorbells: 'S',
    },
  },
  async run(params, { nvmf }: NvmfContext) {
    checkTrtype(params.trtype)
    if (nvmf.transport !== null) {
      throw new RpcError('INTERNAL', `Transport type '${params.trtype}' already exists`)
    }
    await nvmf.createTransport(transportSettings(params))
    return true as const
  },
})

const TransportDescription = z.object({
  trtype: z.string(),
  max_queue_depth: z.int(),
  max_io_qpairs_per_ctrlr: z.int(),
  in_capsule_data_size: z.int(),
  max_io_size: z.int(),
  io_unit_size: z.int(),
  max_aq_depth: z.int(),
  iobuf_small_cache_size: z.int(),
  iobuf_large_cache_size: z.int(),
  dif_insert_or_strip: z.boolean(),
  zcopy: z.boolean(),
  c2h_success: z.boolean(),
  sock_priority: z.int(),
  abort_timeout_sec: z.int(),
  ack_timeout: z.int(),
  data_wr_pool_size: z.int(),
  disable_command_passthru: z.boolean(),
  kas: z.int(),
  min_kato: z.int(),
})

function describeTransport(transport: TransportSettings): z.input<typeof TransportDescription> {
  return {
    trtype: 'TCP',
    max_queue_depth: transport.maxQueueDepth,
    max_io_qpairs_per_ctrlr: transport.maxIoQpairsPerCtrlr,
    in_capsule_data_size: transport.inCapsuleDataSize,
    max_io_size: transport.maxIoSize,
    io_unit_size: transport.maxIoSize,
    max_aq_depth: transport.maxAqDepth,
    iobuf_small_cache_size: 0,
    iobuf_large_cache_size: 0,
    dif_insert_or_strip: false,
    zcopy: true,
    c2h_success: transport.c2hSuccess,
    sock_priority: 0,
    abort_timeout_sec: 1,
    ack_timeout: 0,
    data_wr_pool_size: 0,
    disable_command_passthru: true,
    kas: transport.kas,
    min_kato: transport.minKatoMs,
  }
}

const getTransports = method({
  name: 'nvmf_get_transports',
  summary: 'Lists transports and their limits.',
  params: z.object({
    tgt_name: tgtName,
    trtype: z.string().optional().describe('Only the transport of that type'),
  }),
  result: z.array(TransportDescription),
  errors: { ENODEV: 'there is no transport of that type' },
  cli: { flags: { tgt_name: 't' } },
  run({ trtype }, { nvmf }: NvmfContext) {
    const found = nvmf.transport === null ? [] : [describeTransport(nvmf.transport)]
    if (trtype === undefined || trtype.toUpperCase() === 'TCP') {
      if (trtype === undefined || found.length > 0) return found
    }
    const others = found.length > 0 ? 'TCP' : 'none yet'
    throw new RpcError(
      'ENODEV',
      `there is no transport ${trtype}: there is ${others}; nvmf_create_transport makes one`,
    )
  },
})

export const transportMethods = [createTransport, getTransports]
