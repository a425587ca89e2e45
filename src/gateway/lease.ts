/**
 * The rules by which at most one member's writes can reach an ANA group. Pure: state in, state out.
 *
 *   not a member --register--> alive --renew, renew …--> alive
 *                                |                          |  not heard of for the lease, then shut out by Ceph
 *                                |  leaves                  v
 *                                +----------------------> dead, owns nothing
 *
 *   1. A group has one owner. It is taken away only by its owner, who has nothing of it outstanding any more, or from
 *      a member that is dead.
 *   2. A member is declared dead only after Ceph has shut out its client: what it still has under way fails.
 *   3. A member serves only what it owns, for `SERVE_SHARE` of the lease after it began a renewal that succeeded. Others
 *      count a whole lease, and a margin, from when they saw that renewal, which is later.
 */
import { assign } from './balance.ts'
import type { GroupState, Member } from './group-state.ts'

/** Of the lease: for so long a member serves. The rest is for clocks that do not run alike, and for a slow stop. */
export const SERVE_SHARE = 0.8
/** Of the lease: after so long without news a member is shut out by the first of those that are left … */
const FENCE_SHARE = 1.1
/** … and after so much more by the next, should the first not do it. */
const NEXT_FENCE_SHARE = 0.5
/** Windows of controller identifiers, from number * 2040 + 1, as the Ceph gateway has them. */
export const WINDOW_SIZE = 2040
export const MEMBERS_MAX = 32

export const windowOf = (number: number): { readonly first: number; readonly last: number } => ({
  first: number * WINDOW_SIZE + 1,
  last: (number + 1) * WINDOW_SIZE,
})

export interface Newcomer {
  readonly name: string
  readonly incarnation: string
  readonly instance: string
  readonly address: string
}

/**
 * The state with a new member, or undefined when the group is full. A living member of the same name is replaced: it
 * must have been shut out before.
 */
export function register(state: GroupState, newcomer: Newcomer): GroupState | undefined {
  const number = numberFor(state, newcomer.name)
  if (number === undefined) return undefined
  const entry: Member = {
    ...newcomer,
    number,
    isAlive: true,
    isLeaving: false,
    beat: 0,
    version: 0,
    hosts: {},
    unable: [],
  }
  const others = state.members.filter(member => member.number !== number)
  const owners = without(state.owners, (_, owner) => owner === number)
  return { ...state, members: [...others, entry].sort((a, b) => a.number - b.number), owners }
}

/** Its own from before, a free one, or that of the member that is dead for longest. */
function numberFor({ members }: GroupState, name: string): number | undefined {
  const own = members.find(member => member.name === name)
  if (own !== undefined) return own.number
  for (let number = 0; number < MEMBERS_MAX; number++) {
    if (!members.some(member => member.number === number)) return number
  }
  const [longest] = members
    .filter(({ isAlive }) => !isAlive)
    .sort((a, b) => (a.goneSinceMs ?? 0) - (b.goneSinceMs ?? 0))
  return longest?.number
}

export interface Renewal {
  readonly incarnation: string
  readonly isLeaving: boolean
  readonly version: number
  readonly hosts: Readonly<Record<string, number>>
  readonly unable: readonly string[]
  /** ANA groups of the configuration. */
  readonly groups: readonly string[]
  /** Incarnations that Ceph has shut out. */
  readonly fenced: ReadonlySet<string>
  /** Milliseconds since 1970, for whoever reads of it. */
  readonly dateMs: number
  /** Of its own: closed, and nothing outstanding. */
  readonly released: ReadonlySet<string>
}

/** The living member of that incarnation. */
export const memberOf = ({ members }: GroupState, incarnation: string): Member | undefined =>
  members.find(member => member.incarnation === incarnation && member.isAlive)

/** The state after a living member's renewal. */
export function renew(state: GroupState, renewal: Renewal): GroupState {
  const { incarnation, fenced, released } = renewal
  const me = memberOf(state, incarnation)!
  const members = state.members.map((member): Member => {
    if (member === me) {
      const { isLeaving, version, hosts } = renewal
      return { ...me, beat: me.beat + 1, isLeaving, version, hosts, unable: [...renewal.unable] }
    }
    return fenced.has(member.incarnation) ? dead(member, renewal.dateMs) : member
  })
  const alive = new Set(members.filter(({ isAlive }) => isAlive).map(({ number }) => number))
  const owners = without(
    state.owners,
    (key, owner) => !alive.has(owner) || (owner === me.number && released.has(key)),
  )
  const assigned = assign({ members, owners }, allKeys(owners, renewal.groups))
  for (const key of renewal.groups) {
    const number = assigned.get(key)
    if (owners[key] === undefined && number !== undefined) owners[key] = number
  }
  return { ...state, members, owners }
}

/** The state without a member that owns nothing any more: forgotten, or only dead. */
export function retire(
  state: GroupState,
  incarnation: string,
  isForgotten: boolean,
  dateMs: number,
): GroupState {
  const me = memberOf(state, incarnation)!
  const members = isForgotten
    ? state.members.filter(member => member !== me)
    : state.members.map(member => (member === me ? dead(member, dateMs) : member))
  return { ...state, members, owners: without(state.owners, (_, owner) => owner === me.number) }
}

/** The state without a dead member: its number is free, and its name is one that nobody has. */
export const forget = (state: GroupState, gone: Member): GroupState => ({
  ...state,
  members: state.members.filter(member => member !== gone),
})

/** What is worth a look at once: who serves what, and who could. That members live, they tell by themselves. */
export function isNews(before: GroupState, after: GroupState): boolean {
  const gist = ({ members, owners }: GroupState): string =>
    JSON.stringify([
      owners,
      members.map(({ incarnation, isAlive, isLeaving, unable }) => [incarnation, isAlive, isLeaving, unable]),
    ])
  return gist(before) !== gist(after)
}

export const ownedBy = ({ owners }: GroupState, number: number): string[] =>
  Object.keys(owners).filter(key => owners[key] === number)

/** What a member owns and should let go: another should have it, or it is no longer of the configuration. */
export function toLetGo(state: GroupState, me: Member, groups: readonly string[]): string[] {
  const wanted = new Set(groups)
  // What it does not know of may be newer than its configuration.
  const isNewest = state.members.every(({ isAlive, version }) => !isAlive || version <= me.version)
  const assigned = assign(state, allKeys(state.owners, groups))
  return ownedBy(state, me.number).filter(key =>
    wanted.has(key) ? assigned.get(key) !== me.number : isNewest || me.isLeaving,
  )
}

/** Of the lease: whoever could not look for so long does not know how long others were silent. */
const BLIND_SHARE = 0.3

/** Notices who is not heard of any more, by this member's own clock. */
export class Watch {
  readonly #seen = new Map<string, { beat: number; sinceMs: number }>()
  #lookedMs = Number.NEGATIVE_INFINITY

  /** `nowMs`: after the state was read. */
  observe(state: GroupState, nowMs: number): void {
    const blindMs = nowMs - this.#lookedMs
    this.#lookedMs = nowMs
    // Ceph has answered nobody, perhaps, or this member was frozen: the others have their time from here on.
    if (blindMs > state.leaseMs * BLIND_SHARE) {
      for (const seen of this.#seen.values()) seen.sinceMs += blindMs
    }
    for (const { incarnation, beat, isAlive } of state.members) {
      if (!isAlive) this.#seen.delete(incarnation)
      else if (this.#seen.get(incarnation)?.beat !== beat)
        this.#seen.set(incarnation, { beat, sinceMs: nowMs })
    }
  }

  /** For how long nothing was heard of it. */
  silentMs(incarnation: string, nowMs: number): number {
    return nowMs - (this.#seen.get(incarnation)?.sinceMs ?? nowMs)
  }

  /** Those whom this member has to shut out now: one after the other of the living has its turn. */
  overdue(state: GroupState, me: Member, nowMs: number): Member[] {
    const { leaseMs } = state
    const silent = state.members.filter(
      member =>
        member !== me && member.isAlive && this.silentMs(member.incarnation, nowMs) >= leaseMs * FENCE_SHARE,
    )
    const before = state.members.filter(
      member => member.isAlive && !silent.includes(member) && member.number < me.number,
    ).length
    const patience = leaseMs * (FENCE_SHARE + before * NEXT_FENCE_SHARE)
    return silent.filter(({ incarnation }) => this.silentMs(incarnation, nowMs) >= patience)
  }
}

const dead = (member: Member, dateMs: number): Member => ({
  ...member,
  isAlive: false,
  // It may be dead already, and be found silent again.
  goneSinceMs: member.goneSinceMs ?? dateMs,
  isLeaving: false,
  hosts: {},
  unable: [],
})

const allKeys = (owners: GroupState['owners'], groups: readonly string[]): string[] => [
  ...new Set([...Object.keys(owners), ...groups]),
]

function without(
  owners: GroupState['owners'],
  isDropped: (key: string, owner: number) => boolean,
): Record<string, number> {
  return Object.fromEntries(Object.entries(owners).filter(([key, owner]) => !isDropped(key, owner)))
}
