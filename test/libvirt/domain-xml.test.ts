import { describe, expect, it } from 'vitest'
import { formatXml } from '../../src/core/xml.ts'
import type { DiskSource } from '../../src/libvirt/disk-xml.ts'
import { diskNode, nvmeArguments } from '../../src/libvirt/disk-xml.ts'
import { DomainDocument } from '../../src/libvirt/domain-xml.ts'

const DOMAIN = `<?xml version="1.0"?>
<!-- by hand -->
<domain type='kvm' id='7'>
  <name>nvmetest</name>
  <uuid>4dea22b3-1d52-d8f3-2516-782e98ab3fa0</uuid>
  <metadata><app:thing xmlns:app="http://example.org/app">kept &amp; sound</app:thing></metadata>
  <os><type arch='x86_64' machine='pc-q35-7.2'>hvm</type></os>
  <devices>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2' cache='none'/>
      <source file='/images/a &amp; b.qcow2'/>
      <target dev='vda' bus='virtio'/>
      <serial>S1</serial>
    </disk>
    <disk type='file' device='cdrom'>
      <target dev='sda' bus='sata'/>
      <readonly/>
    </disk>
    <disk type='network' device='disk'>
      <source protocol='rbd' name='pool/image'><host name='mon' port='6789'/></source>
      <target dev='vdb' bus='virtio'/>
    </disk>
    <disk type='vhostuser' device='disk'>
      <source type='unix' path='/run/vhost/disk0'/>
      <target dev='vdc' bus='virtio'/>
    </disk>
    <disk type='nvme' device='disk'>
      <source type='pci' managed='yes' namespace='1'>
        <address domain='0x0000' bus='0x01' slot='0x00' function='0x0'/>
      </source>
      <target dev='vdd' bus='virtio'/>
    </disk>
  </devices>
</domain>
`

/** As guides on virtual NVMe disks have it. */
const WITH_NVME = `<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>nvmetest</name>
  <qemu:commandline>
    <qemu:arg value='-drive'/>
    <qemu:arg value='file=nvme.raw,if=none,id=D22,format=raw'/>
    <qemu:arg value='-device'/>
    <qemu:arg value='nvme,drive=D22,serial=1235'/>
    <qemu:arg value='-msg'/>
    <qemu:arg value='timestamp=on'/>
    <qemu:env name='QEMU_AUDIO_DRV' value='none'/>
  </qemu:commandline>
</domain>
`

const file: DiskSource = { kind: 'file', path: '/images/nvme.raw', format: 'raw' }

describe("a domain's document", () => {
  it('tells of its disks', () => {
    const rows = DomainDocument.parse(DOMAIN).disks()
    expect(rows.map(({ type, device, target, source }) => [type, device, target, source])).toEqual([
      ['file', 'disk', 'vda', '/images/a & b.qcow2'],
      ['file', 'cdrom', 'sda', undefined],
      ['network', 'disk', 'vdb', 'pool/image'],
      ['vhostuser', 'disk', 'vdc', '/run/vhost/disk0'],
      ['nvme', 'disk', 'vdd', '0000:01:00.0'],
    ])
    expect(rows[0]).toMatchObject({ bus: 'virtio', serial: 'S1', isReadOnly: false, by: 'libvirt' })
    expect(rows[1]).toMatchObject({ isReadOnly: true })
  })

  it('tells of NVMe disks that QEMU was given in its own words', () => {
    expect(DomainDocument.parse(WITH_NVME).disks()).toEqual([
      {
        type: 'file',
        device: 'disk',
        target: 'D22',
        bus: 'nvme',
        source: 'nvme.raw',
        protocol: undefined,
        serial: '1235',
        isReadOnly: false,
        by: 'arguments',
      },
    ])
  })

  it('keeps all that an edit does not touch', () => {
    const domain = DomainDocument.parse(DOMAIN)
    domain.addDevice(diskNode(file, { target: 'vde', bus: 'virtio', isReadOnly: false }))
    domain.removeDisk('vde')
    const text = domain.toString()
    expect(text).toContain('<!-- by hand -->')
    expect(text).toContain('<app:thing xmlns:app="http://example.org/app">kept &amp; sound</app:thing>')
    expect(DomainDocument.parse(text).disks()).toEqual(DomainDocument.parse(DOMAIN).disks())
  })

  it('gets an NVMe disk, with the namespace declared where libvirt looks for it, and loses it again', () => {
    const domain = DomainDocument.parse(DOMAIN)
    domain.addNvme({ id: 'D22', serial: '1235', source: file, isReadOnly: false })
    const text = domain.toString()
    expect(text).toMatch(/<domain [^>]*xmlns:qemu="http:\/\/libvirt.org\/schemas\/domain\/qemu\/1.0"/)
    expect(text.match(/xmlns:qemu/g)).toHaveLength(1)
    const again = DomainDocument.parse(text)
    expect(again.commandLine()).toEqual([
      '-drive',
      'file=/images/nvme.raw,if=none,id=D22,format=raw,discard=unmap',
      '-device',
      'nvme,drive=D22,serial=1235',
    ])
    again.removeNvme('D22')
    expect(again.toString()).not.toContain('commandline')
  })

  it('loses its NVMe disk and no other argument', () => {
    const domain = DomainDocument.parse(WITH_NVME)
    domain.removeNvme('D22')
    expect(domain.commandLine()).toEqual(['-msg', 'timestamp=on'])
    expect(domain.toString()).toContain('QEMU_AUDIO_DRV')
    expect(() => domain.removeNvme('D22')).toThrow('domain nvmetest has no disk D22')
  })

  it('tells of disks that came through the monitor, and says it of one more or one fewer', () => {
    const domain = DomainDocument.parse(DOMAIN)
    const add = { id: 'nvme0', serial: 'S', source: file, isReadOnly: false }
    const xml = domain.monitorDisksXml({ add })!
    expect(xml).toBe(`<disks>
  <nvme id='nvme0' serial='S' type='file' source='/images/nvme.raw'/>
</disks>
`)
    // As libvirt writes it into the document of the guest that runs.
    const kept = `<metadata><qpair:disks xmlns:qpair="urn:qpair:monitor-disks:1">
      <qpair:nvme id="nvme0" serial="S" type="file" source="/images/nvme.raw"/></qpair:disks></metadata>`
    const running = DomainDocument.parse(DOMAIN.replace(/<metadata>.*<\/metadata>/, kept))
    expect(running.disks().at(-1)).toMatchObject({
      ...{ target: 'nvme0', bus: 'nvme', source: '/images/nvme.raw', by: 'monitor' },
    })
    expect(running.freeTarget('nvme')).toBe('nvme1')
    expect(running.monitorDisksXml({ add: { ...add, id: 'nvme1' } })).toBe(`<disks>
  <nvme id='nvme0' serial='S' type='file' source='/images/nvme.raw'/>
  <nvme id='nvme1' serial='S' type='file' source='/images/nvme.raw'/>
</disks>
`)
    expect(running.monitorDisksXml({ remove: 'nvme0' })).toBeUndefined()
  })

  it('knows its controllers and the PCI buses that are taken', () => {
    const domain = DomainDocument.parse(`<domain><name>a</name><devices>
      <controller type='pci' index='5' model='pcie-root-port'><address type='pci' bus='0x00'/></controller>
      <controller type='scsi' index='0' model='virtio-scsi'><address type='pci' bus='0x0a'/></controller>
      </devices></domain>`)
    expect(domain.controllers('scsi')).toEqual([{ index: '0', model: 'virtio-scsi' }])
    expect(domain.controllers('pci')).toEqual([{ index: '5', model: 'pcie-root-port' }])
    expect([...domain.occupiedBuses()]).toEqual([0, 10])
  })

  it('knows what it is confined by', () => {
    const parse = (labels: string): DomainDocument =>
      DomainDocument.parse(`<domain><name>a</name>${labels}</domain>`)
    const running =
      parse(`<seclabel type='dynamic' model='selinux'><label>system_u:system_r:svirt_t:s0:c1,c2</label></seclabel>
      <seclabel type='dynamic' model='dac'><label>+64055:+64055</label></seclabel>`)
    expect(running.labelOf('selinux')).toBe('system_u:system_r:svirt_t:s0:c1,c2')
    expect(running.labelOf('apparmor')).toBeUndefined()
    expect(running.isExemptFrom('selinux')).toBe(false)
    expect(parse("<seclabel type='none'/>").isExemptFrom('apparmor')).toBe(true)
    const exempt = parse("<seclabel type='none' model='apparmor'/>")
    expect([exempt.isExemptFrom('apparmor'), exempt.isExemptFrom('selinux')]).toEqual([true, false])
  })

  it('has a slot for what libvirt knows nothing of, far from those that libvirt gives away', () => {
    const domain = DomainDocument.parse(DOMAIN)
    expect(domain.freeSlot()).toBe(30)
    domain.addNvme({ id: 'a', serial: 'a', source: file, isReadOnly: false, slot: domain.freeSlot() })
    expect(domain.commandLine().at(-1)).toBe('nvme,drive=a,serial=a,addr=0x1e')
    domain.addDevice({
      name: 'hub',
      attributes: {},
      children: [{ name: 'address', attributes: { type: 'pci', bus: '0x00', slot: '0x1d' }, children: [] }],
    })
    expect(domain.freeSlot()).toBe(28)
  })

  it('names free targets', () => {
    const domain = DomainDocument.parse(DOMAIN)
    expect(['virtio', 'sata', 'nvme', 'ide'].map(bus => domain.freeTarget(bus))).toEqual([
      'vde',
      'sdb',
      'nvme0',
      'hda',
    ])
    for (let count = 0; count < 22; count++) {
      const target = domain.freeTarget('virtio')
      domain.addDevice(diskNode(file, { target, bus: 'virtio', isReadOnly: false }))
    }
    expect(domain.freeTarget('virtio')).toBe('vdaa')
  })

  it('refuses a target that it has not, and names those that it has', () => {
    const domain = DomainDocument.parse(DOMAIN)
    expect(() => domain.removeDisk('vdz')).toThrow(
      'domain nvmetest has no disk vdz: there are vda, sda, vdb, vdc, vdd',
    )
  })

  it('refuses the arguments of a namespace that does not count', () => {
    const wrong = WITH_NVME.replace('qemu/1.0', 'qemu/2.0')
    expect(() => DomainDocument.parse(wrong)).toThrow(
      /line 3: <qemu:commandline> counts only in the namespace/,
    )
  })
})

describe('shared memory', () => {
  const parse = (memory: string): DomainDocument =>
    DomainDocument.parse(`<domain type='kvm'><name>a</name>${memory}</domain>`)

  it.each([
    ['', false],
    ["<memoryBacking><source type='memfd'/></memoryBacking>", false],
    ["<memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking>", true],
    ["<memoryBacking><hugepages/><access mode='shared'/></memoryBacking>", true],
    ["<cpu><numa><cell id='0' memAccess='shared'/><cell id='1'/></numa></cpu>", false],
    ["<cpu><numa><cell id='0' memAccess='shared'/><cell id='1' memAccess='shared'/></numa></cpu>", true],
    [
      "<memoryBacking><access mode='shared'/></memoryBacking><cpu><numa><cell id='0' memAccess='private'/></numa></cpu>",
      false,
    ],
  ])('is seen in %j: %j', (memory, expected) => {
    expect(parse(memory).hasSharedMemory).toBe(expected)
  })

  it.each([
    ['', "<memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking>"],
    [
      '<memoryBacking><hugepages/></memoryBacking>',
      "<memoryBacking><hugepages/><access mode='shared'/></memoryBacking>",
    ],
    [
      "<memoryBacking><source type='file'/></memoryBacking>",
      "<memoryBacking><source type='file'/><access mode='shared'/></memoryBacking>",
    ],
  ])('is asked for where it is not: %j', (memory, expected) => {
    const domain = parse(memory)
    domain.shareMemory()
    expect(domain.toString().replaceAll('"', "'")).toContain(expected)
    expect(domain.hasSharedMemory).toBe(true)
  })

  it('is not forced on a domain that wants private memory', () => {
    const domain = parse("\n<memoryBacking><access mode='private'/></memoryBacking>")
    expect(() => domain.shareMemory()).toThrow(/line 2: its memory is private by its own words/)
  })
})

describe('a disk', () => {
  const xml = (source: DiskSource, isReadOnly = false): string =>
    formatXml(diskNode(source, { target: 'vdb', bus: 'virtio', isReadOnly, serial: 'S9' }))
  const frame = (type: string, body: string): string =>
    `<disk type='${type}' device='disk'>
  <driver name='qemu' type='raw' discard='unmap'/>
${body}  <target dev='vdb' bus='virtio'/>
  <serial>S9</serial>
</disk>
`

  it.each<[string, DiskSource, string]>([
    ['file', file, frame('file', "  <source file='/images/nvme.raw'/>\n")],
    [
      'device',
      { kind: 'block', path: '/dev/vg/lv', format: 'raw' },
      frame('block', "  <source dev='/dev/vg/lv'/>\n"),
    ],
    [
      'NBD export at a socket',
      { kind: 'nbd', name: 'v1', server: { socketPath: '/run/nbd' } },
      frame(
        'network',
        `  <source protocol='nbd' name='v1'>
    <host transport='unix' socket='/run/nbd'/>
    <reconnect delay='60'/>
  </source>
`,
      ),
    ],
    [
      'RBD image',
      {
        kind: 'rbd',
        name: 'pool/image',
        hosts: [{ name: 'mon1', port: 6789 }, { name: 'mon2' }],
        auth: { username: 'KVMpool', secret: { uuid: 'U' } },
        configFile: '/etc/ceph/a.conf',
      },
      frame(
        'network',
        `  <auth username='KVMpool'>
    <secret type='ceph' uuid='U'/>
  </auth>
  <source protocol='rbd' name='pool/image'>
    <host name='mon1' port='6789'/>
    <host name='mon2'/>
    <config file='/etc/ceph/a.conf'/>
  </source>
`,
      ),
    ],
    [
      'iSCSI unit',
      {
        kind: 'iscsi',
        iqn: 'iqn.2013-06.com.example:iscsi-pool',
        lun: 1,
        hosts: [{ name: 'san', port: 3260 }],
        initiatorIqn: 'iqn.2013-06.com.example:me',
      },
      frame(
        'network',
        `  <source protocol='iscsi' name='iqn.2013-06.com.example:iscsi-pool/1'>
    <host name='san' port='3260'/>
    <initiator>
      <iqn name='iqn.2013-06.com.example:me'/>
    </initiator>
  </source>
`,
      ),
    ],
  ])('is an element over a %s', (_name, source, expected) => {
    expect(xml(source)).toBe(expected)
  })

  it('is a CD-ROM for an ISO image, and read-only where it is to be', () => {
    const text = xml({ kind: 'file', path: '/images/a.iso', format: 'iso' }, true)
    expect(text).toContain("device='cdrom'")
    expect(text).toContain("<driver name='qemu' type='raw'/>")
    expect(text).toContain('<readonly/>')
  })

  it('over vhost-user is on the virtio bus', () => {
    const vhost: DiskSource = { kind: 'vhost', socketPath: '/run/v', isPacked: false }
    expect(xml(vhost)).toContain("<reconnect enabled='yes' timeout='1'/>")
    expect(() => diskNode(vhost, { target: 'sda', bus: 'scsi', isReadOnly: false })).toThrow('not on scsi')
  })
})

describe("an NVMe disk in QEMU's words", () => {
  const drive = (source: DiskSource): string | undefined =>
    nvmeArguments({ id: 'n', serial: '1', source, isReadOnly: true })[1]

  it.each<[DiskSource, string]>([
    [
      { kind: 'file', path: '/a,b', format: 'qcow2' },
      'file=/a,,b,if=none,id=n,format=qcow2,readonly=on,discard=unmap',
    ],
    [
      { kind: 'nbd', name: 'v', server: { name: '127.0.0.1', port: 7 } },
      'file.driver=nbd,file.server.type=inet,file.server.host=127.0.0.1,file.server.port=7,file.export=v,' +
        'file.reconnect-delay=60,if=none,id=n,format=raw,readonly=on,discard=unmap',
    ],
    [
      { kind: 'rbd', name: 'p/ns/i', hosts: [{ name: 'm' }], configFile: '/c' },
      'file.driver=rbd,file.pool=p,file.namespace=ns,file.image=i,file.conf=/c,file.server.0.host=m,' +
        'file.server.0.port=6789,if=none,id=n,format=raw,readonly=on,discard=unmap',
    ],
  ])('is on %j', (source, expected) => {
    expect(drive(source)).toBe(expected)
  })

  it('never has a secret in its arguments', () => {
    const auth = { username: 'u', secret: { usage: 's' } }
    expect(() => drive({ kind: 'rbd', name: 'p/i', hosts: [], auth })).toThrow('with a secret')
    expect(() => drive({ kind: 'iscsi', iqn: 'i', lun: 0, hosts: [{ name: 'h' }], auth })).toThrow(
      'with a secret',
    )
  })

  it('is not over vhost-user', () => {
    expect(() => drive({ kind: 'vhost', socketPath: '/v', isPacked: false })).toThrow(
      'no NVMe disk over vhost-user',
    )
  })
})
