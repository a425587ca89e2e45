/**
 * Hosts take a namespace that is not there for one that was removed, and give up its disk and what is mounted from it. A
 * controller that is not there they go on looking for: for ten minutes, unless told otherwise. So a subsystem has no
 * listener as long as a namespace of it is late.
 */
import type { MethodCall } from '../rpc/config.ts'
import type { KeptCall } from './kept-calls.ts'

/** After this time Linux gives up a controller itself (`ctrl_loss_tmo`): nothing is gained by waiting longer. */
const HOLD_MS = 600_000

const LISTENER = /^nvmf_subsystem_(add_listener|listener_set_ana_state)$/

/** Calls that let hosts in, which are to be made after all others of the target. */
export const letsHostsIn = ({ method }: MethodCall): boolean => LISTENER.test(method)

/** Why a call is not to be made yet, or undefined. `heldMs`: how long it has been held back already. */
export function whyHeldBack(call: MethodCall, kept: readonly KeptCall[], heldMs: number): string | undefined {
  if (!letsHostsIn(call) || heldMs >= HOLD_MS) return undefined
  const late = kept.filter(
    ({ call: { method, params }, isWaiting }) =>
      method === 'nvmf_subsystem_add_ns' && isWaiting && params?.['nqn'] === call.params?.['nqn'],
  )
  const devices = late.map(({ call: { params } }) => bdevOf(params)).filter(name => !isGone(name, kept))
  if (devices.length === 0) return undefined
  return (
    `hosts would take ${devices.join(', ')} for removed: they are let in when it is there, or ` +
    `${HOLD_MS / 60_000} minutes after the start`
  )
}

const bdevOf = (params: MethodCall['params']): string =>
  String((params?.['namespace'] as { bdev_name?: unknown } | undefined)?.bdev_name)

/** Ceph answers, and has no such image: others of the subsystem do not wait for that. */
function isGone(name: string, kept: readonly KeptCall[]): boolean {
  const maker = kept.find(({ call }) => call.params?.['name'] === name)
  const cluster = maker?.call.params?.['cluster_name']
  if (maker?.code !== 'ENOENT' || cluster === undefined) return false
  return !kept.some(
    ({ call }) => call.method === 'bdev_rbd_register_cluster' && call.params?.['name'] === cluster,
  )
}
