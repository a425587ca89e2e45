import { execFileSync } from 'node:child_process'
import {
  chmodSync,
  mkdirSync,
  mkdtempSync,
  rmSync,
  statSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
} from 'node:fs'
import { constants, tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { Channel } from '../../src/bdev/channel.ts'
import { FileChannel } from '../../src/bdev/drivers/file-channel.ts'
import { networkIdentity } from '../../src/bdev/drivers/file-identity.ts'
import { drivers } from '../../src/bdev/drivers/index.ts'
import { IoType } from '../../src/bdev/io.ts'
import { bdevMethods } from '../../src/bdev/methods.ts'
import { ReactorBdevs } from '../../src/bdev/reactor-bdevs.ts'
import { BdevRegistry } from '../../src/bdev/registry.ts'
import { logSettings } from '../../src/core/log.ts'
import { parseMounts } from '../../src/core/mounts.ts'
import { Opcode } from '../../src/spec/io-uring.ts'
import { Status } from '../../src/spec/nvme-status.ts'
import type { RingHandler, Uring } from '../../src/sys/uring.ts'
import { doIo, type IoRequest, PendingIo } from '../support/io.ts'
import { LocalReactorGroup } from '../support/reactor.ts'

let reactors: LocalReactorGroup
let bdevs: BdevRegistry
let local: ReactorBdevs
let directory: string
let path: string
let lines: string[]

beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), 'qpair-file-'))
  path = join(directory, 'image')
  writeFileSync(path, '')
  truncateSync(path, 1 << 20)
  reactors = new LocalReactorGroup({ ring: true, time: 'real' })
  bdevs = new BdevRegistry(reactors, drivers)
  local = new ReactorBdevs(reactors.reactors[0]!, drivers)
  lines = []
  logSettings.write = line => void lines.push(line)
})

afterEach(async () => {
  for (const { name } of bdevs.list()) await reactors.run(bdevs.remove(name))
  reactors.close()
  rmSync(directory, { recursive: true })
})

/** Calls a method as the server does, after its parameters were checked. */
async function call(name: string, params: unknown): Promise<unknown> {
  const found = bdevMethods.find(one => one.name === name)!
  const run = found.run as (params: unknown, context: { bdevs: BdevRegistry }) => unknown
  return reactors.run(Promise.resolve(run(found.params.parse(params), { bdevs })))
}

const create = (params: object = {}): Promise<unknown> =>
  call('bdev_aio_create', { name: 'f0', filename: path, ...params })
const run = (request: IoRequest) => doIo(reactors, local.open('f0'), request)

describe('bdev_aio_create', () => {
  it('takes a file as it is: 512-byte blocks, its size, its name', async () => {
    expect(await create()).toBe('f0')
    expect(await call('bdev_get_bdevs', { name: 'f0' })).toMatchObject([
      {
        name: 'f0',
        product_name: 'AIO disk',
        block_size: 512,
        num_blocks: 2048,
        claimed: false,
        supported_io_types: { read: true, write: true, unmap: true, write_zeroes: true, compare: true },
        driver_specific: {
          aio: {
            filename: path,
            block_size_override: false,
            readonly: false,
            fallocate: true,
            nowait: false,
          },
        },
      },
    ])
  })

  it('refuses a file that does not exist, and says how to make one', async () => {
    await expect(create({ filename: `${path}2` })).rejects.toMatchObject({
      code: 'ENOENT',
      message: `f0 cannot open ${path}2: ENOENT: make it first, for example with truncate -s 10G ${path}2`,
    })
  })

  it('says where a relative path begins that leads nowhere', async () => {
    await expect(create({ filename: 'nowhere.raw' })).rejects.toMatchObject({
      message: expect.stringMatching(`it begins in ${process.cwd()}, .* and ./nowhere.raw where you are$`),
    })
  })

  it('refuses a directory', async () => {
    mkdirSync(join(directory, 'sub'))
    await expect(create({ filename: join(directory, 'sub') })).rejects.toMatchObject({
      code: 'EINVAL',
      message: expect.stringContaining('is a directory: name a file'),
    })
  })

  it('refuses a block size that does not divide the size, and gives both and the command', async () => {
    truncateSync(path, 1_000_448)
    await expect(create({ block_size: 4096 })).rejects.toMatchObject({
      code: 'EINVAL',
      message:
        `${path} has 1000448 bytes, not a whole number of blocks of 4096: use truncate -s 1003520 ${path}, ` +
        'or a block_size of 512',
    })
  })

  it.each([0, 511, 513, 1024 * 1024])('refuses an empty file or a block size of %d', async block_size => {
    if (block_size === 0) truncateSync(path, 0)
    await expect(create({ block_size })).rejects.toMatchObject({ code: 'EINVAL' })
  })

  // Root may write to anything but a file system that is mounted read only, or a file that is made immutable.
  it.skipIf(process.getuid!() === 0)(
    'refuses a file that it may not write to, unless it is to be read',
    async () => {
      chmodSync(path, 0o400)
      await expect(create()).rejects.toMatchObject({
        code: 'EACCES',
        message: expect.stringContaining('if it is only to be read, use readonly: true'),
      })
      await create({ readonly: true })
    },
  )

  it('refuses to change a device that is read only', async () => {
    await create({ readonly: true })
    for (const type of [IoType.WRITE, IoType.WRITE_ZEROES, IoType.UNMAP]) {
      expect((await run({ type, blockCount: 8 })).status).toBe(Status.NAMESPACE_WRITE_PROTECTED)
    }
    expect((await run({ type: IoType.READ, blockCount: 8 })).status).toBe(Status.SUCCESS)
  })

  it('gives a file one UUID by whatever name it is called, and another file another', async () => {
    symlinkSync(path, join(directory, 'link'))
    await create({ filename: join(directory, 'link') })
    await expect(create({ name: 'f1' })).rejects.toMatchObject({
      code: 'EEXIST',
      message: expect.stringContaining('f1 would have the UUID of f0'),
    })
    writeFileSync(join(directory, 'other'), Buffer.alloc(512))
    await create({ name: 'f2', filename: join(directory, 'other') })
    expect(bdevs.get('f2').uuid).not.toBe(bdevs.get('f0').uuid)
    const config = bdevs.config()
    expect(config[0]).toEqual({
      method: 'bdev_aio_create',
      params: { name: 'f0', filename: join(directory, 'link'), uuid: bdevs.get('f0').uuid },
    })
  })
})

describe('a file', () => {
  it('gives space back when blocks are unmapped', async () => {
    await create()
    const data = new Uint8Array(1 << 20).fill(7)
    await run({ type: IoType.WRITE, blockCount: 2048, data, fua: true })
    const before = statSync(path).blocks
    await run({ type: IoType.UNMAP, blockCount: 2048 })
    expect(statSync(path)).toMatchObject({ size: 1 << 20 })
    expect(before - statSync(path).blocks).toBeGreaterThanOrEqual(2048)
  })

  it('that was made shorter by somebody fails the reads of what is gone, and says so', async () => {
    await create()
    truncateSync(path, 512 * 1024)
    expect((await run({ type: IoType.READ, firstBlock: 1020, blockCount: 8 })).status).toBe(
      Status.UNRECOVERED_READ_ERROR,
    )
    expect(lines.join('')).toContain(
      `f0: read of 8 blocks at block 1020 failed: the file ends at byte 524288`,
    )
    expect(lines.join('')).toContain(path)
    expect((await run({ type: IoType.READ, firstBlock: 1016, blockCount: 8 })).status).toBe(Status.SUCCESS)
  })

  it('on a full file system fails writes with Capacity Exceeded, and names the remedy', async context => {
    const mount = join(directory, 'full')
    mkdirSync(mount)
    try {
      execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=64k', 'tmpfs', mount], { stdio: 'ignore' })
    } catch {
      return context.skip('it needs to mount a small file system, as root')
    }
    try {
      const filename = join(mount, 'image')
      writeFileSync(filename, '')
      truncateSync(filename, 1 << 20)
      await create({ filename })
      const data = new Uint8Array(1 << 20).fill(1)
      expect((await run({ type: IoType.WRITE, blockCount: 2048, data })).status).toBe(
        Status.CAPACITY_EXCEEDED,
      )
      expect(lines.join('')).toContain('ENOSPC, free space on its file system')
      await reactors.run(bdevs.remove('f0'))
    } finally {
      execFileSync('umount', [mount])
    }
  })

  it('tells the reactor what its ring may have handed to a worker thread, for as long as it is outstanding', async () => {
    await create()
    const reactor = reactors.reactors[0]!
    const channel = local.open('f0')
    const counts: number[] = []
    for (const type of [IoType.READ, IoType.WRITE, IoType.UNMAP, IoType.FLUSH]) {
      const before = reactor.offloaded
      const pending = new PendingIo(channel, { type, blockCount: type === IoType.FLUSH ? 0 : 1 })
      counts.push(reactor.offloaded - before)
      await reactors.until(() => pending.isDone)
      expect(pending.status).toBe(Status.SUCCESS)
      expect(reactor.offloaded).toBe(before)
      pending.free()
    }
    expect(counts).toEqual([0, 1, 1, 1])
  })

  it('takes over a new size when it is rescanned', async () => {
    await create()
    truncateSync(path, 2 << 20)
    expect(await call('bdev_aio_rescan', { name: 'f0' })).toBe(true)
    expect(bdevs.get('f0').blockCount).toBe(4096)
    await expect(call('bdev_uring_rescan', { name: 'f0' })).rejects.toMatchObject({ code: 'ENODEV' })
  })

  it('needs io_uring, and says so on a reactor without it', async () => {
    const plain = new LocalReactorGroup()
    const others = new BdevRegistry(plain, drivers)
    const bare = new ReactorBdevs(plain.reactors[0]!, drivers)
    await others.create('uring', 'u0', { filename: path })
    expect(() => bare.open('u0')).toThrow('u0 needs io_uring and reactor 0 has none')
    await plain.run(others.remove('u0'))
    plain.close()
  })
})

describe('networkIdentity', () => {
  const MOUNTS = [
    '21 1 254:0 / / rw - ext4 /dev/vda rw',
    '40 21 0:52 /images /srv/a rw,relatime shared:9 - nfs4 filer:/export rw,vers=4.2',
    '41 21 0:52 / /srv/b rw,relatime - nfs filer:/export rw',
  ].join('\n')

  it('is the same wherever the export is mounted', () => {
    const expected = ['nfs', 'filer:/export', '/images/disk0']
    expect(networkIdentity(parseMounts(MOUNTS), '0:52', '/srv/a/disk0')).toEqual(expected)
    expect(networkIdentity(parseMounts(MOUNTS), '0:52', '/srv/b/images/disk0')).toEqual(expected)
  })

  it('is unknown for a local file', () => {
    expect(networkIdentity(parseMounts(MOUNTS), '254:0', '/var/disk0')).toBeUndefined()
  })
})

describe('a file system without support for a flush', () => {
  it('fails it, and zeroes nothing in its place', async () => {
    await create()
    const prepared: number[] = []
    const handlers: RingHandler[] = []
    const ring = {
      register: (handler: RingHandler) => handlers.push(handler),
      unregister() {},
      prepare: (opcode: number) => void prepared.push(opcode),
    } as unknown as Uring
    const reactor = reactors.reactors[0]!
    const info = local.find('f0')!
    const channel = new Channel(info, reactor, new FileChannel(info, reactor, ring))
    // The slot of the first is used again by the second.
    const zeroing = new PendingIo(channel, { type: IoType.WRITE_ZEROES, blockCount: 8 })
    handlers[0]!.complete(0, 0)
    await reactors.until(() => zeroing.isDone)
    const flush = new PendingIo(channel, { type: IoType.FLUSH })
    handlers[0]!.complete(-constants.errno.EOPNOTSUPP, 0)
    await reactors.until(() => flush.isDone || prepared.length > 2)
    expect(prepared).toEqual([Opcode.FALLOCATE, Opcode.FSYNC])
    expect([zeroing.statuses, flush.statuses]).toEqual([[Status.SUCCESS], [Status.INVALID_OPCODE]])
    for (const io of [zeroing, flush]) io.free()
  })
})
