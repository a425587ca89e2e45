import { copyFileSync, mkdirSync, openSync, readFileSync, renameSync, writeFileSync } from 'node:fs'
import { deflateRawSync } from 'node:zlib'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import {
  addBitmap,
  applySnapshot,
  checkImage,
  createImage,
  createSnapshot,
  deleteSnapshot,
  imageInfo,
  removeBitmap,
  renameBacking,
  resizeImage,
} from '../../../../src/bdev/drivers/qcow2/image.ts'
import { ImageHandle } from '../../../../src/bdev/drivers/qcow2/image-handle.ts'
import { Extents } from '../../../../src/bdev/extents.ts'
import { IoType } from '../../../../src/bdev/io.ts'
import { Prng } from '../../../../src/core/prng.ts'
import { Status } from '../../../../src/spec/nvme-status.ts'
import { Bench, Disk, torture } from './support.ts'

const KIB = 1024
const MIB = 1 << 20

let bench: Bench
beforeEach(() => {
  bench = new Bench(2)
})
afterEach(() => bench.close())

const filled = (size: number, value: number): Uint8Array => new Uint8Array(size).fill(value)

describe('bdev_qcow2_create', () => {
  it('describes what it is', async () => {
    await createImage(bench.path('q'), { sizeBytes: 3 * MIB })
    await bench.open('q')
    expect(bench.bdevs.get('q')).toMatchObject({
      product: 'QCOW2 disk',
      blockSize: 512,
      blockCount: 6144,
      writeCache: true,
      driverSpecific: {
        qcow2: { filename: bench.path('q'), cluster_size: 65536, version: 3, backing_files: [] },
      },
    })
  })

  it('refuses what is no image, and says so', async () => {
    writeFileSync(bench.path('raw'), Buffer.alloc(4096))
    await expect(bench.open('raw')).rejects.toMatchObject({
      code: 'EINVAL',
      message: expect.stringContaining('does not begin as a qcow2 image does (at byte 0)'),
    })
    mkdirSync(bench.path('directory'))
    await expect(bench.open('directory')).rejects.toMatchObject({
      message: expect.stringContaining('a directory'),
    })
    await expect(bench.open('nothing')).rejects.toMatchObject({ code: 'ENOENT' })
  })

  it('refuses an image that another device has, unless both only read', async () => {
    const image = bench.path('q')
    await createImage(image, { sizeBytes: MIB })
    await bench.open('q')
    const uuid = '11111111-1111-1111-1111-111111111111'
    const second = { name: 'second', filename: image, uuid }
    await expect(bench.call('bdev_qcow2_create', second)).rejects.toMatchObject({ code: 'EBUSY' })
    await expect(bench.call('bdev_qcow2_create', { ...second, read_only: true })).rejects.toMatchObject({
      code: 'EBUSY',
    })
    await bench.delete('q')
    await bench.open('q', { read_only: true })
    await bench.call('bdev_qcow2_create', { ...second, read_only: true })
    await expect(resizeImage(image, 2 * MIB)).rejects.toMatchObject({ code: 'EBUSY' })
  })

  it('changes nothing in an image that is read only', async () => {
    await createImage(bench.path('q'), { sizeBytes: MIB })
    const before = readFileSync(bench.path('q'))
    const disk = await bench.open('q', { read_only: true })
    expect(await disk.run(IoType.WRITE, 0, 512)).toBe(Status.NAMESPACE_WRITE_PROTECTED)
    expect(await disk.read(0, MIB)).toEqual(new Uint8Array(MIB))
    expect(await disk.flush()).toBe(Status.SUCCESS)
    await bench.delete('q')
    expect(readFileSync(bench.path('q')).equals(before)).toBe(true)
  })

  it('refuses a chain that comes back to itself, and formats and names that cannot be underneath', async () => {
    const [a, b] = [bench.path('a'), bench.path('b')]
    await createImage(a, { sizeBytes: MIB })
    await createImage(b, { backingFile: 'a', backingFormat: 'qcow2' })
    // The first one's header is made the second's: it then names itself.
    writeFileSync(a, readFileSync(b))
    await expect(bench.open('a')).rejects.toMatchObject({
      message: expect.stringContaining('rests on itself'),
    })
    await expect(bench.open('b')).rejects.toMatchObject({
      message: expect.stringContaining('rests on itself'),
    })
    const named = readFileSync(b)
    const at = named.indexOf('qcow2', 100)
    named.write('vmdk!', at)
    writeFileSync(b, named)
    await expect(bench.open('b')).rejects.toMatchObject({ code: 'ENOTSUP' })
  })

  it('does not take a guest at its word that a raw backing file is an image', async () => {
    await createImage(bench.path('base'), { sizeBytes: MIB })
    await createImage(bench.path('top'), { backingFile: 'base', backingFormat: 'qcow2' })
    const bytes = readFileSync(bench.path('top'))
    // Another type for the extension that tells the format: an unknown one, which is passed over.
    bytes.writeUInt32BE(0x12345678, bytes.indexOf(Buffer.from('e2792aca', 'hex')))
    writeFileSync(bench.path('top'), bytes)
    await expect(bench.open('top')).rejects.toMatchObject({
      message: expect.stringContaining('qemu-img rebase -u -b base -F qcow2'),
    })
  })

  it('mends an image that was not closed properly, and refuses one that is marked as corrupt', async () => {
    await createImage(bench.path('q'), { sizeBytes: MIB, clusterSize: 512, lazyRefcounts: true })
    const disk = await bench.open('q')
    await disk.write(0, filled(8192, 7))
    await bench.delete('q')
    const bytes = readFileSync(bench.path('q'))
    // As a program with lazy refcounts leaves it when it is killed: counts of zero, and the dirty bit.
    const block = Number(bytes.readBigUInt64BE(512))
    bytes.fill(0, block + 16, block + 512)
    bytes.writeUInt32BE(1, 76)
    writeFileSync(bench.path('q'), bytes)
    expect((await checkImage(bench.path('q'))).corruptions).toBeGreaterThan(0)
    const again = await bench.open('q')
    expect(bench.lines.join('')).toContain('was not closed properly')
    expect(await again.read(0, 8192)).toEqual(filled(8192, 7))
    await bench.delete('q')
    expect(await checkImage(bench.path('q'))).toMatchObject({ leaks: 0, corruptions: 0 })
    expect((await imageInfo(bench.path('q'))).isDirty).toBe(false)

    bytes.writeUInt32BE(2, 76)
    writeFileSync(bench.path('q'), bytes)
    await expect(bench.open('q')).rejects.toMatchObject({
      message: expect.stringContaining('marked as corrupt'),
    })
    await bench.open('q', { read_only: true })
  })
})

describe('a qcow2 device', () => {
  it('is one disk on two reactors, with requests of any number of segments', async () => {
    await createImage(bench.path('q'), { sizeBytes: 8 * MIB, clusterSize: 4096 })
    const first = await bench.open('q')
    const second = new Disk(bench, bench.local[1]!.open('q'))
    const model = new Uint8Array(8 * MIB)
    await torture(second, model, new Prng(1), 20)
    await torture(first, model, new Prng(2), 20)
    const pending = second.start(IoType.READ, 0, 2 * MIB, undefined, { segments: 900 })
    await bench.reactors.until(() => pending.isDone)
    expect(Buffer.compare(pending.data, model.subarray(0, 2 * MIB))).toBe(0)
    expect(await second.flush()).toBe(Status.SUCCESS)
    await bench.delete('q')
    expect(await checkImage(bench.path('q'))).toMatchObject({ leaks: 0, corruptions: 0 })
  })

  it('works with tables that do not fit into its cache', async () => {
    // Each table of 512 bytes maps 32 KiB, and the cache has a few hundred of them.
    await createImage(bench.path('q'), { sizeBytes: 256 * MIB, clusterSize: 512, refcountBits: 64 })
    const disk = await bench.open('q', { cache_size_mb: 1 })
    for (let i = 0; i < 3000; i++) await disk.write(i * 80 * KIB, filled(512, i))
    for (let i = 0; i < 3000; i += 7) expect((await disk.read(i * 80 * KIB, 512))[0]).toBe(i & 0xff)
    await bench.delete('q')
    expect(await checkImage(bench.path('q'))).toMatchObject({ leaks: 0, corruptions: 0 })
  }, 120_000)

  it('gives room back that is unmapped, and keeps it when told to', async () => {
    for (const discard of [true, false]) {
      const name = `q-${discard}`
      await createImage(bench.path(name), { sizeBytes: 8 * MIB })
      const disk = await bench.open(name, { discard })
      await disk.write(0, filled(4 * MIB, 1))
      expect(await disk.run(IoType.UNMAP, 0, 4 * MIB)).toBe(Status.SUCCESS)
      await disk.flush()
      await bench.delete(name)
      const { allocatedBytes } = await imageInfo(bench.path(name))
      if (discard) expect(allocatedBytes).toBeLessThan(MIB)
      else expect(allocatedBytes).toBeGreaterThanOrEqual(4 * MIB)
    }
  })

  it('tells of its holes', async () => {
    await createImage(bench.path('q'), { sizeBytes: 8 * MIB })
    const disk = await bench.open('q')
    await disk.write(MIB, filled(64 * KIB, 1))
    const extents = new Extents(8)
    disk.channel.extents(0, 16384, extents)
    expect([...extents.lengths.subarray(0, extents.count)]).toEqual([2048, 128, 14208])
    expect([...extents.states.subarray(0, extents.count)]).toEqual([3, 0, 3])
  })

  it('reads compressed clusters, and fails one that cannot be decompressed', async () => {
    await createImage(bench.path('q'), { sizeBytes: MIB, clusterSize: 4096, preallocation: 'metadata' })
    const data = new Prng(3).fill(new Uint8Array(4096)).fill(5, 0, 3000)
    const packed = deflateRawSync(data, { windowBits: 12 })
    const bytes = readFileSync(bench.path('q'))
    const l1 = Number(bytes.readBigUInt64BE(40))
    const l2 = Number(bytes.readBigUInt64BE(l1) & 0x00ff_ffff_ffff_fe00n)
    const first = Number(bytes.readBigUInt64BE(l2) & 0x00ff_ffff_ffff_fe00n)
    packed.copy(bytes, first + 100)
    const sectors = Math.ceil((100 + packed.length) / 512) - 1
    // Clusters of 4 KiB: 58 bits of offset. The second one has the place of the first and is cut short.
    bytes.writeBigUInt64BE((1n << 62n) | (BigInt(sectors) << 58n) | BigInt(first + 100), l2)
    bytes.writeBigUInt64BE((1n << 62n) | BigInt(first + 100), l2 + 8)
    writeFileSync(bench.path('q'), bytes)
    const disk = await bench.open('q')
    expect(await disk.run(IoType.READ, 4096, 512)).toBe(Status.UNRECOVERED_READ_ERROR)
    expect(await disk.read(0, 4096)).toEqual(data)
    expect(await disk.read(512, 1024)).toEqual(data.subarray(512, 1536))
    // What is written over it is kept, and so is what lies around.
    await disk.write(512, filled(512, 9))
    data.fill(9, 512, 1024)
    expect(await disk.read(0, 4096)).toEqual(data)
  })
})

describe('images', () => {
  it.each([
    [{ clusterSize: 1000 }, 'use a power of two from 512'],
    [{ clusterSize: 4096, extendedL2: true }, 'from 16384'],
    [{ refcountBits: 3 }, 'use 1, 2, 4'],
    [{ version: 2, refcountBits: 8 }, 'version 2 cannot'],
    [{ backingFile: 'x' }, 'of a format that is not told'],
    [{ sizeBytes: 2 ** 45, clusterSize: 512 }, 'use larger clusters'],
    [{ sizeBytes: -1 }, 'cannot have'],
  ] as const)('are refused for what cannot be: %j', async (options, message) => {
    await expect(createImage(bench.path('q'), { sizeBytes: MIB, ...options })).rejects.toThrow(message)
    await expect(imageInfo(bench.path('q'))).rejects.toMatchObject({ code: 'ENOENT' })
  })

  it('are never made over a file that is there', async () => {
    writeFileSync(bench.path('q'), 'precious')
    await expect(createImage(bench.path('q'), { sizeBytes: MIB })).rejects.toMatchObject({ code: 'EEXIST' })
    expect(readFileSync(bench.path('q'), 'utf8')).toBe('precious')
  })

  it('tell how far their preallocation is, and end it when told to', async () => {
    const told: number[] = []
    const options = { sizeBytes: 4 * MIB, preallocation: 'full' } as const
    await createImage(bench.path('q'), options, { onProgress: done => told.push(done) })
    expect(told).toEqual([MIB, 2 * MIB, 3 * MIB, 4 * MIB])
    const controller = new AbortController()
    const long = { onProgress: () => controller.abort(new Error('enough')), signal: controller.signal }
    await expect(createImage(bench.path('other'), options, long)).rejects.toThrow('enough')
    await expect(imageInfo(bench.path('other'))).rejects.toMatchObject({ code: 'ENOENT' })
  })

  it('have a size, a chain, snapshots and bitmaps to tell of', async () => {
    writeFileSync(bench.path('base'), Buffer.alloc(MIB))
    await createImage(bench.path('middle'), { backingFile: 'base', backingFormat: 'raw' })
    await createImage(bench.path('top'), {
      backingFile: 'middle',
      backingFormat: 'qcow2',
      sizeBytes: 2 * MIB,
    })
    await addBitmap(bench.path('top'), 'b', { granularityBytes: 4096 })
    await createSnapshot(bench.path('top'), 's')
    expect(await imageInfo(bench.path('top'))).toMatchObject({
      virtualSizeBytes: 2 * MIB,
      chain: [
        { path: bench.path('middle'), format: 'qcow2' },
        { path: bench.path('base'), format: 'raw' },
      ],
      snapshots: [{ id: '1', name: 's', diskSizeBytes: 2 * MIB }],
      bitmaps: [{ name: 'b', granularityBytes: 4096, isRecording: true, isInconsistent: false }],
    })
    expect((await imageInfo(bench.path('middle'))).virtualSizeBytes).toBe(MIB)
    await expect(createSnapshot(bench.path('top'), 's')).rejects.toMatchObject({ code: 'EEXIST' })
    await expect(deleteSnapshot(bench.path('top'), 'x')).rejects.toMatchObject({ code: 'ENOENT' })
  })

  it('have no snapshots when their refcounts cannot count them, and stay as they were', async () => {
    await createImage(bench.path('q'), { sizeBytes: MIB, refcountBits: 1 })
    const disk = await bench.open('q')
    await disk.write(0, filled(4096, 1))
    await expect(
      bench.call('bdev_qcow2_snapshot_create', { name: 'q', snapshot_name: 's' }),
    ).rejects.toMatchObject({
      code: 'ENOSPC',
    })
    expect(await disk.read(0, 4096)).toEqual(filled(4096, 1))
    await bench.delete('q')
    expect(await checkImage(bench.path('q'))).toMatchObject({ leaks: 0, corruptions: 0 })
    expect((await imageInfo(bench.path('q'))).isDirty).toBe(false)
  })

  it('say which file refuses to be written, and what to do', async () => {
    await createImage(bench.path('q'), { sizeBytes: MIB })
    const whole = await ImageHandle.peek(bench.path('q'))
    whole.close()
    const image = new ImageHandle({ fd: openSync('/dev/full', 'r+'), path: bench.path('q') }, whole.header)
    await expect(image.write(0, filled(512, 1))).rejects.toMatchObject({
      code: 'ENOSPC',
      message: `cannot write ${bench.path('q')}: ENOSPC; free room on its file system`,
    })
    image.close()
  })

  it('have bitmaps made and removed, also while they are devices', async () => {
    const path = bench.path('q')
    await createImage(path, { sizeBytes: 8 * MIB })
    await addBitmap(path, 'first')
    await expect(addBitmap(path, 'first')).rejects.toMatchObject({ code: 'EEXIST' })
    await expect(addBitmap(path, 'odd', { granularityBytes: 1000 })).rejects.toMatchObject({ code: 'EINVAL' })
    const disk = await bench.open('q')
    await bench.call('bdev_qcow2_bitmap_create', { name: 'q', bitmap_name: 'second', granularity: 4096 })
    await disk.write(MIB, filled(4096, 1))
    await bench.call('bdev_qcow2_bitmap_delete', { name: 'q', bitmap_name: 'first' })
    const gone = bench.call('bdev_qcow2_bitmap_delete', { name: 'q', bitmap_name: 'first' })
    await expect(gone).rejects.toMatchObject({ code: 'ENOENT' })
    expect(await disk.read(MIB, 4096)).toEqual(filled(4096, 1))
    await bench.delete('q')
    const second = { name: 'second', granularityBytes: 4096, isRecording: true, isInconsistent: false }
    expect((await imageInfo(path)).bitmaps).toEqual([second])
    expect(await checkImage(path)).toMatchObject({ leaks: 0, corruptions: 0 })
    await removeBitmap(path, 'second')
    expect((await imageInfo(path)).bitmaps).toEqual([])
    expect(await checkImage(path)).toMatchObject({ leaks: 0, corruptions: 0 })
  })

  it('find a backing file that was moved by its new name, and refuse one that is not there', async () => {
    writeFileSync(bench.path('base'), filled(MIB, 3))
    await createImage(bench.path('q'), { backingFile: 'base', backingFormat: 'raw' })
    renameSync(bench.path('base'), bench.path('moved'))
    await expect(bench.open('q')).rejects.toMatchObject({ code: 'ENOENT' })
    const named = (file: string) => renameBacking(bench.path('q'), { file, format: 'raw' })
    await expect(named('nowhere')).rejects.toMatchObject({ code: 'ENOENT' })
    await named(bench.path('moved'))
    const disk = await bench.open('q')
    expect(await disk.read(0, 4096)).toEqual(filled(4096, 3))
    await bench.delete('q')
    await renameBacking(bench.path('q'), null)
    expect(await imageInfo(bench.path('q'))).toMatchObject({
      backingFile: null,
      backingFormat: null,
      chain: [],
    })
  })

  it('go back to a snapshot, their size as well', async () => {
    await createImage(bench.path('q'), { sizeBytes: MIB })
    let disk = await bench.open('q')
    await disk.write(0, filled(4096, 1))
    await bench.call('bdev_qcow2_snapshot_create', { name: 'q', snapshot_name: 's' })
    await disk.write(0, filled(4096, 2))
    await bench.call('bdev_qcow2_resize', { name: 'q', new_size: 3 })
    await bench.delete('q')
    copyFileSync(bench.path('q'), bench.path('device'))
    await applySnapshot(bench.path('q'), 's')
    disk = await bench.open('q')
    expect(bench.bdevs.get('q').blockCount).toBe(2048)
    expect(await disk.read(0, 4096)).toEqual(filled(4096, 1))
    await bench.delete('q')

    disk = await bench.open('device')
    expect(await disk.read(0, 4096)).toEqual(filled(4096, 2))
    await bench.call('bdev_qcow2_snapshot_apply', { name: 'device', snapshot_name: 's' })
    expect(bench.bdevs.get('device').blockCount).toBe(2048)
    expect(await disk.read(0, 4096)).toEqual(filled(4096, 1))
    await bench.delete('device')
    expect(await checkImage(bench.path('device'))).toMatchObject({ leaks: 0, corruptions: 0 })
    expect(await checkImage(bench.path('q'))).toMatchObject({ leaks: 0, corruptions: 0 })
  })
})
