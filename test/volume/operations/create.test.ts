import { readdirSync, readFileSync, statSync } from 'node:fs'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { Storage } from '../support.ts'

const MIB = 2 ** 20
let storage: Storage
beforeEach(async () => {
  storage = new Storage()
  await storage.directoryPool('vms')
})
afterEach(() => storage.close())

describe('making volumes', () => {
  it('makes them thin, with mode 0600 unless told otherwise', async () => {
    await storage.create('a')
    await storage.create('b', { mode: '0640', capacity: 3 * MIB })
    expect(await storage.call('volume_list', { pool: 'vms' })).toMatchObject([
      { name: 'a', format: 'raw', type: 'file', capacity: 64 * MIB, allocation: 0, mode: '0600' },
      { name: 'b', capacity: 3 * MIB, mode: '0640' },
    ])
    expect(readdirSync(storage.path('vms'))).toEqual(['a', 'b'])
  })

  it('rounds sizes up to whole blocks, so that each can be served', async () => {
    await storage.create('a', { capacity: '100MB' })
    expect(await storage.info('a')).toMatchObject({ capacity: 100_000_256 })
    await storage.call('volume_resize', { volume: 'a', capacity: '200001KB' })
    expect(await storage.info('a')).toMatchObject({ capacity: 200_001_024 })
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
    expect(await storage.info('a')).toMatchObject({ capacity: 64 * MIB })
    expect(statSync(storage.path('vms/a')).blocks * 512).toBeGreaterThanOrEqual(64 * MIB)
  })

  it('makes qcow2 volumes with features and a backing volume', async () => {
    await storage.create('base')
    await storage.create('top', { capacity: undefined, format: 'qcow2', backing: 'base' })
    await storage.create('fine', { format: 'qcow2', features: { cluster_size: '4K', lazy_refcounts: 'on' } })
    expect(await storage.info('top')).toMatchObject({
      format: 'qcow2',
      capacity: 64 * MIB,
      backing: { path: storage.path('vms/base'), format: 'raw' },
    })
    expect(await storage.info('base')).toMatchObject({ dependents: ['top'] })
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
    await expect(storage.create('a', params)).rejects.toMatchObject({
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
      expect(await storage.info('b')).toMatchObject({ capacity: 64 * MIB, allocation: 0 })
    })

    it('takes format, features, backing store and permissions from it', async () => {
      await storage.create('base')
      await fromXml(
        'q',
        `<target><format type='qcow2'/><permissions><mode>0640</mode></permissions><compat>0.10</compat></target>
         <backingStore><path>${storage.path('vms/base')}</path><format type='raw'/></backingStore>`,
      )
      expect(await storage.info('q')).toMatchObject({
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
    await storage.create('a')
    await expect(storage.create('a')).rejects.toMatchObject({ code: 'EEXIST' })
  })
})
