/**
 * The pools of the daemon: which there are, which of them run, what is in them.
 *
 *              define                 start
 *     (none) ---------->  inactive  ---------->  active      a pool of `pool_create` is there only as long as it runs
 *            <----------            <----------
 *             undefine                destroy
 *
 * What is saved of a pool is its document and whether it starts with the daemon; what is in it is found by looking.
 */
import { randomUUID } from 'node:crypto'
import { RpcError, thereAre } from '../core/errors.ts'
import { logger } from '../core/log.ts'
import { formatPool, type PoolDocument, type PoolUsage, parsePool } from '../libvirt/pool-xml.ts'
import type { Configurable, MethodCall } from '../rpc/config.ts'
import { poolBackends } from './backends/index.ts'
import type {
  BuildMode,
  PoolBackend,
  PoolBackendType,
  PoolContents,
  PoolServices,
  StopOptions,
  VolumeFacts,
} from './pool.ts'
import { holdingsOf } from './pool-source.ts'
import { Reach } from './reach.ts'
import { Turns } from './turns.ts'
import { isHidden, isPartial } from './volume-name.ts'
import { DEFAULT_LEVELS, levelOf, percentOf, sayLevel } from './watermarks.ts'

const log = logger('volume')

/** How often it is looked how full the pools are. */
const USAGE_PERIOD_MS = 10_000

export interface PoolsOptions {
  readonly services: PoolServices
  /** Is told when a pool reaches another of its levels: its name and how full it is. */
  readonly notify: (type: 'pool_usage', context: string) => void
  readonly types?: readonly PoolBackendType[]
  /** Is called before the first file of a server can be open. */
  readonly onRemote?: () => void
}

/** A pool as others see it. What changes is changed by `StoragePools` only. */
export interface Pool {
  readonly name: string
  readonly uuid: string
  readonly document: PoolDocument
  readonly backend: PoolBackend
  /** It is there when the daemon comes back. */
  readonly isPersistent: boolean
  readonly isAutostart: boolean
  readonly isActive: boolean
  /** Percents, rising. */
  readonly levels: readonly number[]
  /** The highest of them that is reached, 0 for none. */
  readonly level: number
  /** As of the last refresh; undefined while inactive, and while nobody could look. */
  readonly contents: PoolContents | undefined
  /** Whether its storage answers. */
  readonly reach: Reach
}

type State = { -readonly [key in keyof Pool]: Pool[key] } & {
  /** What happens to a pool happens in order; what happens to its volumes, too. */
  readonly turns: Turns
  /** What no other pool may have. */
  holdings: readonly string[]
  /** While it is active. */
  identity?: string | undefined
  /** Long work on its volumes: as long as there is any, it is not stopped. */
  readonly work: Set<string>
}

export class StoragePools implements Configurable {
  readonly subsystem = 'volume'
  readonly dependsOn: readonly string[] = ['secret']
  /** While the daemon starts and replays what was saved, a pool that starts with it starts at once. */
  #isStarting = true
  readonly #services: PoolServices
  readonly #notify: PoolsOptions['notify']
  readonly #onRemote: () => void
  readonly #types: ReadonlyMap<string, PoolBackendType>
  readonly #pools = new Map<string, State>()
  /** Names that a creation in progress has taken. */
  readonly #reserved = new Set<string>()
  #timer: NodeJS.Timeout | undefined
  /** Pools that are being asked how full they are: who does not answer is not asked once more every time. */
  readonly #asked = new Set<State>()

  constructor({ services, notify, types = poolBackends, onRemote = () => {} }: PoolsOptions) {
    this.#services = services
    this.#onRemote = onRemote
    this.#notify = notify
    this.#types = new Map(types.map(each => [each.type, each]))
  }

  /** The daemon is up: from now on pools start when they are told to. */
  daemonIsUp(): void {
    this.#isStarting = false
  }

  /** Keeps a pool of this document, or changes the document of one that is there and inactive. */
  async define(xml: string): Promise<Pool> {
    const document = parsePool(xml)
    const holdings = await holdingsOf(document)
    const old = this.#pools.get(document.name)
    if (old?.isActive && !old.isPersistent) throw running(old, 'defined while it is transient')
    const uuid = document.uuid ?? old?.uuid ?? randomUUID()
    this.#refuseTwin(document, uuid, holdings)
    const backend = this.#backend(document)
    this.#refuseReserved(document.name)
    if (old !== undefined) {
      refuseBusy(old)
      if (old.isActive) throw running(old, 'defined anew')
      const reach = new Reach(old.name, backend.remote)
      const changed = { ...document, uuid, usage: undefined }
      Object.assign(old, { document: changed, uuid, backend, holdings, reach })
      return old
    }
    const pool = this.#add({ ...document, uuid }, backend, holdings, true)
    // What was mounted stays mounted while the daemon is away.
    if (this.#isStarting && (await backend.isStarted?.())) await this.#startOrTell(pool)
    return pool
  }

  /** Starts a pool that is gone when it is stopped. */
  async create(xml: string, build?: BuildMode): Promise<Pool> {
    const document = parsePool(xml)
    const holdings = await holdingsOf(document)
    const old = this.#pools.get(document.name)
    if (old !== undefined) {
      throw new RpcError(
        'EEXIST',
        `there is a pool ${old.name} already: start that one, or choose another name`,
      )
    }
    const uuid = document.uuid ?? randomUUID()
    this.#refuseTwin(document, uuid, holdings)
    const backend = this.#backend(document)
    this.#refuseReserved(document.name)
    this.#reserved.add(document.name)
    try {
      if (build !== undefined) await this.#needBuild(document, backend)(build)
      // Another may have been defined meanwhile.
      this.#refuseTwin(document, uuid, holdings)
      const pool = this.#add({ ...document, uuid }, backend, holdings, false)
      try {
        await this.#start(pool)
      } catch (error) {
        this.#pools.delete(pool.name)
        throw error
      }
      return pool
    } finally {
      this.#reserved.delete(document.name)
    }
  }

  async build(name: string, mode: BuildMode): Promise<void> {
    const pool = this.#get(name)
    await pool.turns.next(async () => {
      if (pool.isActive) throw running(pool, 'built')
      await this.#needBuild(pool.document, pool.backend)(mode)
      log.notice(`pool ${name} is built`)
    })
  }

  async start(name: string, build?: BuildMode): Promise<void> {
    const pool = this.#get(name)
    await pool.turns.next(async () => {
      if (pool.isActive) throw new RpcError('EALREADY', `pool ${name} is active already`)
      if (build !== undefined) await this.#needBuild(pool.document, pool.backend)(build)
      await this.#start(pool)
    })
  }

  /** Whether it starts with the daemon; while the daemon starts that is now. */
  async setAutostart(name: string, isAutostart: boolean): Promise<void> {
    const pool = this.#get(name)
    if (!pool.isPersistent) {
      throw new RpcError('EINVAL', `pool ${name} is transient and gone when it stops: define it first`)
    }
    pool.isAutostart = isAutostart
    if (isAutostart && this.#isStarting && !pool.isActive) await this.#startOrTell(pool)
  }

  async refresh(name: string): Promise<Pool> {
    const pool = this.#state(this.active(name))
    await this.#whileReached(pool, () => this.#look(pool))
    return pool
  }

  /** Stops it; data stays. Forced, also when its storage does not answer. */
  async destroy(name: string, { isForced }: StopOptions): Promise<void> {
    const pool = this.#get(name)
    const isSilent = pool.isActive && !(await pool.reach.answers())
    if (isSilent && !isForced) throw pool.reach.trouble
    // Whoever has the turn may be waiting for the storage.
    if (isSilent) await this.#stop(pool, { isForced: true })
    else await pool.turns.next(() => this.#stop(pool, { isForced: false }))
    this.#watch()
  }

  async #stop(pool: State, options: StopOptions): Promise<void> {
    const { name } = pool
    if (!pool.isActive) throw inactive(pool)
    const [work] = pool.work
    if (work !== undefined && !options.isForced) {
      throw new RpcError('EBUSY', `pool ${name} cannot be stopped during ${work}: see qpair job list`)
    }
    await pool.backend.stop(options)
    Object.assign(pool, { isActive: false, contents: undefined, level: 0 })
    if (!pool.isPersistent) this.#pools.delete(name)
    log.notice(`pool ${name} is stopped`)
  }

  /** Removes the storage itself. */
  async delete(name: string): Promise<void> {
    const pool = this.#get(name)
    await pool.turns.next(async () => {
      if (pool.isActive) throw running(pool, 'deleted')
      if (pool.backend.delete === undefined) {
        throw new RpcError(
          'ENOTSUP',
          `pool ${name} is of type ${pool.document.type}, whose storage is not deleted from here`,
        )
      }
      await pool.backend.delete()
      log.notice(`the storage of pool ${name} is deleted`)
    })
  }

  undefine(name: string): void {
    const pool = this.#get(name)
    refuseBusy(pool)
    if (pool.isActive) throw running(pool, 'undefined')
    this.#pools.delete(name)
  }

  setLevels(name: string, levels: readonly number[]): void {
    const pool = this.#get(name)
    pool.levels = levels.toSorted((a, b) => a - b)
    pool.level = 0
    if (pool.contents !== undefined) this.#judge(pool, pool.contents)
  }

  list(): Pool[] {
    return [...this.#pools.values()].sort((a, b) => (a.name < b.name ? -1 : 1))
  }

  /** By name or UUID. Throws `RpcError` ENOENT naming the pools there are. */
  get(name: string): Pool {
    return this.#get(name)
  }

  /** As `get`, and throws EINVAL unless it runs. */
  active(name: string): Pool {
    const pool = this.#get(name)
    if (!pool.isActive) throw inactive(pool)
    return pool
  }

  /** The document as libvirt would show it: with how full it is. */
  xmlOf(name: string): string {
    const { document, contents } = this.#get(name)
    return formatPool(contents === undefined ? document : { ...document, usage: usageOf(contents) })
  }

  /**
   * Does something to volumes of an active pool while nothing else does. It looks at the pool before, since other programs may
   * have changed what is in it, and after.
   */
  async change<T>(pool: Pool, work: () => Promise<T>): Promise<T> {
    const state = this.#state(pool)
    return this.#whileReached(state, async () => {
      if (!state.isActive) throw inactive(state)
      await this.#look(state)
      try {
        return await work()
      } finally {
        if (state.isActive) await this.#look(state)
      }
    })
  }

  /** What is asked of the storage of a pool outside its turn; rejects when that does not answer. */
  async ask<T>({ reach }: Pool, question: () => Promise<T>): Promise<T> {
    await reach.check()
    return reach.during(question())
  }

  /** Work that takes long is done beside other changes: what it leaves is looked at when it has ended. */
  async lookAgain(pool: Pool): Promise<void> {
    const state = this.#state(pool)
    await this.#whileReached(state, async () => {
      if (state.isActive) await this.#look(state)
    })
  }

  /** Work in its turn that nobody waits for when the storage does not answer. */
  #whileReached<T>(pool: State, work: () => Promise<T>): Promise<T> {
    return this.ask(pool, () => pool.turns.next(work))
  }

  /** Keeps a pool from being stopped while something is done to its volumes; what is returned ends that. */
  hold(pool: Pool, work: string): () => void {
    const { work: all } = this.#state(pool)
    all.add(work)
    return () => void all.delete(work)
  }

  /** The last step of the daemon's life: what is mounted stays so, since guests may use it without the daemon. */
  stop(): void {
    clearInterval(this.#timer)
  }

  config(): MethodCall[] {
    return [...this.#pools.values()]
      .filter(({ isPersistent }) => isPersistent)
      .flatMap(({ name, document, isAutostart, levels }) => [
        { method: 'pool_define', params: { xml: formatPool(document) } },
        ...(isAutostart ? [{ method: 'pool_autostart', params: { pool: name } }] : []),
        ...(levels === DEFAULT_LEVELS
          ? []
          : [{ method: 'pool_set_watermarks', params: { pool: name, levels: [...levels] } }]),
      ])
  }

  #add(
    document: PoolDocument & { readonly uuid: string },
    backend: PoolBackend,
    holdings: readonly string[],
    isPersistent: boolean,
  ): State {
    const pool: State = {
      ...{ name: document.name, uuid: document.uuid, backend, isPersistent, holdings },
      document: { ...document, usage: undefined },
      ...{ isAutostart: false, isActive: false, contents: undefined },
      ...{ levels: DEFAULT_LEVELS, level: 0, turns: new Turns(), work: new Set<string>() },
      reach: new Reach(document.name, backend.remote),
    }
    this.#pools.set(pool.name, pool)
    return pool
  }

  #backend(document: PoolDocument): PoolBackend {
    const type = this.#types.get(document.type)
    if (type !== undefined) {
      const backend = type.create(document, this.#services)
      if (backend.remote !== undefined) this.#onRemote()
      return backend
    }
    throw new RpcError(
      'ENOTSUP',
      `pool ${document.name} is of type ${document.type}, which is not served here: ${thereAre(this.#types.keys())}`,
    )
  }

  #refuseReserved(name: string): void {
    if (this.#reserved.has(name))
      throw new RpcError('EBUSY', `pool ${name} is being created: wait for its end`)
  }

  #needBuild({ name, type }: PoolDocument, backend: PoolBackend): (mode: BuildMode) => Promise<void> {
    if (backend.build !== undefined) return mode => backend.build!(mode)
    throw new RpcError('ENOTSUP', `pool ${name} is of type ${type}: there is nothing to build, start it`)
  }

  async #start(pool: State): Promise<void> {
    // Mounted from a server that has gone while the daemon was away: as if it went now.
    if ((await pool.backend.isStarted?.()) && !(await pool.reach.answers())) {
      pool.isActive = true
      this.#watch()
      return
    }
    await pool.backend.start()
    pool.isActive = true
    try {
      pool.identity = await pool.backend.identity?.()
      this.#refuseAlias(pool)
      await removeLeftovers(pool)
      await this.#look(pool)
    } catch (error) {
      pool.isActive = false
      await pool.backend.stop()
      throw error
    }
    log.notice(`pool ${pool.name} is started: ${pool.contents?.volumes.length} volumes`)
    this.#watch()
  }

  /** For the start of the daemon, which a pool that cannot start does not prevent. */
  async #startOrTell(pool: State): Promise<void> {
    try {
      await pool.turns.next(async () => {
        if (!pool.isActive) await this.#start(pool)
      })
    } catch (error) {
      log.error(
        `pool ${pool.name} could not be started: ${(error as Error).message}. ` +
          `It stays defined: when that is mended, qpair pool start ${pool.name}`,
      )
    }
  }

  async #look(pool: State): Promise<void> {
    await pool.reach.check()
    const { volumes, ...usage } = await pool.backend.refresh()
    // It may have been given up meanwhile.
    if (!pool.isActive) return
    pool.contents = { ...usage, volumes: volumes.filter(({ name }) => !isHidden(name)) }
    this.#judge(pool, pool.contents)
  }

  /** Keeps an eye on pools while any runs. */
  #watch(): void {
    const isNeeded = [...this.#pools.values()].some(({ isActive }) => isActive)
    if (isNeeded === (this.#timer !== undefined)) return
    clearInterval(this.#timer)
    this.#timer = isNeeded ? setInterval(() => void this.checkUsage(), USAGE_PERIOD_MS).unref() : undefined
  }

  /** Whether the pools answer, and how full they are now. One that does not answer keeps nobody from the others. */
  async checkUsage(): Promise<void> {
    const active = [...this.#pools.values()].filter(pool => pool.isActive && !this.#asked.has(pool))
    await Promise.all(active.map(pool => this.#checkUsage(pool)))
  }

  async #checkUsage(pool: State): Promise<void> {
    this.#asked.add(pool)
    try {
      await pool.reach.check()
      if (pool.turns.isBusy) return
      if (pool.contents === undefined) return await this.lookAgain(pool)
      const usage = await pool.backend.usage?.()
      if (usage === undefined || !pool.isActive) return
      pool.contents = { ...usage, volumes: pool.contents.volumes }
      this.#judge(pool, usage)
    } catch (error) {
      log.debug(`pool ${pool.name} does not tell how full it is: ${(error as Error).message}`)
    } finally {
      this.#asked.delete(pool)
    }
  }

  /** Tells of a level that is reached, and of one that is left again. */
  #judge(pool: State, usage: PoolUsage): void {
    // Such a pool is full from the beginning, and nothing fails for it.
    if (pool.backend.usage === undefined) return
    const level = levelOf(usage, pool.levels)
    if (level === pool.level) return
    sayLevel(log, pool.name, usage, { before: pool.level, now: level, highest: pool.levels.at(-1) })
    if (level > pool.level) this.#notify('pool_usage', `${pool.name} ${percentOf(usage)}`)
    pool.level = level
  }

  #refuseTwin({ name }: PoolDocument, uuid: string, holdings: readonly string[]): void {
    for (const other of this.#pools.values()) {
      if (other.name === name) {
        if (other.uuid === uuid) continue
        throw new RpcError(
          'EEXIST',
          `there is a pool ${name} with the UUID ${other.uuid}, not ${uuid}: undefine that one, or choose another name`,
        )
      }
      if (other.uuid === uuid) {
        throw new RpcError('EEXIST', `pool ${other.name} has the UUID ${uuid}: leave the UUID of ${name} out`)
      }
      const shared = holdings.find(each => other.holdings.includes(each))
      if (shared === undefined) continue
      throw new RpcError(
        'EEXIST',
        `Storage source conflict with pool: '${other.name}', which has ${shared} already: use that one, or give ${name} another`,
      )
    }
  }

  /** By other names than those that `holdingsOf` knows: other monitors, a directory that is mounted elsewhere, too. */
  #refuseAlias(pool: State): void {
    const other = [...this.#pools.values()].find(
      each =>
        each !== pool && each.isActive && each.identity !== undefined && each.identity === pool.identity,
    )
    if (other === undefined) return
    throw new RpcError(
      'EEXIST',
      `Storage source conflict with pool: '${other.name}', which has the storage of ${pool.name} by another name: use that one`,
    )
  }

  #get(name: string): State {
    const pool =
      this.#pools.get(name) ?? [...this.#pools.values()].find(({ uuid }) => uuid === name.toLowerCase())
    if (pool !== undefined) return pool
    throw new RpcError('ENOENT', `there is no pool ${name}: ${thereAre(this.#pools.keys())}`)
  }

  #state(pool: Pool): State {
    return this.#get(pool.name)
  }
}

export const usageOf = ({ capacityBytes, allocationBytes, availableBytes }: PoolUsage): PoolUsage => ({
  capacityBytes,
  allocationBytes,
  availableBytes,
})

/** Removes what this machine was making when it was interrupted; work that goes on begins it again. */
async function removeLeftovers({ name, backend }: Pool): Promise<void> {
  if (backend.removeLeftovers !== undefined) return backend.removeLeftovers()
  if (backend.volumes.canHide !== true) return
  for (const volume of (await backend.refresh()).volumes) {
    if (!isPartial(volume.name)) continue
    try {
      await backend.volumes.delete?.(volume)
      log.notice(`pool ${name}: ${volume.name} is removed: it was being made when that was interrupted`)
    } catch (error) {
      log.warning(`pool ${name} keeps a volume that was never whole: ${(error as Error).message}`)
    }
  }
}

/** The volume of that name in what a pool has. */
export const volumeIn = (pool: Pool, name: string): VolumeFacts | undefined =>
  pool.contents?.volumes.find(volume => volume.name === name)

/** While it is being started or stopped nobody can say which of both it is. */
function refuseBusy({ name, turns }: State): void {
  if (turns.isBusy) throw new RpcError('EBUSY', `something is being done to pool ${name}: wait for its end`)
}

function running(pool: Pool, done: string): RpcError {
  return new RpcError(
    'EBUSY',
    `pool ${pool.name} is active and cannot be ${done}: qpair pool destroy ${pool.name} stops it`,
  )
}

function inactive(pool: Pool): RpcError {
  return new RpcError('EINVAL', `pool ${pool.name} is not active: qpair pool start ${pool.name}`)
}
