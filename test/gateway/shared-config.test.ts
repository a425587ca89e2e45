/** Members that change what they share, at the same time and while the store fails: all end with the same. */
import { afterAll, beforeAll, beforeEach, describe, expect, it } from 'vitest'
import { logSettings } from '../../src/core/log.ts'
import { Prng } from '../../src/core/prng.ts'
import { SharedConfig } from '../../src/gateway/shared-config.ts'
import type { GroupStore } from '../../src/gateway/store.ts'
import type { MethodCall } from '../../src/rpc/config.ts'
import { MemoryStore } from './memory-store.ts'

const NQN = 'nqn.2016-06.io.example:a'
const { write } = logSettings
beforeAll(() => {
  logSettings.write = () => {}
})
afterAll(() => {
  logSettings.write = write
})

/** What a daemon has, as far as the methods here go. */
class FakeDaemon {
  readonly hosts = new Set<string>()
  readonly subsystems = new Map<string, MethodCall>()
  readonly config: SharedConfig
  listened = 0
  told = 0
  broken = ''

  constructor(store: GroupStore, number: number) {
    const own = { cluster: `c${number}`, firstCntlid: number * 2040 + 1, lastCntlid: number * 2040 + 2040 }
    this.config = new SharedConfig({
      store,
      object: 'config',
      group: 'g',
      own,
      config: () => this.calls(),
      replay: async (method, params) => this.run(method, params as Record<string, unknown>),
      changed: async () => {
        this.listened++
      },
      told: () => {
        this.told++
      },
    })
  }

  calls(): MethodCall[] {
    const hosts = [...this.hosts].map(host => ({
      method: 'nvmf_subsystem_add_host',
      params: { nqn: NQN, host },
    }))
    return [...this.subsystems.values(), ...hosts]
  }

  run(method: string, params: Record<string, unknown>): void {
    const host = String(params['host'])
    if (params['nqn'] === this.broken) throw new Error('it will not')
    if (method === 'nvmf_create_subsystem') this.subsystems.set(String(params['nqn']), { method, params })
    else if (method === 'nvmf_delete_subsystem') {
      this.subsystems.delete(String(params['nqn']))
      if (params['nqn'] === NQN) this.hosts.clear()
    } else if (method === 'nvmf_subsystem_add_host') this.hosts.add(host)
    else this.hosts.delete(host)
  }

  change(method: string, params: Record<string, unknown>): Promise<unknown> {
    return this.config.change(async () => this.run(method, params))
  }

  addHost(host: string): Promise<unknown> {
    return this.change('nvmf_subsystem_add_host', { nqn: NQN, host })
  }
}

let store: MemoryStore
let a: FakeDaemon
let b: FakeDaemon

beforeEach(async () => {
  store = new MemoryStore()
  a = new FakeDaemon(store, 0)
  b = new FakeDaemon(store, 1)
  await a.change('nvmf_create_subsystem', { nqn: NQN })
  await b.config.catchUp()
})

describe('what members share', () => {
  it('is made on another with what is its own: its window', () => {
    expect(b.subsystems.get(NQN)?.params).toEqual({
      nqn: NQN,
      min_cntlid: 2041,
      max_cntlid: 4080,
      ana_reporting: true,
    })
    expect(b.listened).toBeGreaterThan(0)
  })

  it('has both changes when two come at the same time', async () => {
    let isFirst = true
    store.beforeWrite = async () => {
      if (!isFirst) return
      isFirst = false
      await b.addHost('h2')
    }
    await a.addHost('h1')
    await b.config.catchUp()
    expect([[...a.hosts].sort(), [...b.hosts].sort()]).toEqual([
      ['h1', 'h2'],
      ['h1', 'h2'],
    ])
  })

  it('is taken back here, and refused, when it cannot be written', async () => {
    store.beforeWrite = () => {
      store.isBroken = true
    }
    await expect(a.addHost('h')).rejects.toThrow(
      /group g cannot be changed here now: it could not be written \(no answer\)/,
    )
    expect([...a.hosts]).toEqual([])
  })

  it('is not even tried when it cannot be read', async () => {
    store.isBroken = true
    await expect(a.addHost('h')).rejects.toMatchObject({ code: 'EAGAIN' })
    expect([...a.hosts]).toEqual([])
  })

  it('keeps for others what does not work on one, which tries again', async () => {
    b.broken = `${NQN}2`
    await a.change('nvmf_create_subsystem', { nqn: `${NQN}2` })
    await b.config.catchUp()
    expect(b.subsystems.has(`${NQN}2`)).toBe(false)
    await b.addHost('h')
    await a.config.catchUp()
    expect(a.subsystems.has(`${NQN}2`)).toBe(true)
    expect(a.hosts.has('h')).toBe(true)
    b.broken = ''
    await b.config.catchUp()
    expect(b.subsystems.has(`${NQN}2`)).toBe(true)
  })

  it('writes nothing for a change that changes nothing, and tells nobody', async () => {
    const { version } = store.objects.get('config')!
    const { told } = a
    await a.addHost('h')
    await a.addHost('h')
    expect(store.objects.get('config')!.version).toBe(version + 1)
    expect(a.told).toBe(told + 1)
    await b.config.catchUp()
    expect(b.told).toBe(0)
  })

  it('refuses an object that another version has written', async () => {
    store.objects.set('config', { text: '{"format":2}', version: 9 })
    await expect(a.config.read()).rejects.toThrow(/config is not a gateway group's \(format/)
  })

  it('is taken away from a member that leaves', async () => {
    await a.addHost('h')
    await a.config.clear()
    expect(a.calls()).toEqual([])
  })
})

it.each(Array.from({ length: 50 }, (_, i) => i + 1))(
  'converges under changes and failures: seed %i',
  async seed => {
    const prng = new Prng(seed)
    const members = [a, b, new FakeDaemon(store, 2)]
    store.beforeWrite = async () => {
      store.isBroken = prng.oneIn(6)
      if (prng.oneIn(3))
        await prng
          .pick(members)
          .config.catchUp()
          .catch(() => {})
    }
    const confirmed = new Map<string, boolean>()
    for (let i = 0; i < 40; i++) {
      store.isBroken = false
      const host = `h${prng.below(5)}`
      const isAdded = prng.oneIn(2)
      const method = isAdded ? 'nvmf_subsystem_add_host' : 'nvmf_subsystem_remove_host'
      const isDone = await prng
        .pick(members)
        .change(method, { nqn: NQN, host })
        .then(() => true)
        .catch(() => false)
      if (isDone) confirmed.set(host, isAdded)
    }
    store.isBroken = false
    store.beforeWrite = () => {}
    for (const member of members) await member.config.catchUp()
    const expected = [...confirmed].filter(([, isAdded]) => isAdded).map(([host]) => host)
    for (const member of members) expect([...member.hosts].sort()).toEqual(expected.sort())
  },
)
