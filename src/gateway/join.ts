/** How a gateway becomes a member of a group, or makes the group. */
import type { Clock } from '../core/clock.ts'
import { RpcError } from '../core/errors.ts'
import { logger } from '../core/log.ts'
import { type GroupState, parseState } from './group-state.ts'
import { MEMBERS_MAX, type Newcomer, register, SERVE_SHARE } from './lease.ts'
import type { GroupStore } from './store.ts'

const log = logger('gateway')

export interface JoinOptions {
  readonly store: GroupStore
  readonly clock: Clock
  /** The name of the object. */
  readonly object: string
  /** For messages. */
  readonly group: string
  readonly newcomer: Newcomer
  /** Of a group that is made; undefined leaves it to the default, and to what the group has. */
  readonly leaseMs: number | undefined
}

export const LEASE_MS_DEFAULT = 5000

/**
 * The state with this gateway in it. Throws `RpcError` ENOSPC when the group is full, EINVAL when its lease is another,
 * and what the store throws.
 */
export async function joinGroup(options: JoinOptions): Promise<GroupState> {
  const { store, object, group, newcomer, leaseMs } = options
  const ended = new Set<string>()
  for (;;) {
    const read = await store.read(object)
    const state: GroupState =
      read === undefined
        ? { format: 1, leaseMs: leaseMs ?? LEASE_MS_DEFAULT, members: [], owners: {} }
        : parseState(object, read.text)
    if (leaseMs !== undefined && leaseMs !== state.leaseMs) {
      throw new RpcError(
        'EINVAL',
        `the gateway group ${group} has a lease of ${state.leaseMs} ms, not ${leaseMs}: leave lease_ms out`,
      )
    }
    const twin = state.members.find(({ name, isAlive }) => name === newcomer.name && isAlive)
    if (twin !== undefined && !ended.has(twin.incarnation)) {
      await endTwin(options, twin.instance, state.leaseMs)
      ended.add(twin.incarnation)
    }
    const next = register(state, newcomer)
    if (next === undefined) {
      throw new RpcError(
        'ENOSPC',
        `the gateway group ${group} has ${MEMBERS_MAX} members already: have one leave it (gateway_leave)`,
      )
    }
    if (await store.write(object, JSON.stringify(next), read?.version)) return next
  }
}

/**
 * Most often this member's former life, which has crashed. Should it live, what it has under way fails from now on, and
 * it may answer reads from memory for no longer than its lease.
 */
async function endTwin(
  { store, clock, newcomer }: JoinOptions,
  instance: string,
  leaseMs: number,
): Promise<void> {
  const waitMs = leaseMs * (SERVE_SHARE + 0.1)
  log.notice(
    `gateway ${newcomer.name} is a member already: shutting out ${instance}, and waiting ${waitMs} ms`,
  )
  await store.fence(instance)
  await new Promise<void>(resolve => void clock.after(waitMs, resolve))
}
