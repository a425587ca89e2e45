import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { GuestRequest } from '../../../src/vhost/ring/request.ts'
import { LocalReactorGroup } from '../../support/reactor.ts'
import { FakeSession, GuestRam, SplitDriver } from '../guest.ts'

const SIZE = 64

let reactors: LocalReactorGroup
let ram: GuestRam
let driver: SplitDriver
let session: FakeSession
let data: number

beforeEach(() => {
  reactors = new LocalReactorGroup({ arenaBytes: 1 << 20 })
  ram = new GuestRam(4 << 20)
  driver = new SplitDriver(ram, SIZE)
  session = new FakeSession(reactors, ram)
  data = ram.allocate(2 << 20, 4096)
})
afterEach(() => {
  reactors.close()
  ram.free()
})

const chain = (bytes = 512): number => driver.chain([[data, 16]], [[data, bytes]])
const offer = (bytes?: number): void => driver.offer(chain(bytes))

/** A request of the same session whose lists have room for so many segments. */
function grown(capacity: number): GuestRequest {
  const request = new GuestRequest(session.open(driver.start({ index: 1, isEnabled: false })), 0)
  request.segments.reserve(capacity)
  session.budget.charge(request)
  return request
}

/** One request from its start to its end. */
function served(head: number): GuestRequest {
  driver.offer(head)
  reactors.poll()
  const [request] = session.device.started
  session.device.completeAll()
  reactors.poll()
  driver.collect()
  return request!
}

describe('requests of a queue', () => {
  it('are pooled', () => {
    session.open(driver.start())
    const head = chain()
    const first = served(head)
    expect(served(head) === first).toBe(true)
  })

  it('are given back when they end, once those of the session take much memory', () => {
    session.open(driver.start())
    const other = grown(2 << 20)
    const head = chain()
    const first = served(head)
    expect(served(head) === first).toBe(false)
    session.budget.refund(other)
    expect(session.budget.isTight).toBe(false)
  })

  it('wait while those under way take more, but never for others alone', () => {
    session.open(driver.start())
    const other = grown(4 << 20)
    offer()
    offer()
    for (let round = 0; round < 3; round++) reactors.poll()
    expect(session.device.started).toHaveLength(1)
    expect(reactors.reactors[0]!.polled, 'nobody notifies of the second one').toBe(1)
    session.device.completeAll()
    reactors.poll()
    reactors.poll()
    expect(session.device.started).toHaveLength(1)
    session.budget.refund(other)
    offer()
    reactors.poll()
    expect(session.device.started).toHaveLength(2)
  })

  it('are charged no more when the queue stops', async () => {
    const queue = session.open(driver.start())
    offer()
    reactors.poll()
    const [request] = session.device.started
    expect(request!.weight).toBeGreaterThan(0)
    session.device.completeAll()
    await reactors.run(queue.stop())
    expect(request!.weight).toBe(0)
  })

  it('are started in small numbers when they have much data, so that other guests have their turn', () => {
    session.open(driver.start())
    for (let i = 0; i < 6; i++) offer(1 << 20)
    const perRound = Array.from({ length: 8 }, () => {
      const before = session.device.started.length
      reactors.poll()
      return session.device.started.length - before
    })
    // 256 pages each: 512 pages at once, then 128 in a round.
    expect(perRound).toEqual([2, 1, 0, 1, 0, 1, 0, 1])
  })
})
