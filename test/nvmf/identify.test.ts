// Offsets are those of the specification's tables (Base 2.1, section 5.1.13.2; NVM Command Set 1.1, section 4.1.5).
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { DISCOVERY, type Host, hexOf, NQN, OTHER_HOST, TargetRig, textOf } from './support.ts'

let rig: TargetRig
let host: Host
beforeEach(async () => {
  rig = await TargetRig.ready({ ana: true })
  host = await rig.host()
})
afterEach(() => rig.close())

const GUID = '2d2d3f0a9a2b4c558b1e6a7f1c3c9d10'

describe('Identify Controller', () => {
  it('tells names, limits and what is supported', async () => {
    const data = await host.identify('01')
    expect(data.byteLength).toBe(4096)
    expect(textOf(data, 4, 20)).toBe('SERIAL1'.padEnd(20))
    expect(textOf(data, 24, 40).trimEnd()).toBe('qpair virtual disk')
    expect(textOf(data, 64, 8)).toBe('1.2.3   ')
    expect(data.getUint8(76)).toBe(0x0b) // several ports, several controllers, ANA
    expect(data.getUint8(77)).toBe(5) // 2^5 pages of 4 KiB: 128 KiB
    expect(data.getUint16(78, true)).toBe(host.cntlid)
    expect(data.getUint32(80, true)).toBe(0x0002_0100)
    expect(data.getUint32(92, true)).toBe(0x0000_0900) // namespace and ANA notices
    expect(data.getUint32(96, true) & 0x41).toBe(0x41) // 128-bit host id, traffic based keep alive
    expect(data.getUint8(111)).toBe(1) // I/O controller
    expect(data.getUint8(259)).toBe(3) // four event requests
    expect(data.getUint8(261)).toBe(0x26)
    expect(data.getUint8(262)).toBe(63)
    expect(data.getUint16(320, true)).toBe(10) // keep alive in units of one second
    expect(data.getUint8(342)).toBe(10)
    expect(data.getUint8(343)).toBe(0x07)
    expect(data.getUint32(344, true)).toBe(32)
    expect(data.getUint32(348, true)).toBe(32)
    expect([data.getUint8(512), data.getUint8(513)]).toEqual([0x66, 0x44])
    expect(data.getUint16(514, true)).toBe(128)
    expect(data.getUint32(516, true)).toBe(32)
    expect(data.getUint16(520, true)).toBe(0x001d)
    expect(data.getUint16(522, true)).toBe(1)
    expect(data.getUint8(525)).toBe(0x05) // a namespace may have a write cache; Flush is for one of them
    expect(data.getUint32(536, true)).toBe(0x0030_0001)
    expect(data.getUint32(540, true)).toBe(32)
    expect(textOf(data, 768, 256).replaceAll('\0', '')).toBe(NQN)
    expect(data.getUint32(1792, true)).toBe((64 + 4096) / 16)
    expect(data.getUint32(1796, true)).toBe(1)
    expect(data.getUint16(1800, true)).toBe(0)
    expect(data.getUint8(1802)).toBe(0) // dynamic controllers
    expect(data.getUint8(1803)).toBe(1)
  })

  it('is that of a discovery controller where it is one, and nothing else can be identified there', async () => {
    const discovery = await rig.host({ subnqn: DISCOVERY })
    const data = await discovery.identify('01')
    expect(data.getUint8(111)).toBe(2)
    expect(data.getUint32(92, true)).toBe(0x8000_0000)
    expect(data.getUint32(516, true)).toBe(0)
    expect(data.getUint32(1792, true)).toBe(4)
    expect(textOf(data, 768, 256).replaceAll('\0', '')).toBe(DISCOVERY)
    expect((await discovery.admin({ 0: '06', 40: '02' })).status).toBe(0x002)
  })

  it('leaves ANA out of a subsystem that does not report it', async () => {
    const plain = await TargetRig.ready()
    const data = await (await plain.host()).identify('01')
    expect(data.getUint8(76)).toBe(0x03)
    expect(data.getUint32(92, true)).toBe(0x0000_0100)
    expect(data.getUint8(343)).toBe(0)
    plain.close()
  })
})

describe('Identify Namespace', () => {
  it('tells size, format and identifiers that come from the device', async () => {
    const data = await host.identify('00', '01000000')
    for (const offset of [0, 8, 16]) expect(data.getBigUint64(offset, true)).toBe(2048n)
    expect(data.getUint8(25)).toBe(0) // one format
    expect(data.getUint8(26)).toBe(0)
    expect(data.getUint8(30)).toBe(1) // shared
    expect(data.getBigUint64(48, true)).toBe(1048576n)
    expect(data.getUint32(92, true)).toBe(1)
    expect(hexOf(data, 104, 16)).toBe(GUID)
    expect(data.getUint8(120) & 0x03).toBe(0x02) // an EUI-64 of local scope
    expect(data.getUint8(130)).toBe(9) // 2^9 bytes
  })

  it('is all zeroes for a namespace that is not active, and an error for one that cannot be', async () => {
    const data = await host.identify('00', '02000000')
    expect(hexOf(data, 0, 4096)).toBe('00'.repeat(4096))
    for (const nsid of ['00000000', '21000000', 'ffffffff']) {
      expect((await host.admin({ 0: '06', 4: nsid, 40: '00' })).status).toBe(0x00b)
    }
  })

  it('has descriptors of EUI-64, NGUID, UUID and command set', async () => {
    const data = await host.identify('03', '01000000')
    const eui64 = hexOf(await host.identify('00', '01000000'), 120, 8)
    expect(hexOf(data, 0, 12)).toBe(`01080000${eui64}`)
    expect(hexOf(data, 12, 20)).toBe(`02100000${GUID}`)
    expect(hexOf(data, 32, 20)).toBe(`03100000${GUID}`)
    expect(hexOf(data, 52, 5)).toBe('0401000000')
    expect(hexOf(data, 57, 8)).toBe('00'.repeat(8))
    expect((await host.admin({ 0: '06', 4: '02000000', 40: '03' })).status).toBe(0x00b)
  })

  it('has a part that no command set owns', async () => {
    const data = await host.identify('08', '01000000')
    expect(data.getUint8(0)).toBe(0x20) // this one has no write cache
    expect(data.getUint8(1)).toBe(1)
    expect(data.getUint32(4, true)).toBe(1)
    expect(data.getUint8(14)).toBe(1)
  })

  it('has parts of the NVM command set, and none of others', async () => {
    expect(hexOf(await host.identify('05', '01000000', { 47: '00' }), 0, 4096)).toBe('00'.repeat(4096))
    expect((await host.identify('06', '00000000', { 47: '00' })).byteLength).toBe(4096)
    for (const cns of ['05', '06', '07']) {
      expect((await host.admin({ 0: '06', 4: '01000000', 40: cns, 47: '02' })).status).toBe(0x002)
    }
  })
})

describe('lists of Identify', () => {
  it('has the namespaces above the one named', async () => {
    await rig.run(rig.bdevs.create('null', 'disk1', { block_size: 4096, num_blocks: 8 }))
    await rig.rpc('nvmf_subsystem_add_ns', { nqn: NQN, namespace: { bdev_name: 'disk1', nsid: 5 } })
    for (const cns of ['02', '07', '10', '1a']) {
      expect(hexOf(await host.identify(cns), 0, 12)).toBe('010000000500000000000000')
      expect(hexOf(await host.identify(cns, '01000000'), 0, 8)).toBe('0500000000000000')
      expect((await host.admin({ 0: '06', 4: 'feffffff', 40: cns })).status).toBe(0x00b)
    }
  })

  it('leaves out namespaces that the host is not shown', async () => {
    await rig.run(rig.bdevs.create('null', 'disk1', { block_size: 512, num_blocks: 8 }))
    await rig.rpc('nvmf_subsystem_add_ns', {
      nqn: NQN,
      namespace: { bdev_name: 'disk1', no_auto_visible: true },
    })
    await rig.rpc('nvmf_ns_add_host', { nqn: NQN, nsid: 2, host: OTHER_HOST })
    const other = await rig.host({ hostnqn: OTHER_HOST })
    expect(hexOf(await host.identify('02'), 0, 8)).toBe('0100000000000000')
    expect(hexOf(await other.identify('02'), 0, 8)).toBe('0100000002000000')
    expect(hexOf(await host.identify('00', '02000000'), 0, 8)).toBe('00'.repeat(8))
    const queue = await rig.ioQueue(host, 1)
    const otherQueue = await rig.ioQueue(other, 1, 1, { hostnqn: OTHER_HOST })
    expect(queue.io!.namespace(2)).toBeUndefined()
    expect(otherQueue.io!.namespace(2)!.channel!.info.name).toBe('disk1')
  })

  it('has the controllers of the subsystem, on all reactors', async () => {
    const other = await rig.host({ hostnqn: OTHER_HOST }, { reactor: 1 })
    const both = `0200${hex16(host.cntlid)}${hex16(other.cntlid)}`
    for (const cns of ['12', '13']) expect(hexOf(await host.identify(cns, '01000000'), 0, 6)).toBe(both)
    const later = await host.identify('13', '00000000', { 42: hex16(other.cntlid) })
    expect(hexOf(later, 0, 6)).toBe(`0100${hex16(other.cntlid)}0000`)
    expect((await host.admin({ 0: '06', 4: '09000000', 40: '12' })).status).toBe(0x002)
  })

  it('has one set of command sets, and refuses what it does not know', async () => {
    expect(hexOf(await host.identify('1c'), 0, 16)).toBe(`01${'00'.repeat(15)}`)
    expect((await host.admin({ 0: '06', 40: '04' })).status).toBe(0x002)
  })
})

const hex16 = (value: number): string => Buffer.from([value & 0xff, value >> 8]).toString('hex')
