/** qcow2 images, judged by QEMU's own programs. */
import { execFile } from 'node:child_process'
import { readFileSync, rmSync, writeFileSync } from 'node:fs'
import { promisify } from 'node:util'
import * as zlib from 'node:zlib'
import { afterEach, beforeEach, expect, it } from 'vitest'
import {
  addBitmap,
  applySnapshot,
  type CreateOptions,
  createImage,
  createSnapshot,
  deleteSnapshot,
  resizeImage,
} from '../../src/bdev/drivers/qcow2/image.ts'
import { Prng } from '../../src/core/prng.ts'
import { Bench, torture } from '../bdev/drivers/qcow2/support.ts'
import { Child } from './lab/child.ts'
import { describeWith } from './lab/describe-with.ts'
import { findProgram, type Program } from './lab/packages.ts'
import { isListening } from './lab/unix-socket.ts'

const MIB = 1 << 20
const SEED = Number(process.env['SEED'] ?? 20261121)
const PROGRAMS = ['qemu-img', 'qemu-io', 'qemu-nbd', 'qemu-storage-daemon', 'nbdinfo', 'setpriv'] as const

/** Runs a program to its end and returns what it printed; a failure shows all it said. */
async function run(program: Program, ...args: string[]): Promise<string> {
  const { stdout } = await promisify(execFile)(findProgram(program)!, args, { maxBuffer: 1 << 26 })
  return stdout
}

interface CheckOutput {
  readonly leaks?: number
  readonly corruptions?: number
  readonly 'check-errors': number
}

/** What qemu-img check finds; it ends with another code than 0 when it finds anything. */
async function check(path: string): Promise<CheckOutput> {
  const args = ['check', '--output=json', path]
  const answer = await promisify(execFile)(findProgram('qemu-img')!, args).catch(error => error)
  return JSON.parse(answer.stdout) as CheckOutput
}

async function expectClean(path: string): Promise<void> {
  const { leaks = 0, corruptions = 0, 'check-errors': errors } = await check(path)
  expect({ leaks, corruptions, errors }).toEqual({ leaks: 0, corruptions: 0, errors: 0 })
}

const VARIANTS: readonly (readonly [name: string, options: Omit<CreateOptions, 'sizeBytes'>])[] = [
  ['version 2', { version: 2 }],
  ['clusters of 512 bytes', { clusterSize: 512 }],
  ['clusters of 4 KiB, refcounts of 64 bits', { clusterSize: 4096, refcountBits: 64 }],
  ['clusters of 2 MiB', { clusterSize: 2 * MIB }],
  ['refcounts of 1 bit', { refcountBits: 1, clusterSize: 1024 }],
  ['refcounts of 2 bits', { refcountBits: 2, clusterSize: 4096 }],
  ['refcounts of 4 bits', { refcountBits: 4, clusterSize: 32768 }],
  ['refcounts of 8 bits', { refcountBits: 8 }],
  ['refcounts of 32 bits', { refcountBits: 32, clusterSize: 512 }],
  ['lazy refcounts', { lazyRefcounts: true }],
  ['subclusters', { extendedL2: true, clusterSize: 16384 }],
  ['subclusters of large clusters', { extendedL2: true, clusterSize: 2 * MIB }],
  ['preallocated tables', { preallocation: 'metadata' }],
  ['preallocated by falloc', { preallocation: 'falloc', clusterSize: 4096 }],
  ['preallocated in full, subclusters', { preallocation: 'full', extendedL2: true }],
]

/** Arguments of qemu-img convert. */
const QEMU_OPTIONS: readonly (readonly string[])[] = [
  ['-o', 'compat=0.10'],
  ['-c'],
  ['-c', '-o', 'cluster_size=4k'],
  ['-c', '-o', 'cluster_size=2M,extended_l2=on'],
  ['-o', 'lazy_refcounts=on,refcount_bits=1'],
  ['-o', 'extended_l2=on,cluster_size=64k'],
  ['-o', 'preallocation=metadata,refcount_bits=64'],
  ['-S', '0', '-o', 'cluster_size=512,refcount_bits=8'],
]

await describeWith(PROGRAMS, 'qcow2 images', () => {
  let bench: Bench
  beforeEach(() => {
    bench = new Bench()
  })
  afterEach(() => bench.close())

  const compare = async (name: string, model: Uint8Array): Promise<void> => {
    writeFileSync(bench.path('twin.raw'), model)
    await run('qemu-img', 'compare', '-f', 'qcow2', '-F', 'raw', bench.path(name), bench.path('twin.raw'))
  }

  it.each(VARIANTS)(
    `are what QEMU makes of them after random operations: %s (SEED=${SEED})`,
    async (_, options) => {
      const prng = new Prng(SEED)
      const sizeBytes = 12 * MIB + 512 * 7
      for (const discard of [true, false]) {
        const name = `image-${discard}`
        await createImage(bench.path(name), { sizeBytes, ...options })
        await expectClean(bench.path(name))
        const disk = await bench.open(name, { discard })
        const model = new Uint8Array(sizeBytes)
        await torture(disk, model, prng, 40)
        await bench.delete(name)
        await expectClean(bench.path(name))
        await compare(name, model)
      }
    },
  )

  it('reads and writes what qemu-img makes, with every option', async () => {
    const prng = new Prng(SEED)
    for (const options of QEMU_OPTIONS) {
      const name = 'theirs'
      const path = bench.path(name)
      const model = prng.fill(new Uint8Array(5 * MIB))
      // Some of it zero, and some that compresses well.
      model.fill(0, MIB, 2 * MIB)
      model.fill(7, 3 * MIB, 4 * MIB)
      writeFileSync(bench.path('source.raw'), model)
      await run('qemu-img', 'convert', '-f', 'raw', '-O', 'qcow2', ...options, bench.path('source.raw'), path)
      const disk = await bench.open(name)
      expect(Buffer.compare(await disk.read(0, model.length), model), options.join(' ')).toBe(0)
      await torture(disk, model, prng, 15)
      await bench.delete(name)
      await expectClean(path)
      await compare(name, model)
      rmSync(path)
    }
  })

  it('reads what is compressed with zstd where Node can, and says so where it cannot', async () => {
    const path = bench.path('image')
    const text = Buffer.from(
      Array.from({ length: 400_000 }, (_, i) => String(i))
        .join('\n')
        .slice(0, 2 * MIB),
    )
    writeFileSync(bench.path('source.raw'), text)
    await run(
      ...(['qemu-img', 'convert', '-c', '-f', 'raw', '-O', 'qcow2', '-o', 'compression_type=zstd'] as const),
      bench.path('source.raw'),
      path,
    )
    if (!('zstdDecompress' in zlib)) {
      const refusal = { code: 'ENOTSUP', message: expect.stringContaining('use Node 22.15 or later') }
      await expect(bench.open('image')).rejects.toMatchObject(refusal)
      return
    }
    const disk = await bench.open('image')
    expect(Buffer.compare(await disk.read(0, text.length), text)).toBe(0)
  })

  it('reads through a chain of relative names, and writes to the image on top alone', async () => {
    const prng = new Prng(SEED)
    const base = prng.fill(new Uint8Array(3 * MIB + 512))
    writeFileSync(bench.path('base.raw'), base)
    const at = { cwd: bench.directory }
    const img = (...args: string[]) => promisify(execFile)(findProgram('qemu-img')!, args, at)
    await img('create', '-f', 'qcow2', '-b', 'base.raw', '-F', 'raw', 'middle', '4M')
    await promisify(execFile)(findProgram('qemu-io')!, ['-c', 'write -P 9 1M 300k', 'middle'], at)
    await img('create', '-f', 'qcow2', '-b', 'middle', '-F', 'qcow2', '-o', 'cluster_size=4k', 'top', '6M')
    const model = new Uint8Array(6 * MIB)
    model.set(base)
    model.fill(9, MIB, MIB + 300 * 1024)
    const disk = await bench.open('top')
    expect(Buffer.compare(await disk.read(0, model.length), model)).toBe(0)
    await torture(disk, model, prng, 40)
    await bench.delete('top')
    await expectClean(bench.path('top'))
    await expectClean(bench.path('middle'))
    await compare('top', model)
    expect(Buffer.compare(readFileSync(bench.path('base.raw')), base)).toBe(0)
  })

  it.each([2, 3] as const)('keeps snapshots of QEMU and makes its own, version %d', async version => {
    const prng = new Prng(SEED + version)
    const path = bench.path('image')
    const sizeBytes = 8 * MIB
    await createImage(path, { sizeBytes, version, clusterSize: 16384 })
    const model = new Uint8Array(sizeBytes)
    let disk = await bench.open('image')
    await torture(disk, model, prng, 20)
    await bench.delete('image')
    await run('qemu-img', 'snapshot', '-c', 'theirs', path)
    const theirs = model.slice()

    disk = await bench.open('image')
    await torture(disk, model, prng, 20)
    await bench.call('bdev_qcow2_snapshot_create', { name: 'image', snapshot_name: 'ours' })
    const ours = model.slice()
    await torture(disk, model, prng, 20)
    expect(Buffer.compare(await disk.read(0, sizeBytes), model)).toBe(0)
    const listed = await bench.call<{ name: string }[]>('bdev_qcow2_snapshot_list', { name: 'image' })
    expect(listed.map(({ name }) => name)).toEqual(['theirs', 'ours'])
    await bench.delete('image')
    await expectClean(path)
    await compare('image', model)
    expect(await run('qemu-img', 'snapshot', '-l', path)).toMatch(/theirs[\s\S]*ours/)

    for (const [snapshot, content] of [
      ['ours', ours],
      ['theirs', theirs],
    ] as const) {
      await applySnapshot(path, snapshot)
      await expectClean(path)
      await compare('image', content)
    }
    await deleteSnapshot(path, 'theirs')
    await expectClean(path)
    await run('qemu-img', 'snapshot', '-a', 'ours', path)
    await compare('image', ours)
    await run('qemu-img', 'snapshot', '-d', 'ours', path)
    await expectClean(path)
    disk = await bench.open('image')
    await torture(disk, ours, prng, 20)
    await bench.delete('image')
    await expectClean(path)
    await compare('image', ours)
  })

  it('grows and shrinks, with bitmaps and while it is a device', async () => {
    const prng = new Prng(SEED)
    const path = bench.path('image')
    await createImage(path, { sizeBytes: 2 * MIB, clusterSize: 512 })
    await run('qemu-img', 'bitmap', '--add', path, 'b0', '-g', '4096')
    const disk = await bench.open('image')
    let model = new Uint8Array(2 * MIB)
    await torture(disk, model, prng, 20)
    await bench.call('bdev_qcow2_resize', { name: 'image', new_size: 40 })
    expect(bench.bdevs.get('image').blockCount).toBe((40 * MIB) / 512)
    model = Buffer.concat([model, new Uint8Array(38 * MIB)])
    await torture(disk, model, prng, 20)
    await bench.delete('image')
    await expectClean(path)
    await compare('image', model)
    await expect(resizeImage(path, 5 * MIB)).rejects.toMatchObject({ code: 'EINVAL' })
    await resizeImage(path, 5 * MIB + 512, { shrink: true })
    await expectClean(path)
    await compare('image', model.subarray(0, 5 * MIB + 512))
    await resizeImage(path, 9 * MIB)
    await compare('image', Buffer.concat([model.subarray(0, 5 * MIB + 512), new Uint8Array(4 * MIB - 512)]))
    await expectClean(path)
  })

  it('records what it writes in dirty bitmaps that QEMU reads', async () => {
    const path = bench.path('image')
    await createImage(path, { sizeBytes: 64 * MIB })
    await run('qemu-img', 'bitmap', '--add', path, 'on', '-g', '65536')
    await run('qemu-img', 'bitmap', '--add', '--disable', path, 'off', '-g', '65536')
    await addBitmap(path, 'ours', { granularityBytes: MIB })
    const disk = await bench.open('image')
    const flags = async () =>
      JSON.parse(await run('qemu-img', 'info', '-U', '--output=json', path))['format-specific'].data.bitmaps
    expect(await flags()).toMatchObject([
      { name: 'on', flags: ['in-use', 'auto'] },
      { name: 'off', flags: [] },
      { name: 'ours', flags: ['in-use', 'auto'] },
    ])
    await disk.write(3 * MIB, new Uint8Array(512).fill(1))
    await disk.write(40 * MIB - 512, new Uint8Array(1024).fill(1))
    await bench.delete('image')
    await expectClean(path)
    expect((await flags()).map((one: { flags: unknown }) => one.flags)).toEqual([['auto'], [], ['auto']])
    // Merged into one of coarse grain and exported, QEMU tells which parts are dirty.
    expect(await dirtyRanges(bench, path, 'on')).toEqual([
      [3 * MIB, 65536],
      [40 * MIB - 65536, 131072],
    ])
    expect(await dirtyRanges(bench, path, 'ours')).toEqual([
      [3 * MIB, MIB],
      [39 * MIB, 2 * MIB],
    ])
    expect(await dirtyRanges(bench, path, 'off')).toEqual([])
    // Another content makes all of the disk dirty to those that record.
    await createSnapshot(path, 's')
    await applySnapshot(path, 's')
    await expectClean(path)
    expect(await dirtyRanges(bench, path, 'on')).toEqual([[0, 64 * MIB]])
    expect(await dirtyRanges(bench, path, 'off')).toEqual([])
  })

  it('and QEMU refuse each other an image that one of them has', async () => {
    const path = bench.path('image')
    await createImage(path, { sizeBytes: MIB })
    await bench.open('image')
    await expect(run('qemu-io', '-c', 'read 0 512', path)).rejects.toThrow(/lock/)
    await bench.delete('image')
    const child = await Child.start(findProgram('qemu-storage-daemon')!, [
      '--blockdev',
      `driver=qcow2,node-name=disk,file.driver=file,file.filename=${path}`,
      '--nbd-server',
      `addr.type=unix,addr.path=${bench.path('nbd.sock')}`,
      '--export',
      'type=nbd,id=export,node-name=disk,writable=on',
    ])
    try {
      for (;;) {
        if (child.exit !== undefined) throw new Error(child.output)
        const answer = run('nbdinfo', `nbd+unix:///disk?socket=${bench.path('nbd.sock')}`)
        if (
          await answer.then(
            () => true,
            () => false,
          )
        )
          break
      }
      await expect(bench.open('image').then(() => 'opened')).rejects.toMatchObject({ code: 'EBUSY' })
    } finally {
      await child.end('SIGKILL')
    }
    await bench.open('image')
  })
})

let sockets = 0

/** What a bitmap says is dirty, as offset and length, by way of QEMU's NBD server. */
async function dirtyRanges(bench: Bench, path: string, bitmap: string): Promise<[number, number][]> {
  const socket = bench.path(`${bitmap}-${sockets++}.sock`)
  const child = await Child.start(findProgram('qemu-nbd')!, [
    ...['-t', '-r', '-f', 'qcow2', '-B', bitmap, '-k', socket, path],
  ])
  try {
    while (!isListening(socket)) {
      if (child.exit !== undefined) throw new Error(child.output)
      await new Promise(setImmediate)
    }
    const map = await run(
      'nbdinfo',
      '--json',
      `--map=qemu:dirty-bitmap:${bitmap}`,
      `nbd+unix:///?socket=${socket}`,
    )
    const parts = JSON.parse(map) as { offset: number; length: number; type: number }[]
    return parts.filter(({ type }) => type === 1).map(({ offset, length }) => [offset, length])
  } finally {
    await child.end('SIGTERM')
  }
}
