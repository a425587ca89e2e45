/** NBD exports, used by the programs that people use: libnbd's, QEMU's, fio and nbdkit. */
import { execFile } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { readFileSync, truncateSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { afterAll, afterEach, beforeAll, expect, it } from 'vitest'
import { Child } from './lab/child.ts'
import { type Daemon, startDaemon } from './lab/daemon.ts'
import { describeWith } from './lab/describe-with.ts'
import { findProgram, type Program } from './lab/packages.ts'

const MIB = 1 << 20
const SIZE = 64 * MIB
const PROGRAMS = ['setpriv', 'nbdinfo', 'nbdcopy', 'qemu-img', 'qemu-io', 'fio', 'nbdkit'] as const

interface Export {
  readonly name: string
  readonly uri: string
  readonly connections: number
}

/** Runs a program to its end and returns what it printed; a failure shows all it said. */
async function run(program: Program, ...args: string[]): Promise<string> {
  const { stdout } = await promisify(execFile)(findProgram(program)!, args, { maxBuffer: 1 << 26 })
  return stdout
}

await describeWith(PROGRAMS, 'NBD exports', () => {
  let daemon: Daemon
  const path = (name: string): string => join(daemon.directory, name)
  const start = (bdev_name: string, options: object = {}): Promise<Export> =>
    daemon.rpc('nbd_export_start', { bdev_name, unix: path('nbd.sock'), ...options })
  const list = (): Promise<Export[]> => daemon.rpc('nbd_export_list')

  async function stopAll(): Promise<void> {
    for (const { name } of await list()) await daemon.rpc('nbd_export_stop', { name })
  }

  /** Waits until the daemon counts that many clients of an export. */
  async function connectionsOf(name: string, wanted: (count: number) => boolean): Promise<void> {
    for (;;) {
      const found = (await list()).find(one => one.name === name)
      if (found === undefined || wanted(found.connections)) return
      await new Promise(setImmediate)
    }
  }

  beforeAll(async () => {
    daemon = await startDaemon({ args: ['--reactors', '2'] })
    await daemon.rpc('bdev_malloc_create', { name: 'memory', block_size: 512, num_blocks: SIZE / 512 })
    writeFileSync(path('disk.raw'), '')
    truncateSync(path('disk.raw'), SIZE)
    await daemon.rpc('bdev_aio_create', { name: 'file', filename: path('disk.raw'), block_size: 512 })
  })
  afterEach(stopAll)
  afterAll(() => daemon?.stop())

  it('tells nbdinfo what it is and can do', async () => {
    const { uri } = await start('memory', { name: 'about', description: 'a disk in memory', read_only: true })
    const { exports } = JSON.parse(await run('nbdinfo', '--json', uri))
    expect(exports).toMatchObject([
      {
        'export-name': 'about',
        description: 'a disk in memory',
        'export-size': SIZE,
        is_read_only: true,
        can_multi_conn: true,
        can_df: true,
        block_size_minimum: 512,
        block_size_preferred: 4096,
        block_size_maximum: 32 * MIB,
        contexts: ['base:allocation'],
      },
    ])
    await start('file', { name: 'other' })
    const listed = JSON.parse(await run('nbdinfo', '--json', '--list', uri))
    expect(listed.exports.map((one: Record<string, unknown>) => one['export-name']).sort()).toEqual([
      'about',
      'other',
    ])
  })

  it.each(['memory', 'file'])(
    'takes an image from nbdcopy and gives it back, over four connections (%s)',
    async bdev => {
      const { uri } = await start(bdev)
      const image = randomBytes(SIZE)
      writeFileSync(path('image'), image)
      await run('nbdcopy', '--connections=4', path('image'), uri)
      await run('nbdcopy', '--connections=4', '--synchronous', uri, path('copy'))
      expect(readFileSync(path('copy')).equals(image)).toBe(true)
      await run('nbdcopy', '--connections=4', '--request-size=33554432', '--requests=4', uri, path('copy'))
      expect(readFileSync(path('copy')).equals(image)).toBe(true)
      expect(await run('qemu-img', 'compare', '-f', 'raw', '-F', 'raw', path('image'), uri)).toContain(
        'identical',
      )
    },
  )

  it('serves over TCP, IPv6 included, on a port that it picks', async () => {
    for (const host of ['127.0.0.1', '::1']) {
      const { uri } = await daemon.rpc<Export>('nbd_export_start', { bdev_name: 'memory', host, port: 0 })
      expect(await run('nbdinfo', '--size', uri)).toBe(`${SIZE}\n`)
      await stopAll()
    }
  })

  it('shows the holes of a file to qemu-img map, and punches them for qemu-io', async () => {
    const { uri } = await start('file')
    const io = (...commands: string[]): Promise<string> =>
      run('qemu-io', '-f', 'raw', '-d', 'unmap', ...commands.flatMap(command => ['-c', command]), uri)
    await io(`discard 0 ${SIZE}`, 'write -P 0x5a 1M 1M', 'write -P 0xa5 8M 64k', 'write -z 8M 4k')
    await io(
      'read -P 0x5a 1M 1M',
      'read -P 0 8M 4k',
      `read -P 0xa5 ${8 * MIB + 4096} 60k`,
      'read -P 0 9M 40M',
    )
    const map: { start: number; length: number; data: boolean; zero: boolean }[] = JSON.parse(
      await run('qemu-img', 'map', '--output=json', '-f', 'raw', uri),
    )
    const at = (offset: number): { data: boolean; zero: boolean } | undefined =>
      map.find(({ start, length }) => start <= offset && offset < start + length)
    expect(at(0)).toMatchObject({ data: false, zero: true })
    expect(at(1 * MIB)).toMatchObject({ data: true, zero: false })
    expect(at(32 * MIB)).toMatchObject({ data: false, zero: true })
  })

  it('is converted into and out of qcow2', async () => {
    const { uri } = await start('file')
    const image = Buffer.concat([randomBytes(MIB), Buffer.alloc(SIZE - 2 * MIB), randomBytes(MIB)])
    writeFileSync(path('image'), image)
    await run('qemu-img', 'convert', '-f', 'raw', '-O', 'qcow2', path('image'), path('image.qcow2'))
    await run('qemu-img', 'convert', '-n', '-f', 'qcow2', '-O', 'raw', path('image.qcow2'), uri)
    await run('qemu-img', 'convert', '-f', 'raw', '-O', 'qcow2', uri, path('back.qcow2'))
    const compared = await run(
      'qemu-img',
      'compare',
      '-f',
      'qcow2',
      '-F',
      'raw',
      path('back.qcow2'),
      path('image'),
    )
    expect(compared).toContain('identical')
  })

  it.each(['memory', 'file'])('passes fio --verify with writes of mixed sizes (%s)', async bdev => {
    const { uri } = await start(bdev)
    await run(
      'fio',
      '--name=verify',
      '--ioengine=nbd',
      `--uri=${uri}`,
      '--rw=randwrite',
      '--bsrange=512-1M',
      '--blockalign=512',
      '--iodepth=32',
      `--size=${SIZE}`,
      '--verify=crc32c',
      '--verify_fatal=1',
      '--verify_state_save=0',
      '--randseed=7',
    )
  })

  it('stands behind nbdkit', async () => {
    const { uri } = await start('memory')
    const image = randomBytes(SIZE)
    writeFileSync(path('image'), image)
    await run('nbdcopy', path('image'), uri)
    const socket = path('nbdkit.sock')
    const nbdkit = await Child.start(findProgram('nbdkit')!, [
      '-f',
      '-U',
      socket,
      '-P',
      path('pid'),
      'nbd',
      uri,
    ])
    // nbdkit writes its process id once it listens.
    while (nbdkit.exit === undefined && !isThere(path('pid'))) await new Promise(setImmediate)
    await run('nbdcopy', `nbd+unix:///?socket=${socket}`, path('copy'))
    await nbdkit.end('SIGTERM')
    expect(readFileSync(path('copy')).equals(image)).toBe(true)
  })

  it('lives on when a client is killed in the middle of its writes', async () => {
    const { uri } = await start('file')
    // A thread, not a process of its own, which would survive its parent and write on.
    const job = [
      '--name=w',
      '--thread',
      '--ioengine=nbd',
      `--uri=${uri}`,
      '--rw=write',
      '--bs=1M',
      '--iodepth=16',
    ]
    const writer = await Child.start(findProgram('fio')!, [
      ...job,
      `--size=${SIZE}`,
      '--time_based',
      '--runtime=60',
    ])
    await connectionsOf('file', count => count > 0)
    await writer.end('SIGKILL')
    await connectionsOf('file', count => count === 0)
    expect(await run('qemu-io', '-f', 'raw', '-c', 'read 0 64k', uri)).toContain('65536/65536')
  })

  it('takes a device away under a busy client, who hears of it', async () => {
    await daemon.rpc('bdev_malloc_create', { name: 'gone', block_size: 512, num_blocks: SIZE / 512 })
    const { uri } = await start('gone')
    const job = [
      '--name=r',
      '--thread',
      '--ioengine=nbd',
      `--uri=${uri}`,
      '--rw=randrw',
      '--bs=4k',
      '--iodepth=32',
    ]
    const client = await Child.start(findProgram('fio')!, [
      ...job,
      `--size=${SIZE}`,
      '--time_based',
      '--runtime=60',
    ])
    await connectionsOf('gone', count => count > 0)
    await daemon.rpc('bdev_malloc_delete', { name: 'gone' })
    expect((await client.exited).code).not.toBe(0)
    expect(await list()).toEqual([])
    await expect(run('nbdinfo', uri)).rejects.toThrow('nbd_connect_uri')
  })

  it('serves again after the daemon was killed', async () => {
    const { uri } = await start('file', { name: 'kept' })
    await run('qemu-io', '-f', 'raw', '-c', 'write -f -P 0x33 0 64k', uri)
    await daemon.restart('SIGKILL')
    expect(await run('qemu-io', '-f', 'raw', '-c', 'read -P 0x33 0 64k', uri)).toContain('65536/65536')
  })
})

function isThere(path: string): boolean {
  try {
    return readFileSync(path).length > 0
  } catch {
    // Not yet.
    return false
  }
}
