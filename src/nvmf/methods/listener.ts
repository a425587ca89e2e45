/** Listeners and the ANA states of the paths they are. */
import { z } from 'zod'
import { method } from '../../rpc/method.ts'
import { done, int32, uint32 } from '../../rpc/params.ts'
import { AnaState } from '../../spec/nvme-log.ts'
import { parseTransportAddress } from '../address.ts'
import { ANA_STATE_NAMES, anaStateName, anaStateOf } from '../ana.ts'
import {
  Address,
  addressOf,
  discoveryOrNqn,
  LISTEN_ADDRESS_FLAGS,
  listenAddress,
  type NvmfContext,
  nqn,
  refuseSecureChannel,
  tgtName,
  UNKNOWN_NQN,
} from './context.ts'

const anaState = z.enum(ANA_STATE_NAMES)

const addListener = method({
  name: 'nvmf_subsystem_add_listener',
  summary: 'Lets hosts reach a subsystem by an address.',
  params: z.object({
    nqn: discoveryOrNqn,
    tgt_name: tgtName,
    listen_address: listenAddress,
    secure_channel: z.boolean().optional().describe('Must be false: this version has no TLS'),
    ana_state: anaState.optional().describe('The state of all groups at first (default optimized)'),
    sock_impl: z.string().optional().describe('Accepted: there is one implementation of sockets'),
    numa_id: int32.optional().describe('Accepted: of vfio-user only'),
  }),
  result: done,
  errors: {
    INVALID_PARAMS: UNKNOWN_NQN,
    EADDRINUSE: 'another process listens at that address',
    EADDRNOTAVAIL: 'the machine does not have that address',
    EACCES: 'the process may not use that port',
  },
  relaxed: true,
  saves: true,
  cli: {
    positional: ['nqn'],
    flags: {
      ...LISTEN_ADDRESS_FLAGS,
      tgt_name: 'p',
      secure_channel: 'k',
      ana_state: 'n',
      sock_impl: 'S',
    },
    commands: ['listener add'],
  },
  async run({ nqn, listen_address, secure_channel, ana_state }, { nvmf }: NvmfContext) {
    refuseSecureChannel(secure_channel)
    const state = ana_state === undefined ? AnaState.OPTIMIZED : anaStateOf(ana_state)
    await nvmf.addListener(nqn, parseTransportAddress(listen_address), state)
    return true as const
  },
})

const removeListener = method({
  name: 'nvmf_subsystem_remove_listener',
  summary: 'Takes an address from a subsystem and disconnects the hosts that came by it.',
  params: z.object({ nqn: discoveryOrNqn, tgt_name: tgtName, listen_address: listenAddress }),
  result: done,
  errors: { INVALID_PARAMS: UNKNOWN_NQN },
  saves: true,
  cli: {
    positional: ['nqn'],
    flags: { ...LISTEN_ADDRESS_FLAGS, tgt_name: 'p' },
    commands: ['listener remove'],
  },
  async run({ nqn, listen_address }, { nvmf }: NvmfContext) {
    await nvmf.removeListener(nqn, parseTransportAddress(listen_address))
    return true as const
  },
})

const setAnaState = method({
  name: 'nvmf_subsystem_listener_set_ana_state',
  summary: 'Tells hosts whether, and how gladly, they should use a listener.',
  params: z.object({
    nqn,
    tgt_name: tgtName,
    listen_address: listenAddress,
    ana_state: anaState.describe('The new state'),
    anagrpid: uint32.min(1).optional().describe('Only that ANA group; all of them when absent'),
  }),
  result: done,
  errors: { INVALID_PARAMS: UNKNOWN_NQN },
  saves: true,
  cli: {
    positional: ['nqn'],
    flags: { ...LISTEN_ADDRESS_FLAGS, tgt_name: 'p', ana_state: 'n', anagrpid: 'g' },
    commands: ['listener set-ana-state'],
  },
  async run({ nqn, listen_address, ana_state, anagrpid }, { nvmf }: NvmfContext) {
    await nvmf.setAnaState(nqn, parseTransportAddress(listen_address), anaStateOf(ana_state), anagrpid)
    return true as const
  },
})

const getListeners = method({
  name: 'nvmf_subsystem_get_listeners',
  summary: 'Lists the addresses of a subsystem, with their ANA states if it reports them.',
  params: z.object({ nqn: discoveryOrNqn, tgt_name: tgtName }),
  result: z.array(
    z.object({
      address: Address,
      ana_states: z.array(z.object({ ana_group: z.int(), ana_state: anaState })).optional(),
    }),
  ),
  errors: { INVALID_PARAMS: UNKNOWN_NQN },
  cli: {
    positional: ['nqn'],
    flags: { tgt_name: 't' },
    commands: ['listener list'],
    columns: [
      { title: 'TRANSPORT', value: row => row.address.trtype },
      { title: 'ADDRESS', value: row => row.address.traddr },
      { title: 'PORT', value: row => row.address.trsvcid },
      { title: 'ANA STATE', value: row => summaryOf(row.ana_states?.map(each => each.ana_state)) },
    ],
  },
  run({ nqn }, { nvmf }: NvmfContext) {
    const subsystem = nvmf.get(nqn)
    return [...subsystem.listeners.values()].map(({ address, anaStates }) => {
      if (!subsystem.anaReporting) return { address: addressOf(address) }
      const states = Array.from(anaStates, (state, index) => ({
        ana_group: index + 1,
        ana_state: anaStateName(state),
      }))
      return { address: addressOf(address), ana_states: states }
    })
  },
})

/** One word where all groups have the same state, as they have until somebody sets one group's. */
function summaryOf(states: readonly string[] | undefined): string {
  if (states === undefined) return '-'
  const distinct = [...new Set(states)]
  return distinct.length === 1 ? distinct[0]! : `${distinct.join(', ')}: see --json`
}

export const listenerMethods = [addListener, removeListener, setAnaState, getListeners]
