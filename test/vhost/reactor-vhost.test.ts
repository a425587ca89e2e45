import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { drivers } from '../../src/bdev/drivers/index.ts'
import { ReactorBdevs } from '../../src/bdev/reactor-bdevs.ts'
import { BdevRegistry } from '../../src/bdev/registry.ts'
import { logSettings } from '../../src/core/log.ts'
import { inflightSplitBytes } from '../../src/spec/virtqueue.ts'
import { bytesAt, unmap } from '../../src/sys/memory.ts'
import {
  type DeviceDescription,
  type SessionStats,
  type StartQueue,
  Topic,
} from '../../src/vhost/messages.ts'
import { ReactorVhost } from '../../src/vhost/reactor-vhost.ts'
import { LocalReactorGroup } from '../support/reactor.ts'
import { GuestRam, SplitDriver, sharedPart } from './guest.ts'

const SESSION = 1
/** Both of a disk with 64 blocks: `m0` answers at once, `slow` after a millisecond. */
const DELAY_US = 1000
const IN = 0
const OUT = 1

let reactors: LocalReactorGroup
let bdevs: BdevRegistry
let ram: GuestRam
let driver: SplitDriver
let lines: string[]
const write = logSettings.write

beforeEach(async () => {
  reactors = new LocalReactorGroup({ arenaBytes: 8 << 20 })
  bdevs = new BdevRegistry(reactors, drivers)
  const reactor = reactors.reactors[0]!
  new ReactorVhost(reactor, new ReactorBdevs(reactor, drivers))
  await reactors.run(bdevs.create('malloc', 'm0', { block_size: 512, num_blocks: 64 }))
  const latencies = Object.fromEntries(
    ['avg_read', 'p99_read', 'avg_write', 'p99_write'].map(name => [`${name}_latency`, DELAY_US]),
  )
  await reactors.run(bdevs.create('delay', 'slow', { base_bdev_name: 'm0', ...latencies }))
  ram = new GuestRam(1 << 20, 2)
  driver = new SplitDriver(ram, 16)
  lines = []
  logSettings.write = line => lines.push(line)
})
afterEach(() => {
  logSettings.write = write
  reactors.close()
  ram.free()
})

const call = <T = unknown>(topic: string, body: unknown): Promise<T> =>
  reactors.run(reactors.port(0).call<T>(topic, body))

const disk = (bdev: string | null): DeviceDescription => ({
  kind: 'blk',
  bdev,
  readOnly: false,
  writeThrough: false,
  serial: 's0',
})
const tuning = { quietUs: 0, delayBaseUs: 0, iopsThreshold: 60_000 }

async function open(bdev: string, given: Partial<StartQueue> = {}): Promise<void> {
  await call(Topic.OPEN, { session: SESSION, controller: 'vhost.0', device: disk(bdev), tuning })
  await call(Topic.MEMORY, { session: SESSION, regions: ram.regions })
  await call(Topic.START, driver.start(given))
}

/** Offers one block's read or write at a place of its own. Returns its head, and where data and status are. */
function offer(type: number, sector: number): { head: number; data: number; status: number } {
  const header = ram.allocate(16)
  const data = ram.allocate(512)
  const status = ram.allocate(1)
  ram.view(header, 16).setUint32(0, type, true)
  ram.view(header, 16).setUint32(8, sector, true)
  ram.bytes(status, 1)[0] = 0xff
  const head =
    type === OUT
      ? driver.chain(
          [
            [header, 16],
            [data, 512],
          ],
          [[status, 1]],
        )
      : driver.chain(
          [[header, 16]],
          [
            [data, 512],
            [status, 1],
          ],
        )
  driver.offer(head)
  return { head, data, status }
}

/** Resolves with whether the call has been answered after everything that happens by itself. */
async function isAnswered(promise: Promise<unknown>): Promise<boolean> {
  let answered = false
  const note = (): void => {
    answered = true
  }
  promise.then(note, note)
  for (let i = 0; i < 10; i++) {
    reactors.settle()
    await new Promise(setImmediate)
  }
  return answered
}

describe('a session', () => {
  it('serves a disk', async () => {
    await open('m0')
    const written = offer(OUT, 5)
    ram.bytes(written.data, 512).fill(0xab)
    reactors.settle()
    const read = offer(IN, 5)
    reactors.settle()
    expect(driver.collect()).toEqual([
      { id: written.head, length: 1 },
      { id: read.head, length: 513 },
    ])
    expect(ram.bytes(read.data, 512)).toEqual(new Uint8Array(512).fill(0xab))
    expect([...ram.bytes(written.status, 1), ...ram.bytes(read.status, 1)]).toEqual([0, 0])
  })

  it('is not opened on a device that is not there, and may be closed all the same', async () => {
    const opened = call(Topic.OPEN, { session: 2, controller: 'vhost.0', device: disk('m1'), tuning })
    await expect(opened).rejects.toThrow('there is no bdev m1')
    await call(Topic.CLOSE, 2)
    expect(await call(Topic.STATS, 2)).toEqual({ queues: [] })
    await expect(call(Topic.MEMORY, { session: 2, regions: [] })).rejects.toThrow('session 2 is not open')
  })

  it('starts no queue twice, and none whose ring is in no memory', async () => {
    await open('m0')
    await expect(call(Topic.START, driver.start())).rejects.toThrow('queue 0 of vhost.0 runs already')
    await expect(call(Topic.START, driver.start({ index: 1, descriptors: 0 }))).rejects.toThrow(
      'descriptor table, 256 bytes at user address 0x0',
    )
    await expect(call(Topic.STOP, { session: SESSION, index: 1 })).rejects.toThrow('does not run')
    offer(IN, 0)
    reactors.settle()
    expect(driver.collect()).toHaveLength(1)
  })

  it('counts', async () => {
    await open('slow')
    offer(IN, 0)
    reactors.settle()
    const running = { index: 0, requests: 1, outstanding: 1, calls: 0, kicks: 0, isPolled: true }
    expect(await call<SessionStats>(Topic.STATS, SESSION)).toEqual({ queues: [running] })
    await call(Topic.UPDATE, { session: SESSION, index: 0, isEnabled: false })
    // Of a queue that does not run nothing is to be noted: it is started with everything.
    await call(Topic.UPDATE, { session: SESSION, index: 7, isEnabled: false })
    reactors.advance(DELAY_US)
    expect(await call<SessionStats>(Topic.STATS, SESSION)).toEqual({
      queues: [{ ...running, outstanding: 0, isPolled: false }],
    })
  })

  it('logs one line of a guest that breaks its ring', async () => {
    await open('m0')
    driver.offer(99)
    reactors.settle()
    driver.offer(98)
    reactors.settle()
    expect(lines).toHaveLength(1)
    expect(lines[0]).toMatch(/ERROR vhost: vhost\.0: queue 0 is broken, .*: descriptor 99 heads a chain/)
  })

  it('writes few lines about a guest that comes again and again with a request that is none', async () => {
    const sessions = 200
    for (let i = 0; i < sessions; i++) {
      driver = new SplitDriver(ram, 16)
      await open('m0')
      // Nothing that the device may write to, hence no place for its status.
      driver.offer(driver.chain([[ram.allocate(16), 16]], []))
      reactors.settle()
      await call(Topic.CLOSE, SESSION)
    }
    expect(lines[0]).toContain('s0: queue 0 has a request of 16 bytes to read and none to write')
    expect(lines.length).toBeLessThan(sessions * 0.75)
  })
})

describe('a queue that is stopped', () => {
  it('says where to go on when nothing of it is outstanding', async () => {
    await open('slow')
    const first = offer(IN, 0)
    reactors.settle()
    const stopped = reactors.port(0).call<number>(Topic.STOP, { session: SESSION, index: 0 })
    expect(await isAnswered(stopped)).toBe(false)
    reactors.advance(DELAY_US)
    const base = await reactors.run(stopped)
    expect(base).toBe(1)
    expect(driver.collect()).toEqual([{ id: first.head, length: 513 }])

    const second = offer(IN, 0)
    reactors.settle()
    await call(Topic.START, driver.start({ base }))
    reactors.settle()
    reactors.advance(DELAY_US)
    reactors.settle()
    expect(driver.collect()).toEqual([{ id: second.head, length: 513 }])
  })
})

describe('memory that changes', () => {
  it('is used at once when a region comes', async () => {
    await call(Topic.OPEN, { session: SESSION, controller: 'vhost.0', device: disk('slow'), tuning })
    await call(Topic.MEMORY, { session: SESSION, regions: ram.regions.slice(0, 1) })
    await call(Topic.START, driver.start())
    offer(IN, 0)
    reactors.settle()
    await call(Topic.MEMORY, { session: SESSION, regions: ram.regions })
    expect((await call<SessionStats>(Topic.STATS, SESSION)).queues[0]!.outstanding).toBe(1)
    reactors.advance(DELAY_US)
    reactors.settle()
    expect(driver.collect()).toHaveLength(1)
  })

  it('is in use no more when it is answered that a region is gone', async () => {
    await open('slow')
    const first = offer(IN, 0)
    reactors.settle()
    const changed = reactors
      .port(0)
      .call(Topic.MEMORY, { session: SESSION, regions: ram.regions.slice(0, 1) })
    expect(await isAnswered(changed)).toBe(false)
    const second = offer(IN, 1)
    reactors.settle()
    reactors.advance(DELAY_US)
    await reactors.run(changed)
    expect(driver.collect()).toEqual([{ id: first.head, length: 513 }])
    reactors.settle()
    reactors.advance(DELAY_US)
    reactors.settle()
    expect(driver.collect(), 'the queue goes on').toEqual([{ id: second.head, length: 513 }])
    driver.offer(driver.chain([[2 << 20, 16]], [[2 << 20, 1]]))
    reactors.settle()
    await reactors.until(() => lines.length > 0)
    expect(lines[0]).toMatch("guest address 0x200000 is not in the guest's memory")
  })

  it('breaks a queue whose ring was in a region that is gone', async () => {
    await open('m0')
    await call(Topic.MEMORY, { session: SESSION, regions: ram.regions.slice(1) })
    await reactors.until(() => lines.length > 0)
    expect(lines[0]).toMatch('is in no memory region')
  })
})

describe('a session that is closed', () => {
  it('ends what is outstanding early, keeps it in flight, and gives the device back', async () => {
    const inflight = sharedPart(inflightSplitBytes(16))
    await open('slow', { inflight })
    const { head } = offer(IN, 0)
    reactors.settle()
    await call(Topic.CLOSE, SESSION)
    expect(driver.collect(), 'an error would have reached the guest').toEqual([])
    expect(reactors.reactors[0]!.polled).toBe(0)

    await open('slow', { inflight })
    reactors.settle()
    reactors.advance(DELAY_US)
    reactors.settle()
    expect(driver.collect()).toEqual([{ id: head, length: 513 }])
    await call(Topic.CLOSE, SESSION)
    await reactors.run(bdevs.remove('slow'))
    unmap(inflight.address, inflight.sizeBytes)
  })

  it('ends the wait for a queue that is being stopped, and for memory', async () => {
    await open('slow')
    offer(IN, 0)
    reactors.settle()
    const changed = reactors.port(0).call(Topic.MEMORY, { session: SESSION, regions: [] })
    const stopped = reactors.port(0).call(Topic.STOP, { session: SESSION, index: 0 })
    expect(await isAnswered(changed)).toBe(false)
    expect(await isAnswered(stopped)).toBe(false)
    await call(Topic.CLOSE, SESSION)
    await reactors.run(Promise.all([changed, stopped]))
    expect(lines).toEqual([])
  })
})

describe('what is set while queues run', () => {
  it('a log of writes, and none any more', async () => {
    await open('m0')
    const log = sharedPart(4096)
    const isMarked = (address: number): boolean => {
      const page = Math.floor(address / 4096)
      return ((bytesAt(log.address, 4096)[page >> 3]! >> (page & 7)) & 1) === 1
    }
    await call(Topic.LOG, { session: SESSION, log })
    const { data } = offer(IN, 0)
    reactors.settle()
    expect(isMarked(data)).toBe(true)
    await call(Topic.LOG, { session: SESSION, log: null })
    bytesAt(log.address, 4096).fill(0)
    offer(IN, 0)
    reactors.settle()
    expect(Buffer.from(bytesAt(log.address, 4096)).every(byte => byte === 0)).toBe(true)
    unmap(log.address, log.sizeBytes)
  })

  it('a device without its bdev: nothing of it is outstanding when it has settled', async () => {
    await open('slow')
    const first = offer(IN, 0)
    reactors.settle()
    await call(Topic.DEVICE, { session: SESSION, device: disk(null) })
    await call(Topic.SETTLED, SESSION)
    const second = offer(IN, 0)
    reactors.settle()
    expect(driver.collect().map(({ id }) => id)).toEqual([first.head, second.head])
    // VIRTIO_BLK_S_IOERR
    expect([...ram.bytes(second.status, 1)]).toEqual([1])
    await reactors.run(bdevs.remove('slow'))
  })
})
