import { describe, expect, it } from 'vitest'
import { libvirtXml } from '../../src/vhost/libvirt-xml.ts'
import { type GuestDisk, type QemuOptions, qemuArgs } from '../../src/vhost/qemu-args.ts'

const disk: GuestDisk = { name: 'disk0', kind: 'blk', socketPath: '/run/v/disk0', isPacked: false }
const plain: QemuOptions = { memory: undefined, queues: undefined, bootIndex: undefined, version: [8, 2] }
const args = (change: Partial<GuestDisk> = {}, options: Partial<QemuOptions> = {}): string =>
  qemuArgs({ ...disk, ...change }, { ...plain, ...options })

describe("QEMU's arguments", () => {
  it('are a shared memory, a socket that reconnects, and a disk', () => {
    expect(args({}, { memory: '4G' })).toBe(
      '-m 4G -object memory-backend-memfd,id=mem0,size=4G,share=on -machine memory-backend=mem0 ' +
        '-chardev socket,id=vhost-disk0,path=/run/v/disk0,reconnect=1 ' +
        '-device vhost-user-blk-pci,chardev=vhost-disk0',
    )
  })

  it('have what was asked for, and packed rings where the controller offers them', () => {
    expect(args({ isPacked: true }, { queues: 4, bootIndex: 0 })).toBe(
      '-chardev socket,id=vhost-disk0,path=/run/v/disk0,reconnect=1 ' +
        '-device vhost-user-blk-pci,chardev=vhost-disk0,num-queues=4,packed=on,bootindex=0',
    )
    expect(args({ kind: 'scsi' }, { queues: 2 })).toContain(
      '-device vhost-user-scsi-pci,chardev=vhost-disk0,num_queues=2',
    )
  })

  it.each([
    ['blk', [7, 2], ',reconnect=1 '],
    ['blk', [9, 1], ',reconnect=1 '],
    ['blk', [9, 2], ',reconnect-ms=100 '],
    ['blk', [10, 0], ',reconnect-ms=100 '],
    ['scsi', [8, 1], ',path=/run/v/disk0 '],
    ['scsi', [8, 2], ',reconnect=1 '],
    ['scsi', [11, 0], ',reconnect-ms=100 '],
  ] as const)('reconnect %s as QEMU %j can', (kind, version, expected) => {
    expect(args({ kind }, { version })).toContain(expected)
  })

  it('have an id that QEMU accepts, whatever the name, and commas doubled', () => {
    expect(args({ name: '0/é', socketPath: '/run/a,b' })).toBe(
      '-chardev socket,id=vhost-0--,path=/run/a,,b,reconnect=1 -device vhost-user-blk-pci,chardev=vhost-0--',
    )
  })

  it.each(['/run/my disk', '/run/a\tb', '/run/*', '/run/[a]'])(
    'refuse a path that a shell would tear apart: %s',
    socketPath => {
      expect(() => args({ socketPath })).toThrow('Choose a path or a name without them')
    },
  )
})

describe("libvirt's elements", () => {
  it('are shared memory and a disk', () => {
    expect(
      libvirtXml(disk, { target: 'vda', queues: undefined, diskOnly: false, version: [8, 2], slot: 30 }),
    ).toBe(
      `<!-- in <domain>: the daemon reads and writes the guest's memory -->
<memoryBacking>
  <source type='memfd'/>
  <access mode='shared'/>
</memoryBacking>
<!-- in <devices> -->
<disk type='vhostuser' device='disk'>
  <driver name='qemu' type='raw'/>
  <source type='unix' path='/run/v/disk0'>
    <reconnect enabled='yes' timeout='1'/>
  </source>
  <target dev='vda' bus='virtio'/>
</disk>`,
    )
  })

  it('are the disk alone for a domain that has the memory, with queues and packed rings', () => {
    const packed = { ...disk, socketPath: "/run/<o'b>", isPacked: true }
    expect(libvirtXml(packed, { target: 'vdb', queues: 4, diskOnly: true, version: [8, 2], slot: 30 })).toBe(
      `<disk type='vhostuser' device='disk'>
  <driver name='qemu' type='raw' queues='4' packed='on'/>
  <source type='unix' path='/run/&lt;o&apos;b&gt;'>
    <reconnect enabled='yes' timeout='1'/>
  </source>
  <target dev='vdb' bus='virtio'/>
</disk>`,
    )
  })

  it('are arguments for a SCSI controller, which libvirt has no element for', () => {
    expect(
      libvirtXml(
        { ...disk, kind: 'scsi' },
        { target: 'sda', queues: undefined, diskOnly: true, version: [8, 2], slot: 30 },
      ),
    ).toBe(
      `<!-- in <domain xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>, as its last element -->
<qemu:commandline>
  <qemu:arg value='-chardev'/>
  <qemu:arg value='socket,id=vhost-disk0,path=/run/v/disk0,reconnect=1'/>
  <qemu:arg value='-device'/>
  <qemu:arg value='vhost-user-scsi-pci,chardev=vhost-disk0,addr=0x1e'/>
</qemu:commandline>`,
    )
  })
})
