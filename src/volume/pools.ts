/**
 * The pools of the daemon: which there are, and which of them run.
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
import { formatPool, type PoolDocument, parsePool } from '../libvirt/pool-xml.ts'
import type { Configurable, MethodCall } from '../rpc/config.ts'
import { poolBackends } from './backends/index.ts'
import type { BuildMode, PoolBackend, PoolBackendType, PoolServices, StopOptions } from './pool.ts'
import { refuseAlias, refuseTwin } from './pool-conflicts.ts'
import { holdingsOf } from './pool-source.ts'
import { type Pool, StoragePool } from './storage-pool.ts'
import { DEFAULT_LEVELS, type NotifyUsage } from './watermarks.ts'

const log = logger('volume')

/** How often it is looked how full the pools are. */
const USAGE_PERIOD_MS = 10_000

export interface PoolsOptions {
  readonly services: PoolServices
  readonly notify: NotifyUsage
  readonly types?: readonly PoolBackendType[]
  /** Is called before the first file of a server can be open. */
  readonly onRemote?: () => void
}

export class StoragePools implements Configurable {
  readonly subsystem = 'volume'
  readonly dependsOn: readonly string[] = ['secret']
  /** While the daemon starts and replays what was saved, a pool that starts with it starts at once. */
  #isStarting = true
  readonly #services: PoolServices
  readonly #notify: NotifyUsage
  readonly #onRemote: () => void
  readonly #types: ReadonlyMap<string, PoolBackendType>
  readonly #pools = new Map<string, StoragePool>()
  /** Names that a creation in progress has taken. */
  readonly #reserved = new Set<string>()
  #timer: NodeJS.Timeout | undefined

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
    const { name } = document
    const holdings = await holdingsOf(document)
    const old = this.#pools.get(name)
    if (old?.isPersistent === false) old.refuseActive('defined while it is transient')
    const uuid = document.uuid ?? old?.uuid ?? randomUUID()
    refuseTwin(this.#pools.values(), { name, uuid, holdings })
    const definition = { document: { ...document, uuid }, backend: this.#backend(document), holdings }
    this.#refuseReserved(name)
    if (old !== undefined) {
      old.refuseBusy()
      old.refuseActive('defined anew')
      old.redefine(definition)
      return old
    }
    const pool = new StoragePool(definition, true, this.#notify)
    this.#pools.set(name, pool)
    // What was mounted stays mounted while the daemon is away.
    if (this.#isStarting && (await pool.backend.isStarted?.())) await this.#startOrTell(pool)
    return pool
  }

  /** Starts a pool that is gone when it is stopped. */
  async create(xml: string, build?: BuildMode): Promise<Pool> {
    const document = parsePool(xml)
    const { name } = document
    const holdings = await holdingsOf(document)
    if (this.#pools.has(name)) {
      throw new RpcError('EEXIST', `there is a pool ${name} already: start that one, or choose another name`)
    }
    const uuid = document.uuid ?? randomUUID()
    refuseTwin(this.#pools.values(), { name, uuid, holdings })
    const definition = { document: { ...document, uuid }, backend: this.#backend(document), holdings }
    this.#refuseReserved(name)
    this.#reserved.add(name)
    try {
      const pool = new StoragePool(definition, false, this.#notify)
      if (build !== undefined) await pool.build(build)
      // Another may have been defined meanwhile.
      refuseTwin(this.#pools.values(), pool)
      this.#pools.set(name, pool)
      try {
        await this.#start(pool)
      } catch (error) {
        this.#pools.delete(name)
        throw error
      }
      return pool
    } finally {
      this.#reserved.delete(name)
    }
  }

  async build(name: string, mode: BuildMode): Promise<void> {
    const pool = this.#get(name)
    await pool.turns.next(async () => {
      pool.refuseActive('built')
      await pool.build(mode)
      log.notice(`pool ${name} is built`)
    })
  }

  async start(name: string, build?: BuildMode): Promise<void> {
    const pool = this.#get(name)
    await pool.turns.next(async () => {
      if (pool.isActive) throw new RpcError('EALREADY', `pool ${name} is active already`)
      if (build !== undefined) await pool.build(build)
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
    const pool = this.active(name)
    await pool.lookAgain()
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

  async #stop(pool: StoragePool, options: StopOptions): Promise<void> {
    await pool.stop(options)
    if (!pool.isPersistent) this.#pools.delete(pool.name)
    log.notice(`pool ${pool.name} is stopped`)
  }

  /** Removes the storage itself. */
  async delete(name: string): Promise<void> {
    const pool = this.#get(name)
    await pool.turns.next(async () => {
      pool.refuseActive('deleted')
      await pool.deleteStorage()
      log.notice(`the storage of pool ${name} is deleted`)
    })
  }

  undefine(name: string): void {
    const pool = this.#get(name)
    pool.refuseBusy()
    pool.refuseActive('undefined')
    this.#pools.delete(name)
  }

  setLevels(name: string, levels: readonly number[]): void {
    this.#get(name).setLevels(levels)
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
    pool.refuseInactive()
    return pool
  }

  /** The document of a pool as libvirt would show it: with how full it is. */
  xmlOf(name: string): string {
    const { document, contents } = this.#get(name)
    return formatPool({ ...document, usage: contents })
  }

  /** Whether the pools answer, and how full they are now. One that does not answer keeps nobody from the others. */
  async checkUsage(): Promise<void> {
    await Promise.all([...this.#pools.values()].map(pool => pool.checkUsage()))
  }

  /** The last step of the daemon's life: what is mounted stays so, since guests may use it without the daemon. */
  stop(): void {
    clearInterval(this.#timer)
  }

  config(): MethodCall[] {
    return [...this.#pools.values()].filter(({ isPersistent }) => isPersistent).flatMap(savedCalls)
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

  async #start(pool: StoragePool): Promise<void> {
    await pool.start(() => refuseAlias(this.#pools.values(), pool))
    this.#watch()
  }

  /** For the start of the daemon, which a pool that cannot start does not prevent. */
  async #startOrTell(pool: StoragePool): Promise<void> {
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

  /** Keeps an eye on pools while any runs. */
  #watch(): void {
    const isNeeded = [...this.#pools.values()].some(({ isActive }) => isActive)
    if (isNeeded === (this.#timer !== undefined)) return
    clearInterval(this.#timer)
    this.#timer = isNeeded ? setInterval(() => void this.checkUsage(), USAGE_PERIOD_MS).unref() : undefined
  }

  #get(name: string): StoragePool {
    const pool =
      this.#pools.get(name) ?? [...this.#pools.values()].find(({ uuid }) => uuid === name.toLowerCase())
    if (pool !== undefined) return pool
    throw new RpcError('ENOENT', `there is no pool ${name}: ${thereAre(this.#pools.keys())}`)
  }
}

function savedCalls({ name, document, isAutostart, watermarks: { levels } }: Pool): MethodCall[] {
  return [
    { method: 'pool_define', params: { xml: formatPool(document) } },
    ...(isAutostart ? [{ method: 'pool_autostart', params: { pool: name } }] : []),
    ...(levels === DEFAULT_LEVELS
      ? []
      : [{ method: 'pool_set_watermarks', params: { pool: name, levels: [...levels] } }]),
  ]
}
