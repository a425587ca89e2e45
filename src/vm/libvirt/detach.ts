/** A disk is taken from a domain, and what served it to it is closed when nothing of the domain has it any more. */
import { RpcError, thereAre } from '../../core/errors.ts'
import { logger } from '../../core/log.ts'
import type { DomainDisk } from '../../libvirt/domain-xml.ts'
import type { Scope, Virsh } from '../../libvirt/virsh.ts'
import { withdrawRule } from '../access/apparmor.ts'
import { guestIn, unplugNvme } from '../disk/monitor-disk.ts'
import { release, releaseLeft, type ServingParts, servedFrom } from '../disk/serving.ts'
import type { StorageParts } from '../disk/storage.ts'
import { untilLetGo } from '../let-go.ts'
import { withUndo } from '../undo.ts'
import type { AttachParts } from './attach.ts'
import { type Domain, disksOf, documentsOf, readDomain, readDomains, scopeOf, sourcesOf } from './domains.ts'

const log = logger('vm')

export interface DetachRequest extends Scope {
  readonly domain: string
  /** Its target, or what it is made of: a volume, a bdev, a path. */
  readonly disk: string
}

export interface Detached extends Scope {
  readonly domain: string
  readonly target: string
  /** What served it. */
  readonly released: string[]
}

export async function detach(virsh: Virsh, request: DetachRequest, parts: AttachParts): Promise<Detached> {
  try {
    return await detachDisk(virsh, request, parts)
  } catch (error) {
    if (!(error instanceof RpcError && error.code === 'ENODEV')) throw error
    return detachLeft(virsh, request, parts, error)
  }
}

/** No domain has such a disk, and there may be something left that served one. */
async function detachLeft(
  virsh: Virsh,
  { domain: name, disk: target }: DetachRequest,
  parts: AttachParts,
  missing: RpcError,
): Promise<Detached> {
  const domain = await readDomain(virsh, name).catch(error => {
    // Then it has no disks either.
    if (error instanceof RpcError && error.code === 'ENODEV') return undefined
    throw error
  })
  const sources = domain === undefined ? [] : sourcesOf(domain)
  const released = await releaseLeft(domain?.name ?? name, target, sources, parts)
  if (released.length === 0) throw missing
  return { domain: domain?.name ?? name, target, live: false, config: false, released }
}

async function detachDisk(virsh: Virsh, request: DetachRequest, parts: AttachParts): Promise<Detached> {
  const domain = await readDomain(virsh, request.domain)
  const scope = scopeOf(domain, request)
  const target = findTarget(request.disk, domain, scope, parts)
  const diskIn = (document: Domain['live']): DomainDisk | undefined =>
    document?.disks().find(disk => disk.target === target)
  const now = scope.live ? diskIn(domain.live) : undefined
  const next = scope.config ? diskIn(domain.config) : undefined
  if (now?.by === 'arguments') throw bornWithIt(domain.name, target)
  await withUndo(async undo => {
    if (next !== undefined) {
      const before = domain.config!.toString()
      await detachFromConfig(virsh, domain, next)
      undo.add('the definition of the domain', () => virsh.define(before))
    }
    if (now !== undefined) await detachFromGuest(virsh, domain, now)
  })
  const left = await readDomain(virsh, request.domain)
  const isLeft = disksOf(left).some(disk => disk.target === target)
  const released: string[] = []
  for (const { by, source } of [now, next].filter(disk => disk !== undefined)) {
    if (sourcesOf(left).includes(source)) continue
    released.push(...(await release(domain.name, target, source, parts)))
    if (by !== 'libvirt' && source?.startsWith('/') && !(await isElsewhere(virsh, source))) {
      await withdrawRule(source, parts.access)
    }
  }
  log.notice(`domain ${domain.name} no longer has ${target}${isLeft ? ' in part' : ''}`)
  return { domain: domain.name, target, live: now !== undefined, config: next !== undefined, released }
}

/** Whether QEMU opens it by its own words, around libvirt, in any domain. */
async function isElsewhere(virsh: Virsh, source: string): Promise<boolean> {
  try {
    const disks = (await readDomains(virsh)).flatMap(disksOf)
    return disks.some(disk => disk.by !== 'libvirt' && disk.source === source)
  } catch (error) {
    // One that cannot be asked may have it.
    if (error instanceof RpcError) return true
    throw error
  }
}

/** By its target, or by its source, whatever name of that the operator uses. */
function findTarget(word: string, domain: Domain, scope: Scope, parts: ServingParts & StorageParts): string {
  const disks = documentsOf(domain, scope).flatMap(document => document.disks())
  if (disks.some(({ target }) => target === word)) return word
  const path = pathOf(word, parts) ?? word
  const found = disks.filter(({ source }) => {
    if (source === undefined) return false
    const bdev = servedFrom(source, parts)
    return (
      source === word ||
      source === path ||
      bdev === word ||
      (bdev !== undefined && mediumOf(bdev, parts) === path)
    )
  })
  const targets = [...new Set(found.map(({ target }) => target))]
  if (targets.length === 1) return targets[0]!
  const all = new Set(disks.map(({ target, source }) => `${target} (${source ?? 'empty'})`))
  throw new RpcError(
    targets.length === 0 ? 'ENODEV' : 'EINVAL',
    targets.length === 0
      ? `domain ${domain.name} has no disk ${word}: ${thereAre(all)}`
      : `domain ${domain.name} has ${word} as ${targets.join(' and ')}: say which`,
  )
}

/** The path of a volume of that name; undefined when there is none. */
function pathOf(word: string, { volumes }: StorageParts): string | undefined {
  try {
    return volumes.find(word).volume.path
  } catch (error) {
    if (error instanceof RpcError) return undefined
    throw error
  }
}

function mediumOf(bdev: string, { bdevs }: StorageParts): unknown {
  const info = bdevs.find(bdev)
  const facts = info?.driverSpecific[info.driver] as { filename?: unknown } | undefined
  return facts?.filename ?? null
}

async function detachFromConfig(virsh: Virsh, { config, name }: Domain, disk: DomainDisk): Promise<void> {
  if (disk.by === 'libvirt') {
    await virsh.detachDevice(name, config!.diskXml(disk.target), { live: false, config: true })
    return
  }
  config!.removeNvme(disk.target)
  await virsh.define(config!.toString())
}

async function detachFromGuest(virsh: Virsh, { live, name }: Domain, disk: DomainDisk): Promise<void> {
  const { target } = disk
  if (disk.by === 'monitor') return unplugNvme(virsh, live!, target)
  await virsh.detachDevice(name, live!.diskXml(target), { live: true, config: false })
  await untilLetGo(guestIn(name), target, async () => {
    const document = await virsh.domain(name, 'live')
    return !document.disks().some(other => other.target === target)
  })
}

const bornWithIt = (domain: string, target: string): RpcError =>
  new RpcError(
    'EINVAL',
    `the guest in domain ${domain} has had ${target} since it started, on a bus that nothing can be unplugged from: ` +
      '--config takes it away from its next start',
  )
