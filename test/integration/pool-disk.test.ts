/** A pool of a disk of this machine: a loop device, with `sfdisk` and `blkid` as witnesses. */
import { execFileSync } from 'node:child_process'
import { mkdirSync, rmdirSync, rmSync, truncateSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, expect, it } from 'vitest'
import { type Daemon, startDaemon } from './lab/daemon.ts'
import { describeWith } from './lab/describe-with.ts'

interface Volume {
  readonly name: string
  readonly path: string
  readonly type: string
  readonly capacity: number
}

const MIB = 2 ** 20

const xml = (device: string): string => `<pool type='disk'>
  <name>sdb</name>
  <source><device path='${device}'/><format type='gpt'/></source>
  <target><path>/dev</path></target>
</pool>`

await describeWith(['losetup', 'sfdisk', 'blkid', 'mkfs.ext4', 'mount', 'umount'], 'a pool of a disk', () => {
  const image = join(tmpdir(), `qpair-disk-${process.pid}`)
  let daemon: Daemon
  let device = ''

  const volumes = (): Promise<Volume[]> => daemon.rpc('volume_list', { pool: 'sdb' })
  const create = (name: string, capacity: string): Promise<unknown> =>
    daemon.rpc('volume_create', { pool: 'sdb', name, capacity })
  const run = (program: string, ...args: string[]): string =>
    execFileSync(program, args, { encoding: 'utf8' })

  beforeAll(async () => {
    writeFileSync(image, '')
    truncateSync(image, 64 * MIB)
    device = run('losetup', '--find', '--partscan', '--show', image).trim()
    daemon = await startDaemon()
  })
  afterAll(async () => {
    await daemon?.stop()
    if (device !== '') run('losetup', '--detach', device)
    rmSync(image, { force: true })
  })

  it('is built once, and not over something that is there', async () => {
    await daemon.rpc('pool_define', { xml: xml(device) })
    await expect(daemon.rpc('pool_start', { pool: 'sdb' })).rejects.toThrow('has no partition table')
    await daemon.rpc('pool_build', { pool: 'sdb' })
    await expect(daemon.rpc('pool_build', { pool: 'sdb' })).rejects.toThrow(
      `${device} has a gpt partition table on it already`,
    )
    await daemon.rpc('pool_start', { pool: 'sdb' })
    expect(await volumes()).toEqual([])
    expect(await daemon.rpc('pool_info', { pool: 'sdb' })).toMatchObject({ capacity: 64 * MIB })
  })

  it('has partitions as volumes', async () => {
    await create('one', '20M')
    await create('two', '10M')
    expect(await volumes()).toMatchObject([
      { name: 'one', path: `${device}p1`, type: 'block', capacity: 20 * MIB },
      { name: 'two', path: `${device}p2`, capacity: 10 * MIB },
    ])
    await expect(create('three', '40M')).rejects.toThrow('the largest that')
    await daemon.rpc('volume_rename', { volume: 'two', name: 'zwei' })
    await expect(daemon.rpc('volume_resize', { volume: 'one', capacity: '24M' })).rejects.toThrow(
      'can have 20 MiB where it is',
    )
    await daemon.rpc('volume_delete', { volume: 'zwei' })
    await daemon.rpc('volume_resize', { volume: 'one', capacity: '24M' })
    const { partitiontable } = JSON.parse(run('sfdisk', '--json', device))
    expect(partitiontable.partitions).toMatchObject([{ name: 'one', size: 24 * 2048, start: 2048 }])
  })

  it('keeps a partition that is in use while others come and go', async () => {
    await daemon.rpc('volume_export', { volume: 'one', nbd: true, listen: ['127.0.0.1:0'] })
    await create('beside', '4M')
    await expect(daemon.rpc('volume_delete', { volume: 'one' })).rejects.toThrow('has it open')
    await daemon.rpc('volume_delete', { volume: 'beside' })
    await daemon.rpc('volume_resize', { volume: 'one', capacity: '30M' })
    expect(await daemon.rpc('bdev_get_bdevs', { name: 'sdb-one' })).toMatchObject([{ num_blocks: 30 * 2048 }])
    await daemon.rpc('volume_unexport', { volume: 'one' })
  })

  it.each(['-n', '--delete', 'a"b', 'a, type=swap', '../x'])(
    'takes %j for a name or refuses it',
    async name => {
      const made = create(name, '1M').then(
        () => 'made',
        () => 'refused',
      )
      const outcome = await made
      const names = (await volumes()).map(each => each.name)
      expect(names.sort()).toEqual(outcome === 'made' ? [name, 'one'].sort() : ['one'])
      if (outcome === 'made') await daemon.rpc('volume_delete', { volume: name, pool: 'sdb' })
    },
  )

  it('is left alone where the host has a file system on it', async () => {
    run('mkfs.ext4', '-q', '-F', `${device}p1`)
    const mountPoint = `${image}.mounted`
    mkdirSync(mountPoint)
    run('mount', `${device}p1`, mountPoint)
    try {
      const used = `the file system on ${mountPoint}`
      for (const [method, params] of [
        ['volume_delete', {}],
        ['volume_wipe', {}],
        ['volume_rename', { name: 'uno' }],
        ['volume_resize', { capacity: '5M', shrink: true }],
        ['volume_export', { nbd: true, listen: ['127.0.0.1:0'] }],
        ['volume_import', { pool: 'sdb', name: 'copy', source: 'one', volume: undefined }],
      ] as const) {
        await expect(daemon.rpc(method, { volume: 'one', ...params }), method).rejects.toThrow(used)
      }
      await daemon.rpc('pool_destroy', { pool: 'sdb' })
      await expect(daemon.rpc('pool_build', { pool: 'sdb', overwrite: true })).rejects.toThrow(used)
      expect(run('blkid', '-p', '-o', 'value', '-s', 'TYPE', `${device}p1`).trim()).toBe('ext4')
      await daemon.rpc('pool_start', { pool: 'sdb' })
    } finally {
      run('umount', mountPoint)
      rmdirSync(mountPoint)
    }
  })

  it('answers the size that a volume has, in sectors', async () => {
    await create('odd', '1M')
    expect(await daemon.rpc('volume_resize', { volume: 'odd', capacity: 2 ** 20 + 100 })).toEqual({
      capacity: 2 ** 20 + 512,
    })
    await daemon.rpc('volume_delete', { volume: 'odd' })
  })

  it('is wiped by whoever says that', async () => {
    await daemon.rpc('volume_delete', { volume: 'one' })
    await daemon.rpc('pool_destroy', { pool: 'sdb' })
    await daemon.rpc('pool_build', { pool: 'sdb', overwrite: true })
    expect(run('blkid', '-p', '-o', 'value', '-s', 'PTTYPE', device).trim()).toBe('gpt')
  })

  it('is undefined once it does not run', async () => {
    await daemon.rpc('pool_undefine', { pool: 'sdb' })
    expect(await daemon.rpc('pool_list')).toEqual([])
  })

  it.each([
    ['dos', '7f', '83'],
    ['gpt', '2AA1115F-E77A-4625-BCFF-A93EFA81838F', '0FC63DAF-8483-4772-8E79-3D69D8477DE4'],
  ])('tells by its table what an import has filled in part: %s', async (label, filling, whole) => {
    const pool = `half-${label}`
    const name = `${device.slice('/dev/'.length)}p1`
    const type = (): string => JSON.parse(run('sfdisk', '--json', device)).partitiontable.partitions[0].type
    const document = xml(device).replace('sdb', pool).replace("type='gpt'", `type='${label}'`)
    await daemon.rpc('pool_create', { xml: document, overwrite: true })
    const source = `${image}.source`
    writeFileSync(source, Buffer.alloc(2 * MIB, 0x11))
    const finished = async (params: object): Promise<void> => {
      const { job_id: id } = await daemon.rpc<{ job_id: number }>('volume_import', {
        pool,
        name,
        source,
        ...params,
      })
      expect(await daemon.rpc('job_wait', { id, timeout_ms: 60_000 })).toMatchObject({ state: 'completed' })
      expect(type()).toBe(whole)
    }
    await finished({})
    // As it is while it is filled, and stays when the daemon is killed then and what was kept of it is given up.
    run('sfdisk', '--no-reread', '--no-tell-kernel', '--part-type', device, '1', filling)
    await daemon.rpc('pool_refresh', { pool })
    await expect(daemon.rpc('volume_export', { volume: `${pool}/${name}`, nbd: true })).rejects.toThrow(
      'an import that was interrupted',
    )
    if (label === 'dos') await finished({ resume: true, identity: 'anything' })
    await daemon.rpc('volume_delete', { volume: `${pool}/${name}` })
    expect(await daemon.rpc('volume_list', { pool })).toEqual([])
    await daemon.rpc('pool_destroy', { pool })
    rmSync(source)
  })
})
