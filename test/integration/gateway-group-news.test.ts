/**
 * How fast members of a gateway group hear of each other, over a real Ceph cluster of three OSDs; and what they do while
 * its monitors are away and its OSDs are not.
 */
import { afterAll, beforeAll, beforeEach, describe, expect, it } from 'vitest'
import { CEPH_PROGRAMS, type Ceph, ownAddress, startCeph } from './lab/ceph.ts'
import { type Daemon, startDaemon } from './lab/daemon.ts'
import { describeWith } from './lab/describe-with.ts'
import { eventually } from './lab/linux-host.ts'

const NQN = 'nqn.2016-06.io.example:news'
const HOST = 'nqn.2014-08.org.example:h'

interface MemberRow {
  readonly name: string
  readonly state: string
  readonly address: string
  readonly gone_since?: string
  readonly ana_groups: object[]
}

interface Told {
  readonly name: string
  readonly instance: string
  /** How many have connected to each subsystem. */
  readonly hosts: Readonly<Record<string, number>>
}

/** Members of one group, each at an address of its own. */
class Group {
  readonly name: string
  readonly daemons = new Map<string, Daemon>()
  readonly addresses = new Map<string, string>()
  readonly #ceph: Ceph
  readonly #keyring: string
  readonly #leaseMs: number

  constructor(ceph: Ceph, keyring: string, name: string, leaseMs: number) {
    this.#ceph = ceph
    this.#keyring = keyring
    this.name = name
    this.#leaseMs = leaseMs
  }

  async add(name: string, address = ownAddress()): Promise<void> {
    const daemon = await startDaemon()
    this.addresses.set(name, address)
    this.daemons.set(name, daemon)
    await daemon.rpc('nvmf_create_transport', { trtype: 'TCP', kas: 1, min_kato: 1000 })
    await daemon.rpc('bdev_rbd_register_cluster', {
      name: 'c',
      config_file: this.#ceph.conf,
      user_id: 'qpair',
      key_file: this.#keyring,
    })
    await daemon.rpc('gateway_join', {
      group: this.name,
      pool: 'volumes',
      cluster_name: 'c',
      address: `${address}:4420`,
      name,
      lease_ms: this.#leaseMs,
    })
  }

  rpc<T = unknown>(name: string, method: string, params?: unknown): Promise<T> {
    return this.daemons.get(name)!.rpc<T>(method, params)
  }

  /** Makes a subsystem with an image in each of so many ANA groups. */
  async serve(on: string, images: readonly string[]): Promise<void> {
    await this.rpc(on, 'nvmf_create_subsystem', { nqn: NQN, allow_any_host: true })
    for (const image of images) {
      await this.#ceph.run('rbd', 'create', '-p', 'volumes', '--size', '16', image)
      await this.rpc(on, 'bdev_rbd_create', {
        name: image,
        pool_name: 'volumes',
        rbd_name: image,
        block_size: 4096,
        cluster_name: 'c',
      })
      await this.rpc(on, 'nvmf_subsystem_add_ns', { nqn: NQN, namespace: { bdev_name: image } })
    }
  }

  async members(on: string): Promise<MemberRow[]> {
    return (await this.rpc<{ members: MemberRow[] }>(on, 'gateway_show')).members
  }

  /** How many ANA groups each living member serves. */
  async shares(on: string): Promise<Record<string, number>> {
    const living = (await this.members(on)).filter(({ state }) => state !== 'gone')
    return Object.fromEntries(living.map(({ name, ana_groups }) => [name, ana_groups.length]))
  }

  async hosts(on: string): Promise<string[]> {
    const subsystems = await this.rpc<{ nqn: string; hosts: { nqn: string }[] }[]>(on, 'nvmf_get_subsystems')
    return subsystems.find(({ nqn }) => nqn === NQN)?.hosts.map(({ nqn }) => nqn) ?? []
  }

  /** Allows a host, and forbids it again. */
  change(on: string, isAdded: boolean): Promise<unknown> {
    const method = isAdded ? 'nvmf_subsystem_add_host' : 'nvmf_subsystem_remove_host'
    return this.rpc(on, method, { nqn: NQN, host: HOST })
  }

  async stop(): Promise<void> {
    for (const daemon of this.daemons.values()) await daemon.stop()
  }
}

await describeWith(CEPH_PROGRAMS, 'a gateway group', () => {
  let ceph: Ceph
  /** Of a user who may no more than the guide says. */
  let keyring: string
  beforeAll(async () => {
    ceph = await startCeph({ osds: 3, cephx: true })
    keyring = await ceph.addUser('qpair')
  })
  afterAll(async () => {
    await ceph?.stop()
  })

  describe('whose members look by themselves once a minute', () => {
    /** Of which a tenth is the time between two renewals. */
    const LEASE_MS = 600_000
    /** No change may take as long as the wait for a renewal. */
    const RENEWAL_MS = LEASE_MS / 10
    let group: Group

    const watchers = async (): Promise<number> => {
      const object = `gateway.${group.name}.lease`
      const list = await ceph.run('rados', '-p', 'volumes', '-N', 'qpair', 'listwatchers', object)
      return list.split('\n').filter(line => line.includes('watcher=')).length
    }
    const settled = (): Promise<unknown> =>
      Promise.all(['a', 'b', 'c'].map(name => eventually(() => group.hosts(name)).toEqual([])))

    /** Changes something on one; resolves with how long it took until it was on both others, in ms. */
    async function delayOf(on: string, isAdded: boolean): Promise<number> {
      await group.change(on, isAdded)
      const start = performance.now()
      const others = ['a', 'b', 'c'].filter(name => name !== on)
      while (
        (await Promise.all(others.map(name => group.hosts(name)))).some(({ length }) => length !== +isAdded)
      );
      return performance.now() - start
    }

    beforeAll(async () => {
      group = new Group(ceph, keyring, 'slow', LEASE_MS)
      await group.add('a')
      await group.serve('a', ['one', 'two', 'three'])
      await group.add('b')
      await group.add('c')
    })
    afterAll(() => group?.stop())

    it('gives newcomers their share at once', async () => {
      await eventually(() => group.shares('a')).toEqual({ a: 1, b: 1, c: 1 })
    })

    it('has what is changed on one appear on the others at once', async () => {
      await settled()
      const delays: number[] = []
      for (let i = 0; i < 10; i++) {
        for (const isAdded of [true, false]) delays.push(await delayOf(['a', 'b', 'c'][i % 3]!, isAdded))
      }
      delays.sort((x, y) => x - y)
      const tell = (part: number): string => delays[Math.floor(part * (delays.length - 1))]!.toFixed(1)
      console.log(`a change was on the others after ${tell(0.5)} ms (median), ${tell(1)} ms (longest of 20)`)
      expect(delays.at(-1)).toBeLessThan(RENEWAL_MS / 2)
    })

    it('hears again after the watch of a member was lost while it was frozen', async () => {
      await eventually(watchers).toBe(3)
      group.daemons.get('b')!.signal('SIGSTOP')
      await eventually(watchers).toBe(2)
      await group.change('a', true)
      group.daemons.get('b')!.signal('SIGCONT')
      const start = performance.now()
      // Nobody tells it of what it has missed: it looks when it watches again.
      await eventually(() => group.hosts('b')).toEqual([HOST])
      expect(performance.now() - start).toBeLessThan(RENEWAL_MS / 2)
      await eventually(watchers).toBe(3)
      expect(await delayOf('c', false)).toBeLessThan(RENEWAL_MS / 2)
    })

    it('hears again after every OSD was killed and started', async () => {
      for (const id of [0, 1, 2]) await ceph.killOsd(id)
      for (const id of [0, 1, 2]) await ceph.startOsd(id)
      await eventually(watchers).toBe(3)
      expect(await delayOf('a', true)).toBeLessThan(RENEWAL_MS / 2)
      expect(await delayOf('b', false)).toBeLessThan(RENEWAL_MS / 2)
    })

    it('hands over at once when a member leaves', async () => {
      await group.rpc('c', 'gateway_leave')
      await eventually(async () => Object.values(await group.shares('a')).sort()).toEqual([1, 2])
      await eventually(watchers).toBe(2)
    })
  })

  describe('whose members come and go', () => {
    const LEASE_MS = 2000
    const IMAGES = ['four', 'five', 'six', 'seven']
    let group: Group
    let host: Daemon

    const completed = async (): Promise<number[]> =>
      (await host.rpc<{ reads: number; writes: number }[]>('workload_get')).map(
        ({ reads, writes }) => reads + writes,
      )
    /** Waits until so many of the loads, or more, have got on. */
    async function getOn(number: number): Promise<void> {
      const before = await completed()
      const gotOn = async (): Promise<number> =>
        (await completed()).filter((count, index) => count > before[index]! + 10).length
      await eventually(gotOn).toBeGreaterThanOrEqual(number)
    }
    /** For longer than a lease they get on, again and again. */
    async function goOn(number: number): Promise<void> {
      const endMs = performance.now() + 3 * LEASE_MS
      while (performance.now() < endMs) await getOn(number)
    }
    /** What members tell each other of themselves. */
    async function told(): Promise<Told[]> {
      const object = ['-p', 'volumes', '-N', 'qpair', 'get', 'gateway.fast.lease', '-']
      return (JSON.parse(await ceph.run('rados', ...object)) as { members: Told[] }).members
    }
    const leases = async (): Promise<string[]> =>
      Promise.all(
        ['a', 'b'].map(async name => (await group.rpc<{ state: string }>(name, 'gateway_show')).state),
      )

    beforeAll(async () => {
      group = new Group(ceph, keyring, 'fast', LEASE_MS)
      await group.add('a')
      await group.add('b')
      await group.serve('a', IMAGES)
      host = await startDaemon()
      for (const traddr of group.addresses.values()) {
        await host.rpc('bdev_nvme_attach_controller', {
          name: 'Nvme0',
          trtype: 'TCP',
          traddr,
          trsvcid: '4420',
          subnqn: NQN,
          multipath: 'multipath',
          ctrlr_loss_timeout_sec: -1,
          reconnect_delay_sec: 1,
        })
      }
    })
    afterAll(async () => {
      await host?.stop()
      await group?.stop()
    })
    beforeEach(async () => {
      // While one of them has the host and the other does not yet, it is given everything.
      const reached = async (): Promise<string[]> =>
        (await told()).map(({ name, hosts }) => `${name} ${hosts[NQN]}`)
      await eventually(reached).toEqual(['a 1', 'b 1'])
      for (const name of ['a', 'b']) await eventually(() => group.shares(name)).toEqual({ a: 2, b: 2 })
    })

    it('goes on without monitors; nobody takes over from one that dies until they are back', async () => {
      const loads: number[] = []
      for (const [index] of IMAGES.entries()) {
        loads.push(
          await host.rpc<number>('workload_start', {
            bdev_name: `Nvme0n${index + 1}`,
            verify: true,
            read_percent: 50,
            queue_depth: 4,
            seed: index + 1,
          }),
        )
      }
      await getOn(4)
      ceph.signalMonitor('SIGSTOP')
      // Renewals take the OSDs only, and so does a change.
      await goOn(4)
      await eventually(leases).toEqual(['serving', 'serving'])
      // Refused while it has no lease.
      await eventually(() => group.change('a', true)).toBe(true)
      await eventually(() => group.hosts('b')).toEqual([HOST])
      await group.daemons.get('a')!.kill('SIGKILL')
      // What it had answered has arrived by then.
      await getOn(2)
      const before = await completed()
      await goOn(2)
      expect((await completed()).filter((count, index) => count > before[index]!)).toHaveLength(2)
      expect(await group.shares('b')).toEqual({ a: 2, b: 2 })
      ceph.signalMonitor('SIGCONT')
      await eventually(() => group.shares('b')).toEqual({ b: 4 })
      await getOn(4)
      await group.daemons.get('a')!.start()
      await eventually(() => group.shares('b')).toEqual({ a: 2, b: 2 })
      for (const id of loads) {
        const report = await host.rpc<object>('workload_stop', { id })
        expect(report).toMatchObject({ errors: 0, miscompares: 0, first_errors: [] })
      }
    })

    it('ends without monitors as well', async () => {
      ceph.signalMonitor('SIGSTOP')
      const { code } = await group.daemons.get('a')!.kill('SIGTERM')
      ceph.signalMonitor('SIGCONT')
      expect(code).toBe(0)
      await eventually(() => group.shares('b')).toEqual({ b: 4 })
      await group.daemons.get('a')!.start()
    })

    it('comes back as another client when Ceph has shut it out, and can be ended before it has', async () => {
      const instance = async (): Promise<string> => (await told()).find(({ name }) => name === 'a')!.instance
      const shutOut = async (): Promise<void> => {
        for (const address of (await instance()).replace(/[[\]]/g, '').split(','))
          await ceph.run('ceph', 'osd', 'blocklist', 'add', address)
        await eventually(async () => (await leases())[0]).toBe('rejoining')
      }
      await shutOut()
      expect((await group.daemons.get('a')!.kill('SIGTERM')).code).toBe(0)
      await group.daemons.get('a')!.start()
      await eventually(leases).toEqual(['serving', 'serving'])
      const before = await instance()
      await shutOut()
      await eventually(leases).toEqual(['serving', 'serving'])
      expect(await instance()).not.toBe(before)
    })

    it('is reached as soon as its address is free', async () => {
      const address = ownAddress()
      const other = await startDaemon()
      const nqn = `${NQN}:other`
      const listeners = async (): Promise<number> => {
        const subsystems = await group.rpc<{ nqn: string; listen_addresses: object[] }[]>(
          'c',
          'nvmf_get_subsystems',
        )
        return subsystems.find(each => each.nqn === NQN)!.listen_addresses.length
      }
      try {
        await other.rpc('nvmf_create_transport', { trtype: 'TCP' })
        await other.rpc('nvmf_create_subsystem', { nqn })
        const listen_address = { trtype: 'TCP', traddr: address, trsvcid: '4420' }
        await other.rpc('nvmf_subsystem_add_listener', { nqn, listen_address })
        await group.add('c', address)
        await eventually(listeners).toBe(0)
        const shown = (): Promise<{ problem: string }> => group.rpc('c', 'gateway_show')
        await eventually(async () => (await shown()).problem).toMatch(
          /^hosts do not reach .*:news here: .* is in use by another socket/,
        )
        await other.rpc('nvmf_delete_subsystem', { nqn })
        await eventually(listeners).toBe(1)
        await group.rpc('c', 'gateway_leave')
      } finally {
        await other.stop()
      }
    })

    it('ends a member whose name another has taken, which does not come back by itself', async () => {
      await group.add('c')
      const first = group.daemons.get('c')!
      try {
        await group.add('c')
        const shown = (): Promise<{ state: string; problem: string }> => first.rpc('gateway_show')
        await eventually(shown).toMatchObject({
          state: 'replaced',
          problem: expect.stringMatching(/another gateway joins (group fast )?as c/),
        })
        const address = `${group.addresses.get('c')}:4420`
        await eventually(() => group.members('a')).toContainEqual(
          expect.objectContaining({ name: 'c', state: 'alive', address }),
        )
        expect((await shown()).state).toBe('replaced')
        await group.rpc('c', 'gateway_leave')
      } finally {
        await first.stop()
      }
    })

    it('lists a member that is gone, and since when, until it is told to forget it', async () => {
      const before = Date.now()
      await group.add('c')
      await expect(group.rpc('a', 'gateway_forget', { name: 'c' })).rejects.toThrow(
        /gateway c is a living member of group fast: have it leave/,
      )
      await group.daemons.get('c')!.kill('SIGKILL')
      const row = async (on: string): Promise<MemberRow | undefined> =>
        (await group.members(on)).find(({ name }) => name === 'c')
      for (const on of ['a', 'b']) await eventually(async () => (await row(on))?.state).toBe('gone')
      const since = Date.parse((await row('b'))!.gone_since!)
      expect(since).toBeGreaterThan(before)
      expect(since).toBeLessThanOrEqual(Date.now())
      await group.rpc('b', 'gateway_forget', { name: 'c' })
      for (const on of ['a', 'b']) await eventually(() => row(on)).toBeUndefined()
      await expect(group.rpc('a', 'gateway_forget', { name: 'c' })).rejects.toThrow(
        /has no member c: it has a, b/,
      )
      // It comes back all the same, as a new one.
      await group.daemons.get('c')!.start()
      await eventually(async () => (await row('a'))?.state).toBe('alive')
      await group.rpc('c', 'gateway_leave')
      await eventually(() => row('a')).toBeUndefined()
    })
  })
})
