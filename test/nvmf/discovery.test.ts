// The entries by hand from Base 2.1, section 5.1.12.3.1: 1024 bytes of header, then 1024 bytes an entry.
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { DISCOVERY, FakeConnection, HOST, hexOf, NQN, TargetRig, textOf } from './support.ts'

let rig: TargetRig
beforeEach(async () => {
  rig = await TargetRig.ready()
})
afterEach(() => rig.close())

const listener = (trsvcid: string, traddr = '127.0.0.1'): object => ({ trtype: 'TCP', traddr, trsvcid })

async function read(connection = new FakeConnection(1)): Promise<{ log: DataView; entries: string[] }> {
  const host = await rig.host({ subnqn: DISCOVERY }, { connection })
  const header = await host.logPage('70', 1024)
  const count = header.getUint32(8, true)
  const log = await host.logPage('70', 1024 * (count + 1))
  const entries = Array.from({ length: count }, (_, index) => {
    const at = 1024 * (index + 1)
    const field = (offset: number, size: number): string =>
      textOf(log, at + offset, size).replace(/[\0 ]+$/, '')
    return `${log.getUint8(at + 2)} ${field(256, 256)} ${field(512, 256)} ${field(32, 32)}`
  })
  return { log, entries }
}

describe('the discovery log', () => {
  it('has itself and the listeners of subsystems, byte by byte', async () => {
    const { log, entries } = await read()
    expect(log.getBigUint64(0, true)).toBe(BigInt(rig.target.discovery.genctr))
    expect(log.getUint16(16, true)).toBe(0)
    expect(entries).toEqual([`3 ${DISCOVERY} 127.0.0.1 4420`, `2 ${NQN} 127.0.0.1 4420`])
    // trtype TCP, adrfam IPv4, NVM subsystem, SQ flow control optional, port, any controller, ASQSZ.
    expect(hexOf(log, 2048, 12)).toBe('030102040100ffff80000000')
    expect(hexOf(log, 2048 + 32, 32)).toBe(Buffer.from('4420'.padEnd(32)).toString('hex'))
    expect(hexOf(log, 2048 + 512 + 9, 247)).toBe('20'.repeat(247))
    // The discovery service may stay connected, and says the same on each port.
    expect(log.getUint16(1024 + 10, true)).toBe(0x3)
    expect(log.getUint8(2048 + 768)).toBe(0)
  })

  it('has IPv6 listeners, and wildcards by the address that the host came to', async () => {
    await rig.rpc('nvmf_subsystem_add_listener', { nqn: NQN, listen_address: listener('4421', '::1') })
    await rig.rpc('nvmf_subsystem_add_listener', { nqn: NQN, listen_address: listener('4422', '0.0.0.0') })
    const { log, entries } = await read(new FakeConnection(1, { host: '192.0.2.7', port: 4420 }))
    expect(entries.slice(1)).toEqual([
      `2 ${NQN} 127.0.0.1 4420`,
      `2 ${NQN} ::1 4421`,
      `2 ${NQN} 192.0.2.7 4422`,
    ])
    expect(log.getUint8(3072 + 1)).toBe(2)
  })

  it('shows a host only what it may use', async () => {
    await rig.rpc('nvmf_subsystem_allow_any_host', { nqn: NQN, allow_any_host: false })
    expect((await read()).entries).toHaveLength(1)
    await rig.rpc('nvmf_subsystem_add_host', { nqn: NQN, host: HOST })
    expect((await read()).entries).toHaveLength(2)
  })

  it('shows only listeners like the one the host came by, when filtered', async () => {
    await rig.rpc('nvmf_subsystem_add_listener', { nqn: NQN, listen_address: listener('4420', '127.0.0.2') })
    await rig.rpc('nvmf_subsystem_add_listener', { nqn: NQN, listen_address: listener('4421') })
    const shown = async (filters: string): Promise<string[]> => {
      rig.rpcInfo.state = 'startup'
      await rig.rpc('nvmf_set_config', { discovery_filters: filters })
      rig.rpcInfo.state = 'runtime'
      // Whatever is published next carries the filter.
      await rig.rpc('nvmf_subsystem_set_ns_ana_group', { nqn: NQN, nsid: 1, anagrpid: 1 })
      return (await read()).entries.slice(1).map(entry => entry.split(' ').slice(2).join(' '))
    }
    expect(await shown('transport')).toEqual(['127.0.0.1 4420', '127.0.0.2 4420', '127.0.0.1 4421'])
    expect(await shown('address')).toEqual(['127.0.0.1 4420', '127.0.0.1 4421'])
    expect(await shown('svcid')).toEqual(['127.0.0.1 4420', '127.0.0.2 4420'])
    expect(await shown('address,svcid')).toEqual(['127.0.0.1 4420'])
  })

  it('has referrals', async () => {
    const address = listener('8009', '192.0.2.1')
    await rig.rpc('nvmf_discovery_add_referral', { address })
    await rig.rpc('nvmf_discovery_add_referral', { address })
    expect((await read()).entries.at(-1)).toBe(`1 ${DISCOVERY} 192.0.2.1 8009`)
    expect(await rig.rpc('nvmf_discovery_get_referrals')).toEqual([
      {
        address: { trtype: 'TCP', adrfam: 'IPv4', traddr: '192.0.2.1', trsvcid: '8009' },
        secure_channel: false,
        subnqn: DISCOVERY,
      },
    ])
    await rig.rpc('nvmf_discovery_remove_referral', { address })
    expect((await read()).entries).toHaveLength(2)
    await expect(rig.rpc('nvmf_discovery_remove_referral', { address })).rejects.toThrow(
      /Unable to remove a referral: there is none to 192.0.2.1:8009/,
    )
  })

  it('counts each change, so that a host that reads in pieces notices', async () => {
    const before = rig.target.discovery.genctr
    await rig.rpc('nvmf_subsystem_add_listener', { nqn: NQN, listen_address: listener('4421') })
    await rig.rpc('nvmf_subsystem_remove_listener', { nqn: NQN, listen_address: listener('4421') })
    expect(rig.target.discovery.genctr).toBe(before + 2)
    expect((await read()).log.getUint32(0, true)).toBe(before + 2)
  })
})
