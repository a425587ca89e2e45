/** The virtio driver over a back end of others: the vhost-user-blk export of QEMU's storage daemon. */
import { execFile } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { readFileSync, statSync, truncateSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { promisify } from 'node:util'
import { afterEach, beforeEach, expect, it } from 'vitest'
import { type Daemon, startDaemon } from './lab/daemon.ts'
import { describeWith } from './lab/describe-with.ts'
import { findProgram, type Program } from './lab/packages.ts'
import { StorageDaemon } from './lab/storage-daemon.ts'

const MIB = 1 << 20
const SIZE = 64 * MIB
const REACTORS = 2
const PROGRAMS = ['setpriv', 'qemu-storage-daemon', 'qemu-io', 'nbdcopy'] as const

interface Report {
  readonly reads: number
  readonly writes: number
  readonly errors: number
  readonly miscompares: number
  readonly read_backs: number
  readonly in_flight: number
  readonly first_errors: string[]
}

interface Bdev {
  readonly num_blocks: number
  readonly block_size: number
  readonly supported_io_types: Record<string, boolean>
  readonly driver_specific: { readonly virtio: Record<string, unknown> }
}

async function run(program: Program, ...args: string[]): Promise<string> {
  const { stdout } = await promisify(execFile)(findProgram(program)!, args, { maxBuffer: 1 << 26 })
  return stdout
}

await describeWith(PROGRAMS, "a disk of QEMU's storage daemon", () => {
  let daemon: Daemon
  let backEnd: StorageDaemon
  const path = (name: string): string => join(daemon.directory, name)
  const attach = (options: object = {}): Promise<string[]> =>
    daemon.rpc('bdev_virtio_attach_controller', {
      name: 'V0',
      trtype: 'user',
      traddr: path('disk.sock'),
      dev_type: 'blk',
      ...options,
    })
  const detach = (): Promise<true> => daemon.rpc('bdev_virtio_detach_controller', { name: 'V0' })
  const disk = async (): Promise<Bdev> => (await daemon.rpc<Bdev[]>('bdev_get_bdevs', { name: 'V0' }))[0]!
  const report = async (id: number): Promise<Report> =>
    (await daemon.rpc<Report[]>('workload_get', { id }))[0]!
  const startWorkload = (options: object): Promise<number> =>
    daemon.rpc('workload_start', { bdev_name: 'V0', verify: true, read_percent: 50, ...options })
  const stopWorkload = (id: number): Promise<Report> => daemon.rpc('workload_stop', { id })
  const exportUri = async (): Promise<string> => {
    const { uri } = await daemon.rpc<{ uri: string }>('nbd_export_start', {
      bdev_name: 'V0',
      unix: path('nbd.sock'),
    })
    return uri
  }

  /** Waits until the workload has done so many more I/Os. */
  async function progress(id: number, more: number): Promise<void> {
    const count = ({ reads, writes }: Report): number => reads + writes
    const before = count(await report(id))
    while (count(await report(id)) < before + more) await delay(5)
  }

  function newBackEnd(options: { queues?: number; readOnly?: boolean } = {}): StorageDaemon {
    return new StorageDaemon({
      image: path('disk.raw'),
      socket: path('disk.sock'),
      queues: REACTORS,
      ...options,
    })
  }

  beforeEach(async () => {
    daemon = await startDaemon({ args: ['--reactors', String(REACTORS)] })
    writeFileSync(path('disk.raw'), '')
    truncateSync(path('disk.raw'), SIZE)
    backEnd = newBackEnd()
    await backEnd.start()
  })
  afterEach(async () => {
    await daemon.stop()
    await backEnd.kill()
  })

  it('appears under the name of its controller, with what the back end can do', async () => {
    expect(await attach({ vq_size: 128 })).toEqual(['V0'])
    const { num_blocks, block_size, supported_io_types, driver_specific } = await disk()
    expect(num_blocks * block_size).toBe(SIZE)
    expect(supported_io_types).toMatchObject({
      read: true,
      write: true,
      unmap: true,
      write_zeroes: true,
      flush: true,
    })
    expect(driver_specific.virtio).toEqual({
      vq_count: REACTORS,
      vq_size: 128,
      packed_ring: false,
      type: 'user',
      socket: path('disk.sock'),
    })
    await detach()
    expect(await daemon.rpc('bdev_get_bdevs')).toEqual([])
    // QEMU's storage daemon turns a front end away until it has seen that the last one has gone.
    await expect.poll(() => attach().catch(String), { timeout: 60_000 }).toEqual(['V0'])
  })

  it('takes an image and gives it back, in requests of every size', async () => {
    await attach()
    const uri = await exportUri()
    const image = randomBytes(SIZE)
    writeFileSync(path('image'), image)
    await run('nbdcopy', '--connections=4', path('image'), uri)
    expect(readFileSync(path('disk.raw')).equals(image)).toBe(true)
    await run('nbdcopy', '--connections=4', '--synchronous', uri, path('copy'))
    expect(readFileSync(path('copy')).equals(image)).toBe(true)
    await run('nbdcopy', '--connections=2', '--request-size=33554432', '--requests=4', uri, path('copy'))
    expect(readFileSync(path('copy')).equals(image)).toBe(true)
  })

  it('writes zeroes, discards and flushes', async () => {
    await attach()
    const uri = await exportUri()
    const io = (...commands: string[]): Promise<string> =>
      run('qemu-io', '-f', 'raw', '-d', 'unmap', ...commands.flatMap(command => ['-c', command]), uri)
    await io('write -P 0x5a 0 8M', 'write -z 1M 64k', 'write -f -P 0x77 3M 4k', 'flush', 'discard 4M 4M')
    await io('read -P 0x5a 0 1M', 'read -P 0 1M 64k', 'read -P 0x77 3M 4k', 'read -P 0 4M 4M')
    // Half of what was written is gone, so that the file has less than that.
    expect(statSync(path('disk.raw')).blocks * 512).toBeLessThan(5 * MIB)
  })

  it('is verified under random load, in small and in large I/Os', async () => {
    await attach()
    for (const [io_size, io_count] of [
      [512, 20_000],
      [4096, 20_000],
      [MIB, 300],
    ]) {
      const id = await startWorkload({ io_size, queue_depth: 16 })
      await progress(id, io_count!)
      const { errors, miscompares, read_backs } = await stopWorkload(id)
      expect({ errors, miscompares }).toEqual({ errors: 0, miscompares: 0 })
      expect(read_backs).toBeGreaterThan(0)
    }
  })

  it('is read only where the back end is', async () => {
    await backEnd.kill()
    backEnd = newBackEnd({ readOnly: true })
    await backEnd.start()
    await attach()
    expect((await disk()).supported_io_types).toMatchObject({ read: true, write: false, unmap: false })
  })

  // Version 7.2 tells nobody when its disk is resized.
  it('has grown when its back end comes back with a larger disk', async () => {
    await attach()
    await backEnd.kill()
    truncateSync(path('disk.raw'), 2 * SIZE)
    await backEnd.start()
    while ((await disk()).num_blocks * 512 !== 2 * SIZE) await delay(5)
    const id = await startWorkload({ io_size: MIB })
    await progress(id, 500)
    expect(await stopWorkload(id)).toMatchObject({ errors: 0, miscompares: 0 })
  })

  it('waits while the back end is killed and started again, five times, and loses nothing', async () => {
    await attach()
    const id = await startWorkload({ io_size: 8192, queue_depth: 64 })
    for (let kill = 0; kill < 5; kill++) {
      await progress(id, 2000)
      await backEnd.kill()
      await backEnd.start()
    }
    await progress(id, 2000)
    const { errors, miscompares, first_errors } = await stopWorkload(id)
    expect({ errors, miscompares, first_errors }).toEqual({ errors: 0, miscompares: 0, first_errors: [] })
    expect(daemon.output).toMatch(/V0: the connection to .*disk\.sock is lost: .*I\/O waits until it is back/)
  })

  it('does not take back a disk that is another one', async () => {
    await attach()
    const id = await startWorkload({ io_size: 8192 })
    await progress(id, 100)
    await backEnd.kill()
    backEnd = newBackEnd({ readOnly: true })
    await backEnd.start()
    while (!daemon.output.includes('V0 is another disk: it is read only now')) await delay(5)
    await backEnd.kill()
    backEnd = newBackEnd()
    await backEnd.start()
    await progress(id, 100)
    expect(await stopWorkload(id)).toMatchObject({ errors: 0, miscompares: 0 })
  })

  it('fails what waits for a dead back end when it is detached', async () => {
    await attach()
    const id = await startWorkload({ io_size: 4096, queue_depth: 8 })
    await progress(id, 100)
    await backEnd.kill()
    await detach()
    const { errors, miscompares } = await stopWorkload(id)
    expect(errors).toBeGreaterThan(0)
    expect(miscompares).toBe(0)
  })

  it('is detached from a back end that hangs', async () => {
    await attach()
    const id = await startWorkload({ io_size: 4096, queue_depth: 8 })
    await progress(id, 100)
    backEnd.signal('SIGSTOP')
    await detach()
    await stopWorkload(id)
    // QEMU 7.2 ends now and then when it goes on after that.
    await backEnd.kill()
    await backEnd.start()
    expect(await attach()).toEqual(['V0'])
  })

  it('comes back with the daemon, and once its back end is there', async () => {
    await attach({ vq_size: 64 })
    await daemon.kill()
    await backEnd.kill()
    await daemon.start()
    expect(await daemon.rpc('bdev_get_bdevs')).toEqual([])
    await backEnd.start()
    while ((await daemon.rpc<unknown[]>('bdev_get_bdevs')).length === 0) await delay(5)
    expect((await disk()).driver_specific.virtio).toMatchObject({ vq_size: 64 })
  })

  it('is refused with the reason and the remedy', async () => {
    await expect(attach({ traddr: path('nobody.sock') })).rejects.toThrow(
      /cannot connect to .*nobody\.sock \(ENOENT\): start the back end, or correct the path/,
    )
    await expect(attach({ trtype: 'pci' })).rejects.toThrow(/trtype pci is not supported/)
    await expect(attach({ vq_size: 100 })).rejects.toThrow(/vq_size 100 is no power of two/)
    await expect(attach({ packed_ring: true })).rejects.toThrow(/has only split rings/)
    await backEnd.kill()
    backEnd = newBackEnd({ queues: 1 })
    await backEnd.start()
    await expect(attach()).rejects.toThrow(
      /has 1 request queues and this daemon 2 reactors, .*\(num-queues\), or run the daemon on fewer processors/,
    )
    expect(await daemon.rpc('bdev_get_bdevs')).toEqual([])
  })
})
