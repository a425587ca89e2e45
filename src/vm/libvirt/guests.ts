/** The guests of libvirt: their disks, one change at a time for each domain. */
import { RpcError } from '../../core/errors.ts'
import { runProgram } from '../../core/program.ts'
import { type RunProgram, Virsh } from '../../libvirt/virsh.ts'
import { Turns } from '../../volume/turns.ts'
import { servedFrom } from '../disk/serving.ts'
import type { Monitor } from '../inspect/inspect.ts'
import { type Attached, type AttachParts, type AttachRequest, attach } from './attach.ts'
import { type Detached, type DetachRequest, detach } from './detach.ts'
import { type Domain, disksOf, readDomain, readDomains } from './domains.ts'

export interface LibvirtGuestsParts extends Omit<AttachParts, 'access'> {
  readonly run?: RunProgram
  /** Where the host's /etc is. */
  readonly root?: string
}

export interface GuestDisk {
  readonly type: string
  readonly device: string
  readonly target: string
  readonly source: string | undefined
  readonly bus: string
  readonly protocol: string | undefined
  readonly serial: string | undefined
  readonly isReadOnly: boolean
  readonly live: boolean
  readonly config: boolean
  /** The bdev of this daemon that it is served from. */
  readonly bdev: string | undefined
}

export class LibvirtGuests {
  readonly #parts: AttachParts
  readonly #run: RunProgram
  /** By connection and domain. */
  readonly #turns = new Map<string, Turns>()

  constructor({ run = runProgram, root = '/', ...parts }: LibvirtGuestsParts) {
    this.#parts = { ...parts, access: { run, root } }
    this.#run = run
  }

  attach(uri: string | undefined, request: AttachRequest): Promise<Attached> {
    return this.#inTurn(uri, request.domain, virsh => attach(virsh, request, this.#parts))
  }

  detach(uri: string | undefined, request: DetachRequest): Promise<Detached> {
    return this.#inTurn(uri, request.domain, virsh => detach(virsh, request, this.#parts))
  }

  /** Every domain, with virsh's words for its state and size. */
  async list(
    uri: string | undefined,
  ): Promise<{ name: string; facts: ReadonlyMap<string, string>; disks: GuestDisk[] }[]> {
    const domains = await readDomains(new Virsh(uri, this.#run))
    return domains.map(domain => ({ name: domain.name, facts: domain.facts, disks: this.#told(domain) }))
  }

  /** What is to be known of a domain that runs, to look into its QEMU. Throws `RpcError` EINVAL when it does not. */
  async running(
    uri: string | undefined,
    domain: string,
  ): Promise<{ name: string; uuid: string | undefined; monitor: Monitor }> {
    const virsh = new Virsh(uri, this.#run)
    const { name, live } = await readDomain(virsh, domain)
    if (live === undefined) throw new RpcError('EINVAL', `domain ${name} is not running`)
    return { name, uuid: live.uuid, monitor: (command, args) => virsh.monitor(name, command, args) }
  }

  async disks(uri: string | undefined, domain: string): Promise<GuestDisk[]> {
    return this.#told(await readDomain(new Virsh(uri, this.#run), domain))
  }

  #told(domain: Domain): GuestDisk[] {
    return disksOf(domain).map(({ by: _by, ...disk }) => ({
      ...disk,
      bdev: servedFrom(disk.source, this.#parts),
    }))
  }

  async #inTurn<Result>(
    uri: string | undefined,
    domain: string,
    work: (virsh: Virsh) => Promise<Result>,
  ): Promise<Result> {
    const key = `${uri ?? ''} ${domain}`
    const turns = this.#turns.get(key) ?? new Turns()
    this.#turns.set(key, turns)
    try {
      return await turns.next(() => work(new Virsh(uri, this.#run)))
    } finally {
      if (!turns.isBusy) this.#turns.delete(key)
    }
  }
}
