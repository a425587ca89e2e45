/** Volumes of a directory: used by real clients, copied, and interrupted in the middle of everything that takes long. */
import { execFile } from 'node:child_process'
import { createHash, randomBytes } from 'node:crypto'
import { createReadStream, openSync, readdirSync, truncateSync, writeSync } from 'node:fs'
import { createServer, type Server } from 'node:http'
import type { AddressInfo } from 'node:net'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { afterEach, beforeEach, expect, it } from 'vitest'
import { Child } from './lab/child.ts'
import { type Daemon, startDaemon } from './lab/daemon.ts'
import { describeWith } from './lab/describe-with.ts'
import { findProgram, type Program } from './lab/packages.ts'
import { qpair } from './lab/qpair.ts'

const MIB = 1 << 20
const PROGRAMS = ['setpriv', 'qemu-img', 'qemu-io', 'qemu-nbd', 'nbdinfo'] as const

interface Job {
  readonly id: number
  readonly state: string
  readonly done: number
  readonly error?: { readonly message: string }
}

async function run(program: Program, ...args: string[]): Promise<string> {
  const { stdout } = await promisify(execFile)(findProgram(program)!, args, { maxBuffer: 1 << 26 })
  return stdout
}

/** A file of `size` bytes with random data in the first `dataMib`, written in pieces. */
function makeImage(path: string, size: number, dataMib: number): void {
  const fd = openSync(path, 'w')
  for (let i = 0; i < dataMib; i++) writeSync(fd, randomBytes(MIB))
  truncateSync(path, size)
}

await describeWith(PROGRAMS, 'volumes', () => {
  let daemon: Daemon
  const path = (name: string): string => join(daemon.directory, name)
  const q = (...words: string[]): Promise<string> => qpair(daemon, ...words)
  const files = (): string[] => readdirSync(path('vms'))

  beforeEach(async () => {
    daemon = await startDaemon()
    await q('pool', 'define-as', 'vms', 'dir', '--target', path('vms'))
    await q('pool', 'start', 'vms', '--build')
    await q('pool', 'autostart', 'vms')
  })
  afterEach(() => daemon.stop())

  const jobs = (): Promise<Job[]> => daemon.rpc('job_list')

  /** Waits until a job has done that much, and answers it as it is then. */
  async function jobAt(id: number, done: number): Promise<Job> {
    for (;;) {
      const job = (await jobs()).find(each => each.id === id)
      if (job === undefined || job.done >= done || job.state !== 'running') return job!
      await new Promise(setImmediate)
    }
  }

  const ended = (id: number): Promise<Job> => daemon.rpc('job_wait', { id, timeout_ms: 170_000 })

  it('are what qemu-img says they are', async () => {
    await q('volume', 'create', 'vms', 'thin', '10G')
    await q('volume', 'create', 'vms', 'thick', '300M', '--preallocation', 'full')
    await q('volume', 'create', 'vms', 'q', '10G', '--format', 'qcow2')
    const info = async (name: string) =>
      JSON.parse(await run('qemu-img', 'info', '--output=json', path(`vms/${name}`)))
    expect(await info('thin')).toMatchObject({
      format: 'raw',
      'virtual-size': 10 * 2 ** 30,
      'actual-size': 0,
    })
    const thick = await info('thick')
    expect(thick['virtual-size']).toBe(300 * MIB)
    expect(thick['actual-size']).toBeGreaterThanOrEqual(300 * MIB)
    const q10 = await info('q')
    expect(q10).toMatchObject({ format: 'qcow2', 'virtual-size': 10 * 2 ** 30 })
    expect(q10['actual-size']).toBeLessThan(MIB)
    await q('volume', 'resize', 'q', '12G')
    expect(await info('q')).toMatchObject({ 'virtual-size': 12 * 2 ** 30 })
    expect(await run('qemu-img', 'check', path('vms/q'))).toContain('No errors')
  })

  it('that QEMU has open are left alone, and who has them is said', async () => {
    await q('volume', 'create', 'vms', 'a', '64M')
    const socket = path('qemu.sock')
    const qemu = await Child.start(findProgram('qemu-nbd')!, ['-f', 'raw', '-t', '-k', socket, path('vms/a')])
    const isServed = (): Promise<boolean> =>
      run('nbdinfo', `nbd+unix:///?socket=${socket}`).then(
        () => true,
        () => false,
      )
    await expect.poll(isServed, { timeout: 60_000 }).toBe(true)
    for (const words of [
      ['delete', 'a'],
      ['rename', 'a', 'b'],
      ['wipe', 'a'],
      ['export', 'a', '--nbd'],
    ]) {
      await expect(q('volume', ...words), words[0]!).rejects.toThrow(/qemu-nbd \(pid \d+\)/)
    }
    await expect(q('volume', 'export', 'a', '--nbd')).rejects.toThrow('already: end that first')
    await qemu.end('SIGTERM')
    await q('volume', 'delete', 'a')
  })

  it('are exported in one command, grow while they are in use, and come back with the daemon', async () => {
    await q('volume', 'create', 'vms', 'a', '64M', '--format', 'qcow2')
    const { next } = JSON.parse(await q('volume', 'export', 'a', '--nbd', '--unix', path('nbd')))
    const uri = `nbd+unix:///vms-a?socket=${path('nbd')}`
    expect(next).toContain(uri)
    await run('qemu-io', '-f', 'raw', '-c', 'write -P 0x11 0 4M', uri)
    await expect(q('volume', 'export', 'a', '--vhost')).rejects.toThrow(
      'volume a is used by NBD export "vms-a" already',
    )
    await q('volume', 'snapshot', 'create', 'a', 's1')
    await q('volume', 'resize', 'a', '128M')
    expect(JSON.parse(await run('nbdinfo', '--json', uri)).exports[0]['export-size']).toBe(128 * MIB)

    await daemon.restart('SIGKILL')
    await run('qemu-io', '-f', 'raw', '-c', 'read -P 0x11 0 4M', '-c', 'write -P 0x22 0 4M', uri)
    expect(JSON.parse(await q('volume', 'unexport', 'a'))).toEqual(['NBD export vms-a', 'bdev vms-a'])
    expect(await daemon.rpc('bdev_get_bdevs')).toEqual([])
    await q('volume', 'snapshot', 'revert', 'a', 's1')
    expect(await run('qemu-img', 'check', path('vms/a'))).toContain('No errors')
    await run('qemu-io', '-c', 'read -P 0x11 0 4M', path('vms/a'))
  })

  it('are exported over NVMe and vhost, and leave nothing when they come back', async () => {
    await q('volume', 'create', 'vms', 'a', '64M')
    const nvme = JSON.parse(
      await q('volume', 'export', 'a', '--nvme', '--listen', '127.0.0.1:0', '--nqn', 'nqn.2026-11.io.x:a'),
    )
    expect(nvme.next).toMatch(/nvme connect -t tcp -a 127\.0\.0\.1 -s \d+ -n nqn\.2026-11\.io\.x:a/)
    expect(JSON.parse(await q('volume', 'info', 'a'))).toMatchObject({
      bdev: 'vms-a',
      users: 'subsystem nqn.2026-11.io.x:a',
    })
    expect(JSON.parse(await q('volume', 'unexport', 'a'))).toEqual([
      'subsystem nqn.2026-11.io.x:a',
      'bdev vms-a',
    ])
    const vhost = JSON.parse(await q('volume', 'export', 'a', '--vhost'))
    expect(vhost.next).toContain('-device vhost-user-blk-pci')
    expect(JSON.parse(await q('volume', 'unexport', 'a'))).toEqual(['vhost controller vms-a', 'bdev vms-a'])
    expect(await daemon.rpc('nvmf_get_subsystems')).not.toContainEqual(
      expect.objectContaining({ nqn: 'nqn.2026-11.io.x:a' }),
    )
    await q('volume', 'delete', 'a')
  })

  it('are taken back from what export has made, and from nobody who has them open', async () => {
    await q('volume', 'create', 'vms', 'a', '64M')
    // Somebody's own bdev, with an export of his.
    await daemon.rpc('bdev_uring_create', { name: 'mine', filename: path('vms/a') })
    await daemon.rpc('nbd_export_start', { bdev_name: 'mine', unix: path('mine') })
    await expect(q('volume', 'unexport', 'a')).rejects.toThrow(
      'is open by what was not made by exporting it: bdev mine for NBD export "mine"',
    )
    await q('volume', 'export', 'a', '--vhost', '--shared')
    await q('volume', 'export', 'a', '--nbd', '--unix', path('nbd'), '--shared')
    const uri = `nbd+unix:///vms-a?socket=${path('nbd')}`
    const stays = ['-f', 'raw', '-c', 'sleep 600000', uri]
    const client = await Child.start(findProgram('qemu-io')!, stays)
    const isConnected = async (): Promise<number> =>
      (await daemon.rpc<{ connections: number }[]>('nbd_export_list', { name: 'vms-a' }))[0]!.connections
    await expect.poll(isConnected, { timeout: 60_000 }).toBe(1)
    await expect(q('volume', 'unexport', 'a')).rejects.toThrow('in use at this moment by 1 NBD clients')
    expect(await daemon.rpc('vhost_get_controllers')).toHaveLength(1)
    expect(JSON.parse(await q('volume', 'unexport', 'a', '--force'))).toEqual([
      'NBD export vms-a',
      'vhost controller vms-a',
    ])
    await client.end('SIGKILL')
    expect(await daemon.rpc('nbd_export_list')).toMatchObject([{ name: 'mine' }])
    await daemon.rpc('nbd_export_stop', { name: 'mine' })
    await daemon.rpc('bdev_uring_delete', { name: 'mine' })

    await q('volume', 'export', 'a', '--nbd', '--unix', path('nbd'), '--bdev', 'other')
    await expect(q('volume', 'unexport', 'a')).rejects.toThrow('bdev other for NBD export "other"')
    expect(JSON.parse(await q('volume', 'unexport', 'a', '--bdev', 'other'))).toEqual([
      'NBD export other',
      'bdev other',
    ])
    expect(await daemon.rpc('bdev_get_bdevs')).toEqual([])
  })

  it('are imported from NBD, over a kill of both sides in the middle', async () => {
    makeImage(path('source'), 1500 * MIB, 900)
    const socket = path('server')
    const source = `nbd+unix:///?socket=${socket}`
    // Not nbdkit: 1.32 aborts when a client goes in the middle of an answer.
    const words = ['-f', 'raw', '-r', '-t', '-e', '0', '-k', socket, path('source')]
    const serve = async (): Promise<Child> => {
      const server = await Child.start(findProgram('qemu-nbd')!, words)
      const size = (): Promise<string> => run('nbdinfo', '--size', source).catch(() => '')
      await expect.poll(size, { timeout: 60_000 }).not.toBe('')
      return server
    }
    const first = await serve()
    const wanted = { pool: 'vms', name: 'a', source }
    const { job_id } = await daemon.rpc<{ job_id: number }>('volume_import', wanted)
    expect(await jobAt(job_id, 300 * MIB)).toMatchObject({ state: 'running' })
    await daemon.kill()
    await first.end('SIGKILL')
    expect(files().filter(name => !name.startsWith('.'))).toEqual([])
    await daemon.start()
    await expect.poll(() => daemon.output, { timeout: 60_000 }).toContain('it is tried again')
    const second = await serve()
    // What was noted as safe is not copied again.
    expect((await jobAt(1, 1)).done).toBeGreaterThanOrEqual(256 * MIB)
    expect(await ended(1)).toMatchObject({ state: 'completed' })
    expect(files()).toEqual(['a'])
    await run('qemu-img', 'compare', '-f', 'raw', '-F', 'raw', path('source'), path('vms/a'))
    expect(await daemon.rpc('framework_get_config', { name: 'job' })).toEqual([])
    await second.end('SIGKILL')
  })

  it('are imported into qcow2, over a kill in the middle, without an error in the image', async () => {
    makeImage(path('source'), 1500 * MIB, 900)
    const wanted = { pool: 'vms', name: 'a', source: path('source'), format: 'qcow2' }
    const { job_id } = await daemon.rpc<{ job_id: number }>('volume_import', wanted)
    expect(await jobAt(job_id, 300 * MIB)).toMatchObject({ state: 'running' })
    await daemon.restart('SIGKILL')
    expect(await ended(1)).toMatchObject({ state: 'completed' })
    expect(files()).toEqual(['a'])
    expect(await run('qemu-img', 'check', path('vms/a'))).toContain('No errors')
    await run('qemu-img', 'compare', path('source'), path('vms/a'))
    expect(await daemon.rpc('bdev_get_bdevs')).toEqual([])
  })

  it('are imported from a web server that goes away, and a daemon that is killed', async () => {
    makeImage(path('source'), 300 * MIB, 300)
    const server = await serveSlowly(path('source'))
    const source = `http://127.0.0.1:${(server.address() as AddressInfo).port}/disk.img`
    const wanted = { pool: 'vms', name: 'a', source }
    const { job_id } = await daemon.rpc<{ job_id: number }>('volume_import', wanted)
    await jobAt(job_id, 100 * MIB)
    await daemon.restart('SIGKILL')
    expect((await jobAt(1, 1)).done).toBeGreaterThanOrEqual(64 * MIB)
    await jobAt(1, 150 * MIB)
    server.closeAllConnections()
    expect(await ended(1)).toMatchObject({ state: 'completed' })
    await run('qemu-img', 'compare', '-f', 'raw', '-F', 'raw', path('source'), path('vms/a'))
    server.close()
  })

  it('that are being copied when the daemon is killed are copied again', async () => {
    makeImage(path('vms/source'), 900 * MIB, 900)
    await q('pool', 'refresh', 'vms')
    const { job_id } = await daemon.rpc<{ job_id: number }>('volume_clone', {
      volume: 'source',
      name: 'copy',
    })
    const job = await jobAt(job_id, 100 * MIB)
    await daemon.restart('SIGKILL')
    // A file system that shares blocks has made the copy at once.
    if (job.state === 'running') expect(await ended(1)).toMatchObject({ state: 'completed' })
    expect(files()).toEqual(['copy', 'source'])
    await run('qemu-img', 'compare', '-f', 'raw', '-F', 'raw', path('vms/source'), path('vms/copy'))
  })

  it('that are being copied when that is cancelled leave nothing, also of what could go on', async () => {
    makeImage(path('source'), 900 * MIB, 900)
    const wanted = { pool: 'vms', name: 'a', source: path('source'), format: 'qcow2' }
    const { job_id } = await daemon.rpc<{ job_id: number }>('volume_import', wanted)
    await jobAt(job_id, 300 * MIB)
    expect(await daemon.rpc('job_cancel', { id: job_id })).toMatchObject({ state: 'cancelled' })
    expect(files()).toEqual([])
    expect(await daemon.rpc('bdev_get_bdevs')).toEqual([])
    await q('volume', 'create', 'vms', 'a', '1M')
  })

  it('are saved to a file, over a stop in the middle', async () => {
    makeImage(path('source'), 1000 * MIB, 700)
    await q('volume', 'import', 'vms', 'a', path('source'), '--format', 'qcow2')
    const file = path('out.raw')
    const saved = { volume: 'a', file, format: 'raw' }
    const { job_id } = await daemon.rpc<{ job_id: number }>('volume_save', saved)
    await jobAt(job_id, 280 * MIB)
    await daemon.restart('SIGTERM')
    expect(await ended(1)).toMatchObject({ state: 'completed' })
    await run('qemu-img', 'compare', path('source'), file)
  })

  it('are wiped to the end, though the daemon is killed', async () => {
    makeImage(path('vms/a'), 900 * MIB, 900)
    await q('pool', 'refresh', 'vms')
    const { job_id } = await daemon.rpc<{ job_id: number }>('volume_wipe', { volume: 'a' })
    await jobAt(job_id, 100 * MIB)
    await daemon.restart('SIGKILL')
    await ended(1)
    const hash = createHash('sha256')
    for await (const chunk of createReadStream(path('vms/a'))) hash.update(chunk)
    const zeroes = createHash('sha256')
    for (let i = 0; i < 900; i++) zeroes.update(Buffer.alloc(MIB))
    expect(hash.digest('hex')).toBe(zeroes.digest('hex'))
  })
})

/** A server with ranges that sends a MiB at a time, so that there is a middle. */
async function serveSlowly(path: string): Promise<Server> {
  const server = createServer((request, response) => {
    const size = 300 * MIB
    const from = Number(/^bytes=(\d+)-$/.exec(request.headers.range ?? '')?.[1] ?? 0)
    const isPart = request.headers['if-range'] === '"1"'
    const start = isPart ? from : 0
    response.writeHead(isPart ? 206 : 200, {
      etag: '"1"',
      'content-length': size - start,
      ...(isPart ? { 'content-range': `bytes ${start}-${size - 1}/${size}` } : {}),
    })
    const stream = createReadStream(path, { start, highWaterMark: MIB })
    stream.on('data', () => {
      stream.pause()
      setImmediate(() => stream.resume())
    })
    stream.pipe(response)
    response.on('close', () => stream.destroy())
  })
  await new Promise<void>(resolve => server.listen(0, '127.0.0.1', resolve))
  return server
}
