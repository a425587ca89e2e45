/** The networks of the host itself: its bridges, those of Open vSwitch, and what its cards offer. */
import { basename, join } from 'node:path'
import { ProgramError, runProgram } from '../../core/program.ts'
import type { Host } from '../host.ts'
import type { GuestNetwork } from './guest-network.ts'

/** The kernel's type of Ethernet (include/uapi/linux/if_arp.h). */
const ARPHRD_ETHER = '1'
const INTERFACES = '/sys/class/net'

/** Addresses by interface, with the length of the prefix. As `os.networkInterfaces` tells them. */
export type Addresses = Readonly<Record<string, readonly string[]>>

/**
 * `taken`: bridges that are a virtual network of libvirt's and are told of as such. `switches`: the bridges of Open
 * vSwitch.
 */
export function hostNetworks(
  host: Host,
  addresses: Addresses,
  taken: ReadonlySet<string>,
  switches: readonly string[],
): GuestNetwork[] {
  const names = host.list(INTERFACES)
  const bridges = names.filter(name => host.exists(join(INTERFACES, name, 'bridge')) && !taken.has(name))
  const cards = names.filter(name => isCard(host, name))
  const of = (name: string) => ({
    name,
    owner: 'host' as const,
    device: name,
    active: host.read(join(INTERFACES, name, 'operstate')) !== 'down',
    addresses: addresses[name] ?? [],
  })
  return [
    ...bridges.map(
      (name): GuestNetwork => ({
        ...of(name),
        kind: 'bridge',
        detail: portsOf(host, name),
        attachment: { type: 'bridge', bridge: name },
      }),
    ),
    ...switches.map(
      (name): GuestNetwork => ({
        ...of(name),
        kind: 'openvswitch',
        detail: '',
        attachment: { type: 'bridge', bridge: name, virtualPort: 'openvswitch' },
      }),
    ),
    // A card that is a port of a bridge has given its traffic away.
    ...cards
      .filter(name => !host.exists(join(INTERFACES, name, 'master')))
      .map(
        (name): GuestNetwork => ({
          ...of(name),
          kind: 'macvtap',
          detail: 'mode bridge; vepa, private and passthrough on request',
          attachment: { type: 'direct', device: name, mode: 'bridge' },
        }),
      ),
    ...cards.flatMap(name => virtualFunctions(host, name, of(name))),
  ]
}

/** A network card, or what looks like one to the kernel: not a bridge, a tap, a loopback. */
function isCard(host: Host, name: string): boolean {
  return (
    host.exists(join(INTERFACES, name, 'device')) &&
    host.read(join(INTERFACES, name, 'type')) === ARPHRD_ETHER &&
    !host.exists(join(INTERFACES, name, 'device/physfn'))
  )
}

function portsOf(host: Host, bridge: string): string {
  const ports = host.list(join(INTERFACES, bridge, 'brif'))
  return ports.length === 0 ? 'no ports: only guests are on it' : `ports ${ports.join(', ')}`
}

/** A guest's own driver has it, or one that hands it on. */
const HANDED_OUT: readonly string[] = ['vfio-pci', 'pci-stub']

/** What a card with SR-IOV can hand out. */
function virtualFunctions(
  host: Host,
  name: string,
  common: Omit<GuestNetwork, 'kind' | 'detail' | 'attachment'>,
): GuestNetwork[] {
  const device = join(INTERFACES, name, 'device')
  const total = Number(host.read(join(device, 'sriov_totalvfs')) ?? 0)
  if (total === 0) return []
  const functions = host.list(device).filter(entry => /^virtfn\d+$/.test(entry))
  const free = functions.filter(
    entry => !HANDED_OUT.includes(basename(host.link(join(device, entry, 'driver')))),
  )
  const [first] = free.map(entry => basename(host.link(join(device, entry))))
  const remedy =
    functions.length === 0
      ? `; to have some: echo ${Math.min(total, 4)} > ${join(device, 'sriov_numvfs')}`
      : ''
  return [
    {
      ...common,
      kind: 'sr-iov',
      detail: `${functions.length} of ${total} functions made, ${free.length} free${remedy}`,
      attachment: { type: 'hostdev', function: first },
    },
  ]
}

/** The bridges of Open vSwitch; none where it is not installed. Throws `ProgramError` when it does not answer. */
export async function openVSwitches(): Promise<string[]> {
  try {
    const said = await runProgram('ovs-vsctl', ['--timeout=3', 'list-br'])
    return said.split('\n').filter(Boolean)
  } catch (error) {
    if (error instanceof ProgramError && error.isMissing) return []
    throw error
  }
}
