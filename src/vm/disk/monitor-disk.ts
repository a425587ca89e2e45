/**
 * An NVMe disk that a guest gets while it runs. libvirt has no such disk, so QEMU is asked around it; the domain counts as tainted
 * from then on (virsh dominfo says so), and the disk is gone when the guest stops.
 */
import { RpcError } from '../../core/errors.ts'
import {
  type DiskSource,
  formatOf,
  NBD_RECONNECT_S,
  type NvmeDisk,
  nbdServer,
  refuseSecret,
} from '../../libvirt/disk-xml.ts'
import { type DomainDocument, MONITOR_DISKS } from '../../libvirt/domain-xml.ts'
import type { Virsh } from '../../libvirt/virsh.ts'
import { removeBehind, untilLetGo } from '../let-go.ts'
import type { Undo } from '../undo.ts'

/** In QEMU's own lists, told from what libvirt and others make. */
const qemuId = (id: string): string => `qpair-${id}`

export async function plugNvme(
  virsh: Virsh,
  domain: DomainDocument,
  disk: NvmeDisk,
  undo: Undo,
): Promise<void> {
  const { name } = domain
  const id = qemuId(disk.id)
  await virsh.monitor(name, 'blockdev-add', blockdev(id, disk))
  undo.add(`block node ${id}`, () => deleteNode(virsh, name, id))
  await plugDevice(virsh, domain, { driver: 'nvme', id, drive: id, serial: disk.serial })
  undo.add(`NVMe controller ${id}`, () => unplugDevice(virsh, name, id))
  await virsh.setLiveMetadata(name, MONITOR_DISKS, domain.monitorDisksXml({ add: disk }))
  const before = domain.monitorDisksXml({ remove: disk.id })
  undo.add('the metadata of the domain', () => virsh.setLiveMetadata(name, MONITOR_DISKS, before))
}

export async function unplugNvme(virsh: Virsh, domain: DomainDocument, target: string): Promise<void> {
  const { name } = domain
  const id = qemuId(target)
  await unplugDevice(virsh, name, id)
  await deleteNode(virsh, name, id)
  await virsh.setLiveMetadata(name, MONITOR_DISKS, domain.monitorDisksXml({ remove: target }))
}

/** A PCI Express port takes one device, and libvirt does not know of those that others have plugged in. */
async function plugDevice(
  virsh: Virsh,
  domain: DomainDocument,
  device: Record<string, unknown>,
): Promise<void> {
  const hasOldBus = domain.machine?.includes('i440fx') ?? false
  const taken = domain.occupiedBuses()
  const ports = domain
    .controllers('pci')
    .filter(({ index, model }) => model === 'pcie-root-port' && !taken.has(Number(index)))
    // Behind a port there is only this one address; QEMU would choose others, where no guest looks.
    .map(({ index }) => ({ bus: `pci.${index}`, addr: '0x0' }))
    // libvirt takes the first one for its own next device, without knowing of this one.
    .reverse()
  for (const place of hasOldBus ? [{ bus: 'pci.0' }] : ports) {
    try {
      await virsh.monitor(domain.name, 'device_add', { ...device, ...place })
      return
    } catch (error) {
      if (!/occupied|in use|not available/.test((error as Error).message)) throw error
    }
  }
  throw new RpcError(
    'ENOSPC',
    `domain ${domain.name} has no free PCI Express port for another NVMe controller: attach it with --config and start ` +
      "the domain anew, or give the domain more ports (<controller type='pci' model='pcie-root-port'/>)",
  )
}

async function unplugDevice(virsh: Virsh, domain: string, id: string): Promise<void> {
  await virsh.monitor(domain, 'device_del', { id })
  await untilLetGo(guestIn(domain), id, async () => {
    const devices = await virsh.monitor(domain, 'qom-list', { path: '/machine/peripheral' })
    return !(devices as { name: string }[]).some(({ name }) => name === id)
  })
}

const deleteNode = (virsh: Virsh, domain: string, id: string): Promise<void> =>
  removeBehind(guestIn(domain), id, () => virsh.monitor(domain, 'blockdev-del', { 'node-name': id }))

/** For messages. */
export const guestIn = (domain: string): string => `the guest in domain ${domain}`

/** QEMU's words for what a disk is made of, as `blockdev-add` and `-blockdev` take them. */
export function blockdev(
  nodeName: string,
  { source, isReadOnly }: Pick<NvmeDisk, 'source' | 'isReadOnly'>,
): Record<string, unknown> {
  return {
    driver: formatOf(source),
    'node-name': nodeName,
    'read-only': isReadOnly,
    discard: 'unmap',
    file: { ...protocol(source), discard: 'unmap', 'read-only': isReadOnly },
  }
}

function protocol(source: DiskSource): Record<string, unknown> {
  switch (source.kind) {
    case 'file':
      return { driver: 'file', filename: source.path }
    case 'block':
      return { driver: 'host_device', filename: source.path }
    case 'nbd':
      return {
        driver: 'nbd',
        server: nbdServer(source.server),
        export: source.name,
        'reconnect-delay': NBD_RECONNECT_S,
      }
    case 'rbd': {
      refuseSecret(source)
      const [pool, ...rest] = source.name.split('/')
      const image = rest.pop()
      return {
        ...{ driver: 'rbd', pool, image },
        ...(rest[0] === undefined ? {} : { namespace: rest[0] }),
        ...(source.configFile === undefined ? {} : { conf: source.configFile }),
        server: source.hosts.map(({ name, port }) => ({ host: name, port: `${port ?? 6789}` })),
      }
    }
    default:
      throw new RpcError('EINVAL', `QEMU opens no ${source.kind} disk for an NVMe controller`)
  }
}
