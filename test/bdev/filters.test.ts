import { randomUUID } from 'node:crypto'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { drivers } from '../../src/bdev/drivers/index.ts'
import { IoType } from '../../src/bdev/io.ts'
import { bdevMethods } from '../../src/bdev/methods.ts'
import { ReactorBdevs } from '../../src/bdev/reactor-bdevs.ts'
import { BdevRegistry } from '../../src/bdev/registry.ts'
import { Status } from '../../src/spec/nvme-status.ts'
import { doIo, PendingIo } from '../support/io.ts'
import { LocalReactorGroup } from '../support/reactor.ts'

let reactors: LocalReactorGroup
let bdevs: BdevRegistry
let local: ReactorBdevs

beforeEach(async () => {
  reactors = new LocalReactorGroup()
  bdevs = new BdevRegistry(reactors, drivers)
  local = new ReactorBdevs(reactors.reactors[0]!, drivers)
  await bdevs.create('malloc', 'm0', { block_size: 512, num_blocks: 64 })
})

afterEach(() => reactors.close())

/** Calls a method as the server does, after its parameters were checked. */
async function call(name: string, params: unknown): Promise<unknown> {
  const found = bdevMethods.find(one => one.name === name)!
  const run = found.run as (params: unknown, context: { bdevs: BdevRegistry }) => unknown
  return reactors.run(Promise.resolve(run(found.params.parse(params), { bdevs })))
}

const SLOW = {
  avg_read_latency: 100,
  p99_read_latency: 1000,
  avg_write_latency: 200,
  p99_write_latency: 2000,
}

describe('delay', () => {
  beforeEach(() => call('bdev_delay_create', { name: 'd0', base_bdev_name: 'm0', ...SLOW }))

  it('holds a read for the average latency and one in a hundred for the p99', () => {
    const channel = local.open('d0')
    const reads = Array.from(
      { length: 100 },
      () => new PendingIo(channel, { type: IoType.READ, blockCount: 1 }),
    )
    const countDone = (): number => reads.filter(read => read.isDone).length
    reactors.settle()
    reactors.advance(99)
    expect(countDone()).toBe(0)
    reactors.advance(1)
    expect(countDone()).toBe(99)
    reactors.advance(899)
    expect(countDone()).toBe(99)
    reactors.advance(1)
    expect(countDone()).toBe(100)
  })

  it('lets everything else pass', () => {
    const flush = new PendingIo(local.open('d0'), { type: IoType.FLUSH })
    reactors.settle()
    expect(flush.status).toBe(Status.SUCCESS)
  })

  it('takes over a new latency for what comes, not for what is outstanding', async () => {
    const channel = local.open('d0')
    const before = new PendingIo(channel, { type: IoType.WRITE, blockCount: 1 })
    await call('bdev_delay_update_latency', {
      delay_bdev_name: 'd0',
      latency_type: 'avg_write',
      latency_us: 300,
    })
    const after = new PendingIo(channel, { type: IoType.WRITE, blockCount: 1 })
    reactors.settle()
    reactors.advance(200)
    expect([before.isDone, after.isDone]).toEqual([true, false])
    reactors.advance(100)
    expect(after.status).toBe(Status.SUCCESS)
  })

  it('refuses an average above its p99, and changes nothing', async () => {
    const update = { delay_bdev_name: 'd0', latency_type: 'avg_read', latency_us: 1001 }
    await expect(call('bdev_delay_update_latency', update)).rejects.toMatchObject({
      code: 'EINVAL',
      message: expect.stringContaining('avg_read_latency of 1001 us above its p99_read_latency of 1000 us'),
    })
    expect(bdevs.get('d0').driverSpecific).toEqual({
      delay: { name: 'd0', base_bdev_name: 'm0', ...SLOW },
    })
  })

  it('is saved with its present latencies', async () => {
    await call('bdev_delay_update_latency', {
      delay_bdev_name: 'd0',
      latency_type: 'p99_read',
      latency_us: 5 ** 6,
    })
    expect(bdevs.config().at(-1)).toEqual({
      method: 'bdev_delay_create',
      params: {
        name: 'd0',
        base_bdev_name: 'm0',
        ...SLOW,
        p99_read_latency: 15625,
        uuid: bdevs.get('d0').uuid,
      },
    })
  })

  it('ends what it holds, and no longer holds what the base has yet to end, when it is aborted', () => {
    const channel = local.open('d0')
    const held = new PendingIo(channel, { type: IoType.READ, blockCount: 1 })
    reactors.settle()
    const onItsWay = new PendingIo(channel, { type: IoType.READ, blockCount: 1 })
    channel.abort(null)
    reactors.settle()
    expect([held.statuses, onItsWay.statuses]).toEqual([[Status.ABORTED_BY_REQUEST], [Status.SUCCESS]])
  })

  it('can be removed while it holds I/O', async () => {
    const held = new PendingIo(local.open('d0'), { type: IoType.READ, blockCount: 1 })
    reactors.settle()
    await reactors.run(bdevs.remove('d0'))
    reactors.settle()
    expect(held.statuses).toEqual([Status.ABORTED_BY_REQUEST])
  })
})

describe('error', () => {
  const inject = (params: object) => call('bdev_error_inject_error', { name: 'EE_m0', ...params })
  const write = (data: Uint8Array) =>
    doIo(reactors, local.open('EE_m0'), { type: IoType.WRITE, blockCount: 1, data, segments: 2 })
  const read = () => doIo(reactors, local.open('EE_m0'), { type: IoType.READ, blockCount: 1, segments: 3 })
  const ones = new Uint8Array(512).fill(1)

  beforeEach(() => call('bdev_error_create', { base_name: 'm0' }))

  it('fails so many I/Os of a type as asked, whatever reactor they come by', async () => {
    await inject({ io_type: 'write', error_type: 'failure', num: 2 })
    const statuses = []
    for (let i = 0; i < 3; i++) statuses.push((await write(ones)).status, (await read()).status)
    expect(statuses).toEqual([Status.INTERNAL_ERROR, 0, Status.INTERNAL_ERROR, 0, 0, 0])
  })

  it('fails with the NVMe status that was asked for', async () => {
    await inject({ io_type: 'all', error_type: 'nvme_failure', nvme_sct: 2, nvme_sc: 0x81 })
    expect((await read()).status).toBe(Status.UNRECOVERED_READ_ERROR)
    expect((await read()).status).toBe(Status.SUCCESS)
  })

  it('forgets every injection with clear', async () => {
    await inject({ io_type: 'all', error_type: 'failure', num: 100 })
    await inject({ io_type: 'clear', error_type: 'failure' })
    expect((await read()).status).toBe(Status.SUCCESS)
  })

  it('holds I/O until it is resumed', async () => {
    await inject({ io_type: 'read', error_type: 'pending' })
    const held = new PendingIo(local.open('EE_m0'), { type: IoType.READ, blockCount: 1 })
    reactors.settle()
    expect(held.isDone).toBe(false)
    await call('bdev_error_resume_pending', { name: 'EE_m0' })
    reactors.settle()
    expect(held.statuses).toEqual([Status.SUCCESS])
  })

  it('lets a reset end what it holds', () => {
    return inject({ io_type: 'read', error_type: 'pending' }).then(() => {
      const channel = local.open('EE_m0')
      const held = new PendingIo(channel, { type: IoType.READ, blockCount: 1 })
      const reset = new PendingIo(channel, { type: IoType.RESET })
      reactors.settle()
      expect([held.statuses, reset.statuses]).toEqual([[Status.ABORTED_BY_REQUEST], [Status.SUCCESS]])
    })
  })

  it('corrupts one byte of what is read, or of what is written but not of the data of the writer', async () => {
    const corrupt = { error_type: 'corrupt_data', corrupt_offset: 300, corrupt_value: 0x80 }
    const damaged = ones.slice()
    damaged[300] = 0x81
    await write(ones)
    await inject({ io_type: 'read', ...corrupt })
    expect((await read()).data).toEqual(damaged)
    expect((await read()).data).toEqual(ones)

    await inject({ io_type: 'write', ...corrupt })
    expect((await write(ones)).data).toEqual(ones)
    expect((await read()).data).toEqual(damaged)
  })

  it('tries again what there was no memory for', async () => {
    await inject({ io_type: 'read', error_type: 'nomem', num: 3 })
    expect((await read()).status).toBe(Status.SUCCESS)
    await inject({ io_type: 'read', error_type: 'failure', num: 1 })
    expect((await read()).status).toBe(Status.INTERNAL_ERROR)
  })

  it('fails only while enough is outstanding', async () => {
    await inject({ io_type: 'read', error_type: 'failure', num: 10, queue_depth: 3 })
    const channel = local.open('EE_m0')
    const reads = Array.from(
      { length: 4 },
      () => new PendingIo(channel, { type: IoType.READ, blockCount: 1 }),
    )
    reactors.settle()
    // The failed one is outstanding no more when the fourth comes.
    expect(reads.map(one => one.status)).toEqual([0, 0, Status.INTERNAL_ERROR, Status.INTERNAL_ERROR])
  })

  it.each([
    [{ io_type: 'read', error_type: 'corrupt_data' }, 'a corrupt_value of 0 changes nothing'],
    [{ io_type: 'read', error_type: 'nvme_failure' }, 'nvme_sct 0 with nvme_sc 0 is success'],
  ])('refuses %j', async (params, message) => {
    await expect(inject(params)).rejects.toThrow(message)
  })
})

describe('passthru', () => {
  beforeEach(() => call('bdev_passthru_create', { name: 'p0', base_bdev_name: 'm0' }))

  it('claims its base', async () => {
    expect(await call('bdev_get_bdevs', { name: 'm0' })).toMatchObject([
      { claimed: true, claim_type: 'exclusive_write' },
    ])
    await expect(
      call('bdev_passthru_create', {
        name: 'p1',
        base_bdev_name: 'm0',
        uuid: randomUUID(),
      }),
    ).rejects.toMatchObject({
      code: 'EPERM',
      message: expect.stringContaining('passthru bdev p0 has it for itself'),
    })
  })

  it('gives its base back when it goes', async () => {
    await call('bdev_passthru_delete', { name: 'p0' })
    expect(await call('bdev_get_bdevs', { name: 'm0' })).toMatchObject([{ claimed: false }])
    await call('bdev_passthru_create', { name: 'p1', base_bdev_name: 'm0' })
  })

  it('goes before its base', async () => {
    const gone: string[] = []
    bdevs.listen({ removed: ({ name }) => gone.push(name) })
    local.open('p0')
    await call('bdev_malloc_delete', { name: 'm0' })
    expect(gone).toEqual(['p0', 'm0'])
  })

  it('grows with its base', async () => {
    await bdevs.create('null', 'n0', { block_size: 512, num_blocks: 4096 })
    await bdevs.create('passthru', 'p1', { base_bdev_name: 'n0' })
    await call('bdev_null_resize', { name: 'n0', new_size: 4 })
    expect(bdevs.get('p1').blockCount).toBe(8192)
    expect(local.find('p1')!.blockCount).toBe(8192)
  })

  it('refuses a base that does not exist', async () => {
    await expect(call('bdev_passthru_create', { name: 'p1', base_bdev_name: 'm9' })).rejects.toMatchObject({
      code: 'ENODEV',
      message: 'there is no bdev m9: there are m0, p0',
    })
  })
})

it.each([
  ['delay', { base_bdev_name: 'm1', ...SLOW }],
  ['error', { base_name: 'm1' }],
  ['passthru', { base_bdev_name: 'm1' }],
])('a %s filter has the private cache of its base', async (driver, params) => {
  const privateCache = { heldBytesMax: 4096, what: 'a cache', remedy: 'switch it off' }
  await reactors.run(bdevs.add({ ...bdevs.get('m0'), name: 'm1', uuid: randomUUID(), privateCache }))
  await reactors.run(bdevs.create(driver, 'f1', params))
  expect(bdevs.get('f1').privateCache).toEqual(privateCache)
})
