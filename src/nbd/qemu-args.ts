/** The command line that gives a QEMU guest an export as a disk, through QEMU's own NBD client and device. */
import { qemuId, qemuOption } from '../core/qemu-arguments.ts'
import type { NbdExport } from './exports.ts'

export const GUEST_DEVICES = ['nvme', 'virtio-blk', 'scsi'] as const
export type GuestDevice = (typeof GUEST_DEVICES)[number]

/** Of an NVMe controller and of a SCSI disk. */
const SERIAL_SIZE_MAX = 20

export interface NbdQemuOptions {
  readonly device: GuestDevice
  /** How long requests wait for a daemon that has gone, in seconds, before they fail. */
  readonly reconnectDelay: number
  readonly bootIndex: number | undefined
}

/** Throws `RpcError` EINVAL for a path or a name that a shell would tear apart. */
export function nbdQemuArgs(served: NbdExport, options: NbdQemuOptions): string {
  const drive = qemuId('nbd', served.name)
  const { host, port } = served.address
  const server: Readonly<Record<string, string | number>> = host.startsWith('/')
    ? { 'server.type': 'unix', 'server.path': host }
    : { 'server.type': 'inet', 'server.host': reachable(host), 'server.port': port }
  const blockdev = qemuOption('', {
    driver: 'nbd',
    'node-name': drive,
    ...server,
    export: served.name,
    'reconnect-delay': options.reconnectDelay,
    discard: 'unmap',
    'read-only': served.readOnly ? 'on' : undefined,
  })
  return ['-blockdev', blockdev, ...deviceArgs(drive, served.name, options)].join(' ')
}

function deviceArgs(drive: string, name: string, { device, bootIndex }: NbdQemuOptions): string[] {
  const serial = name.replaceAll(/[^\w.-]/g, '-').slice(0, SERIAL_SIZE_MAX)
  const disk = { drive, serial, bootindex: bootIndex }
  switch (device) {
    case 'nvme':
      return ['-device', qemuOption('nvme', disk)]
    case 'virtio-blk':
      return ['-device', qemuOption('virtio-blk-pci', disk)]
    case 'scsi': {
      const controller = `${drive}-scsi`
      return [
        '-device',
        qemuOption('virtio-scsi-pci', { id: controller }),
        '-device',
        qemuOption('scsi-hd', { ...disk, bus: `${controller}.0` }),
      ]
    }
  }
}

/** Where an export listens on every address, this machine's own is one of them. */
function reachable(host: string): string {
  if (host === '0.0.0.0') return '127.0.0.1'
  return host === '::' ? '::1' : host
}
