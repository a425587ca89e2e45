/** A network that a guest can be plugged into, whoever has it: libvirt or the host itself. */
import { formatXml, node } from '../../core/xml.ts'

/**
 * `nat`, `routed`, `open`, `isolated`: a virtual network of libvirt's with a bridge of its own. `bridge`: a bridge of the
 * host. `macvtap`: beside the host on one of its interfaces. `openvswitch`: a bridge of Open vSwitch. `sr-iov`: a function
 * of the network card itself.
 */
export type NetworkKind =
  | 'nat'
  | 'routed'
  | 'open'
  | 'isolated'
  | 'bridge'
  | 'macvtap'
  | 'openvswitch'
  | 'sr-iov'

/** Who hears whom. */
const REACH: Readonly<Record<NetworkKind, string>> = {
  nat: 'guests reach out behind the address of the host; nobody reaches them but the host',
  routed: 'guests are reached from outside too, where routes lead to the host',
  open: 'as routed, without any rule of a firewall',
  isolated: 'guests reach each other and the host',
  bridge: 'guests are on the same network as the host, with addresses of it',
  macvtap: 'guests are on the same network as the host; they and the host do not hear each other',
  openvswitch: 'guests are on a switch that has rules of its own',
  'sr-iov': 'the card itself serves guests; such a guest does not migrate',
}

/** How a guest's interface in macvtap's hands relates to others on the same card (libvirt, `<source mode=…/>`). */
export const MACVTAP_MODES = ['bridge', 'vepa', 'private', 'passthrough'] as const
export type MacvtapMode = (typeof MACVTAP_MODES)[number]

/** What a guest's `<interface>` says of it. */
export type Attachment =
  | { readonly type: 'network'; readonly network: string }
  | { readonly type: 'bridge'; readonly bridge: string; readonly virtualPort?: 'openvswitch' }
  | { readonly type: 'direct'; readonly device: string; readonly mode: MacvtapMode }
  /** `function`: as the kernel writes it, 0000:01:10.0; absent when none is free. */
  | { readonly type: 'hostdev'; readonly function: string | undefined }

export interface GuestNetwork {
  /** As libvirt calls it, or the name of the bridge or the interface. */
  readonly name: string
  readonly owner: 'libvirt' | 'host'
  readonly kind: NetworkKind
  /** The bridge or the interface it goes through; empty when libvirt has not said yet. */
  readonly device: string
  readonly active: boolean
  /** Only libvirt's networks start by themselves or not. */
  readonly autostart?: boolean
  /** With the length of the prefix: 192.168.122.1/24. Of the host on this network. */
  readonly addresses: readonly string[]
  /** What else matters for the choice: DHCP ranges, virtual functions, the mode of macvtap. */
  readonly detail: string
  readonly attachment: Attachment
}

export const reachOf = ({ kind }: GuestNetwork): string => REACH[kind]

/** The `<interface>` that plugs a guest in. */
export function interfaceXml({ attachment }: GuestNetwork): string {
  const model = node('model', { type: 'virtio' })
  switch (attachment.type) {
    case 'network':
      return formatXml(
        node('interface', { type: 'network' }, node('source', { network: attachment.network }), model),
      )
    case 'bridge': {
      const port = attachment.virtualPort && node('virtualport', { type: attachment.virtualPort })
      return formatXml(
        node('interface', { type: 'bridge' }, node('source', { bridge: attachment.bridge }), port, model),
      )
    }
    case 'direct':
      return formatXml(
        node(
          'interface',
          { type: 'direct' },
          node('source', { dev: attachment.device, mode: attachment.mode }),
          model,
        ),
      )
    case 'hostdev':
      return attachment.function === undefined ? '' : formatXml(hostDevice(attachment.function))
  }
}

/** `address`: domain, bus, slot and function, in hexadecimal digits: 0000:01:10.0. */
function hostDevice(address: string): ReturnType<typeof node> {
  const [domain, bus, slot, fn] = address.split(/[:.]/)
  const hex = (digits: string | undefined): string => `0x${digits ?? '0'}`
  const source = node('address', {
    type: 'pci',
    domain: hex(domain),
    bus: hex(bus),
    slot: hex(slot),
    function: hex(fn),
  })
  return node('interface', { type: 'hostdev', managed: 'yes' }, node('source', {}, source))
}
