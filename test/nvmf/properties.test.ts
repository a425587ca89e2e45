// Properties and their offsets: Base 2.1, section 3.1.4; the commands: sections 6.5 and 6.6.
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { Host, NQN, TargetRig } from './support.ts'

let rig: TargetRig
let host: Host
beforeEach(async () => {
  rig = await TargetRig.ready()
  const { connection, completion } = await rig.connect()
  host = new Host(rig, connection, completion.dw0!)
})
afterEach(() => rig.close())

const get = (offset: string, size = '00') => host.admin({ 0: '7f 40 0100 04', 40: size, 44: offset }, 0)
const set = (offset: string, value: string, size = '00') =>
  host.admin({ 0: '7f 00 0100 00', 40: size, 44: offset, 48: value }, 0)
const CC = '14000000'
const csts = async (): Promise<number> => (await get('1c000000')).dw0!

describe('Property Get', () => {
  it('reads CAP as eight bytes: queue size, contiguous, time-out, command sets', async () => {
    const { dw0, dw1 } = await get('00000000', '01')
    expect(dw0! & 0xffff).toBe(127)
    expect((dw0! >>> 16) & 1).toBe(1)
    expect(dw0! >>> 24).toBe(20)
    expect((dw1! >>> 4) & 1).toBe(0) // no subsystem reset
    expect((dw1! >>> 5) & 0xff).toBe(0x41) // the NVM command set, and command sets by Identify
    expect((dw1! >>> 27) & 1).toBe(1) // ready with media
  })

  it('reads VS, CC, CSTS and CRTO', async () => {
    expect((await get('08000000')).dw0).toBe(0x0002_0100)
    expect((await get(CC)).dw0).toBe(0)
    expect(await csts()).toBe(0)
    expect((await get('68000000')).dw0).toBe(20)
  })

  it.each([
    ['a property that is not there', '30000000', '00'],
    ['four bytes of CAP', '00000000', '00'],
    ['eight bytes of CC', CC, '01'],
  ])(
    'refuses %s, without Do Not Retry, by which nvme-cli takes it for an absent register',
    async (_, offset, size) => {
      expect(await get(offset, size)).toEqual({ status: 0x002 })
    },
  )
})

describe('CC', () => {
  it('makes the controller ready, and only then are admin commands executed', async () => {
    expect((await host.admin({ 0: '06', 40: '01' })).status).toBe(0x00c)
    expect((await host.enable()).status).toBe(0)
    expect(await csts()).toBe(0x1)
    expect((await get(CC)).dw0).toBe(0x0046_0001)
    expect((await host.admin({ 0: '06', 40: '01' })).status).toBe(0)
  })

  it.each([
    ['a page size that is not there', '81004600'],
    ['a command set that is not there', '11004600'],
    ['another arbitration', '01084600'],
    ['another size of entries', '01004700'],
  ])('refuses to be enabled with %s', async (_, value) => {
    expect((await set(CC, value)).status).toBe(0x002)
    expect(await csts()).toBe(0)
  })

  it('ends the I/O queues when it is cleared, and takes new ones when it is set again', async () => {
    await host.enable()
    const queue = await rig.ioQueue(host, 1, 1)
    await set(CC, '00004600')
    expect(queue.isClosed).toBe(true)
    expect(await csts()).toBe(0)
    expect((await rig.connect({ qid: 1, cntlid: host.cntlid })).completion.status).toBe(0x00c)
    await host.enable()
    expect((await rig.connect({ qid: 1, cntlid: host.cntlid })).completion.status).toBe(0)
  })

  it('reports a shutdown complete after the I/O queues have ended', async () => {
    await host.enable()
    const queue = await rig.ioQueue(host, 1, 1)
    await set(CC, '01404600')
    expect(queue.isClosed).toBe(true)
    expect(await csts()).toBe(0x1 | 0x8)
  })

  it('cannot be set as eight bytes, and other properties not at all', async () => {
    expect((await set(CC, '01004600', '01')).status).toBe(0x002)
    expect((await set('1c000000', '01000000')).status).toBe(0x002)
  })
})

describe('NSSR', () => {
  it('ends every controller of a subsystem that allows it', async () => {
    const nqn = `${NQN}-nssr`
    await rig.rpc('nvmf_create_subsystem', { nqn, allow_any_host: true, enable_nssr: true })
    await rig.rpc('nvmf_subsystem_add_listener', {
      nqn,
      listen_address: { trtype: 'tcp', traddr: '127.0.0.1', trsvcid: '4420' },
    })
    const hosts = [await rig.host({ subnqn: nqn }), await rig.host({ subnqn: nqn }, { reactor: 1 })]
    for (const each of hosts) each.listen()
    host = hosts[0]!
    expect((await get('00000000', '01')).dw1! & 0x10).toBe(0x10)
    expect((await set('20000000', '65 4d 56 4e')).status).toBe(0)
    await rig.until(() => hosts.every(({ connection }) => connection.isClosed))
  })

  it('is refused elsewhere', async () => {
    expect((await set('20000000', '65 4d 56 4e')).status).toBe(0x002)
  })
})
