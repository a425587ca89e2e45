/** Which documents of a domain a change is for. */
import { RpcError } from '../../core/errors.ts'
import type { DomainDisk, DomainDocument } from '../../libvirt/domain-xml.ts'
import type { Scope, Virsh } from '../../libvirt/virsh.ts'

/** A domain as it is now. A transient one has no `config`, one that does not run has no `live`. */
export interface Domain {
  readonly name: string
  readonly live: DomainDocument | undefined
  readonly config: DomainDocument | undefined
  /** See `Virsh.facts`. */
  readonly facts: ReadonlyMap<string, string>
}

/** Throws `RpcError` ENODEV when there is no such domain, or when it goes just then. */
export async function readDomain(virsh: Virsh, name: string): Promise<Domain> {
  const facts = await virsh.facts(name)
  const isRunning = !/^(?:shut off|crashed)$/.test(facts.get('State') ?? '')
  const config = facts.get('Persistent') === 'yes' ? await virsh.domain(name, 'config') : undefined
  const live = isRunning ? await virsh.domain(name, 'live') : undefined
  const found = live ?? config
  if (found === undefined)
    throw new RpcError('ENODEV', `domain ${name} has just gone, or is still being made`)
  return { name: found.name, live, config, facts }
}

/** A virsh is a process, and hosts may have hundreds of domains. */
const DOMAINS_AT_ONCE = 4

/** Every domain, but those that go while they are looked at. */
export async function readDomains(virsh: Virsh): Promise<Domain[]> {
  const found: (Domain | undefined)[] = []
  const uuids = (await virsh.uuids()).entries()
  const reader = async (): Promise<void> => {
    for (const [index, uuid] of uuids) {
      found[index] = await readDomain(virsh, uuid).catch(error => {
        if (error instanceof RpcError && error.code === 'ENODEV') return undefined
        throw error
      })
    }
  }
  await Promise.all(Array.from({ length: DOMAINS_AT_ONCE }, reader))
  return found.filter(domain => domain !== undefined)
}

/** As virsh understands its flags: without one, the guest that runs, or else its next start. */
export function scopeOf({ name, live, config }: Domain, asked: Scope): Scope {
  const isAsked = asked.live || asked.config
  const scope = {
    live: isAsked ? asked.live : live !== undefined,
    config: isAsked ? asked.config : live === undefined,
  }
  if (scope.live && live === undefined) {
    throw new RpcError('EINVAL', `domain ${name} is not running: --config changes its next start`)
  }
  if (scope.config && config === undefined) {
    throw new RpcError(
      'EINVAL',
      `domain ${name} is transient, gone when it stops: --live is all that makes sense`,
    )
  }
  return scope
}

/** Those that a scope is about. */
export const documentsOf = ({ live, config }: Domain, scope: Scope): DomainDocument[] =>
  [scope.live ? live : undefined, scope.config ? config : undefined].filter(each => each !== undefined)

/** A name for a disk that neither document has. */
export function freeTarget({ live, config }: Domain, bus: string): string {
  const taken = [live, config].flatMap(document => document?.disks() ?? []).map(({ target }) => target)
  return (live ?? config)!.freeTarget(bus, taken)
}

/** What all disks of a domain are made of, now and at its next start. */
export const sourcesOf = (domain: Domain): (string | undefined)[] =>
  disksOf(domain).map(({ source }) => source)

/** The disks of both documents, those that are in both once. */
export function disksOf({ live, config }: Domain): (DomainDisk & Scope)[] {
  const next = config?.disks() ?? []
  const now = live?.disks() ?? []
  const isIn = (disks: readonly DomainDisk[], { target, source }: DomainDisk): boolean =>
    disks.some(disk => disk.target === target && disk.source === source)
  return [
    ...now.map(disk => ({ ...disk, live: true, config: isIn(next, disk) })),
    ...next.filter(disk => !isIn(now, disk)).map(disk => ({ ...disk, live: false, config: true })),
  ]
}
