/** How a guest of ours reaches others: the words of the command line, and QEMU's two halves of a network card. */
import { closeSync } from 'node:fs'
import { RpcError } from '../../core/errors.ts'
import { MACVTAP_MODES, type MacvtapMode } from '../../host/networks/guest-network.ts'
import {
  hash,
  makeMacvtap,
  makeTap,
  mayMakeInterfaces,
  type NetGuest,
  type NetParts,
  notesOn,
  removeInterface,
  requireBridge,
  requireTap,
} from './interfaces.ts'

export type GuestNet =
  | { readonly type: 'none' }
  /** QEMU itself is router and DHCP server: no rights needed; guests reach out, and nobody reaches them. */
  | { readonly type: 'user' }
  | { readonly type: 'bridge'; readonly bridge: string }
  /** An interface that somebody has made. */
  | { readonly type: 'tap'; readonly interface: string }
  | { readonly type: 'macvtap'; readonly device: string; readonly mode: MacvtapMode }

/** IFNAMSIZ with its zero. */
const INTERFACE = /^[^\s/:]{1,15}$/

/** `user`, `none`, `bridge=br0`, `tap=tap0`, `macvtap=eth0` or `macvtap=eth0:vepa`. Throws `RpcError` EINVAL. */
export function parseNet(text: string): GuestNet {
  if (text === 'user' || text === 'none') return { type: text }
  const [, type, value = ''] = /^(bridge|tap|macvtap)=(.*)$/.exec(text) ?? []
  const [name = '', mode = 'bridge'] = value.split(':')
  const isMode = (MACVTAP_MODES as readonly string[]).includes(mode)
  if (type === undefined || !INTERFACE.test(name) || (type === 'macvtap' ? !isMode : value.includes(':'))) {
    throw new RpcError(
      'EINVAL',
      `network ${text} is none of user, none, bridge=BRIDGE, tap=INTERFACE and macvtap=INTERFACE[:${MACVTAP_MODES.join('|')}]; ` +
        'qpair net list shows what this machine has',
    )
  }
  if (type === 'bridge') return { type, bridge: name }
  if (type === 'tap') return { type, interface: name }
  return { type: 'macvtap', device: name, mode: mode as MacvtapMode }
}

/** What a started guest keeps of its network. */
export interface OpenNet {
  readonly arguments: readonly string[]
  /** An open descriptor that QEMU inherits as its number 3. */
  readonly descriptor: number | undefined
  /** An interface that goes with the guest. */
  readonly interface: string | undefined
  /** QEMU starts a program of its own for it. */
  readonly needsHelper: boolean
  readonly notes: readonly string[]
}

/** The number under which QEMU has the first descriptor that it inherits. */
const INHERITED_FD = 3

/** The guest's `macAddress` is derived from its name, so that it keeps its lease. Throws `RpcError` for what is not there. */
export async function openNet(net: GuestNet, guest: NetGuest, parts: NetParts): Promise<OpenNet> {
  const { host } = parts
  const nothing = { descriptor: undefined, interface: undefined, needsHelper: false, notes: [] }
  const card = ['-device', `virtio-net-pci,netdev=net0,mac=${guest.macAddress},romfile=`]
  const tap = (name: string): string[] => [
    ...['-netdev', `tap,id=net0,ifname=${name},script=no,downscript=no`],
    ...card,
  ]
  switch (net.type) {
    case 'none':
      return { ...nothing, arguments: [] }
    case 'user':
      return { ...nothing, arguments: ['-netdev', 'user,id=net0', ...card] }
    case 'bridge': {
      const { bridge } = net
      requireBridge(host, bridge)
      const notes = notesOn(host, bridge)
      if (!mayMakeInterfaces(host)) {
        const netdev = ['-netdev', `bridge,id=net0,br=${bridge}`]
        return { ...nothing, notes, needsHelper: true, arguments: [...netdev, ...card] }
      }
      const made = await makeTap(bridge, guest, parts)
      return { ...nothing, notes, interface: made, arguments: tap(made) }
    }
    case 'tap':
      requireTap(host, net.interface)
      return { ...nothing, notes: notesOn(host, net.interface), arguments: tap(net.interface) }
    case 'macvtap': {
      const made = await makeMacvtap(net, guest, parts)
      const netdev = ['-netdev', `tap,id=net0,fd=${INHERITED_FD}`]
      return { ...nothing, ...made, notes: notesOn(host, net.device), arguments: [...netdev, ...card] }
    }
  }
}

export async function closeNet(
  { interface: made }: { readonly interface: string | undefined },
  parts: NetParts,
): Promise<void> {
  if (made !== undefined) await removeInterface(made, parts)
}

export function closeDescriptor({ descriptor }: OpenNet): void {
  if (descriptor !== undefined) closeSync(descriptor)
}

/** QEMU's own range, and as many bytes of the guest's name as fit. */
export function macAddressOf(name: string): string {
  const bits = hash(name)
  const bytes = [0x52, 0x54, 0x00, (bits >>> 16) & 0xff, (bits >>> 8) & 0xff, bits & 0xff]
  return bytes.map(byte => byte.toString(16).padStart(2, '0')).join(':')
}
