import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import type { BdevInfo } from '../../src/bdev/bdev.ts'
import { drivers } from '../../src/bdev/drivers/index.ts'
import { ReactorBdevs } from '../../src/bdev/reactor-bdevs.ts'
import { BdevRegistry } from '../../src/bdev/registry.ts'
import { bytesAt } from '../../src/sys/memory.ts'
import { Histogram } from '../../src/workload/histogram.ts'
import { ReactorWorkloads } from '../../src/workload/reactor-workloads.ts'
import { type WorkloadOptions, Workloads } from '../../src/workload/workloads.ts'
import { LocalReactorGroup } from '../support/reactor.ts'

let reactors: LocalReactorGroup
let bdevs: BdevRegistry
let workloads: Workloads
let disk: BdevInfo

const OPTIONS: WorkloadOptions = {
  bdev_name: 'm0',
  io_size: 4096,
  queue_depth: 8,
  read_percent: 50,
  sequential: false,
  verify: true,
  seed: 7,
  io_count: 0,
}

beforeEach(async () => {
  reactors = new LocalReactorGroup({ count: 2 })
  bdevs = new BdevRegistry(reactors, drivers)
  for (const reactor of reactors.reactors) new ReactorWorkloads(reactor, new ReactorBdevs(reactor, drivers))
  workloads = new Workloads(bdevs, reactors)
  disk = await bdevs.create('malloc', 'm0', { block_size: 512, num_blocks: 4096 })
})

afterEach(() => reactors.close())

function poll(rounds: number): void {
  for (let i = 0; i < rounds; i++) reactors.poll()
}

/** Lets a message reach the reactors without polling them: whoever is told to stop has not yet read back anything. */
async function told<T>(promise: Promise<T>): Promise<() => Promise<T>> {
  await new Promise(setImmediate)
  return () => promise
}

describe('a workload for which a reactor has no memory', () => {
  it('is refused with what to change, runs nowhere, and keeps nothing', async () => {
    await bdevs.create('null', 'n0', { block_size: 512, num_blocks: 2 ** 24 })
    const { buffers } = reactors.reactors[1]!
    for (let i = 0; i < 40; i++) expect(buffers.acquire(1 << 20)).toBeGreaterThan(0)
    const tooMuch = { ...OPTIONS, bdev_name: 'n0', io_size: 1 << 20, queue_depth: 70, verify: false }
    const refusal = reactors.run(workloads.start(tooMuch))
    await expect(refusal).rejects.toMatchObject({ code: 'ENOMEM', message: /make io_size or queue_depth/ })
    expect(await workloads.report()).toEqual([])
    const [report] = await reactors.run(bdevs.iostat(['n0'], 'none'))
    expect(report!.map(({ isOpen }) => isOpen)).toEqual([false])
    for (let i = 0; i < 10; i++) expect(buffers.acquire(1 << 20)).toBeGreaterThan(0)
  })
})

describe('a verified workload', () => {
  it('reads and writes on every reactor, finds what it wrote, and reads it all back at the end', async () => {
    const id = await workloads.start(OPTIONS)
    poll(5)
    const [running] = await workloads.report()
    expect(running).toMatchObject({ id, bdevName: 'm0', errors: 0, miscompares: 0, inFlight: 8 })
    const report = await reactors.run(workloads.stop(id))
    expect(report.reads).toBeGreaterThan(500)
    expect(report.writes).toBeGreaterThan(500)
    expect(report.readBacks).toBeGreaterThan(300)
    expect(report).toMatchObject({ errors: 0, miscompares: 0, inFlight: 0 })
    expect(await workloads.report()).toEqual([])
  })

  it('finds a block that somebody else overwrote, and says which', async () => {
    const id = await workloads.start({ ...OPTIONS, read_percent: 0 })
    poll(5)
    const stopping = await told(workloads.stop(id))
    const { address } = disk.device as { address: number }
    bytesAt(address + 512 * 3, 512).fill(0xee)
    const report = await reactors.run(stopping())
    expect(report.miscompares).toBe(1)
    expect(report.firstErrors[0]).toMatch(
      /^block 3 holds version \d+ of unit \d+, not version \d+ of unit 0$/,
    )
  })

  it('finds a write that went to the wrong place', async () => {
    const id = await workloads.start({ ...OPTIONS, read_percent: 0 })
    poll(5)
    const stopping = await told(workloads.stop(id))
    const { address } = disk.device as { address: number }
    bytesAt(address + 8192, 4096).set(bytesAt(address + 4096, 4096))
    const report = await reactors.run(stopping())
    expect(report.miscompares).toBe(1)
  })
})

describe('a workload', () => {
  it('ends by itself after the number of I/Os asked for', async () => {
    const id = await workloads.start({ ...OPTIONS, verify: false, read_percent: 100, io_count: 100 })
    poll(100)
    const report = await reactors.run(workloads.stop(id))
    expect(report).toMatchObject({ reads: 100, writes: 0, errors: 0, readBacks: 0 })
  })

  it('stops asking when its device is taken away, and can still be ended', async () => {
    const id = await workloads.start(OPTIONS)
    poll(10)
    await reactors.run(bdevs.remove('m0'))
    poll(10)
    const report = await reactors.run(workloads.stop(id))
    expect(report.inFlight).toBe(0)
  })

  it.each([
    [{ io_size: 700 }, 'io_size 700 must be whole blocks of m0 (512 bytes)'],
    [{ io_size: 2 << 20 }, 'at most 1048576'],
    [{ io_size: 1 << 20 }, 'm0 has room for 2 units of 1048576 bytes, too few for a queue depth of 8'],
    [{ bdev_name: 'm1' }, 'there is no bdev m1'],
  ])('refuses %j', async (wrong, message) => {
    await expect(workloads.start({ ...OPTIONS, ...wrong })).rejects.toThrow(message)
  })

  it('cannot be stopped twice', async () => {
    const id = await workloads.start(OPTIONS)
    await reactors.run(workloads.stop(id))
    await expect(workloads.stop(id)).rejects.toThrow(`workload ${id} does not run; none does`)
  })
})

describe('Histogram', () => {
  it('tells percentiles to the width of its buckets', () => {
    const histogram = new Histogram()
    for (let value = 1; value <= 100_000; value++) histogram.record(value)
    expect(histogram.count).toBe(100_000)
    expect(histogram.mean).toBe(50_000.5)
    expect(histogram.max).toBe(100_000)
    for (const fraction of [0.1, 0.5, 0.99, 0.999]) {
      const exact = fraction * 100_000
      expect(Math.abs(histogram.percentile(fraction) - exact) / exact).toBeLessThan(0.017)
    }
  })

  it('is exact for small values and empty without any', () => {
    const histogram = new Histogram()
    expect(histogram.percentile(0.99)).toBe(0)
    histogram.record(3)
    expect(histogram.percentile(0.5)).toBe(3)
  })
})
