/** The storage of a disk for a domain: found, seen to be the domain's alone, and served where that is the way. */
import { RpcError } from '../../core/errors.ts'
import type { DiskSource } from '../../libvirt/disk-xml.ts'
import { type DomainDisk, nameOf } from '../../libvirt/domain-xml.ts'
import type { Confinement, Scope } from '../../libvirt/virsh.ts'
import { findForGuest } from '../disk/find-for-guest.ts'
import { chooseMeans, type Means } from '../disk/means.ts'
import { diskOf } from '../disk/server-images.ts'
import { serve, servedAs } from '../disk/serving.ts'
import { refuseClients, type Storage } from '../disk/storage.ts'
import type { Attachment, AttachParts, AttachRequest, Host } from './attach.ts'
import { type Domain, disksOf, documentsOf, readDomains, sourcesOf } from './domains.ts'

/** Finds what is asked for, sees that the guest will be alone with it, and serves it, if that is the way. */
export async function takeStorage(
  attachment: Attachment,
  { confinement, user, parts }: Host,
): Promise<{ source: DiskSource; means: Means; canServe: boolean }> {
  const { domain, scope, target, request } = attachment
  const isGuestItself = (user: string, found: Storage): boolean => isDomain(user, found, domain, scope)
  const guest = { guest: domain.name, target, sources: sourcesOf(domain), isGuestItself }
  const storage = await findForGuest(request, guest, parts)
  if (!request.isReadOnly && !request.isShared) refuseTwice(storage, domain, scope)
  const means = meansFor(storage, domain, scope, request, confinement)
  const source = await sourceOf(storage, means, attachment, user, parts)
  if (!request.isReadOnly && !request.isShared) {
    await refuseOtherDomains(source, attachment)
    // The domain itself may be a client, now or before its next start.
    if (means === 'direct' && !sourcesOf(domain).includes(nameOf(source))) await refuseClients(storage)
  }
  if (!request.isReadOnly) parts.images.hold(diskOf('domain', domain.name, target), source)
  const canServe = means === 'direct' && (storage.bdev !== undefined || storage.open !== undefined)
  return { source, means, canServe }
}

/** Files and devices QEMU locks for itself; with an image on a server nothing but the documents tells who has it. */
async function refuseOtherDomains(source: DiskSource, { virsh, domain, notes }: Attachment): Promise<void> {
  if (source.kind !== 'rbd' && source.kind !== 'iscsi') return
  const name = nameOf(source)
  for (const other of await readDomains(virsh)) {
    if (other.name === domain.name) continue
    const has = disksOf(other).filter(
      disk => disk.protocol === source.kind && disk.source === name && !disk.isReadOnly,
    )
    if (has.some(({ live }) => live)) {
      throw new RpcError(
        'EBUSY',
        `${name} is in use by domain ${other.name}, which runs, and two writers would destroy it: qpair vm detach ${other.name} ` +
          `${has[0]!.target} first, or give it to the guest read-only; --shared is for guests that know of each other`,
      )
    }
    if (has.length > 0)
      notes.push(`domain ${other.name} has it too, at its next start: only one of the two may run`)
  }
}

/** QEMU would not open it twice, and with two of one image a guest does not start. */
function refuseTwice(storage: Storage, domain: Domain, scope: Scope): void {
  const disks = documentsOf(domain, scope).flatMap(document => document.disks())
  const found = disks.find(disk => !disk.isReadOnly && isMadeOf(disk, storage, domain))
  if (found === undefined) return
  throw new RpcError(
    'EEXIST',
    `domain ${domain.name} has ${storage.name} already, as ${found.target}: qpair vm disks ${domain.name} shows its disks`,
  )
}

function isMadeOf({ target, source }: DomainDisk, { direct, owners }: Storage, domain: Domain): boolean {
  const served = servedAs(domain.name, target)
  return (direct !== undefined && source === nameOf(direct)) || owners.some(owner => served.includes(owner))
}

/** It may have it already, when a disk that it has now shall be there after its next start, or the other way round. */
function isDomain(user: string, { direct, bdev }: Storage, domain: Domain, scope: Scope): boolean {
  const hasBoth = scope.live && scope.config
  const other = hasBoth ? undefined : scope.live ? domain.config : domain.live
  return (other?.disks() ?? []).some(({ target, source }) => {
    if (bdev !== undefined && servedAs(domain.name, target).includes(user)) return true
    return direct !== undefined && source === nameOf(direct) && user.startsWith(`guest ${domain.name},`)
  })
}

function meansFor(
  storage: Storage,
  domain: Domain,
  scope: Scope,
  request: AttachRequest,
  { models }: Confinement,
): Means {
  const { bdev, direct, open, kind } = storage
  const isOpenHere = bdev !== undefined
  const isSecret = direct?.kind === 'rbd' && direct.auth !== undefined
  return chooseMeans({
    volume: request.volume,
    bus: request.bus,
    wished: request.means,
    isOpenHere,
    canServe: isOpenHere || open !== undefined,
    isManaged: kind !== 'path',
    canBeDirect: direct !== undefined && !(isSecret && request.bus === 'nvme'),
    // Only a libvirt that may hand devices over gives QEMU a /dev.
    isHiddenDevice: direct?.kind === 'block' && request.bus === 'nvme' && models.includes('dac'),
    hasSharedMemory: documentsOf(domain, scope).every(document => document.hasSharedMemory),
    isLive: scope.live,
  })
}

async function sourceOf(
  storage: Storage,
  means: Means,
  { domain, target, request, undo }: Attachment,
  user: Host['user'],
  parts: AttachParts,
): Promise<DiskSource> {
  if (means === 'direct') return storage.direct!
  const isOther = process.getuid!() === 0 && user.uid !== 0
  const owner = isOther ? `${user.uid}:${user.gid}` : undefined
  const isReadOnly = request.isReadOnly || storage.isIso
  return serve(storage, { domain: domain.name, target, means, isReadOnly, owner }, undo, parts)
}
