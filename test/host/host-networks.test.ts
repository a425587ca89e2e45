import { describe, expect, it } from 'vitest'
import { interfaceXml } from '../../src/host/networks/guest-network.ts'
import { hostNetworks } from '../../src/host/networks/host-networks.ts'
import { machine } from './machine.ts'

/** One card without and one with SR-IOV, a bridge over the first, libvirt's bridge, a guest's tap, a loopback. */
const net = (name: string, file: string): string => `/sys/class/net/${name}/${file}`
const FILES = {
  [net('lo', 'type')]: '772',
  [net('eth0', 'type')]: '1',
  [net('eth0', 'operstate')]: 'up',
  [net('eth0', 'device/vendor')]: '0x8086',
  [net('eth0', 'master/')]: '',
  [net('eth1', 'type')]: '1',
  [net('eth1', 'operstate')]: 'down',
  [net('eth1', 'device/sriov_totalvfs')]: '8',
  [net('eth1', 'device/virtfn0')]: '-> ../0000:01:10.0',
  [net('eth1', 'device/virtfn1')]: '-> ../0000:01:10.2',
  '/sys/class/net/eth1/0000:01:10.0/driver': '-> ../../../drivers/vfio-pci',
  '/sys/class/net/eth1/0000:01:10.2/driver': '-> ../../../drivers/iavf',
  [net('eth2', 'type')]: '1',
  [net('eth2', 'device/physfn/')]: '',
  [net('br0', 'type')]: '1',
  [net('br0', 'operstate')]: 'up',
  [net('br0', 'bridge/')]: '',
  [net('br0', 'brif/eth0')]: '',
  [net('virbr0', 'bridge/')]: '',
  [net('tap0', 'type')]: '1',
}
const networks = () => hostNetworks(machine(FILES), { br0: ['192.0.2.7/24'] }, new Set(['virbr0']), ['ovs0'])
const named = (name: string, kind: string) =>
  networks().find(each => each.name === name && each.kind === kind)!

describe('hostNetworks', () => {
  it('finds bridges, cards that are free, switches and functions, and nothing else', () => {
    expect(networks().map(({ name, kind }) => `${name} ${kind}`)).toEqual([
      'br0 bridge',
      'ovs0 openvswitch',
      'eth1 macvtap',
      'eth1 sr-iov',
    ])
  })

  it('tells the address and the ports of a bridge', () => {
    expect(named('br0', 'bridge')).toMatchObject({
      active: true,
      addresses: ['192.0.2.7/24'],
      detail: 'ports eth0',
    })
    expect(named('eth1', 'macvtap').active).toBe(false)
  })

  it('counts virtual functions, and offers one that no guest has', () => {
    const functions = named('eth1', 'sr-iov')
    expect(functions.detail).toBe('2 of 8 functions made, 1 free')
    expect(functions.attachment).toEqual({ type: 'hostdev', function: '0000:01:10.2' })
  })

  it('says how to make functions where there are none', () => {
    const card = machine({ [net('eth5', 'type')]: '1', [net('eth5', 'device/sriov_totalvfs')]: '8' })
    const found = hostNetworks(card, {}, new Set(), []).find(({ kind }) => kind === 'sr-iov')
    expect(found?.detail).toContain('echo 4 > /sys/class/net/eth5/device/sriov_numvfs')
    expect(found?.attachment).toEqual({ type: 'hostdev', function: undefined })
  })
})

describe('interfaceXml', () => {
  it('is what libvirt takes for each kind', () => {
    expect(interfaceXml(named('br0', 'bridge'))).toBe(
      `<interface type='bridge'>\n  <source bridge='br0'/>\n  <model type='virtio'/>\n</interface>\n`,
    )
    expect(interfaceXml(named('ovs0', 'openvswitch'))).toContain(`<virtualport type='openvswitch'/>`)
    expect(interfaceXml(named('eth1', 'macvtap'))).toContain(`<source dev='eth1' mode='bridge'/>`)
    expect(interfaceXml(named('eth1', 'sr-iov'))).toContain(
      `<address type='pci' domain='0x0000' bus='0x01' slot='0x10' function='0x2'/>`,
    )
  })
})
