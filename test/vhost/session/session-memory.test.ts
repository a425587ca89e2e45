import { describe, expect, it } from 'vitest'
import { bytesAt } from '../../../src/sys/memory.ts'
import { mapShared } from '../../../src/sys/shared-memory.ts'
import { type SharedPart, Topic } from '../../../src/vhost/messages.ts'
import { mappingsOf } from '../../support/descriptors.ts'
import { joined, u32s, u64s } from '../front-end.ts'
import {
  ADD_MEM_REG,
  addresses,
  connectAnother,
  expectFault,
  frontEnd,
  GET_INFLIGHT_FD,
  LOG_ALL,
  lastRegions,
  lastStart,
  MIB,
  negotiate,
  PROTOCOL,
  REM_MEM_REG,
  reactor,
  region,
  SET_CONFIG,
  SET_FEATURES,
  SET_INFLIGHT_FD,
  SET_LOG_BASE,
  SET_MEM_TABLE,
  SET_VRING_ADDR,
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

    const first = await connectAnother()
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
