/** Snapshots, clones and names of images of a real Ceph cluster, through the command line, with `rbd` as the witness. */
import { createHash } from 'node:crypto'
import { readFileSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import { afterAll, beforeAll, expect, it } from 'vitest'
import type { WireJob } from '../../src/rpc/job-methods.ts'
import { CEPH_PROGRAMS, type Ceph, startCeph } from './lab/ceph.ts'
import { type Daemon, startDaemon } from './lab/daemon.ts'
import { describeWith } from './lab/describe-with.ts'
import { eventually } from './lab/linux-host.ts'
import { qpair } from './lab/qpair.ts'

interface RbdInfo {
  readonly size: number
  readonly parent?: { readonly image: string }
}

await describeWith(CEPH_PROGRAMS, 'snapshots and names of RBD images', () => {
  let ceph: Ceph
  let daemon: Daemon

  const run = (...words: string[]): Promise<string> => qpair(daemon, ...words)
  const info = async (image: string): Promise<RbdInfo> =>
    JSON.parse(await ceph.run('rbd', 'info', `volumes/${image}`, '--format', 'json'))
  const described = async (name: string): Promise<Record<string, unknown>> =>
    (
      await daemon.rpc<{ driver_specific: { rbd: Record<string, unknown> } }[]>('bdev_get_bdevs', { name })
    )[0]!.driver_specific.rbd

  /** Writes all over the device, the same for the same seed. */
  async function scribble(name: string, seed: number): Promise<void> {
    const id = await daemon.rpc<number>('workload_start', {
      bdev_name: name,
      verify: true,
      read_percent: 0,
      io_count: 500,
      seed,
    })
    const writes = async (): Promise<number> =>
      (await daemon.rpc<{ writes: number }[]>('workload_get', { id }))[0]!.writes
    await eventually(writes).toBe(500)
    expect(await daemon.rpc('workload_stop', { id })).toMatchObject({ errors: 0, miscompares: 0 })
  }

  async function content(image: string): Promise<string> {
    const path = join(daemon.directory, 'content')
    await ceph.run('rbd', 'export', '--no-progress', `volumes/${image}`, path)
    const digest = createHash('sha256').update(readFileSync(path)).digest('hex')
    rmSync(path)
    return digest
  }

  beforeAll(async () => {
    ceph = await startCeph()
    daemon = await startDaemon({ args: ['--reactors', '2'] })
    await ceph.run('rbd', 'create', '-p', 'volumes', '--size', '8', 'disk')
    await run('rbd', 'open', `rbd:volumes/disk:conf=${ceph.conf}`, '512', '-b', 'r0')
  })
  afterAll(async () => {
    await daemon?.stop()
    await ceph?.stop()
  })

  it('go from the first to the last step of their lives', async () => {
    await scribble('r0', 1)
    const first = await content('disk')
    await run('rbd', 'snapshot', 'create', 'r0', 'then')
    await expect(run('rbd', 'snapshot', 'create', 'r0', 'then')).rejects.toThrow(
      'the snapshot volumes/disk@then exists already',
    )
    await scribble('r0', 2)
    expect(await content('disk')).not.toBe(first)

    const [listed, ...others] = JSON.parse(await run('rbd', 'snapshot', 'list', 'r0', '--json'))
    expect(others).toEqual([])
    expect(listed).toMatchObject({ name: 'then', size: 8 << 20, protected: false })
    expect(Math.abs(Date.parse(listed.created) - Date.now())).toBeLessThan(600_000)

    await run('rbd', 'snapshot', 'protect', 'r0', 'then')
    await expect(run('rbd', 'snapshot', 'delete', 'r0', 'then')).rejects.toThrow('is protected or has clones')
    await run('rbd', 'clone', 'r0', 'then', 'child')
    await run('rbd', 'open', `rbd:volumes/child:conf=${ceph.conf}`, '-b', 'c0')
    expect(await content('child')).toBe(first)
    expect(await described('c0')).toMatchObject({ parent: 'volumes/disk@then' })
    await run('rbd', 'flatten', 'c0')
    expect((await info('child')).parent).toBeUndefined()
    expect(await described('c0')).not.toHaveProperty('parent')
    await expect(run('rbd', 'flatten', 'c0')).rejects.toThrow('volumes/child is no clone')
    await run('rbd', 'snapshot', 'unprotect', 'r0', 'then')
    await expect(run('rbd', 'snapshot', 'unprotect', 'r0', 'then')).rejects.toThrow('is not protected')

    await run('rbd', 'snapshot', 'rollback', 'r0', 'then')
    expect(await content('disk')).toBe(first)
    await run('rbd', 'snapshot', 'delete', 'r0', 'then')
    expect(await run('rbd', 'snapshot', 'list', 'r0', '--json')).toBe('[]')
  })

  it('tell how far a long one is, and go on with it after the daemon was killed', async () => {
    const job = async (id: number): Promise<WireJob> => daemon.rpc<WireJob>('job_get', { id })
    await ceph.run('rbd', 'create', '--size', '128', '--object-size', '64K', 'volumes/parent')
    await run('rbd', 'open', `rbd:volumes/parent:conf=${ceph.conf}`, '-b', 'p0')
    await scribble('p0', 4)
    const first = await content('parent')
    await run('rbd', 'snapshot', 'create', 'p0', 'base')
    await run('rbd', 'snapshot', 'protect', 'p0', 'base')
    await run('rbd', 'clone', 'p0', 'base', 'long')
    await run('rbd', 'open', `rbd:volumes/long:conf=${ceph.conf}`, '-b', 'l0')

    const { job_id: id } = JSON.parse(await run('rbd', 'flatten', 'l0', '--no-wait'))
    await eventually(async () => (await job(id)).done).toBeGreaterThan(0)
    ceph.signalOsd(0, 'SIGSTOP')
    expect(await job(id)).toMatchObject({ state: 'running', unit: 'objects', total: 2048 })
    await expect(run('rbd', 'flatten', 'l0')).rejects.toThrow(/l0/)
    await expect(run('job', 'cancel', String(id))).rejects.toThrow('cannot be stopped half-way')
    await daemon.kill('SIGKILL')
    ceph.signalOsd(0, 'SIGCONT')
    await daemon.start()

    // It may have to wait for its image, which Ceph may keep waiting.
    await eventually(() => daemon.rpc('job_list')).toHaveLength(1)
    const [again] = await daemon.rpc<WireJob[]>('job_list')
    await run('job', 'wait', String(again!.id))
    expect(await job(again!.id)).toMatchObject({ kind: 'bdev_rbd_flatten', name: 'l0', percent: 100 })
    expect((await info('long')).parent).toBeUndefined()
    expect(await content('long')).toBe(first)
    expect(await daemon.rpc('framework_get_config', { name: 'job' })).toEqual([])
    for (const name of ['l0', 'p0']) await daemon.rpc('bdev_rbd_delete', { name })
  })

  it('lose nothing of their parent when a killed client has left the map of objects wrong', async () => {
    await ceph.run('rbd', 'create', '--size', '8', 'volumes/whole')
    await run('rbd', 'open', `rbd:volumes/whole:conf=${ceph.conf}`, '-b', 'w0')
    await scribble('w0', 5)
    await run('rbd', 'snapshot', 'create', 'w0', 'base')
    await run('rbd', 'snapshot', 'protect', 'w0', 'base')
    await run('rbd', 'clone', 'w0', 'base', 'torn')
    // The map has the object, which was never written.
    await ceph.run(
      'rbd',
      'bench',
      '--io-type',
      'write',
      '--io-size',
      '4K',
      '--io-total',
      '4K',
      'volumes/torn',
    )
    const { id } = JSON.parse(await ceph.run('rbd', 'info', 'volumes/torn', '--format', 'json')) as {
      id: string
    }
    await ceph.run('rados', '-p', 'volumes', 'rm', `rbd_data.${id}.0000000000000000`)
    await run('rbd', 'open', `rbd:volumes/torn:conf=${ceph.conf}`, '-b', 't0')
    await run('rbd', 'flatten', 't0')
    expect(await content('torn')).toBe(await content('whole'))
    const { features, flags } = JSON.parse(
      await ceph.run('rbd', 'info', 'volumes/torn', '--format', 'json'),
    ) as { features: string[]; flags: string[] }
    expect({ features, flags }).toEqual({
      features: expect.arrayContaining(['object-map', 'fast-diff']),
      flags: [],
    })
    for (const name of ['t0', 'w0']) await daemon.rpc('bdev_rbd_delete', { name })
  })

  it('roll back only what nobody has, and to the size of then', async () => {
    await run('rbd', 'snapshot', 'create', 'r0', 'small')
    await run('rbd', 'resize', 'r0', '16')
    const unix = join(daemon.directory, 'nbd.sock')
    await daemon.rpc('nbd_export_start', { bdev_name: 'r0', unix })
    await expect(run('rbd', 'snapshot', 'rollback', 'r0', 'small')).rejects.toThrow(
      /r0 would change under .*r0/,
    )
    await daemon.rpc('nbd_export_stop', { name: 'r0' })
    const clients = async (): Promise<unknown[]> =>
      JSON.parse(await ceph.run('rbd', 'status', 'volumes/disk', '--format', 'json')).watchers
    // The daemon that was killed counts as one for a while.
    await eventually(clients).toHaveLength(1)
    await run('rbd', 'snapshot', 'rollback', 'r0', 'small')
    expect((await info('disk')).size).toBe(8 << 20)
    expect(await daemon.rpc('bdev_get_bdevs', { name: 'r0' })).toMatchObject([
      { num_blocks: (8 << 20) / 512 },
    ])
  })

  it('roll back what another gateway has open only when that is meant', async () => {
    const other = await startDaemon()
    try {
      await run('rbd', 'snapshot', 'create', 'r0', 'before')
      const first = await content('disk')
      await scribble('r0', 6)
      await other.rpc('bdev_rbd_open', { filename: `rbd:volumes/disk:conf=${ceph.conf}`, name: 'o0' })
      const rollback = ['rbd', 'snapshot', 'rollback', 'r0', 'before']
      await expect(run(...rollback)).rejects.toThrow(
        /volumes\/disk would change under other clients of Ceph that have it open \(.*delete its device/,
      )
      expect(await content('disk')).not.toBe(first)
      await run(...rollback, '--force')
      expect(await content('disk')).toBe(first)
    } finally {
      await other.stop()
    }
    await run('rbd', 'snapshot', 'delete', 'r0', 'before')
  })

  it.each([
    ['snapshot-delete', /volumes\/disk@never does not exist: see bdev_rbd_snapshot_list/],
    ['snapshot-protect', /volumes\/disk@never does not exist/],
    ['snapshot-rollback', /volumes\/disk@never does not exist/],
  ])('%s of one that is not there says so', async (verb, message) => {
    await expect(run('rbd', verb, 'r0', 'never')).rejects.toThrow(message)
  })

  it('tell what kind of image it is', async () => {
    expect(await described('r0')).toMatchObject({
      pool_name: 'volumes',
      rbd_name: 'disk',
      config_file: ceph.conf,
      features: ['layering', 'exclusive-lock', 'object-map', 'fast-diff', 'deep-flatten'],
      object_size: 4 << 20,
    })
  })

  it('find an image in a data pool, in a namespace, by a name in JSON, and a snapshot read only', async () => {
    await ceph.run('ceph', 'osd', 'pool', 'create', 'bulk', '8')
    await ceph.run('rbd', 'pool', 'init', 'bulk')
    await ceph.run('rbd', 'namespace', 'create', 'volumes/tenant')
    await ceph.run('rbd', 'create', '--size', '8', '--data-pool', 'bulk', 'volumes/tenant/a:b')
    await run('rbd', 'open', `rbd:volumes/tenant/a\\:b:conf=${ceph.conf}`, '-b', 'odd')
    expect(await described('odd')).toMatchObject({ namespace: 'tenant', rbd_name: 'a:b', data_pool: 'bulk' })
    await scribble('odd', 3)

    await run('rbd', 'snapshot', 'create', 'r0', 'seen')
    const [host, port] = ceph.monitorAddress.replace(/\[v1:|\]/g, '').split(':')
    const node = { driver: 'rbd', pool: 'volumes', image: 'disk', snapshot: 'seen', server: [{ host, port }] }
    // With the address in the name, an empty file does.
    await run('rbd', 'open', `json:${JSON.stringify({ ...node, conf: '/dev/null' })}`, '-b', 'seen')
    await expect(run('rbd', 'snapshot', 'create', 'seen', 'more')).rejects.toThrow('read only')
    const rollback = { name: 'seen', snapshot: 'seen', force: true }
    await expect(daemon.rpc('bdev_rbd_snapshot_rollback', rollback)).rejects.toThrow('read only')
    // Its readers would be given what the image holds now.
    await expect(run('rbd', 'snapshot', 'delete', 'r0', 'seen')).rejects.toThrow('is open as seen')
  })

  it('are back after a restart', async () => {
    await daemon.restart('SIGKILL')
    const names = async (): Promise<string[]> =>
      (await daemon.rpc<{ name: string }[]>('bdev_get_bdevs')).map(({ name }) => name).sort()
    // A start waits a few seconds for Ceph, and then goes on without it.
    await eventually(names).toEqual(['c0', 'odd', 'r0', 'seen'])
  })
})
