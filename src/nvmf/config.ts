/** The calls that recreate a target: SPDK's, in its order, and the ANA states, which SPDK forgets. */
import type { MethodCall } from '../rpc/config.ts'
import { AnaState } from '../spec/nvme-log.ts'
import { anaStateName } from './ana.ts'
import type { Namespace, Subsystem, SubsystemListener } from './subsystem.ts'
import type { NvmfTarget } from './target.ts'
import { FUSES_NAMES, namesOf, ONCS_NAMES } from './transport-settings.ts'

export function targetConfig(target: NvmfTarget): MethodCall[] {
  const { maxSubsystems, crdt, duplicateHostPolicy } = target.settings
  const { filter, referrals } = target.discovery
  const filters = (['transport', 'address', 'svcid'] as const).filter(name => filter[name])
  const calls: MethodCall[] = [
    {
      method: 'nvmf_set_config',
      params: { discovery_filters: filters, dup_host_policy: duplicateHostPolicy },
    },
    { method: 'nvmf_set_max_subsystems', params: { max_subsystems: maxSubsystems } },
    { method: 'nvmf_set_crdt', params: { crdt1: crdt[0], crdt2: crdt[1], crdt3: crdt[2] } },
  ]
  if (target.transport !== null) calls.push(transportCall(target.transport))
  for (const { address, subnqn, secureChannel } of referrals) {
    calls.push({
      method: 'nvmf_discovery_add_referral',
      params: { address, secure_channel: secureChannel, subnqn },
    })
  }
  for (const subsystem of target.list()) calls.push(...subsystemCalls(subsystem))
  return calls
}

function transportCall(transport: NonNullable<NvmfTarget['transport']>): MethodCall {
  return {
    method: 'nvmf_create_transport',
    params: {
      trtype: 'TCP',
      max_queue_depth: transport.maxQueueDepth,
      max_io_qpairs_per_ctrlr: transport.maxIoQpairsPerCtrlr,
      in_capsule_data_size: transport.inCapsuleDataSize,
      max_io_size: transport.maxIoSize,
      max_aq_depth: transport.maxAqDepth,
      c2h_success: transport.c2hSuccess,
      kas: transport.kas,
      min_kato: transport.minKatoMs,
      masked_oncs: namesOf(transport.maskedOncs, ONCS_NAMES),
      masked_fuses: namesOf(transport.maskedFuses, FUSES_NAMES),
    },
  }
}

/** Listeners last, so that no host comes before its namespaces are there. */
function subsystemCalls(subsystem: Subsystem): MethodCall[] {
  const { nqn } = subsystem
  const calls: MethodCall[] = []
  if (!subsystem.isDiscovery) calls.push(createCall(subsystem))
  for (const host of subsystem.hosts) calls.push({ method: 'nvmf_subsystem_add_host', params: { nqn, host } })
  for (const namespace of subsystem.namespaces.values()) calls.push(...namespaceCalls(nqn, namespace))
  for (const listener of subsystem.listeners.values()) calls.push(...listenerCalls(subsystem, listener))
  return calls
}

function createCall(subsystem: Subsystem): MethodCall {
  return {
    method: 'nvmf_create_subsystem',
    params: {
      nqn: subsystem.nqn,
      allow_any_host: subsystem.allowAnyHost,
      serial_number: subsystem.serialNumber,
      model_number: subsystem.modelNumber,
      max_namespaces: subsystem.maxNamespaces,
      min_cntlid: subsystem.minCntlid,
      max_cntlid: subsystem.maxCntlid,
      ana_reporting: subsystem.anaReporting,
      dmrsl: subsystem.dmrsl,
      wzsl: subsystem.wzsl,
      enable_nssr: subsystem.enableNssr,
      ...(subsystem.adminLabel === '' ? {} : { admin_label: subsystem.adminLabel }),
    },
  }
}

function namespaceCalls(nqn: string, namespace: Namespace): MethodCall[] {
  const { nsid, bdev, identifiers, anagrpid, noAutoVisible } = namespace
  const add: MethodCall = {
    method: 'nvmf_subsystem_add_ns',
    params: {
      nqn,
      namespace: { nsid, bdev_name: bdev.name, ...identifiers, anagrpid, no_auto_visible: noAutoVisible },
    },
  }
  const shown = [...namespace.hosts].map(
    (host): MethodCall => ({ method: 'nvmf_ns_add_host', params: { nqn, nsid, host } }),
  )
  return [add, ...shown]
}

/** The commonest state comes with the listener; groups in another follow one by one. */
function listenerCalls(subsystem: Subsystem, listener: SubsystemListener): MethodCall[] {
  const { nqn, anaReporting } = subsystem
  const { address, anaStates } = listener
  const states = [AnaState.OPTIMIZED, AnaState.NON_OPTIMIZED, AnaState.INACCESSIBLE]
  const count = (state: number): number => anaStates.filter(other => other === state).length
  const common = states.reduce((best, state) => (count(state) > count(best) ? state : best))
  const add: MethodCall = {
    method: 'nvmf_subsystem_add_listener',
    params: {
      nqn,
      listen_address: address,
      secure_channel: false,
      ...(anaReporting ? { ana_state: anaStateName(common) } : {}),
    },
  }
  const calls = [add]
  anaStates.forEach((state, index) => {
    if (!anaReporting || state === common) return
    calls.push({
      method: 'nvmf_subsystem_listener_set_ana_state',
      params: { nqn, listen_address: address, ana_state: anaStateName(state), anagrpid: index + 1 },
    })
  })
  return calls
}
