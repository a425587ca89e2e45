/** The command line that gives a QEMU guest the disks of a controller. */
import { qemuId, qemuOption } from '../core/qemu-arguments.ts'

/** What is to be said of a controller. */
export interface GuestDisk {
  readonly name: string
  readonly kind: 'blk' | 'scsi'
  readonly socketPath: string
  /** Its guest is to ask for packed rings. */
  readonly isPacked: boolean
}

export interface QemuOptions {
  /** The guest's memory, as QEMU writes sizes: `4G`. Undefined: it has shared memory already. */
  readonly memory: string | undefined
  /** Request queues; one for each of the guest's processors when undefined. */
  readonly queues: number | undefined
  readonly bootIndex: number | undefined
  /** The slot on QEMU's first PCI bus; QEMU chooses one when undefined. */
  readonly slot?: number
  /** QEMU's version, `[major, minor]`. */
  readonly version: readonly [number, number]
}

const MEMORY_ID = 'mem0'

/** Throws `RpcError` EINVAL for a path that a shell would tear apart. */
export function qemuArgs(disk: GuestDisk, options: QemuOptions): string {
  const { queues, bootIndex, slot } = options
  const addr = slot === undefined ? undefined : `0x${slot.toString(16)}`
  const chardev = qemuId('vhost', disk.name)
  const packed = disk.isPacked ? 'on' : undefined
  const device =
    disk.kind === 'blk'
      ? qemuOption('vhost-user-blk-pci', {
          chardev,
          'num-queues': queues,
          packed,
          bootindex: bootIndex,
          addr,
        })
      : qemuOption('vhost-user-scsi-pci', { chardev, num_queues: queues, packed, bootindex: bootIndex, addr })
  const socket = qemuOption('socket', { id: chardev, path: disk.socketPath, ...reconnect(disk, options) })
  return [...memoryArgs(options.memory), '-chardev', socket, '-device', device].join(' ')
}

function memoryArgs(size: string | undefined): string[] {
  if (size === undefined) return []
  return [
    '-m',
    size,
    '-object',
    qemuOption('memory-backend-memfd', { id: MEMORY_ID, size, share: 'on' }),
    '-machine',
    qemuOption('', { 'memory-backend': MEMORY_ID }),
  ]
}

/**
 * `reconnect` (seconds) is gone since QEMU 10.2, `reconnect-ms` is there since 9.2. The SCSI device reconnects since 8.2;
 * before, it cannot even start on a socket that does.
 */
export function reconnect(
  { kind }: Pick<GuestDisk, 'kind'>,
  { version }: Pick<QemuOptions, 'version'>,
): Readonly<Record<string, number>> {
  if (isAtLeast(version, 9, 2)) return { 'reconnect-ms': 100 }
  return kind === 'blk' || isAtLeast(version, 8, 2) ? { reconnect: 1 } : {}
}

const isAtLeast = (
  [major, minor]: readonly [number, number],
  wantedMajor: number,
  wantedMinor: number,
): boolean => major > wantedMajor || (major === wantedMajor && minor >= wantedMinor)
