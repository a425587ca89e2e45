/** How a guest of ours reaches others: the words of the command line, and QEMU's two halves of a network card. */
import { closeSync, existsSync, openSync, readFileSync } from 'node:fs'
import { RpcError } from '../../core/errors.ts'
import { ProgramError } from '../../core/program.ts'
import { MACVTAP_MODES, type MacvtapMode } from '../../host/networks/guest-network.ts'
import type { RunProgram } from '../../libvirt/virsh.ts'

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
}

/** The number under which QEMU has the first descriptor that it inherits. */
const INHERITED_FD = 3

/** `macAddress`: derived from the guest's name, so that it keeps its lease. */
export async function openNet(
  net: GuestNet,
  name: string,
  macAddress: string,
  run: RunProgram,
): Promise<OpenNet> {
  const nothing = { descriptor: undefined, interface: undefined }
  const card = (mac: string): string[] => ['-device', `virtio-net-pci,netdev=net0,mac=${mac},romfile=`]
  switch (net.type) {
    case 'none':
      return { ...nothing, arguments: [] }
    case 'user':
      return { ...nothing, arguments: ['-netdev', 'user,id=net0', ...card(macAddress)] }
    case 'bridge':
      return { ...nothing, arguments: ['-netdev', `bridge,id=net0,br=${net.bridge}`, ...card(macAddress)] }
    case 'tap':
      return {
        ...nothing,
        arguments: [
          '-netdev',
          `tap,id=net0,ifname=${net.interface},script=no,downscript=no`,
          ...card(macAddress),
        ],
      }
    case 'macvtap': {
      const made = await makeMacvtap(net, name, macAddress, run)
      return { ...made, arguments: ['-netdev', `tap,id=net0,fd=${INHERITED_FD}`, ...card(macAddress)] }
    }
  }
}

export async function closeNet(
  { interface: made }: Pick<OpenNet, 'interface'>,
  run: RunProgram,
): Promise<void> {
  if (made !== undefined) await ip(run, ['link', 'delete', made])
}

async function makeMacvtap(
  { device, mode }: Extract<GuestNet, { type: 'macvtap' }>,
  name: string,
  macAddress: string,
  run: RunProgram,
): Promise<{ descriptor: number; interface: string }> {
  const made = interfaceName(name)
  const kind = ['type', 'macvtap', 'mode', mode]
  if (!existsSync(`/sys/class/net/${device}`)) {
    throw new RpcError(
      'ENOENT',
      `macvtap: there is no interface ${device}; qpair net list shows those that there are`,
    )
  }
  await ip(run, ['link', 'add', 'link', device, 'name', made, 'address', macAddress, ...kind])
  try {
    await ip(run, ['link', 'set', made, 'up'])
    const index = readFileSync(`/sys/class/net/${made}/ifindex`, 'utf8').trim()
    return { interface: made, descriptor: openSync(`/dev/tap${index}`, 'r+') }
  } catch (error) {
    await ip(run, ['link', 'delete', made])
    if (error instanceof RpcError) throw error
    throw new RpcError('EACCES', `macvtap on ${device}: ${(error as Error).message}`, { cause: error })
  }
}

export function closeDescriptor({ descriptor }: OpenNet): void {
  if (descriptor !== undefined) closeSync(descriptor)
}

/** Names of interfaces are short; two guests with the same beginning are told apart by their number. */
const interfaceName = (name: string): string =>
  `qp-${name.replaceAll(/[^\w]/g, '').slice(0, 7)}-${(hash(name) & 0xfff).toString(16)}`

/** QEMU's own range, and as many bytes of the guest's name as fit. */
export function macAddressOf(name: string): string {
  const bits = hash(name)
  const bytes = [0x52, 0x54, 0x00, (bits >>> 16) & 0xff, (bits >>> 8) & 0xff, bits & 0xff]
  return bytes.map(byte => byte.toString(16).padStart(2, '0')).join(':')
}

/** FNV-1a, 32 bits. */
function hash(text: string): number {
  let value = 0x811c9dc5
  for (const byte of Buffer.from(text)) value = Math.imul(value ^ byte, 0x01000193)
  return value >>> 0
}

async function ip(run: RunProgram, args: readonly string[]): Promise<void> {
  try {
    await run('ip', args)
  } catch (cause) {
    if (!(cause instanceof ProgramError)) throw cause
    const remedy = cause.isMissing
      ? 'install iproute2'
      : 'interfaces are made as root (CAP_NET_ADMIN), and macvtap is a module of the kernel; --network user needs neither'
    throw new RpcError('EPERM', `${cause.message}: ${remedy}`, { cause })
  }
}
