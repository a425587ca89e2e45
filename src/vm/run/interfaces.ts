/** Interfaces of this machine that a guest's network card is joined to: those that are there, and those made for one guest. */
import { closeSync, constants, fstatSync, openSync, rmSync } from 'node:fs'
import { RpcError } from '../../core/errors.ts'
import { ProgramError } from '../../core/program.ts'
import type { Host } from '../../host/host.ts'
import type { MacvtapMode } from '../../host/networks/guest-network.ts'
import type { RunProgram } from '../../libvirt/virsh.ts'

export interface NetParts {
  readonly run: RunProgram
  readonly host: Host
}

/** Who is joined: names and addresses are derived from the guest's name. */
export interface NetGuest {
  readonly name: string
  readonly macAddress: string
}

/** Bits of linux/capability.h and linux/if.h. */
const CAP_NET_ADMIN = 12n
const IFF_UP = 1

const pathOf = (name: string, attribute = ''): string => `/sys/class/net/${name}${attribute}`

/** Throws `RpcError` ENOENT. `what`: as the operator would call it. */
export function requireInterface(host: Host, name: string, what: string): void {
  if (host.exists(pathOf(name))) return
  throw new RpcError(
    'ENOENT',
    `${what}: there is no interface ${name}; qpair net list shows those that there are`,
  )
}

/** QEMU would make a tap that is not there, as root, and one that leads nowhere. */
export function requireTap(host: Host, name: string): void {
  if (!host.exists(pathOf(name))) {
    throw new RpcError(
      'ENOENT',
      `tap: there is no interface ${name}: ip tuntap add dev ${name} mode tap user USER makes one for the daemon's user, and ` +
        `ip link set ${name} master BRIDGE up joins it to a bridge`,
    )
  }
  if (host.exists(pathOf(name, '/tun_flags'))) return
  throw new RpcError(
    'EINVAL',
    `tap: ${name} is an interface, and no tap; --network macvtap=${name} goes through it`,
  )
}

export function requireBridge(host: Host, name: string): void {
  requireInterface(host, name, 'bridge')
  if (host.exists(pathOf(name, '/bridge'))) return
  throw new RpcError(
    'EINVAL',
    `bridge: ${name} is an interface, and no bridge of Linux; --network macvtap=${name} goes through it, and a switch of ` +
      'Open vSwitch has taps among its ports, which --network tap=PORT takes',
  )
}

/** What is worth a word: an interface that is down carries nothing, and nobody says so. */
export function notesOn(host: Host, name: string): string[] {
  const isUp = (Number(host.read(pathOf(name, '/flags')) ?? IFF_UP) & IFF_UP) !== 0
  return isUp ? [] : [`${name} is down, and carries nothing: ip link set ${name} up`]
}

/** Whether the programs that this process starts may make interfaces: the rights of root, or those passed on to others. */
export function mayMakeInterfaces(host: Host, isRoot = process.geteuid?.() === 0): boolean {
  const status = host.read('/proc/self/status') ?? ''
  const line = new RegExp(`^${isRoot ? 'CapEff' : 'CapAmb'}:\\s*([0-9a-f]+)$`, 'm').exec(status)
  return line !== null && ((BigInt(`0x${line[1]}`) >> CAP_NET_ADMIN) & 1n) === 1n
}

/** A tap of this guest's own in the bridge. */
export async function makeTap(bridge: string, guest: NetGuest, { run, host }: NetParts): Promise<string> {
  const made = interfaceName(guest.name)
  await removeInterface(made, { run, host })
  await ip(run, ['tuntap', 'add', 'dev', made, 'mode', 'tap'])
  try {
    // A bridge takes the lowest address among its ports' for its own, and the least of their sizes of packets.
    const address = guest.macAddress.replace(/^../, 'fe')
    const mtu = host.read(pathOf(bridge, '/mtu')) ?? '1500'
    await ip(run, ['link', 'set', made, 'address', address, 'mtu', mtu, 'master', bridge, 'up'])
  } catch (error) {
    await ip(run, ['link', 'delete', made])
    throw error
  }
  return made
}

/** Beside the host on one of its interfaces. Answers the interface, and its character device, open. */
export async function makeMacvtap(
  { device, mode }: { readonly device: string; readonly mode: MacvtapMode },
  guest: NetGuest,
  { run, host }: NetParts,
): Promise<{ descriptor: number; interface: string }> {
  requireInterface(host, device, 'macvtap')
  const made = interfaceName(guest.name)
  await removeInterface(made, { run, host })
  const kind = ['type', 'macvtap', 'mode', mode]
  await ip(run, ['link', 'add', 'link', device, 'name', made, 'address', guest.macAddress, ...kind])
  try {
    await ip(run, ['link', 'set', made, 'up'])
    return { interface: made, descriptor: await openMacvtap(made, { run, host }) }
  } catch (error) {
    await ip(run, ['link', 'delete', made])
    if (error instanceof RpcError) throw error
    throw new RpcError('EACCES', `macvtap on ${device}: ${(error as Error).message}`, { cause: error })
  }
}

/** Whoever was called so is not there any more, and left it behind. */
export async function removeInterface(name: string, { run, host }: NetParts): Promise<void> {
  if (host.exists(pathOf(name))) await ip(run, ['link', 'delete', name])
}

/**
 * /dev/tapN, N being the interface's number. Numbers are counted in each network namespace, so that the device of that name may
 * be another's; and in a container there may be none. Then there is a node of our own for as long as it takes to open it.
 */
async function openMacvtap(made: string, { run, host }: NetParts): Promise<number> {
  const index = host.read(pathOf(made, '/ifindex')) ?? ''
  const numbers = host.read(pathOf(made, `/macvtap/tap${index}/dev`)) ?? ''
  const [major = '', minor = ''] = numbers.split(':')
  const opened = openDevice(host.path(`/dev/tap${index}`))
  if (opened !== undefined && isDevice(opened, Number(major), Number(minor))) return opened
  if (opened !== undefined) closeSync(opened)
  const node = host.path(`/dev/${made}`)
  await call(
    run,
    'mknod',
    ['-m', '600', node, 'c', major, minor],
    'device nodes are made as root (CAP_MKNOD)',
  )
  try {
    return openSync(node, constants.O_RDWR)
  } finally {
    rmSync(node)
  }
}

function openDevice(path: string): number | undefined {
  try {
    return openSync(path, constants.O_RDWR)
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined
    throw error
  }
}

/** Whether a descriptor is of that character device: st_rdev as glibc's makedev(3) joins it. */
function isDevice(descriptor: number, major: number, minor: number): boolean {
  return fstatSync(descriptor).rdev === (major << 8) + (minor & 0xff) + (minor >> 8) * 2 ** 20
}

/** Names of interfaces are short: guests with the same beginning are told apart by their number. */
const interfaceName = (name: string): string =>
  `qp-${name.replaceAll(/[^\w]/g, '').slice(0, 3)}-${hash(name).toString(16).padStart(8, '0')}`

/** FNV-1a, 32 bits. */
export function hash(text: string): number {
  let value = 0x811c9dc5
  for (const byte of Buffer.from(text)) value = Math.imul(value ^ byte, 0x01000193)
  return value >>> 0
}

const ip = (run: RunProgram, args: readonly string[]): Promise<void> =>
  call(
    run,
    'ip',
    args,
    'interfaces are made as root (CAP_NET_ADMIN), and macvtap is a module of the kernel; --network user needs neither',
  )

async function call(
  run: RunProgram,
  program: string,
  args: readonly string[],
  rights: string,
): Promise<void> {
  try {
    await run(program, args)
  } catch (cause) {
    if (!(cause instanceof ProgramError)) throw cause
    const remedy = cause.isMissing ? `install ${program === 'ip' ? 'iproute2' : 'coreutils'}` : rights
    throw new RpcError('EPERM', `${cause.message}: ${remedy}`, { cause })
  }
}
