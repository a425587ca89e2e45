import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { afterEach, beforeEach, expect, it } from 'vitest'
import { ProgramError } from '../../../src/core/program.ts'
import { Host } from '../../../src/host/host.ts'
import type { NetParts } from '../../../src/vm/run/interfaces.ts'
import { closeNet, type GuestNet, macAddressOf, openNet, parseNet } from '../../../src/vm/run/network.ts'

it.each([
  ['user', { type: 'user' }],
  ['none', { type: 'none' }],
  ['bridge=br0', { type: 'bridge', bridge: 'br0' }],
  ['tap=tap7', { type: 'tap', interface: 'tap7' }],
  ['macvtap=eth0', { type: 'macvtap', device: 'eth0', mode: 'bridge' }],
  ['macvtap=eth0:vepa', { type: 'macvtap', device: 'eth0', mode: 'vepa' }],
])('reads %s', (text, net) => {
  expect(parseNet(text)).toEqual(net)
})

it.each([
  '',
  'bridge',
  'bridge=',
  'bridge=a/b',
  'bridge=br0:x',
  'tap=has blank',
  'macvtap=eth0:other',
  'tap=sixteen-letters-',
])('refuses %j, and says what there is', text => {
  expect(() => parseNet(text)).toThrow(/none of user, none, bridge=BRIDGE.*qpair net list/)
})

/** A machine with these interfaces, made of files: attributes by the interface's name. */
function machine(
  interfaces: Readonly<Record<string, Readonly<Record<string, string>>>>,
  capabilities = '000001ffffffffff',
): { parts: NetParts; lines: string[]; root: string } {
  const write = (path: string, text: string): void => {
    mkdirSync(dirname(join(root, path)), { recursive: true })
    writeFileSync(join(root, path), `${text}\n`)
  }
  for (const [name, attributes] of Object.entries(interfaces)) {
    mkdirSync(join(root, '/sys/class/net', name), { recursive: true })
    for (const [attribute, value] of Object.entries(attributes)) {
      write(`/sys/class/net/${name}/${attribute}`, value)
    }
  }
  write('/proc/self/status', `Name:\tnode\nCapEff:\t${capabilities}\nCapAmb:\t${capabilities}`)
  const lines: string[] = []
  const run = async (program: string, args: readonly string[]): Promise<string> => {
    lines.push([program, ...args].join(' '))
    return ''
  }
  return { parts: { run, host: new Host({ root }) }, lines, root }
}

const GUEST = { name: 'web', macAddress: '52:54:00:00:00:01' }
/** Up, as the kernel writes it: IFF_UP and IFF_BROADCAST. */
const UP = { flags: '0x1003' }
const RIGHTLESS = '0000000000000000'

let root: string
beforeEach(() => {
  root = mkdtempSync(join(tmpdir(), 'qpair-net-'))
})
afterEach(() => rmSync(root, { recursive: true }))

it('gives QEMU a card with an address of its own for each name, always the same', async () => {
  expect(macAddressOf('web')).toMatch(/^52:54:00(:[0-9a-f]{2}){3}$/)
  expect(macAddressOf('web')).toBe(macAddressOf('web'))
  expect(macAddressOf('web')).not.toBe(macAddressOf('db'))
  const { parts, lines } = machine({ tap7: { ...UP, tun_flags: '0x1002' } })
  const net = await openNet({ type: 'tap', interface: 'tap7' }, GUEST, parts)
  expect(net).toMatchObject({ needsHelper: false, interface: undefined, notes: [] })
  expect(net.arguments).toEqual([
    ...['-netdev', 'tap,id=net0,ifname=tap7,script=no,downscript=no'],
    ...['-device', 'virtio-net-pci,netdev=net0,mac=52:54:00:00:00:01,romfile='],
  ])
  expect(lines).toEqual([])
})

it('joins a bridge with a tap of its own, which does not change the bridge', async () => {
  const { parts, lines } = machine({ br0: { flags: '0x1002', mtu: '9000', 'bridge/bridge_id': '8000' } })
  const net = await openNet({ type: 'bridge', bridge: 'br0' }, GUEST, parts)
  const name = net.interface!
  expect(name).toMatch(/^qp-web-[0-9a-f]{8}$/)
  expect(lines).toEqual([
    `ip tuntap add dev ${name} mode tap`,
    `ip link set ${name} address fe:54:00:00:00:01 mtu 9000 master br0 up`,
  ])
  expect(net.arguments[1]).toBe(`tap,id=net0,ifname=${name},script=no,downscript=no`)
  expect(net.notes).toEqual(['br0 is down, and carries nothing: ip link set br0 up'])
})

it("leaves a bridge to QEMU's helper when it may make no interface", async () => {
  const { parts, lines } = machine({ br0: { ...UP, 'bridge/bridge_id': '8000' } }, RIGHTLESS)
  const net = await openNet({ type: 'bridge', bridge: 'br0' }, GUEST, parts)
  expect(net.needsHelper).toBe(true)
  expect(net.arguments.slice(0, 2)).toEqual(['-netdev', 'bridge,id=net0,br=br0'])
  expect(lines).toEqual([])
})

it('removes what an earlier guest of that name has left, and its own', async () => {
  const br0 = { ...UP, 'bridge/bridge_id': '8000' }
  const { interface: name } = await openNet({ type: 'bridge', bridge: 'br0' }, GUEST, machine({ br0 }).parts)
  const { parts, lines } = machine({ br0, [name!]: UP })
  await openNet({ type: 'bridge', bridge: 'br0' }, GUEST, parts)
  expect(lines.slice(0, 2)).toEqual([`ip link delete ${name}`, `ip tuntap add dev ${name} mode tap`])
  lines.length = 0
  await closeNet({ interface: name }, parts)
  await closeNet({ interface: 'qp-gone-1' }, parts)
  await closeNet({ interface: undefined }, parts)
  expect(lines).toEqual([`ip link delete ${name}`])
})

it('makes an interface for macvtap, and takes it away when it cannot be used', async () => {
  const { parts, lines } = machine({ eth0: UP })
  const opening = openNet({ type: 'macvtap', device: 'eth0', mode: 'vepa' }, GUEST, parts)
  await expect(opening).rejects.toThrow(/macvtap on eth0: ENOENT/)
  const name = /name (qp-web-\w+) /.exec(lines[0]!)![1]
  expect(lines).toEqual([
    `ip link add link eth0 name ${name} address 52:54:00:00:00:01 type macvtap mode vepa`,
    `ip link set ${name} up`,
    // There is no /dev/tapN in these files, and this mknod makes nothing.
    expect.stringMatching(/^mknod -m 600 \S+ c /),
    `ip link delete ${name}`,
  ])
})

it.each([
  [
    { type: 'macvtap', device: 'nope', mode: 'vepa' },
    'ENOENT',
    'macvtap: there is no interface nope; qpair net list',
  ],
  [{ type: 'bridge', bridge: 'nope' }, 'ENOENT', 'bridge: there is no interface nope; qpair net list'],
  [{ type: 'bridge', bridge: 'eth0' }, 'EINVAL', 'bridge: eth0 is an interface, and no bridge of Linux'],
  [{ type: 'tap', interface: 'nope' }, 'ENOENT', 'ip tuntap add dev nope mode tap user USER'],
  [
    { type: 'tap', interface: 'eth0' },
    'EINVAL',
    'tap: eth0 is an interface, and no tap; --network macvtap=eth0',
  ],
] satisfies [GuestNet, string, string][])('refuses %j, and says what to do', async (net, code, message) => {
  const { parts, lines } = machine({ eth0: UP })
  const opening = openNet(net, GUEST, parts)
  await expect(opening).rejects.toMatchObject({ code, message: expect.stringContaining(message) })
  expect(lines).toEqual([])
})

it('names the rights that an interface needs', async () => {
  const { parts } = machine({ 'qp-web-1': UP })
  const run = async (): Promise<string> => {
    throw new ProgramError('ip', ['link'], 'RTNETLINK answers: Operation not permitted', {
      exitCode: 2,
      stderr: '',
    })
  }
  await expect(closeNet({ interface: 'qp-web-1' }, { ...parts, run })).rejects.toThrow(
    /CAP_NET_ADMIN.*--network user/,
  )
})
