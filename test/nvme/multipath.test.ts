import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { IoType } from '../../src/bdev/io.ts'
import { logSettings } from '../../src/core/log.ts'
import type { MultipathPolicy } from '../../src/nvme/messages.ts'
import { DEFAULT_POLICY } from '../../src/nvme/path-selector.ts'
import { AnaState } from '../../src/spec/nvme-log.ts'
import { Status } from '../../src/spec/nvme-status.ts'
import type { FakeController } from '../support/fake-controller.ts'
import { Host, namespace, Submitter } from './support.ts'

logSettings.write = () => {}

let host: Host
beforeEach(() => {
  host = new Host()
})
afterEach(() => host.close())

/** One namespace behind two ports with controllers of their own. */
async function twoPaths(policy: MultipathPolicy = DEFAULT_POLICY): Promise<{
  a: FakeController
  b: FakeController
  disk: Submitter
}> {
  const shared = namespace()
  const a = host.fake({ port: 4420, cntlid: 1 }, [shared])
  const b = host.fake({ port: 4421, cntlid: 100 }, [shared])
  expect(await host.attach(a, { policy })).toEqual(['Nvme0n1'])
  expect(await host.attach(b)).toEqual([])
  const disk = new Submitter(host, host.open('Nvme0n1'))
  await host.settle()
  return { a, b, disk }
}

/** I/O commands that a controller has seen. */
const ios = ({ seen }: FakeController): number =>
  seen.filter(command => /^[1-9].*\/0[0-2]$/.test(command)).length

const shuffle = async (disk: Submitter, count: number): Promise<void> => {
  for (let i = 0; i < count; i++) expect(await disk.end(disk.submit(IoType.READ, i, 1))).toBe(0)
}

describe('active_passive', () => {
  it('uses the path that was attached first', async () => {
    const { a, b, disk } = await twoPaths()
    await shuffle(disk, 5)
    expect([ios(a), ios(b)]).toEqual([5, 0])
  })

  it('moves what was outstanding on a closed connection to the other path, unseen by the layer above', async () => {
    const { a, b, disk } = await twoPaths()
    a.intercept = ({ opcode, qid }) => (qid > 0 && opcode < 3 ? 'hold' : undefined)
    const reads = Array.from({ length: 20 }, (_, i) => disk.submit(IoType.READ, i, 1))
    await host.settle()
    expect([ios(a), ios(b)]).toEqual([20, 0])
    a.down()
    for (const read of reads) expect(await disk.end(read)).toBe(0)
    expect(ios(b)).toBe(20)
  })

  it('goes back to the first path when it has returned', async () => {
    const { a, b, disk } = await twoPaths()
    a.down()
    await shuffle(disk, 3)
    expect(ios(b)).toBe(3)
    a.up()
    await host.advance(4000)
    await shuffle(disk, 3)
    expect([ios(a), ios(b)]).toEqual([3, 3])
  })

  it('stays where it is when failback is disabled, until a path is preferred', async () => {
    await host.run(host.nvme.setOptions({ ...host.nvme.options, disableAutoFailback: true }))
    const { a, b, disk } = await twoPaths()
    a.down()
    await shuffle(disk, 1)
    a.up()
    await host.advance(4000)
    await shuffle(disk, 3)
    expect([ios(a), ios(b)]).toEqual([0, 4])
    await host.run(host.nvme.setPolicy('Nvme0n1', { ...DEFAULT_POLICY, preferredPathId: 1 }))
    await shuffle(disk, 3)
    expect([ios(a), ios(b)]).toEqual([3, 4])
  })

  it('uses the path that the operator prefers', async () => {
    const { a, b, disk } = await twoPaths()
    await host.run(host.nvme.setPolicy('Nvme0n1', { ...DEFAULT_POLICY, preferredPathId: 2 }))
    await shuffle(disk, 4)
    expect([ios(a), ios(b)]).toEqual([0, 4])
  })
})

describe('active_active', () => {
  it('takes turns, min_io I/Os each', async () => {
    const { a, b, disk } = await twoPaths({ ...DEFAULT_POLICY, policy: 'active_active', rrMinIo: 3 })
    await shuffle(disk, 6)
    expect([ios(a), ios(b)]).toEqual([3, 3])
    await shuffle(disk, 2)
    expect([ios(a), ios(b)]).toEqual([5, 3])
  })

  it('chooses the path with the fewest outstanding commands', async () => {
    const policy = { ...DEFAULT_POLICY, policy: 'active_active', selector: 'queue_depth' } as const
    const { a, b, disk } = await twoPaths(policy)
    a.intercept = ({ opcode, qid }) => (qid > 0 && opcode < 3 ? 'hold' : undefined)
    const stuck = disk.submit(IoType.READ, 0, 1)
    await host.settle()
    expect([ios(a), ios(b)]).toEqual([1, 0])
    await shuffle(disk, 5)
    expect([ios(a), ios(b)]).toEqual([1, 5])
    const [command] = a.io!.held
    a.io!.perform(command!)
    expect(await disk.end(stuck)).toBe(0)
  })
})

describe('ANA states', () => {
  it('prefers an optimized path and follows the log when that changes', async () => {
    const { a, b, disk } = await twoPaths()
    a.setAna(1, AnaState.NON_OPTIMIZED)
    await host.settle()
    await shuffle(disk, 2)
    expect([ios(a), ios(b)]).toEqual([0, 2])
    b.setAna(1, AnaState.INACCESSIBLE)
    await host.settle()
    await shuffle(disk, 2)
    expect([ios(a), ios(b)]).toEqual([2, 2])
  })

  it('tries an I/O that met an ANA status elsewhere, and reads the log', async () => {
    const { a, b, disk } = await twoPaths()
    a.anaStates.set(1, AnaState.INACCESSIBLE)
    a.intercept = ({ opcode, qid }) => (qid > 0 && opcode === 2 ? Status.ANA_INACCESSIBLE : undefined)
    const logs = (): number => a.seen.filter(command => command === '0/02').length
    const before = logs()
    await shuffle(disk, 3)
    expect([ios(a), ios(b)]).toEqual([1, 3])
    expect(logs()).toBe(before + 1)
  })

  it('lets I/O wait while every path is inaccessible, and goes on afterwards', async () => {
    const { a, b, disk } = await twoPaths()
    a.setAna(1, AnaState.INACCESSIBLE)
    b.setAna(1, AnaState.CHANGE)
    await host.settle()
    const read = disk.submit(IoType.READ, 0, 1)
    await host.settle()
    expect(read.isEnded).toBe(false)
    b.setAna(1, AnaState.OPTIMIZED)
    expect(await disk.end(read)).toBe(0)
    expect([ios(a), ios(b)]).toEqual([0, 1])
  })

  it('connects anew to a controller whose ANA state changes for longer than ANATT', async () => {
    const { b } = await twoPaths()
    const before = b.accepted
    b.setAna(1, AnaState.CHANGE)
    await host.advance(9000)
    expect(b.accepted).toBe(before)
    b.anaStates.set(1, AnaState.OPTIMIZED)
    await host.advance(2000)
    expect(b.accepted).toBeGreaterThan(before)
  })
})

describe('paths that fail', () => {
  it('finds a path on which packets are dropped by keep alive', async () => {
    const { a, b, disk } = await twoPaths()
    a.isSilent = true
    const read = disk.submit(IoType.READ, 0, 1)
    await host.advance(4900)
    expect(read.isEnded).toBe(false)
    await host.advance(5200)
    expect(read.status).toBe(Status.SUCCESS)
    expect(ios(b)).toBe(1)
  })

  it('gives up a connection on which a command takes too long, when that is the action', async () => {
    const options = { ...host.nvme.options, ioTimeoutUs: 1_000_000, actionOnTimeout: 'reset' } as const
    await host.run(host.nvme.setOptions(options))
    const { a, b, disk } = await twoPaths()
    a.intercept = ({ opcode, qid }) => (qid > 0 && opcode === 2 ? 'hold' : undefined)
    const read = disk.submit(IoType.READ, 0, 1)
    await host.advance(1500)
    expect(read.status).toBe(Status.SUCCESS)
    expect(ios(b)).toBe(1)
  })

  it('aborts a command that takes too long, when that is the action', async () => {
    const options = { ...host.nvme.options, ioTimeoutUs: 1_000_000, actionOnTimeout: 'abort' } as const
    await host.run(host.nvme.setOptions(options))
    const { a, disk } = await twoPaths()
    a.intercept = ({ opcode, qid }) => (qid > 0 && opcode === 2 ? 'hold' : undefined)
    disk.submit(IoType.READ, 0, 1)
    await host.advance(1500)
    expect(a.seen).toContain('0/08')
  })

  it('comes back as often as it goes', async () => {
    const { a, b, disk } = await twoPaths()
    for (let round = 0; round < 5; round++) {
      a.down()
      await shuffle(disk, 2)
      expect(ios(b)).toBe(2 * (round + 1))
      a.up()
      await host.advance(4000)
      await shuffle(disk, 2)
      expect(ios(a)).toBe(2 * (round + 1))
    }
  })

  it('lets I/O wait while no path is there, and fails it when none will come in time', async () => {
    const { a, b, disk } = await twoPaths()
    a.down()
    b.down()
    const read = disk.submit(IoType.READ, 0, 1)
    await host.advance(60_000, 500)
    expect(read.isEnded).toBe(false)
    b.up()
    await host.advance(3000)
    expect(read.status).toBe(Status.SUCCESS)
  })

  it('fails I/O after fast_io_fail_timeout_sec, and still takes the path when it comes', async () => {
    const fake = host.fake()
    await host.attach(fake, {
      reconnect: { ctrlrLossTimeoutSec: -1, reconnectDelaySec: 2, fastIoFailTimeoutSec: 5 },
    })
    const disk = new Submitter(host, host.open('Nvme0n1'))
    await host.settle()
    fake.down()
    const read = disk.submit(IoType.READ, 0, 1)
    await host.advance(4500)
    expect(read.isEnded).toBe(false)
    await host.advance(1000)
    expect(read.status).toBe(Status.INTERNAL_PATH_ERROR)
    expect(await disk.end(disk.submit(IoType.READ, 0, 1))).toBe(Status.INTERNAL_PATH_ERROR)
    fake.up()
    await host.advance(3000)
    await shuffle(disk, 1)
  })

  it('deletes controller and device when ctrlr_loss_timeout_sec is over', async () => {
    const fake = host.fake()
    await host.attach(fake, {
      reconnect: { ctrlrLossTimeoutSec: 10, reconnectDelaySec: 2, fastIoFailTimeoutSec: 0 },
    })
    const disk = new Submitter(host, host.open('Nvme0n1'))
    await host.settle()
    fake.down()
    const read = disk.submit(IoType.READ, 0, 1)
    await host.advance(9500)
    expect(host.nvme.find('Nvme0')).toBeDefined()
    await host.advance(3000)
    expect(host.nvme.find('Nvme0')).toBeUndefined()
    expect(host.bdevs.find('Nvme0n1')).toBeUndefined()
    expect(read.status).toBe(Status.INTERNAL_PATH_ERROR)
  })
})

describe('statuses that a controller should not send', () => {
  it('counts those of a lost connection like others while the connection is up', async () => {
    const { a, b, disk } = await twoPaths()
    const loses: FakeController['intercept'] = ({ opcode, qid }) =>
      qid > 0 && opcode === 2 ? Status.ABORTED_BY_HOST : undefined
    a.intercept = loses
    b.intercept = loses
    const read = disk.submit(IoType.READ, 0, 1)
    await host.advance(1000)
    expect(read.status).toBe(Status.ABORTED_BY_HOST)
    expect(ios(a) + ios(b)).toBe(4)
  })
})

describe('detaching', () => {
  it('takes one path away under I/O', async () => {
    const { a, b, disk } = await twoPaths()
    a.intercept = ({ opcode, qid }) => (qid > 0 && opcode === 2 ? 'hold' : undefined)
    const read = disk.submit(IoType.READ, 0, 1)
    await host.settle()
    const [first] = host.nvme.get('Nvme0').paths
    await host.run(host.nvme.detachPath(first!))
    expect(await disk.end(read)).toBe(0)
    expect(ios(b)).toBe(1)
    expect(a.connections).toEqual([])
  })

  it('ends I/O that is outstanding when the whole controller goes', async () => {
    const { a, b, disk } = await twoPaths()
    a.intercept = ({ opcode, qid }) => (qid > 0 && opcode === 2 ? 'hold' : undefined)
    b.intercept = a.intercept
    const read = disk.submit(IoType.READ, 0, 1)
    await host.settle()
    const gone = Promise.all(host.nvme.get('Nvme0').paths.map(path => host.nvme.detachPath(path)))
    await host.advance(1500)
    await host.run(gone)
    expect(read.status).toBe(Status.ABORTED_BY_REQUEST)
    expect(host.nvme.isEmpty).toBe(true)
    expect(host.network.openStreams).toBe(0)
    expect([a.connections.length, b.connections.length]).toEqual([0, 0])
  })

  it('takes a path away once, although it is lost at the moment when the operator detaches it', async () => {
    const a = host.fake({ port: 4420, cntlid: 1 })
    await host.attach(a, {
      reconnect: { ctrlrLossTimeoutSec: 1, reconnectDelaySec: 1, fastIoFailTimeoutSec: 0 },
    })
    const [path] = host.nvme.get('Nvme0').paths
    a.down()
    await host.settle()
    host.reactors.advance(1_100_000)
    // The reactors are being told of the loss when the operator's call comes in between.
    while (path!.status.state !== 'lost') await Promise.resolve()
    await Promise.resolve()
    await host.run(host.nvme.detachPath(path!))
    await host.settle()
    expect(host.nvme.isEmpty).toBe(true)
    expect(host.bdevs.list()).toEqual([])
  })
})
