/**
 * `qpair volume export`: a volume as a disk, by the methods that anybody could call one by one, so that the saved
 * configuration says nothing that SPDK's would not. What a volume is exported by is found from the bdev over it.
 */
import type { BdevInfo } from '../bdev/bdev.ts'
import { RpcError } from '../core/errors.ts'
import type { Found } from './found.ts'
import { type Call, exportOverNvme, type Serving, servedOverNvme, volumeSerialOf } from './nvme-export.ts'
import { Turns } from './turns.ts'
import { bdevNameOf, takingBack, type VolumeUse } from './use.ts'
import type { Volumes } from './volumes.ts'

export type ExportKind = 'nvme' | 'vhost' | 'nbd'

export interface ExportOptions {
  readonly kind: ExportKind
  /** The name of the bdev and of what serves it, for `unexport`, too; made of the names of pool and volume when absent. */
  readonly bdev?: string | undefined
  /** `IP:PORT` (nvme, nbd). */
  readonly listen: readonly string[]
  readonly nqn?: string | undefined
  /** Path of a Unix socket instead (nbd). */
  readonly unix?: string | undefined
  readonly readOnly: boolean
  /** Go on though somebody has the volume. */
  readonly shared: boolean
}

export interface UnexportOptions {
  /** The one that was given to `export`. */
  readonly bdev?: string | undefined
  /** Go on though somebody has it open at this moment. */
  readonly force: boolean
}

export interface Exported {
  readonly bdev: string
  readonly kind: ExportKind
  /** What to type next, and where. */
  readonly next: string
}

const NVME_LISTEN = '127.0.0.1:4420'
const NBD_LISTEN = '127.0.0.1:10809'

export class VolumeExports {
  readonly #volumes: Volumes
  readonly #call: Call
  /** The calls of one export stand together. */
  readonly #turns = new Turns()

  /** `call` takes its turn among the daemon's methods, and saves. */
  constructor(volumes: Volumes, call: Call) {
    this.#volumes = volumes
    this.#call = call
  }

  async export(found: Found, options: ExportOptions): Promise<Exported> {
    return this.#turns.next(async () => {
      const { bdev, isNew } = await this.#openAlone(found, options)
      try {
        return { bdev, kind: options.kind, next: await this.#publish(bdev, found, options) }
      } catch (error) {
        if (isNew) await this.#volumes.close(bdev)
        throw error
      }
    })
  }

  /**
   * Takes back what `export` has made, and nothing that somebody made by hand over the same volume. Answers what that was.
   * Throws `RpcError` EBUSY when somebody has it open at this moment, unless `force`, and when it serves others by hand only.
   */
  async unexport(found: Found, { bdev, force }: UnexportOptions): Promise<string[]> {
    const label = bdev ?? bdevName(found)
    return this.#turns.next(async () => {
      const { bdevs } = await this.#volumes.useOf(found)
      const servings = (await Promise.all(bdevs.map(({ name }) => this.#servingsOf(name, label)))).flat()
      const busy = servings.filter(({ users }) => users.length > 0)
      if (busy.length > 0 && !(force && busy.every(each => each.canForce))) throw stillUsed(found, busy)
      for (const { take } of servings) await take()
      const closed = servings.map(({ what }) => what)
      const own = bdevs.find(({ name }) => name === label)
      if (own !== undefined && this.#volumes.bdevs.ownersOf(own.name) === '') {
        await this.#volumes.close(own.name)
        closed.push(`bdev ${own.name}`)
      }
      if (closed.length === 0) throw this.#notOurs(found, bdevs)
      return closed
    })
  }

  /** From the look at who uses the volume until it is open nobody else begins anything with it. */
  async #openAlone(found: Found, options: ExportOptions): Promise<{ bdev: string; isNew: boolean }> {
    const { pool, volume } = found
    const doing = 'is being exported'
    const free = options.readOnly
      ? this.#volumes.claims.take(pool, [], [`${pool.name}/${volume.name}`], doing)
      : this.#volumes.claims.take(pool, [volume.name], [], doing)
    try {
      const use = await this.#volumes.useOf(found)
      if (!options.shared) {
        // Other clients of its server may be gateways, which serve it as well; of these guests it is known that they write.
        const others = [...use.others, ...this.#volumes.guestsOf(volume)]
        refuseSecondWriter(found, { ...use, others }, options.readOnly || volume.format === 'iso')
      }
      return await this.#open(found, use, options)
    } finally {
      free()
    }
  }

  /** What `export` has made over a bdev has that label for a name, or a serial number of ours. */
  async #servingsOf(bdev: string, label: string): Promise<Serving[]> {
    const call = this.#call
    const exports = (await call('nbd_export_list')) as {
      name: string
      bdev_name: string
      connections: number
    }[]
    const controllers = (await call('vhost_get_controllers')) as {
      ctrlr: string
      sessions: readonly { name: string }[]
      backend_specific: { block?: { bdev: string } }
    }[]
    return [
      ...(await servedOverNvme(call, bdev)),
      ...exports
        .filter(({ name, bdev_name }) => bdev_name === bdev && name === label)
        .map(({ name, connections }) => ({
          what: `NBD export ${name}`,
          canForce: true,
          users: connections === 0 ? [] : [`${connections} NBD clients`],
          take: async () => void (await call('nbd_export_stop', { name })),
        })),
      ...controllers
        .filter(({ ctrlr, backend_specific }) => backend_specific.block?.bdev === bdev && ctrlr === label)
        .map(({ ctrlr, sessions }) => ({
          what: `vhost controller ${ctrlr}`,
          // As SPDK has it: a controller does not go while a guest is connected.
          canForce: false,
          users: sessions.map(({ name }) => `guest at ${name}`),
          take: async () => void (await call('vhost_delete_controller', { ctrlr })),
        })),
    ]
  }

  #notOurs({ pool, volume }: Found, bdevs: readonly BdevInfo[]): RpcError {
    if (bdevs.length === 0) {
      return new RpcError('EINVAL', `volume ${volume.name} is not exported: nothing has it open here`)
    }
    const open = bdevs.map(({ name }) => {
      const owners = this.#volumes.bdevs.ownersOf(name)
      return `bdev ${name}${owners === '' ? '' : ` for ${owners}`}`
    })
    return new RpcError(
      'EBUSY',
      `volume ${volume.name} is open by what was not made by exporting it: ${open.join('; ')}: ` +
        takingBack(`${pool.name}/${volume.name}`, bdevs[0]!.name),
    )
  }

  /** The bdev over the volume: that which is there, or a new one. */
  async #open(
    found: Found,
    use: VolumeUse,
    { bdev, readOnly }: ExportOptions,
  ): Promise<{ bdev: string; isNew: boolean }> {
    const open = use.bdevs.find(each => readOnly || !each.readOnly)
    if (open !== undefined) return { bdev: open.name, isNew: false }
    const name = bdev ?? bdevName(found)
    return { bdev: await this.#volumes.open(found, name, readOnly), isNew: true }
  }

  async #publish(bdev: string, found: Found, options: ExportOptions): Promise<string> {
    const label = options.bdev ?? bdevName(found)
    switch (options.kind) {
      case 'nvme': {
        const nqn = options.nqn ?? nqnOf(found)
        const listen = options.listen.length > 0 ? options.listen : [NVME_LISTEN]
        const connect = await exportOverNvme(this.#call, {
          ...{ bdev, nqn, listen, serialNumber: volumeSerialOf(nqn) },
        })
        return [
          'On the Linux host that is to use it, as root:',
          '  modprobe nvme-tcp',
          ...indent(connect),
        ].join('\n')
      }
      case 'vhost': {
        await this.#call('vhost_create_blk_controller', {
          ...{ ctrlr: label, dev_name: bdev },
          ...(options.readOnly ? { readonly: true } : {}),
        })
        const args = (await this.#call('vhost_qemu_args', { ctrlr: label })) as string
        return [
          'Arguments of QEMU:',
          ...indent([args]),
          `For libvirt: qpair vhost libvirt-xml ${label}`,
        ].join('\n')
      }
      case 'nbd': {
        const started = (await this.#call('nbd_export_start', {
          ...{ name: label, bdev_name: bdev, read_only: options.readOnly },
          ...nbdAddress(options),
        })) as { name: string; uri: string }
        return [
          'Clients open:',
          ...indent([started.uri]),
          `For QEMU: qpair nbd qemu-args ${started.name}`,
        ].join('\n')
      }
    }
  }
}

function stillUsed({ volume }: Found, busy: readonly Serving[]): RpcError {
  const users = busy.flatMap(each => each.users).join(', ')
  const remedy = busy.every(each => each.canForce)
    ? 'disconnect there first (nvme disconnect, the NBD client), or --force takes it away, and what was not written there is lost'
    : "have the guest let go of its disk, or shut it down, first: --force does not take a guest's vhost disk away"
  return new RpcError('EBUSY', `volume ${volume.name} is in use at this moment by ${users}: ${remedy}`)
}

const indent = (lines: readonly string[]): string[] => lines.map(line => `  ${line}`)

function nbdAddress({ unix, listen }: ExportOptions): object {
  if (unix !== undefined) return { unix }
  if (listen.length > 1) {
    throw new RpcError(
      'EINVAL',
      `an NBD export has one address, and ${listen.length} are given (${listen.join(', ')})`,
    )
  }
  const [, host6, host4, port] = /^(?:\[(.+)\]|([^:]+)):(\d+)$/.exec(listen[0] ?? NBD_LISTEN) ?? []
  if (port === undefined) {
    throw new RpcError('EINVAL', `--listen ${listen[0]}: give IP:PORT, such as 192.0.2.7:10809`)
  }
  return { host: host6 ?? host4, port: Number(port) }
}

/** Two writers that know nothing of each other destroy a file system. */
function refuseSecondWriter({ pool, volume }: Found, use: VolumeUse, readOnly: boolean): void {
  const { owners, programs, dependents } = use
  const fullName = `${pool.name}/${volume.name}`
  const others = [owners, ...programs, ...use.others].filter(each => each !== '')
  // Readers do not mind each other.
  if (readOnly && programs.length === 0 && use.bdevs.every(bdev => bdev.readOnly)) return
  if (others.length > 0) {
    const bdev = use.bdev?.name
    const remedy =
      programs.length + use.others.length > 0 || bdev === undefined
        ? 'end that first'
        : takingBack(fullName, bdev)
    throw new RpcError(
      'EBUSY',
      `volume ${volume.name} is used by ${others.join(', ')} already: ${remedy}; ` +
        '--shared serves it to both, which only clients survive that know of each other',
    )
  }
  if (!readOnly && dependents.length > 0) {
    throw new RpcError(
      'EBUSY',
      `volume ${volume.name} is the backing store of ${dependents.map(({ name }) => name).join(', ')}, which writes to it ` +
        'would destroy: export it with --read-only, or one of those',
    )
  }
}

const bdevName = ({ pool, volume }: Found): string => bdevNameOf(`${pool.name}/${volume.name}`)

/** The same wherever the pool has this name, and lower case, as names of domains are. */
function nqnOf(found: Found): string {
  return `nqn.2026-11.io.qpair:${bdevName(found).toLowerCase()}`
}
