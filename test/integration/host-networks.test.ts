/** Networks for guests, as a real virsh tells and takes them. */
import { afterAll, beforeAll, expect, it } from 'vitest'
import { runProgram } from '../../src/core/program.ts'
import { type GuestNetwork, interfaceXml } from '../../src/host/networks/guest-network.ts'
import { type Daemon, startDaemon } from './lab/daemon.ts'
import { describeWith } from './lab/describe-with.ts'

/** A libvirt that lives inside virsh, with one network called default. */
const TEST_DRIVER = 'test:///default'

await describeWith(['virsh'], 'networks for guests', () => {
  let daemon: Daemon

  beforeAll(async () => {
    daemon = await startDaemon()
  })
  afterAll(() => daemon?.discard())

  it("are those of libvirt and the host's, with the XML that plugs a guest in", async () => {
    const { networks, silent } = await daemon.rpc<{ networks: GuestNetwork[]; silent: string[] }>(
      'net_list',
      {
        uri: TEST_DRIVER,
      },
    )
    expect(silent).toEqual([])
    expect(networks).toContainEqual(
      expect.objectContaining({
        name: 'default',
        kind: 'nat',
        device: 'virbr0',
        addresses: ['192.168.122.1/24'],
        detail: 'DHCP 192.168.122.2 to 192.168.122.254',
      }),
    )
    const xml = await daemon.rpc<string>('net_dumpxml', { network: 'default', uri: TEST_DRIVER })
    expect(xml).toContain("<source network='default'/>")
    await expect(daemon.rpc('net_dumpxml', { network: 'nowhere', uri: TEST_DRIVER })).rejects.toThrow(
      'there is no network nowhere: there are default (nat)',
    )
  })

  it('of the host are told though libvirt does not answer', async () => {
    const { silent } = await daemon.rpc<{ silent: string[] }>('net_list', {
      uri: 'qemu+unix:///system?socket=/nowhere',
    })
    expect(silent).toEqual([expect.stringContaining('libvirt does not answer at')])
  })

  it.each([
    { type: 'network', network: 'default' },
    { type: 'bridge', bridge: 'br0' },
    { type: 'bridge', bridge: 'ovs0', virtualPort: 'openvswitch' },
    { type: 'direct', device: 'eth0', mode: 'vepa' },
    { type: 'hostdev', function: '0000:01:10.2' },
  ] satisfies GuestNetwork['attachment'][])('are understood by libvirt: %j', async attachment => {
    const guest: GuestNetwork = {
      ...{ name: 'n', owner: 'host', kind: 'bridge', device: '', active: true, addresses: [], detail: '' },
      attachment,
    }
    const domain = `<domain type='test'><name>g</name><memory>65536</memory><os><type>hvm</type></os>
      <devices>${interfaceXml(guest)}</devices></domain>`
    // The test driver forgets a domain with its connection, so that one call defines and prints it.
    const said = await runProgram('virsh', ['-c', TEST_DRIVER, 'define /dev/stdin; dumpxml g'], {
      input: domain,
    })
    expect(said).toContain(`<interface type='${attachment.type}'`)
  })
})
