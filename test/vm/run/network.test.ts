import { expect, it } from 'vitest'
import { ProgramError } from '../../../src/core/program.ts'
import { closeNet, macAddressOf, openNet, parseNet } from '../../../src/vm/run/network.ts'

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

it('gives QEMU a card with an address of its own for each name, always the same', async () => {
  expect(macAddressOf('web')).toMatch(/^52:54:00(:[0-9a-f]{2}){3}$/)
  expect(macAddressOf('web')).toBe(macAddressOf('web'))
  expect(macAddressOf('web')).not.toBe(macAddressOf('db'))
  const net = await openNet({ type: 'tap', interface: 'tap7' }, 'web', '52:54:00:00:00:01', async () => '')
  expect(net.arguments).toEqual([
    ...['-netdev', 'tap,id=net0,ifname=tap7,script=no,downscript=no'],
    ...['-device', 'virtio-net-pci,netdev=net0,mac=52:54:00:00:00:01,romfile='],
  ])
})

it('makes an interface for macvtap, and takes it away when it cannot be used', async () => {
  const lines: string[] = []
  const run = async (program: string, args: readonly string[]): Promise<string> => {
    lines.push([program, ...args].join(' '))
    return ''
  }
  const opening = openNet({ type: 'macvtap', device: 'lo', mode: 'vepa' }, 'web', '52:54:00:00:00:01', run)
  await expect(opening).rejects.toThrow(/macvtap on lo: .*ifindex/)
  const name = /name (qp-web-\w+) /.exec(lines[0]!)![1]
  expect(lines).toEqual([
    `ip link add link lo name ${name} address 52:54:00:00:00:01 type macvtap mode vepa`,
    `ip link set ${name} up`,
    `ip link delete ${name}`,
  ])
})

it('names an interface for macvtap that is not there', async () => {
  const run = (): Promise<string> => Promise.reject(new Error('must not be asked'))
  const opening = openNet({ type: 'macvtap', device: 'nope', mode: 'vepa' }, 'web', '52:54:00:00:00:01', run)
  await expect(opening).rejects.toMatchObject({
    code: 'ENOENT',
    message: 'macvtap: there is no interface nope; qpair net list shows those that there are',
  })
})

it('names the rights that an interface needs', async () => {
  const run = async (): Promise<string> => {
    throw new ProgramError('ip', ['link'], 'RTNETLINK answers: Operation not permitted', {
      exitCode: 2,
      stderr: '',
    })
  }
  await expect(closeNet({ interface: 'qp-web-1' }, run)).rejects.toThrow(/CAP_NET_ADMIN.*--network user/)
})
