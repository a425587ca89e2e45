/** Methods of discovery services. */
import { setTimeout as delay } from 'node:timers/promises'
import { z } from 'zod'
import { RpcError } from '../../core/errors.ts'
import { method } from '../../rpc/method.ts'
import { done, int32, uint32, uint64 } from '../../rpc/params.ts'
import { NVME_TCP_DISCOVERY_PORT } from '../../spec/nvme-tcp.ts'
import { DISCOVERY_NQN } from '../../spec/nvmf.ts'
import { addressOf, checkNqn, checkReconnect, tridOf } from '../attach-options.ts'
import { defaultHostNqn } from '../host-identity.ts'
import { type NvmeContext, trid } from './context.ts'

export const bdevNvmeStartDiscovery = method({
  name: 'bdev_nvme_start_discovery',
  summary:
    'Follows a discovery controller: attaches what its log names, and detaches what it no longer names.',
  params: z.object({
    name: z.string().min(1).describe('Prefix of the controllers it attaches: name0, name1 …'),
    trtype: z.string().describe('TCP'),
    traddr: z.string().describe('IP address of the discovery controller'),
    adrfam: z.string().optional().describe('ipv4 or ipv6; follows from the address'),
    trsvcid: z.string().optional().describe('Its port; 8009 when absent'),
    hostnqn: z.string().optional().describe('NQN of this host; one made of the machine-id when absent'),
    wait_for_attach: z.boolean().default(false).describe('Answer when everything is attached'),
    attach_timeout_ms: uint64.default(0).describe('How long to wait for that; 0 for as long as it takes'),
    ctrlr_loss_timeout_sec: int32.optional().describe('As for bdev_nvme_attach_controller'),
    reconnect_delay_sec: uint32.optional().describe('As for bdev_nvme_attach_controller'),
    fast_io_fail_timeout_sec: uint32.optional().describe('As for bdev_nvme_attach_controller'),
  }),
  result: done,
  errors: {
    EEXIST: 'a discovery service has that name or that address',
    EIO: 'the discovery controller cannot be reached or refuses',
    ENOTSUP: 'another transport is asked for',
    ETIMEDOUT: 'not everything is attached in time',
  },
  saves: true,
  concurrent: true,
  cli: {
    flags: {
      name: 'b',
      trtype: 't',
      traddr: 'a',
      adrfam: 'f',
      trsvcid: 's',
      hostnqn: 'q',
      wait_for_attach: 'w',
      attach_timeout_ms: 'T',
      ctrlr_loss_timeout_sec: 'l',
      reconnect_delay_sec: 'o',
      fast_io_fail_timeout_sec: 'u',
    },
    commands: ['nvme discover'],
  },
  async run(params, { nvme }: NvmeContext) {
    const { name, hostnqn, wait_for_attach, attach_timeout_ms } = params
    const target = addressOf({ ...params, trsvcid: params.trsvcid ?? String(NVME_TCP_DISCOVERY_PORT) })
    if (hostnqn !== undefined) checkNqn('hostnqn', hostnqn)
    const { reconnect: defaults, policy } = nvme.defaults
    const reconnect = {
      ctrlrLossTimeoutSec: params.ctrlr_loss_timeout_sec ?? defaults.ctrlrLossTimeoutSec,
      reconnectDelaySec: params.reconnect_delay_sec ?? defaults.reconnectDelaySec,
      fastIoFailTimeoutSec: params.fast_io_fail_timeout_sec ?? defaults.fastIoFailTimeoutSec,
    }
    checkReconnect(reconnect)
    const given = Object.entries(params).filter(([, value]) => value !== undefined)
    const service = await nvme.discovery.start({
      controller: {
        name,
        subnqn: DISCOVERY_NQN,
        hostnqn: hostnqn ?? defaultHostNqn(),
        isHostNqnGiven: hostnqn !== undefined,
        reconnect,
        fabricsTimeoutUs: 0,
        disableSqFlowControl: false,
        policy,
      },
      target,
      call: { method: 'bdev_nvme_start_discovery', params: Object.fromEntries(given) },
    })
    if (!wait_for_attach) return true as const
    const attached = service.attached().then(() => true)
    const limit = new AbortController()
    const late =
      attach_timeout_ms === 0
        ? attached
        : delay(attach_timeout_ms, false, { signal: limit.signal, ref: false })
    const isInTime = await Promise.race([attached, late])
    limit.abort()
    if (isInTime) return true as const
    await nvme.discovery.stop(name)
    throw new RpcError('ETIMEDOUT', `${name}: not everything was attached within ${attach_timeout_ms} ms`)
  },
})

export const bdevNvmeStopDiscovery = method({
  name: 'bdev_nvme_stop_discovery',
  summary: 'Ends a discovery service and detaches what it attached.',
  params: z.object({ name: z.string().describe('The service') }),
  result: done,
  errors: { ENOENT: 'no discovery service has that name' },
  saves: true,
  cli: { flags: { name: 'b' } },
  async run({ name }, { nvme }: NvmeContext) {
    await nvme.discovery.stop(name)
    return true as const
  },
})

export const bdevNvmeGetDiscoveryInfo = method({
  name: 'bdev_nvme_get_discovery_info',
  summary: 'Shows the discovery services, and the discovery controllers that they were referred to.',
  params: z.object({}),
  result: z.array(z.object({ name: z.string(), trid, referrals: z.array(z.object({ trid })) })),
  cli: { columns: ['name', 'trid.traddr', 'trid.trsvcid'] },
  run: (_, { nvme }: NvmeContext) =>
    nvme.discovery.list().map(({ options, entries }) => ({
      name: options.controller.name,
      trid: tridOf(options.target, DISCOVERY_NQN),
      referrals: entries.flatMap(({ kind, target, subnqn }) =>
        kind === 'referral' && target !== undefined ? [{ trid: tridOf(target, subnqn) }] : [],
      ),
    })),
})
