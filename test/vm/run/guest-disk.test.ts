import { describe, expect, it } from 'vitest'
import { diskArguments, diskObjects, parseDisks } from '../../../src/vm/run/guest-disk.ts'

const PLAIN = {
  bus: 'virtio',
  means: undefined,
  format: undefined,
  serial: undefined,
  isReadOnly: false,
  isShared: false,
}

describe('the words for a disk', () => {
  it('are a name alone, on the virtio bus', () => {
    expect(parseDisks(['pool/disk', '/srv/a.raw'])).toEqual([
      { ...PLAIN, volume: 'pool/disk' },
      { ...PLAIN, volume: '/srv/a.raw' },
    ])
  })

  it.each([
    [['disk0,bus=nvme,serial=S1,readonly', 'disk1']],
    // What the command line makes of --disk disk0,bus=nvme,serial=S1,readonly --disk disk1.
    [['disk0', 'bus=nvme', 'serial=S1', 'readonly', 'disk1']],
  ])('say more behind commas: %j', elements => {
    expect(parseDisks(elements)).toEqual([
      { ...PLAIN, volume: 'disk0', bus: 'nvme', serial: 'S1', isReadOnly: true },
      { ...PLAIN, volume: 'disk1' },
    ])
  })

  it('take what looks like a word for a name where no disk stands before it', () => {
    expect(parseDisks(['readonly'])).toEqual([{ ...PLAIN, volume: 'readonly' }])
    expect(parseDisks(['path=/a', 'vol=images/b,bus=scsi'])).toEqual(parseDisks(['/a', 'images/b,bus=scsi']))
  })

  it.each([
    ['disk0,bus=ide', 'disk disk0: bus is virtio or nvme or scsi, not "ide"'],
    ['disk0,means=', 'disk disk0: means is vhost or nbd or direct, not ""'],
    ['disk0,serial=a b', 'disk disk0: serial is 1 to 20 letters, digits, - . _, not "a b"'],
    ['disk0,,readonly', 'nothing stands beside a comma'],
  ])('refuse %s', (element, reason) => {
    expect(() => parseDisks([element])).toThrow(reason)
  })
})

describe("a disk as QEMU's objects", () => {
  const file = { kind: 'file', path: '/srv/a,b.raw', format: 'raw' } as const
  const common = { serial: 'S', isReadOnly: false }

  it('is a block node and a device that names it', () => {
    const { chardev, blockdev, device } = diskObjects(
      { ...common, target: 'nvme0', bus: 'nvme', source: file },
      { bus: 'port3', bootIndex: 1 },
    )
    expect(chardev).toBeUndefined()
    expect(blockdev).toMatchObject({
      driver: 'raw',
      'node-name': 'disk-nvme0',
      file: { filename: '/srv/a,b.raw' },
    })
    expect(device).toEqual({
      ...{ driver: 'nvme', id: 'disk-nvme0', drive: 'disk-nvme0', serial: 'S', bus: 'port3', bootindex: 1 },
    })
  })

  it('on the SCSI bus is behind the controller, wherever a port is', () => {
    const { device } = diskObjects({ ...common, target: 'sda', bus: 'scsi', source: file }, { bus: 'pci.0' })
    expect(device).toMatchObject({ driver: 'scsi-hd', bus: 'scsi.0' })
  })

  it.each([
    [[7, 2], 'reconnect=1'],
    [[10, 2], 'reconnect-ms=100'],
  ] as const)('that the daemon serves is a socket that QEMU %j comes back to', (version, word) => {
    const objects = diskObjects(
      {
        ...common,
        target: 'vda',
        bus: 'virtio',
        source: { kind: 'vhost', socketPath: '/run/a', isPacked: false },
      },
      { bus: 'port0' },
    )
    expect(diskArguments(objects, version)).toEqual([
      '-chardev',
      `socket,id=disk-vda,path=/run/a,${word}`,
      '-device',
      '{"driver":"vhost-user-blk-pci","id":"disk-vda","chardev":"disk-vda","bus":"port0"}',
    ])
  })
})
