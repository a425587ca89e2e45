/** The volumes of all active pools: found by name, looked at, opened. What is done to them stands in operations/. */
import type { BdevRegistry } from '../bdev/registry.ts'
import { RpcError, thereAre } from '../core/errors.ts'
import type { ReactorGroup } from '../reactor/group.ts'
import type { Jobs } from '../rpc/jobs.ts'
import { documentOf } from './document.ts'
import { VolumeExports } from './export.ts'
import { type Again, anotherOne, type Found, HALF_FILLED, missing } from './found.ts'
import { LibvirtImport } from './libvirt-import.ts'
import type { Call } from './nvme-export.ts'
import type { VolumeFacts } from './pool.ts'
import type { StoragePools } from './pools.ts'
import { volumeIn } from './storage-pool.ts'
import { ScratchBdevs } from './transfer/scratch-bdevs.ts'
import { useOf, type VolumeUse } from './use.ts'
import { VolumeClaims } from './volume-claims.ts'

export interface VolumesOptions {
  readonly pools: StoragePools
  readonly bdevs: BdevRegistry
  readonly jobs: Jobs
  /** A method of the daemon, in its turn and saved. */
  readonly call: Call
  /** The same at once, saving nothing. */
  readonly replay: Call
  readonly reactors: ReactorGroup
  /** Guests that write to an image on a server by themselves, whom nothing but this daemon knows. */
  readonly guestsOf?: (volume: VolumeFacts) => readonly string[]
}

/** What operations on volumes have in common: where volumes are, who uses them, and who has them to himself. */
export class Volumes {
  readonly pools: StoragePools
  readonly bdevs: BdevRegistry
  readonly jobs: Jobs
  readonly exports: VolumeExports
  readonly imports: LibvirtImport
  readonly claims = new VolumeClaims()
  readonly scratch: ScratchBdevs
  /** A method of the daemon at once, saving nothing. */
  readonly replay: Call
  /** See `VolumesOptions`. */
  readonly guestsOf: (volume: VolumeFacts) => readonly string[]
  readonly #call: Call
  /** Identities of volumes that an interrupted import has filled in part, under the name that they are to have. */
  readonly halfFilled = new Set<string>()

  constructor({ pools, bdevs, jobs, call, replay, reactors, guestsOf = () => [] }: VolumesOptions) {
    this.pools = pools
    this.bdevs = bdevs
    this.jobs = jobs
    this.#call = call
    this.replay = replay
    this.guestsOf = guestsOf
    this.exports = new VolumeExports(this, call)
    this.imports = new LibvirtImport(pools, call)
    this.scratch = new ScratchBdevs({ bdevs, reactors, replay })
  }

  /** By POOL/NAME, by name where it is the only one, by key or path. Throws `RpcError` ENOENT or EINVAL. */
  find(name: string, poolName?: string): Found {
    if (poolName !== undefined) {
      const pool = this.pools.active(poolName)
      const volume = volumeIn(pool, name) ?? pool.contents?.volumes.find(each => each.path === name)
      if (volume !== undefined) return { pool, volume }
      throw missing(name, pool)
    }
    const active = this.pools.list().filter(({ isActive }) => isActive)
    const slash = name.indexOf('/')
    const named = active.find(pool => slash > 0 && pool.name === name.slice(0, slash))
    if (named !== undefined) {
      const volume = volumeIn(named, name.slice(slash + 1))
      if (volume === undefined) throw missing(name.slice(slash + 1), named)
      return { pool: named, volume }
    }
    const found = active.flatMap(pool =>
      (pool.contents?.volumes ?? [])
        .filter(volume => volume.name === name || volume.key === name || volume.path === name)
        .map(volume => ({ pool, volume })),
    )
    if (found.length === 1) return found[0]!
    if (found.length === 0) {
      const stopped = this.pools.list().find(pool => slash > 0 && pool.name === name.slice(0, slash))
      if (stopped !== undefined) this.pools.active(stopped.name)
      const where = thereAre(active.map(pool => pool.name))
      throw new RpcError('ENOENT', `there is no volume ${name} in an active pool, of which ${where}`)
    }
    const pools = found.map(({ pool }) => `${pool.name}/${name}`).join(', ')
    throw new RpcError('EINVAL', `volume ${name} is in several pools: say which, ${pools}`)
  }

  /**
   * For work that goes on, as `find`. Throws `RpcError` EAGAIN while the pool is not active, which it may be later, and EINVAL
   * for another volume of the same name.
   */
  findAgain(name: string, poolName: string | undefined, { isResumed, identity }: Omit<Again, 'call'>): Found {
    if (isResumed && poolName !== undefined) this.awaitPool(poolName)
    const found = this.find(name, poolName)
    if (identity !== undefined && found.volume.identity !== identity) throw anotherOne(found)
    return found
  }

  /** Throws `RpcError` EAGAIN while a pool whose work goes on is not active. */
  awaitPool(name: string): void {
    if (this.pools.get(name).isActive) return
    throw new RpcError(
      'EAGAIN',
      `pool ${name} is not active: this goes on when it is, qpair pool start ${name}`,
    )
  }

  /** Whether a pool has no such volume any more. Throws `RpcError` EAGAIN while it is not active. */
  hasGone(name: string, poolName: string): boolean {
    this.awaitPool(poolName)
    const { contents } = this.pools.get(poolName)
    return contents !== undefined && !contents.volumes.some(volume => volume.name === name)
  }

  /** With the facts that only opening it tells. */
  async describe({ pool, volume }: Found): Promise<VolumeFacts> {
    const { volumes } = pool.backend
    if (volumes.describe === undefined) return volume
    return pool.ask(() => volumes.describe!(volume))
  }

  /** Its document as libvirt would show it. */
  async xmlOf(found: Found): Promise<string> {
    return documentOf(found, await this.describe(found))
  }

  useOf({ pool, volume }: Found): Promise<VolumeUse> {
    return pool.ask(() => this.#useHere(volume))
  }

  async #useHere(volume: VolumeFacts): Promise<VolumeUse> {
    const use = await this.useOfMedium(volume)
    const { identity, isHalfFilled = false } = volume
    if (!isHalfFilled && (identity === undefined || !this.halfFilled.has(identity))) return use
    return { ...use, others: [...use.others, HALF_FILLED] }
  }

  /**
   * With those who have it open elsewhere, where its storage knows them: they see no harm in a second server of it, but they do in
   * other content.
   */
  async useAnywhere(found: Found): Promise<VolumeUse> {
    return found.pool.ask(() => this.useInTurn(found))
  }

  /** As `useAnywhere`, for whoever has the turn of the pool, whose storage has answered then. */
  async useInTurn({ pool, volume }: Found): Promise<VolumeUse> {
    const use = await this.#useHere(volume)
    // Bdevs are clients, too.
    if (use.bdevs.length > 0) return use
    const clients = (await pool.backend.volumes.clients?.(volume)) ?? []
    return { ...use, others: [...use.others, ...clients] }
  }

  /** The same for what need not be a volume of a pool. */
  useOfMedium(facts: VolumeFacts): Promise<VolumeUse> {
    return useOf(facts, this.bdevs, this.pools.list())
  }

  /** Makes a bdev of that name over the volume; saved. */
  async open({ pool, volume }: Found, bdev: string, readOnly: boolean): Promise<string> {
    const { method, params } = pool.backend.opening(volume, { readOnly: readOnly || volume.format === 'iso' })
    return (await this.#call(method, { ...params, name: bdev })) as string
  }

  async close(bdev: string): Promise<void> {
    await this.#call(`bdev_${this.bdevs.get(bdev).driver}_delete`, { name: bdev })
  }
}
