import { beforeEach, describe, expect, it } from 'vitest'
import { forgetMember } from '../../src/gateway/forget.ts'
import { type GroupState, parseState } from '../../src/gateway/group-state.ts'
import { isNews, register, renew, retire } from '../../src/gateway/lease.ts'
import { MemoryStore } from './memory-store.ts'

const EMPTY: GroupState = { format: 1, leaseMs: 1000, members: [], owners: {} }
const KEY = 'nqn.example:s 1'

const enter = (state: GroupState, name: string): GroupState =>
  register(state, { name, incarnation: `${name}#1`, instance: '', address: '' })!
const renewal = (name: string, fenced: readonly string[] = [], dateMs = 0) => ({
  incarnation: `${name}#1`,
  isLeaving: false,
  version: 1,
  hosts: {},
  unable: [],
  groups: [KEY],
  fenced: new Set(fenced),
  released: new Set<string>(),
  dateMs,
})

describe('a member that is gone', () => {
  let store: MemoryStore
  const put = async (state: GroupState): Promise<void> => {
    store.objects.set('lease', { text: JSON.stringify(state), version: 1 })
  }
  const state = (): GroupState => parseState('lease', store.objects.get('lease')!.text)
  const forget = (name: string): Promise<void> => forgetMember({ store, object: 'lease', group: 'g', name })

  beforeEach(async () => {
    store = new MemoryStore()
    await put(enter(enter(EMPTY, 'a'), 'b'))
  })

  it('is listed with the time when it was shut out, which later turns do not change', () => {
    let now = renew(state(), renewal('a', ['b#1'], 5000))
    now = renew(now, renewal('a', ['b#1'], 9000))
    expect(now.members.find(({ name }) => name === 'b')).toMatchObject({ isAlive: false, goneSinceMs: 5000 })
  })

  it('has no such time any more when it has come back', () => {
    const back = register(retire(state(), 'b#1', false, 7000), {
      name: 'b',
      incarnation: 'b#2',
      instance: '',
      address: '',
    })!
    expect(back.members[1]).toMatchObject({ name: 'b', number: 1, isAlive: true })
    expect(back.members[1]!.goneSinceMs).toBeUndefined()
  })

  it('is forgotten, and its number is free', async () => {
    await put(retire(state(), 'b#1', false, 7000))
    await forget('b')
    expect(state().members.map(({ name }) => name)).toEqual(['a'])
    expect(enter(state(), 'c').members[1]).toMatchObject({ name: 'c', number: 1 })
  })

  it('is forgotten also when another member writes at the same time', async () => {
    await put(retire(state(), 'b#1', false, 7000))
    let isFirst = true
    store.beforeWrite = async () => {
      if (!isFirst) return
      isFirst = false
      store.objects.set('lease', { text: JSON.stringify(renew(state(), renewal('a'))), version: 2 })
    }
    await forget('b')
    expect(state().members).toMatchObject([{ name: 'a', beat: 1 }])
  })

  it('is not forgotten while it lives, nor is one that nobody knows', async () => {
    await expect(forget('b')).rejects.toThrow(/gateway b is a living member of group g: have it leave/)
    await expect(forget('z')).rejects.toThrow(/gateway group g has no member z: it has a, b/)
  })

  it('gives its number to a newcomer when all are taken, the one first that is gone for longest', () => {
    let full = EMPTY
    for (let i = 0; i < 32; i++) full = enter(full, `m${i}`)
    expect(register(full, { name: 'n', incarnation: 'n#1', instance: '', address: '' })).toBeUndefined()
    full = retire(full, 'm3#1', false, 9000)
    full = retire(full, 'm5#1', false, 8000)
    expect(enter(full, 'n').members.find(({ name }) => name === 'n')!.number).toBe(5)
  })

  it('is news, as is who serves what, and who cannot; that members live is not', () => {
    const before = renew(state(), renewal('a'))
    expect(isNews(before, renew(before, renewal('a')))).toBe(false)
    expect(isNews(state(), before)).toBe(true)
    expect(isNews(before, renew(before, renewal('a', ['b#1'])))).toBe(true)
    expect(isNews(before, renew(before, { ...renewal('a'), isLeaving: true }))).toBe(true)
    expect(isNews(before, renew(before, { ...renewal('b'), unable: [KEY] }))).toBe(true)
  })
})
