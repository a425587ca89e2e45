/** Referrals to other discovery services. */
import { z } from 'zod'
import { method } from '../../rpc/method.ts'
import { done } from '../../rpc/params.ts'
import { parseTransportAddress } from '../address.ts'
import { checkNqn } from '../subsystem.ts'
import { ADDRESS_FLAGS, Address, addressOf, listenAddress, type NvmfContext, tgtName } from './context.ts'

const FLAGS = {
  'address.trtype': ADDRESS_FLAGS.trtype,
  'address.traddr': ADDRESS_FLAGS.traddr,
  'address.adrfam': ADDRESS_FLAGS.adrfam,
  'address.trsvcid': ADDRESS_FLAGS.trsvcid,
} as const

const subnqn = z.string().optional().describe('Its NQN; the well-known one when absent')

const addReferral = method({
  name: 'nvmf_discovery_add_referral',
  summary: 'Tells hosts of another discovery service.',
  params: z.object({
    tgt_name: tgtName,
    address: listenAddress,
    secure_channel: z.boolean().optional().describe('It is reached by TLS only'),
    subnqn,
  }),
  result: done,
  errors: { INVALID_PARAMS: 'the address or the NQN is malformed' },
  relaxed: true,
  saves: true,
  cli: { flags: { ...FLAGS, tgt_name: 'p', secure_channel: 'k', subnqn: 'n' } },
  async run({ address, subnqn, secure_channel = false }, { nvmf }: NvmfContext) {
    if (subnqn !== undefined) checkNqn(subnqn, 'subsystem')
    await nvmf.addReferral(parseTransportAddress(address), subnqn, secure_channel)
    return true as const
  },
})

const removeReferral = method({
  name: 'nvmf_discovery_remove_referral',
  summary: 'Tells hosts no more of another discovery service.',
  params: z.object({ tgt_name: tgtName, address: listenAddress, subnqn }),
  result: done,
  errors: { INVALID_PARAMS: 'the address is malformed', INTERNAL: 'there is no such referral' },
  saves: true,
  cli: { flags: { ...FLAGS, tgt_name: 'p', subnqn: 'n' } },
  async run({ address, subnqn }, { nvmf }: NvmfContext) {
    await nvmf.removeReferral(parseTransportAddress(address), subnqn)
    return true as const
  },
})

const getReferrals = method({
  name: 'nvmf_discovery_get_referrals',
  summary: 'Lists the discovery services that hosts are told of.',
  params: z.object({ tgt_name: tgtName }),
  result: z.array(z.object({ address: Address, secure_channel: z.boolean(), subnqn: z.string() })),
  cli: { flags: { tgt_name: 't' } },
  run: (_, { nvmf }: NvmfContext) =>
    nvmf.discovery.referrals.map(({ address, secureChannel, subnqn }) => ({
      address: addressOf(address),
      secure_channel: secureChannel,
      subnqn,
    })),
})

export const discoveryMethods = [addReferral, removeReferral, getReferrals]
