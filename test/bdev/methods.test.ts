import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { drivers } from '../../src/bdev/drivers/index.ts'
import { IoType } from '../../src/bdev/io.ts'
import { bdevMethods } from '../../src/bdev/methods.ts'
import { ReactorBdevs } from '../../src/bdev/reactor-bdevs.ts'
import { BdevRegistry } from '../../src/bdev/registry.ts'
import { doIo, PendingIo } from '../support/io.ts'
import { LocalReactorGroup } from '../support/reactor.ts'

let reactors: LocalReactorGroup
let bdevs: BdevRegistry
let local: ReactorBdevs[]

beforeEach(async () => {
  reactors = new LocalReactorGroup({ count: 2 })
  bdevs = new BdevRegistry(reactors, drivers)
  local = reactors.reactors.map(reactor => new ReactorBdevs(reactor, drivers))
})

afterEach(() => reactors.close())

/** Calls a method as the server does: its parameters are checked, and so is its result. */
async function call(name: string, params: unknown = {}): Promise<unknown> {
  const found = bdevMethods.find(one => one.name === name)!
  const run = found.run as (params: unknown, context: { bdevs: BdevRegistry }) => unknown
  return found.result.parse(await reactors.run(Promise.resolve(run(found.params.parse(params), { bdevs }))))
}

const GEOMETRY = { block_size: 512, num_blocks: 64 }

describe('bdev_get_bdevs', () => {
  it("shows SPDK's fields in SPDK's order", async () => {
    await call('bdev_malloc_create', { name: 'm0', ...GEOMETRY, physical_block_size: 4096 })
    const [bdev] = (await call('bdev_get_bdevs')) as Record<string, unknown>[]
    // The order of lib/bdev/bdev_rpc.c, rpc_dump_bdev_info; what is optional there and absent here is left out.
    expect(Object.keys(bdev!)).toEqual(
      `name aliases product_name block_size num_blocks preferred_write_alignment preferred_write_granularity
       optimal_write_size preferred_unmap_alignment preferred_unmap_granularity uuid assigned_rate_limits claimed zoned
       supported_io_types driver_specific`.split(/\s+/),
    )
    expect(Object.keys(bdev!['supported_io_types'] as object)).toEqual(
      `read write unmap flush reset nvme_admin nvme_io nvme_io_md write_zeroes zcopy get_zone_info zone_management
       zone_append compare compare_and_write abort seek_hole seek_data copy nvme_iov_md nvme_nssr write_uncorrectable`.split(
        /\s+/,
      ),
    )
    expect(bdev).toMatchObject({ product_name: 'Malloc disk', aliases: [bdev!['uuid']] })
  })

  it('waits for a device to appear, for as long as it was told', async () => {
    await expect(call('bdev_get_bdevs', { name: 'm0' })).rejects.toMatchObject({ code: 'ENODEV' })
    await expect(call('bdev_get_bdevs', { name: 'm0', timeout: 1 })).rejects.toMatchObject({ code: 'ENODEV' })
    const waiting = call('bdev_get_bdevs', { name: 'm0', timeout: 60_000 })
    await call('bdev_malloc_create', { name: 'm0', ...GEOMETRY })
    expect(await waiting).toMatchObject([{ name: 'm0' }])
  })
})

describe('bdev_malloc_create and bdev_null_create', () => {
  it('names a device that was given no name', async () => {
    const name = (await call('bdev_malloc_create', GEOMETRY)) as string
    expect(name).toMatch(/^Malloc\d+$/)
    expect(await call('bdev_malloc_create', GEOMETRY)).not.toBe(name)
  })

  it.each([
    [{ block_size: 513 }, 'EINVAL', 'n0 has a block_size of 513 bytes: use a power of two from 512 to 65536'],
    [{ block_size: 131072 }, 'EINVAL', 'n0 has a block_size of 131072 bytes'],
    [{ num_blocks: 0 }, 'EINVAL', 'n0 has 0 blocks'],
    [{ num_blocks: 2 ** 53 - 1 }, 'EINVAL', 'more than 2^53 bytes'],
    [{ physical_block_size: 1000 }, 'EINVAL', 'n0 has a physical_block_size of 1000 bytes'],
    [{ md_size: 8 }, 'ENOTSUP', 'n0 cannot have md_size 8 and dif_type 0'],
  ])('refuses %j', async (wrong, code, message) => {
    for (const method of ['bdev_null_create', 'bdev_malloc_create']) {
      await expect(call(method, { name: 'n0', ...GEOMETRY, ...wrong })).rejects.toMatchObject({
        code,
        message: expect.stringContaining(message),
      })
    }
    expect(bdevs.list()).toEqual([])
  })

  it('refuses more memory than the machine has', async () => {
    const huge = { name: 'm0', block_size: 4096, num_blocks: 2 ** 40 }
    await expect(call('bdev_malloc_create', huge)).rejects.toMatchObject({ code: 'ENOMEM' })
  })

  it('deletes only what is its own', async () => {
    await call('bdev_null_create', { name: 'n0', ...GEOMETRY })
    await expect(call('bdev_malloc_delete', { name: 'n0' })).rejects.toMatchObject({
      code: 'ENODEV',
      message: 'n0 is a null bdev, not malloc: use bdev_null_delete',
    })
    expect(await call('bdev_null_delete', { name: 'n0' })).toBe(true)
    expect(bdevs.list()).toEqual([])
  })
})

describe('bdev_get_iostat', () => {
  beforeEach(async () => {
    await call('bdev_malloc_create', { name: 'm0', ...GEOMETRY })
    await call('bdev_delay_create', {
      name: 'd0',
      base_bdev_name: 'm0',
      avg_read_latency: 30,
      p99_read_latency: 30,
      avg_write_latency: 0,
      p99_write_latency: 0,
    })
    await doIo(reactors, local[0]!.open('d0'), {
      type: IoType.WRITE,
      blockCount: 4,
      data: new Uint8Array(2048),
    })
    await doIo(reactors, local[1]!.open('d0'), {
      type: IoType.WRITE,
      blockCount: 2,
      data: new Uint8Array(1024),
    })
    await doIo(reactors, local[1]!.open('d0'), { type: IoType.READ, firstBlock: 64, blockCount: 1 })
    for (const us of [30, 40]) {
      const read = new PendingIo(local[1]!.open('d0'), { type: IoType.READ, blockCount: 8 })
      reactors.settle()
      reactors.advance(us)
      expect(read.isDone).toBe(true)
    }
  })

  it('adds up what all reactors did, with latencies in microseconds', async () => {
    expect(await call('bdev_get_iostat', { names: ['d0'] })).toMatchObject({
      tick_rate: 1_000_000,
      bdevs: [
        {
          name: 'd0',
          bytes_written: 3072,
          num_write_ops: 2,
          bytes_read: 8192,
          num_read_ops: 2,
          read_latency_ticks: 70,
          max_read_latency_ticks: 40,
          min_read_latency_ticks: 30,
          io_error: { lba_out_of_range: 1 },
        },
      ],
    })
  })

  it('shows each reactor on its own', async () => {
    const { channels } = (await call('bdev_get_iostat', { names: ['d0'], per_channel: true })) as {
      channels: object[]
    }
    expect(channels).toMatchObject([
      { thread_id: 1, num_write_ops: 1, num_read_ops: 0 },
      { thread_id: 2, num_write_ops: 1, num_read_ops: 2 },
    ])
    await expect(call('bdev_get_iostat', { per_channel: true })).rejects.toMatchObject({ code: 'EINVAL' })
  })

  it('forgets what it is told to forget, after it has shown it', async () => {
    await call('bdev_get_iostat', { names: ['d0'], reset_mode: 'maxmin' })
    expect(await call('bdev_get_iostat', { names: ['d0'], reset_mode: 'all' })).toMatchObject({
      bdevs: [{ num_read_ops: 2, max_read_latency_ticks: 0, min_read_latency_ticks: 0 }],
    })
    const { bdevs: rows } = (await call('bdev_get_iostat', { names: ['d0'] })) as { bdevs: object[] }
    expect(rows[0]).toMatchObject({ num_read_ops: 0, bytes_written: 0 })
    expect(rows[0]).not.toHaveProperty('io_error')
  })

  it('remembers over the closing of a channel', async () => {
    const channel = local[1]!.open('d0')
    for (let i = 0; i < 5; i++) local[1]!.close(channel)
    await call('bdev_reset_iostat', { name: 'm0' })
    expect(await call('bdev_get_iostat')).toMatchObject({
      bdevs: [
        { name: 'm0', num_read_ops: 0 },
        { name: 'd0', num_read_ops: 2 },
      ],
    })
  })
})

describe('bdev_set_qd_sampling_period', () => {
  const row = async (): Promise<object> =>
    ((await call('bdev_get_iostat', { names: ['EE_m0'] })) as { bdevs: object[] }).bdevs[0]!

  it('has the depth of a queue shown until it is told not to', async () => {
    await call('bdev_malloc_create', { name: 'm0', ...GEOMETRY })
    await call('bdev_error_create', { base_name: 'm0' })
    await call('bdev_error_inject_error', { name: 'EE_m0', io_type: 'read', error_type: 'pending' })
    const held = new PendingIo(local[0]!.open('EE_m0'), { type: IoType.READ, blockCount: 1 })
    await call('bdev_set_qd_sampling_period', { name: 'EE_m0', period: 1000 })
    await reactors.until(() => bdevs.queueDepths.get('EE_m0')!.io_time >= 2000)
    expect(await row()).toMatchObject({ queue_depth_polling_period: 1000, queue_depth: 1 })
    await call('bdev_set_qd_sampling_period', { name: 'EE_m0', period: 0 })
    expect(held.isDone).toBe(false)
    expect(await row()).not.toHaveProperty('queue_depth')
  })
})
