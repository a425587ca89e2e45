/** Which hosts may connect. */
import { z } from 'zod'
import { RpcError } from '../../core/errors.ts'
import { method } from '../../rpc/method.ts'
import { done, uint64 } from '../../rpc/params.ts'
import { host, type NvmfContext, nqn, tgtName, UNKNOWN_NQN } from './context.ts'

const NO_KEYS = 'Must be absent: this version has neither authentication nor TLS'

const addHost = method({
  name: 'nvmf_subsystem_add_host',
  summary: 'Allows a host to connect to a subsystem.',
  params: z.object({
    nqn,
    host,
    tgt_name: tgtName,
    psk: z.string().optional().describe(NO_KEYS),
    dhchap_key: z.string().optional().describe(NO_KEYS),
    dhchap_ctrlr_key: z.string().optional().describe(NO_KEYS),
  }),
  result: done,
  errors: { INVALID_PARAMS: UNKNOWN_NQN },
  relaxed: true,
  saves: true,
  cli: { positional: ['nqn', 'host'], flags: { tgt_name: 't' }, commands: ['host add'] },
  async run({ nqn, host, psk, dhchap_key, dhchap_ctrlr_key }, { nvmf }: NvmfContext) {
    if (psk !== undefined || dhchap_key !== undefined || dhchap_ctrlr_key !== undefined) {
      // Accepting a key and then letting the host in without it would be worse than refusing.
      throw new RpcError(
        'INVALID_PARAMS',
        `host ${host} cannot be added with keys: this version has neither authentication nor TLS; ` +
          'leave psk, dhchap_key and dhchap_ctrlr_key out and protect the network itself',
      )
    }
    await nvmf.addHost(nqn, host)
    return true as const
  },
})

const removeHost = method({
  name: 'nvmf_subsystem_remove_host',
  summary: 'Allows a host no more, and disconnects it.',
  params: z.object({
    nqn,
    host,
    tgt_name: tgtName,
    timeout_ms: uint64.optional().describe('How long to wait until it is disconnected'),
  }),
  result: done,
  errors: { INVALID_PARAMS: UNKNOWN_NQN, INTERNAL: 'the host is still connected after that time' },
  saves: true,
  cli: {
    positional: ['nqn', 'host'],
    flags: { tgt_name: 't', timeout_ms: 'T' },
    commands: ['host remove'],
  },
  async run({ nqn, host, timeout_ms }, { nvmf }: NvmfContext) {
    await nvmf.removeHost(nqn, host, timeout_ms)
    return true as const
  },
})

const allowAnyHost = method({
  name: 'nvmf_subsystem_allow_any_host',
  summary: 'Allows every host to connect to a subsystem, or only those of its list.',
  params: z.object({
    nqn,
    allow_any_host: z.boolean().describe('True for every host'),
    tgt_name: tgtName,
  }),
  result: done,
  errors: { INVALID_PARAMS: UNKNOWN_NQN },
  saves: true,
  cli: {
    positional: ['nqn'],
    flags: { allow_any_host: { on: 'e', off: 'd' }, tgt_name: 't' },
  },
  async run({ nqn, allow_any_host }, { nvmf }: NvmfContext) {
    await nvmf.allowAnyHost(nqn, allow_any_host)
    return true as const
  },
})

export const hostMethods = [addHost, removeHost, allowAnyHost]
