/** The target as a whole. */
import { z } from 'zod'
import { RpcError } from '../../core/errors.ts'
import { method } from '../../rpc/method.ts'
import { done, nameSet, uint16, uint32 } from '../../rpc/params.ts'
import type { TcpTransportStats } from '../tcp/transport.ts'
import { type NvmfContext, tgtName } from './context.ts'

/** Times in statistics are in microseconds. */
const TICK_RATE = 1_000_000
const FILTERS = ['transport', 'address', 'svcid'] as const

const setMaxSubsystems = method({
  name: 'nvmf_set_max_subsystems',
  summary: 'Sets how many subsystems there may be, the discovery subsystem included.',
  params: z.object({ max_subsystems: uint32.min(1).describe('1024 when not set') }),
  result: done,
  state: 'startup',
  saves: true,
  cli: { flags: { max_subsystems: 'x' } },
  run({ max_subsystems }, { nvmf }: NvmfContext) {
    nvmf.settings.maxSubsystems = max_subsystems
    return true as const
  },
})

const setConfig = method({
  name: 'nvmf_set_config',
  summary: 'Sets what holds for the whole target.',
  params: z.object({
    admin_cmd_passthru: z
      .record(z.string(), z.boolean())
      .optional()
      .describe('All false: no device here takes admin commands'),
    poll_groups_mask: z.string().optional().describe('Accepted: connections spread over all reactors'),
    discovery_filter: z.string().optional().describe('Old name of discovery_filters; match_any is no filter'),
    discovery_filters: nameSet
      .optional()
      .describe('Show only listeners that agree with the one a host came by in: transport, address, svcid'),
    dhchap_digests: nameSet.optional().describe('Accepted: there is no authentication'),
    dhchap_dhgroups: nameSet.optional().describe('Accepted: there is no authentication'),
    dup_host_policy: z
      .enum(['allow', 'restrict_per_listener'])
      .optional()
      .describe('May a host have several controllers by one listener (default allow)'),
  }),
  result: done,
  errors: { INVALID_PARAMS: 'a name in a list is not known' },
  state: 'startup',
  saves: true,
  cli: {
    flags: { admin_cmd_passthru: ['p', 'passthru-admin-cmds'], poll_groups_mask: 'm', discovery_filter: 'd' },
  },
  run(
    { admin_cmd_passthru = {}, discovery_filter, discovery_filters, dup_host_policy },
    { nvmf }: NvmfContext,
  ) {
    const passed = Object.entries(admin_cmd_passthru).find(([, isPassed]) => isPassed)
    if (passed !== undefined) {
      throw new RpcError(
        'INVALID_PARAMS',
        `admin_cmd_passthru.${passed[0]} is true, but no device here takes admin commands`,
      )
    }
    const wanted = discovery_filters ?? discovery_filter
    if (wanted !== undefined) nvmf.setDiscoveryFilter(parseFilters(wanted))
    if (dup_host_policy !== undefined) nvmf.settings.duplicateHostPolicy = dup_host_policy
    return true as const
  },
})

function parseFilters(text: string): { transport: boolean; address: boolean; svcid: boolean } {
  const names = text.split(/[,|]/).filter(name => name !== '' && name !== 'match_any')
  const unknown = names.find(name => !FILTERS.includes(name as (typeof FILTERS)[number]))
  if (unknown !== undefined) {
    throw new RpcError('INVALID_PARAMS', `discovery filter "${unknown}" is none of ${FILTERS.join(', ')}`)
  }
  return {
    transport: names.includes('transport'),
    address: names.includes('address'),
    svcid: names.includes('svcid'),
  }
}

const setCrdt = method({
  name: 'nvmf_set_crdt',
  summary: 'Sets the three command retry delays that hosts are told, in units of 100 ms.',
  params: z.object({
    crdt1: uint16.optional().describe('The first (default 0)'),
    crdt2: uint16.optional().describe('The second (default 0)'),
    crdt3: uint16.optional().describe('The third (default 0)'),
  }),
  result: done,
  state: 'startup',
  saves: true,
  cli: { flags: { crdt1: 't1', crdt2: 't2', crdt3: 't3' } },
  run({ crdt1 = 0, crdt2 = 0, crdt3 = 0 }, { nvmf }: NvmfContext) {
    nvmf.settings.crdt = [crdt1, crdt2, crdt3]
    return true as const
  },
})

const getStats = method({
  name: 'nvmf_get_stats',
  summary: 'Counts queues and completed I/Os on each reactor.',
  params: z.object({ tgt_name: tgtName }),
  result: z.object({
    tick_rate: z.int(),
    poll_groups: z.array(
      z.object({
        name: z.string(),
        admin_qpairs: z.int(),
        io_qpairs: z.int(),
        current_admin_qpairs: z.int(),
        current_io_qpairs: z.int(),
        current_unassociated_qpairs: z.int(),
        pending_bdev_io: z.int(),
        completed_nvme_io: z.int(),
        transports: z.array(z.object({ trtype: z.string() })),
      }),
    ),
  }),
  cli: { flags: { tgt_name: 't' } },
  async run(_, { nvmf }: NvmfContext) {
    const transports = nvmf.transport === null ? [] : [{ trtype: 'TCP' }]
    const stats = await nvmf.stats<TcpTransportStats>()
    return {
      tick_rate: TICK_RATE,
      poll_groups: stats.map((counters, index) => ({
        name: `nvmf_tgt_poll_group_${index}`,
        current_unassociated_qpairs: 0,
        pending_bdev_io: 0,
        ...counters,
        transports,
      })),
    }
  },
})

const getTargets = method({
  name: 'nvmf_get_targets',
  summary: 'Lists the names of the targets, of which there is one.',
  params: z.object({}),
  result: z.array(z.string()),
  run: () => ['nvmf_tgt'],
})

export const targetMethods = [setMaxSubsystems, setConfig, setCrdt, getStats, getTargets]
