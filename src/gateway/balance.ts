/**
 * Who should serve what: every member computes the same from the same state.
 *
 * A group stays where it is as long as that member can serve it and reaches as many of the subsystem's hosts as any
 * other. What has no such member goes to the one with the least, and then the fullest give to the emptiest until all
 * have an equal share: so a member that returns gets its share back.
 */
import { type GroupState, type Member, nqnOf } from './group-state.ts'

/** The member for each key, by number. A key that nobody can serve is left out. */
export function assign(
  { members, owners }: Pick<GroupState, 'members' | 'owners'>,
  keys: readonly string[],
): Map<string, number> {
  const eligible = members.filter(({ isAlive, isLeaving }) => isAlive && !isLeaving)
  const loads = new Map(eligible.map(({ number }) => [number, 0]))
  const sorted = [...keys].sort()
  const candidates = new Map(sorted.map(key => [key, candidatesFor(key, eligible)]))
  const assigned = new Map<string, number>()
  const give = (key: string, number: number): void => {
    assigned.set(key, number)
    loads.set(number, loads.get(number)! + 1)
  }
  for (const key of sorted) {
    const owner = owners[key]
    if (owner !== undefined && candidates.get(key)!.includes(owner)) give(key, owner)
  }
  for (const key of sorted) {
    const emptiest = least(candidates.get(key)!, loads)
    if (!assigned.has(key) && emptiest !== undefined) give(key, emptiest)
  }
  level(sorted, assigned, candidates, loads)
  return assigned
}

/** Moves one after the other from where there are at least two more than where it could go. */
function level(
  keys: readonly string[],
  assigned: Map<string, number>,
  candidates: ReadonlyMap<string, readonly number[]>,
  loads: Map<number, number>,
): void {
  for (let isMoving = true; isMoving; ) {
    isMoving = false
    for (const key of keys) {
      const from = assigned.get(key)
      const to = least(candidates.get(key)!, loads)
      if (from === undefined || to === undefined || loads.get(from)! - loads.get(to)! < 2) continue
      assigned.set(key, to)
      loads.set(from, loads.get(from)! - 1)
      loads.set(to, loads.get(to)! + 1)
      isMoving = true
    }
  }
}

/** Those that can, and of them those that the most hosts reach. */
function candidatesFor(key: string, eligible: readonly Member[]): number[] {
  const nqn = nqnOf(key)
  const able = eligible.filter(({ unable }) => !unable.includes(key))
  const reach = ({ hosts }: Member): number => hosts[nqn] ?? 0
  const best = Math.max(...able.map(reach))
  return able.filter(member => reach(member) === best).map(({ number }) => number)
}

function least(numbers: readonly number[], loads: ReadonlyMap<number, number>): number | undefined {
  let best: number | undefined
  for (const number of numbers) {
    if (best === undefined || loads.get(number)! < loads.get(best)!) best = number
  }
  return best
}
