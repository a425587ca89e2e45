/** How a gateway becomes a member of a group, or makes the group. */
import type { Clock } from '../core/clock.ts'
import { RpcError } from '../core/errors.ts'
import { logger } from '../core/log.ts'
import { type GroupState, type Member, parseState } from './group-state.ts'
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
  /** The incarnation that this daemon has had before, and that was shut out. */
  readonly former: string | undefined
  /** Of a group that is made; undefined leaves it to the default, and to what the group has. */
  readonly leaseMs: number | undefined
}

export const LEASE_MS_DEFAULT = 5000

/** Another gateway has this one's name: if both came back again and again, they would shut out each other for ever. */
export class ReplacedError extends Error {
  override readonly name = 'ReplacedError'
}

/**
 * The state with this gateway in it. Throws `RpcError` ENOSPC when the group is full, EINVAL when its lease is another,
 * `ReplacedError` instead of coming back where another has come, and what the store throws.
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
    const namesake = state.members.find(({ name }) => name === newcomer.name)
    checkReplaced(options, namesake)
    if (namesake?.isAlive === true && !ended.has(namesake.incarnation)) {
      await endTwin(options, namesake, state.leaseMs)
      ended.add(namesake.incarnation)
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

/** A daemon that starts may take the place of whoever has its name; one that was shut out may not. */
function checkReplaced({ group, newcomer, former }: JoinOptions, namesake: Member | undefined): void {
  if (former === undefined || namesake === undefined) return
  const { incarnation, isAlive, successor } = namesake
  const own = [former, newcomer.incarnation]
  if ((!isAlive || own.includes(incarnation)) && (successor === undefined || own.includes(successor))) return
  throw new ReplacedError(
    `another gateway joins group ${group} as ${newcomer.name}: give each member its own name, and have this one leave ` +
      'and join again (gateway_leave, gateway_join)',
  )
}

/**
 * Most often this member's former life, which has crashed. Should it live, what it has under way fails from now on, and
 * it may answer reads from memory for no longer than its lease.
 */
async function endTwin(options: JoinOptions, twin: Member, leaseMs: number): Promise<void> {
  const { store, clock, newcomer, former } = options
  const waitMs = leaseMs * (SERVE_SHARE + 0.1)
  log.notice(
    `gateway ${newcomer.name} is a member already: shutting out ${twin.instance}, and waiting ${waitMs} ms`,
  )
  await store.fence(twin.instance)
  // Should it live, it finds this when it comes back, for which it has to wait as long.
  if (twin.incarnation !== former) await announce(options, twin.incarnation)
  await new Promise<void>(resolve => void clock.after(waitMs, resolve))
}

/** Has it said in the state that the newcomer takes the place of that incarnation. */
async function announce({ store, object, newcomer }: JoinOptions, incarnation: string): Promise<void> {
  for (;;) {
    const read = await store.read(object)
    if (read === undefined) return
    const state = parseState(object, read.text)
    const members = state.members.map(member =>
      member.incarnation === incarnation ? { ...member, successor: newcomer.incarnation } : member,
    )
    if (await store.write(object, JSON.stringify({ ...state, members }), read.version)) return
  }
}
