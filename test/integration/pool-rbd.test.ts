/** A pool of a real Ceph cluster that asks for keys, as administrators of KVM hosts define it; `rbd` is the witness. */
import { createHash, randomBytes } from 'node:crypto'
import { readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { stateIdentity } from '../../src/app/state-identity.ts'
import { RbdClusters } from '../../src/rbd/clusters.ts'
import { ImageStore } from '../../src/rbd/image-store.ts'
import { librbd } from '../../src/sys/librbd.ts'
import { nameOwner, partialName } from '../../src/volume/volume-name.ts'
import { CEPH_PROGRAMS, type Ceph, startCeph } from './lab/ceph.ts'
import { type Daemon, startDaemon } from './lab/daemon.ts'
import { describeWith } from './lab/describe-with.ts'
import { settled } from './lab/json-rpc.ts'
import { startLibvirt } from './lab/libvirt.ts'
import { qpair } from './lab/qpair.ts'

const UUID = 'c4a8c0ab-6ac4-4ce2-9a1e-8f4a0b8c1d2e'
const SECRET = `<secret ephemeral='no' private='no'>
  <uuid>${UUID}</uuid>
  <usage type='ceph'>
    <name>client.KVMpool secret</name>
  </usage>
</secret>`

const poolXml = (host: string, port: string): string => `<pool type='rbd'>
  <name>KVMpool</name>
  <source>
    <name>KVMpool</name>
    <host name='${host}' port='${port}'/>
    <auth username='KVMpool' type='ceph'>
      <secret uuid='${UUID}'/>
    </auth>
  </source>
</pool>`

const PROGRAMS = [
  ...CEPH_PROGRAMS,
  ...(['ceph-mgr', 'libvirtd', 'virsh', 'libvirt_storage_backend_rbd.so'] as const),
] as const

interface Volume {
  readonly name: string
  readonly path: string
  readonly capacity?: number
  readonly allocation?: number
  readonly backing?: { readonly path: string }
}

await describeWith(PROGRAMS, 'a pool of Ceph', () => {
  let ceph: Ceph
  let daemon: Daemon
  let key: string

  const run = (...words: string[]): Promise<string> => qpair(daemon, ...words)
  const file = (name: string, content: string): string => {
    const path = join(daemon.directory, name)
    writeFileSync(path, content)
    return path
  }
  const volumes = (): Promise<Volume[]> => daemon.rpc('volume_list', { pool: 'KVMpool' })
  const info = (volume: string): Promise<Volume> => daemon.rpc('volume_info', { volume })
  /** What Ceph itself says, as its administrator. */
  const rbd = async <T>(...words: string[]): Promise<T> =>
    JSON.parse(await ceph.run('rbd', ...words, '--format', 'json'))
  const images = (): Promise<string[]> => rbd('ls', 'KVMpool')
  const waitForJob = async ({ job_id }: { job_id: number }): Promise<void> => {
    const ended = await daemon.rpc('job_wait', { id: job_id, timeout_ms: 120_000 })
    expect(ended, daemon.output.slice(-2000)).toMatchObject({ state: 'completed' })
  }
  /** As the administrator of the cluster, who is quicker than a thousand commands. */
  async function makeThousand(): Promise<void> {
    const clusters = new RbdClusters()
    const keyFile = ceph.keyring
    const options = { user: 'admin', options: {}, file: ceph.conf, searches: false, keyFile }
    await clusters.register({ name: 'admin', coreMask: undefined, ...options })
    const store = new ImageStore(clusters, 'admin', 'KVMpool')
    const numbers = Array.from({ length: 1000 }, (_, number) => number).values()
    const worker = async (): Promise<void> => {
      for (const number of numbers) await store.create(`image-${number}`, 2 ** 20 * (number + 1), {})
    }
    await Promise.all([worker(), worker(), worker()])
    await clusters.unregister('admin')
  }
  const clusters = (): Promise<{ cluster_name: string; config_param: object }[]> =>
    daemon.rpc('bdev_rbd_get_clusters_info')

  beforeAll(async () => {
    ceph = await startCeph({ cephx: true })
    await ceph.startManager()
    daemon = await startDaemon()
    await ceph.run('ceph', 'osd', 'pool', 'create', 'KVMpool', '8', '8')
    await ceph.run('rbd', 'pool', 'init', 'KVMpool')
    const caps = ['mon', 'allow r', 'osd', 'allow rwx pool=KVMpool']
    await ceph.run('ceph', 'auth', 'get-or-create', 'client.KVMpool', ...caps)
    key = (await ceph.run('ceph', 'auth', 'get-key', 'client.KVMpool')).trim()
  })
  afterAll(async () => {
    await daemon?.stop()
    await ceph?.stop()
  })

  it('is defined with a secret, and started once that has a value', async () => {
    await run('secret', 'define', file('secret.xml', SECRET))
    const [, host, port] = /v1:([\d.]+):(\d+)/.exec(ceph.monitorAddress)!
    await run('pool', 'define', file('pool.xml', poolXml(host!, port!)))
    await expect(run('pool', 'start', 'KVMpool')).rejects.toThrow(`secret ${UUID} has no value yet`)
    await run('secret', 'set-value', UUID, '--base64', key)
    await run('pool', 'start', 'KVMpool')
    await run('pool', 'autostart', 'KVMpool')
    const [row] = await daemon.rpc<Record<string, unknown>[]>('pool_list')
    expect(row).toMatchObject({ name: 'KVMpool', state: 'running', autostart: true, persistent: true })
    // Ceph's manager counts, and has its first numbers a few seconds after its start.
    const capacity = async (): Promise<number> => {
      await daemon.rpc('pool_refresh', { pool: 'KVMpool' })
      return (await daemon.rpc<{ capacity: number }[]>('pool_list'))[0]!.capacity
    }
    await expect.poll(capacity, { timeout: 60_000 }).toBeGreaterThan(7 * 2 ** 30)
    expect(await run('pool', 'dumpxml', 'KVMpool')).toContain("<auth type='ceph' username='KVMpool'>")
  })

  it('keeps the value where only the daemon can read it', async () => {
    const directory = join(daemon.state, 'secrets')
    expect(statSync(directory).mode & 0o777).toBe(0o700)
    expect(readdirSync(directory)).toEqual([`${UUID}.base64`])
    expect(statSync(join(directory, `${UUID}.base64`)).mode & 0o777).toBe(0o600)
    for (const told of [
      daemon.output,
      readFileSync(join(daemon.state, 'config.json'), 'utf8'),
      await run('secret', 'list'),
      await run('secret', 'dumpxml', UUID),
      JSON.stringify(await clusters()),
    ]) {
      expect(told).not.toContain(key)
    }
    expect(await daemon.rpc('secret_get_value', { secret: 'client.KVMpool secret' })).toBe(key)
  })

  it('makes volumes, tells of them, and deletes them', async () => {
    await run('volume', 'create', 'KVMpool', 'vm1', '10G')
    expect(await rbd('info', 'KVMpool/vm1')).toMatchObject({ size: 10 * 2 ** 30 })
    await ceph.run('rbd', 'bench', '--io-type', 'write', '--io-size', '4M', '--io-total', '8M', 'KVMpool/vm1')
    expect(await volumes()).toMatchObject([{ name: 'vm1', path: 'KVMpool/vm1', capacity: 10 * 2 ** 30 }])
    const { images: used } = await rbd<{ images: { used_size: number }[] }>('du', 'KVMpool/vm1')
    expect(await info('vm1')).toMatchObject({ allocation: used[0]!.used_size })
    await run('volume', 'resize', 'vm1', '12G')
    await run('volume', 'rename', 'vm1', 'web')
    expect(await rbd('info', 'KVMpool/web')).toMatchObject({ size: 12 * 2 ** 30 })
    await run('volume', 'create', 'KVMpool', 'other', '1G', '--features', '{"object_size":"1M"}')
    expect(await rbd('info', 'KVMpool/other')).toMatchObject({ object_size: 2 ** 20 })
    await run('volume', 'resize', 'other', '512M', '--shrink')
    await run('volume', 'delete', 'other')
    expect(await images()).toEqual(['web'])
    const jobs = await daemon.rpc<{ kind: string; name: string; total?: number }[]>('job_list')
    const totals = jobs.filter(({ name }) => name === 'KVMpool/other').map(({ kind, total }) => [kind, total])
    // As far as Ceph tells how far it is.
    expect(totals).toEqual([
      ['volume_resize', 512 * 2 ** 20],
      ['volume_delete', 512 * 2 ** 20],
    ])
  })

  it('is to libvirt, by the same documents, what it is here', async () => {
    const libvirt = await startLibvirt()
    try {
      const given = (name: string): string =>
        libvirt.file(name, readFileSync(join(daemon.directory, name), 'utf8'))
      await libvirt.virsh('secret-define', given('secret.xml'))
      await libvirt.virsh('secret-set-value', UUID, '--base64', key)
      await libvirt.virsh('pool-define', given('pool.xml'))
      await libvirt.virsh('pool-start', 'KVMpool')
      const listed = (await libvirt.virsh('vol-list', 'KVMpool'))
        .split('\n')
        .flatMap(line => line.match(/KVMpool\/\S+/) ?? [])
      expect(listed).toEqual((await volumes()).map(({ path }) => path))
      expect(await libvirt.virsh('vol-info', 'web', '--pool', 'KVMpool', '--bytes')).toContain(
        `${12 * 2 ** 30} bytes`,
      )
    } finally {
      await libvirt.stop()
    }
  })

  it('snapshots, reverts and clones', async () => {
    await run('volume', 'snapshot', 'create', 'web', 'before')
    await ceph.run('rbd', 'bench', '--io-type', 'write', '--io-size', '4M', '--io-total', '4M', 'KVMpool/web')
    await run('volume', 'snapshot', 'revert', 'web', 'before')
    const names = (await rbd<{ name: string }[]>('snap', 'ls', 'KVMpool/web')).map(({ name }) => name)
    expect(names).toEqual(['before'])
    await waitForJob(await daemon.rpc('volume_clone', { volume: 'web', name: 'web2' }))
    expect(await info('web2')).toMatchObject({ backing: { path: 'KVMpool/web' } })
    await expect(run('volume', 'delete', 'web', '--delete-snapshots')).rejects.toThrow('clones stand on it')
    const left = await rbd<{ name: string }[]>('snap', 'ls', 'KVMpool/web')
    expect(left.map(({ name }) => name)).toEqual(['before'])
    await run('volume', 'delete', 'web2')
    await run('volume', 'delete', 'web', '--delete-snapshots')
    expect(await images()).toEqual([])
  })

  it('leaves the content alone of what a client elsewhere has open, as a guest of QEMU', async () => {
    await run('volume', 'create', 'KVMpool', 'guest', '8M')
    await run('volume', 'snapshot', 'create', 'guest', 'one')
    const elsewhere = new RbdClusters()
    const options = { user: 'admin', options: {}, file: ceph.conf, searches: false, keyFile: ceph.keyring }
    const cluster = await elsewhere.acquire(options)
    const pool = await librbd().openPool(cluster.handle, 'KVMpool', '')
    const image = await librbd().openImage(pool, 'guest', null, false)
    for (const words of [
      ['snapshot', 'revert', 'guest', 'one'],
      ['resize', 'guest', '4M', '--shrink'],
      ['rename', 'guest', 'other'],
      ['delete', 'guest', '--delete-snapshots'],
      ['import', 'KVMpool', 'copy', 'guest'],
    ]) {
      await expect(run('volume', ...words), words.join(' ')).rejects.toThrow(
        /the client of Ceph at 127\.0\.0\.1 has it open/,
      )
    }
    expect(await run('volume', 'info', 'guest')).toContain('"users": "the client of Ceph at 127.')
    await run('volume', 'resize', 'guest', '16M')
    await run('volume', 'snapshot', 'create', 'guest', 'two')
    await librbd().closeImage(image)
    librbd().closePool(pool)
    await elsewhere.release(cluster)
    await run('volume', 'snapshot', 'revert', 'guest', 'one')
    await run('volume', 'delete', 'guest', '--delete-snapshots')
  })

  it('is not served by two pools, whatever monitors they ask', async () => {
    const [, host, port] = /v1:([\d.]+):(\d+)/.exec(ceph.monitorAddress)!
    const [a, b, c, d] = host!.split('.').map(Number)
    // The same address, as inet_aton(3) takes it.
    const alias = poolXml(`${a}.${b}.${c! * 256 + d!}`, port!).replace('<name>KVMpool', '<name>alias')
    await run('pool', 'define', file('alias.xml', alias))
    await expect(run('pool', 'start', 'alias')).rejects.toThrow("conflict with pool: 'KVMpool'")
    await run('pool', 'undefine', 'alias')
  })

  it.each(['-n', '../x', 'a/b', 'a@b', ''])(
    'makes only what it is told, of a volume called %j',
    async name => {
      const made = daemon.rpc('volume_create', { pool: 'KVMpool', name, capacity: '1G' })
      if (name === '-n') {
        await made
        expect(await images()).toEqual(['-n'])
        await settled(daemon.socket, 'volume_delete', { volume: '-n' })
      } else await expect(made).rejects.toThrow('cannot be the name of')
      expect(await images()).toEqual([])
    },
  )

  it('is filled from a file', async () => {
    const content = Buffer.alloc(6 << 20, 'what it holds ')
    const path = join(daemon.directory, 'disk.raw')
    writeFileSync(path, content)
    const { job_id } = await daemon.rpc<{ job_id: number }>('volume_import', {
      ...{ pool: 'KVMpool', name: 'imported', source: path },
    })
    await waitForJob({ job_id })
    expect(await daemon.rpc('job_get', { id: job_id })).toMatchObject({ state: 'completed' })
    const out = join(daemon.directory, 'out.raw')
    await ceph.run('rbd', 'export', '--no-progress', 'KVMpool/imported', out)
    expect(readFileSync(out).equals(content)).toBe(true)
    await run('volume', 'delete', 'imported')
  })

  describe('of a daemon that is killed', () => {
    const content = randomBytes(24 << 20)
    const digest = (bytes: Uint8Array): string => createHash('sha256').update(bytes).digest('hex')
    const digestOf = async (image: string): Promise<string> => {
      const out = join(daemon.directory, 'exported')
      rmSync(out, { force: true })
      await ceph.run('rbd', 'export', '--no-progress', `KVMpool/${image}`, out)
      return digest(readFileSync(out))
    }
    const snapshots = async (image: string): Promise<string[]> =>
      (await rbd<{ name: string }[]>('snap', 'ls', `KVMpool/${image}`)).map(({ name }) => name)

    /** What waits until Ceph no longer counts the daemon that was killed for a client: longer than that takes, once in a while. */
    async function untilForgotten<T>(work: () => PromiseLike<T>): Promise<T> {
      const ended = new AbortController()
      const { signal } = ended
      const recount = delay(20_000, undefined, { signal }).then(
        () => ceph.recountWatches(),
        () => {},
      )
      try {
        return await work()
      } finally {
        ended.abort()
        await recount
      }
    }

    /** Kills it that long after it was asked for something, and waits until what goes on has ended. */
    async function killDuring(afterMs: number, method: string, params: object): Promise<void> {
      const asked = daemon.rpc(method, params).catch(() => undefined)
      await delay(afterMs)
      await daemon.restart('SIGKILL')
      await asked
      // What goes on may have to wait for the pool, which Ceph may keep waiting.
      const kept = (): Promise<unknown> => daemon.rpc('config_get_kept')
      await untilForgotten(() => expect.poll(kept, { timeout: 120_000 }).toEqual([]))
      for (const { id } of await daemon.rpc<{ id: number }[]>('job_list')) {
        const wait = (): Promise<{ state: string; error?: { message: string } }> =>
          daemon.rpc('job_wait', { id, timeout_ms: 120_000 })
        const ended = await untilForgotten(wait)
        const outcome = [ended.state, ended.error?.message]
        expect(outcome, `${method}, killed after ${afterMs} ms`).toEqual(['completed', undefined])
      }
      expect(await kept()).toEqual([])
      expect((await volumes()).map(({ name }) => name)).toEqual(await images())
    }

    beforeAll(async () => {
      // Who may shut out a client that was killed with an image locked; the others wait for an administrator.
      const caps = ['mon', 'profile rbd', 'osd', 'profile rbd pool=KVMpool']
      await ceph.run('ceph', 'auth', 'caps', 'client.KVMpool', ...caps)
      // For how long Ceph takes a killed client for the user of an image: 30 s otherwise.
      await ceph.run('ceph', 'config', 'set', 'osd', 'osd_client_watch_timeout', '2')
      writeFileSync(join(daemon.directory, 'content'), content)
    })
    const source = (): string => join(daemon.directory, 'content')
    const fill = async (name: string): Promise<void> =>
      waitForJob(await daemon.rpc('volume_import', { pool: 'KVMpool', name, source: source() }))

    /** Ceph takes the daemon that was killed for the image's user for a while. */
    const remove = async (name: string): Promise<void> => {
      const answer = async (): Promise<unknown> => {
        const deleted = await daemon
          .rpc('volume_delete', { volume: name, delete_snapshots: true })
          .catch(String)
        return (await images()).includes(name) ? deleted : 'gone'
      }
      await untilForgotten(() => expect.poll(answer, { timeout: 120_000 }).toBe('gone'))
    }

    it.each([40, 140])('an import ends as it should (%i ms)', async afterMs => {
      await killDuring(afterMs, 'volume_import', { pool: 'KVMpool', name: 'filled', source: source() })
      const there = await images()
      expect(['', 'filled']).toContain(there.join())
      if (there.length === 0) return
      expect(await digestOf('filled')).toBe(digest(content))
      await remove('filled')
    })

    it.each([30, 150])('clones and snapshots are whole, or are not there (%i ms)', async afterMs => {
      await fill('web')
      await killDuring(afterMs, 'volume_clone', { volume: 'web', name: 'web2' })
      expect(await snapshots('web')).toEqual([])
      if ((await images()).includes('web2')) {
        expect(await digestOf('web2')).toBe(digest(content))
        await remove('web2')
      }
      await daemon.rpc('volume_snapshot_create', { volume: 'web', snapshot: 'full' })
      await waitForJob(await daemon.rpc('volume_clone', { volume: 'web', name: 'other' }))
      await remove('other')
      const io = ['--io-type', 'write', '--io-size', '4M', '--io-total', '24M']
      await ceph.run('rbd', 'bench', ...io, 'KVMpool/web')
      const changed = await digestOf('web')
      await killDuring(afterMs, 'volume_snapshot_revert', { volume: 'web', snapshot: 'full' })
      expect([digest(content), changed]).toContain(await digestOf('web'))
      expect(await snapshots('web')).toEqual(['full'])
      const whole = [digest(content), changed]
      await killDuring(afterMs, 'volume_delete', { volume: 'web', delete_snapshots: true })
      // Or it had not begun when the daemon was killed.
      if ((await images()).includes('web')) {
        expect(whole).toContain(await digestOf('web'))
        await remove('web')
      }
      expect(await images()).toEqual([])
    })

    it('an image that was getting its name gets it, and no other is touched', async () => {
      nameOwner(`${daemon.state} ${await stateIdentity(daemon.state)}`)
      /** As in the middle of giving an image another name: both lead to it, and the pool lists one of them. */
      const lead = async (name: string, alsoBy: string): Promise<void> => {
        const id = join(daemon.directory, 'id')
        await ceph.run('rados', '-p', 'KVMpool', 'get', `rbd_id.${name}`, id)
        await ceph.run('rados', '-p', 'KVMpool', 'put', `rbd_id.${alsoBy}`, id)
      }
      const clone = async (): Promise<void> =>
        waitForJob(await daemon.rpc('volume_clone', { volume: 'web', name: 'web2' }))
      await fill('web')
      await ceph.run('rbd', 'create', '--size', '8', `KVMpool/${partialName('web2')}`)
      await lead(partialName('web2'), 'web2')
      await clone()
      await lead('web2', partialName('web2'))
      await run('volume', 'rename', 'web2', 'first')
      await clone()
      await lead('first', partialName('second'))
      await fill('second')
      const made = ['first', 'second', 'web2', 'web']
      expect(await images()).toEqual(made.toSorted())
      for (const name of made) {
        expect(await digestOf(name), name).toBe(digest(content))
        await remove(name)
      }
    })

    it('an image without its header is listed and can be deleted', async () => {
      await run('volume', 'create', 'KVMpool', 'torn', '1G')
      const { id } = await rbd<{ id: string }>('info', 'KVMpool/torn')
      await ceph.run('rados', '-p', 'KVMpool', 'rm', `rbd_header.${id}`)
      expect((await volumes()).map(({ name }) => name)).toEqual(['torn'])
      await expect(info('torn')).rejects.toThrow('what an interrupted deletion has left')
      await run('volume', 'delete', 'torn')
      expect(await images()).toEqual([])
    })
  })

  it('serves a volume, which is open again after a restart, and goes on when the pool stops', async () => {
    await run('volume', 'create', 'KVMpool', 'disk', '1G')
    await daemon.rpc('volume_export', { volume: 'disk', nbd: true, listen: ['127.0.0.1:0'] })
    await expect(run('volume', 'delete', 'disk')).rejects.toThrow('bdev KVMpool-disk has it open')
    await run('volume', 'resize', 'disk', '2G')
    const blocks = async (): Promise<number> =>
      (await daemon.rpc<{ num_blocks: number }[]>('bdev_get_bdevs', { name: 'KVMpool-disk' }))[0]!.num_blocks
    expect(await blocks()).toBe(2 ** 22)
    await run('volume', 'snapshot', 'create', 'disk', 'live')
    await daemon.restart()
    expect(await blocks()).toBe(2 ** 22)
    expect(await daemon.rpc('pool_info', { pool: 'KVMpool' })).toMatchObject({ state: 'running' })
    expect(await daemon.rpc('config_get_kept')).toEqual([])
    await run('pool', 'destroy', 'KVMpool')
    expect(await blocks()).toBe(2 ** 22)
    await run('pool', 'start', 'KVMpool')
    await run('volume', 'unexport', 'disk')
    await run('volume', 'delete', 'disk', '--delete-snapshots')
    await run('pool', 'destroy', 'KVMpool')
    await expect(clusters()).rejects.toThrow('no cluster is registered')
    expect(readFileSync(join(daemon.state, 'config.json'), 'utf8')).not.toContain('register_cluster')
    await run('pool', 'start', 'KVMpool')
  })

  it('knows a thousand images well within a second, and opens none of them', async () => {
    await makeThousand()
    const watchers = async (): Promise<number> =>
      (await ceph.run('rbd', 'status', 'KVMpool/image-1')).split('watcher=').length
    const before = performance.now()
    await daemon.rpc('pool_refresh', { pool: 'KVMpool' })
    const tookMs = performance.now() - before
    const found = await daemon.rpc<Volume[]>('volume_list', { pool: 'KVMpool', refresh: false })
    expect(found).toHaveLength(1000)
    expect(found.find(({ name }) => name === 'image-950')).toMatchObject({ capacity: 951 * 2 ** 20 })
    expect(await watchers()).toBe(1)
    process.stderr.write(`1000 images looked at in ${Math.round(tookMs)} ms\n`)
  })
})
