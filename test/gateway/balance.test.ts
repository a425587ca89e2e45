import { describe, expect, it } from 'vitest'
import { assign } from '../../src/gateway/balance.ts'
import { groupKey, type Member } from '../../src/gateway/group-state.ts'

const NQN = 'nqn.2016-06.io.example:a'
const OTHER = 'nqn.2016-06.io.example:b'

const member = (number: number, rest: Partial<Member> = {}): Member => ({
  number,
  name: `m${number}`,
  incarnation: `i${number}`,
  instance: '',
  isAlive: true,
  isLeaving: false,
  beat: 0,
  address: '',
  version: 1,
  hosts: {},
  unable: [],
  ...rest,
})
const keys = (count: number, nqn = NQN): string[] =>
  Array.from({ length: count }, (_, i) => groupKey(nqn, i + 1))

describe('who should serve what', () => {
  it('is an equal share for each that lives and stays', () => {
    const members = [member(0), member(1), member(2, { isAlive: false }), member(3, { isLeaving: true })]
    const assigned = assign({ members, owners: {} }, keys(5))
    expect([...assigned.values()].filter(number => number === 0)).toHaveLength(3)
    expect([...assigned.values()].filter(number => number === 1)).toHaveLength(2)
  })

  it('stays where it is as long as the shares differ by one', () => {
    const owners = { [groupKey(NQN, 1)]: 1, [groupKey(NQN, 2)]: 1, [groupKey(NQN, 3)]: 0 }
    const assigned = assign({ members: [member(0), member(1)], owners }, keys(3))
    expect(Object.fromEntries(assigned)).toEqual(owners)
  })

  it('moves no more than it takes to a member that returns', () => {
    const owners = Object.fromEntries(keys(5).map(key => [key, 1]))
    const assigned = assign({ members: [member(0), member(1)], owners }, keys(5))
    expect([...assigned.values()].filter(number => number === 0)).toHaveLength(2)
  })

  it('goes where the most hosts of the subsystem are', () => {
    const members = [member(0, { hosts: { [NQN]: 1 } }), member(1, { hosts: { [NQN]: 2, [OTHER]: 1 } })]
    const owners = { [groupKey(NQN, 1)]: 0 }
    const assigned = assign({ members, owners }, [...keys(2), ...keys(2, OTHER)])
    expect([...assigned.values()]).toEqual([1, 1, 1, 1])
  })

  it('goes to nobody who cannot serve it', () => {
    const [one, two] = keys(2)
    const members = [member(0, { unable: [one!, two!] }), member(1, { unable: [two!] })]
    expect(Object.fromEntries(assign({ members, owners: {} }, [one!, two!]))).toEqual({ [one!]: 1 })
  })
})
