/** What a libvirt domain needs to have the disks of a controller (formatdomain, since libvirt 7.1). */
import { formatXml, node, type XmlNode } from '../core/xml.ts'
import { type GuestDisk, qemuArgs } from './qemu-args.ts'

export interface LibvirtOptions {
  /** The name of the disk in the domain: `vda`. */
  readonly target: string
  readonly queues: number | undefined
  /** Only the device: the domain has shared memory already. */
  readonly diskOnly: boolean
  /** QEMU's, `[major, minor]`; for the disk, libvirt knows it itself. */
  readonly version: readonly [number, number]
  /** On the first PCI bus, for a SCSI controller: libvirt knows nothing of it, and gives away the low ones itself. */
  readonly slot: number
}

export function libvirtXml(disk: GuestDisk, options: LibvirtOptions): string {
  const parts = disk.kind === 'blk' ? [blkDisk(disk, options)] : [commandLine(disk, options)]
  return [...(options.diskOnly ? [] : [SHARED_MEMORY]), ...parts].join('\n')
}

const SHARED_MEMORY = `<!-- in <domain>: the daemon reads and writes the guest's memory -->
<memoryBacking>
  <source type='memfd'/>
  <access mode='shared'/>
</memoryBacking>`

function blkDisk({ socketPath, isPacked }: GuestDisk, { target, queues, diskOnly }: LibvirtOptions): string {
  const xml = formatXml(vhostDiskNode(socketPath, { target, queues, isPacked })).trimEnd()
  return diskOnly ? xml : `<!-- in <devices> -->\n${xml}`
}

/** The disk of a vhost-user blk controller; QEMU connects anew when the daemon is started again. */
export function vhostDiskNode(
  socketPath: string,
  options: { readonly target: string; readonly queues: number | undefined; readonly isPacked: boolean },
): XmlNode {
  const { target, queues, isPacked } = options
  return node(
    'disk',
    { type: 'vhostuser', device: 'disk' },
    node('driver', { name: 'qemu', type: 'raw', queues, packed: isPacked ? 'on' : undefined }),
    node('source', { type: 'unix', path: socketPath }, node('reconnect', { enabled: 'yes', timeout: 1 })),
    node('target', { dev: target, bus: 'virtio' }),
  )
}

/** libvirt has no element for a vhost-user SCSI controller, but it hands on arguments. */
function commandLine(disk: GuestDisk, { queues, version, slot }: LibvirtOptions): string {
  const line = qemuArgs(disk, { memory: undefined, queues, bootIndex: undefined, version, slot })
  const args = line.split(' ').map(value => node('qemu:arg', { value }))
  return `<!-- in <domain xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>, as its last element -->
${formatXml(node('qemu:commandline', {}, ...args)).trimEnd()}`
}
