/** How a group forgets a member that does not come back. */
import { RpcError } from '../core/errors.ts'
import { parseState } from './group-state.ts'
import { forget } from './lease.ts'
import type { GroupStore } from './store.ts'

export interface ForgetOptions {
  readonly store: GroupStore
  /** The name of the object. */
  readonly object: string
  /** For messages. */
  readonly group: string
  readonly name: string
}

/**
 * Only one that is gone: what a living one serves is taken from it by nobody. Throws `RpcError` ENOENT, EBUSY, and what
 * the store throws.
 */
export async function forgetMember({ store, object, group, name }: ForgetOptions): Promise<void> {
  for (;;) {
    const read = await store.read(object)
    const state = read === undefined ? undefined : parseState(object, read.text)
    const member = state?.members.find(each => each.name === name)
    if (state === undefined || member === undefined) {
      const names = state?.members.map(each => each.name).join(', ')
      throw new RpcError('ENOENT', `gateway group ${group} has no member ${name}: it has ${names || 'none'}`)
    }
    if (member.isAlive) {
      throw new RpcError(
        'EBUSY',
        `gateway ${name} is a living member of group ${group}: have it leave (gateway_leave there), or end it, and try ` +
          'again when it is gone',
      )
    }
    if (await store.write(object, JSON.stringify(forget(state, member)), read?.version)) return
  }
}
