/** A daemon that starts while what its devices stand on is away: they come by themselves when that is back. */
import { once } from 'node:events'
import { type AddressInfo, createServer } from 'node:net'
import { afterEach, expect, it } from 'vitest'
import { CEPH_PROGRAMS, type Ceph, startCeph } from './lab/ceph.ts'
import { type Daemon, startDaemon } from './lab/daemon.ts'
import { describeWith } from './lab/describe-with.ts'
import { eventually } from './lab/linux-host.ts'

const NQN = 'nqn.2021-06.io.spdk:ctc_rbd0'
const LISTEN = { trtype: 'TCP', adrfam: 'IPv4', traddr: '127.0.0.1' }

interface Kept {
  readonly id: number
  readonly method: string
  readonly waiting: boolean
  readonly reason: string
}

let daemons: Daemon[] = []
async function start(): Promise<Daemon> {
  const daemon = await startDaemon()
  daemons.push(daemon)
  return daemon
}
afterEach(async () => {
  for (const daemon of daemons) await daemon.discard()
  daemons = []
})

const keptMethods = async (daemon: Daemon): Promise<string[]> =>
  (await daemon.rpc<Kept[]>('config_get_kept')).map(({ method }) => method).sort()

async function bdevNames(daemon: Daemon): Promise<string[]> {
  return (await daemon.rpc<{ name: string }[]>('bdev_get_bdevs')).map(({ name }) => name).sort()
}

/** A subsystem with the device as its namespace; returns the port at which hosts find it. */
async function serve(daemon: Daemon, bdev_name: string): Promise<string> {
  await daemon.rpc('nvmf_create_transport', { trtype: 'TCP' })
  await daemon.rpc('nvmf_create_subsystem', { nqn: NQN, allow_any_host: true })
  await daemon.rpc('nvmf_subsystem_add_ns', { nqn: NQN, namespace: { bdev_name, nsid: 1 } })
  const listen_address = { ...LISTEN, trsvcid: '0' }
  await daemon.rpc('nvmf_subsystem_add_listener', { nqn: NQN, listen_address })
  const [listener] = await daemon.rpc<{ address: { trsvcid: string } }[]>('nvmf_subsystem_get_listeners', {
    nqn: NQN,
  })
  return listener!.address.trsvcid
}

async function attach(host: Daemon, trsvcid: string): Promise<void> {
  await host.rpc('bdev_nvme_attach_controller', {
    ...{ name: 'Nvme0', ...LISTEN, trsvcid, subnqn: NQN },
    ...{ ctrlr_loss_timeout_sec: -1, reconnect_delay_sec: 1 },
  })
}

/** Writes to the device and reads back. */
async function verify(host: Daemon, bdev_name: string): Promise<void> {
  const id = await host.rpc<number>('workload_start', {
    ...{ bdev_name, verify: true, read_percent: 50, io_count: 200, queue_depth: 4 },
  })
  await eventually(
    async () => (await host.rpc<{ in_flight: number }[]>('workload_get', { id }))[0]!.in_flight,
  ).toBe(0)
  expect(await host.rpc('workload_stop', { id })).toMatchObject({ errors: 0, miscompares: 0 })
}

async function freePort(): Promise<number> {
  const server = createServer().listen(0, '127.0.0.1')
  await once(server, 'listening')
  const { port } = server.address() as AddressInfo
  server.close()
  await once(server, 'close')
  return port
}

const count = (daemon: Daemon, text: string): number =>
  daemon.output.split('\n').filter(line => line.includes(text)).length

await describeWith(CEPH_PROGRAMS, 'a daemon that starts while Ceph is away', () => {
  let ceph: Ceph
  afterEach(() => ceph?.stop())

  it('comes up without it, and has images, filters, namespaces and exports once the monitor is back', async () => {
    ceph = await startCeph()
    await ceph.run('rbd', 'create', '-p', 'volumes', '--size', '16', 'disk')
    const gateway = await start()
    const host = await start()
    await gateway.rpc('bdev_rbd_register_cluster', { name: 'c', config_file: ceph.conf })
    const image = { pool_name: 'volumes', rbd_name: 'disk', block_size: 4096, cluster_name: 'c' }
    await gateway.rpc('bdev_rbd_create', { name: 'r0', ...image })
    await gateway.rpc('bdev_delay_create', {
      ...{ name: 'slow0', base_bdev_name: 'r0', avg_read_latency: 1, p99_read_latency: 1 },
      ...{ avg_write_latency: 1, p99_write_latency: 1 },
    })
    const port = await serve(gateway, 'slow0')
    await attach(host, port)
    await verify(host, 'Nvme0n1')

    await gateway.kill('SIGTERM')
    await ceph.killMonitor()
    await gateway.start()
    expect(await bdevNames(gateway)).toEqual([])
    expect(await keptMethods(gateway)).toEqual([
      'bdev_delay_create',
      'bdev_rbd_create',
      'bdev_rbd_register_cluster',
      'nvmf_subsystem_add_listener',
      'nvmf_subsystem_add_ns',
    ])
    // What is kept is saved, whatever else is changed meanwhile.
    await gateway.rpc('bdev_null_create', { name: 'n0', num_blocks: 8, block_size: 512 })
    await gateway.restart('SIGKILL')
    expect(await bdevNames(gateway)).toEqual(['n0'])

    await ceph.startMonitor()
    await eventually(() => bdevNames(gateway)).toEqual(['n0', 'r0', 'slow0'])
    await eventually(() => keptMethods(gateway)).toEqual([])
    // The host has never been told that its disk is gone.
    await verify(host, 'Nvme0n1')
    const news = await host.rpc<{ type: string }[]>('notify_get_notifications')
    expect(news.map(({ type }) => type)).not.toContain('bdev_unregister')
    for (const method of ['bdev_rbd_register_cluster', 'bdev_rbd_create', 'nvmf_subsystem_add_ns']) {
      expect(count(gateway, `restored ${method}`), gateway.output).toBe(1)
    }
    await gateway.restart('SIGKILL')
    await eventually(() => bdevNames(gateway)).toEqual(['n0', 'r0', 'slow0'])
  })

  it('waits for an image that is not there, until that is or the operator forgets it', async () => {
    ceph = await startCeph()
    const daemon = await start()
    await daemon.rpc('bdev_rbd_register_cluster', { name: 'c', config_file: ceph.conf })
    for (const name of ['a', 'b']) {
      await ceph.run('rbd', 'create', '-p', 'volumes', '--size', '8', name)
      const image = { name, pool_name: 'volumes', rbd_name: name, block_size: 4096, cluster_name: 'c' }
      await daemon.rpc('bdev_rbd_create', image)
    }
    await daemon.kill('SIGTERM')
    for (const name of ['a', 'b']) await ceph.run('rbd', 'rename', `volumes/${name}`, `volumes/${name}-away`)
    await daemon.start()
    const kept = (): Promise<Kept[]> => daemon.rpc('config_get_kept')
    await eventually(kept).toMatchObject([
      { method: 'bdev_rbd_create', waiting: true, reason: expect.stringContaining('volumes/a') },
      { method: 'bdev_rbd_create', waiting: true, reason: expect.stringContaining('volumes/b') },
    ])
    const [first] = await kept()
    await daemon.rpc('config_forget_kept', { id: first!.id })
    for (const name of ['a', 'b']) await ceph.run('rbd', 'rename', `volumes/${name}-away`, `volumes/${name}`)
    await eventually(() => bdevNames(daemon)).toEqual(['b'])
    await daemon.restart()
    await eventually(() => bdevNames(daemon)).toEqual(['b'])
  })

  it('is a member of its gateway group again, with what the group serves', async () => {
    ceph = await startCeph()
    await ceph.run('rbd', 'create', '-p', 'volumes', '--size', '16', 'disk')
    const gateway = await start()
    const port = await freePort()
    await gateway.rpc('nvmf_create_transport', { trtype: 'TCP' })
    await gateway.rpc('bdev_rbd_register_cluster', { name: 'c', config_file: ceph.conf })
    const group = { group: 'g', pool: 'volumes', cluster_name: 'c', name: 'a' }
    await gateway.rpc('gateway_join', { ...group, address: `127.0.0.1:${port}` })
    const image = { pool_name: 'volumes', rbd_name: 'disk', block_size: 4096, cluster_name: 'c' }
    await gateway.rpc('bdev_rbd_create', { name: 'r0', ...image })
    await gateway.rpc('nvmf_create_subsystem', { nqn: NQN, allow_any_host: true })
    await gateway.rpc('nvmf_subsystem_add_ns', { nqn: NQN, namespace: { bdev_name: 'r0' } })

    await gateway.kill('SIGKILL')
    await ceph.killMonitor()
    await gateway.start()
    expect(await bdevNames(gateway)).toEqual([])
    await ceph.startMonitor()
    await eventually(() => bdevNames(gateway)).toEqual(['r0'])
    await eventually(() => keptMethods(gateway)).toEqual([])
    const host = await start()
    await attach(host, String(port))
    await verify(host, 'Nvme0n1')
  })

  it('ends at once all the same', async () => {
    ceph = await startCeph()
    const daemon = await start()
    await daemon.rpc('bdev_rbd_register_cluster', { name: 'c', config_file: ceph.conf })
    await daemon.kill('SIGTERM')
    await ceph.killMonitor()
    await daemon.start()
    expect(await keptMethods(daemon)).toEqual(['bdev_rbd_register_cluster'])
    expect(await daemon.kill('SIGTERM')).toEqual({ code: 0, signal: null })
    // What it says when something has taken its whole patience.
    expect(daemon.output).not.toContain('not everything is closed')
  })
})

await describeWith([], 'a daemon that starts while the target of its disk is away', () => {
  it('serves the disk again as soon as the target is back', async () => {
    const target = await start()
    await target.rpc('bdev_malloc_create', { name: 'm0', num_blocks: 8192, block_size: 512 })
    const port = await serve(target, 'm0')
    const middle = await start()
    await attach(middle, port)
    const front = await serve(middle, 'Nvme0n1')
    await middle.kill('SIGTERM')
    await target.kill('SIGTERM')
    await middle.start()
    expect(await keptMethods(middle)).toEqual(['nvmf_subsystem_add_listener', 'nvmf_subsystem_add_ns'])

    await target.start()
    await eventually(() => keptMethods(middle)).toEqual([])
    const host = await start()
    await attach(host, front)
    await verify(host, 'Nvme0n1')
  })
})
