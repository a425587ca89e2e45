/**
 * A gateway group over a real Ceph cluster, and Linux's own multipath as its host, which finds the members by discovery.
 * Each image is served by one member at a time and inaccessible on the others; fio checks what it has written while
 * members are killed, frozen and ended.
 *
 *   fio ── namespace 1 ─┐   ┌─ eth0 ── member a ─┐
 *   fio ── namespace 2 ─┼───┼─ eth1 ── member b ─┼── Ceph: volumes/one, two, three
 *   fio ── namespace 3 ─┘   └─ eth2 ── member c ─┘
 */
import { createHash } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { afterAll, afterEach, beforeAll, beforeEach, expect, it } from 'vitest'
import { CEPH_PROGRAMS, type Ceph, startCeph } from './lab/ceph.ts'
import type { Daemon } from './lab/daemon.ts'
import { describeWith } from './lab/describe-with.ts'
import { startGateway } from './lab/gateway.ts'
import { bootGuest, type Guest, hostAddress } from './lab/guest.ts'
import { eventually, LinuxHost, type VerifiedLoad } from './lab/linux-host.ts'
import { GUEST_PROGRAMS } from './lab/packages.ts'

const NQN = 'nqn.2016-06.io.qpair:group'
const IMAGES = ['one', 'two', 'three']
const MEMBERS = ['a', 'b', 'c']
const LEASE_MS = 2000
const PORT = 4420

/** Namespaces for which the host has an optimized path that lives, by member. */
type Served = Readonly<Record<string, readonly number[]>>

await describeWith([...CEPH_PROGRAMS, ...GUEST_PROGRAMS], 'Linux multipath over a gateway group', () => {
  const daemons: Record<string, Daemon> = {}
  const addresses: Record<string, string> = {}
  let ceph: Ceph
  let guest: Guest
  let host: LinuxHost
  let devices: readonly string[]
  let loads: readonly VerifiedLoad[] = []

  async function startMember(name: string): Promise<void> {
    const { daemon } = await startGateway()
    daemons[name] = daemon
    // Of the loopback interface, where each process has addresses of its own and with them every port.
    const { pid } = daemon
    addresses[name] = `127.${1 + (pid >> 16)}.${(pid >> 8) & 0xff}.${pid & 0xff}`
    await daemon.rpc('bdev_rbd_register_cluster', { name: 'c', config_file: ceph.conf })
    await daemon.rpc('gateway_join', {
      group: 'g',
      pool: 'volumes',
      cluster_name: 'c',
      address: `${addresses[name]}:${PORT}`,
      name,
      ...(name === MEMBERS[0] ? { lease_ms: LEASE_MS } : {}),
    })
  }

  async function serve(image: string, through: Daemon): Promise<void> {
    await ceph.run('rbd', 'create', '-p', 'volumes', '--size', '16', image)
    const params = { name: image, pool_name: 'volumes', rbd_name: image, block_size: 4096, cluster_name: 'c' }
    await through.rpc('bdev_rbd_create', params)
    await through.rpc('nvmf_subsystem_add_ns', { nqn: NQN, namespace: { bdev_name: image } })
  }

  /** Leads the guest to the members' own addresses, which are those of its own loopback interface otherwise. */
  async function route(): Promise<void> {
    await guest.run('echo 1 >/proc/sys/net/ipv4/conf/all/route_localnet')
    await guest.run('ip route del table local local 127.0.0.0/8 dev lo')
    for (const [nic, name] of MEMBERS.entries())
      await guest.run(`ip route add ${addresses[name]} via ${hostAddress(nic)} src 10.0.${2 + nic}.15`)
  }

  async function served(): Promise<Served> {
    const facts = 'echo $(cat $path/address $path/nvme*c*n*/ana_state)'
    const live = 'for state in $(grep -lx live /sys/class/nvme/nvme*/state)'
    const lines = (await host.text(`${live}; do path=\${state%/state}; ${facts}; done`)).split('\n')
    const entries = lines.map(line => {
      const [address, ...states] = line.split(' ')
      const name = MEMBERS.find(member => address!.includes(`traddr=${addresses[member]},`))
      return [name, states.flatMap((state, index) => (state === 'optimized' ? [index + 1] : []))]
    })
    return Object.fromEntries(entries)
  }

  async function memberServing(nsid: number): Promise<string> {
    let name: string | undefined
    await eventually(async () => {
      name = Object.entries(await served()).find(([, namespaces]) => namespaces.includes(nsid))?.[0]
      return name
    }).toBeDefined()
    return name!
  }

  /** Waits until the host has everything from members other than these. */
  const takenOver = (...gone: string[]): Promise<void> =>
    eventually(async () => {
      const entries = Object.entries(await served())
      return entries.flatMap(([name, namespaces]) => (gone.includes(name) ? [] : namespaces)).sort()
    }).toEqual([1, 2, 3])

  /** Waits until every member serves its share. */
  const spread = (): Promise<void> =>
    eventually(async () => {
      const now = await served()
      return MEMBERS.map(name => now[name]?.length)
    }).toEqual([1, 1, 1])

  const progress = (): Promise<unknown> => Promise.all(loads.map(load => load.progress(32)))

  beforeAll(async () => {
    const booting = bootGuest({ nics: MEMBERS.length, modules: ['nvme-tcp'] })
    // If Ceph does not start, that is what is told.
    booting.catch(() => {})
    ceph = await startCeph()
    for (const name of MEMBERS) await startMember(name)
    await daemons['a']!.rpc('nvmf_create_subsystem', { nqn: NQN, allow_any_host: true })
    for (const image of IMAGES) await serve(image, daemons['a']!)
    guest = await booting
    host = new LinuxHost(guest)
    await route()
    for (const name of MEMBERS)
      await guest.run(`nvme connect-all -t tcp -a ${addresses[name]} -s ${PORT} -l -1 -c 1 -k 2`)
    // In any order: each comes with its own optimized path.
    for (const index of IMAGES.keys()) await guest.waitFor(`[ -b /dev/nvme*n${index + 1} ]`)
    devices = (await host.text('ls /dev/nvme*n*')).split('\n')
    await host.clearKernelLog()
    loads = devices.map(device => host.startLoad(device, '--iodepth=4'))
  })
  afterAll(async () => {
    await guest?.stop()
    for (const daemon of Object.values(daemons)) await daemon.stop()
    await ceph?.stop()
  })

  beforeEach(spread)
  afterEach(async () => {
    await progress()
    expect(await host.ioErrors()).toBe('')
  })

  it('is a disk for each image, with a path to each member, one of them optimized', async () => {
    expect(devices).toHaveLength(IMAGES.length)
    const identifiers = (await host.text('cat /sys/class/nvme/nvme*/cntlid')).split('\n')
    // A path that was lost for a moment has another of its member's 2040.
    expect(identifiers.map(cntlid => Math.floor((Number(cntlid) - 1) / 2040))).toEqual([0, 1, 2])
    const states = async (): Promise<string[]> =>
      (await host.text('cat /sys/class/nvme/nvme*/nvme*c*n*/ana_state | sort | uniq -c'))
        .split('\n')
        .map(line => line.trim())
    await eventually(states).toEqual(['6 inaccessible', '3 optimized'])
  })

  it('goes on when the member in use is killed, and when it is back', async () => {
    const name = await memberServing(1)
    await daemons[name]!.kill()
    await takenOver(name)
    await progress()
    await daemons[name]!.start()
    await spread()
  })

  it('goes on with one member of three', async () => {
    const left = await memberServing(1)
    const gone = MEMBERS.filter(name => name !== left)
    for (const name of gone) await daemons[name]!.kill()
    await takenOver(...gone)
    await progress()
    for (const name of gone) await daemons[name]!.start()
    await spread()
  })

  it('goes on while the member in use is frozen for longer than its lease, and when it thaws', async () => {
    const name = await memberServing(1)
    daemons[name]!.signal('SIGSTOP')
    await takenOver(name)
    await progress()
    daemons[name]!.signal('SIGCONT')
    await progress()
    await spread()
  })

  it('goes on when the member in use is ended, as for an update, and started', async () => {
    const name = await memberServing(1)
    await daemons[name]!.kill('SIGTERM')
    await takenOver(name)
    await progress()
    await daemons[name]!.start()
    await spread()
  })

  it('reads what Ceph has, after all that', async () => {
    for (const load of loads) await load.stop()
    loads = []
    for (const [index, image] of IMAGES.entries()) {
      const file = join(ceph.directory, image)
      await ceph.run('rbd', 'export', '--no-progress', `volumes/${image}`, file)
      const sum = createHash('sha256').update(readFileSync(file)).digest('hex')
      expect(await host.text(`dd if=${devices[index]} bs=1M iflag=direct | sha256sum`)).toContain(sum)
    }
  })
})
