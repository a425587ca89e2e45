/** What befalls a Ceph cluster, under a verified workload: I/O waits or fails as Ceph says, and goes on by itself. */
import { renameSync } from 'node:fs'
import { afterAll, beforeAll, expect, it } from 'vitest'
import { CEPH_PROGRAMS, type Ceph, startCeph } from './lab/ceph.ts'
import { type Daemon, startDaemon } from './lab/daemon.ts'
import { describeWith } from './lab/describe-with.ts'
import { eventually } from './lab/linux-host.ts'
import { NbdClient } from './lab/nbd-client.ts'

interface Workload {
  readonly id: number
  readonly errors: number
  readonly miscompares: number
  readonly writes: number
  readonly in_flight: number
}

/** With three OSDs, of which each has every block. */
await describeWith([...CEPH_PROGRAMS, 'ceph-mgr', 'qemu-io'], 'a Ceph cluster in trouble', () => {
  let ceph: Ceph
  let daemon: Daemon
  let keyring: string

  const rpc = <T>(method: string, params: object): Promise<T> => daemon.rpc<T>(method, params)
  const lines = (text: string): number => daemon.output.split('\n').filter(line => line.includes(text)).length
  /** In how many lines the daemon has told that of a device, alone or beside others. */
  const news = (name: string, what: string): number =>
    daemon.output
      .split('\n')
      .filter(line => new RegExp(`I/O to (.*) ${what}`).exec(line)?.[1]?.split(', ').includes(name)).length
  const workload = async (id: number): Promise<Workload> =>
    (await rpc<Workload[]>('workload_get', { id }))[0]!

  async function load(name: string): Promise<number> {
    return rpc<number>('workload_start', { bdev_name: name, verify: true, read_percent: 50, queue_depth: 8 })
  }
  async function progress(id: number): Promise<void> {
    const { writes } = await workload(id)
    await eventually(async () => (await workload(id)).writes).toBeGreaterThan(writes + 50)
  }
  /** Nothing ends any more, though there is something to do. */
  async function standstill(id: number): Promise<void> {
    let last = -1
    await eventually(async () => {
      const { writes, in_flight } = await workload(id)
      const isSame = writes === last && in_flight === 8
      last = writes
      await new Promise(resolve => setTimeout(resolve, 500))
      return isSame
    }).toBe(true)
  }
  const stop = (id: number): Promise<Workload> => rpc<Workload>('workload_stop', { id })
  async function open(
    image: string,
    config: Readonly<Record<string, string>> = {},
    pool_name = 'volumes',
  ): Promise<void> {
    await ceph.run('rbd', 'create', '-p', pool_name, '--size', '64', image)
    for (const [option, value] of Object.entries(config)) {
      await ceph.run('rbd', 'config', 'image', 'set', `${pool_name}/${image}`, option, value)
    }
    await rpc('bdev_rbd_create', {
      name: image,
      pool_name,
      rbd_name: image,
      block_size: 4096,
      cluster_name: 'c',
    })
  }

  beforeAll(async () => {
    ceph = await startCeph({ osds: 3, cephx: true })
    await ceph.run('ceph', 'osd', 'pool', 'set', 'volumes', 'size', '3')
    await ceph.run('ceph', 'osd', 'pool', 'set', 'volumes', 'min_size', '2')
    await ceph.run('ceph', 'osd', 'pool', 'create', 'limited', '8')
    await ceph.run('rbd', 'pool', 'init', 'limited')
    keyring = await ceph.addUser('gateway', ['volumes', 'limited'])
    daemon = await startDaemon({ args: ['--reactors', '2'] })
    await rpc('bdev_rbd_register_cluster', {
      name: 'c',
      user_id: 'gateway',
      config_file: ceph.conf,
      config_param: { keyring },
    })
    await open('disk')
  })
  afterAll(async () => {
    await daemon?.stop()
    await ceph?.stop()
  })

  it('goes on without one OSD, waits without two, and goes on when they are back', async () => {
    const id = await load('disk')
    await progress(id)
    await ceph.killOsd(2)
    await progress(id)
    await ceph.killOsd(1)
    await standstill(id)
    // The daemon has time for everything else.
    await rpc('bdev_null_create', { name: 'n0', num_blocks: 8, block_size: 512 })
    await Promise.all([ceph.startOsd(1), ceph.startOsd(2)])
    await progress(id)
    expect(await stop(id)).toMatchObject({ errors: 0, miscompares: 0 })
  })

  it('goes on without its monitor, and when that is back', async () => {
    const id = await load('disk')
    await progress(id)
    await ceph.killMonitor()
    await progress(id)
    await ceph.startMonitor()
    await progress(id)
    expect(await stop(id)).toMatchObject({ errors: 0, miscompares: 0 })
  })

  it('shuts the daemon out: I/O fails, and the daemon comes back as another client', async () => {
    const lazy = { rbd_cache: 'true', rbd_cache_policy: 'writeback', rbd_cache_max_dirty_age: '3600' }
    const cached = new NbdClient(daemon, 'cached')
    const through = new NbdClient(daemon, 'through')
    const unflushed = new NbdClient(daemon, 'unflushed')
    await open('cached', lazy)
    await open('through', { ...lazy, rbd_cache_max_dirty: '0' })
    for (const client of [cached, through]) {
      await client.start()
      // Without a flush librbd would write through.
      await client.run('write -P 1 0 64k', 'flush', 'write -P 2 64k 64k', 'abort')
    }
    await open('unflushed', lazy)
    await unflushed.start()
    await unflushed.run('write -P 1 0 64k', 'abort')
    // Hosts were told of no cache, so it may not have one when it is opened anew.
    await open('turned')
    await ceph.run('rbd', 'config', 'image', 'set', 'volumes/turned', 'rbd_cache', 'true')
    // While it is open its name is given to another image, which is not to take its place.
    await open('swapped')
    await ceph.run('rbd', 'rename', 'volumes/swapped', 'volumes/away')
    await ceph.run('rbd', 'create', '-p', 'volumes', '--size', '64', 'swapped')
    const id = await load('disk')
    await progress(id)
    const { watchers } = JSON.parse(await ceph.run('rbd', 'status', 'volumes/disk', '--format', 'json')) as {
      watchers: { address: string }[]
    }
    await ceph.run('ceph', 'osd', 'blocklist', 'add', watchers[0]!.address)
    await eventually(async () => (await workload(id)).errors).toBeGreaterThan(0)
    await eventually(() => lines('Ceph has shut this daemon out')).toBe(1)
    await eventually(() => lines('turned was opened without a cache')).toBe(1)
    expect(lines('open again, as another client of Ceph')).toBe(0)
    await ceph.run('rbd', 'config', 'image', 'set', 'volumes/turned', 'rbd_cache', 'false')
    await eventually(() => lines('open again, as another client of Ceph')).toBe(1)
    expect(await stop(id)).toMatchObject({ miscompares: 0 })

    expect(lines('swapped is another image now than the one that was open: the device goes')).toBe(1)
    await expect(rpc('bdev_get_bdevs', { name: 'swapped' })).rejects.toThrow(/there is no bdev swapped/)

    expect(lines('cached: what was acknowledged since the last flush may be lost')).toBe(1)
    for (const name of ['through', 'unflushed']) expect(lines(`${name}: what was acknowledged`)).toBe(0)
    expect(await cached.run('flush')).toBe(1)
    expect(await cached.run('read -P 1 0 64k', 'read -P 0 64k 64k', 'flush')).toBe(0)
    expect(await through.run('read -P 2 64k 64k', 'flush')).toBe(0)
    expect(await unflushed.run('read -P 1 0 64k', 'flush')).toBe(0)
    for (const name of ['cached', 'through', 'unflushed', 'turned']) await rpc('bdev_rbd_delete', { name })

    const again = await load('disk')
    await progress(again)
    expect(await stop(again)).toMatchObject({ errors: 0, miscompares: 0 })
    expect(lines('I/O of')).toBe(0)
  })

  it('comes back only when it may: its key was taken from it meanwhile', async () => {
    const id = await load('disk')
    const { watchers } = JSON.parse(await ceph.run('rbd', 'status', 'volumes/disk', '--format', 'json')) as {
      watchers: { address: string }[]
    }
    renameSync(keyring, `${keyring}.away`)
    await ceph.run('ceph', 'osd', 'blocklist', 'add', watchers[0]!.address)
    await eventually(() => lines('there is no keyring with a key for client.gateway')).toBe(1)
    renameSync(`${keyring}.away`, keyring)
    await eventually(() => lines('open again')).toBe(2)
    expect(lines('there is no keyring')).toBe(1)
    expect(await stop(id)).toMatchObject({ miscompares: 0 })
  })

  it('has no room left, or a pool its quota: writes wait, as Ceph has it, and go on when there is', async () => {
    await ceph.startManager()
    await open('limited', {}, 'limited')
    const ids = { disk: await load('disk'), limited: await load('limited') }
    for (const id of Object.values(ids)) await progress(id)
    const told = news('disk', 'has been waiting for Ceph')
    const wentOn = news('disk', 'goes on, after')
    await ceph.run('ceph', 'osd', 'pool', 'set-quota', 'limited', 'max_bytes', '4096')
    await standstill(ids.limited)
    await progress(ids.disk)
    // What an empty OSD has on its small disk is more than that.
    for (const limit of ['nearfull', 'backfillfull', 'full']) {
      await ceph.run('ceph', 'osd', `set-${limit}-ratio`, '0.01')
    }
    await standstill(ids.disk)
    await eventually(() => news('limited', 'has been waiting for Ceph')).toBe(1)
    await eventually(() => news('disk', 'has been waiting for Ceph')).toBe(told + 1)
    // The daemon lives, and other things can be done with the images.
    for (const name of ['disk', 'limited']) expect(await rpc('bdev_rbd_snapshot_list', { name })).toEqual([])
    for (const [limit, ratio] of [
      ['full', '0.95'],
      ['backfillfull', '0.9'],
      ['nearfull', '0.85'],
    ] as const) {
      await ceph.run('ceph', 'osd', `set-${limit}-ratio`, ratio)
    }
    await progress(ids.disk)
    await eventually(() => news('disk', 'goes on, after')).toBe(wentOn + 1)
    await standstill(ids.limited)
    await ceph.run('ceph', 'osd', 'pool', 'set-quota', 'limited', 'max_bytes', '0')
    await progress(ids.limited)
    await eventually(() => news('limited', 'goes on, after')).toBe(1)
    for (const id of Object.values(ids)) {
      expect(await stop(id)).toMatchObject({ errors: 0, miscompares: 0 })
    }
    await rpc('bdev_rbd_delete', { name: 'limited' })
  })

  it('loses an image while it is shut out: the device goes, the others stay', async () => {
    await open('doomed')
    const { watchers } = JSON.parse(
      await ceph.run('rbd', 'status', 'volumes/doomed', '--format', 'json'),
    ) as { watchers: { address: string }[] }
    await ceph.run('ceph', 'osd', 'blocklist', 'add', watchers[0]!.address)
    // Not before the OSDs have the map of the cluster that has the client shut out.
    const remove = (): Promise<string> => ceph.run('rbd', 'rm', '--no-progress', 'volumes/doomed')
    await eventually(() => remove().then(() => 'removed', String)).toBe('removed')
    const id = await load('disk')
    await eventually(() => lines('volumes/doomed does not exist')).toBe(1)
    await eventually(() => lines('open again')).toBe(3)
    expect(await stop(id)).toMatchObject({ miscompares: 0 })
    const names = (await rpc<{ name: string }[]>('bdev_get_bdevs', {})).map(({ name }) => name)
    expect(names).toContain('disk')
    expect(names).not.toContain('doomed')
  })

  it('does not hold up the end of the daemon when it is gone', async () => {
    const other = await startDaemon()
    await other.rpc('bdev_rbd_register_cluster', {
      name: 'c',
      user_id: 'gateway',
      config_file: ceph.conf,
      config_param: { keyring },
    })
    await ceph.run('rbd', 'create', '-p', 'volumes', '--size', '8', 'last')
    await other.rpc('bdev_rbd_create', {
      name: 'last',
      pool_name: 'volumes',
      rbd_name: 'last',
      block_size: 4096,
      cluster_name: 'c',
    })
    const params = { bdev_name: 'last', verify: true, read_percent: 0, queue_depth: 8 }
    await other.rpc('workload_start', params)
    for (const id of [0, 1, 2]) await ceph.killOsd(id)
    await ceph.killMonitor()
    const exit = await other.kill('SIGTERM')
    expect(exit, other.output).toEqual({ code: 0, signal: null })
    await other.discard()
    await daemon.discard()
  })
})
