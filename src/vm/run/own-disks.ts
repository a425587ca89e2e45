/** Disks of guests of ours, in the words of the commands that libvirt's guests have too. */
import { RpcError } from '../../core/errors.ts'
import { nameOf } from '../../libvirt/domain-xml.ts'
import type { Attached, AttachRequest } from '../libvirt/attach.ts'
import type { Detached, DetachRequest } from '../libvirt/detach.ts'
import type { GuestDisk as ListedDisk } from '../libvirt/guests.ts'
import type { Guest } from './guest.ts'
import { GUEST_BUSES, type GuestBus } from './guest-disk.ts'
import type { RecordedDisk } from './guest-record.ts'
import type { OwnGuests } from './own-guests.ts'

/** Ours come before libvirt's, unless a libvirt is asked for by its name. */
export const ownGuest = (guests: OwnGuests, name: string, uri: string | undefined): Guest | undefined =>
  uri === undefined ? guests.find(name) : undefined

/** What a guest of libvirt is asked for. Where there is no libvirt, the name may be that of a guest of ours that has ended. */
export async function fromLibvirt<Result>(
  name: string,
  uri: string | undefined,
  ask: Promise<Result>,
): Promise<Result> {
  try {
    return await ask
  } catch (error) {
    const isAbsent = error instanceof RpcError && (error.code === 'ECONNREFUSED' || error.code === 'ENOENT')
    if (!isAbsent || uri !== undefined || !/libvirt|virsh/.test(error.message)) throw error
    throw new RpcError(
      error.code,
      `qpair has started no guest ${name} (qpair vm list), and ${error.message}`,
      {
        cause: error,
      },
    )
  }
}

/** Such a guest is its process: there is no next start that could be changed. */
const SCOPE = { live: true, config: false }

export async function attachToOwn(guest: Guest, request: AttachRequest): Promise<Attached> {
  const { name } = guest.record
  refuseConfig(name, request)
  const bus = GUEST_BUSES.find(each => each === request.bus)
  if (bus === undefined) {
    throw new RpcError(
      'EINVAL',
      `guest ${name} takes no disk on bus ${request.bus} while it runs: choose ${GUEST_BUSES.join(', ')}`,
    )
  }
  const disk = await guest.attach({ ...request, bus })
  return {
    ...{ domain: name, target: disk.target, bus: disk.bus as GuestBus, means: disk.means },
    ...{ source: nameOf(disk.source), notes: [], ...SCOPE },
  }
}

export async function detachFromOwn(guest: Guest, request: DetachRequest): Promise<Detached> {
  const { name } = guest.record
  refuseConfig(name, request)
  return { domain: name, ...(await guest.detach(request.disk)), ...SCOPE }
}

export const disksOfOwn = (guest: Guest): ListedDisk[] =>
  guest.record.disks.map(disk => ({
    ...{ type: typeOf(disk), device: disk.bus === 'cdrom' ? 'cdrom' : 'disk', target: disk.target },
    ...{ source: nameOf(disk.source), bus: disk.bus === 'cdrom' ? 'scsi' : disk.bus },
    ...{ protocol: disk.source.kind === 'nbd' ? 'nbd' : undefined, serial: disk.serial },
    ...{ isReadOnly: disk.isReadOnly, bdev: guest.bdevOf(disk), ...SCOPE },
  }))

/** libvirt's words. */
function typeOf({ source }: RecordedDisk): string {
  if (source.kind === 'vhost') return 'vhostuser'
  return source.kind === 'file' || source.kind === 'block' ? source.kind : 'network'
}

function refuseConfig(name: string, { config }: { readonly config: boolean }): void {
  if (!config) return
  throw new RpcError(
    'EINVAL',
    `guest ${name} is gone when it stops, so that it has no configuration: leave --config out`,
  )
}
