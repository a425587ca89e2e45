/** The target as Linux sees it: Debian's kernel and nvme-cli in a guest, against the daemon as users run it. */
import { afterAll, afterEach, beforeAll, expect, it } from 'vitest'
import { type Daemon, startDaemon } from './lab/daemon.ts'
import { describeWith } from './lab/describe-with.ts'
import { bootGuest, type Guest, hostAddress } from './lab/guest.ts'
import { GUEST_PROGRAMS } from './lab/packages.ts'

const NQN = 'nqn.2016-06.io.spdk:linux1'
const DISK_UUID = '2d2d3f0a-9a2b-4c55-8b1e-6a7f1c3c9d10'
const MIB_BLOCKS = 2048
const NO_LATENCY = { avg_read_latency: 0, p99_read_latency: 0, avg_write_latency: 0, p99_write_latency: 0 }
const LATENCY_TYPES = ['p99_read', 'avg_read', 'p99_write', 'avg_write']

interface ListenerState {
  readonly address: { readonly trsvcid: string }
}

await describeWith(GUEST_PROGRAMS, 'a Linux host', () => {
  let daemon: Daemon
  let guest: Guest
  /** Two listeners: the guest reaches this machine's 127.0.0.1 by both of its networks. */
  let ports: string[]

  const address = (trsvcid: string): object => ({
    trtype: 'TCP',
    adrfam: 'IPv4',
    traddr: '127.0.0.1',
    trsvcid,
  })
  const listen = (port: string, ana_state = 'optimized'): Promise<unknown> =>
    daemon.rpc('nvmf_subsystem_add_listener', { nqn: NQN, listen_address: address(port), ana_state })
  const connect = (path: number, ...more: string[]): Promise<unknown> =>
    guest.run(
      [
        'nvme connect -t tcp',
        `-a ${hostAddress(path)} -s ${ports[path]} -n ${NQN}`,
        '-l 60 -c 1',
        ...more,
      ].join(' '),
    )
  const json = async (command: string) => JSON.parse((await guest.run(`${command} -o json`)).stdout)

  beforeAll(async () => {
    daemon = await startDaemon({ args: ['--reactors', '2'] })
    // Short time-outs, so that the silent path is found within the patience of a test.
    await daemon.rpc('nvmf_create_transport', { trtype: 'TCP', kas: 1, min_kato: 1000 })
    await daemon.rpc('bdev_malloc_create', {
      name: 'disk0',
      block_size: 512,
      num_blocks: 32 * MIB_BLOCKS,
      uuid: DISK_UUID,
    })
    await daemon.rpc('nvmf_create_subsystem', {
      nqn: NQN,
      allow_any_host: true,
      ana_reporting: true,
      serial_number: 'LINUX1',
    })
    await daemon.rpc('nvmf_subsystem_add_ns', { nqn: NQN, namespace: { bdev_name: 'disk0' } })
    await listen('0')
    await listen('0')
    const listeners = await daemon.rpc<ListenerState[]>('nvmf_subsystem_get_listeners', { nqn: NQN })
    ports = listeners.map(listener => listener.address.trsvcid)
    guest = await bootGuest({ nics: 2, modules: ['nvme-tcp'] })
  })
  afterAll(async () => {
    await guest?.stop()
    await daemon?.stop()
  })
  afterEach(async () => {
    await guest.run('nvme disconnect-all')
  })

  it('discovers the subsystem by each of its listeners', async () => {
    const { records } = await json(`nvme discover -t tcp -a ${hostAddress()} -s ${ports[0]}`)
    const found = records.filter((record: { subnqn: string }) => record.subnqn === NQN)
    expect(found.map((record: { trsvcid: string }) => record.trsvcid)).toEqual(ports)
    expect(found[0]).toMatchObject({
      trtype: 'tcp',
      adrfam: 'ipv4',
      subtype: 'nvme subsystem',
      traddr: '127.0.0.1',
    })
  })

  it('connects, identifies and reads back what it wrote', async () => {
    await connect(0)
    await guest.waitFor('test -b /dev/nvme0n1')
    const controller = await json('nvme id-ctrl /dev/nvme0')
    expect(controller.sn.trim()).toBe('LINUX1')
    expect(controller.subnqn).toBe(NQN)
    const namespace = await json('nvme id-ns /dev/nvme0n1')
    expect(namespace.nsze).toBe(32 * MIB_BLOCKS)
    expect(namespace.nguid).toBe(DISK_UUID.replaceAll('-', ''))
    const { stdout: uuid } = await guest.run('cat /sys/block/nvme0n1/uuid')
    expect(uuid.trim()).toBe(DISK_UUID)
    await guest.run(
      'dd if=/dev/urandom of=/tmp/data bs=1M count=4 2>/dev/null && ' +
        'dd if=/tmp/data of=/dev/nvme0n1 bs=1M oflag=direct 2>/dev/null && ' +
        'dd if=/dev/nvme0n1 of=/tmp/back bs=1M count=4 iflag=direct 2>/dev/null && cmp /tmp/data /tmp/back',
    )
    const { stdout: said } = await guest.run(
      'dmesg | grep -iE "nvme.*(warn|error|fail|unsupported|invalid)" || true',
    )
    expect(said).toBe('')
  })

  it('reads log pages and features', async () => {
    await connect(0)
    await guest.waitFor('test -b /dev/nvme0n1')
    const smart = await json('nvme smart-log /dev/nvme0')
    expect(smart.critical_warning).toBe(0)
    const ana = await json('nvme ana-log /dev/nvme0')
    expect(JSON.stringify(ana)).toContain('optimized')
    for (const command of [
      'error-log',
      'fw-log',
      'effects-log',
      'supported-log-pages',
      'list-ns',
      'changed-ns-list-log',
    ]) {
      await guest.run(`nvme ${command} /dev/nvme0`)
    }
    for (const fid of [1, 2, 4, 5, 7, 11, 15]) await guest.run(`nvme get-feature /dev/nvme0 -f ${fid}`)
  })

  it('sees a namespace grow, come and go without being told by anybody else', async () => {
    await connect(0)
    await guest.waitFor('test -b /dev/nvme0n1')
    await daemon.rpc('bdev_null_create', { name: 'disk1', block_size: 4096, num_blocks: 256 })
    const nsid = await daemon.rpc('nvmf_subsystem_add_ns', { nqn: NQN, namespace: { bdev_name: 'disk1' } })
    await guest.waitFor('test -b /dev/nvme0n2')
    await daemon.rpc('bdev_null_resize', { name: 'disk1', new_size: 2 })
    await guest.waitFor('test "$(cat /sys/block/nvme0n2/size)" = 4096')
    await daemon.rpc('nvmf_subsystem_remove_ns', { nqn: NQN, nsid })
    await guest.waitFor('! test -e /sys/block/nvme0n2')
    await daemon.rpc('bdev_null_delete', { name: 'disk1' })
  })

  it('moves I/O between paths as ANA states say, without an error', async () => {
    await connect(0)
    await connect(1)
    await guest.waitFor('test -b /dev/nvme0n1')
    const state = (path: number): string =>
      `/sys/class/nvme-subsystem/*/nvme${path}/nvme0c${path}n1/ana_state`
    await guest.waitFor(`grep -qx optimized ${state(0)} && grep -qx optimized ${state(1)}`)
    const load = guest.start(
      'for i in $(seq 1 40); do dd if=/dev/nvme0n1 of=/dev/null bs=64k count=64 iflag=direct 2>/dev/null || exit 9; done',
    )
    for (const [port, ana_state] of [
      [ports[0], 'inaccessible'],
      [ports[0], 'optimized'],
      [ports[1], 'non_optimized'],
      [ports[1], 'inaccessible'],
      [ports[1], 'optimized'],
    ]) {
      await daemon.rpc('nvmf_subsystem_listener_set_ana_state', {
        nqn: NQN,
        listen_address: address(port!),
        ana_state,
      })
      const path = port === ports[0] ? 0 : 1
      await guest.waitFor(
        `grep -qx ${ana_state === 'non_optimized' ? 'non-optimized' : ana_state} ${state(path)}`,
      )
    }
    await load.done
  })

  it('comes back by itself when a listener vanished and returned', async () => {
    await connect(0)
    await connect(1)
    await guest.waitFor('test -b /dev/nvme0n1')
    const load = guest.start(
      'for i in $(seq 1 60); do dd if=/dev/nvme0n1 of=/dev/null bs=64k count=64 iflag=direct 2>/dev/null || exit 9; done',
    )
    await daemon.rpc('nvmf_subsystem_remove_listener', { nqn: NQN, listen_address: address(ports[0]!) })
    await guest.waitFor('grep -qx connecting /sys/class/nvme/nvme0/state')
    await listen(ports[0]!)
    await guest.waitFor('grep -qx live /sys/class/nvme/nvme0/state')
    await load.done
  })

  it('loses its connection when it may no longer use the subsystem', async () => {
    await daemon.rpc('nvmf_subsystem_allow_any_host', { nqn: NQN, allow_any_host: false })
    const refused = await guest.run(`nvme connect -t tcp -a ${hostAddress()} -s ${ports[0]} -n ${NQN}`, {
      check: false,
    })
    expect(refused.code).not.toBe(0)
    await daemon.rpc('nvmf_subsystem_allow_any_host', { nqn: NQN, allow_any_host: true })
    await connect(0)
    await guest.waitFor('grep -qx live /sys/class/nvme/nvme0/state')
    await daemon.rpc('nvmf_subsystem_allow_any_host', { nqn: NQN, allow_any_host: false })
    await guest.waitFor('! grep -qx live /sys/class/nvme/nvme0/state')
    await daemon.rpc('nvmf_subsystem_allow_any_host', { nqn: NQN, allow_any_host: true })
  })

  it('keeps a discovery connection open and reads the changed log over it', async () => {
    const discovery = 'nqn.2014-08.org.nvmexpress.discovery'
    await guest.run(`nvme connect -t tcp -a ${hostAddress()} -s ${ports[0]} -n ${discovery} -k 30`)
    await guest.waitFor('grep -qx live /sys/class/nvme/nvme0/state')
    const before = await json('nvme discover -d nvme0')
    await daemon.rpc('nvmf_create_subsystem', { nqn: `${NQN}-new`, allow_any_host: true })
    await daemon.rpc('nvmf_subsystem_add_listener', {
      nqn: `${NQN}-new`,
      listen_address: address(ports[0]!),
    })
    const after = await json('nvme discover -d nvme0')
    await daemon.rpc('nvmf_delete_subsystem', { nqn: `${NQN}-new` })
    expect(after.genctr).toBeGreaterThan(before.genctr)
    const names = after.records.map((record: { subnqn: string }) => record.subnqn)
    expect(names).toContain(`${NQN}-new`)
    expect(before.records).toHaveLength(after.records.length - 1)
  })

  it('loses a device that is taken away under its I/O, and nothing else', async () => {
    await daemon.rpc('bdev_null_create', { name: 'slow0', block_size: 512, num_blocks: 4096 })
    await connect(0)
    await guest.waitFor('test -b /dev/nvme0n1')
    await daemon.rpc('bdev_delay_create', { name: 'slow', base_bdev_name: 'slow0', ...NO_LATENCY })
    await daemon.rpc('nvmf_subsystem_add_ns', { nqn: NQN, namespace: { bdev_name: 'slow' } })
    await guest.waitFor('test -b /dev/nvme0n2')
    for (const latency_type of LATENCY_TYPES) {
      await daemon.rpc('bdev_delay_update_latency', {
        delay_bdev_name: 'slow',
        latency_type,
        latency_us: 60e6,
      })
    }
    const stuck = guest.start('dd if=/dev/nvme0n2 of=/dev/null bs=64k count=1 iflag=direct', { check: false })
    const busy = async (): Promise<boolean> => {
      const { stdout } = await guest.run('cat /sys/class/nvme-subsystem/*/nvme0/nvme0c0n2/inflight')
      return Number(stdout.trim().split(/ +/)[0]) > 0
    }
    while (!(await busy())) await new Promise(setImmediate)
    await daemon.rpc('bdev_delay_delete', { name: 'slow' })
    expect((await stuck.done).code).not.toBe(0)
    await guest.waitFor('! test -e /sys/block/nvme0n2')
    await guest.run('dd if=/dev/nvme0n1 of=/dev/null bs=64k count=16 iflag=direct')
    await daemon.rpc('bdev_null_delete', { name: 'slow0' })
  })

  it('is given up when its network falls silent, and comes back', async () => {
    const controllers = (): Promise<unknown[]> => daemon.rpc('nvmf_subsystem_get_controllers', { nqn: NQN })
    // Long enough that a guest on a busy machine is not taken for silent while it connects.
    await connect(0, '-k 3')
    await guest.waitFor('test -b /dev/nvme0n1')
    expect(await controllers()).toHaveLength(1)
    await guest.setLink(0, false)
    while ((await controllers()).length > 0) await new Promise(setImmediate)
    await guest.setLink(0, true)
    while ((await controllers()).length === 0) await new Promise(setImmediate)
    await guest.waitFor('grep -qx live /sys/class/nvme/nvme0/state')
  })

  it('finds everything as it was after the daemon was killed and started again', async () => {
    await daemon.rpc('bdev_null_create', { name: 'late', block_size: 512, num_blocks: 64 })
    await daemon.rpc('nvmf_subsystem_add_ns', { nqn: NQN, namespace: { bdev_name: 'late', nsid: 7 } })
    await connect(0)
    await guest.waitFor('test -b /dev/nvme0n2')
    const before = await daemon.rpc('nvmf_get_subsystems')
    await daemon.restart('SIGKILL')
    expect(await daemon.rpc('nvmf_get_subsystems')).toEqual(before)
    await guest.waitFor('grep -qx connecting /sys/class/nvme/nvme0/state || test -e /sys/block/nvme0n2')
    await guest.waitFor('grep -qx live /sys/class/nvme/nvme0/state')
    await guest.run('dd if=/dev/nvme0n1 of=/dev/null bs=64k count=16 iflag=direct')
    await guest.run('dd if=/dev/nvme0n2 of=/dev/null bs=512 count=64 iflag=direct')
  })
})
