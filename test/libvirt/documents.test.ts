/** Documents of volumes, secrets and networks. */
import { describe, expect, it } from 'vitest'
import { parseNetwork } from '../../src/libvirt/network-xml.ts'
import { formatSecret, parseSecret } from '../../src/libvirt/secret-xml.ts'
import { formatVolume, parseVolume } from '../../src/libvirt/volume-xml.ts'
import { GUIDES } from './pool-examples.ts'

const OVERLAY = `<volume type='file'>
  <name>overlay.qcow2</name>
  <key>/images/overlay.qcow2</key>
  <source>
    <device path='/dev/sda1'>
      <extent start='0' end='1048576'/>
      <extent start='2097152' end='3145728'/>
    </device>
  </source>
  <capacity unit='bytes'>10737418240</capacity>
  <allocation unit='bytes'>200704</allocation>
  <physical unit='bytes'>197120</physical>
  <target>
    <path>/images/overlay.qcow2</path>
    <format type='qcow2'/>
    <permissions>
      <mode>0600</mode>
      <owner>107</owner>
      <group>107</group>
    </permissions>
    <timestamps>
      <atime>1341933637.273190990</atime>
      <mtime>1341930622.047245868</mtime>
      <ctime>1341930622</ctime>
    </timestamps>
    <encryption format='luks'>
      <secret type='passphrase' uuid='f52a81b2-424e-490c-823d-6bd4235bc572'/>
    </encryption>
    <compat>1.1</compat>
    <nocow/>
    <clusterSize unit='B'>65536</clusterSize>
    <features>
      <lazy_refcounts/>
    </features>
  </target>
  <backingStore>
    <path>/images/master.img</path>
    <format type='raw'/>
  </backingStore>
</volume>
`
const volume = (inner: string): string => `<volume>\n<name>v</name>${inner}</volume>`

describe("a volume's document", () => {
  it('is read and written back as it was', () => {
    const document = parseVolume(OVERLAY, 'dir')
    expect(document.foreign).toEqual([])
    expect(formatVolume(document)).toBe(OVERLAY)
  })

  it.each([
    ["<capacity unit='T'>1</capacity>", 2 ** 40],
    ["<capacity unit='GB'>10</capacity>", 10_000_000_000],
    ["<capacity unit='kib'>1</capacity>", 1024],
    ['<capacity> 7 </capacity>', 7],
  ])('has its size in bytes: %s', (inner, bytes) => {
    expect(parseVolume(volume(inner), 'dir').capacityBytes).toBe(bytes)
  })

  it('may leave its size to the volume beneath', () => {
    const inner = '<backingStore><path>/b</path></backingStore>'
    expect(parseVolume(volume(inner), 'dir')).toMatchObject({ capacityBytes: undefined })
  })

  it('has formats of files, and in a disk pool those of partitions', () => {
    const inner = "<capacity>1</capacity><target><format type='linux-lvm'/></target>"
    expect(parseVolume(volume(inner), 'disk').target.format).toBe('linux-lvm')
    expect(() => parseVolume(volume(inner), 'dir')).toThrow(
      "<format type='linux-lvm'>: it is one of raw, dir",
    )
  })

  it.each([
    ['', 'line 1: the volume has no <capacity>'],
    ['<capacity>-1</capacity>', 'line 2: <capacity>-1: it is a whole number from 0'],
    ['<capacity>1e3</capacity>', '<capacity>1e3'],
    ["<capacity unit='YiB'>1</capacity>", "unit='YiB'"],
    ["<capacity unit='EiB'>9</capacity>", '9 EiB is more than 2^53 - 1 bytes'],
    [
      '<capacity>1</capacity><target><compat>new</compat></target>',
      '<compat>new: it is a version such as 1.1',
    ],
    ["<capacity>1</capacity><target><format type='floppy'/></target>", "<format type='floppy'>"],
  ])('is refused with line and reason: %s', (inner, reason) => {
    expect(() => parseVolume(volume(inner), 'dir')).toThrow(reason)
  })

  it('is refused with a name that leads elsewhere', () => {
    expect(() => parseVolume('<volume><name>../v</name></volume>', 'dir')).toThrow('has a slash')
  })
})

describe("a secret's document", () => {
  it('is the one of guides on Ceph', () => {
    expect(parseSecret(GUIDES.secret)).toEqual({
      uuid: undefined,
      description: undefined,
      isEphemeral: false,
      isPrivate: false,
      usage: { type: 'ceph', id: 'client.KVMpool secret' },
      foreign: [],
    })
    expect(formatSecret(parseSecret(GUIDES.secret))).toBe(GUIDES.secret)
  })

  it.each([
    ['volume', 'volume', '/images/a.img'],
    ['iscsi', 'target', 'libvirtiscsi'],
    ['tls', 'name', 'TLS_example'],
    ['vtpm', 'name', 'VTPM_example'],
  ])('of a %s has its <%s>', (type, element, id) => {
    const xml = `<secret ephemeral='no' private='yes'>
  <description>d</description>
  <usage type='${type}'>
    <${element}>${id}</${element}>
  </usage>
</secret>
`
    expect(parseSecret(xml)).toMatchObject({ isPrivate: true, usage: { type, id } })
    expect(formatSecret(parseSecret(xml))).toBe(xml)
  })

  it.each([
    ["<secret><usage type='ceph'/></secret>", "<usage type='ceph'> has no <name>"],
    ['<secret><usage/></secret>', '<usage> has no type'],
    [
      "<secret><usage type='gpg'/></secret>",
      "<usage type='gpg'>: it is one of volume, ceph, iscsi, tls, vtpm",
    ],
    ["<secret private='perhaps'/>", "<secret private='perhaps'>"],
  ])('is refused with line and reason: %s', (xml, reason) => {
    expect(() => parseSecret(xml)).toThrow(reason)
  })
})

describe("a network's document", () => {
  const network = (inner: string): string => `<network><name>n</name>${inner}</network>`

  it('is that of libvirt out of the box', () => {
    const xml = network(`<uuid>3e3fce45-4f53-4fa7-bb32-11f34168b82b</uuid>
      <forward mode='nat'><nat><port start='1024' end='65535'/></nat></forward>
      <bridge name='virbr0' stp='on' delay='0'/>
      <ip address='192.168.122.1' netmask='255.255.255.0'>
        <dhcp><range start='192.168.122.2' end='192.168.122.254'/></dhcp>
      </ip>
      <ip family='ipv6' address='2001:db8::1' prefix='64'/>`)
    expect(parseNetwork(xml)).toMatchObject({
      name: 'n',
      uuid: '3e3fce45-4f53-4fa7-bb32-11f34168b82b',
      mode: 'nat',
      bridge: 'virbr0',
      addresses: [
        {
          family: 'ipv4',
          address: '192.168.122.1',
          prefix: 24,
          dhcpRanges: [{ start: '192.168.122.2', end: '192.168.122.254' }],
        },
        { family: 'ipv6', address: '2001:db8::1', prefix: 64, dhcpRanges: [] },
      ],
    })
  })

  it.each([
    ['', 'isolated'],
    ['<forward/>', 'nat'],
    ["<forward mode='route' dev='eth1'/>", 'route'],
    ["<forward mode='open'/>", 'open'],
    ["<forward mode='bridge'/>", 'bridge'],
    ["<forward mode='private'/>", 'private'],
    ["<forward mode='vepa'/>", 'vepa'],
    ["<forward mode='passthrough'/>", 'passthrough'],
    ["<forward mode='hostdev'/>", 'hostdev'],
  ])('with %j is %s', (inner, mode) => {
    expect(parseNetwork(network(inner)).mode).toBe(mode)
  })

  it('has the interfaces that it forwards through or hands out', () => {
    expect(parseNetwork(network("<forward mode='route' dev='eth1'/>")).interfaces).toEqual(['eth1'])
    const macvtap =
      "<forward dev='eth20' mode='private'><interface dev='eth20'/><interface dev='eth21'/></forward>"
    expect(parseNetwork(network(macvtap)).interfaces).toEqual(['eth20', 'eth21'])
  })

  it('has the functions of SR-IOV, by their parent or one by one', () => {
    const byParent = "<forward mode='hostdev' managed='yes'><pf dev='eth3'/></forward>"
    expect(parseNetwork(network(byParent)).physicalFunction).toBe('eth3')
    const oneByOne = `<forward mode='hostdev'><driver name='vfio'/>
      <address type='pci' domain='0' bus='4' slot='0' function='1'/>
      <address type='pci' domain='0x0000' bus='0x04' slot='0x10' function='0x2'/></forward>`
    expect(parseNetwork(network(oneByOne)).pciAddresses).toEqual([
      { domain: 0, bus: 4, slot: 0, function: 1 },
      { domain: 0, bus: 4, slot: 16, function: 2 },
    ])
  })

  it('has the switch it is plugged into, with its VLANs', () => {
    const xml = network(`<forward mode='bridge'/><bridge name='ovsbr0'/><virtualport type='openvswitch'/>
      <vlan trunk='yes'><tag id='42'/><tag id='47'/></vlan><mtu size='9000'/><domain name='lab'/>`)
    expect(parseNetwork(xml)).toMatchObject({
      bridge: 'ovsbr0',
      virtualPort: 'openvswitch',
      vlanTags: [42, 47],
      mtu: 9000,
      domain: 'lab',
    })
  })

  it('is refused with line and reason', () => {
    expect(() => parseNetwork('<network/>')).toThrow('the network has no <name>')
    expect(() => parseNetwork(network("\n<forward mode='teleport'/>"))).toThrow(
      "line 2: <forward mode='teleport'>: it is one of nat, route",
    )
  })
})
