import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import type { BdevInfo, DriverChannel } from '../../src/bdev/bdev.ts'
import { Channel } from '../../src/bdev/channel.ts'
import { BdevIo, IoType } from '../../src/bdev/io.ts'
import type { SubsystemSnapshot } from '../../src/nvmf/messages.ts'
import { SubsystemReplica } from '../../src/nvmf/replica.ts'
import { Status } from '../../src/spec/nvme-status.ts'
import { LocalReactorGroup } from '../support/reactor.ts'
import { HOST, NQN } from './support.ts'

const INFO: BdevInfo = {
  name: 'disk',
  aliases: [],
  driver: 'test',
  product: 'Test disk',
  uuid: '00000000-0000-4000-8000-000000000000',
  blockSize: 512,
  physicalBlockSize: 512,
  blockCount: 8,
  supports: new Set([IoType.READ, IoType.WRITE]),
  writeCache: false,
  readOnly: false,
  bases: [],
  device: null,
  driverSpecific: {},
}

/** Holds every I/O until the test lets it go, or until it is aborted. */
class Holding implements DriverChannel {
  readonly lends = false
  readonly held: BdevIo[] = []
  closed = 0

  submit(io: BdevIo): void {
    this.held.push(io)
  }

  abort(): void {
    this.letGo(Status.ABORTED_BY_REQUEST)
  }

  letGo(status: number): void {
    for (const io of this.held.splice(0)) io.complete(status)
  }

  close(): void {
    this.closed++
  }
}

const EMPTY = {
  nqn: NQN,
  listeners: [],
  namespaces: [],
  hosts: [],
  anaReporting: false,
} as unknown as SubsystemSnapshot
const FULL = {
  ...EMPTY,
  namespaces: [{ nsid: 1, bdev: 'disk', generation: 1, anagrpid: 1, isVisibleToAll: true, hosts: [] }],
} as unknown as SubsystemSnapshot

let reactors: LocalReactorGroup
let device: Holding
let replica: SubsystemReplica
let write: BdevIo
let isRemoved: boolean

beforeEach(() => {
  reactors = new LocalReactorGroup()
  const reactor = reactors.reactors[0]!
  device = new Holding()
  const channel = new Channel(INFO, reactor, device)
  replica = new SubsystemReplica(FULL, reactor, { open: () => channel, close: open => open.close() })
  replica.acquire(1, HOST)
  write = new BdevIo({ ioDone() {} })
  write.type = IoType.WRITE
  write.blockCount = 1
  channel.submit(write)
  isRemoved = false
})

afterEach(() => reactors.close())

/** Removes the namespace, and lets everything that does not need time happen. */
async function remove(): Promise<void> {
  void replica.apply(EMPTY).then(() => {
    isRemoved = true
  })
  await turn()
}

async function turn(): Promise<void> {
  reactors.settle()
  await new Promise(setImmediate)
}

describe('a namespace that is removed under I/O', () => {
  it('is gone for its hosts at once, and removed once its last write has ended', async () => {
    const path = replica.acquire(1, HOST)
    await remove()
    expect(path.namespaces[1]).toBeUndefined()
    reactors.advance(500_000)
    await turn()
    expect([isRemoved, device.closed]).toEqual([false, 0])

    device.letGo(Status.SUCCESS)
    reactors.advance(10_000)
    await turn()
    expect([isRemoved, device.closed]).toEqual([true, 1])
  })

  it('has what its device holds aborted after a second', async () => {
    await remove()
    reactors.advance(1_100_000)
    reactors.advance(10_000)
    await turn()
    expect(write.status).toBe(Status.ABORTED_BY_REQUEST)
    expect([isRemoved, device.closed]).toEqual([true, 1])
  })

  it('does not wait for ever for a device that will not let go', async () => {
    device.abort = () => {}
    await remove()
    reactors.advance(9_000_000)
    await turn()
    expect(isRemoved).toBe(false)
    reactors.advance(1_100_000)
    await turn()
    expect([isRemoved, device.closed]).toEqual([true, 0])
    device.letGo(Status.SUCCESS)
    reactors.advance(10_000)
    await turn()
    expect(device.closed).toBe(1)
  })
})

describe('a namespace that other gateways may take over', () => {
  const REPORTING = { ...FULL, anaReporting: true, listeners: [listener(1)] } as SubsystemSnapshot

  function listener(state: number): unknown {
    return { id: 1, anaStates: Uint8Array.of(state), anaChanges: 0 }
  }

  it('lets nothing through once the lease is over, whatever its state', () => {
    const reactor = reactors.reactors[0]!
    const lease = new Float64Array([2000])
    const channel = new Channel(INFO, reactor, device)
    const leased = new SubsystemReplica(REPORTING, reactor, { open: () => channel, close() {} }, lease)
    const [, namespace] = leased.acquire(1, HOST).namespaces
    reactor.nowUs = 1999
    expect(namespace!.gate).toBe(Status.SUCCESS)
    reactor.nowUs = 2000
    expect(namespace!.gate).toBe(Status.ANA_INACCESSIBLE)
    lease[0] = 3000
    expect(namespace!.gate).toBe(Status.SUCCESS)
  })

  it('is drained when nothing is outstanding on it', async () => {
    let isDrained = false
    void replica.drain([1]).then(() => {
      isDrained = true
    })
    reactors.advance(5_000_000)
    await turn()
    expect(isDrained).toBe(false)
    device.letGo(Status.SUCCESS)
    reactors.advance(10_000)
    await turn()
    expect(isDrained).toBe(true)
  })

  it('needs no draining while nobody has opened it, nor for groups of others', async () => {
    await replica.drain([2])
    await new SubsystemReplica(FULL, reactors.reactors[0]!, { open: () => null as never, close() {} }).drain([
      1,
    ])
  })
})
