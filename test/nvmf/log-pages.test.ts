// Layouts by hand from Base 2.1, section 5.1.12.1.
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { DISCOVERY, type Host, hexOf, NQN, TargetRig, textOf } from './support.ts'

let rig: TargetRig
let host: Host
beforeEach(async () => {
  rig = await TargetRig.ready({ ana: true })
  host = await rig.host()
})
afterEach(() => rig.close())

describe('Get Log Page', () => {
  it('lists the pages that there are', async () => {
    const supported = async (of: Host): Promise<number[]> => {
      const page = await of.logPage('00', 1024)
      const lids = Array.from({ length: 256 }, (_, lid) => lid)
      return lids.filter(lid => (page.getUint32(lid * 4, true) & 1) === 1)
    }
    expect(await supported(host)).toEqual([0, 1, 2, 3, 4, 5, 0x0c, 0x12])
    expect(await supported(await rig.host({ subnqn: DISCOVERY }))).toEqual([0, 1, 0x12, 0x70])
  })

  it.each([
    ['a page that is not there', { 40: '0d', 42: '0f00' }, 0x109],
    ['the discovery log of an I/O controller', { 40: '70', 42: '0f00' }, 0x109],
    ['an offset within a dword', { 40: '02', 42: '0f00', 48: '02000000' }, 0x002],
    ['an offset by index', { 40: '02', 42: '0f00', 56: '00008000' }, 0x002],
    ['an offset beyond the end', { 40: '02', 42: '0f00', 48: '04020000' }, 0x002],
    ['more than the host takes', { 40: '02', 42: 'ff07' }, 0x00f],
    ['the health of one namespace', { 4: '01000000', 40: '02', 42: '0f00' }, 0x002],
  ])('refuses %s', async (_, parts, status) => {
    expect((await host.admin({ 0: '02', ...parts }, 4096)).status).toBe(status)
  })

  it('reads a page in pieces', async () => {
    const whole = await host.logPage('05', 2048)
    const piece = await host.logPage('05', 16, { 48: '04040000' })
    expect(hexOf(piece, 0, 16)).toBe(hexOf(whole, 1028, 16))
    expect(hexOf(await host.logPage('02', 16, { 48: 'f8010000' }), 0, 16)).toBe('00'.repeat(16))
  })

  it('tells which commands are supported', async () => {
    const page = await host.logPage('05', 4096)
    const opcodes = (at: number): number[] =>
      Array.from({ length: 256 }, (_, opcode) => opcode).filter(
        opcode => (page.getUint32(at + opcode * 4, true) & 1) === 1,
      )
    expect(opcodes(0)).toEqual([0x02, 0x06, 0x08, 0x09, 0x0a, 0x0c, 0x18, 0x7f])
    expect(opcodes(1024)).toEqual([0x00, 0x01, 0x02, 0x05, 0x08, 0x09, 0x7f])
  })

  it('tells the firmware and where it is', async () => {
    const page = await host.logPage('03', 512)
    expect(page.getUint8(0)).toBe(1)
    expect(textOf(page, 8, 8)).toBe('1.2.3   ')
  })
})

describe('the error log', () => {
  it('has the newest error first, with its command', async () => {
    expect((await host.admin({ 0: '06 00 1100', 4: '05000000', 40: '04' })).status).toBe(0x002)
    expect((await host.admin({ 0: '13 00 1200' })).status).toBe(0x001)
    const page = await host.logPage('01', 128)
    expect(page.getBigUint64(0, true)).toBe(2n)
    expect(page.getUint16(10, true)).toBe(0x0012)
    expect(page.getUint16(12, true)).toBe((0x4001 << 1) & 0xffff) // Invalid Opcode, do not retry
    expect(page.getUint8(31)).toBe(0x13)
    expect(page.getBigUint64(64, true)).toBe(1n)
    expect(page.getUint16(74, true)).toBe(0x0011)
    expect(page.getUint32(88, true)).toBe(5)
    const smart = await host.logPage('02', 512)
    expect(smart.getBigUint64(176, true)).toBe(2n)
  })
})

describe('the health log', () => {
  it('counts what was done to the namespaces on every reactor', async () => {
    const { IoType, BdevIo } = await import('../../src/bdev/io.ts')
    const { mapAnonymous } = await import('../../src/sys/memory.ts')
    const buffer = mapAnonymous(4096)
    let done = 0
    for (const [qid, reactor] of [
      [1, 0],
      [2, 1],
    ] as const) {
      const queue = await rig.ioQueue(host, qid, reactor)
      const io = new BdevIo({ ioDone: () => void done++ })
      io.type = IoType.WRITE
      io.blockCount = 8
      io.segments.set(buffer, 4096)
      queue.io!.namespace(1)!.channel!.submit(io)
    }
    await rig.until(() => done === 2)
    const page = await host.logPage('02', 512)
    expect(page.getUint8(0)).toBe(0)
    expect(page.getUint16(1, true)).toBe(298)
    expect(page.getUint8(3)).toBe(100)
    expect(page.getBigUint64(32, true)).toBe(0n)
    expect(page.getBigUint64(48, true)).toBe(1n) // 8192 bytes, rounded up to 1000 × 512
    expect(page.getBigUint64(80, true)).toBe(2n)
  })
})

describe('the ANA log', () => {
  beforeEach(async () => {
    for (const name of ['disk1', 'disk2']) {
      await rig.run(rig.bdevs.create('null', name, { block_size: 512, num_blocks: 8 }))
    }
    await rig.rpc('nvmf_subsystem_add_ns', { nqn: NQN, namespace: { bdev_name: 'disk1', anagrpid: 7 } })
    await rig.rpc('nvmf_subsystem_add_ns', { nqn: NQN, namespace: { bdev_name: 'disk2', anagrpid: 7 } })
  })

  it('has each group with its state and namespaces', async () => {
    await rig.rpc('nvmf_subsystem_listener_set_ana_state', {
      nqn: NQN,
      listen_address: { trtype: 'TCP', traddr: '127.0.0.1', trsvcid: '4420' },
      ana_state: 'inaccessible',
      anagrpid: 7,
    })
    const page = await host.logPage('0c', 92)
    expect(hexOf(page, 0, 16)).toBe(`0100000000000000${'0200'}${'00'.repeat(6)}`)
    expect(hexOf(page, 16, 36)).toBe(`0100000001000000${'00'.repeat(8)}01${'00'.repeat(15)}01000000`)
    expect(hexOf(page, 52, 40)).toBe(`0700000002000000${'00'.repeat(8)}03${'00'.repeat(15)}0200000003000000`)
  })

  it('leaves the namespaces out when only groups are asked for', async () => {
    const page = await host.logPage('0c', 84, { 41: '01' })
    expect(hexOf(page, 16, 8)).toBe('0100000000000000')
    expect(hexOf(page, 48, 8)).toBe('0700000000000000')
  })

  it('is not there without ANA reporting', async () => {
    const plain = await TargetRig.ready()
    expect((await (await plain.host()).admin({ 0: '02', 40: '0c', 42: '0300' })).status).toBe(0x109)
    plain.close()
  })
})
