/** One daemon's disks used by another: the virtio driver over the vhost controllers. */
import { truncateSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { type Daemon, startDaemon } from './lab/daemon.ts'
import { describeWith } from './lab/describe-with.ts'
import { startVhost, type VhostTarget } from './lab/vhost.ts'

const MIB = 1 << 20
const SIZE = 64 * MIB

interface Report {
  readonly reads: number
  readonly writes: number
  readonly errors: number
  readonly miscompares: number
  readonly read_backs: number
  readonly first_errors: string[]
}

interface Bdev {
  readonly name: string
  readonly num_blocks: number
  readonly block_size: number
  readonly supported_io_types: Record<string, boolean>
}

const CLEAN = { errors: 0, miscompares: 0, first_errors: [] }

await describeWith(['setpriv'], 'a disk of another daemon', () => {
  let target: VhostTarget
  let host: Daemon

  const attach = (dev_type: string, options: object = {}): Promise<string[]> =>
    host.rpc('bdev_virtio_attach_controller', {
      name: 'V0',
      trtype: 'user',
      traddr: join(target.sockets, 'disk'),
      dev_type,
      ...options,
    })
  const names = async (): Promise<string[]> =>
    (await host.rpc<Bdev[]>('bdev_get_bdevs')).map(({ name }) => name)
  const bdev = async (name: string): Promise<Bdev> => (await host.rpc<Bdev[]>('bdev_get_bdevs', { name }))[0]!
  const createBlk = (options: object = {}): Promise<string> => target.serveBlk('disk', 'file', options)
  const createScsi = (): Promise<string> => target.serveScsi('disk', ['file'])

  const startWorkload = (bdev_name: string, options: object = {}): Promise<number> =>
    host.rpc('workload_start', { bdev_name, verify: true, read_percent: 50, io_size: 8192, ...options })
  const stopWorkload = (id: number): Promise<Report> => host.rpc('workload_stop', { id })

  /** Waits until the workload has done so many more I/Os. */
  async function progress(id: number, more: number): Promise<void> {
    const count = async (): Promise<number> => {
      const [report] = await host.rpc<Report[]>('workload_get', { id })
      return report!.reads + report!.writes
    }
    const before = await count()
    while ((await count()) < before + more) await delay(5)
  }

  async function grow(): Promise<void> {
    truncateSync(join(target.daemon.directory, 'image'), 2 * SIZE)
    await target.daemon.rpc('bdev_aio_rescan', { name: 'file' })
  }

  beforeEach(async () => {
    target = await startVhost({ args: ['--reactors', '2'] })
    host = await startDaemon({ args: ['--reactors', '2', '-L', 'virtio'] })
    await target.daemon.rpc('bdev_aio_create', {
      name: 'file',
      filename: target.image('image', SIZE),
      block_size: 512,
    })
  })
  afterEach(async () => {
    await host.stop()
    await target.stop()
  })

  describe.each([
    ['blk', 'split', 'V0'],
    ['blk', 'packed', 'V0'],
    ['scsi', 'split', 'V0t0'],
  ])('by %s over %s rings', (kind, rings, name) => {
    const packed_ring = rings === 'packed'
    beforeEach(() => (kind === 'blk' ? createBlk({ packed_ring }) : createScsi()))

    it('is verified under load, in small and in large I/Os', async () => {
      expect(await attach(kind, { packed_ring })).toEqual([name])
      for (const [io_size, count] of [
        [512, 20_000],
        [MIB, 300],
      ]) {
        const id = await startWorkload(name, { io_size, queue_depth: 48 })
        await progress(id, count!)
        const report = await stopWorkload(id)
        expect(report).toMatchObject(CLEAN)
        expect(report.read_backs).toBeGreaterThan(0)
      }
    })

    it('goes on where it was each time the other daemon is killed, and loses nothing', async () => {
      await attach(kind, { packed_ring })
      const id = await startWorkload(name, { queue_depth: 64 })
      for (let kill = 0; kill < 5; kill++) {
        await progress(id, 3000)
        await target.daemon.restart('SIGKILL')
      }
      await progress(id, 3000)
      expect(await stopWorkload(id)).toMatchObject(CLEAN)
      expect(host.output.match(/goes on with what was in flight/g)).toHaveLength(5)
    })

    it('grows while it is in use', async () => {
      await attach(kind, { packed_ring })
      const id = await startWorkload(name)
      await grow()
      while ((await bdev(name)).num_blocks !== (2 * SIZE) / 512) await delay(5)
      await progress(id, 1000)
      expect(await stopWorkload(id)).toMatchObject(CLEAN)
    })
  })

  it('is read only where the other daemon says so', async () => {
    await createBlk({ readonly: true })
    await attach('blk')
    const { supported_io_types } = await bdev('V0')
    expect(supported_io_types).toMatchObject({ read: true, write: false, unmap: false, write_zeroes: false })
  })

  it('is refused as a device of the other kind, with the kind that it is', async () => {
    await createScsi()
    await expect(attach('blk')).rejects.toThrow('attach it with dev_type scsi')
    // The target hears a moment later that the front end has gone, and deletes no controller before.
    const frontEnds = async (): Promise<number> =>
      (await target.daemon.rpc<{ sessions: unknown[] }[]>('vhost_get_controllers', { name: 'disk' }))[0]!
        .sessions.length
    while ((await frontEnds()) > 0) await delay(5)
    await target.daemon.rpc('vhost_delete_controller', { ctrlr: 'disk' })
    await createBlk()
    await expect(attach('scsi')).rejects.toThrow('attach it with dev_type blk')
    expect(await names()).toEqual([])
  })

  it('comes and goes with its SCSI target', async () => {
    await createScsi()
    expect(await attach('scsi')).toEqual(['V0t0'])
    await target.daemon.rpc('bdev_malloc_create', { name: 'memory', block_size: 4096, num_blocks: 4096 })
    await target.addTarget('disk', 5, 'memory')
    while ((await names()).length < 2) await delay(5)
    expect(await bdev('V0t5')).toMatchObject({ block_size: 4096, num_blocks: 4096 })
    const id = await startWorkload('V0t5')
    await progress(id, 1000)
    await target.removeTarget('disk', 0)
    while ((await names()).includes('V0t0')) await delay(5)
    await progress(id, 1000)
    expect(await stopWorkload(id)).toMatchObject(CLEAN)
    expect(await names()).toEqual(['V0t5'])
    expect(await host.rpc('bdev_virtio_scsi_get_devices')).toMatchObject([
      { name: 'V0', virtio: { vq_count: 4, type: 'user', connected: true } },
    ])
  })

  it('can be of the daemon itself', async () => {
    await createBlk()
    await target.daemon.rpc('bdev_virtio_attach_controller', {
      name: 'V0',
      trtype: 'user',
      traddr: join(target.sockets, 'disk'),
      dev_type: 'blk',
    })
    const id = await target.daemon.rpc<number>('workload_start', {
      bdev_name: 'V0',
      verify: true,
      read_percent: 50,
      io_count: 5000,
    })
    expect(await target.daemon.rpc('workload_stop', { id })).toMatchObject(CLEAN)
  })
})
