/** What a domain calls a disk, and on which bus such names are. */
import { RpcError } from '../../core/errors.ts'
import type { Bus } from './means.ts'

/** libvirt makes the id of a disk of its bus and of the last letters of its name: others of that bus would have it too. */
const NAMES = [
  { pattern: /^vd[a-z]+$/, buses: ['virtio'] },
  { pattern: /^sd[a-z]+$/, buses: ['scsi', 'sata'] },
  { pattern: /^nvme\d+$/, buses: ['nvme'] },
] as const satisfies readonly { readonly pattern: RegExp; readonly buses: readonly Bus[] }[]

const EXAMPLES: Readonly<Record<Bus, string>> = { virtio: 'vdb', scsi: 'sdb', sata: 'sdb', nvme: 'nvme0' }

/**
 * The bus of a disk of which its target, its bus, both or none are given: as virsh, by the name, virtio when nothing is said.
 * Throws `RpcError` EINVAL when they do not go together.
 */
export function busFor(target: string | undefined, bus: Bus | undefined): Bus {
  // What is not libvirt's disk is called as one likes.
  if (target === undefined || bus === 'nvme') return bus ?? 'virtio'
  const buses: readonly Bus[] = NAMES.find(({ pattern }) => pattern.test(target))?.buses ?? []
  if (bus === undefined && buses[0] !== undefined) return buses[0]
  if (bus !== undefined && buses.includes(bus)) return bus
  const like = bus === undefined ? 'vdb (virtio), sdb (scsi, sata), nvme0 (nvme)' : EXAMPLES[bus]
  throw new RpcError(
    'EINVAL',
    `${target} is no name of a disk${bus === undefined ? '' : ` on bus ${bus}`}: those are such as ${like}`,
  )
}
