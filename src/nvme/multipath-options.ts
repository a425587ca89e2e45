/** How an operator says which paths carry the I/O. */
import { RpcError } from '../core/errors.ts'
import type { MultipathPolicy } from './messages.ts'

/** Throws `RpcError` EINVAL when the parts contradict each other. */
export function toPolicy(
  given: {
    readonly policy?: MultipathPolicy['policy'] | undefined
    readonly selector?: MultipathPolicy['selector'] | undefined
    readonly min_io?: number | undefined
  } = {},
): MultipathPolicy {
  const { policy = 'active_passive', selector = 'round_robin', min_io = 1 } = given
  if (policy === 'active_passive' && given.selector !== undefined) {
    throw new RpcError('EINVAL', `selector ${given.selector} is of active_active, not of active_passive`)
  }
  if (given.min_io !== undefined && (policy === 'active_passive' || selector !== 'round_robin')) {
    throw new RpcError('EINVAL', `min_io ${min_io} is of active_active with round_robin only`)
  }
  if (min_io === 0) throw new RpcError('EINVAL', 'min_io 0: a path gets at least 1 I/O before the next')
  return { policy, selector, rrMinIo: min_io, preferredPathId: undefined }
}
