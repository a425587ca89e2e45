/** Who becomes a member, and who has to make room. */
import { afterAll, beforeAll, beforeEach, describe, expect, it } from 'vitest'
import type { Clock } from '../../src/core/clock.ts'
import { logSettings } from '../../src/core/log.ts'
import { type GroupState, type Member, parseState } from '../../src/gateway/group-state.ts'
import { joinGroup, ReplacedError } from '../../src/gateway/join.ts'
import { retire } from '../../src/gateway/lease.ts'
import { MemoryStore } from './memory-store.ts'

const { write } = logSettings
beforeAll(() => {
  logSettings.write = () => {}
})
afterAll(() => {
  logSettings.write = write
})

let store: MemoryStore
/** What was waited for, in milliseconds. */
let waits: number[]
/** Called before each wait ends: what others do meanwhile. */
let meanwhile: () => Promise<void>

const clock: Clock = {
  nowUs: () => 0,
  after(delayMs, fire) {
    waits.push(delayMs)
    void meanwhile().then(fire)
    return { cancel() {} }
  },
}

beforeEach(() => {
  store = new MemoryStore()
  waits = []
  meanwhile = async () => {}
})

const join = (name: string, incarnation: string, former?: string, leaseMs?: number): Promise<GroupState> =>
  joinGroup({
    store,
    clock,
    object: 'lease',
    group: 'g',
    newcomer: { name, incarnation, instance: `client of ${incarnation}`, address: '' },
    former,
    leaseMs,
  })
const state = (): GroupState => parseState('lease', store.objects.get('lease')!.text)
const member = (name: string): Member => state().members.find(each => each.name === name)!

describe('a gateway that joins', () => {
  it('makes the group, with a lease that others have to take', async () => {
    await join('a', 'a1', undefined, 2000)
    await join('b', 'b1', undefined, 2000)
    expect(state()).toMatchObject({ leaseMs: 2000, members: [{ name: 'a' }, { name: 'b', number: 1 }] })
    await expect(join('c', 'c1', undefined, 3000)).rejects.toThrow(/has a lease of 2000 ms, not 3000/)
  })

  it('shuts out whoever lives under its name, says so, and waits for that one’s lease', async () => {
    await join('a', 'a1', undefined, 1000)
    meanwhile = async () => {
      expect(store.fenced).toEqual(['client of a1'])
      expect(member('a')).toMatchObject({ incarnation: 'a1', isAlive: true, successor: 'a2' })
    }
    await join('a', 'a2')
    expect(waits).toEqual([900])
    expect(member('a')).toMatchObject({ incarnation: 'a2', number: 0, isAlive: true })
    expect(member('a').successor).toBeUndefined()
  })

  it('waits for nobody when its former life has ended in order', async () => {
    await join('a', 'a1')
    store.objects.set('lease', { text: JSON.stringify(retire(state(), 'a1', false, 1)), version: 7 })
    await join('a', 'a2')
    expect(waits).toEqual([])
    expect(store.fenced).toEqual([])
  })
})

describe('a gateway that was shut out', () => {
  beforeEach(async () => {
    await join('a', 'a1', undefined, 1000)
  })

  it('comes back in its own place, also when it does not succeed at once', async () => {
    meanwhile = async () => {
      store.isBroken = true
    }
    await expect(join('a', 'a2', 'a1')).rejects.toThrow('no answer')
    store.isBroken = false
    meanwhile = async () => {}
    await join('a', 'a3', 'a1')
    expect(member('a')).toMatchObject({ incarnation: 'a3', isAlive: true })
  })

  it('does not come back where another has come', async () => {
    await join('a', 'other')
    await expect(join('a', 'a2', 'a1')).rejects.toThrow(ReplacedError)
    expect(member('a').incarnation).toBe('other')
    expect(store.fenced).not.toContain('client of other')
  })

  it('does not come back where another is about to come, which both wait for', async () => {
    const first = await new Promise<string>(resolve => {
      meanwhile = async () => {
        meanwhile = async () => {}
        resolve(
          await join('a', 'a2', 'a1').then(
            () => 'came back',
            (error: Error) => error.name,
          ),
        )
      }
      void join('a', 'other')
    })
    expect(first).toBe('ReplacedError')
  })

  it('does not come back where another says so while it waits itself', async () => {
    meanwhile = async () => {
      meanwhile = async () => {}
      await join('a', 'other')
    }
    await expect(join('a', 'a2', 'a1')).rejects.toThrow(
      /another gateway joins group g as a: give each member its own/,
    )
    expect(member('a').incarnation).toBe('other')
  })

  it('comes back where the other has gone', async () => {
    await join('a', 'other')
    store.objects.set('lease', { text: JSON.stringify(retire(state(), 'other', false, 1)), version: 9 })
    await join('a', 'a2', 'a1')
    expect(member('a')).toMatchObject({ incarnation: 'a2', isAlive: true })
  })
})
