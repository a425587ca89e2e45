/**
 * A disk of a guest of ours as QEMU's own objects: what it opens (a block node, or the socket of a vhost-user controller), and
 * the device that the guest sees. At the start they are arguments, later commands of the monitor, with the same members.
 */
import { RpcError } from '../../core/errors.ts'
import { type DiskSource, optionText } from '../../libvirt/disk-xml.ts'
import { reconnect } from '../../vhost/qemu-args.ts'
import type { Means } from '../disk/means.ts'
import { blockdev } from '../disk/monitor-disk.ts'

export const GUEST_BUSES = ['virtio', 'nvme', 'scsi'] as const
export type GuestBus = (typeof GUEST_BUSES)[number]

/** What an operator writes: a volume, a bdev or a path, and behind commas what is to be said of it. */
export interface DiskWord {
  readonly volume: string
  readonly bus: GuestBus
  readonly means: Means | undefined
  readonly format: string | undefined
  readonly serial: string | undefined
  readonly isReadOnly: boolean
  /** Others write to it, and know of this guest. */
  readonly isShared: boolean
}

const WITHOUT_VALUE = new Set(['readonly', 'shared'])
const MEMBERS: Readonly<Record<string, RegExp>> = {
  bus: /^(virtio|nvme|scsi)$/,
  means: /^(vhost|nbd|direct)$/,
  format: /^(raw|qcow2)$/,
  serial: /^[\w.-]{1,20}$/,
  readonly: /^$/,
  shared: /^$/,
}

/**
 * `VOLUME[,bus=virtio|nvme|scsi][,means=vhost|nbd|direct][,format=raw|qcow2][,serial=S][,readonly][,shared]`. The command line takes
 * lists apart at commas, so that a member may also be an element of its own: it belongs to the disk before it.
 * Throws `RpcError` EINVAL.
 */
export function parseDisks(elements: readonly string[]): DiskWord[] {
  const disks: { volume: string; members: Map<string, string> }[] = []
  for (const part of elements.flatMap(element => element.split(','))) {
    if (part === '') throw new RpcError('EINVAL', `disk ${elements.join(',')}: nothing stands beside a comma`)
    const last = disks.at(-1)
    const member = last === undefined ? undefined : memberOf(part)
    if (last === undefined || member === undefined) {
      // virt-install's words for it.
      disks.push({ volume: part.replace(/^(path|vol)=/, ''), members: new Map() })
      continue
    }
    const { name, value, pattern } = member
    if (!pattern.test(value)) {
      throw new RpcError(
        'EINVAL',
        `disk ${last.volume}: ${name} is ${readable(pattern)}, not ${JSON.stringify(value)}`,
      )
    }
    last.members.set(name, value)
  }
  return disks.map(({ volume, members }) => ({
    volume,
    bus: (members.get('bus') ?? 'virtio') as GuestBus,
    means: members.get('means') as Means | undefined,
    format: members.get('format'),
    serial: members.get('serial'),
    isReadOnly: members.has('readonly'),
    isShared: members.has('shared'),
  }))
}

function memberOf(part: string): { name: string; value: string; pattern: RegExp } | undefined {
  const equals = part.indexOf('=')
  const name = equals < 0 ? part : part.slice(0, equals)
  const pattern = Object.hasOwn(MEMBERS, name) ? MEMBERS[name] : undefined
  if (pattern === undefined || equals < 0 !== WITHOUT_VALUE.has(name)) return undefined
  return { name, value: equals < 0 ? '' : part.slice(equals + 1), pattern }
}

const readable = (pattern: RegExp): string =>
  pattern.source.startsWith('^(')
    ? pattern.source.slice(2, -2).replaceAll('|', ' or ')
    : '1 to 20 letters, digits, - . _'

/** What a guest has as a disk. */
export interface GuestDisk {
  /** What the operator calls it: `vda`, `nvme0`, `sda`. */
  readonly target: string
  readonly bus: GuestBus | 'cdrom'
  readonly source: DiskSource
  readonly serial: string
  readonly isReadOnly: boolean
}

/** Where a device is plugged in: a PCI bus, and its place in the order in which the firmware looks for something to boot. */
export interface Place {
  readonly bus: string
  readonly bootIndex?: number
}

export interface DiskObjects {
  /** A socket of the vhost-user controller. */
  readonly chardev: { readonly id: string; readonly path: string } | undefined
  readonly blockdev: Readonly<Record<string, unknown>> | undefined
  readonly device: Readonly<Record<string, unknown>>
}

/** QEMU's id of everything of one disk. */
export const diskId = (target: string): string => `disk-${target}`

/** The controller that SCSI disks are behind. */
export const SCSI_CONTROLLER = 'scsi'

export function diskObjects(disk: GuestDisk, place: Place): DiskObjects {
  const { target, source, serial } = disk
  const id = diskId(target)
  const boot = place.bootIndex === undefined ? {} : { bootindex: place.bootIndex }
  if (source.kind === 'vhost') {
    return {
      chardev: { id, path: source.socketPath },
      blockdev: undefined,
      device: { driver: 'vhost-user-blk-pci', id, chardev: id, bus: place.bus, ...boot },
    }
  }
  const common = { id, drive: id, ...boot }
  const blockNode = blockdev(id, disk)
  return { chardev: undefined, blockdev: blockNode, device: deviceOf(disk.bus, { ...common, serial }, place) }
}

function deviceOf(
  bus: GuestDisk['bus'],
  common: Readonly<Record<string, unknown>>,
  place: Place,
): Readonly<Record<string, unknown>> {
  switch (bus) {
    case 'virtio':
      return { driver: 'virtio-blk-pci', ...common, bus: place.bus }
    case 'nvme':
      return { driver: 'nvme', ...common, bus: place.bus }
    case 'scsi':
      return { driver: 'scsi-hd', ...common, bus: `${SCSI_CONTROLLER}.0` }
    case 'cdrom':
      return { driver: 'scsi-cd', ...common, bus: `${SCSI_CONTROLLER}.0` }
  }
}

/** How QEMU comes back to a daemon that was away. */
export const reconnection = (version: Version): Readonly<Record<string, number>> =>
  reconnect({ kind: 'blk' }, { version })

/** QEMU's version, `[major, minor]`. */
export type Version = readonly [number, number]

/** The same as QEMU's arguments. */
export function diskArguments({ chardev, blockdev: node, device }: DiskObjects, version: Version): string[] {
  return [
    ...(chardev === undefined
      ? []
      : ['-chardev', `socket,${optionText({ ...chardev, ...reconnection(version) })}`]),
    ...(node === undefined ? [] : ['-blockdev', JSON.stringify(node)]),
    ...['-device', JSON.stringify(device)],
  ]
}
