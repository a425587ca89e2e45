/** Images of a real Ceph cluster, one daemon or two, and Ceph's own programs as the witness. */

import { execFile } from 'node:child_process'
import { createHash } from 'node:crypto'
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { afterAll, beforeAll, expect, it } from 'vitest'
import { IoType } from '../../src/bdev/io.ts'
import { ReactorBdevs } from '../../src/bdev/reactor-bdevs.ts'
import { BdevRegistry } from '../../src/bdev/registry.ts'
import { rbdDriver } from '../../src/rbd/driver.ts'
import type { ImageOptions } from '../../src/rbd/image.ts'
import { RbdImages } from '../../src/rbd/images.ts'
import { Status } from '../../src/spec/nvme-status.ts'
import { doIo } from '../support/io.ts'
import { LocalReactorGroup } from '../support/reactor.ts'
import { CEPH_PROGRAMS, type Ceph, startCeph } from './lab/ceph.ts'
import { type Daemon, startDaemon } from './lab/daemon.ts'
import { describeWith } from './lab/describe-with.ts'
import { eventually } from './lab/linux-host.ts'
import { findProgram } from './lab/packages.ts'

interface Bdev {
  readonly uuid: string
  readonly num_blocks: number
}

interface Workload {
  readonly errors: number
  readonly miscompares: number
  readonly in_flight: number
  readonly writes: number
}

await describeWith([...CEPH_PROGRAMS, 'qemu-io'], 'RBD images', () => {
  let ceph: Ceph
  let daemon: Daemon

  async function image(name: string, mebibytes = 64): Promise<void> {
    await ceph.run('rbd', 'create', '-p', 'volumes', '--size', String(mebibytes), name)
  }
  const open = (rbd_name: string, rest: object = {}, on = daemon): Promise<string> =>
    on.rpc('bdev_rbd_create', {
      name: rbd_name,
      pool_name: 'volumes',
      rbd_name,
      block_size: 4096,
      cluster_name: 'c',
      ...rest,
    })
  /** Of an image that this process opens itself. */
  const options = (name: string): ImageOptions => ({
    ...{ name, pool: 'volumes', namespace: '', image: name, snapshot: undefined },
    ...{ blockSize: 512, uuid: undefined, readOnly: false },
    cluster: { user: undefined, options: {}, file: ceph.conf, searches: false, keyFile: undefined },
    call: { method: 'bdev_rbd_create', params: {} },
  })
  const bdev = async (name: string, on = daemon): Promise<Bdev> =>
    (await on.rpc<Bdev[]>('bdev_get_bdevs', { name }))[0]!
  const sha = (data: Uint8Array): string => createHash('sha256').update(data).digest('hex')
  const content = async (name: string): Promise<Buffer> => {
    const path = join(daemon.directory, `${name}.raw`)
    await ceph.run('rbd', 'export', `volumes/${name}`, path)
    return readFileSync(path)
  }

  /** Runs qemu-io's commands on an NBD export of the device. */
  async function io(name: string, ...commands: string[]): Promise<string> {
    const isReading = commands.every(command => command.startsWith('read'))
    const unix = join(daemon.directory, 'nbd.sock')
    const { uri } = await daemon.rpc<{ uri: string }>('nbd_export_start', { bdev_name: name, unix })
    try {
      const args = [
        ...(isReading ? ['-r'] : []),
        '-f',
        'raw',
        ...commands.flatMap(command => ['-c', command]),
        uri,
      ]
      return (await promisify(execFile)(findProgram('qemu-io')!, args)).stdout
    } finally {
      await daemon.rpc('nbd_export_stop', { name })
    }
  }

  async function load(name: string): Promise<Workload> {
    const id = await daemon.rpc<number>('workload_start', {
      bdev_name: name,
      verify: true,
      read_percent: 50,
      io_count: 3000,
    })
    for (;;) {
      const [found] = (await daemon.rpc<(Workload & { id: number; reads: number })[]>('workload_get')).filter(
        each => each.id === id,
      )
      if (found!.reads + found!.writes >= 3000 && found!.in_flight === 0) return found!
      await new Promise(resolve => setTimeout(resolve, 20))
    }
  }

  beforeAll(async () => {
    ceph = await startCeph()
    daemon = await startDaemon({ args: ['--reactors', '2'] })
    await daemon.rpc('bdev_rbd_register_cluster', { name: 'c', config_file: ceph.conf, user_id: 'admin' })
  })
  afterAll(async () => {
    await daemon?.stop()
    await ceph?.stop()
  })

  it('keeps every block that several reactors wrote', async () => {
    await image('random')
    await open('random')
    expect(await load('random')).toMatchObject({ errors: 0, miscompares: 0 })
  })

  it('writes what rbd export reads, unmaps and zeroes', async () => {
    await image('bytes', 8)
    await open('bytes')
    await io('bytes', 'write -P 0xab 0 8M', 'write -z 1M 64k', 'discard 4M 4M', 'flush')
    const expected = Buffer.alloc(8 << 20, 0xab)
    expected.fill(0, 1 << 20, (1 << 20) + (64 << 10)).fill(0, 4 << 20, 8 << 20)
    expect(sha(await content('bytes'))).toBe(sha(expected))
  })

  it('follows a resize that was done elsewhere, and resizes the image itself', async () => {
    await image('grows', 8)
    await open('grows')
    await ceph.run('rbd', 'resize', '--size', '16', 'volumes/grows')
    while ((await bdev('grows')).num_blocks !== (16 << 20) / 4096)
      await new Promise(resolve => setTimeout(resolve, 50))
    await daemon.rpc('bdev_rbd_resize', { name: 'grows', new_size: 24 })
    await expect(daemon.rpc('bdev_rbd_resize', { name: 'grows', new_size: 16 })).rejects.toThrow(
      /grows has 24 MiB, and would lose what lies behind 16 MiB.* --size 16M volumes\/grows"/,
    )
    await expect(daemon.rpc('bdev_rbd_resize', { name: 'grows', new_size: 0 })).rejects.toThrow(
      /grows has blocks of \d+ bytes, more than 0/,
    )
    expect((await bdev('grows')).num_blocks).toBe((24 << 20) / 4096)
    expect(JSON.parse(await ceph.run('rbd', 'info', 'volumes/grows', '--format', 'json'))).toMatchObject({
      size: 24 << 20,
    })
  })

  it('compares and writes in one step, within one object', async () => {
    await image('atomic', 8)
    const reactors = new LocalReactorGroup({ ring: true, time: 'real' })
    const bdevs = new BdevRegistry(reactors, [rbdDriver])
    const local = new ReactorBdevs(reactors.reactors[0]!, [rbdDriver])
    const images = new RbdImages(bdevs, reactors)
    const sectors = (count: number, value: number): Buffer => Buffer.alloc(count * 512, value)
    const expected = Buffer.alloc(8 << 20)
    try {
      await reactors.run(images.create(options('atomic')))
      const channel = local.open('atomic')
      const swap = async (firstBlock: number, old: Buffer, data: Buffer): Promise<number> => {
        const type = IoType.COMPARE_AND_WRITE
        const blockCount = data.length / 512
        const request = { type, firstBlock, blockCount, data: Buffer.concat([old, data]), segments: 3 }
        const { status } = await doIo(reactors, channel, request)
        if (status === Status.SUCCESS) data.copy(expected, firstBlock * 512)
        return status
      }
      expect(await swap(5, sectors(1, 0), sectors(1, 1))).toBe(Status.SUCCESS)
      expect(await swap(5, sectors(1, 0), sectors(1, 2))).toBe(Status.COMPARE_FAILURE)
      expect(await swap(5, sectors(1, 1), sectors(1, 3))).toBe(Status.SUCCESS)
      // The last of the first object, and the first of the next.
      expect(await swap(8191, sectors(2, 0), sectors(2, 4))).toBe(Status.ATOMIC_WRITE_UNIT_EXCEEDED)
      // More than one are too many for librbd 16.
      expect([Status.SUCCESS, Status.ATOMIC_WRITE_UNIT_EXCEEDED]).toContain(
        await swap(8, sectors(8, 0), sectors(8, 5)),
      )
      await reactors.run(images.remove('atomic'))
    } finally {
      await reactors.run(images.stop())
      reactors.close()
    }
    expect(expected[5 * 512]).toBe(3)
    expect(sha(await content('atomic'))).toBe(sha(expected))
  })

  it('opens a snapshot, which stays as it was and cannot be written to', async () => {
    await image('past', 8)
    await open('past')
    await io('past', 'write -P 1 0 4k', 'flush')
    await ceph.run('rbd', 'snap', 'create', 'volumes/past@then')
    await open('past', { name: 'then', snapshot: 'then' })
    await io('past', 'write -P 2 0 4k', 'flush')
    expect(await io('then', 'read -P 1 0 4k')).not.toContain('Pattern verification failed')
    await expect(io('then', 'write -P 3 0 4k')).rejects.toThrow('Permission denied')
  })

  it('gives an image the same UUID on every gateway', async () => {
    await image('shared', 8)
    await open('shared')
    const other = await startDaemon()
    try {
      // Monitors tell which cluster it is in a message of its own: here each one comes up to half a second late.
      const late = {
        ms_inject_delay_type: 'mon',
        ms_inject_delay_max: '0.5',
        ms_inject_delay_probability: '1',
      }
      const cluster = { name: 'elsewhere', config_file: ceph.conf, config_param: late }
      await other.rpc('bdev_rbd_register_cluster', cluster)
      await open('shared', { name: 'x', cluster_name: 'elsewhere' }, other)
      expect((await bdev('x', other)).uuid).toBe((await bdev('shared')).uuid)
    } finally {
      await other.stop()
    }
  })

  it('has its clusters and images back after it was killed', async () => {
    await image('kept', 8)
    await open('kept', { config: null })
    const before = await bdev('kept')
    await daemon.restart('SIGKILL')
    // A start waits a few seconds for Ceph, and then goes on without it.
    await eventually(() => bdev('kept').catch(String)).toMatchObject({
      ...{ uuid: before.uuid, num_blocks: before.num_blocks },
    })
    expect(await daemon.rpc('bdev_rbd_get_clusters_info')).toEqual([
      { cluster_name: 'c', user_id: 'admin', config_file: ceph.conf },
    ])
  })

  it('waits while the storage does, and fails nothing', async () => {
    await image('waits')
    await open('waits')
    ceph.signalOsd(0, 'SIGSTOP')
    const loaded = load('waits')
    // Long enough that whoever gives up early would have done so.
    await new Promise(resolve => setTimeout(resolve, 2000))
    ceph.signalOsd(0, 'SIGCONT')
    expect(await loaded).toMatchObject({ errors: 0, miscompares: 0 })
  })

  it('opens, resizes and closes while Ceph does not answer, and its reactor goes on meanwhile', async () => {
    await image('slow', 8)
    const other = await startDaemon({ args: ['--reactors', '1'] })
    try {
      await other.rpc('bdev_rbd_register_cluster', { name: 'c', config_file: ceph.conf })
      await other.rpc('bdev_malloc_create', { name: 'm0', num_blocks: 256, block_size: 4096 })
      await other.rpc('workload_start', { bdev_name: 'm0', read_percent: 50 })
      const completed = async (): Promise<number> => {
        const [{ reads, writes }] = await other.rpc<[Workload & { reads: number }]>('workload_get')
        return reads + writes
      }
      for (const start of [
        () => open('slow', {}, other),
        () => other.rpc('bdev_rbd_resize', { name: 'slow', new_size: 16 }),
        () => other.rpc('bdev_rbd_delete', { name: 'slow' }),
      ]) {
        let isOver = false
        ceph.signalOsd(0, 'SIGSTOP')
        const work = start().finally(() => {
          isOver = true
        })
        // The first as it begins, the others while it waits.
        for (let round = 0; round < 5; round++) {
          const before = await completed()
          await eventually(completed).toBeGreaterThan(before + 10_000)
        }
        expect(isOver).toBe(false)
        ceph.signalOsd(0, 'SIGCONT')
        await work
      }
    } finally {
      ceph.signalOsd(0, 'SIGCONT')
      await other.stop()
    }
  })

  it.each([
    ['the pool', { pool_name: 'nowhere' }, /the pool nowhere does not exist/],
    ['the image', { rbd_name: 'nothing' }, /the image volumes\/nothing does not exist/],
    [
      'the snapshot',
      { rbd_name: 'random', snapshot: 'never' },
      /the image volumes\/random@never does not exist/,
    ],
    ['the cluster', { cluster_name: 'd' }, /there is no cluster d: there are c/],
    ['user and cluster', { user_id: 'me' }, /cluster_name \(c\) and user_id or config/],
  ])('says which part is wrong: %s', async (_what, params, message) => {
    await expect(open('absent', params)).rejects.toThrow(message)
  })

  it('tells of monitors that do not answer, and does other things meanwhile', async () => {
    const registered = daemon.rpc('bdev_rbd_register_cluster', {
      name: 'nobody',
      // The port of "discard", where nobody listens.
      config_param: { mon_host: '[v1:127.0.0.1:9]', client_mount_timeout: '1' },
    })
    await daemon.rpc('bdev_null_create', { name: 'n0', num_blocks: 8, block_size: 512 })
    await expect(registered).rejects.toThrow(/the cluster nobody cannot be reached.*no monitor/)
  })

  it('does everything else on a machine that has no librados, and says what it lacks', async () => {
    const libraries = join(daemon.directory, 'libraries')
    mkdirSync(libraries)
    // The first that is found, and none that can be loaded.
    writeFileSync(join(libraries, 'librados.so.2'), '')
    const without = await startDaemon({ env: { LD_LIBRARY_PATH: libraries } })
    try {
      await expect(without.rpc('bdev_rbd_register_cluster', { name: 'c' })).rejects.toThrow(
        /no librados\.so\.2, which RBD images need: install librbd1 \(Debian, Ubuntu, Fedora, RHEL, SUSE\)/,
      )
      await without.rpc('bdev_null_create', { name: 'n0', num_blocks: 8, block_size: 512 })
    } finally {
      await without.stop()
    }
  })

  it('does not leave a cluster whose images are open', async () => {
    await expect(daemon.rpc('bdev_rbd_unregister_cluster', { name: 'c' })).rejects.toThrow(
      /has \d+ open image/,
    )
  })
})
