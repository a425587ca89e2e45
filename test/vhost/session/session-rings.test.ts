import { openSync } from 'node:fs'
import { describe, expect, it } from 'vitest'
import { isEventfd } from '../../../src/sys/shared-memory.ts'
import { Topic } from '../../../src/vhost/messages.ts'
import { joined, u32s, u64s } from '../front-end.ts'
import {
  addresses,
  expectFault,
  frontEnd,
  GET_FEATURES,
  GET_STATUS,
  GET_VRING_BASE,
  lab,
  lastStart,
  MIB,
  negotiate,
  PACKED,
  PROTOCOL,
  RESET_DEVICE,
  reactor,
  region,
  SET_FEATURES,
  SET_MEM_TABLE,
  SET_STATUS,
  SET_VRING_ADDR,
  SET_VRING_BASE,
  SET_VRING_CALL,
  SET_VRING_ENABLE,
  SET_VRING_ERR,
  SET_VRING_KICK,
  SET_VRING_NUM,
  shareMemory,
  startRing,
  table,
  USER,
  useSession,
  VERSION_1,
} from './session-support.ts'

useSession()

describe('a ring', () => {
  it('starts with its kick, where the others of its reactor are, and disabled until it is enabled', async () => {
    await negotiate(PROTOCOL | VERSION_1 | (1n << 28n))
    await shareMemory()
    frontEnd.send(SET_VRING_NUM, u32s(1, 256))
    frontEnd.send(SET_VRING_BASE, u32s(1, 7))
    frontEnd.send(SET_VRING_ADDR, addresses(1))
    await frontEnd.ask(GET_FEATURES)
    expect(reactor(1).topics()).toEqual([])
    frontEnd.send(SET_VRING_KICK, u64s(1), [frontEnd.eventfd()])
    await frontEnd.ask(GET_FEATURES)
    expect(reactor(1).topics()).toEqual(['open', 'memory', 'start'])
    expect(reactor(0).topics()).toEqual([])
    const start = lastStart(1)
    expect(start).toMatchObject({
      index: 1,
      size: 256,
      isPacked: false,
      hasEventIndex: false,
      hasIndirect: true,
      descriptors: USER + 0x1000,
      driverArea: USER + 0x2000,
      deviceArea: USER + 0x3000,
      logAddress: -1,
      base: 7,
      call: -1,
      inflight: null,
      isEnabled: false,
    })
    expect(isEventfd(start.kick)).toBe(true)
    expect(await frontEnd.acknowledged(SET_VRING_ENABLE, u32s(1, 1))).toBe(0n)
    expect(reactor(1).last(Topic.UPDATE)).toMatchObject({ index: 1, isEnabled: true })
  })

  it('is enabled from the start where protocol features were not negotiated', async () => {
    frontEnd.send(SET_FEATURES, u64s(VERSION_1))
    frontEnd.send(SET_MEM_TABLE, table(region(0, MIB)), [frontEnd.memory(MIB)])
    frontEnd.send(SET_VRING_NUM, u32s(0, 128))
    frontEnd.send(SET_VRING_ADDR, addresses(0))
    frontEnd.send(SET_VRING_KICK, u64s(0x100))
    await frontEnd.ask(GET_FEATURES)
    expect(lastStart()).toMatchObject({ isEnabled: true, kick: -1, base: 0 })
  })

  it('stops with GET_VRING_BASE, which is answered when nothing of it is in flight', async () => {
    await negotiate()
    await shareMemory()
    await startRing(0, 5)
    reactor().bases.set(0, 77)
    let drained = (): void => {}
    reactor().onCall = topic => (topic === Topic.STOP ? new Promise(done => (drained = done)) : undefined)
    frontEnd.send(GET_VRING_BASE, u32s(0, 0))
    await lab.reactors.until(() => reactor().last(Topic.STOP) !== undefined)
    drained()
    expect(await frontEnd.receive()).toMatchObject({ request: GET_VRING_BASE, payload: u32s(0, 77) })
    // It takes another kick to start it, from where it was.
    await startRing(0, 77)
    expect(lastStart().base).toBe(77)
    expect((await frontEnd.ask(GET_VRING_BASE, u32s(3, 0))).payload).toEqual(u32s(3, 0))
  })

  it('that is packed is told so, and begins with both wrap counters set', async () => {
    await negotiate(PROTOCOL | VERSION_1 | PACKED)
    await shareMemory()
    expect((await frontEnd.ask(GET_VRING_BASE, u32s(0, 0))).payload).toEqual(u32s(0, 0x8000_8000))
    frontEnd.send(SET_VRING_NUM, u32s(0, 100))
    frontEnd.send(SET_VRING_ADDR, addresses(0))
    frontEnd.send(SET_VRING_KICK, u64s(0), [frontEnd.eventfd()])
    await frontEnd.ask(GET_FEATURES)
    expect(lastStart()).toMatchObject({ isPacked: true, size: 100, base: 0x8000_8000 })
  })

  it('that runs takes another call, and the one of before is closed once nobody uses it', async () => {
    await negotiate()
    await shareMemory()
    await startRing()
    const first = lastStart().call
    let wasOpen = false
    reactor().onCall = topic => {
      if (topic === Topic.UPDATE) wasOpen = isEventfd(first)
    }
    expect(await frontEnd.acknowledged(SET_VRING_CALL, u64s(0), [frontEnd.eventfd()])).toBe(0n)
    const { call } = reactor().last(Topic.UPDATE) as { call: number }
    expect(wasOpen).toBe(true)
    expect(isEventfd(call)).toBe(true)
    expect(() => isEventfd(first)).toThrow('ENOENT')
  })

  it('that runs is logged from now on, and not moved', async () => {
    await negotiate()
    await shareMemory()
    await startRing()
    expect(await frontEnd.acknowledged(SET_VRING_ADDR, addresses(0, 1, 0x3000))).toBe(0n)
    expect(reactor().last(Topic.UPDATE)).toMatchObject({ index: 0, logAddress: 0x3000 })
    frontEnd.send(SET_VRING_ADDR, joined(u32s(0, 0), u64s(USER, USER + 0x3000, USER + 0x2000, 0)))
    await expectFault('SET_VRING_ADDR moves ring 0 from 0x7f0000001000 to 0x7f0000000000 while it runs')
  })

  it.each([
    ['of no entries', SET_VRING_NUM, u32s(0, 0), 'gives ring 0 0 entries, not 1 to 32768'],
    ['of too many entries', SET_VRING_NUM, u32s(0, 32769), 'gives ring 0 32769 entries'],
    ['that cannot be', SET_VRING_NUM, u32s(256, 1), 'names ring 256, and there are 256'],
    ['that is enabled by halves', SET_VRING_ENABLE, u32s(0, 2), 'enables ring 0 with 2, not 0 or 1'],
    [
      'without the descriptor it announces',
      SET_VRING_KICK,
      u64s(0),
      'has 0 descriptors, and bit 8 of 0x0 is 0',
    ],
  ])('%s ends the session', async (_, request, payload, why) => {
    frontEnd.send(request, payload)
    await expectFault(why)
  })

  it.each([SET_VRING_KICK, SET_VRING_CALL, SET_VRING_ERR])(
    'takes no descriptor but an eventfd (%i)',
    async request => {
      frontEnd.send(request, u64s(0), [frontEnd.owns(openSync('/dev/null', 'r'))])
      await expectFault('brings a descriptor that is no eventfd')
    },
  )

  it.each([
    [
      'at a misaligned address',
      joined(u32s(0, 0), u64s(USER + 8, USER, USER, 0)),
      128,
      'is no multiple of 16',
    ],
    ['with a size that is no power of two', addresses(0), 100, '100 entries, which is no power of two'],
  ])('does not start %s', async (_, payload, size, why) => {
    await negotiate()
    await shareMemory()
    frontEnd.send(SET_VRING_NUM, u32s(0, size))
    frontEnd.send(SET_VRING_ADDR, payload)
    frontEnd.send(SET_VRING_KICK, u64s(0), [frontEnd.eventfd()])
    await expectFault(why)
  })

  it('that a reactor refuses ends the session with its reason', async () => {
    await negotiate()
    await shareMemory()
    reactor().onCall = topic => {
      if (topic === Topic.START) throw new Error('the descriptor table is outside of guest memory')
    }
    frontEnd.send(SET_VRING_NUM, u32s(0, 128))
    frontEnd.send(SET_VRING_ADDR, addresses(0))
    frontEnd.send(SET_VRING_KICK, u64s(0), [frontEnd.eventfd()])
    await expectFault('SET_VRING_KICK cannot start ring 0: the descriptor table is outside of guest memory')
    expect(reactor().topics().at(-1)).toBe('close')
  })

  it('tells the reactor where the front end hears that it is broken', async () => {
    await negotiate()
    await shareMemory()
    frontEnd.send(SET_VRING_ERR, u64s(0), [frontEnd.eventfd()])
    await startRing()
    const { error } = lastStart()
    expect(isEventfd(error)).toBe(true)
    expect(await frontEnd.acknowledged(SET_VRING_ERR, u64s(0), [frontEnd.eventfd()])).toBe(0n)
    const update = reactor().last(Topic.UPDATE) as { error: number }
    expect(isEventfd(update.error)).toBe(true)
    expect(() => isEventfd(error)).toThrow('ENOENT')
  })
})

describe('reset', () => {
  it.each([
    ['RESET_DEVICE', RESET_DEVICE, new Uint8Array(0)],
    ['status 0', SET_STATUS, u64s(0)],
  ])('by %s stops every ring and keeps its base', async (_, request, payload) => {
    await negotiate()
    await shareMemory()
    await startRing(0)
    await startRing(1)
    reactor(0).bases.set(0, 11)
    reactor(1).bases.set(1, 12)
    frontEnd.send(SET_STATUS, u64s(15))
    expect(await frontEnd.acknowledged(request, payload)).toBe(0n)
    expect(reactor(0).last(Topic.STOP)).toMatchObject({ index: 0 })
    expect(reactor(1).last(Topic.STOP)).toMatchObject({ index: 1 })
    expect((await frontEnd.ask(GET_STATUS)).payload.readBigUInt64LE()).toBe(0n)
    // QEMU 7.2 resets the status first, and asks for the bases then.
    expect((await frontEnd.ask(GET_VRING_BASE, u32s(0, 0))).payload).toEqual(u32s(0, 11))
    expect((await frontEnd.ask(GET_VRING_BASE, u32s(1, 0))).payload).toEqual(u32s(1, 12))
  })
})
