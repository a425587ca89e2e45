import { execFileSync } from 'node:child_process'
import { truncateSync, writeFileSync } from 'node:fs'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { imageInfo } from '../../src/bdev/drivers/qcow2/image.ts'
import { Storage } from './support.ts'

const MIB = 2 ** 20
let storage: Storage
beforeEach(async () => {
  storage = new Storage()
  await storage.directoryPool('vms')
})
afterEach(() => storage.close())

describe('finding volumes', () => {
  beforeEach(async () => {
    await storage.directoryPool('isos')
    await storage.create('a')
    await storage.create('same')
    await storage.create('same', {}, 'isos')
  })

  it.each(['a', 'vms/a'])('by %s', async volume => {
    expect(await storage.info(volume)).toMatchObject({ name: 'a', pool: 'vms' })
  })

  it('by path, which is the key', async () => {
    expect(await storage.info(storage.path('vms/a'))).toMatchObject({ name: 'a' })
  })

  it('asks which pool is meant where several have one of that name', async () => {
    await expect(storage.info('same')).rejects.toThrow('is in several pools: say which, isos/same, vms/same')
    expect(await storage.info('isos/same')).toMatchObject({ pool: 'isos' })
    expect(await storage.call('volume_info', { volume: 'same', pool: 'vms' })).toMatchObject({ pool: 'vms' })
  })

  it('names what there is when there is none', async () => {
    await expect(storage.info('vms/b')).rejects.toThrow('pool vms has no volume b: there are a, same')
    await expect(storage.info('b')).rejects.toThrow(
      'there is no volume b in an active pool, of which there are ',
    )
  })

  it('says that the pool is stopped that is named', async () => {
    await storage.call('pool_destroy', { pool: 'vms' })
    await expect(storage.info('vms/a')).rejects.toThrow('pool vms is not active: qpair pool start vms')
  })

  it('lists files that somebody else has put there, but no directories and no hidden ones', async () => {
    writeFileSync(storage.path('vms/by-hand'), '')
    truncateSync(storage.path('vms/by-hand'), 40_960)
    writeFileSync(storage.path('vms/.hidden'), '')
    execFileSync('mkdir', [storage.path('vms/directory')])
    expect(await storage.names({ pool: 'vms' })).toEqual(['a', 'by-hand', 'same'])
    expect(await storage.names({ pool: 'vms', refresh: false })).toEqual(['a', 'by-hand', 'same'])
  })

  it('lists CD images by themselves', async () => {
    const image = Buffer.alloc(40_960)
    image.write('\u0001CD001\u0001', 16 * 2048, 'latin1')
    writeFileSync(storage.path('isos/debian.iso'), image)
    expect(await storage.names({ iso: true })).toEqual(['debian.iso'])
  })

  it('writes a libvirt document', async () => {
    expect(await storage.call('volume_dumpxml', { volume: 'a' })).toContain(
      `<capacity unit='bytes'>${64 * MIB}</capacity>`,
    )
  })

  it('writes one of which the same image can be made again', async () => {
    const features = { compat: '1.1', cluster_size: '128K', lazy_refcounts: 'on' }
    await storage.call('volume_create', {
      ...{ pool: 'vms', name: 'q', capacity: '64M', format: 'qcow2', features },
    })
    const xml = await storage.call<string>('volume_dumpxml', { volume: 'q' })
    expect(xml).toContain('<compat>1.1</compat>')
    expect(xml).toContain("<clusterSize unit='B'>131072</clusterSize>")
    expect(xml).toContain('<lazy_refcounts/>')
    await storage.call('volume_create_xml', { pool: 'vms', xml: xml.replace('<name>q<', '<name>r<') })
    expect(await imageInfo(storage.path('vms/r'))).toEqual({
      ...(await imageInfo(storage.path('vms/q'))),
      path: storage.path('vms/r'),
    })
  })
})
