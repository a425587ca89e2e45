/** A virtual network's document (libvirt's formatnetwork), read for what a guest's administrator chooses by. */

import type { PciAddress } from './pool-source-xml.ts'
import { readPciAddress } from './pool-source-xml.ts'
import { readUuid } from './uuid-xml.ts'
import { XmlReader } from './xml-reader.ts'

const forwardModes = ['nat', 'route', 'open', 'bridge', 'private', 'vepa', 'passthrough', 'hostdev'] as const

/** `isolated`: there is no `<forward>`. */
export type NetworkMode = (typeof forwardModes)[number] | 'isolated'

export interface NetworkDocument {
  readonly name: string
  readonly uuid?: string | undefined
  readonly mode: NetworkMode
  /** The bridge that guests are plugged into; absent for macvtap and SR-IOV. */
  readonly bridge?: string | undefined
  readonly domain?: string | undefined
  readonly addresses: readonly NetworkAddress[]
  /** `openvswitch` or one of the macvtap standards. */
  readonly virtualPort?: string | undefined
  /** Through which interfaces of the host it forwards, or which it hands out. */
  readonly interfaces: readonly string[]
  /** The physical function whose virtual functions are handed out. */
  readonly physicalFunction?: string | undefined
  /** The functions that are handed out, where they are listed one by one. */
  readonly pciAddresses: readonly PciAddress[]
  readonly vlanTags: readonly number[]
  readonly mtu?: number | undefined
}

export interface NetworkAddress {
  readonly family: 'ipv4' | 'ipv6'
  readonly address: string
  readonly prefix?: number | undefined
  readonly dhcpRanges: readonly { readonly start: string; readonly end: string }[]
}

/** Reads a network's document. Throws `RpcError` EINVAL with the line and the reason. */
export function parseNetwork(text: string): NetworkDocument {
  const root = XmlReader.parse(text, 'the network document', 'network')
  const forward = root.child('forward')
  const interfaces = (forward?.children('interface') ?? []).map(reader => reader.required('dev'))
  const device = forward?.attribute('dev')
  return {
    name: root.childText('name') ?? root.fail('the network has no <name>'),
    uuid: readUuid(root.child('uuid')),
    // libvirt's default for an element without a mode.
    mode: forward === undefined ? 'isolated' : (forward.choice('mode', forwardModes) ?? 'nat'),
    bridge: root.child('bridge')?.attribute('name'),
    domain: root.child('domain')?.attribute('name'),
    addresses: root.children('ip').map(readAddress),
    virtualPort: root.child('virtualport')?.attribute('type'),
    interfaces: interfaces.length > 0 || device === undefined ? interfaces : [device],
    physicalFunction: forward?.child('pf')?.attribute('dev'),
    pciAddresses: (forward?.children('address') ?? [])
      .filter(reader => reader.attribute('type') === 'pci')
      .map(readPciAddress),
    vlanTags: (root.child('vlan')?.children('tag') ?? []).map(
      reader => reader.number('id', 0, 4095) ?? reader.fail('<tag> has no id'),
    ),
    mtu: root.child('mtu')?.number('size', 68, 65535),
  }
}

function readAddress(reader: XmlReader): NetworkAddress {
  const ranges = reader.child('dhcp')?.children('range') ?? []
  const family = reader.choice('family', ['ipv4', 'ipv6']) ?? 'ipv4'
  return {
    family,
    address: reader.required('address'),
    prefix: reader.number('prefix', 0, 128) ?? prefixOf(reader.attribute('netmask')),
    dhcpRanges: ranges.map(range => ({ start: range.required('start'), end: range.required('end') })),
  }
}

/** How many ones a netmask begins with; undefined for what is none. */
function prefixOf(netmask: string | undefined): number | undefined {
  const parts = netmask?.split('.').map(Number) ?? []
  if (parts.length !== 4 || parts.some(part => !(part >= 0 && part <= 255))) return undefined
  const bits = parts.map(part => part.toString(2).padStart(8, '0')).join('')
  return /^1*0*$/.test(bits) ? bits.lastIndexOf('1') + 1 : undefined
}
