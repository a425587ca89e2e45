import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { DISCOVERY, NQN, TargetRig } from './support.ts'

let rig: TargetRig
beforeEach(async () => {
  rig = await TargetRig.ready()
})
afterEach(() => rig.close())

const controllers = (): number => rig.target.directory.controllers(rig.target.get(NQN)).length

describe('keep alive', () => {
  it('ends a controller and all its queues after a silent time-out', async () => {
    const host = await rig.host({ katoMs: 10_000 })
    const queue = await rig.ioQueue(host, 1, 1)
    await rig.advance(9_900)
    expect(host.connection.isClosed).toBe(false)
    await rig.advance(6_000)
    expect(host.connection.reasons).toEqual(['nothing was heard for 10000 ms'])
    expect(queue.isClosed).toBe(true)
    expect(controllers()).toBe(0)
  })

  it('ends the I/O queues even when the admin connection takes long to end', async () => {
    const host = await rig.host({ katoMs: 10_000 })
    const queue = await rig.ioQueue(host, 1, 1)
    host.connection.isSlow = true
    await rig.advance(16_000)
    expect(host.connection.isClosed).toBe(false)
    expect(queue.isClosed).toBe(true)
    expect((await host.admin({ 0: '06', 40: '01' })).status).toBe(0x300)
    host.connection.close()
  })

  it('is satisfied by Keep Alive commands', async () => {
    const host = await rig.host({ katoMs: 10_000 })
    for (let i = 0; i < 10; i++) {
      await rig.advance(4_000)
      expect((await host.admin({ 0: '18' }, 0)).status).toBe(0)
    }
    expect(host.connection.isClosed).toBe(false)
  })

  it('is satisfied by commands on an I/O queue of another reactor', async () => {
    const host = await rig.host({ katoMs: 10_000 })
    const queue = await rig.ioQueue(host, 1, 1)
    for (let i = 0; i < 10; i++) {
      await rig.advance(4_000)
      queue.io!.noteTraffic()
    }
    expect(host.connection.isClosed).toBe(false)
  })

  it('never expires when the host asked for none', async () => {
    const host = await rig.host({ katoMs: 0 })
    await rig.advance(60_000)
    expect(host.connection.isClosed).toBe(false)
  })

  it('starts anew when the host changes the time-out', async () => {
    const host = await rig.host({ katoMs: 10_000 })
    await rig.advance(9_000)
    await host.admin({ 0: '09', 40: '0f', 44: '60ea0000' }, 0)
    await rig.advance(50_000)
    expect(host.connection.isClosed).toBe(false)
    await rig.advance(45_000)
    expect(host.connection.isClosed).toBe(true)
  })

  it('clears away discovery controllers whose host is silent for two minutes', async () => {
    const host = await rig.host({ subnqn: DISCOVERY })
    await rig.advance(110_000)
    expect(host.connection.isClosed).toBe(false)
    await rig.advance(80_000)
    expect(host.connection.isClosed).toBe(true)
  })
})
