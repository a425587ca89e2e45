/** What every device must do, whatever it is made of. */
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import type { Channel } from '../../src/bdev/channel.ts'
import { Extents } from '../../src/bdev/extents.ts'
import { IoType } from '../../src/bdev/io.ts'
import { ReactorBdevs } from '../../src/bdev/reactor-bdevs.ts'
import { BdevRegistry } from '../../src/bdev/registry.ts'
import { isSupported } from '../../src/bdev/support.ts'
import { logSettings } from '../../src/core/log.ts'
import { Prng } from '../../src/core/prng.ts'
import { Status } from '../../src/spec/nvme-status.ts'
import { doIo, type IoRequest, PendingIo } from '../support/io.ts'
import { LocalReactorGroup } from '../support/reactor.ts'
import {
  allDrivers,
  type Bench,
  BLOCK_COUNT,
  BLOCK_SIZE,
  makeDirectories,
  type Subject,
  subjects,
} from './subjects.ts'

// The log is not what is judged here, and hundreds of devices have much to tell.
logSettings.printLevel = 'ERROR'

const SEED = Number(process.env['SEED'] ?? 20261121)
const prng = new Prng(SEED)
const random = (blocks: number): Uint8Array => prng.fill(new Uint8Array(blocks * BLOCK_SIZE))
const zeroes = (blocks: number): Uint8Array => new Uint8Array(blocks * BLOCK_SIZE)
const isEqual = (a: Uint8Array, b: Uint8Array): boolean => Buffer.compare(a, b) === 0

for (const { name, absent } of subjects) {
  if (absent !== undefined) it.skip(`${name}: ${absent}`, () => {})
}

describe.each(subjects.filter(subject => subject.absent === undefined))('$name', (subject: Subject) => {
  let reactors: LocalReactorGroup
  let bench: Bench & { remove(): void }
  let local: ReactorBdevs[]
  let undo: (() => Promise<unknown>)[]
  let name: string
  let channel: Channel

  beforeEach(async () => {
    reactors = new LocalReactorGroup({ count: 2, ring: true, time: 'real' })
    local = reactors.reactors.map(reactor => new ReactorBdevs(reactor, allDrivers))
    undo = []
    const bdevs = new BdevRegistry(reactors, allDrivers)
    bench = { bdevs, reactors, local, ...makeDirectories(), atEnd: each => undo.push(each) }
    name = await reactors.run(subject.create(bench))
    channel = local[0]!.open(name)
  })

  afterEach(async () => {
    for (const info of bench.bdevs.list().reverse()) await reactors.run(bench.bdevs.remove(info.name))
    for (const each of undo) await reactors.run(each())
    reactors.close()
    bench.remove()
  })

  const run = (request: IoRequest) => doIo(reactors, channel, request)
  const write = async (firstBlock: number, data: Uint8Array, more: Partial<IoRequest> = {}) => {
    const blockCount = data.length / BLOCK_SIZE
    expect((await run({ type: IoType.WRITE, firstBlock, blockCount, data, ...more })).status).toBe(0)
  }
  const read = async (firstBlock: number, blockCount: number, segments = 1): Promise<Uint8Array> => {
    const { status, data } = await run({ type: IoType.READ, firstBlock, blockCount, segments })
    expect(status).toBe(Status.SUCCESS)
    return data
  }
  const forgets = subject.forgets !== undefined

  it.skipIf(forgets)('reads what was written, in one segment and in many', async () => {
    const data = random(256)
    await write(100, data)
    await write(BLOCK_COUNT - 256, data, { segments: 7 })
    expect(isEqual(await read(100, 256), data)).toBe(true)
    expect(isEqual(await read(100, 256, 33), data)).toBe(true)
    expect(isEqual(await read(BLOCK_COUNT - 256, 256, 3), data)).toBe(true)
    expect(isEqual(await read(356, 8), zeroes(8))).toBe(true)
  })

  it.skipIf(forgets)('takes more segments than the kernel takes at once', async () => {
    const data = random(BLOCK_COUNT / 2)
    await write(0, data, { segments: 1500 })
    expect(isEqual(await read(0, BLOCK_COUNT / 2, 1300), data)).toBe(true)
  })

  it('reads zeroes before anything is written', async () => {
    expect(isEqual(await read(0, 64, 5), zeroes(64))).toBe(true)
  })

  it('writes through to the medium (FUA), and flushes', async () => {
    await write(8, random(8), { fua: true })
    expect((await run({ type: IoType.FLUSH })).status).toBe(Status.SUCCESS)
  })

  it.each([
    [0, BLOCK_COUNT + 1],
    [BLOCK_COUNT, 1],
    [BLOCK_COUNT - 1, 2],
    [2 ** 53, 1],
    [2 ** 64, 8],
  ])('refuses I/O beyond its end: block %d, %d blocks', async (firstBlock, blockCount) => {
    for (const type of [IoType.WRITE_ZEROES, IoType.READ, IoType.WRITE, IoType.COMPARE]) {
      expect((await run({ type, firstBlock, blockCount })).status).toBe(Status.LBA_OUT_OF_RANGE)
    }
  })

  it.skipIf(forgets)('writes zeroes and nothing else', async () => {
    const data = random(600)
    await write(10, data)
    const zeroing = { type: IoType.WRITE_ZEROES, firstBlock: 17, blockCount: 300, fua: true }
    expect((await run(zeroing)).status).toBe(Status.SUCCESS)
    data.fill(0, 7 * BLOCK_SIZE, 307 * BLOCK_SIZE)
    expect(isEqual(await read(10, 600), data)).toBe(true)
  })

  it('writes zeroes over more than one piece', async () => {
    const zeroing = { type: IoType.WRITE_ZEROES, firstBlock: 1, blockCount: BLOCK_COUNT - 1 }
    expect((await run(zeroing)).status).toBe(Status.SUCCESS)
  })

  it.skipIf(forgets)('keeps what lies around an unmapped range', async context => {
    if (!isSupported(channel.info, IoType.UNMAP)) return context.skip('it cannot unmap')
    const data = random(64)
    await write(0, data)
    expect((await run({ type: IoType.UNMAP, firstBlock: 9, blockCount: 30 })).status).toBe(Status.SUCCESS)
    expect(isEqual(await read(0, 9), data.subarray(0, 9 * BLOCK_SIZE))).toBe(true)
    expect(isEqual(await read(39, 25), data.subarray(39 * BLOCK_SIZE))).toBe(true)
  })

  it.skipIf(forgets)('tells of no hole where there is data', async () => {
    await write(16, random(16))
    await write(1024, random(8))
    const extents = new Extents(16)
    channel.extents(0, 2048, extents)
    const states = new Uint8Array(2048)
    for (let i = 0, block = 0; i < extents.count; i++) {
      states.fill(extents.states[i]!, block, block + extents.lengths[i]!)
      block += extents.lengths[i]!
    }
    expect([...states.subarray(16, 32), ...states.subarray(1024, 1032)]).toEqual(Array(24).fill(0))
  })

  it.skipIf(forgets)('compares', async () => {
    const data = random(40)
    await write(3, data)
    const request = { type: IoType.COMPARE, firstBlock: 3, blockCount: 40, segments: 3 }
    expect((await run({ ...request, data })).status).toBe(Status.SUCCESS)
    data[data.length - 1]! ^= 1
    expect((await run({ ...request, data })).status).toBe(Status.COMPARE_FAILURE)
  })

  it.skipIf(forgets)('compares and writes as one', async () => {
    const before = random(4)
    const after = random(4)
    await write(3, before)
    const request = { type: IoType.COMPARE_AND_WRITE, firstBlock: 3, blockCount: 4, segments: 3 }
    expect((await run({ ...request, data: Buffer.concat([before, after]) })).status).toBe(Status.SUCCESS)
    expect(isEqual(await read(3, 4), after)).toBe(true)
    expect((await run({ ...request, data: Buffer.concat([before, before]) })).status).toBe(
      Status.COMPARE_FAILURE,
    )
    expect(isEqual(await read(3, 4), after)).toBe(true)
  })

  it.skipIf(forgets)('lets one of many compare-and-writes win, on any reactor', async () => {
    const channels = [channel, local[1]!.open(name)]
    const start = zeroes(1)
    const rivals = Array.from({ length: 12 }, (_, i) => {
      const data = Buffer.concat([start, random(1)])
      return new PendingIo(channels[i % 2]!, { type: IoType.COMPARE_AND_WRITE, blockCount: 1, data })
    })
    await reactors.until(() => rivals.every(rival => rival.isDone))
    const winners = rivals.filter(rival => rival.status === Status.SUCCESS)
    expect(winners).toHaveLength(1)
    expect(rivals.filter(rival => rival.status === Status.COMPARE_FAILURE)).toHaveLength(11)
    expect(isEqual(await read(0, 1), winners[0]!.data.subarray(BLOCK_SIZE))).toBe(true)
  })

  it('completes nothing inside submit', () => {
    const pending = new PendingIo(channel, { type: IoType.READ, blockCount: 1 })
    expect(pending.isDone).toBe(false)
    return reactors.until(() => pending.isDone)
  })

  it('completes each I/O exactly once when it is aborted, and goes on', async () => {
    const all = Array.from(
      { length: 32 },
      (_, i) =>
        new PendingIo(channel, {
          type: i % 2 === 0 ? IoType.READ : IoType.WRITE,
          firstBlock: i * 8,
          blockCount: 8,
        }),
    )
    channel.abort(all[5]!.io)
    channel.abort(null)
    await reactors.until(() => all.every(one => one.isDone))
    for (let round = 0; round < 5; round++) reactors.poll()
    expect(all.every(one => one.statuses.length === 1)).toBe(true)
    expect(all.every(one => one.status === 0 || one.status === Status.ABORTED_BY_REQUEST)).toBe(true)
    await write(0, random(8))
  })

  it('ends what is outstanding when it is reset, refuses the rest meanwhile, and is usable afterwards', async () => {
    const before = Array.from(
      { length: 16 },
      (_, i) => new PendingIo(channel, { type: IoType.READ, firstBlock: i, blockCount: 1 }),
    )
    const reset = new PendingIo(channel, { type: IoType.RESET })
    await reactors.until(() => reset.isDone)
    expect(reset.status).toBe(Status.SUCCESS)
    expect(before.every(one => one.statuses.length === 1)).toBe(true)
    await read(0, 8)
  })

  it('may not be closed while an I/O is outstanding', async () => {
    const pending = new PendingIo(channel, { type: IoType.READ, blockCount: 1 })
    if (channel.outstanding > 0) expect(() => channel.close()).toThrow('outstanding at close')
    await reactors.until(() => pending.isDone)
  })

  it('ends every I/O when it is removed under load, and refuses new ones', async () => {
    const before = Array.from(
      { length: 64 },
      (_, i) =>
        new PendingIo(channel, {
          type: i % 2 === 0 ? IoType.READ : IoType.WRITE,
          firstBlock: i * 8,
          blockCount: 8,
        }),
    )
    await reactors.run(bench.bdevs.remove(name))
    await reactors.until(() => before.every(one => one.isDone))
    expect(before.every(one => one.statuses.length === 1)).toBe(true)
    const after = new PendingIo(channel, { type: IoType.READ, blockCount: 1 })
    await reactors.until(() => after.isDone)
    expect(after.status).toBe(Status.NAMESPACE_NOT_READY)
  })

  it('can be used in the part by which it grew', async context => {
    if (subject.resize === undefined) return context.skip('it does not change its size')
    expect((await run({ type: IoType.READ, firstBlock: BLOCK_COUNT, blockCount: 8 })).status).toBe(
      Status.LBA_OUT_OF_RANGE,
    )
    await subject.resize(bench, BLOCK_COUNT * 2)
    await write(BLOCK_COUNT * 2 - 8, random(8))
  })

  it.skipIf(forgets)(`never corrupts data under random operations (SEED=${SEED})`, async () => {
    const model = zeroes(BLOCK_COUNT)
    const part = (at: number, count: number): Uint8Array =>
      model.subarray(at * BLOCK_SIZE, (at + count) * BLOCK_SIZE)
    for (let round = 0; round < 60; round++) {
      // Ranges of one round do not overlap, so that their order does not matter.
      const lanes = Array.from({ length: 8 }, (_, lane) => {
        const blockCount = prng.between(1, 300)
        const firstBlock = lane * 512 + prng.below(512 - blockCount)
        const type = prng.pick([IoType.READ, IoType.WRITE, IoType.WRITE, IoType.WRITE_ZEROES, IoType.COMPARE])
        const data = type === IoType.WRITE ? random(blockCount) : part(firstBlock, blockCount)
        const request = {
          type,
          firstBlock,
          blockCount,
          data,
          segments: prng.between(1, 6),
          fua: prng.oneIn(8),
        }
        return { request, pending: new PendingIo(channel, request) }
      })
      await reactors.until(() => lanes.every(({ pending }) => pending.isDone))
      for (const { request, pending } of lanes) {
        const { type, firstBlock, blockCount, data } = request
        expect(pending.statuses).toEqual([Status.SUCCESS])
        if (type === IoType.WRITE) part(firstBlock, blockCount).set(data)
        if (type === IoType.WRITE_ZEROES) part(firstBlock, blockCount).fill(0)
        if (type === IoType.READ) expect(isEqual(pending.data, part(firstBlock, blockCount))).toBe(true)
        pending.free()
      }
    }
    for (let at = 0; at < BLOCK_COUNT; at += 512) {
      expect(isEqual(await read(at, 512), part(at, 512)), `blocks from ${at}`).toBe(true)
    }
  })
})
