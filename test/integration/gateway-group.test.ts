/**
 * Two gateways of a group over a real Ceph cluster, and our own host on both of them. A workload on three devices, and
 * fio on the fourth, verify every block while the gateways are killed, frozen and cut off:
 *
 *   workload, fio ── host: Nvme0n1 … ─┬─ a, on an island ─┬─ Ceph
 *                                     └─ b ───────────────┘
 */
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest'
import { CEPH_PROGRAMS, type Ceph, ownAddress, startCeph } from './lab/ceph.ts'
import { type Daemon, startDaemon } from './lab/daemon.ts'
import { describeWith } from './lab/describe-with.ts'
import { Island } from './lab/island.ts'
import { eventually } from './lab/linux-host.ts'
import { NbdFio } from './lab/nbd-fio.ts'

const NQN = 'nqn.2016-06.io.example:group'
const IMAGES = ['one', 'two', 'three', 'four']
/** As the host names them. */
const DEVICES = IMAGES.map((_, index) => `Nvme0n${index + 1}`)
const LAST = DEVICES.at(-1)!
const LEASE_MS = 2000
const PORT = { a: 4420, b: 4421 }
/** Of this test alone, also when another runs beside it. */
const OWN_ADDRESS = ownAddress()

interface Group {
  readonly state: string
  readonly problem: string
  readonly config_version: number
  readonly members: {
    readonly name: string
    readonly state: string
    readonly is_self: boolean
    readonly ana_groups: { readonly anagrpid: number }[]
  }[]
}

interface Subsystem {
  readonly nqn: string
  readonly min_cntlid: number
  readonly max_cntlid: number
  readonly listen_addresses: object[]
  readonly hosts: object[]
  readonly allow_any_host: boolean
  readonly namespaces: { readonly nsid: number; readonly uuid: string }[]
}

interface Report {
  readonly id: number
  readonly reads: number
  readonly writes: number
  readonly errors: number
  readonly miscompares: number
  readonly read_backs: number
  readonly first_errors: string[]
  readonly longest_pause_us: number
}

const isRoot = process.getuid?.() === 0
const PROGRAMS = [...CEPH_PROGRAMS, 'ip', 'fio'] as const

await describeWith(PROGRAMS, 'a gateway group', () => {
  describe.skipIf(!isRoot)('over Ceph (needs root, for a network namespace)', () => {
    let island: Island
    let ceph: Ceph
    let host: Daemon
    const daemons: Record<string, Daemon> = {}
    const addresses: Record<string, string> = {}

    const show = (name: string, on = daemons[name]!): Promise<Group> => on.rpc<Group>('gateway_show')
    const subsystem = async (name: string): Promise<Subsystem | undefined> =>
      (await daemons[name]!.rpc<Subsystem[]>('nvmf_get_subsystems')).find(({ nqn }) => nqn === NQN)
    /** How many ANA groups each living member serves, as one of them knows it. */
    const shares = async (name: string, on = daemons[name]!): Promise<Record<string, number>> =>
      Object.fromEntries(
        (await show(name, on)).members
          .filter(({ state }) => state !== 'gone')
          .map(member => [member.name, member.ana_groups.length]),
      )
    /** How many clients Ceph has shut out. */
    const clients = async (): Promise<number> => {
      const list = await ceph.run('ceph', 'osd', 'blocklist', 'ls')
      return list.split('\n').filter(line => line !== '').length
    }

    async function gateway(name: 'a' | 'b'): Promise<void> {
      const daemon = await startDaemon(name === 'a' ? { within: island.within } : {})
      daemons[name] = daemon
      addresses[name] = name === 'a' ? island.address : OWN_ADDRESS
      await daemon.rpc('nvmf_create_transport', { trtype: 'TCP', kas: 1, min_kato: 1000 })
      await daemon.rpc('bdev_rbd_register_cluster', { name: 'c', config_file: ceph.conf })
      await daemon.rpc('gateway_join', {
        group: 'g',
        pool: 'volumes',
        cluster_name: 'c',
        address: `${addresses[name]}:${PORT[name]}`,
        name,
        ...(name === 'a' ? { lease_ms: LEASE_MS } : {}),
      })
    }

    async function attach(): Promise<void> {
      host = await startDaemon()
      await host.rpc('bdev_nvme_set_options', { keep_alive_timeout_ms: 1000 })
      for (const name of ['a', 'b'] as const) {
        await host.rpc('bdev_nvme_attach_controller', {
          name: 'Nvme0',
          trtype: 'TCP',
          traddr: addresses[name],
          trsvcid: String(PORT[name]),
          subnqn: NQN,
          multipath: 'multipath',
          ctrlr_loss_timeout_sec: -1,
          reconnect_delay_sec: 1,
        })
      }
    }

    beforeAll(async () => {
      island = await Island.create()
      ceph = await startCeph({ address: island.far })
      for (const image of IMAGES) await ceph.run('rbd', 'create', '-p', 'volumes', '--size', '16', image)
      await gateway('a')
      await gateway('b')
    })
    afterAll(async () => {
      await host?.stop()
      for (const daemon of Object.values(daemons)) await daemon.stop()
      await ceph?.stop()
      await island?.remove()
    })
    beforeEach(() =>
      eventually(async () => (await show('a')).members.map(({ name, state }) => `${name} ${state}`)).toEqual([
        'a alive',
        'b alive',
      ]),
    )

    it('has what is changed on one appear on the other, each with its own window and address', async () => {
      const { a, b } = daemons
      await a!.rpc('nvmf_create_subsystem', { nqn: NQN, allow_any_host: true })
      for (const [index, image] of IMAGES.entries()) {
        const on = index % 2 === 0 ? a! : b!
        await on.rpc('bdev_rbd_create', {
          name: image,
          pool_name: 'volumes',
          rbd_name: image,
          block_size: 4096,
          cluster_name: 'c',
        })
        await on.rpc('nvmf_subsystem_add_ns', { nqn: NQN, namespace: { bdev_name: image } })
      }
      await eventually(async () => (await subsystem('a'))?.namespaces.length).toBe(4)
      await eventually(async () => (await subsystem('b'))?.namespaces.length).toBe(4)
      const [onA, onB] = [(await subsystem('a'))!, (await subsystem('b'))!]
      expect(onB.namespaces).toEqual(onA.namespaces)
      expect([onA.min_cntlid, onA.max_cntlid, onB.min_cntlid, onB.max_cntlid]).toEqual([1, 2040, 2041, 4080])
      expect(onA.listen_addresses).toMatchObject([{ traddr: island.address, trsvcid: String(PORT.a) }])
      expect(onB.listen_addresses).toMatchObject([{ traddr: OWN_ADDRESS, trsvcid: String(PORT.b) }])
      await eventually(() => shares('a')).toEqual({ a: 2, b: 2 })
    })

    it('follows changes back and forth', async () => {
      const { a, b } = daemons
      await b!.rpc('nvmf_subsystem_allow_any_host', { nqn: NQN, allow_any_host: false })
      await b!.rpc('nvmf_subsystem_add_host', { nqn: NQN, host: 'nqn.2014-08.org.example:h' })
      await eventually(async () => (await subsystem('a'))!.hosts).toEqual([
        { nqn: 'nqn.2014-08.org.example:h' },
      ])
      expect((await subsystem('a'))!.allow_any_host).toBe(false)
      await a!.rpc('nvmf_subsystem_remove_host', { nqn: NQN, host: 'nqn.2014-08.org.example:h' })
      await a!.rpc('nvmf_subsystem_allow_any_host', { nqn: NQN, allow_any_host: true })
      await eventually(async () => (await subsystem('b'))!.allow_any_host).toBe(true)
      expect((await subsystem('b'))!.hosts).toEqual([])
    })

    it('shows a namespace to the same hosts on every member', async () => {
      const { a, b } = daemons
      await ceph.run('rbd', 'create', '-p', 'volumes', '--size', '16', 'hidden')
      await a!.rpc('bdev_rbd_create', {
        name: 'hidden',
        pool_name: 'volumes',
        rbd_name: 'hidden',
        block_size: 512,
        cluster_name: 'c',
      })
      await a!.rpc('nvmf_subsystem_add_ns', {
        nqn: NQN,
        namespace: { bdev_name: 'hidden', nsid: 9, no_auto_visible: true, anagrpid: 1 },
      })
      await b!.rpc('nvmf_ns_add_host', { nqn: NQN, nsid: 9, host: 'nqn.2014-08.org.example:h' })
      const shown = async (name: string): Promise<object[]> =>
        (
          await daemons[name]!.rpc<{ method: string; params: object }[]>('framework_get_config', {
            name: 'nvmf',
          })
        )
          .filter(({ method }) => method === 'nvmf_ns_add_host')
          .map(({ params }) => params)
      const expected = [{ nqn: NQN, nsid: 9, host: 'nqn.2014-08.org.example:h' }]
      await eventually(() => shown('a')).toEqual(expected)
      expect(await shown('b')).toEqual(expected)
      await ceph.run('rbd', 'snap', 'create', 'volumes/hidden@then')
      await a!.rpc('nvmf_subsystem_remove_ns', { nqn: NQN, nsid: 9 })
      await eventually(async () => (await subsystem('b'))!.namespaces.length).toBe(4)
      const rollBack = (rest: object): Promise<{ job_id: number }> =>
        a!.rpc('bdev_rbd_snapshot_rollback', { name: 'hidden', snapshot: 'then', ...rest })
      await expect(rollBack({})).rejects.toThrow(/the other members of the gateway group do, .*use force/)
      const { job_id: id } = await rollBack({ force: true })
      expect(await a!.rpc('job_wait', { id })).toMatchObject({ state: 'completed' })
      await ceph.run('rbd', 'snap', 'rm', 'volumes/hidden@then')
      await a!.rpc('nvmf_subsystem_add_ns', {
        nqn: NQN,
        namespace: { bdev_name: 'hidden', nsid: 9, anagrpid: 1 },
      })
      await eventually(async () => (await subsystem('b'))!.namespaces.length).toBe(5)
      // The device goes with everything on it, everywhere.
      await b!.rpc('bdev_rbd_delete', { name: 'hidden' })
      await eventually(async () => (await subsystem('a'))!.namespaces.length).toBe(4)
      await eventually(() => shares('a')).toEqual({ a: 2, b: 2 })
    })

    it('takes in only who can be a member, and says what is missing', async () => {
      const newcomer = await startDaemon()
      const join = (rest: object = {}): Promise<unknown> =>
        newcomer.rpc('gateway_join', {
          group: 'g',
          pool: 'volumes',
          cluster_name: 'c',
          address: `${OWN_ADDRESS}:4422`,
          name: 'n',
          ...rest,
        })
      try {
        await expect(join()).rejects.toThrow(/create it first with nvmf_create_transport/)
        await newcomer.rpc('nvmf_create_transport', { trtype: 'TCP' })
        await expect(join()).rejects.toThrow(/there is no cluster c/)
        await expect(join({ cluster_name: undefined })).rejects.toThrow(/no cluster is registered/)
        await newcomer.rpc('bdev_rbd_register_cluster', { name: 'c', config_file: ceph.conf })
        await expect(join({ address: 'gateway-1' })).rejects.toThrow(/is not an address and a port/)
        for (const address of ['0.0.0.0:4420', '[::]:4420', '192.0.2.1:0'])
          await expect(join({ address })).rejects.toThrow(/is none that a host can connect to/)
        await expect(join({ pool: 'nowhere' })).rejects.toThrow(/check that the pool exists/)
        await expect(join({ lease_ms: 9000 })).rejects.toThrow(/has a lease of 2000 ms, not 9000/)
        await newcomer.rpc('nvmf_create_subsystem', { nqn: `${NQN}:own` })
        await expect(join()).rejects.toThrow(/has the subsystem nqn.2016-06.io.example:group:own of its own/)
        await newcomer.rpc('nvmf_delete_subsystem', { nqn: `${NQN}:own` })
        // There is one, which need not be named.
        await join({ cluster_name: undefined })
        await eventually(async () => (await shares('a'))['n']).toBe(1)
        await eventually(async () => (await shares('n', newcomer))['n']).toBe(1)
        await newcomer.rpc('gateway_leave')
        await eventually(() => shares('a')).toEqual({ a: 2, b: 2 })
        // It is the cluster's no more.
        await newcomer.rpc('bdev_rbd_unregister_cluster', { name: 'c' })
      } finally {
        await newcomer.stop()
      }
    })

    it('refuses what the group decides, with the reason', async () => {
      const { a } = daemons
      await a!.rpc('bdev_null_create', { name: 'n', num_blocks: 8, block_size: 4096 })
      const refused = (method: string, params: object): Promise<unknown> => a!.rpc(method, params)
      await expect(
        refused('nvmf_subsystem_add_ns', { nqn: NQN, namespace: { bdev_name: 'n' } }),
      ).rejects.toThrow(/n is not an RBD image of the cluster c/)
      await expect(
        refused('nvmf_create_subsystem', { nqn: `${NQN}2`, min_cntlid: 1, max_cntlid: 5 }),
      ).rejects.toThrow(/gives each member controller identifiers/)
      const listen_address = { trtype: 'TCP', traddr: island.address, trsvcid: '4425' }
      await expect(refused('nvmf_subsystem_add_listener', { nqn: NQN, listen_address })).rejects.toThrow(
        /the gateway group g decides about listeners/,
      )
      await expect(
        refused('gateway_join', { group: 'h', pool: 'p', cluster_name: 'c', address: 'x' }),
      ).rejects.toThrow(/in the gateway group g already, as a/)
      await expect(refused('bdev_rbd_unregister_cluster', { name: 'c' })).rejects.toThrow(
        /is that of the gateway group: have this daemon leave it first/,
      )
    })

    describe('under verified load', () => {
      let loads: number[]
      let uri: string
      let fio: NbdFio | undefined

      const reports = (): Promise<Report[]> => host.rpc<Report[]>('workload_get')
      const completed = async (): Promise<number[]> =>
        (await reports()).map(({ reads, writes }) => reads + writes)

      /** Every device gets on, without an error. */
      async function getsOn(): Promise<void> {
        const before = await completed()
        await eventually(async () => {
          const now = await completed()
          return now.every((count, index) => count > before[index]! + 50)
        }).toBe(true)
        await fio!.progress(50)
      }

      async function spread(): Promise<void> {
        for (const name of ['a', 'b']) await eventually(() => shares(name)).toEqual({ a: 2, b: 2 })
      }

      beforeAll(async () => {
        await attach()
        const unix = `${host.directory}/nbd.sock`
        uri = (await host.rpc<{ uri: string }>('nbd_export_start', { bdev_name: LAST, unix })).uri
      })
      beforeEach(async () => {
        await spread()
        loads = []
        fio = await NbdFio.start(host, LAST, uri, '--iodepth=4')
        for (const [index, bdev_name] of DEVICES.slice(0, -1).entries()) {
          loads.push(
            await host.rpc<number>('workload_start', {
              bdev_name,
              verify: true,
              read_percent: 50,
              queue_depth: 4,
              seed: index + 1,
            }),
          )
        }
        await getsOn()
      })

      // Of a test that failed: they would get in the way of the next.
      afterEach(async () => {
        await fio?.discard()
        for (const { id } of await reports()) await host.rpc('workload_stop', { id })
      })

      /** Ends the loads, which read back everything: no error and no wrong byte. Returns the longest pause, in ms. */
      async function check(): Promise<number> {
        await getsOn()
        let longestUs = 0
        for (const id of loads) {
          const report = await host.rpc<Report>('workload_stop', { id })
          expect(report.first_errors).toEqual([])
          expect(report).toMatchObject({ errors: 0, miscompares: 0 })
          expect(report.read_backs).toBeGreaterThan(0)
          longestUs = Math.max(longestUs, report.longest_pause_us)
        }
        await fio!.stop()
        fio = undefined
        return Math.round(longestUs / 1000)
      }

      const tell = (what: string, pauseMs: number): void =>
        console.log(`${what}: the longest pause of an I/O was ${pauseMs} ms, with a lease of ${LEASE_MS} ms`)

      it('takes over from a member that is killed, and hands back when it returns', async () => {
        await daemons['a']!.kill('SIGKILL')
        await eventually(() => shares('b')).toEqual({ b: 4 })
        await getsOn()
        await daemons['a']!.start()
        await spread()
        tell('killed', await check())
      })

      it('hands over in order when a member ends, and shuts nobody out', async () => {
        const before = await clients()
        await daemons['a']!.restart('SIGTERM')
        await spread()
        expect(await clients()).toBe(before)
        tell('ended', await check())
      })

      it('does without a member that is frozen, and nothing of it lands when it thaws', async () => {
        daemons['a']!.signal('SIGSTOP')
        await eventually(() => shares('b')).toEqual({ b: 4 })
        await getsOn()
        daemons['a']!.signal('SIGCONT')
        await getsOn()
        await spread()
        tell('frozen', await check())
      })

      it('takes no notice of a member that is frozen for less than its lease', async () => {
        const before = await clients()
        daemons['a']!.signal('SIGSTOP')
        await new Promise(resolve => setTimeout(resolve, LEASE_MS / 4))
        daemons['a']!.signal('SIGCONT')
        await getsOn()
        expect(await clients()).toBe(before)
        tell('frozen for a moment', await check())
      })

      it('does without a member that is cut off from Ceph', async () => {
        await island.cut(island.far)
        await eventually(async () => (await show('a')).state).toBe('waiting')
        await expect(
          daemons['a']!.rpc('nvmf_subsystem_add_host', { nqn: NQN, host: 'nqn.2014-08.org.example:h' }),
        ).rejects.toThrow(/has no lease in gateway group g at the moment/)
        await eventually(() => shares('b')).toEqual({ b: 4 })
        await getsOn()
        await island.heal(island.far)
        await spread()
        tell('cut off from Ceph', await check())
      })

      it('does without a member that its hosts do not reach, and shuts nobody out', async () => {
        const before = await clients()
        await island.cut(island.near)
        await eventually(() => shares('a')).toEqual({ a: 0, b: 4 })
        await getsOn()
        await island.heal(island.near)
        await spread()
        expect(await clients()).toBe(before)
        tell('cut off from hosts', await check())
      })

      it('does without a member that is cut off from everybody', async () => {
        await island.cut(island.near)
        await island.cut(island.far)
        await eventually(() => shares('b')).toEqual({ b: 4 })
        await getsOn()
        await island.heal(island.far)
        await island.heal(island.near)
        await spread()
        tell('cut off from both', await check())
      })

      it('stops everywhere while Ceph answers nobody, and goes on without shutting anybody out', async () => {
        const before = await clients()
        ceph.signalOsd(0, 'SIGSTOP')
        for (const name of ['a', 'b']) {
          await eventually(async () => (await show(name)).state).toBe('waiting')
        }
        // Longer than any of them would wait for the other.
        await new Promise(resolve => setTimeout(resolve, 2 * LEASE_MS))
        ceph.signalOsd(0, 'SIGCONT')
        await spread()
        expect(await clients()).toBe(before)
        tell('Ceph answers nobody', await check())
      })

      it('goes on when all members were killed, with the configuration that Ceph has', async () => {
        for (const name of ['a', 'b']) await daemons[name]!.kill('SIGKILL')
        for (const name of ['a', 'b']) await daemons[name]!.start()
        await eventually(async () => (await subsystem('a'))!.namespaces.length).toBe(4)
        await spread()
        tell('all killed', await check())
      })
    })

    it('catches up with what was changed while it was away', async () => {
      const { a, b } = daemons
      await a!.kill('SIGTERM')
      await b!.rpc('nvmf_subsystem_remove_ns', { nqn: NQN, nsid: 4 })
      await b!.rpc('bdev_rbd_delete', { name: 'four' })
      await a!.start()
      await eventually(async () => (await subsystem('a'))!.namespaces.length).toBe(3)
      const names = async (): Promise<string[]> =>
        (await a!.rpc<{ name: string }[]>('bdev_get_bdevs')).map(({ name }) => name)
      await eventually(names).not.toContain('four')
    })

    it('leaves nothing behind on a member that leaves', async () => {
      const { a, b } = daemons
      await b!.rpc('gateway_leave')
      expect(await subsystem('b')).toBeUndefined()
      await eventually(() => shares('a')).toEqual({ a: 3 })
      await expect(show('b')).rejects.toThrow(/is in no gateway group/)
      expect((await subsystem('a'))!.namespaces).toHaveLength(3)
      void a
    })
  })
})
