/** What is done to volumes, whatever pool they are in: found by name, protected from two writers, handed to the backend. */
import type { BdevRegistry } from '../bdev/registry.ts'
import { RpcError, thereAre } from '../core/errors.ts'
import { formatSize } from '../core/format-size.ts'
import { logger } from '../core/log.ts'
import type { ReactorGroup } from '../reactor/group.ts'
import type { MethodCall } from '../rpc/config.ts'
import type { JobOptions, Jobs } from '../rpc/jobs.ts'
import { VolumeExports } from './export.ts'
import { whileBusy } from './leftovers.ts'
import { LibvirtImport } from './libvirt-import.ts'
import type { Call } from './nvme-export.ts'
import {
  type CreateVolume,
  type Progress,
  QUIET,
  type SnapshotOperations,
  type VolumeFacts,
  type VolumeOperation,
  type VolumeOperations,
  type VolumeSnapshot,
  type WipeAlgorithm,
} from './pool.ts'
import type { StoragePools } from './pools.ts'
import { type Pool, volumeIn } from './storage-pool.ts'
import { Transfers } from './transfers.ts'
import { refuseInUse, refuseLink, refuseWithDependents, useOf, type VolumeUse } from './use.ts'
import { checkFileName } from './volume-name.ts'

const log = logger('volume')

const HALF_FILLED = 'an import that was interrupted and has not gone on yet (qpair config kept)'
const FOLLOW_LINK = '--follow-link does it to that'

export interface VolumesOptions {
  readonly pools: StoragePools
  readonly bdevs: BdevRegistry
  readonly jobs: Jobs
  /** A method of the daemon, in its turn and saved. */
  readonly call: Call
  /** The same at once, saving nothing. */
  readonly replay: Call
  readonly reactors: ReactorGroup
}

export interface Found {
  readonly pool: Pool
  readonly volume: VolumeFacts
}

export interface VolumeJob {
  readonly kind: string
  readonly name: string
  /** Names in the pool. */
  readonly takes: readonly string[]
  /** Volumes of any pool, as POOL/NAME. */
  readonly holds?: readonly string[]
  readonly total?: number | undefined
  readonly resume?: MethodCall
  /** Absent: it is. */
  readonly isCancellable?: boolean
  /** Refuses by throwing, when nobody else can begin anything with these volumes any more. */
  readonly check?: () => Promise<void>
}

/** How work goes on after an interruption. */
export interface Again {
  /** The call that goes on with it. */
  readonly call: MethodCall
  /** It is that call. */
  readonly isResumed: boolean
  /** Of the volume when it was begun; undefined for what is begun now. */
  readonly identity?: string | undefined
}

export class Volumes {
  readonly pools: StoragePools
  readonly bdevs: BdevRegistry
  readonly jobs: Jobs
  readonly exports: VolumeExports
  readonly transfers: Transfers
  readonly imports: LibvirtImport
  readonly #call: Call
  /** Identities of volumes that an interrupted import has filled in part, under the name that they are to have. */
  readonly halfFilled = new Set<string>()
  /** Volumes that somebody has to himself, and names that he will give, with what is done: `POOL/NAME`. */
  readonly #taken = new Map<string, string>()
  /** Volumes that are read, with what is done: any number may, and nobody changes them meanwhile. */
  readonly #held = new Map<string, readonly string[]>()

  constructor({ pools, bdevs, jobs, call, replay, reactors }: VolumesOptions) {
    this.pools = pools
    this.bdevs = bdevs
    this.jobs = jobs
    this.#call = call
    this.exports = new VolumeExports(this, call)
    this.imports = new LibvirtImport(pools, call)
    this.transfers = new Transfers(this, { bdevs, reactors, replay })
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

  /** The volume as it is at this moment. Throws as `findAgain` when it is gone, or is another one by now. */
  async #asItIs({ pool, volume }: Found): Promise<Found> {
    await pool.lookAgain()
    return sameIn(pool, volume)
  }

  /** With the facts that only opening it tells. */
  async describe({ pool, volume }: Found): Promise<VolumeFacts> {
    const { volumes } = pool.backend
    if (volumes.describe === undefined) return volume
    return pool.ask(() => volumes.describe!(volume))
  }

  useOf({ pool, volume }: Found): Promise<VolumeUse> {
    return pool.ask(() => this.#useHere(volume))
  }

  async #useHere(volume: VolumeFacts): Promise<VolumeUse> {
    const use = await this.useOfMedium(volume)
    if (volume.identity === undefined || !this.halfFilled.has(volume.identity)) return use
    return { ...use, others: [...use.others, HALF_FILLED] }
  }

  /**
   * With those who have it open elsewhere, where its storage knows them: they see no harm in a second server of it, but they do in
   * other content.
   */
  async useAnywhere(found: Found): Promise<VolumeUse> {
    return found.pool.ask(() => this.#useAnywhere(found))
  }

  async #useAnywhere({ pool, volume }: Found): Promise<VolumeUse> {
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

  /** Makes a volume. Preallocating takes long: then it is a job, whose number is answered. */
  async create(poolName: string, request: CreateVolume): Promise<{ job_id?: number }> {
    const pool = this.pools.active(poolName)
    const operation = this.operation(pool, 'create')
    this.refuseTaken(pool, request.name)
    if (request.preallocation === 'off') {
      await pool.change(async () => {
        this.refuseTaken(pool, request.name)
        const free = this.take(pool, [request.name], [], 'is being made')
        await operation(request, QUIET).finally(free)
      })
      return {}
    }
    return this.job(
      pool,
      { kind: 'volume_create', name: request.name, takes: [request.name], total: request.capacityBytes },
      progress => operation(request, progress),
    )
  }

  async delete(found: Found, options: { readonly withSnapshots: boolean }): Promise<void> {
    const { pool } = found
    const operation = this.operation(pool, 'delete')
    await this.#change(found, 'deleted', [], async (use, volume) => {
      const others = use.others.filter(each => each !== HALF_FILLED)
      refuseInUse(volume, 'deleted', { ...use, others }, fullName(found))
      refuseWithDependents(volume, 'deleted', use)
      const snapshots = options.withSnapshots ? [] : await pool.backend.volumes.snapshots?.list(volume)
      if (snapshots !== undefined && snapshots.length > 0) {
        throw new RpcError(
          'EBUSY',
          `volume ${volume.name} has ${snapshots.length} snapshot${snapshots.length === 1 ? '' : 's'} ` +
            `(${snapshots.map(each => each.name).join(', ')}), which would go with it: --delete-snapshots deletes that, too`,
        )
      }
      await operation(volume)
    })
    log.notice(`volume ${fullName(found)} is deleted`)
  }

  /** Grows it, also while it is open; shrinks it when that is said and nobody has it. */
  async resize(
    found: Found,
    capacityBytes: number,
    options: { readonly allocate: boolean; readonly shrink: boolean; readonly followLink: boolean },
  ): Promise<void> {
    const { pool } = found
    const operation = this.operation(pool, 'resize')
    await this.#change(found, 'resized', [], async (use, volume) => {
      if (!options.followLink) await refuseLink(volume, 'resized', FOLLOW_LINK)
      const { capacityBytes: before = 0 } = await this.describe({ pool, volume })
      refuseWithDependents(volume, 'resized', use)
      if (capacityBytes < before) {
        if (!options.shrink) {
          throw new RpcError(
            'EINVAL',
            `volume ${volume.name} has ${formatSize(before)} and would shrink to ${formatSize(capacityBytes)}, ` +
              'which cuts off what lies beyond: --shrink does that',
          )
        }
        refuseInUse(volume, 'made smaller', use, fullName(found))
      }
      if (use.programs.length > 0)
        refuseInUse(volume, 'resized', { ...use, bdev: undefined }, fullName(found))
      await operation(volume, capacityBytes, { ...options, openBy: use.bdevs })
    })
  }

  async rename(found: Found, name: string): Promise<void> {
    const operation = this.operation(found.pool, 'rename')
    await this.#change(found, 'renamed', [name], async (use, volume) => {
      refuseInUse(volume, 'renamed', use, fullName(found))
      refuseWithDependents(volume, 'renamed', use)
      await operation(volume, name)
    })
  }

  /** A copy that is as the volume was at one moment; long unless the storage shares blocks. A job, always. */
  async clone(found: Found, name: string, again: Again): Promise<{ job_id: number }> {
    const { pool, volume } = found
    const operation = this.operation(pool, 'clone')
    const job = { kind: 'volume_clone', name, takes: [name], resume: pinned(found, again.call) }
    // It has its name only when it is whole: the daemon was killed between that and the job's end.
    if (again.isResumed && volumeIn(pool, name) !== undefined) return this.job(pool, job, async () => {})
    this.refuseTaken(pool, name)
    return this.job(
      pool,
      {
        ...job,
        holds: [`${pool.name}/${volume.name}`],
        total: volume.capacityBytes,
        check: async () => refuseInUse(volume, 'cloned', await this.useOf(found), fullName(found)),
      },
      progress => operation(volume, name, progress),
    )
  }

  async wipe(
    given: Found,
    { algorithm, followLink }: { readonly algorithm: WipeAlgorithm; readonly followLink: boolean },
    call: MethodCall,
  ): Promise<{ job_id: number }> {
    const { pool } = given
    const operation = this.operation(pool, 'wipe')
    let { volume } = given
    const check = async (): Promise<void> => {
      const found = await this.#asItIs(given)
      volume = found.volume
      if (!followLink) await pool.ask(() => refuseLink(volume, 'wiped', FOLLOW_LINK))
      const use = await this.useOf(found)
      refuseInUse(volume, 'wiped', use, fullName(found))
      refuseWithDependents(volume, 'wiped', use)
    }
    const { name, capacityBytes: total } = volume
    const resume = pinned(given, call)
    return this.job(pool, { kind: 'volume_wipe', name, takes: [name], total, resume, check }, progress =>
      operation(volume, algorithm, progress),
    )
  }

  async snapshot(found: Found, action: 'create' | 'delete', snapshot: string): Promise<void> {
    const { pool } = found
    const operations = this.#snapshots(pool)
    checkFileName(snapshot, 'a snapshot')
    const done = { create: 'snapshotted', delete: 'relieved of a snapshot' }[action]
    await this.#change(found, done, [], async (use, volume) => {
      if (!operations.whileOpen(volume).includes(action)) refuseInUse(volume, done, use, fullName(found))
      else if (use.programs.length > 0)
        refuseInUse(volume, done, { ...use, bdev: undefined }, fullName(found))
      await operations[action](volume, snapshot, use.bdevs)
    })
    log.notice(`volume ${fullName(found)}: ${action} of snapshot ${snapshot}`)
  }

  /** Half of a volume as it was and half as it is would be neither: a job, which goes on after an interruption. */
  async revert(given: Found, snapshot: string, { call, isResumed }: Again): Promise<{ job_id: number }> {
    const { pool } = given
    const operations = this.#snapshots(pool)
    checkFileName(snapshot, 'a snapshot')
    let { volume } = given
    const check = async (): Promise<void> => {
      const found = await this.#asItIs(given)
      volume = found.volume
      const remedy = 'Revert what it leads to, in a pool of its own'
      await pool.ask(() => refuseLink(volume, 'reverted', remedy))
      // Interrupted, this daemon may count for a client itself.
      const use = await (isResumed ? this.useOf(found) : this.useAnywhere(found))
      refuseInUse(volume, 'reverted', use, fullName(found))
      refuseWithDependents(volume, 'reverted', use)
      if (isResumed) return
      const names = (await this.snapshotsOf(found)).map(each => each.name)
      if (names.includes(snapshot)) return
      throw new RpcError('ENOENT', `volume ${volume.name} has no snapshot ${snapshot}: ${thereAre(names)}`)
    }
    const { name } = volume
    return this.job(
      pool,
      {
        kind: 'volume_snapshot_revert',
        name,
        takes: [name],
        resume: pinned(given, call),
        isCancellable: false,
        check,
      },
      async progress => {
        const found = { pool, volume }
        const look = async (): Promise<void> =>
          refuseInUse(volume, 'reverted', await this.useAnywhere(found), fullName(found))
        if (isResumed) await whileBusy(look, progress.signal)
        await operations.revert(volume, snapshot, { ...progress, isResumed })
      },
    )
  }

  snapshotsOf({ pool, volume }: Found): Promise<VolumeSnapshot[]> {
    return pool.ask(() => this.#snapshots(pool).list(volume))
  }

  /** Throws `RpcError` EEXIST or EBUSY when the name is that of a volume, or will be. */
  refuseTaken(pool: Pool, name: string): void {
    this.#refuseBusy(`${pool.name}/${name}`)
    checkFileName(name)
    if (volumeIn(pool, name) === undefined) return
    throw new RpcError('EEXIST', `pool ${pool.name} has a volume ${name} already: choose another name`)
  }

  /** Throws `RpcError` EBUSY when long work is at the volume; work that only reads it is in nobody's way who reads. */
  refuseBusy(pool: Pool, name: string, use: 'read' | 'change'): void {
    const key = `${pool.name}/${name}`
    this.#refuseBusy(key)
    const reader = this.#held.get(key)?.[0]
    if (reader !== undefined && use === 'change') throw busy(key, reader)
  }

  #refuseBusy(key: string): void {
    const doing = this.#taken.get(key)
    if (doing !== undefined) throw busy(key, doing)
  }

  /** The backend's operation. Throws `RpcError` ENOTSUP with the reason when it has none. */
  operation<Name extends Exclude<VolumeOperation, 'snapshots'>>(
    { name, document, backend }: Pool,
    operation: Name,
  ): NonNullable<VolumeOperations[Name]> {
    const found = backend.volumes[operation]
    if (found !== undefined) return found.bind(backend.volumes) as NonNullable<VolumeOperations[Name]>
    throw notSupported(name, document.type, operation, backend.volumes)
  }

  /** Long work on a pool's volumes, which has `takes` of them, or names to be, to itself. Throws `RpcError` EBUSY. */
  async job(
    pool: Pool,
    options: VolumeJob,
    work: (progress: Progress) => Promise<void>,
  ): Promise<{ job_id: number }> {
    const { kind, name, takes, holds = [], total, resume, isCancellable = true, check } = options
    const doing = `${kind} of ${name}`
    const giveBack = this.take(pool, takes, holds, `is used by ${doing}, a job that qpair job list shows`)
    const letGo = pool.hold(doing)
    const free = (): void => {
      letGo()
      giveBack()
    }
    const job = {
      kind,
      name: `${pool.name}/${name}`,
      unit: 'bytes',
      isCancellable,
      ...(total === undefined ? {} : { total }),
      ...(resume === undefined ? {} : { resume }),
    } satisfies JobOptions
    try {
      await check?.()
      return this.jobs.start(job, async (report, signal) => {
        try {
          await work({ report, signal })
        } finally {
          free()
          await pool.lookAgain()
        }
      })
    } catch (error) {
      free()
      throw error
    }
  }

  /**
   * Has volumes of a pool, or names to be, to oneself (`takes`), or keeps others from changing them (`holds`, as POOL/NAME):
   * who looks whether somebody uses a volume has it from before the look to the end of what he does. What is returned gives
   * them back. `doing` goes on after the volume's name. Throws `RpcError` EBUSY.
   */
  take(pool: Pool, takes: readonly string[], holds: readonly string[], doing: string): () => void {
    for (const name of takes) this.refuseBusy(pool, name, 'change')
    for (const key of holds) this.#refuseBusy(key)
    const keys = takes.map(name => `${pool.name}/${name}`)
    for (const key of keys) this.#taken.set(key, doing)
    for (const key of holds) this.#held.set(key, [...(this.#held.get(key) ?? []), doing])
    return () => {
      for (const key of keys) this.#taken.delete(key)
      for (const key of holds) {
        const others = this.#held.get(key)!.toSpliced(this.#held.get(key)!.indexOf(doing), 1)
        if (others.length === 0) this.#held.delete(key)
        else this.#held.set(key, others)
      }
    }
  }

  #snapshots({ name, document, backend }: Pool): SnapshotOperations {
    if (backend.volumes.snapshots !== undefined) return backend.volumes.snapshots
    throw notSupported(name, document.type, 'snapshots', backend.volumes)
  }

  /** A short change of a volume, and of names that it will have, at which nobody else can begin anything. */
  async #change(
    { pool, volume }: Found,
    done: string,
    names: readonly string[],
    work: (use: VolumeUse, volume: VolumeFacts) => Promise<void>,
  ): Promise<void> {
    await pool.change(async () => {
      // Whoever had the turn before may have deleted or renamed it, and so may another program.
      const { volume: now } = sameIn(pool, volume)
      for (const name of names) this.refuseTaken(pool, name)
      const free = this.take(pool, [volume.name, ...names], [], `is being ${done}`)
      try {
        await work(await this.#useAnywhere({ pool, volume: now }), now)
      } finally {
        free()
      }
    })
  }
}

const fullName = ({ pool, volume }: Found): string => `${pool.name}/${volume.name}`

/** What a pool has by that name, if that is the volume that was meant. */
function sameIn(pool: Pool, volume: VolumeFacts): Found {
  const now = volumeIn(pool, volume.name)
  if (now === undefined) throw missing(volume.name, pool)
  if (now.key !== volume.key || now.identity !== volume.identity) throw anotherOne({ pool, volume })
  return { pool, volume: now }
}

/** The call that goes on with work on this volume, and on no other that may have its name by then. */
export function pinned({ pool, volume }: Found, { method, params }: MethodCall): MethodCall {
  const { name, identity } = volume
  const which = { volume: name, pool: pool.name, ...(identity === undefined ? {} : { identity }) }
  return { method, params: { ...params, ...which } }
}

function anotherOne(found: Found): RpcError {
  return new RpcError(
    'EINVAL',
    `volume ${fullName(found)} is not the one that it was: another has its name now. If that is the one that is meant, ` +
      'say it again',
  )
}

function busy(key: string, doing: string): RpcError {
  return new RpcError('EBUSY', `volume ${key} ${doing}: wait for its end`)
}

function missing(name: string, pool: Pool): RpcError {
  const names = pool.contents?.volumes.map(volume => volume.name) ?? []
  return new RpcError('ENOENT', `pool ${pool.name} has no volume ${name}: ${thereAre(names)}`)
}

function notSupported(
  pool: string,
  type: string,
  operation: VolumeOperation,
  { reasons }: VolumeOperations,
): RpcError {
  const reason = reasons?.[operation] ?? 'its storage has no such operation'
  return new RpcError(
    'ENOTSUP',
    `pool ${pool} is of type ${type}, whose volumes cannot ${operation}: ${reason}`,
  )
}
