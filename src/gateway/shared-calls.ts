/**
 * The part of a gateway's configuration that all members of its group have: subsystems, namespaces, hosts, and the images
 * under them. As calls, like every saved configuration, but without what is each member's own (listeners, controller
 * identifiers, the name of the cluster) and with what may change by itself as a call of its own.
 */
import type { MethodCall } from '../rpc/config.ts'
import { DISCOVERY_NQN } from '../spec/nvmf.ts'
import { groupKey } from './group-state.ts'

type Params = Readonly<Record<string, unknown>>

/** The shared calls among those, in their order. `cluster`: the name under which this member knows the group's. */
export function sharedCalls(config: readonly MethodCall[], cluster: string): MethodCall[] {
  return config.flatMap(({ method, params = {} }) => {
    if (method === 'bdev_rbd_create') return imageCalls(params, cluster)
    return params['nqn'] === DISCOVERY_NQN ? [] : subsystemCalls(method, params)
  })
}

function imageCalls(params: Params, cluster: string): MethodCall[] {
  const { cluster_name, ...rest } = params
  return cluster_name === cluster ? [{ method: 'bdev_rbd_create', params: given(rest) }] : []
}

function subsystemCalls(method: string, params: Params): MethodCall[] {
  const { nqn } = params
  switch (method) {
    case 'nvmf_create_subsystem': {
      const { allow_any_host, ana_reporting: _, min_cntlid: __, max_cntlid: ___, ...rest } = params
      const create = { method, params: given(rest) }
      if (allow_any_host !== true) return [create]
      return [create, { method: 'nvmf_subsystem_allow_any_host', params: { nqn, allow_any_host } }]
    }
    case 'nvmf_subsystem_add_ns': {
      const { anagrpid, ...namespace } = params['namespace'] as Params
      const { nsid } = namespace
      return [
        { method, params: { nqn, namespace: given(namespace) } },
        { method: 'nvmf_subsystem_set_ns_ana_group', params: { nqn, nsid, anagrpid } },
      ]
    }
    case 'nvmf_subsystem_add_host':
    case 'nvmf_ns_add_host':
      return [{ method, params: given(params) }]
    default:
      return []
  }
}

/** As it would be read back from JSON. */
const given = (params: Params): Params => JSON.parse(JSON.stringify(params)) as Params

/** The call as this member makes it. */
export function localCall(
  { method, params = {} }: MethodCall,
  own: { readonly cluster: string; readonly firstCntlid: number; readonly lastCntlid: number },
): MethodCall {
  if (method === 'bdev_rbd_create') return { method, params: { ...params, cluster_name: own.cluster } }
  if (method !== 'nvmf_create_subsystem') return { method, params }
  const window = { min_cntlid: own.firstCntlid, max_cntlid: own.lastCntlid }
  return { method, params: { ...params, ...window, ana_reporting: true } }
}

/** The ANA groups that have namespaces, and which calls make those. */
export function groupsOf(calls: readonly MethodCall[]): string[] {
  return [...new Set([...groupOfNamespace(calls).values()])]
}

/** The ANA groups of which not every namespace is there. */
export function missingGroups(wanted: readonly MethodCall[], there: readonly MethodCall[]): string[] {
  const present = new Set(there.map(identityOf))
  const groups = groupOfNamespace(wanted)
  const missing = wanted.filter(
    call => call.method === 'nvmf_subsystem_add_ns' && !present.has(identityOf(call)),
  )
  return [...new Set(missing.map(call => groups.get(thingOf(call)) ?? ''))]
}

/** By the thing that the call for the namespace makes. */
function groupOfNamespace(calls: readonly MethodCall[]): Map<string, string> {
  const groups = new Map<string, string>()
  for (const { method, params = {} } of calls) {
    if (method !== 'nvmf_subsystem_set_ns_ana_group') continue
    const nqn = String(params['nqn'])
    groups.set(`namespace ${nqn} ${params['nsid']}`, groupKey(nqn, Number(params['anagrpid'])))
  }
  return groups
}

/** What a call makes: two calls that make the same thing in two ways exclude each other. */
export function thingOf({ method, params = {} }: MethodCall): string {
  const { nqn, nsid, host, name } = params
  switch (method) {
    case 'bdev_rbd_create':
      return `bdev ${name}`
    case 'nvmf_create_subsystem':
      return `subsystem ${nqn}`
    case 'nvmf_subsystem_allow_any_host':
      return `any host ${nqn}`
    case 'nvmf_subsystem_add_host':
      return `host ${nqn} ${host}`
    case 'nvmf_subsystem_add_ns':
      return `namespace ${nqn} ${(params['namespace'] as Params)['nsid']}`
    case 'nvmf_subsystem_set_ns_ana_group':
      return `ANA group ${nqn} ${nsid}`
    default:
      return `shown ${nqn} ${nsid} ${host}`
  }
}

/** Things that it is part of, or stands on: when one of those goes, it goes as well. */
export function foundationsOf({ method, params = {} }: MethodCall): string[] {
  const { nqn, nsid } = params
  switch (method) {
    case 'bdev_rbd_create':
    case 'nvmf_create_subsystem':
      return []
    case 'nvmf_subsystem_add_ns':
      return [`subsystem ${nqn}`, `bdev ${(params['namespace'] as Params)['bdev_name']}`]
    case 'nvmf_subsystem_set_ns_ana_group':
    case 'nvmf_ns_add_host':
      return [`namespace ${nqn} ${nsid}`]
    default:
      return [`subsystem ${nqn}`]
  }
}

/** The call that takes back another; undefined for what goes with something else. */
export function undoOf({ method, params = {} }: MethodCall): MethodCall | undefined {
  const { nqn, nsid, host, name } = params
  switch (method) {
    case 'bdev_rbd_create':
      return { method: 'bdev_rbd_delete', params: { name } }
    case 'nvmf_create_subsystem':
      return { method: 'nvmf_delete_subsystem', params: { nqn } }
    case 'nvmf_subsystem_allow_any_host':
      return { method, params: { nqn, allow_any_host: false } }
    case 'nvmf_subsystem_add_host':
      return { method: 'nvmf_subsystem_remove_host', params: { nqn, host } }
    case 'nvmf_subsystem_add_ns':
      return {
        method: 'nvmf_subsystem_remove_ns',
        params: { nqn, nsid: (params['namespace'] as Params)['nsid'] },
      }
    case 'nvmf_ns_add_host':
      return { method: 'nvmf_ns_remove_host', params: { nqn, nsid, host } }
    default:
      return undefined
  }
}

/** Equal for calls that do the same. */
export const identityOf = ({ method, params = {} }: MethodCall): string =>
  `${method} ${JSON.stringify(sorted(params))}`

function sorted(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(sorted)
  if (typeof value !== 'object' || value === null) return value
  const entries = Object.entries(value).filter(([, each]) => each !== undefined && each !== null)
  return Object.fromEntries(
    entries.sort(([a], [b]) => (a < b ? -1 : 1)).map(([key, each]) => [key, sorted(each)]),
  )
}
