import {
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { Storage } from '../support.ts'

const MIB = 2 ** 20
let storage: Storage
beforeEach(async () => {
  storage = new Storage()
  await storage.directoryPool('vms')
})
afterEach(() => storage.close())

describe('changing volumes', () => {
  beforeEach(() => storage.create('a'))

  it('renames and deletes', async () => {
    await storage.call('volume_rename', { volume: 'a', name: 'b' })
    expect(await storage.names()).toEqual(['b'])
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
    await expect(storage.create('link')).rejects.toMatchObject({ code: 'EEXIST' })
    expect(readFileSync(storage.path('vms/theirs'), 'utf8')).toBe('precious')
    expect(await storage.names()).toEqual(['a', 'theirs'])
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
    expect(await storage.names()).toEqual(['a'])
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
    expect(await storage.names()).toEqual(['b'])
  })

  it('grows one that is open, and the bdev has the new size', async () => {
    await storage.open('a')
    await storage.call('volume_resize', { volume: 'a', capacity: '36M', delta: true })
    expect(storage.bdevs.get('b0').blockCount * 512).toBe(100 * MIB)
    expect(statSync(storage.path('vms/a')).size).toBe(100 * MIB)
  })

  it('leaves alone what a symbolic link leads to, unless that is said, and deletes only the link', async () => {
    const outside = storage.path('outside')
    writeFileSync(outside, Buffer.alloc(MIB, 0x11))
    symlinkSync(outside, storage.path('vms/link'))
    await storage.call('pool_refresh', { pool: 'vms' })
    expect(await storage.names()).toEqual(['a', 'link'])
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
    expect([existsSync(outside), await storage.names()]).toEqual([true, ['a']])
  })

  it('knows what stands on a volume also by a link to it', async () => {
    symlinkSync(storage.path('vms/a'), storage.path('vms/link'))
    await storage.call('pool_refresh', { pool: 'vms' })
    await storage.create('top', { format: 'qcow2', backing: 'link' })
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
    await storage.open('a')
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
    expect(await storage.names()).toEqual(['a'])
  })

  it('does not take a volume from under those that are made of it', async () => {
    await storage.create('top', { format: 'qcow2', backing: 'a' })
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
    await storage.create('q', { format: 'qcow2', features: { cluster_size: '4K' } })
    expect(await storage.job('volume_wipe', { volume: 'q' })).toMatchObject({ state: 'completed' })
    expect(await storage.info('q')).toMatchObject({ format: 'qcow2', capacity: 64 * MIB })
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
    await storage.create('q', { format: 'qcow2' })
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
    expect(await storage.info('q')).toMatchObject({ capacity: 64 * MIB, snapshots: 2 })
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
    expect(await storage.names()).toEqual(['a', 'b'])
  })
})
