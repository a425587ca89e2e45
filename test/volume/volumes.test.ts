import { execFileSync } from 'node:child_process'
import {
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  statSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
} from 'node:fs'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { Storage } from './support.ts'

const MIB = 2 ** 20
let storage: Storage
beforeEach(async () => {
  storage = new Storage()
  await storage.directoryPool('vms')
})
afterEach(() => storage.close())

const create = (name: string, params: object = {}, pool = 'vms'): Promise<unknown> =>
  storage.call('volume_create', { pool, name, capacity: '64M', ...params })
const names = async (params: object = {}): Promise<string[]> =>
  (await storage.call<{ name: string }[]>('volume_list', params)).map(({ name }) => name)
const info = (volume: string): Promise<Record<string, unknown>> => storage.call('volume_info', { volume })

/** A bdev over a volume, as an export would make it. */
async function open(name: string): Promise<void> {
  await storage.call('bdev_uring_create', { name: 'b0', filename: storage.path('vms', name) })
}

describe('making volumes', () => {
  it('makes them thin, with mode 0600 unless told otherwise', async () => {
    await create('a')
    await create('b', { mode: '0640', capacity: 3 * MIB })
    expect(await storage.call('volume_list', { pool: 'vms' })).toMatchObject([
      { name: 'a', format: 'raw', type: 'file', capacity: 64 * MIB, allocation: 0, mode: '0600' },
      { name: 'b', capacity: 3 * MIB, mode: '0640' },
    ])
    expect(readdirSync(storage.path('vms'))).toEqual(['a', 'b'])
  })

  it('preallocates as a job', async () => {
    expect(
      await storage.job('volume_create', {
        pool: 'vms',
        name: 'a',
        capacity: '64M',
        preallocation: 'full',
      }),
    ).toMatchObject({ state: 'completed', done: 64 * MIB, total: 64 * MIB })
    expect(await info('a')).toMatchObject({ capacity: 64 * MIB })
    expect(statSync(storage.path('vms/a')).blocks * 512).toBeGreaterThanOrEqual(64 * MIB)
  })

  it('makes qcow2 volumes with features and a backing volume', async () => {
    await create('base')
    await create('top', { capacity: undefined, format: 'qcow2', backing: 'base' })
    await create('fine', { format: 'qcow2', features: { cluster_size: '4K', lazy_refcounts: 'on' } })
    expect(await info('top')).toMatchObject({
      format: 'qcow2',
      capacity: 64 * MIB,
      backing: { path: storage.path('vms/base'), format: 'raw' },
    })
    expect(await info('base')).toMatchObject({ dependents: ['top'] })
  })

  it.each([
    [{ name: 'a/b' }, 'EINVAL', 'a slash'],
    [{ capacity: '10 elephants' }, 'EINVAL', 'is no size'],
    [{ capacity: undefined }, 'EINVAL', 'needs a capacity'],
    [{ format: 'vmdk' }, 'ENOTSUP', 'raw and qcow2 can'],
    [{ features: { cluster_size: '4K' } }, 'EINVAL', 'a raw volume has not the feature cluster_size'],
    [{ format: 'qcow2', features: { speed: 'high' } }, 'EINVAL', 'speed=high'],
    [{ pool: 'nix' }, 'ENOENT', 'there is no pool nix'],
  ])('refuses %j', async (params, code, message) => {
    await expect(create('a', params)).rejects.toMatchObject({
      code,
      message: expect.stringContaining(message),
    })
    expect(readdirSync(storage.path('vms'))).toEqual([])
  })

  describe('from a document', () => {
    const xml = (name: string, rest: string): string =>
      `<volume><name>${name}</name><capacity unit='M'>64</capacity>${rest}</volume>`
    const fromXml = (name: string, rest: string): Promise<unknown> =>
      storage.call('volume_create_xml', { pool: 'vms', xml: xml(name, rest) })

    it('makes a raw volume whole unless it says how much is allocated, as libvirt does', async () => {
      const job = await storage.job('volume_create_xml', { pool: 'vms', xml: xml('a', '') })
      expect(job).toMatchObject({ state: 'completed', kind: 'volume_create' })
      expect(statSync(storage.path('vms/a')).blocks * 512).toBeGreaterThanOrEqual(64 * MIB)
      expect(await fromXml('b', '<allocation>0</allocation>')).toEqual({ name: 'b' })
      expect(await info('b')).toMatchObject({ capacity: 64 * MIB, allocation: 0 })
    })

    it('takes format, features, backing store and permissions from it', async () => {
      await create('base')
      await fromXml(
        'q',
        `<target><format type='qcow2'/><permissions><mode>0640</mode></permissions><compat>0.10</compat></target>
         <backingStore><path>${storage.path('vms/base')}</path><format type='raw'/></backingStore>`,
      )
      expect(await info('q')).toMatchObject({
        ...{ format: 'qcow2', mode: '0640' },
        backing: { path: storage.path('vms/base'), format: 'raw' },
      })
      // Byte 7 of the header is the version: 2 is what QEMU 0.10 reads.
      expect(readFileSync(storage.path('vms/q'))[7]).toBe(2)
    })

    it('says what it cannot do of it', async () => {
      const luks = "<target><format type='qcow2'/><encryption format='luks'/></target>"
      await expect(fromXml('a', luks)).rejects.toMatchObject({ code: 'ENOTSUP' })
      await expect(
        storage.call('volume_create_xml', { pool: 'vms', xml: '<volume/>' }),
      ).rejects.toMatchObject({ code: 'EINVAL' })
    })
  })

  it('does not give two volumes one name', async () => {
    await create('a')
    await expect(create('a')).rejects.toMatchObject({ code: 'EEXIST' })
  })
})

describe('finding volumes', () => {
  beforeEach(async () => {
    await storage.directoryPool('isos')
    await create('a')
    await create('same')
    await create('same', {}, 'isos')
  })

  it.each(['a', 'vms/a'])('by %s', async volume => {
    expect(await info(volume)).toMatchObject({ name: 'a', pool: 'vms' })
  })

  it('by path, which is the key', async () => {
    expect(await info(storage.path('vms/a'))).toMatchObject({ name: 'a' })
  })

  it('asks which pool is meant where several have one of that name', async () => {
    await expect(info('same')).rejects.toThrow('is in several pools: say which, isos/same, vms/same')
    expect(await info('isos/same')).toMatchObject({ pool: 'isos' })
    expect(await storage.call('volume_info', { volume: 'same', pool: 'vms' })).toMatchObject({ pool: 'vms' })
  })

  it('names what there is when there is none', async () => {
    await expect(info('vms/b')).rejects.toThrow('pool vms has no volume b: there are a, same')
    await expect(info('b')).rejects.toThrow('there is no volume b in an active pool, of which there are ')
  })

  it('says that the pool is stopped that is named', async () => {
    await storage.call('pool_destroy', { pool: 'vms' })
    await expect(info('vms/a')).rejects.toThrow('pool vms is not active: qpair pool start vms')
  })

  it('lists files that somebody else has put there, but no directories and no hidden ones', async () => {
    writeFileSync(storage.path('vms/by-hand'), '')
    truncateSync(storage.path('vms/by-hand'), 40_960)
    writeFileSync(storage.path('vms/.hidden'), '')
    execFileSync('mkdir', [storage.path('vms/directory')])
    expect(await names({ pool: 'vms' })).toEqual(['a', 'by-hand', 'same'])
    expect(await names({ pool: 'vms', refresh: false })).toEqual(['a', 'by-hand', 'same'])
  })

  it('lists CD images by themselves', async () => {
    const image = Buffer.alloc(40_960)
    image.write('\u0001CD001\u0001', 16 * 2048, 'latin1')
    writeFileSync(storage.path('isos/debian.iso'), image)
    expect(await names({ iso: true })).toEqual(['debian.iso'])
  })
})

describe('changing volumes', () => {
  beforeEach(() => create('a'))

  it('renames and deletes', async () => {
    await storage.call('volume_rename', { volume: 'a', name: 'b' })
    expect(await names()).toEqual(['b'])
    await storage.call('volume_delete', { volume: 'b' })
    expect(readdirSync(storage.path('vms'))).toEqual([])
  })

  it('never gives one the name of what has come there since, or is no volume', async () => {
    writeFileSync(storage.path('vms/theirs'), 'precious')
    mkdirSync(storage.path('vms/directory'))
    symlinkSync('/nowhere', storage.path('vms/link'))
    for (const name of ['theirs', 'directory', 'link']) {
      const code = 'EEXIST'
      await expect(storage.call('volume_rename', { volume: 'a', name })).rejects.toMatchObject({ code })
    }
    await expect(create('link')).rejects.toMatchObject({ code: 'EEXIST' })
    expect(readFileSync(storage.path('vms/theirs'), 'utf8')).toBe('precious')
    expect(await names()).toEqual(['a', 'theirs'])
  })

  it.each([
    ['delete', {}],
    ['rename', { name: 'b' }],
  ])('leaves one alone that is just being exported: %s', async (change, params) => {
    const unix = storage.path('nbd.sock')
    const exported = storage.call('volume_export', { volume: 'a', nbd: true, unix })
    const changed = storage.call(`volume_${change}`, { volume: 'a', ...params })
    const [, result] = await Promise.allSettled([exported, changed])
    expect(result).toMatchObject({ reason: { message: 'volume vms/a is being exported: wait for its end' } })
    expect(await names()).toEqual(['a'])
  })

  it('exports none that is just being wiped', async () => {
    const wiped = storage.job('volume_wipe', { volume: 'a' })
    await expect(storage.call('volume_export', { volume: 'a', nbd: true })).rejects.toThrow(
      'volume_wipe of a',
    )
    expect(await wiped).toMatchObject({ state: 'completed' })
  })

  it('changes none that has another name by now', async () => {
    const renamed = storage.call('volume_rename', { volume: 'a', name: 'b' })
    const deleted = storage.call('volume_delete', { volume: 'a' })
    await renamed
    await expect(deleted).rejects.toMatchObject({
      code: 'ENOENT',
      message: expect.stringContaining('no volume a'),
    })
    expect(await names()).toEqual(['b'])
  })

  it('grows one that is open, and the bdev has the new size', async () => {
    await open('a')
    await storage.call('volume_resize', { volume: 'a', capacity: '36M', delta: true })
    expect(storage.bdevs.get('b0').blockCount * 512).toBe(100 * MIB)
    expect(statSync(storage.path('vms/a')).size).toBe(100 * MIB)
  })

  it('leaves alone what a symbolic link leads to, unless that is said, and deletes only the link', async () => {
    const outside = storage.path('outside')
    writeFileSync(outside, Buffer.alloc(MIB, 0x11))
    symlinkSync(outside, storage.path('vms/link'))
    await storage.call('pool_refresh', { pool: 'vms' })
    expect(await names()).toEqual(['a', 'link'])
    const refused = [
      ['volume_resize', 'resized', { capacity: '2M' }],
      ['volume_wipe', 'wiped', {}],
      ['volume_snapshot_revert', 'reverted', { snapshot: 's' }],
    ] as const
    for (const [method, done, params] of refused) {
      await expect(storage.call(method, { volume: 'link', ...params }), method).rejects.toThrow(
        `volume link cannot be ${done}: it is a symbolic link to ${outside}`,
      )
    }
    expect(readFileSync(outside).equals(Buffer.alloc(MIB, 0x11))).toBe(true)
    await storage.call('volume_resize', { volume: 'link', capacity: '2M', follow_link: true })
    expect(statSync(outside).size).toBe(2 * MIB)
    expect(await storage.job('volume_wipe', { volume: 'link', follow_link: true })).toMatchObject({
      state: 'completed',
    })
    expect(readFileSync(outside).equals(Buffer.alloc(2 * MIB))).toBe(true)
    await storage.call('volume_delete', { volume: 'link' })
    expect([existsSync(outside), await names()]).toEqual([true, ['a']])
  })

  it('knows what stands on a volume also by a link to it', async () => {
    symlinkSync(storage.path('vms/a'), storage.path('vms/link'))
    await storage.call('pool_refresh', { pool: 'vms' })
    await create('top', { format: 'qcow2', backing: 'link' })
    for (const volume of ['a', 'link']) {
      await expect(storage.call('volume_wipe', { volume, follow_link: true })).rejects.toThrow(
        'it is the backing store of top',
      )
    }
  })

  it('makes one smaller only when that is said', async () => {
    await expect(storage.call('volume_resize', { volume: 'a', capacity: '32M' })).rejects.toThrow('--shrink')
    await storage.call('volume_resize', { volume: 'a', capacity: '32M', shrink: true })
    expect(statSync(storage.path('vms/a')).size).toBe(32 * MIB)
  })

  it('refuses what a user of it would not survive, and names the user', async () => {
    await open('a')
    const claim = storage.bdevs.claim('b0', 'NBD export "x"', 'write')
    const refused = [
      ['volume_delete', {}],
      ['volume_rename', { name: 'b' }],
      ['volume_resize', { capacity: '1M', shrink: true }],
      ['volume_clone', { name: 'b' }],
      ['volume_wipe', {}],
      ['volume_snapshot_revert', { snapshot: 's' }],
      ['volume_save', { file: storage.path('out') }],
    ] as const
    for (const [method, params] of refused) {
      await expect(storage.call(method, { volume: 'a', ...params }), method).rejects.toMatchObject({
        code: 'EBUSY',
        message: expect.stringContaining('bdev b0 has it open for NBD export "x"'),
      })
    }
    claim.release()
    expect(await names()).toEqual(['a'])
  })

  it('does not take a volume from under those that are made of it', async () => {
    await create('top', { format: 'qcow2', backing: 'a' })
    for (const method of ['volume_delete', 'volume_wipe']) {
      await expect(storage.call(method, { volume: 'a' })).rejects.toThrow(
        'it is the backing store of top, which would be destroyed',
      )
    }
    await storage.call('volume_delete', { volume: 'top' })
    await storage.call('volume_delete', { volume: 'a' })
  })

  it('clones, with the content', async () => {
    writeFileSync(storage.path('vms/a'), Buffer.alloc(MIB, 0x11))
    expect(await storage.job('volume_clone', { volume: 'a', name: 'b' })).toMatchObject({
      state: 'completed',
    })
    expect(readFileSync(storage.path('vms/b')).equals(Buffer.alloc(MIB, 0x11))).toBe(true)
  })

  it.each(['zero', 'random', 'trim'])('wipes by %s', async algorithm => {
    writeFileSync(storage.path('vms/a'), Buffer.alloc(5 * MIB, 0x11))
    expect(await storage.job('volume_wipe', { volume: 'a', algorithm })).toMatchObject({ state: 'completed' })
    const content = readFileSync(storage.path('vms/a'))
    expect([content.length, content.indexOf(Buffer.alloc(64, 0x11))]).toEqual([5 * MIB, -1])
    if (algorithm !== 'random') expect(content.equals(Buffer.alloc(5 * MIB))).toBe(true)
  })

  it.each(['nnsa', 'gutmann'])('says why it does not wipe by %s', async algorithm => {
    await expect(storage.call('volume_wipe', { volume: 'a', algorithm })).rejects.toThrow(
      `there is no wiping by ${algorithm}: zero, trim, random there are`,
    )
  })

  it('wipes a qcow2 image and leaves an empty one', async () => {
    await create('q', { format: 'qcow2', features: { cluster_size: '4K' } })
    expect(await storage.job('volume_wipe', { volume: 'q' })).toMatchObject({ state: 'completed' })
    expect(await info('q')).toMatchObject({ format: 'qcow2', capacity: 64 * MIB })
  })

  it('says that a raw volume has no snapshots where blocks are not shared, and leaves nothing', async () => {
    const asked = storage.call('volume_snapshot_create', { volume: 'a', snapshot: 's' })
    const isShared = await asked.then(
      () => true,
      error => {
        expect(error).toMatchObject({ code: 'ENOTSUP', message: expect.stringContaining('reflink=1') })
        return false
      },
    )
    expect(existsSync(storage.path('vms/.snapshots'))).toBe(isShared)
  })

  it('names the pool, not an inner error, where a snapshot cannot be made for want of its directory', async () => {
    symlinkSync('/nowhere', storage.path('vms/.snapshots'))
    await expect(
      storage.call('volume_snapshot_create', { volume: 'a', snapshot: 's' }),
    ).rejects.toMatchObject({ code: 'ENOENT', message: `${storage.path('vms')} cannot be written: ENOENT` })
  })

  it('keeps snapshots within a qcow2 image', async () => {
    await create('q', { format: 'qcow2' })
    await storage.call('volume_snapshot_create', { volume: 'q', snapshot: 's1' })
    await storage.call('volume_resize', { volume: 'q', capacity: '128M' })
    await storage.call('volume_snapshot_create', { volume: 'q', snapshot: 's2' })
    await expect(
      storage.call('volume_snapshot_create', { volume: 'q', snapshot: 's2' }),
    ).rejects.toMatchObject({ code: 'EEXIST' })
    expect(await storage.call('volume_snapshot_list', { volume: 'q' })).toMatchObject([
      { name: 's1', size: 64 * MIB },
      { name: 's2', size: 128 * MIB },
    ])
    await expect(
      storage.call('volume_snapshot_revert', { volume: 'q', snapshot: 's3' }),
    ).rejects.toMatchObject({ code: 'ENOENT', message: 'volume q has no snapshot s3: there are s1, s2' })
    expect(await storage.job('volume_snapshot_revert', { volume: 'q', snapshot: 's1' })).toMatchObject({
      state: 'completed',
    })
    expect(await info('q')).toMatchObject({ capacity: 64 * MIB, snapshots: 2 })
    await expect(storage.call('volume_delete', { volume: 'q' })).rejects.toThrow('2 snapshots (s1, s2)')
    await storage.call('volume_snapshot_delete', { volume: 'q', snapshot: 's1' })
    await storage.call('volume_delete', { volume: 'q', delete_snapshots: true })
  })

  it('gives nobody a volume that a job is at work on', async () => {
    const { job_id } = await storage.call<{ job_id: number }>('volume_clone', { volume: 'a', name: 'b' })
    const stopped = storage.call('pool_destroy', { pool: 'vms' })
    const refused = storage.call('volume_create', { pool: 'vms', name: 'b', capacity: 1 })
    await expect(stopped).rejects.toThrow('pool vms cannot be stopped during volume_clone of b')
    await expect(refused).rejects.toMatchObject({ code: expect.stringMatching(/EBUSY|EEXIST/) })
    await storage.reactors.run(storage.jobs.wait(job_id, 60_000))
    expect(await names()).toEqual(['a', 'b'])
  })

  it('writes a libvirt document', async () => {
    expect(await storage.call('volume_dumpxml', { volume: 'a' })).toContain(
      `<capacity unit='bytes'>${64 * MIB}</capacity>`,
    )
  })
})

describe('moving volumes', () => {
  const content = Buffer.concat([Buffer.alloc(3 * MIB, 0x11), Buffer.alloc(5 * MIB), Buffer.alloc(700, 0x22)])
  beforeEach(() => writeFileSync(storage.path('source'), content))

  const moved = (name: string, params: object = {}) =>
    storage.job('volume_import', { pool: 'vms', name, source: storage.path('source'), ...params })

  it('imports a file as it is', async () => {
    expect(await moved('a')).toMatchObject({ state: 'completed', error: undefined })
    expect(readFileSync(storage.path('vms/a')).equals(content)).toBe(true)
    expect(readdirSync(storage.path('vms'))).toEqual(['a'])
  })

  it('goes by way of qcow2 and comes back the same', async () => {
    truncateSync(storage.path('source'), 9 * MIB)
    expect(await moved('q', { format: 'qcow2' })).toMatchObject({ state: 'completed', error: undefined })
    expect(await info('q')).toMatchObject({ format: 'qcow2', capacity: 9 * MIB })
    expect(await moved('r', { source: 'vms/q', format: 'raw' })).toMatchObject({ state: 'completed' })
    expect(readFileSync(storage.path('vms/r')).equals(readFileSync(storage.path('source')))).toBe(true)
    expect(statSync(storage.path('vms/r')).blocks * 512).toBeLessThan(5 * MIB)
  })

  it('keeps the volume that it copies as it is meanwhile', async () => {
    await moved('a')
    const { job_id } = await storage.call<{ job_id: number }>('volume_import', {
      ...{ pool: 'vms', name: 'b', source: 'vms/a', format: 'qcow2' },
    })
    await expect(storage.call('volume_delete', { volume: 'a' })).rejects.toThrow(
      'volume vms/a is used by volume_import of b, a job that qpair job list shows: wait for its end',
    )
    await storage.reactors.run(storage.jobs.wait(job_id, 60_000))
    await storage.call('volume_delete', { volume: 'a' })
  })

  it('keeps it also when it is named by a path that leads to it', async () => {
    await moved('a')
    symlinkSync(storage.path('vms/a'), storage.path('way'))
    const { job_id } = await storage.call<{ job_id: number }>('volume_import', {
      ...{ pool: 'vms', name: 'b', source: storage.path('way'), format: 'qcow2' },
    })
    await expect(storage.call('volume_delete', { volume: 'a' })).rejects.toThrow(
      'is used by volume_import of b',
    )
    await storage.reactors.run(storage.jobs.wait(job_id, 60_000))
  })

  it('refuses a source that somebody has open for writing, and says who', async () => {
    truncateSync(storage.path('source'), 9 * MIB)
    await storage.call('bdev_uring_create', { name: 'b0', filename: storage.path('source') })
    const claim = storage.bdevs.claim('b0', 'subsystem nqn.x', 'write')
    await expect(moved('a')).rejects.toMatchObject({
      code: 'EBUSY',
      message: expect.stringContaining('bdev b0 has it open for subsystem nqn.x'),
    })
    claim.release()
    await storage.call('bdev_uring_delete', { name: 'b0' })
  })

  it('takes no copy of what was changed while it was made', async () => {
    const { job_id } = await storage.call<{ job_id: number }>('volume_import', {
      ...{ pool: 'vms', name: 'a', source: storage.path('source'), format: 'qcow2' },
    })
    writeFileSync(storage.path('source'), 'another', { flag: 'r+' })
    expect(await storage.reactors.run(storage.jobs.wait(job_id, 60_000))).toMatchObject({
      ...{ state: 'failed', error: { code: 'ESTALE' } },
    })
    expect(readdirSync(storage.path('vms'))).toEqual([])
  })

  it('takes no copy of what became shorter while it was made', async () => {
    const { job_id } = await storage.call<{ job_id: number }>('volume_import', {
      ...{ pool: 'vms', name: 'a', source: storage.path('source'), format: 'qcow2' },
    })
    truncateSync(storage.path('source'), 10)
    expect(await storage.reactors.run(storage.jobs.wait(job_id, 60_000))).toMatchObject({ state: 'failed' })
    expect(readdirSync(storage.path('vms'))).toEqual([])
  })

  it.each(['1f8b08', '28b52ffd', 'fd377a585a00', '425a68'])(
    'refuses a file that is packed (%s)',
    async magic => {
      writeFileSync(storage.path('source'), Buffer.concat([Buffer.from(magic, 'hex'), Buffer.alloc(MIB)]))
      await expect(moved('a')).rejects.toThrow('is packed: unpack it first')
      expect(await moved('a', { format: 'raw' })).toMatchObject({ state: 'completed' })
    },
  )

  it('takes from a server no image that stands on a file of this machine', async () => {
    await storage.call('volume_create', { pool: 'vms', name: 'base', capacity: '1M' })
    await storage.call('volume_create', {
      pool: 'vms',
      name: 'top',
      capacity: '1M',
      format: 'qcow2',
      backing: 'base',
    })
    const image = readFileSync(storage.path('vms/top'))
    const server = createServer((_, response) => response.end(image))
    await new Promise<void>(resolve => server.listen(0, '127.0.0.1', resolve))
    const source = `http://127.0.0.1:${(server.address() as AddressInfo).port}/x`
    expect(await moved('a', { source })).toMatchObject({
      ...{ state: 'failed', error: { message: expect.stringContaining('is an image that stands on') } },
    })
    server.close()
    expect(readdirSync(storage.path('vms')).sort()).toEqual(['base', 'top'])
  })

  it('copies one volume several times at once, and never to one name', async () => {
    truncateSync(storage.path('source'), 9 * MIB)
    await moved('q', { format: 'qcow2' })
    const wanted = ['a', 'b', 'a', 'c'].map(name =>
      storage.call<{ job_id: number }>('volume_import', {
        ...{ pool: 'vms', name, source: 'vms/q', format: 'raw' },
      }),
    )
    const started = await storage.reactors.run(Promise.allSettled(wanted))
    expect(started.map(({ status }) => status).filter(status => status === 'rejected')).toHaveLength(1)
    for (const { id } of storage.jobs.list()) await storage.reactors.run(storage.jobs.wait(id, 60_000))
    expect(storage.jobs.list().map(({ state }) => state)).toEqual(Array(4).fill('completed'))
    const source = readFileSync(storage.path('source'))
    for (const name of ['a', 'b', 'c']) {
      expect(readFileSync(storage.path('vms', name)).equals(source), name).toBe(true)
    }
  })

  it('is done at once when it had been whole before the daemon was killed', async () => {
    await moved('a')
    expect(await moved('a', { resume: true })).toMatchObject({ state: 'completed', error: undefined })
    await expect(moved('a')).rejects.toMatchObject({ code: 'EEXIST' })
    const done = [
      ['volume_clone', { volume: 'a', name: 'b' }],
      ['volume_save', { volume: 'a', file: storage.path('out') }],
    ] as const
    for (const [method, params] of done) {
      for (const resume of [false, true]) {
        expect(await storage.job(method, { ...params, resume }), method).toMatchObject({
          ...{ state: 'completed', error: undefined },
        })
      }
      await expect(storage.job(method, params), method).rejects.toMatchObject({ code: 'EEXIST' })
    }
  })

  it('saves a volume to a file, in another format', async () => {
    truncateSync(storage.path('source'), 9 * MIB)
    await moved('q', { format: 'qcow2' })
    const saved = { volume: 'q', file: storage.path('out.raw'), format: 'raw' }
    expect(await storage.job('volume_save', saved)).toMatchObject({ state: 'completed', error: undefined })
    expect(readFileSync(storage.path('out.raw')).equals(readFileSync(storage.path('source')))).toBe(true)
    await expect(storage.call('volume_save', saved)).rejects.toMatchObject({ code: 'EEXIST' })
    await expect(storage.call('volume_save', { ...saved, file: 'out' })).rejects.toThrow('is relative')
  })

  it('flattens an image that has another beneath it', async () => {
    truncateSync(storage.path('source'), 9 * MIB)
    await moved('base')
    await create('top', { capacity: undefined, format: 'qcow2', backing: 'base' })
    expect(await moved('flat', { source: 'vms/top', format: 'qcow2' })).toMatchObject({ state: 'completed' })
    expect(await info('flat')).not.toHaveProperty('backing')
    await moved('r', { source: 'vms/flat', format: 'raw' })
    expect(readFileSync(storage.path('vms/r')).equals(readFileSync(storage.path('source')))).toBe(true)
  })

  it.each([
    ['/nowhere/x', 'ENOENT', '/nowhere/x cannot be read'],
    ['ftp://h/x', 'ENOTSUP', 'nbd+unix'],
    ['nbds://h/x', 'EINVAL', 'without TLS'],
    ['nix', 'ENOENT', 'nix is neither a volume nor a path (/DIR/FILE, or ./FILE where you are)'],
    ['/tmp', 'EINVAL', 'neither a file nor a block device'],
  ])('refuses the source %s', async (source, code, message) => {
    await expect(storage.call('volume_import', { pool: 'vms', name: 'a', source })).rejects.toMatchObject({
      code,
      message: expect.stringContaining(message),
    })
  })

  it('leaves nothing of an import that fails', async () => {
    const job = await moved('a', { source: 'nbd+unix:///x?socket=/nowhere/socket' })
    expect(job).toMatchObject({ state: 'failed', error: { code: 'ECONNREFUSED' } })
    expect(readdirSync(storage.path('vms'))).toEqual([])
    expect(storage.bdevs.list()).toEqual([])
  })

  it('saves no device that is there only for a copy', async () => {
    const seen: unknown[] = []
    storage.bdevs.listen({ added: () => void seen.push(...storage.bdevs.config()) })
    await moved('q', { format: 'qcow2' })
    expect([seen, storage.bdevs.list()]).toEqual([[], []])
  })
})
