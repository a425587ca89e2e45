/** Images and devices for tests: a directory, reactors that are polled by hand, and I/O by promises. */
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { Channel } from '../../../../src/bdev/channel.ts'
import { drivers } from '../../../../src/bdev/drivers/index.ts'
import { ImageHandle } from '../../../../src/bdev/drivers/qcow2/image-handle.ts'
import { Refcounts } from '../../../../src/bdev/drivers/qcow2/refcounts.ts'
import { type IoType, IoType as Type } from '../../../../src/bdev/io.ts'
import { bdevMethods } from '../../../../src/bdev/methods.ts'
import { ReactorBdevs } from '../../../../src/bdev/reactor-bdevs.ts'
import { BdevRegistry } from '../../../../src/bdev/registry.ts'
import { logSettings } from '../../../../src/core/log.ts'
import type { Prng } from '../../../../src/core/prng.ts'
import { PendingIo } from '../../../support/io.ts'
import { LocalReactorGroup } from '../../../support/reactor.ts'

export const BLOCK = 512

/** Everything that one test has, closed by `close`. */
export class Bench {
  readonly directory = mkdtempSync(join(tmpdir(), 'qpair-qcow2-'))
  readonly reactors: LocalReactorGroup
  readonly bdevs: BdevRegistry
  readonly local: readonly ReactorBdevs[]
  readonly lines: string[] = []

  constructor(reactorCount = 1) {
    this.reactors = new LocalReactorGroup({ count: reactorCount, ring: true, time: 'real' })
    this.bdevs = new BdevRegistry(this.reactors, drivers)
    this.local = this.reactors.reactors.map(reactor => new ReactorBdevs(reactor, drivers))
    logSettings.write = line => void this.lines.push(line)
  }

  path(name: string): string {
    return join(this.directory, name)
  }

  /** Calls a method as the server does, after its parameters were checked. */
  async call<T = unknown>(name: string, params: unknown): Promise<T> {
    const found = bdevMethods.find(one => one.name === name)!
    const run = found.run as (params: unknown, context: { bdevs: BdevRegistry }) => unknown
    const answer = (async () => run(found.params.parse(params), { bdevs: this.bdevs }))()
    return (await this.reactors.run(answer)) as T
  }

  async open(name: string, options: object = {}, reactor = 0): Promise<Disk> {
    await this.call('bdev_qcow2_create', { name, filename: this.path(name), ...options })
    return new Disk(this, this.local[reactor]!.open(name))
  }

  delete(name: string): Promise<unknown> {
    return this.call('bdev_qcow2_delete', { name })
  }

  async close(): Promise<void> {
    for (const { name } of this.bdevs.list().reverse()) await this.reactors.run(this.bdevs.remove(name))
    this.reactors.close()
    rmSync(this.directory, { recursive: true })
  }
}

/** One channel, in bytes. */
export class Disk {
  readonly bench: Bench
  readonly channel: Channel

  constructor(bench: Bench, channel: Channel) {
    this.bench = bench
    this.channel = channel
  }

  start(type: IoType, offset: number, length: number, data?: Uint8Array, more: object = {}): PendingIo {
    const range = { firstBlock: offset / BLOCK, blockCount: length / BLOCK }
    return new PendingIo(this.channel, { type, ...range, ...(data === undefined ? {} : { data }), ...more })
  }

  /** Ends with the status. */
  async run(
    type: IoType,
    offset: number,
    length: number,
    data?: Uint8Array,
    more: object = {},
  ): Promise<number> {
    const pending = this.start(type, offset, length, data, more)
    await this.bench.reactors.until(() => pending.isDone)
    pending.free()
    return pending.status!
  }

  async read(offset: number, length: number): Promise<Uint8Array> {
    const pending = this.start(Type.READ, offset, length)
    await this.bench.reactors.until(() => pending.isDone)
    if (pending.status !== 0)
      throw new Error(`a read of ${length} bytes at ${offset} ended with ${pending.status}`)
    const data = Uint8Array.from(pending.data)
    pending.free()
    return data
  }

  async write(offset: number, data: Uint8Array): Promise<void> {
    const status = await this.run(Type.WRITE, offset, data.length, data)
    if (status !== 0) throw new Error(`a write of ${data.length} bytes at ${offset} ended with ${status}`)
  }

  flush(): Promise<number> {
    return this.run(Type.FLUSH, 0, 0)
  }
}

/** Has clusters counted that nothing uses, so that a small image has the tables of a large one. */
export async function leakClusters(path: string, clusters: number): Promise<void> {
  const handle = await ImageHandle.open(path, false)
  const refcounts = await Refcounts.load(handle)
  await refcounts.allocate(clusters)
  await refcounts.write()
  handle.close()
}

/** Random operations on a disk, many at a time, none of which overlap another of the same round; `model` is what it reads. */
export async function torture(disk: Disk, model: Uint8Array, prng: Prng, rounds: number): Promise<void> {
  const lanes = 8
  const laneBytes = Math.floor(model.length / lanes / BLOCK) * BLOCK
  for (let round = 0; round < rounds; round++) {
    const running = Array.from({ length: lanes }, (_, lane) => {
      const blocks = prng.between(1, prng.pick([1, 8, 64, Math.min(700, laneBytes / BLOCK)]))
      const length = Math.min(blocks * BLOCK, laneBytes)
      const offset = lane * laneBytes + prng.below((laneBytes - length) / BLOCK + 1) * BLOCK
      const type = prng.pick([Type.READ, Type.WRITE, Type.WRITE, Type.WRITE, Type.WRITE_ZEROES, Type.UNMAP])
      const data = type === Type.WRITE ? prng.fill(new Uint8Array(length)) : undefined
      const more = { segments: prng.between(1, 4), fua: prng.oneIn(10) }
      return { type, offset, length, data, pending: disk.start(type, offset, length, data, more) }
    })
    if (prng.oneIn(5)) await disk.flush()
    await disk.bench.reactors.until(() => running.every(({ pending }) => pending.isDone))
    for (const { type, offset, length, data, pending } of running) {
      if (pending.status !== 0) throw new Error(`operation ${type} at ${offset} ended with ${pending.status}`)
      const part = model.subarray(offset, offset + length)
      if (type === Type.READ && Buffer.compare(pending.data, part) !== 0) {
        throw new Error(
          `round ${round}: ${length} bytes at ${offset} read as something else than what was written`,
        )
      }
      pending.free()
      if (type === Type.WRITE) part.set(data!)
      else if (type === Type.WRITE_ZEROES) part.fill(0)
      // What was unmapped may read as anything: what it reads as is what it is from now on.
      else if (type === Type.UNMAP) part.set(await disk.read(offset, length))
    }
  }
}
