import {
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
} from 'node:fs'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { checkImage } from '../../src/bdev/drivers/qcow2/image.ts'
import type { PoolUsage } from '../../src/libvirt/pool-xml.ts'
import type { PoolBackend, PoolBackendType } from '../../src/volume/pool.ts'
import { checkNoteName, partialName, partialStateName } from '../../src/volume/volume-name.ts'
import { directoryXml, Storage } from './support.ts'

let storage: Storage
beforeEach(() => {
  storage = new Storage()
})
afterEach(() => storage.close())

const define = (name: string, path = storage.path(name)): Promise<unknown> =>
  storage.call('pool_define', { xml: directoryXml(name, path) })

interface Row {
  readonly name: string
  readonly state: string
  readonly autostart: boolean
  readonly persistent: boolean
}
const rows = async (params: object = {}): Promise<Row[]> => storage.call<Row[]>('pool_list', params)

describe('a pool', () => {
  it('is defined, built, started, stopped, deleted and undefined', async () => {
    await define('vms')
    expect(await rows()).toMatchObject([{ name: 'vms', state: 'inactive', persistent: true }])
    await storage.call('pool_build', { pool: 'vms' })
    expect(statSync(storage.path('vms')).mode & 0o777).toBe(0o711)
    await storage.call('pool_start', { pool: 'vms' })
    expect(await rows()).toMatchObject([{ state: 'running', volumes: 0, target: storage.path('vms') }])
    await storage.call('pool_destroy', { pool: 'vms' })
    await storage.call('pool_delete', { pool: 'vms' })
    expect(existsSync(storage.path('vms'))).toBe(false)
    await storage.call('pool_undefine', { pool: 'vms' })
    expect(await rows()).toEqual([])
  })

  it('has the owner and mode of its document', async () => {
    const permissions = '<permissions><mode>0750</mode><owner>107</owner><group>108</group></permissions>'
    const xml = directoryXml('vms', storage.path('vms')).replace('</path>', `</path>${permissions}`)
    await storage.call('pool_define', { xml })
    if (process.getuid?.() !== 0) return
    await storage.call('pool_build', { pool: 'vms' })
    const { mode, uid, gid } = statSync(storage.path('vms'))
    expect([mode & 0o777, uid, gid]).toEqual([0o750, 107, 108])
  })

  it('cannot be started without its directory, and says what makes it', async () => {
    await define('vms')
    await expect(storage.call('pool_start', { pool: 'vms' })).rejects.toMatchObject({
      code: 'ENOENT',
      message: expect.stringContaining('qpair pool build vms makes it, or this command with --build'),
    })
    expect(await rows()).toMatchObject([{ state: 'inactive' }])
  })

  it('is not formatted where there is nothing to format', async () => {
    await define('vms')
    await expect(storage.call('pool_build', { pool: 'vms', overwrite: true })).rejects.toThrow(
      'pool vms is a directory, which is not formatted',
    )
  })

  it('is not stopped, built, changed or forgotten in the wrong state', async () => {
    await storage.directoryPool('vms')
    await expect(storage.call('pool_start', { pool: 'vms' })).rejects.toMatchObject({ code: 'EALREADY' })
    for (const method of ['pool_build', 'pool_delete', 'pool_undefine']) {
      await expect(storage.call(method, { pool: 'vms' })).rejects.toMatchObject({ code: 'EBUSY' })
    }
    await expect(define('vms')).rejects.toThrow('pool vms is active and cannot be defined anew')
    await storage.call('pool_destroy', { pool: 'vms' })
    await expect(storage.call('pool_destroy', { pool: 'vms' })).rejects.toMatchObject({ code: 'EINVAL' })
    await expect(storage.call('pool_refresh', { pool: 'vms' })).rejects.toThrow('qpair pool start vms')
  })

  it('is found by its UUID, and named when it is not there', async () => {
    await define('vms')
    const [{ uuid }] = (await rows()) as unknown as [{ uuid: string }]
    expect(await storage.call('pool_info', { pool: uuid.toUpperCase() })).toMatchObject({ name: 'vms' })
    await expect(storage.call('pool_info', { pool: 'nix' })).rejects.toThrow(
      'there is no pool nix: there are vms',
    )
  })

  it('keeps its UUID when its document changes, and takes no other', async () => {
    await define('vms')
    const before = (await rows())[0]!
    await define('vms', storage.path('elsewhere'))
    expect((await rows())[0]).toEqual({ ...before, target: storage.path('elsewhere') })
    const other = '<uuid>2d2d3f0a-9a2b-4c55-8b1e-6a7f1c3c9d10</uuid></pool>'
    const xml = directoryXml('vms', storage.path('vms')).replace('</pool>', other)
    await expect(storage.call('pool_define', { xml })).rejects.toThrow(/undefine that one/)
  })

  it('is not forgotten or changed while it is being started', async () => {
    await define('vms')
    await storage.call('pool_build', { pool: 'vms' })
    const starting = storage.pools.start('vms')
    expect(() => storage.pools.undefine('vms')).toThrow('something is being done to pool vms')
    await expect(storage.pools.define(directoryXml('vms', '/elsewhere'))).rejects.toMatchObject({
      code: 'EBUSY',
    })
    await starting
    expect(await rows()).toMatchObject([{ state: 'running' }])
  })

  it('does not share its directory with another, also by a link to it', async () => {
    await define('vms')
    mkdirSync(storage.path('vms'))
    symlinkSync(storage.path('vms'), storage.path('link'))
    for (const path of [storage.path('vms'), storage.path('link')]) {
      await expect(define('isos', path)).rejects.toMatchObject({
        code: 'EEXIST',
        message: expect.stringContaining(
          `Storage source conflict with pool: 'vms', which has the directory ${storage.path('vms')} already`,
        ),
      })
    }
    await define('vms')
  })

  it('that is created is gone when it is stopped, and is not saved', async () => {
    const xml = directoryXml('scratch', storage.path('scratch'))
    await storage.call('pool_create', { xml, build: true })
    expect(await rows()).toMatchObject([{ name: 'scratch', state: 'running', persistent: false }])
    expect(storage.pools.config()).toEqual([])
    await expect(storage.call('pool_autostart', { pool: 'scratch' })).rejects.toThrow('transient')
    await storage.call('pool_destroy', { pool: 'scratch' })
    expect(await rows()).toEqual([])
  })

  it('that cannot be created leaves nothing', async () => {
    const xml = directoryXml('scratch', storage.path('nix'))
    await expect(storage.call('pool_create', { xml })).rejects.toMatchObject({ code: 'ENOENT' })
    expect(await rows()).toEqual([])
  })

  it('is listed by state, kind and type', async () => {
    await storage.directoryPool('a')
    await define('b')
    const names = async (params: object): Promise<string[]> => (await rows(params)).map(({ name }) => name)
    expect(await names({ active: true })).toEqual(['a'])
    expect(await names({ inactive: true })).toEqual(['b'])
    expect(await names({ transient: true })).toEqual([])
    expect(await names({ type: 'dir', persistent: true })).toEqual(['a', 'b'])
  })

  it('has its usage in its document while it runs', async () => {
    await define('vms')
    expect(await storage.call('pool_dumpxml', { pool: 'vms' })).not.toContain('<capacity')
    await storage.call('pool_start', { pool: 'vms', build: true })
    expect(await storage.call('pool_dumpxml', { pool: 'vms' })).toMatch(/<capacity unit='bytes'>\d+</)
    expect(JSON.stringify(storage.pools.config())).not.toContain('<capacity')
  })

  it('clears up what this machine was making when it was interrupted, and nothing else', async () => {
    await storage.directoryPool('vms')
    const left = storage.path('vms', partialName('half'))
    const resumable = storage.path('vms', partialName('later'))
    const foreign = storage.path('vms', '.other.00000000.partial')
    for (const path of [left, resumable, foreign, storage.path('vms', partialStateName('later'))]) {
      writeFileSync(path, '')
    }
    await storage.call('pool_destroy', { pool: 'vms' })
    await storage.call('pool_start', { pool: 'vms' })
    expect([left, resumable, foreign].map(path => existsSync(path))).toEqual([false, true, true])
    expect(await storage.call('volume_list', { pool: 'vms' })).toEqual([])
  })
})

describe('an interruption', () => {
  it.each([
    ['in the file', true],
    ['behind its end', false],
  ])(
    'that left an image with clusters %s that nobody has is mended when the pool starts',
    async (_, isInFile) => {
      await storage.directoryPool('vms')
      await storage.call('volume_create', { pool: 'vms', name: 'q', capacity: '1M', format: 'qcow2' })
      // A cluster behind the end that is counted: what a snapshot that was not finished leaves.
      const image = storage.path('vms/q')
      const { clusterSize, fileSizeBytes } = { clusterSize: 65536, fileSizeBytes: statSync(image).size }
      const at = Math.ceil(fileSizeBytes / clusterSize)
      truncateSync(image, (at + (isInFile ? 1 : 0)) * clusterSize)
      const bytes = readFileSync(image)
      const table = Number(bytes.readBigUInt64BE(48))
      bytes.writeUInt16BE(1, Number(bytes.readBigUInt64BE(table)) + 2 * at)
      writeFileSync(image, bytes)
      expect(await checkImage(image)).toMatchObject({ leaks: 1 })
      writeFileSync(storage.path('vms', checkNoteName('q')), '')
      await storage.call('pool_destroy', { pool: 'vms' })
      await storage.call('pool_start', { pool: 'vms' })
      expect(await checkImage(image)).toMatchObject({ leaks: 0 })
      expect(readdirSync(storage.path('vms'))).toEqual(['q'])
    },
  )

  it('of what is damaged as well gives nothing away that a table may have had which cannot be followed', async () => {
    await storage.directoryPool('vms')
    const preallocated = { capacity: '1M', format: 'qcow2', preallocation: 'metadata' }
    await storage.job('volume_create', { pool: 'vms', name: 'q', ...preallocated })
    const image = storage.path('vms/q')
    const bytes = readFileSync(image)
    // The entry of the first level leads to nowhere: the second, and all of the disk's clusters, seem to have nobody.
    bytes.writeBigUInt64BE(2n ** 40n, Number(bytes.readBigUInt64BE(40)))
    writeFileSync(image, bytes)
    writeFileSync(storage.path('vms', checkNoteName('q')), '')
    const { leaks } = await checkImage(image)
    expect(leaks).toBeGreaterThanOrEqual(16)
    await storage.call('pool_destroy', { pool: 'vms' })
    await storage.call('pool_start', { pool: 'vms' })
    expect(await checkImage(image)).toMatchObject({ leaks })
  })

  it('of renaming a volume leaves it with its snapshots', async () => {
    await storage.directoryPool('vms')
    const snapshots = storage.path('vms/.snapshots')
    mkdirSync(join(snapshots, 'old'), { recursive: true })
    writeFileSync(join(snapshots, 'old/one'), 'x')
    // The volume has its new name, and the snapshots the old one; one of another volume was being made.
    writeFileSync(storage.path('vms/new'), 'y')
    symlinkSync('new', join(snapshots, partialName('old')))
    mkdirSync(join(snapshots, 'other'))
    writeFileSync(join(snapshots, 'other', partialName('two')), 'z')
    await storage.call('pool_destroy', { pool: 'vms' })
    await storage.call('pool_start', { pool: 'vms' })
    expect(await storage.call('volume_snapshot_list', { volume: 'new' })).toMatchObject([{ name: 'one' }])
    expect(readdirSync(snapshots)).toEqual(['new'])
  })
})

describe('what is saved', () => {
  it('brings the pools back, those that start with the daemon running', async () => {
    await storage.directoryPool('a')
    await storage.call('pool_autostart', { pool: 'a' })
    await storage.directoryPool('b')
    await storage.call('pool_set_watermarks', { pool: 'b', levels: [99, 50] })
    const saved = storage.pools.config()

    const again = new Storage({ isStarting: true })
    for (const { method, params } of saved) await again.call(method, params)
    again.pools.daemonIsUp()
    expect(await again.call('pool_list')).toMatchObject([
      { name: 'a', state: 'running', autostart: true },
      { name: 'b', state: 'inactive', autostart: false, watermarks: [50, 99] },
    ])
    expect(again.pools.config()).toEqual(saved)
    again.close()
  })

  it('brings a pool back whose directory has gone: inactive, and the log says why', async () => {
    const again = new Storage({ isStarting: true })
    await again.call('pool_define', { xml: directoryXml('a', again.path('a')) })
    await again.call('pool_autostart', { pool: 'a' })
    again.pools.daemonIsUp()
    expect(await again.call('pool_list')).toMatchObject([{ name: 'a', state: 'inactive', autostart: true }])
    expect(again.logged.join('')).toMatch(/ERROR volume: pool a could not be started: .* stays defined/)
    again.close()
  })

  it('is not started by pool_autostart while the daemon runs', async () => {
    mkdirSync(storage.path('a'))
    await define('a')
    await storage.call('pool_autostart', { pool: 'a' })
    expect(await rows()).toMatchObject([{ state: 'inactive', autostart: true }])
    await storage.call('pool_autostart', { pool: 'a', disable: true })
    expect(await rows()).toMatchObject([{ autostart: false }])
  })
})

/** A pool as full as a test wants it. */
function gauge(usage: PoolUsage): PoolBackendType {
  const backend: PoolBackend = {
    start: async () => {},
    stop: async () => {},
    refresh: async () => ({ ...usage, volumes: [] }),
    usage: async () => ({ ...usage }),
    opening: () => ({ method: 'bdev_null_create' }),
    volumes: { reasons: { create: 'it is only a gauge' } },
  }
  return { type: 'dir', summary: 'A gauge.', create: () => backend }
}

describe('watermarks', () => {
  const usage = { capacityBytes: 1000, allocationBytes: 0, availableBytes: 1000 }
  let full: Storage
  beforeEach(async () => {
    usage.availableBytes = 1000
    full = new Storage({ types: [gauge(usage)] })
    await full.call('pool_create', { xml: directoryXml('thin', '/nowhere') })
  })
  afterEach(() => full.close())

  it('are told once when they are reached, by log, notification and list', async () => {
    for (const available of [300, 190, 180, 40]) {
      usage.availableBytes = available
      await full.pools.checkUsage()
    }
    expect(full.notified).toEqual(['pool_usage thin 81', 'pool_usage thin 96'])
    const told = full.logged.filter(line => line.includes('% full')).map(line => line.split(' ')[1])
    expect(told).toEqual(['WARNING', 'ERROR'])
    expect(await full.call('pool_list')).toMatchObject([{ used_percent: 96, watermark: 95 }])
  })

  it('are told again after the pool had room', async () => {
    for (const available of [100, 900, 100]) {
      usage.availableBytes = available
      await full.pools.checkUsage()
    }
    expect(full.notified).toEqual(['pool_usage thin 90', 'pool_usage thin 90'])
  })

  it('can be set, also to none', async () => {
    usage.availableBytes = 10
    await full.call('pool_set_watermarks', { pool: 'thin', levels: [] })
    await full.pools.checkUsage()
    expect(full.notified).toEqual([])
  })

  it('are not for pools whose volumes have all of their room already', async () => {
    const gaugeType = gauge({ capacityBytes: 1000, allocationBytes: 1000, availableBytes: 0 })
    const create: PoolBackendType['create'] = (...args) => {
      const { usage: _, ...backend } = gaugeType.create(...args)
      return backend
    }
    const units = new Storage({ types: [{ ...gaugeType, create }] })
    await units.call('pool_create', { xml: directoryXml('units', '/nowhere') })
    expect(units.notified).toEqual([])
    expect(units.logged.filter(line => line.includes('% full'))).toEqual([])
    expect(await units.call('pool_list')).toMatchObject([{ used_percent: 100, watermark: 0 }])
    await units.close()
  })

  it('of a type without an operation refuses it by name, with the reason', async () => {
    await expect(
      full.call('volume_create', { pool: 'thin', name: 'a', capacity: '1M' }),
    ).rejects.toMatchObject({
      code: 'ENOTSUP',
      message: 'pool thin is of type dir, whose volumes cannot create: it is only a gauge',
    })
  })
})

describe('pool_define_as', () => {
  it('speaks of the words, not of a document that nobody wrote', async () => {
    await expect(storage.call('pool_define_as', { name: 'd', type: 'dir' })).rejects.toMatchObject({
      code: 'EINVAL',
      message: expect.stringMatching(
        /^pool d needs other words, such as --target .* has a <path> in its <target>$/,
      ),
    })
  })

  it('takes words in the order of virsh, with - for those that are not there', async () => {
    const words = { name: 'v', type: 'dir', source_host: '-', source_path: '-', target: storage.path('v') }
    await storage.call('pool_define_as', words)
    expect(await storage.call('pool_dumpxml', { pool: 'v' })).toContain(`<path>${storage.path('v')}</path>`)
  })

  it('says what a type needs', async () => {
    await expect(
      storage.call('pool_define_as', { name: 'n', type: 'netfs', source_host: 'h', target: '/mnt' }),
    ).rejects.toThrow(/netfs/)
  })

  it('makes the document of a mounted pool', async () => {
    const words = { name: 'n', type: 'netfs', source_host: 'h', source_path: '/x', target: '/mnt/n' }
    await storage.call('pool_define_as', { ...words, source_format: 'nfs', source_protocol_ver: 4 })
    const xml = await storage.call<string>('pool_dumpxml', { pool: 'n' })
    expect(xml).toContain("<host name='h'/>")
    expect(xml).toContain("<protocol ver='4'/>")
  })
})

it('a directory that is gone does not stop the daemon from stopping its pool', async () => {
  await storage.directoryPool('a')
  rmSync(storage.path('a'), { recursive: true })
  await expect(storage.call('pool_refresh', { pool: 'a' })).rejects.toMatchObject({ code: 'ENOENT' })
  await storage.call('pool_destroy', { pool: 'a' })
  expect(await rows()).toMatchObject([{ state: 'inactive' }])
})
