/** Groups of gateways under seeds: whatever happens to them, no write of one lands after another took over. */
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest'
import { logSettings } from '../../src/core/log.ts'
import type { GroupState } from '../../src/gateway/group-state.ts'
import { StoreError } from '../../src/gateway/store.ts'
import { bringUp, gateways, LEASE_MS, type SimGateway, SimWorld } from './sim.ts'

const SEEDS = Number(process.env['QPAIR_GATEWAY_SEEDS'] ?? 60)
const { write } = logSettings
beforeAll(() => {
  logSettings.write = () => {}
})
afterAll(() => {
  logSettings.write = write
})

const NAMES = ['a', 'b', 'c']

const current = (world: SimWorld, name: string): SimGateway =>
  gateways(world).findLast(gateway => gateway.name === name)!
const stateOf = (world: SimWorld): GroupState => JSON.parse(world.objects.get('lease')!.text) as GroupState
const served = (world: SimWorld, name: string): string[] => {
  const gateway = current(world, name)
  return world.keys.filter(key => gateway.serves(key))
}

/** Does something bad, or good, to somebody. */
function disturb(world: SimWorld): void {
  const { prng } = world
  const gateway = current(world, prng.pick(NAMES))
  switch (prng.below(6)) {
    case 0:
      gateway.isFrozen = true
      world.at(prng.between(50, 4000), null, () => {
        gateway.isFrozen = false
      })
      break
    case 1:
      gateway.isCut = true
      world.at(prng.between(50, 4000), null, () => {
        gateway.isCut = false
      })
      break
    case 2:
      gateway.isDead = true
      world.at(prng.between(10, 3000), null, () => bringUp(world, gateway.name))
      break
    case 3:
      void gateway.keeper?.leave(false, 1500).then(() => {
        world.at(prng.between(10, 2000), null, () => {
          if (!gateway.isDead && current(world, gateway.name) === gateway) bringUp(world, gateway.name)
        })
      })
      break
    default:
  }
  for (const name of NAMES) {
    const last = current(world, name)
    if (last.isLost && !last.isDead) {
      last.isDead = true
      bringUp(world, name)
    }
  }
}

async function healthy(keyCount = 7, seed = 1): Promise<SimWorld> {
  const world = new SimWorld(seed, keyCount)
  for (const name of NAMES) bringUp(world, name)
  await world.run(4 * LEASE_MS)
  return world
}

describe('a group of gateways', () => {
  it('gives each an equal share', async () => {
    const world = await healthy()
    expect(NAMES.map(name => served(world, name).length).sort()).toEqual([2, 2, 3])
    expect(NAMES.flatMap(name => served(world, name)).sort()).toEqual([...world.keys].sort())
  })

  it('takes over from one that dies, and hands back when it returns', async () => {
    const world = await healthy()
    current(world, 'a').isDead = true
    await world.run(4 * LEASE_MS)
    expect([...served(world, 'b'), ...served(world, 'c')].sort()).toEqual([...world.keys].sort())
    bringUp(world, 'a')
    await world.run(6 * LEASE_MS)
    expect(served(world, 'a').length).toBeGreaterThanOrEqual(2)
    expect(NAMES.flatMap(name => served(world, name)).sort()).toEqual([...world.keys].sort())
    expect(world.faults.join('\n')).toBe('')
  })

  it('hands over without shutting anybody out when one leaves', async () => {
    const world = await healthy()
    const left = current(world, 'b').keeper!.leave(true, 5 * LEASE_MS)
    await world.run(6 * LEASE_MS)
    await left
    expect(stateOf(world).members.map(({ name }) => name)).toEqual(['a', 'c'])
    expect([...served(world, 'a'), ...served(world, 'c')].sort()).toEqual([...world.keys].sort())
    expect(world.shutOut.size).toBe(0)
    expect(world.faults.join('\n')).toBe('')
  })

  it('serves nothing after the lease of one that is cut off, before anybody takes over', async () => {
    const world = await healthy()
    const gateway = current(world, 'a')
    gateway.isCut = true
    await world.run(LEASE_MS)
    expect(served(world, 'a')).toEqual([])
    expect(world.shutOut.size).toBe(0)
    await world.run(3 * LEASE_MS)
    expect([...world.shutOut.keys()]).toEqual([gateway.instance])
    gateway.isCut = false
    await world.run(2 * LEASE_MS)
    expect(gateway.isLost).toBe(true)
    expect(world.faults.join('\n')).toBe('')
  })

  it('stops altogether while Ceph answers nobody, and goes on without shutting anybody out', async () => {
    const world = await healthy()
    for (const name of NAMES) current(world, name).isCut = true
    await world.run(4 * LEASE_MS)
    expect(NAMES.flatMap(name => served(world, name))).toEqual([])
    for (const name of NAMES) current(world, name).isCut = false
    await world.run(3 * LEASE_MS)
    expect(world.shutOut.size).toBe(0)
    expect(NAMES.flatMap(name => served(world, name)).sort()).toEqual([...world.keys].sort())
    expect(world.faults.join('\n')).toBe('')
  })

  it('waits for the lease of one that has renewed it while it was being shut out', async () => {
    const world = await healthy()
    const gateway = current(world, 'a')
    let shutOut = (): void => {}
    const monitors = new Promise<void>(resolve => {
      shutOut = resolve
    })
    for (const name of ['b', 'c']) current(world, name).monitors = monitors
    // Long enough that the others begin to shut it out.
    gateway.isFrozen = true
    await world.run(1.5 * LEASE_MS)
    gateway.isFrozen = false
    await world.run(0.2 * LEASE_MS)
    expect(gateway.keeper!.leaseLeftMs).toBeGreaterThan(0)
    gateway.isFrozen = true
    shutOut()
    await world.run(0.3 * LEASE_MS)
    expect([...world.shutOut.keys()]).toEqual([gateway.instance])
    // It might answer reads from memory.
    const still = served(world, 'a')
    expect(still.length).toBeGreaterThan(0)
    expect([...served(world, 'b'), ...served(world, 'c')].filter(key => still.includes(key))).toEqual([])
    await world.run(3 * LEASE_MS)
    expect([...served(world, 'b'), ...served(world, 'c')].sort()).toEqual([...world.keys].sort())
    expect(world.faults.join('\n')).toBe('')
  })

  it('goes on with what it had after its lease was over, though no monitor answers', async () => {
    const world = await healthy()
    for (const name of NAMES) current(world, name).monitors = new Promise(() => {})
    const gateway = current(world, 'a')
    const before = served(world, 'a')
    gateway.isFrozen = true
    await world.run(0.9 * LEASE_MS)
    expect(gateway.keeper!.leaseLeftMs).toBe(0)
    gateway.isFrozen = false
    await world.run(LEASE_MS)
    expect(served(world, 'a')).toEqual(before)
    expect(world.shutOut.size).toBe(0)
    expect(world.faults.join('\n')).toBe('')
  })

  it('ends one whose name another has taken', async () => {
    const world = await healthy()
    const old = current(world, 'a')
    bringUp(world, 'a')
    await world.run(3 * LEASE_MS)
    expect(old.isLost).toBe(true)
    expect(served(world, 'a').length).toBeGreaterThanOrEqual(2)
    expect(world.faults.join('\n')).toBe('')
  })
})

describe('a member that settles with Ceph', () => {
  let world: SimWorld
  let gateway: SimGateway
  /** Its calls that have not been answered: by whoever calls them. */
  let settlings: (() => void)[]

  /** From now on a member has no image of these keys, and hands them over. */
  const unable = (name: string, keys: readonly string[]): void => {
    Object.assign(current(world, name), { unable: keys })
  }
  const owned = (): string[] => {
    const { members, owners } = stateOf(world)
    const { number } = members.find(({ name }) => name === 'a')!
    return Object.keys(owners).filter(key => owners[key] === number)
  }

  /** It takes a while until all is written that was under way. */
  async function until(isSo: () => boolean): Promise<void> {
    for (let round = 0; !isSo(); round++) {
      expect(round).toBeLessThan(50)
      await world.run(LEASE_MS / 10)
    }
  }

  beforeEach(async () => {
    world = await healthy()
    gateway = current(world, 'a')
    settlings = []
    gateway.settle = () => new Promise(resolve => settlings.push(resolve))
  })
  afterEach(() => expect(world.faults.join('\n')).toBe(''))

  /** Has it own what another served, and settle for that; answers the keys. */
  async function takingOver(): Promise<string[]> {
    current(world, 'c').isDead = true
    await world.run(4 * LEASE_MS)
    const taken = owned().filter(key => !gateway.serves(key))
    expect(taken).not.toEqual([])
    expect(settlings).toHaveLength(1)
    return taken
  }

  it('does not open what it hands over when that ends meanwhile', async () => {
    const taken = await takingOver()
    let drained = (): void => {}
    gateway.drain = () => {
      settlings[0]!()
      return new Promise(resolve => {
        drained = resolve
      })
    }
    unable('a', taken)
    await world.run(LEASE_MS)
    expect(owned()).toEqual(expect.arrayContaining(taken))
    expect(served(world, 'a').filter(key => taken.includes(key))).toEqual([])
    drained()
    await world.run(LEASE_MS)
    expect(served(world, 'b')).toEqual(expect.arrayContaining(taken))
  })

  it('opens what it has let go of and come to own again by the later settling only', async () => {
    const taken = await takingOver()
    unable('a', taken)
    await until(() => taken.every(key => current(world, 'b').serves(key)))
    unable('a', [])
    unable('b', taken)
    await until(() => taken.every(key => owned().includes(key)))
    await world.run(LEASE_MS)
    expect(settlings).toHaveLength(2)
    settlings[0]!()
    await world.run(LEASE_MS)
    expect(served(world, 'a').filter(key => taken.includes(key))).toEqual([])
    settlings[1]!()
    await world.run(LEASE_MS)
    expect(served(world, 'a')).toEqual(expect.arrayContaining(taken))
  })

  it('settles anew for what others have had without its knowledge, and goes on with the rest', async () => {
    const [lent, ...kept] = served(world, 'a')
    const { write, drain } = gateway
    // What it writes is done, and it never hears of that: its lease ends, and nobody misses it.
    gateway.drain = async keys => {
      await drain.call(gateway, keys)
      gateway.write = async (...given) => {
        await write.apply(gateway, given)
        throw new StoreError('no answer')
      }
    }
    unable('a', [lent!])
    await until(() => !owned().includes(lent!) && gateway.keeper!.leaseLeftMs === 0)
    expect(served(world, 'a')).toEqual([])
    unable('a', [])
    for (const name of ['b', 'c']) unable(name, [lent!])
    await until(() => owned().includes(lent!))
    Object.assign(gateway, { write, drain })
    await world.run(LEASE_MS)
    expect(owned()).toContain(lent)
    expect(served(world, 'a')).toEqual(kept)
    for (const settled of settlings) settled()
    await world.run(LEASE_MS)
    expect(served(world, 'a')).toEqual(expect.arrayContaining([lent, ...kept]))
  })
})

describe('under faults', () => {
  it.each(Array.from({ length: SEEDS }, (_, i) => i + 1))('seed %i: no write lands late', async seed => {
    const world = await healthy(1 + (seed % 9), seed)
    for (let i = 0; i < 40; i++) {
      disturb(world)
      await world.run(world.prng.between(10, 2 * LEASE_MS))
      expect(world.faults.join('\n')).toBe('')
    }
    // Left alone, the group finds back.
    await world.run(5 * LEASE_MS)
    for (let i = 0; i < 10; i++) {
      for (const name of NAMES) {
        const last = current(world, name)
        if (last.isLost || last.isDead) bringUp(world, name)
      }
      await world.run(2 * LEASE_MS)
    }
    expect(world.faults.join('\n')).toBe('')
    expect(NAMES.flatMap(name => served(world, name)).sort()).toEqual([...world.keys].sort())
    expect(world.landed).toBeGreaterThan(1000)
  })
})
