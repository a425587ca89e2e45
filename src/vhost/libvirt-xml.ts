/** What a libvirt domain needs to have the disks of a controller (formatdomain, since libvirt 7.1). */
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
  const driver = [
    "name='qemu' type='raw'",
    ...(queues === undefined ? [] : [`queues='${queues}'`]),
    ...(isPacked ? ["packed='on'"] : []),
  ].join(' ')
  const disk = `<disk type='vhostuser' device='disk'>
  <driver ${driver}/>
  <source type='unix' path='${escapeXml(socketPath)}'>
    <reconnect enabled='yes' timeout='1'/>
  </source>
  <target dev='${escapeXml(target)}' bus='virtio'/>
</disk>`
  return diskOnly ? disk : `<!-- in <devices> -->\n${disk}`
}

/** libvirt has no element for a vhost-user SCSI controller, but it hands on arguments. */
function commandLine(disk: GuestDisk, { queues, version, slot }: LibvirtOptions): string {
  const line = qemuArgs(disk, { memory: undefined, queues, bootIndex: undefined, version, slot })
  const args = line.split(' ').map(value => `  <qemu:arg value='${escapeXml(value)}'/>`)
  return `<!-- in <domain xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>, as its last element -->
<qemu:commandline>
${args.join('\n')}
</qemu:commandline>`
}

const ENTITIES: Readonly<Record<string, string>> = { '&': '&amp;', '<': '&lt;', '>': '&gt;', "'": '&apos;' }

const escapeXml = (text: string): string => text.replaceAll(/[&<>']/g, found => ENTITIES[found]!)
