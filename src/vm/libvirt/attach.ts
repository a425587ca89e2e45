/** A disk for a domain: served where that is needed, made accessible, handed to libvirt; or nothing of all that. */
import { access } from 'node:fs/promises'
import { imageInfo } from '../../bdev/drivers/qcow2/image.ts'
import { RpcError } from '../../core/errors.ts'
import { logger } from '../../core/log.ts'
import { formatXml, node } from '../../core/xml.ts'
import { type DiskSource, diskNode } from '../../libvirt/disk-xml.ts'
import { nameOf } from '../../libvirt/domain-xml.ts'
import type { Confinement, Scope, Virsh } from '../../libvirt/virsh.ts'
import type { Turns } from '../../volume/turns.ts'
import { findObstacles, type Need, type Obstacle } from '../access/access.ts'
import { loadProfile, refusalSince } from '../access/apparmor.ts'
import type { Bus, Means } from '../disk/means.ts'
import { plugNvme } from '../disk/monitor-disk.ts'
import { diskOf } from '../disk/server-images.ts'
import { type ReleaseParts, socketOf } from '../disk/serving.ts'
import type { StorageParts } from '../disk/storage.ts'
import { type Undo, withUndo } from '../undo.ts'
import { type Domain, documentsOf, freeTarget, readDomain, scopeOf } from './domains.ts'
import { takeStorage } from './take-storage.ts'

const log = logger('vm')

export interface AttachRequest extends Scope {
  readonly domain: string
  /** A volume, a bdev, or an absolute path. */
  readonly volume: string
  readonly pool: string | undefined
  readonly bus: Bus
  readonly target: string | undefined
  readonly serial: string | undefined
  readonly isReadOnly: boolean
  /** Others write to it, and know of this guest. */
  readonly isShared: boolean
  readonly means: Means | undefined
  readonly format: string | undefined
  /** Remove what the host has against it. */
  readonly fix: boolean
}

export interface Attached extends Scope {
  readonly domain: string
  readonly target: string
  readonly bus: Bus
  readonly means: Means
  readonly source: string
  /** What else has changed, and what is to be known. */
  readonly notes: string[]
}

export interface AttachParts extends ReleaseParts, StorageParts {
  /** From the look at who uses a storage until it is served no other guest begins anything with one. */
  readonly turns: Turns
}

/** What the steps of one attachment share. */
export interface Attachment {
  readonly virsh: Virsh
  readonly domain: Domain
  readonly scope: Scope
  readonly target: string
  readonly request: AttachRequest
  readonly undo: Undo
  readonly notes: string[]
  /** When it began, in seconds since 1970. */
  readonly since: number
}

export interface Host {
  readonly confinement: Confinement
  /** As whom QEMU runs. */
  readonly user: { readonly uid: number; readonly gid: number }
  readonly parts: AttachParts
}

const now = (): number => Date.now() / 1000

export async function attach(virsh: Virsh, request: AttachRequest, parts: AttachParts): Promise<Attached> {
  const domain = await readDomain(virsh, request.domain)
  const scope = scopeOf(domain, request)
  const confinement = await confinementOf(virsh, domain, scope)
  const user = confinement.user ?? virsh.ownUser()
  const target = request.target ?? freeTarget(domain, request.bus)
  refuseTaken(target, domain, scope)
  return withUndo(async undo => {
    const attachment: Attachment = { virsh, domain, scope, target, request, undo, notes: [], since: now() }
    const { source, means, canServe } = await parts.turns.next(() =>
      takeStorage(attachment, { confinement, user, parts }),
    )
    try {
      await clearTheWay(source, attachment, { confinement, user, parts, canServe })
      await hand(source, means, attachment).catch(async error => {
        throw await withHint(error, source, user, attachment, parts)
      })
    } finally {
      // From here on the document of the domain tells who has it, or nobody has.
      parts.images.letGo(diskOf('domain', domain.name, target))
    }
    await noteMissingKvm(attachment)
    log.notice(`domain ${domain.name} has ${request.volume} as ${target} (${means})`)
    const { notes } = attachment
    return {
      ...{ domain: domain.name, target, bus: request.bus, means, source: nameOf(source), notes },
      ...scope,
    }
  })
}

/** What the host confines the QEMU of this domain with. */
async function confinementOf(virsh: Virsh, domain: Domain, scope: Scope): Promise<Confinement> {
  const { models, ...rest } = await virsh.confinement((domain.live ?? domain.config)!.type)
  const documents = documentsOf(domain, scope)
  const isExempt = (model: string): boolean =>
    model !== 'dac' && documents.every(document => document.isExemptFrom(model))
  return { models: models.filter(model => !isExempt(model)), ...rest }
}

function refuseTaken(target: string, domain: Domain, scope: Scope): void {
  const disks = documentsOf(domain, scope).flatMap(document => document.disks())
  const found = disks.find(disk => disk.target === target)
  if (found === undefined) return
  throw new RpcError(
    'EEXIST',
    `domain ${domain.name} has a disk ${target} already, ${found.source ?? 'an empty drive'}: choose another target, or ` +
      'none, and the first that is free is taken',
  )
}

/** Finds what the host has against it, and removes it if that was asked for. */
async function clearTheWay(
  source: DiskSource,
  { domain, scope, request, undo }: Attachment,
  host: Host & {
    /** The daemon could open it for the guest. */
    readonly canServe: boolean
  },
): Promise<void> {
  const { access } = host.parts
  const { uuid } = (domain.live ?? domain.config)!
  const selinuxLabel = domain.live?.labelOf('selinux') ?? host.confinement.selinuxLabel
  const guest = { uuid, ...host.user, isRunning: scope.live, selinuxLabel }
  const needs = await needsOf(source, request)
  for (const need of needs) {
    const { path, isUnderneath = false } = need
    const find = (): ReturnType<typeof findObstacles> => findObstacles(need, guest, host.confinement, access)
    const isToFix = request.fix && !isUnderneath
    const canFix = (): boolean => obstacles.some(({ fix }) => fix !== undefined)
    let obstacles = await find()
    // One obstacle may hide the next one: what is below a closed directory cannot be tried.
    for (let round = 0; isToFix && canFix() && round < ROUNDS_MAX; round++) {
      for (const obstacle of obstacles.filter(({ fix }) => fix !== undefined)) {
        await remove(obstacle)
        if (obstacle.undo !== undefined) undo.add(`the rule for ${path}`, obstacle.undo)
        log.notice(`removed for domain ${domain.name}: ${obstacle.cause}`)
      }
      obstacles = await find()
    }
    if (obstacles.length === 0) continue
    const told = obstacles.map(tell)
    const fix = isUnderneath ? UNDERNEATH : !canFix() ? FOR_ALL : request.fix ? '' : '. --fix does that'
    const other = host.canServe ? '. With --means nbd the daemon opens it for the guest' : ''
    throw new RpcError('EACCES', `the guest could not open ${path}: ${told.join('. ')}${fix}${other}`)
  }
  const isConfined = host.confinement.models.includes('apparmor')
  if (isConfined && needs.some(need => !need.isKnownToLibvirt)) await loadProfile(guest, access)
}

const tell = ({ cause, remedy }: Obstacle): string => `${cause}. As root: ${remedy.join('; ')}`

/** This process may not, or the program for it is missing: then it is told as without --fix. */
async function remove(obstacle: Obstacle): Promise<void> {
  try {
    await obstacle.fix!()
  } catch (error) {
    const reason = (error as Error).message
    throw new RpcError('EACCES', `${tell(obstacle)}. --fix could not do that: ${reason}`, { cause: error })
  }
}

const ROUNDS_MAX = 8

const UNDERNEATH =
  '. That is underneath the image by the words of the image, which may name any file: whether a guest may read it is for ' +
  'you to say, and --fix leaves it as it is'

const FOR_ALL = '. That changes what every guest may do, so that --fix leaves it to you'

/** Of sockets libvirt makes nothing accessible: neither its helper for profiles nor its drivers of labels look at them. */
async function needsOf(source: DiskSource, request: AttachRequest): Promise<Need[]> {
  const { isReadOnly } = request
  if (source.kind !== 'file' && source.kind !== 'block') {
    const path = socketOf(source)
    return path === undefined ? [] : [{ path, kind: 'socket', isReadOnly, isKnownToLibvirt: false }]
  }
  const { path, format } = source
  const isKnownToLibvirt = request.bus !== 'nvme'
  const need: Need = { path, kind: 'file', isReadOnly, isKnownToLibvirt }
  if (isKnownToLibvirt || format !== 'qcow2') return [need]
  // A broken image is QEMU's to complain of.
  const chain = await imageInfo(path).then(
    image => image.chain,
    () => [],
  )
  return [need, ...chain.map(below => ({ ...need, path: below.path, isReadOnly: true, isUnderneath: true }))]
}

/** Adds to a refusal what could not be looked at before: it takes root to try another user's rights, and kernels log the rest. */
async function withHint(
  error: unknown,
  source: DiskSource,
  { uid }: { uid: number },
  { domain, since }: Attachment,
  { access }: AttachParts,
): Promise<unknown> {
  if (!(error instanceof RpcError && error.code === 'EACCES')) return error
  const own = process.getuid!()
  const hints: string[] = []
  const refusal = await refusalSince(since, domain.live?.uuid, access)
  if (refusal !== undefined) hints.push(refusal)
  if (own !== 0 && own !== uid) {
    const remedy =
      socketOf(source) === undefined
        ? `setfacl -m u:${uid}:rw ${nameOf(source)}`
        : 'serve with --vhost-mode 0660 --vhost-owner :GROUP, a group that both are in, or run the daemon as root'
    hints.push(`QEMU runs as user ${uid}, this daemon as user ${own}: ${remedy}`)
  }
  if (hints.length === 0) return error
  return new RpcError('EACCES', [error.message, ...hints].join('. '), { cause: error })
}

function hand(source: DiskSource, means: Means, attachment: Attachment): Promise<void> {
  if (attachment.request.bus === 'nvme') return attachNvme(source, attachment)
  return attachDisk(source, means, attachment)
}

async function attachNvme(source: DiskSource, attachment: Attachment): Promise<void> {
  const { virsh, domain, scope, target, request, undo, notes } = attachment
  const disk = {
    ...{ id: target, serial: request.serial ?? serialOf(domain.name, target), source },
    isReadOnly: request.isReadOnly,
  }
  if (scope.live) {
    await plugNvme(virsh, domain.live!, disk, undo)
    notes.push('the running guest has it through the monitor of QEMU: libvirt marks the domain as tainted')
  }
  if (!scope.config) return
  await redefine(attachment, document => document.addNvme({ ...disk, slot: document.freeSlot() }))
  notes.push(
    'libvirt has no NVMe disks of this kind: it is in the qemu namespace of the domain, and virsh domblklist does not ' +
      'show it; qpair vm disks does',
  )
}

/** At most 20 characters, as Identify Controller has them. */
const serialOf = (domain: string, target: string): string =>
  `${domain.slice(0, 19 - target.length)}-${target}`.slice(0, 20)

async function attachDisk(source: DiskSource, means: Means, attachment: Attachment): Promise<void> {
  const { virsh, domain, scope, target, request, undo } = attachment
  if (means === 'vhost' && scope.config && !domain.config!.hasSharedMemory) {
    await redefine(attachment, document => document.shareMemory())
    attachment.notes.push('the memory of the domain is shared from its next start on, as vhost-user needs it')
  }
  if (request.bus === 'scsi') await addScsiController(attachment)
  const disk = formatXml(
    diskNode(source, {
      ...{ target, bus: request.bus as Exclude<Bus, 'nvme'>, serial: request.serial },
      isReadOnly: request.isReadOnly,
    }),
  )
  await virsh.attachDevice(domain.name, disk, scope)
  undo.add(`disk ${target}`, () => virsh.detachDevice(domain.name, disk, scope))
  if (means === 'vhost' && scope.live) {
    attachment.notes.push(
      'libvirt (seen with 9.0) plugs it in so that it does not reconnect: when this daemon is started again, the running ' +
        'guest loses the disk until its own next start',
    )
  }
}

/** libvirt would add one of a kind that few guests have a driver for. */
async function addScsiController({ virsh, domain, scope, undo, notes }: Attachment): Promise<void> {
  for (const [each, document] of [
    [{ live: true, config: false }, scope.live ? domain.live : undefined],
    [{ live: false, config: true }, scope.config ? domain.config : undefined],
  ] as const) {
    if (document === undefined || document.controllers('scsi').length > 0) continue
    const controller = formatXml(node('controller', { type: 'scsi', index: 0, model: 'virtio-scsi' }))
    await virsh.attachDevice(domain.name, controller, each)
    undo.add('the virtio-scsi controller', () => virsh.detachDevice(domain.name, controller, each))
    if (notes.length === 0) notes.push('the domain has got a virtio-scsi controller')
  }
}

/** Changes the document of the next start. What libvirt has against it, it says; then nothing has changed. */
async function redefine(
  { virsh, domain, undo }: Pick<Attachment, 'virsh' | 'domain' | 'undo'>,
  change: (document: NonNullable<Domain['config']>) => void,
): Promise<void> {
  const document = domain.config!
  const before = document.toString()
  change(document)
  await virsh.define(document.toString())
  undo.add('the definition of the domain', () => virsh.define(before))
}

async function noteMissingKvm({ domain, notes }: Attachment): Promise<void> {
  if (domain.live !== undefined || domain.config!.type !== 'kvm') return
  const isThere = await access('/dev/kvm').then(
    () => true,
    () => false,
  )
  if (!isThere) {
    notes.push(
      'the domain is of type kvm and this machine has no /dev/kvm, so it will not start: qpair host validate',
    )
  }
}
