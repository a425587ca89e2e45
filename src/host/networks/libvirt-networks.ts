/** What the virtual networks of libvirt are to a guest. */
import type { NetworkDocument, NetworkMode } from '../../libvirt/network-xml.ts'
import type { VirtualNetwork } from '../../libvirt/virsh.ts'
import type { GuestNetwork, NetworkKind } from './guest-network.ts'

/** A virtual network as a guest's administrator sees it. */
export function libvirtNetwork({ document, isActive, isAutostart }: VirtualNetwork): GuestNetwork {
  return {
    name: document.name,
    owner: 'libvirt',
    kind: kindOf(document),
    device: document.bridge ?? document.physicalFunction ?? document.interfaces.join(', '),
    active: isActive,
    autostart: isAutostart,
    addresses: document.addresses.map(({ address, prefix }) =>
      prefix === undefined ? address : `${address}/${prefix}`,
    ),
    detail: detailOf(document),
    attachment: { type: 'network', network: document.name },
  }
}

const KINDS: Readonly<Record<NetworkMode, NetworkKind>> = {
  nat: 'nat',
  route: 'routed',
  open: 'open',
  isolated: 'isolated',
  bridge: 'bridge',
  private: 'macvtap',
  vepa: 'macvtap',
  passthrough: 'macvtap',
  hostdev: 'sr-iov',
}

/** `<forward mode='bridge'>` stands for a bridge of the host's when it names one, and for macvtap when it names a card. */
function kindOf({ mode, bridge, virtualPort }: NetworkDocument): NetworkKind {
  if (virtualPort === 'openvswitch') return 'openvswitch'
  return mode === 'bridge' && bridge === undefined ? 'macvtap' : KINDS[mode]
}

function detailOf(document: NetworkDocument): string {
  const { mode, pciAddresses, vlanTags, addresses, mtu } = document
  const ranges = addresses.flatMap(({ dhcpRanges }) =>
    dhcpRanges.map(({ start, end }) => `${start} to ${end}`),
  )
  const parts = [
    ranges.length > 0 ? `DHCP ${ranges.join(', ')}` : '',
    kindOf(document) === 'macvtap' ? `mode ${mode}` : '',
    pciAddresses.length > 0 ? `${pciAddresses.length} functions` : '',
    vlanTags.length > 0 ? `VLAN ${vlanTags.join(', ')}` : '',
    mtu === undefined ? '' : `MTU ${mtu}`,
  ]
  return parts.filter(Boolean).join('; ')
}
