/**
 * The configuration that all members have, and its object in the pool. A change is made here, written for the group, and
 * only then answered; when it cannot be written, it is taken back. Others are told, and follow.
 */
import { z } from 'zod'
import { RpcError } from '../core/errors.ts'
import { logger } from '../core/log.ts'
import type { MethodCall } from '../rpc/config.ts'
import { parseObject } from './group-state.ts'
import { isSame, mergeChanges, planChanges } from './plan.ts'
import { groupsOf, localCall, missingGroups, sharedCalls } from './shared-calls.ts'
import type { GroupStore } from './store.ts'

const log = logger('gateway')

/** How often a change is tried again when another member was first. */
const ATTEMPTS = 8

const storedConfig = z.strictObject({
  format: z.literal(1),
  version: z.int().min(0),
  calls: z.array(z.strictObject({ method: z.string(), params: z.record(z.string(), z.unknown()) })),
})

export interface ConfigOptions {
  readonly store: GroupStore
  /** The name of the object. */
  readonly object: string
  readonly group: string
  /** What this member puts in place of what is each member's own. */
  readonly own: { readonly cluster: string; readonly firstCntlid: number; readonly lastCntlid: number }
  /** Everything that this daemon has, as calls. */
  readonly config: () => readonly MethodCall[]
  readonly replay: (method: string, params: unknown) => Promise<unknown>
  /** Something was made or taken away here. */
  readonly changed: () => Promise<void>
  /** The group has another configuration by a change that was made here. */
  readonly told: () => void
}

/** Whoever calls a method that waits must see to it that no other change of the daemon runs meanwhile. */
export class SharedConfig {
  readonly #options: ConfigOptions
  #calls: readonly MethodCall[] = []
  #version = 0
  /** Of the object, as it was read last. */
  #objectVersion: number | undefined
  #groups: readonly string[] = []
  #unable: readonly string[] = []
  /** What did not work, so that it is told once. */
  #problems = new Set<string>()

  constructor(options: ConfigOptions) {
    this.#options = options
  }

  /** Of the newest configuration that was read. */
  get version(): number {
    return this.#version
  }

  /** Its ANA groups, and those of which something is missing here. */
  get groups(): readonly string[] {
    return this.#groups
  }

  get unable(): readonly string[] {
    return this.#unable
  }

  /** The parameters of a shared call as this member makes it. */
  localize(call: MethodCall): MethodCall['params'] {
    return localCall(call, this.#options.own).params
  }

  /** Reads the group's configuration; true when it is another. Throws what the store throws. */
  async read(): Promise<boolean> {
    const { store, object } = this.#options
    const read = await store.read(object)
    this.#objectVersion = read?.version
    if (read === undefined) return false
    const { version, calls } = parseObject(storedConfig, object, read.text)
    if (version === this.#version) return false
    this.#adopt(version, calls)
    return true
  }

  /** Makes this daemon what the group's configuration says, as far as it can. */
  async apply(): Promise<void> {
    const { own, replay, changed } = this.#options
    const problems = new Set<string>()
    for (const call of planChanges(this.#there(), this.#calls)) {
      const { method, params } = localCall(call, own)
      try {
        await replay(method, params)
      } catch (error) {
        const problem = `${method} ${JSON.stringify(params)}: ${(error as Error).message}`
        problems.add(problem)
        if (!this.#problems.has(problem))
          log.error(`the group's configuration does not work here: ${problem}`)
      }
    }
    this.#problems = problems
    this.#look()
    await changed()
  }

  /** Follows what another member has changed, and tries again what did not work. */
  async catchUp(): Promise<void> {
    const isNew = await this.read()
    if (isNew || this.#problems.size > 0) await this.apply()
  }

  /**
   * Runs a method that may change what is shared, and resolves with its result once the group has the change. Throws
   * what the method throws, and `RpcError` EAGAIN when the group cannot have it: then it is taken back.
   */
  async change(run: () => Promise<unknown>): Promise<unknown> {
    for (let attempt = 0; attempt < ATTEMPTS; attempt++) {
      await this.#orRefuse(() => this.catchUp())
      const before = this.#there()
      const result = await run()
      const after = this.#there()
      if (isSame(before, after)) return result
      const calls = mergeChanges(this.#calls, before, after)
      if (await this.#write(calls)) return result
      // Another member was first: its change holds, and ours is made again on top of it.
      await this.#orRefuse(() => this.read())
      await this.apply()
    }
    throw this.#refusal(`other members changed it ${ATTEMPTS} times meanwhile`)
  }

  /** Takes everything away that is shared. */
  async clear(): Promise<void> {
    for (const { method, params } of planChanges(this.#there(), [])) {
      try {
        await this.#options.replay(method, params)
      } catch (error) {
        log.error(`${method} ${JSON.stringify(params)}: ${(error as Error).message}`)
      }
    }
  }

  async #write(calls: readonly MethodCall[]): Promise<boolean> {
    const { store, object, changed, told } = this.#options
    const version = this.#version + 1
    try {
      const text = JSON.stringify({ format: 1, version, calls })
      if (!(await store.write(object, text, this.#objectVersion))) return false
    } catch (error) {
      await this.apply()
      throw this.#refusal(`it could not be written (${(error as Error).message}), and is taken back here`)
    }
    told()
    this.#adopt(version, calls)
    await changed()
    return true
  }

  #adopt(version: number, calls: readonly MethodCall[]): void {
    this.#version = version
    this.#calls = calls
    this.#groups = groupsOf(calls)
    this.#look()
  }

  #look(): void {
    this.#unable = missingGroups(this.#calls, this.#there())
  }

  #there(): MethodCall[] {
    const { config, own } = this.#options
    return sharedCalls(config(), own.cluster)
  }

  async #orRefuse(work: () => Promise<unknown>): Promise<void> {
    try {
      await work()
    } catch (error) {
      throw this.#refusal((error as Error).message)
    }
  }

  #refusal(reason: string): RpcError {
    return new RpcError(
      'EAGAIN',
      `the configuration of gateway group ${this.#options.group} cannot be changed here now: ${reason}; ` +
        'try again, or on another member',
    )
  }
}
