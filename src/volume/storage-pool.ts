/**
 * One pool: whether it runs, and what is in it. What happens to a pool happens in order, and what happens to its volumes, too:
 *
 *     build, start, stop …       whoever has its turn (`StoragePools`)
 *     change, lookAgain          take their turn themselves
 *     ask                        beside all of it
 *
 * Storage of a server is asked before each of them whether it answers: see `reach.ts`.
 */
import { RpcError } from '../core/errors.ts'
import { logger } from '../core/log.ts'
import type { PoolDocument, PoolUsage } from '../libvirt/pool-xml.ts'
import { removeLeftovers } from './leftovers.ts'
import type { BuildMode, PoolBackend, PoolContents, StopOptions, VolumeFacts } from './pool.ts'
import { Reach } from './reach.ts'
import { Turns } from './turns.ts'
import { isHidden } from './volume-name.ts'
import { type NotifyUsage, Watermarks } from './watermarks.ts'

const log = logger('volume')

/** A pool as its volumes and methods see it: whether it is there and runs is for `StoragePools` to change. */
export interface Pool {
  readonly name: string
  readonly uuid: string
  readonly document: PoolDocument
  readonly backend: PoolBackend
  /** It is there when the daemon comes back. */
  readonly isPersistent: boolean
  readonly isAutostart: boolean
  readonly isActive: boolean
  readonly watermarks: Pick<Watermarks, 'levels' | 'reached'>
  /** As of the last look; undefined while inactive, and while nobody could look. */
  readonly contents: PoolContents | undefined
  /** Whether its storage answers. */
  readonly reach: Reach
  /**
   * Does something to volumes while nothing else does. It looks at the pool before, since other programs may have changed what is
   * in it, and after. Throws `RpcError` EINVAL unless the pool runs.
   */
  change<T>(work: () => Promise<T>): Promise<T>
  /** Work that takes long is done beside other changes: what it leaves is looked at when it has ended. */
  lookAgain(): Promise<void>
  /** What is asked of the storage outside of its turn; rejects when that does not answer. */
  ask<T>(question: () => Promise<T>): Promise<T>
  /** Keeps it from being stopped while something is done to its volumes; what is returned ends that. */
  hold(work: string): () => void
}

/** What a definition says of a pool. */
export interface PoolDefinition {
  readonly document: PoolDocument & { readonly uuid: string }
  readonly backend: PoolBackend
  /** What no other pool may have. */
  readonly holdings: readonly string[]
}

export class StoragePool implements Pool {
  readonly name: string
  readonly uuid: string
  readonly isPersistent: boolean
  isAutostart = false
  document: PoolDocument
  backend: PoolBackend
  holdings: readonly string[]
  reach: Reach
  isActive = false
  contents: PoolContents | undefined
  /** While it is active: see `PoolBackend.identity`. */
  identity: string | undefined
  readonly watermarks: Watermarks
  readonly turns = new Turns()
  /** Long work on its volumes: as long as there is any, it is not stopped. */
  readonly #work = new Set<string>()
  /** Who does not answer is not asked once more every time. */
  #isAskedUsage = false

  constructor(definition: PoolDefinition, isPersistent: boolean, notify: NotifyUsage) {
    const { document, backend, holdings } = definition
    this.name = document.name
    this.uuid = document.uuid
    this.isPersistent = isPersistent
    this.document = { ...document, usage: undefined }
    this.backend = backend
    this.holdings = holdings
    this.reach = new Reach(document.name, backend.remote)
    this.watermarks = new Watermarks(document.name, notify)
  }

  /** The same pool by another document. */
  redefine({ document, backend, holdings }: PoolDefinition): void {
    this.document = { ...document, usage: undefined }
    this.backend = backend
    this.holdings = holdings
    this.reach = new Reach(this.name, backend.remote)
  }

  async build(mode: BuildMode): Promise<void> {
    if (this.backend.build !== undefined) return this.backend.build(mode)
    throw new RpcError(
      'ENOTSUP',
      `pool ${this.name} is of type ${this.document.type}: there is nothing to build, start it`,
    )
  }

  /** `refuse` throws when it is not to run after all: only what runs tells what it is. */
  async start(refuse: () => void): Promise<void> {
    // Mounted from a server that has gone while the daemon was away: as if it went now.
    if ((await this.backend.isStarted?.()) && !(await this.reach.answers())) {
      this.isActive = true
      return
    }
    await this.backend.start()
    this.isActive = true
    try {
      this.identity = await this.backend.identity?.()
      refuse()
      await removeLeftovers(this)
      await this.#look()
    } catch (error) {
      this.isActive = false
      await this.backend.stop().catch((failed: Error) => log.warning(`pool ${this.name}: ${failed.message}`))
      throw error
    }
    log.notice(`pool ${this.name} is started: ${this.contents?.volumes.length} volumes`)
  }

  async stop(options: StopOptions): Promise<void> {
    this.refuseInactive()
    const [work] = this.#work
    if (work !== undefined && !options.isForced) {
      throw new RpcError('EBUSY', `pool ${this.name} cannot be stopped during ${work}: see qpair job list`)
    }
    await this.backend.stop(options)
    this.isActive = false
    this.contents = undefined
    this.watermarks.reset()
  }

  async deleteStorage(): Promise<void> {
    if (this.backend.delete !== undefined) return this.backend.delete()
    throw new RpcError(
      'ENOTSUP',
      `pool ${this.name} is of type ${this.document.type}, whose storage is not deleted from here`,
    )
  }

  setLevels(levels: readonly number[]): void {
    this.watermarks.set(levels)
    if (this.contents !== undefined) this.#judge(this.contents)
  }

  change<T>(work: () => Promise<T>): Promise<T> {
    return this.#next(async () => {
      this.refuseInactive()
      await this.#look()
      try {
        return await work()
      } finally {
        if (this.isActive) await this.#look()
      }
    })
  }

  lookAgain(): Promise<void> {
    return this.#next(async () => {
      if (this.isActive) await this.#look()
    })
  }

  async ask<T>(question: () => Promise<T>): Promise<T> {
    await this.reach.check()
    return this.reach.during(question())
  }

  hold(work: string): () => void {
    this.#work.add(work)
    return () => void this.#work.delete(work)
  }

  /** Whether it answers, and how full it is now. */
  async checkUsage(): Promise<void> {
    if (!this.isActive || this.#isAskedUsage) return
    this.#isAskedUsage = true
    try {
      await this.reach.check()
      if (this.turns.isBusy) return
      if (this.contents === undefined) return await this.lookAgain()
      const usage = await this.backend.usage?.()
      if (usage === undefined || !this.isActive) return
      this.contents = { ...usage, volumes: this.contents.volumes }
      this.#judge(usage)
    } catch (error) {
      log.debug(`pool ${this.name} does not tell how full it is: ${(error as Error).message}`)
    } finally {
      this.#isAskedUsage = false
    }
  }

  /** While it is being started or stopped nobody can say which of both it is. */
  refuseBusy(): void {
    if (!this.turns.isBusy) return
    throw new RpcError('EBUSY', `something is being done to pool ${this.name}: wait for its end`)
  }

  refuseActive(done: string): void {
    if (!this.isActive) return
    throw new RpcError(
      'EBUSY',
      `pool ${this.name} is active and cannot be ${done}: qpair pool destroy ${this.name} stops it`,
    )
  }

  refuseInactive(): void {
    if (this.isActive) return
    throw new RpcError('EINVAL', `pool ${this.name} is not active: qpair pool start ${this.name}`)
  }

  /** Work in its turn that nobody waits for when the storage does not answer. */
  #next<T>(work: () => Promise<T>): Promise<T> {
    return this.ask(() => this.turns.next(work))
  }

  async #look(): Promise<void> {
    await this.reach.check()
    const { volumes, ...usage } = await this.backend.refresh()
    // It may have been given up meanwhile.
    if (!this.isActive) return
    this.contents = { ...usage, volumes: volumes.filter(({ name }) => !isHidden(name)) }
    this.#judge(this.contents)
  }

  #judge(usage: PoolUsage): void {
    // Without such an answer it is full from the beginning, and nothing fails for it.
    if (this.backend.usage !== undefined) this.watermarks.judge(usage)
  }
}

/** The volume of that name in what a pool has. */
export const volumeIn = (pool: Pool, name: string): VolumeFacts | undefined =>
  pool.contents?.volumes.find(volume => volume.name === name)
