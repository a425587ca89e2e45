import { openSync } from 'node:fs'
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest'
import { bytesAt } from '../../src/sys/memory.ts'
import { isEventfd, mapShared } from '../../src/sys/shared-memory.ts'
import { receiveMessage } from '../../src/sys/unix-message.ts'
import type { MappedRegion, SharedPart, StartQueue } from '../../src/vhost/messages.ts'
import { Topic } from '../../src/vhost/messages.ts'
import { mappingsOf, openDescriptors, socketPair } from '../support/descriptors.ts'
import { type FrontEnd, joined, u32s, u64s, VhostLab } from './front-end.ts'

// Numbers as QEMU's docs/interop/vhost-user.rst has them, written out so that they share nothing with the code.
const GET_FEATURES = 1
const SET_FEATURES = 2
const SET_OWNER = 3
const SET_MEM_TABLE = 5
const SET_LOG_BASE = 6
const SET_VRING_NUM = 8
const SET_VRING_ADDR = 9
const SET_VRING_BASE = 10
const GET_VRING_BASE = 11
const SET_VRING_KICK = 12
const SET_VRING_CALL = 13
const SET_VRING_ERR = 14
const GET_PROTOCOL_FEATURES = 15
const SET_PROTOCOL_FEATURES = 16
const GET_QUEUE_NUM = 17
const SET_VRING_ENABLE = 18
const SET_BACKEND_REQ_FD = 21
const GET_CONFIG = 24
const SET_CONFIG = 25
const GET_INFLIGHT_FD = 31
const SET_INFLIGHT_FD = 32
const RESET_DEVICE = 34
const GET_MAX_MEM_SLOTS = 36
const ADD_MEM_REG = 37
const REM_MEM_REG = 38
const SET_STATUS = 39
const GET_STATUS = 40

const LOG_ALL = 1n << 26n
const PROTOCOL = 1n << 30n
const VERSION_1 = 1n << 32n
const PACKED = 1n << 34n
const OFFERED = 0x200n | LOG_ALL | (1n << 28n) | (1n << 29n) | PROTOCOL | VERSION_1 | PACKED
/** MQ, LOG_SHMFD, REPLY_ACK, BACKEND_REQ, CONFIG, INFLIGHT_SHMFD, RESET_DEVICE, CONFIGURE_MEM_SLOTS, STATUS. */
const PROTOCOL_FEATURES = 0b1_1011_0010_0010_1011n

const MIB = 2 ** 20
const USER = 0x7f00_0000_0000

let lab: VhostLab
let frontEnd: FrontEnd
let before: number

beforeEach(async () => {
  before = openDescriptors()
  lab = new VhostLab()
  await lab.open()
  frontEnd = await lab.connect()
})

afterEach(async () => {
  await lab.close()
  expect(mappingsOf('guest-memory') + mappingsOf('qpair-inflight') + mappingsOf('vhost-log')).toBe(0)
  expect(openDescriptors()).toBe(before)
})

/** A region of the payload of SET_MEM_TABLE: guest address, size, user address, offset in the file. */
const region = (guest: number, size: number, user = USER + guest, offset = 0): Uint8Array =>
  u64s(guest, size, user, offset)
const table = (...regions: Uint8Array[]): Uint8Array => joined(u32s(regions.length, 0), ...regions)
/** Index, flags, then descriptors, used ring, available ring, log. */
const addresses = (index: number, flags = 0, log = 0): Uint8Array =>
  joined(u32s(index, flags), u64s(USER + 0x1000, USER + 0x3000, USER + 0x2000, log))

async function negotiate(features = PROTOCOL | VERSION_1): Promise<void> {
  frontEnd.send(SET_PROTOCOL_FEATURES, u64s(PROTOCOL_FEATURES))
  frontEnd.send(SET_OWNER)
  expect(await frontEnd.acknowledged(SET_FEATURES, u64s(features))).toBe(0n)
}

async function shareMemory(): Promise<void> {
  const payload = table(region(0, MIB))
  expect(await frontEnd.acknowledged(SET_MEM_TABLE, payload, [frontEnd.memory(MIB)])).toBe(0n)
}

/** As QEMU does it, in its order; answered once the ring runs. */
async function startRing(index = 0, base = 0): Promise<void> {
  frontEnd.send(SET_VRING_CALL, u64s(index), [frontEnd.eventfd()])
  frontEnd.send(SET_VRING_NUM, u32s(index, 128))
  frontEnd.send(SET_VRING_BASE, u32s(index, base))
  frontEnd.send(SET_VRING_ADDR, addresses(index))
  frontEnd.send(SET_VRING_KICK, u64s(index), [frontEnd.eventfd()])
  expect(await frontEnd.acknowledged(SET_VRING_ENABLE, u32s(index, 1))).toBe(0n)
}

/** The front end is thrown out, with one line that says why. */
async function expectFault(why: string | RegExp): Promise<void> {
  await frontEnd.untilHungUp()
  await lab.untilEnded()
  expect(lab.lines).toHaveLength(1)
  expect(lab.lines[0]).toMatch(/^WARNING vhost: disk0: the front end is disconnected: /)
  expect(lab.lines[0]).toMatch(why)
}

const reactor = (index = 0) => lab.vhost[index]!
const lastStart = (index = 0) => reactor(index).last(Topic.START) as unknown as StartQueue
const lastRegions = () => reactor().last(Topic.MEMORY)!['regions'] as MappedRegion[]

describe('negotiation', () => {
  it('offers the features of the device, of rings and of vhost, and nothing else', async () => {
    const reply = await frontEnd.ask(GET_FEATURES)
    expect(reply).toMatchObject({ request: GET_FEATURES, flags: 5 })
    expect(reply.payload.readBigUInt64LE()).toBe(OFFERED)
    expect((await frontEnd.ask(GET_PROTOCOL_FEATURES)).payload.readBigUInt64LE()).toBe(PROTOCOL_FEATURES)
  })

  it('refuses features that were not offered, with an answer where one is wanted', async () => {
    frontEnd.send(SET_PROTOCOL_FEATURES, u64s(PROTOCOL_FEATURES))
    expect(await frontEnd.acknowledged(SET_FEATURES, u64s(PROTOCOL | (1n << 33n)))).toBe(1n)
    await expectFault('SET_FEATURES has bits 0x200000000 that were not offered')
  })

  it('refuses protocol features that were not offered', async () => {
    frontEnd.send(SET_PROTOCOL_FEATURES, u64s(1n << 8n))
    await expectFault('SET_PROTOCOL_FEATURES has bits 0x100 that were not offered')
  })

  it('tells how many queues and memory slots there are', async () => {
    await negotiate()
    expect((await frontEnd.ask(GET_QUEUE_NUM)).payload.readBigUInt64LE()).toBe(256n)
    expect((await frontEnd.ask(GET_MAX_MEM_SLOTS)).payload.readBigUInt64LE()).toBe(509n)
  })

  it('keeps the status that the driver has set', async () => {
    await negotiate()
    expect(await frontEnd.acknowledged(SET_STATUS, u64s(15))).toBe(0n)
    expect((await frontEnd.ask(GET_STATUS)).payload.readBigUInt64LE()).toBe(15n)
  })
})

describe('a message', () => {
  it.each([
    ['of another version', 1, '', 2, /GET_FEATURES has version 2, not 1/],
    ['with the flag of an answer', 1, '', 5, /GET_FEATURES has the flag of an answer/],
    ['that nobody knows', 99, '', 1, /request 99 belongs to a feature that was not offered/],
    ['of a feature that was not offered', 22, '', 1, /IOTLB_MSG belongs to a feature/],
    [
      'of a feature that was not negotiated',
      36,
      '',
      1,
      /GET_MAX_MEM_SLOTS needs a protocol feature \(0x8000\)/,
    ],
    ['that is too long', 3, '00', 1, /SET_OWNER has 1 bytes, not 0/],
    ['that is too short', 8, '00', 1, /SET_VRING_NUM has 1 bytes, not 8/],
  ])('%s ends the session', async (_, request, payload, flags, why) => {
    frontEnd.send(request, Buffer.from(payload, 'hex'), [], flags)
    await expectFault(why)
  })

  it('with descriptors that nobody expects ends the session and leaves none open', async () => {
    frontEnd.send(GET_FEATURES, undefined, [frontEnd.eventfd(), frontEnd.eventfd()])
    await expectFault('GET_FEATURES has 2 descriptors, not 0')
  })

  it('whose payload is announced too long ends the session before it arrives', async () => {
    frontEnd.sendRaw(u32s(5, 1, 269))
    await expectFault('a message has a payload of 269 bytes, more than 268')
  })

  it('does not stop other sessions when it is wrong', async () => {
    const other = await lab.connect()
    frontEnd.send(99)
    await frontEnd.untilHungUp()
    expect((await other.ask(GET_FEATURES)).payload.readBigUInt64LE()).toBe(OFFERED)
  })
})

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

describe('guest memory', () => {
  it('is mapped where the descriptors say, offsets included', async () => {
    await negotiate()
    const file = frontEnd.memory(3 * MIB)
    const view = mapShared(file, 0, 3 * MIB)
    bytesAt(view.address, 3 * MIB).set([1, 2, 3], MIB + 100)
    view.unmap()
    const regions = table(region(0, MIB, USER, MIB), region(2 ** 32, MIB, USER + MIB, 2 * MIB))
    expect(await frontEnd.acknowledged(SET_MEM_TABLE, regions, [file, file])).toBe(0n)
    await startRing()
    const [low, high] = lastRegions()
    expect(low).toMatchObject({ guestAddress: 0, userAddress: USER, sizeBytes: MIB })
    expect(high).toMatchObject({ guestAddress: 2 ** 32, userAddress: USER + MIB, sizeBytes: MIB })
    expect([...bytesAt(low!.address + 100, 3)]).toEqual([1, 2, 3])
  })

  it('comes and goes region by region, and is unmapped when nobody uses it any more', async () => {
    await negotiate()
    await shareMemory()
    await startRing()
    const extra = joined(u64s(0), region(MIB, MIB))
    expect(await frontEnd.acknowledged(ADD_MEM_REG, extra, [frontEnd.memory(MIB)])).toBe(0n)
    expect(lastRegions()).toHaveLength(2)
    expect(mappingsOf('guest-memory')).toBe(2)
    const kept = lastRegions()[0]!.address

    let mappedMeanwhile = 0
    reactor().onCall = () => {
      mappedMeanwhile = mappingsOf('guest-memory')
    }
    expect(await frontEnd.acknowledged(REM_MEM_REG, extra)).toBe(0n)
    expect(mappedMeanwhile).toBe(2)
    expect(mappingsOf('guest-memory')).toBe(1)
    expect(lastRegions()).toEqual([{ guestAddress: 0, userAddress: USER, sizeBytes: MIB, address: kept }])
  })

  it('that is in the next table as well stays mapped where it is', async () => {
    await negotiate()
    const file = frontEnd.memory(MIB)
    await frontEnd.acknowledged(SET_MEM_TABLE, table(region(0, MIB)), [file])
    await startRing()
    const { address } = lastRegions()[0]!
    const more = table(region(0, MIB), region(MIB, MIB))
    await frontEnd.acknowledged(SET_MEM_TABLE, more, [file, frontEnd.memory(MIB)])
    expect(lastRegions()[0]!.address).toBe(address)
    expect(mappingsOf('guest-memory')).toBe(2)
    // The same addresses in another file are other memory.
    await frontEnd.acknowledged(SET_MEM_TABLE, table(region(0, MIB)), [frontEnd.memory(MIB)])
    expect(lastRegions()[0]!.address).not.toBe(address)
    expect(mappingsOf('guest-memory')).toBe(1)
  })

  it('may be taken away with a descriptor, which is closed', async () => {
    await negotiate()
    const extra = joined(u64s(0), region(MIB, MIB))
    const file = frontEnd.memory(MIB)
    await frontEnd.acknowledged(ADD_MEM_REG, extra, [file])
    expect(await frontEnd.acknowledged(REM_MEM_REG, extra, [file])).toBe(0n)
  })

  it.each([
    [
      'that overlaps',
      [region(0, MIB), region(MIB - 1, 4096)],
      'overlaps a region of 4096 bytes at guest address 0xfffff',
    ],
    ['that is empty', [region(0, 0)], 'it is empty'],
    ['beyond the end of its file', [region(0, MIB + 1)], 'up to byte 1048577 of a file of 1048576 bytes'],
    ['that ends beyond what can be counted', [region(2 ** 52, 1)], 'ends beyond 2^52'],
  ])('%s ends the session', async (_, regions, why) => {
    frontEnd.send(
      SET_MEM_TABLE,
      table(...regions),
      regions.map(() => frontEnd.memory(MIB)),
    )
    await expectFault(why)
  })

  it('of fewer descriptors than regions ends the session', async () => {
    frontEnd.send(SET_MEM_TABLE, table(region(0, MIB), region(MIB, MIB)), [frontEnd.memory(MIB)])
    await expectFault('SET_MEM_TABLE has 1 descriptors for 2 regions')
  })

  it('of another size than its count says ends the session', async () => {
    frontEnd.send(SET_MEM_TABLE, joined(u32s(2, 0), region(0, MIB)), [frontEnd.memory(MIB)])
    await expectFault('SET_MEM_TABLE has 40 bytes for 2 regions, not 72')
  })

  it('has at most 509 regions', async () => {
    await negotiate()
    const file = frontEnd.memory(4096)
    const add = (i: number) =>
      frontEnd.acknowledged(ADD_MEM_REG, joined(u64s(0), region(i * 4096, 4096)), [file])
    for (let i = 0; i < 509; i++) expect(await add(i)).toBe(0n)
    expect(await add(509)).toBe(1n)
    await expectFault('ADD_MEM_REG is one region more than 509')
  })

  it('that was never shared cannot be taken away', async () => {
    await negotiate()
    frontEnd.send(REM_MEM_REG, joined(u64s(0), region(0, MIB)))
    await expectFault('REM_MEM_REG names a region of 1048576 bytes at guest address 0x0, which is not shared')
  })
})

describe('the log of a migration', () => {
  const log = u64s(4096, 0)

  it('is used from the moment LOG_ALL is set until it is not', async () => {
    await negotiate()
    await shareMemory()
    await startRing()
    const reply = await frontEnd.ask(SET_LOG_BASE, log, [frontEnd.memory(4096, 'vhost-log')])
    expect(reply).toMatchObject({ request: SET_LOG_BASE, payload: u64s(0) })
    expect(reactor().last(Topic.LOG)).toMatchObject({ log: null })
    expect(await frontEnd.acknowledged(SET_FEATURES, u64s(PROTOCOL | VERSION_1 | LOG_ALL))).toBe(0n)
    const { log: used } = reactor().last(Topic.LOG) as { log: SharedPart }
    expect(used.sizeBytes).toBe(4096)
    expect(mappingsOf('vhost-log')).toBe(1)
    expect(await frontEnd.acknowledged(SET_FEATURES, u64s(PROTOCOL | VERSION_1))).toBe(0n)
    expect(reactor().last(Topic.LOG)).toMatchObject({ log: null })
    // Nothing else was disturbed.
    expect(
      reactor()
        .topics()
        .filter(topic => topic === 'start' || topic === 'stop' || topic === 'device'),
    ).toEqual(['start'])
  })

  it('that is replaced stays mapped until the new one is used', async () => {
    await negotiate(PROTOCOL | VERSION_1 | LOG_ALL)
    await shareMemory()
    await startRing()
    await frontEnd.ask(SET_LOG_BASE, log, [frontEnd.memory(4096, 'vhost-log')])
    let mappedMeanwhile = 0
    reactor().onCall = () => {
      mappedMeanwhile = mappingsOf('vhost-log')
    }
    await frontEnd.ask(SET_LOG_BASE, u64s(4096, 4096), [frontEnd.memory(8192, 'vhost-log')])
    expect(mappedMeanwhile).toBe(2)
    expect(mappingsOf('vhost-log')).toBe(1)
  })

  it('is mapped and used only as far as there can be guest memory', async () => {
    await negotiate(PROTOCOL | VERSION_1 | LOG_ALL)
    await shareMemory()
    await startRing()
    // 64 GiB without a page of memory: a view of that would end the process.
    await frontEnd.ask(SET_LOG_BASE, u64s(2 ** 36, 0), [frontEnd.memory(2 ** 36, 'vhost-log')])
    expect(reactor().last(Topic.LOG)).toMatchObject({ log: { sizeBytes: 2 ** 30 } })
  })

  it('that leaves guest memory out ends the session', async () => {
    await negotiate(PROTOCOL | VERSION_1 | LOG_ALL)
    await shareMemory()
    // One byte stands for 8 pages: 31 bytes are one too few for a MiB.
    frontEnd.send(SET_LOG_BASE, u64s(31, 0), [frontEnd.memory(4096, 'vhost-log')])
    await expectFault('SET_LOG_BASE leaves a log for 1015808 bytes of guest memory, which ends at 1048576')
  })

  it('that is replaced by one that leaves guest memory out is not forgotten', async () => {
    await negotiate(PROTOCOL | VERSION_1 | LOG_ALL)
    await shareMemory()
    await frontEnd.ask(SET_LOG_BASE, log, [frontEnd.memory(4096, 'vhost-log')])
    frontEnd.send(SET_LOG_BASE, u64s(31, 0), [frontEnd.memory(4096, 'vhost-log')])
    await expectFault('SET_LOG_BASE leaves a log for')
    expect(mappingsOf('vhost-log')).toBe(0)
  })

  it('does not begin while rings change their features as well', async () => {
    await negotiate()
    await shareMemory()
    await startRing()
    frontEnd.send(SET_FEATURES, u64s(PROTOCOL | VERSION_1 | LOG_ALL | (1n << 29n)))
    await expectFault('SET_FEATURES changes bits 0x24000000 while rings run with 0x140000000')
  })
})

describe('the configuration space', () => {
  const range = (offset: number, size: number, flags = 0): Uint8Array =>
    joined(u32s(offset, size, flags), new Uint8Array(size))

  it('is read in any part, with zeroes where the device has nothing', async () => {
    await negotiate()
    lab.model.capacity = 0x1122
    const reply = await frontEnd.ask(GET_CONFIG, range(0, 256))
    expect(reply.payload).toHaveLength(268)
    expect([...reply.payload.subarray(0, 16)]).toEqual([0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0x22, 0x11, 0, 0])
    expect((await frontEnd.ask(GET_CONFIG, range(1, 1))).payload.at(-1)).toBe(0x11)
  })

  it.each([
    ['beyond its end', range(1, 256), 'is about bytes 1 to 257 of a space of 256'],
    ['with another length than it brings', u32s(0, 8, 0), 'is about 8 bytes, and brings 0'],
  ])('is not read %s', async (_, payload, why) => {
    await negotiate()
    frontEnd.send(GET_CONFIG, payload)
    await expectFault(why)
  })

  it('is written by the front end, and the reactors hear of it', async () => {
    await negotiate()
    await shareMemory()
    await startRing()
    expect(await frontEnd.acknowledged(SET_CONFIG, range(32, 1))).toBe(0n)
    expect(reactor().last(Topic.DEVICE)).toMatchObject({ device: { writeThrough: true } })
    frontEnd.send(SET_CONFIG, range(0, 1))
    await frontEnd.untilHungUp()
  })

  describe('that changes', () => {
    let own: number

    beforeEach(async () => {
      await negotiate()
      await shareMemory()
      const pair = socketPair()
      own = frontEnd.owns(pair[0])
      expect(await frontEnd.acknowledged(SET_BACKEND_REQ_FD, undefined, [frontEnd.owns(pair[1])])).toBe(0n)
    })

    /** Every message on the back end's socket so far. */
    function news(): Buffer {
      const bytes = Buffer.alloc(1000)
      return bytes.subarray(0, Math.max(0, receiveMessage(own, bytes, [], 8)))
    }

    async function nextNews(): Promise<Buffer> {
      let bytes: Buffer = Buffer.alloc(0)
      await lab.reactors.until(() => {
        bytes = news()
        return bytes.length > 0
      })
      return bytes
    }

    it('is announced on the socket of the back end, once, and not within an exchange', async () => {
      await frontEnd.ask(GET_CONFIG, range(0, 60))
      await startRing()
      lab.model.capacity = 200
      await lab.reactors.run(lab.sessions[0]!.deviceChanged())
      await lab.reactors.run(lab.sessions[0]!.deviceChanged())
      expect(reactor().last(Topic.DEVICE)).toBeDefined()
      expect(news()).toHaveLength(0)
      // CONFIG_CHANGE_MSG, version 1, no payload.
      expect(await nextNews()).toEqual(Buffer.from(u32s(2, 1, 0)))
    })

    it('is announced when rings start, to a front end that has not read it in this session', async () => {
      await startRing()
      expect(await nextNews()).toEqual(Buffer.from(u32s(2, 1, 0)))
    })
  })

  it('is announced on a socket only', async () => {
    await negotiate()
    frontEnd.send(SET_BACKEND_REQ_FD, undefined, [frontEnd.eventfd()])
    await expectFault('SET_BACKEND_REQ_FD brings a descriptor that is no socket')
  })
})

describe('inflight memory', () => {
  /** Two queues of 128 entries, as QEMU sends it: the C structure, padded to 24 bytes. */
  const wanted = (size = 0): Uint8Array =>
    joined(u64s(size, 0), Buffer.from('02008000', 'hex'), new Uint8Array(4))
  // Of a split queue: 16 bytes, and 16 for each of 128 descriptors, to the next multiple of 64; 64 of our own at the end.
  const QUEUE = 2112

  it('is made for the queues, comes back, and is where each queue starts', async () => {
    await negotiate()
    await shareMemory()
    const reply = await frontEnd.ask(GET_INFLIGHT_FD, wanted())
    // For packed queues, whose features may come later: 64 bytes, and 32 for each of 128 descriptors.
    expect(reply.payload).toEqual(wanted(2 * (64 + 128 * 32) + 64))
    expect(reply.descriptors).toHaveLength(1)
    expect(await frontEnd.acknowledged(SET_INFLIGHT_FD, reply.payload, reply.descriptors)).toBe(0n)
    await startRing(0)
    await startRing(1)
    const [first, second] = [lastStart(0).inflight!, lastStart(1).inflight!]
    expect([first.sizeBytes, second.sizeBytes]).toEqual([QUEUE, QUEUE])
    expect(second.address - first.address).toBe(QUEUE)
    frontEnd.send(SET_INFLIGHT_FD, reply.payload, reply.descriptors)
    await expectFault('SET_INFLIGHT_FD comes while rings run')
  })

  it('remembers for the next session that the cache was switched off', async () => {
    await negotiate()
    const { payload, descriptors } = await frontEnd.ask(GET_INFLIGHT_FD, wanted())
    await frontEnd.acknowledged(SET_INFLIGHT_FD, payload, descriptors)
    await frontEnd.acknowledged(SET_CONFIG, joined(u32s(32, 1, 0), new Uint8Array(1)))

    const [first] = [frontEnd]
    frontEnd = await lab.connect()
    await negotiate()
    await shareMemory()
    expect(await frontEnd.acknowledged(SET_INFLIGHT_FD, payload, descriptors)).toBe(0n)
    await startRing()
    expect(reactor().last(Topic.OPEN)).toMatchObject({ device: { writeThrough: true } })
    first.hangUp()
  })

  it('of another program serves without a note', async () => {
    await negotiate()
    await shareMemory()
    expect(await frontEnd.acknowledged(SET_INFLIGHT_FD, wanted(2 * QUEUE), [frontEnd.memory(8192)])).toBe(0n)
    await startRing()
    expect(lastStart().inflight!.sizeBytes).toBe(QUEUE)
  })

  it.each([
    [
      'too short for its queues',
      wanted(2 * QUEUE - 1),
      1,
      'which needs 4224 bytes of inflight memory, not 4223',
    ],
    ['for other queues', wanted(2 * QUEUE), 2, 'starts queue 2, and the inflight memory is for 2'],
  ])('%s does not serve', async (_, payload, index, why) => {
    await negotiate()
    await shareMemory()
    await frontEnd.acknowledged(SET_INFLIGHT_FD, payload, [frontEnd.memory(8192)])
    frontEnd.send(SET_VRING_NUM, u32s(index, 128))
    frontEnd.send(SET_VRING_ADDR, addresses(index))
    frontEnd.send(SET_VRING_KICK, u64s(index), [frontEnd.eventfd()])
    await expectFault(why)
  })

  it('beyond its file is refused', async () => {
    await negotiate()
    frontEnd.send(SET_INFLIGHT_FD, wanted(8193), [frontEnd.memory(8192)])
    await expectFault(
      'has inflight memory that cannot be mapped: mmap up to byte 8193 of a file of 8192 bytes',
    )
  })
})

describe('a front end that says nothing', () => {
  it('is reported, once, and served when it speaks after all', async () => {
    vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout'] })
    try {
      const silent = await lab.connect()
      const talking = await lab.connect()
      await talking.ask(GET_FEATURES)
      vi.advanceTimersByTime(10_000)
      expect(lab.lines).toHaveLength(1)
      expect(lab.lines[0]).toContain('WARNING vhost: disk0: a front end is connected and says nothing.')
      expect((await silent.ask(GET_FEATURES)).payload).toHaveLength(8)
    } finally {
      vi.useRealTimers()
    }
  })
})

describe('the end', () => {
  it('comes when the front end goes, without a word, and leaves nothing behind', async () => {
    await negotiate()
    await shareMemory()
    await startRing()
    frontEnd.hangUp()
    await lab.untilEnded()
    expect(reactor().topics().at(-1)).toBe('close')
    expect(lab.lines).toEqual([])
  })

  it('comes when the operator closes, after what is in flight has ended', async () => {
    await negotiate()
    await shareMemory()
    await startRing()
    let mapped = 0
    reactor().onCall = topic => {
      if (topic === Topic.CLOSE) mapped = mappingsOf('guest-memory')
    }
    await lab.reactors.run(lab.sessions[0]!.close())
    expect(mapped).toBe(1)
    expect(mappingsOf('guest-memory')).toBe(0)
    expect(await frontEnd.receive()).toBeNull()
    expect(lab.lines).toEqual([])
    // Nobody minds what comes too late.
    await lab.sessions[0]!.deviceChanged()
    await lab.sessions[0]!.tune({ quietUs: 0, delayBaseUs: 0, iopsThreshold: 0 })
  })

  describe('while a message waits for I/O that may never end', () => {
    let drained: () => void

    /** As a device that hangs: what is outstanding ends when the session is closed, and not before. */
    beforeEach(async () => {
      await negotiate()
      await shareMemory()
      await startRing()
      reactor().onCall = topic => {
        if (topic === Topic.STOP) return new Promise(resolve => (drained = resolve))
        // Not at once: what fails meanwhile is in nobody's hands.
        if (topic === Topic.CLOSE) setImmediate(() => setImmediate(drained))
        return undefined
      }
      frontEnd.send(GET_VRING_BASE, u32s(0, 0))
      await lab.reactors.until(() => reactor().last(Topic.STOP) !== undefined)
    })

    it('comes when the front end goes', async () => {
      frontEnd.hangUp()
      await lab.untilEnded()
      expect(reactor().topics().slice(-2)).toEqual(['stop', 'close'])
      expect(lab.lines).toEqual([])
    })

    it('comes when the front end sends what is no message, with a line', async () => {
      frontEnd.sendRaw(u32s(GET_FEATURES, 1, 4096))
      await lab.untilEnded()
      expect(lab.lines).toEqual([
        'WARNING vhost: disk0: the front end is disconnected: a message has a payload of 4096 bytes, more than 268',
      ])
    })

    it('comes when the operator closes', async () => {
      // A message that nobody will read, with what comes along.
      frontEnd.send(SET_VRING_CALL, u64s(0), [frontEnd.eventfd()])
      for (let round = 0; round < 10; round++) await lab.reactors.run(Promise.resolve())
      const closing = lab.sessions[0]!.close()
      expect(await lab.reactors.run(lab.sessions[0]!.stats())).toEqual({ queues: [] })
      await lab.reactors.run(closing)
      expect(reactor().topics().slice(-2)).toEqual(['stop', 'close'])
      expect(lab.lines).toEqual([])
    })

    it('is not needed for the operator to take the bdev away, or to tune', async () => {
      await lab.reactors.run(lab.sessions[0]!.deviceChanged())
      await lab.reactors.run(lab.sessions[0]!.tune({ quietUs: 0, delayBaseUs: 0, iopsThreshold: 0 }))
      expect(reactor().topics().slice(-3)).toEqual(['stop', 'device', 'tuning'])
      drained()
      expect(await frontEnd.receive()).toMatchObject({ request: GET_VRING_BASE })
    })
  })
})
