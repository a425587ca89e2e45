/** What the daemon saves and how it comes back: every part says by which calls its state would be made again. */
import { type Clock, systemClock } from '../core/clock.ts'
import { RpcError } from '../core/errors.ts'
import { logger } from '../core/log.ts'
import type { Configurable, MethodCall } from '../rpc/config.ts'
import type { KeptCalls } from './kept-calls.ts'
import { letsHostsIn } from './late-namespaces.ts'
import type { SavedConfig, SubsystemConfig } from './state-file.ts'

const log = logger('app')

type Replay = (method: string, params?: unknown) => Promise<unknown>

/** How long a daemon that starts waits for a call that may take long, before it goes on without it. */
const PATIENCE_MS = 5000

/** What the daemon knows of its saved calls besides the parts that have made them. */
export interface ConfigurationOptions {
  /** Saved calls that failed at start. */
  readonly kept: KeptCalls
  /** A call that may take long: the start does not wait for its end. */
  readonly isSlow: (call: MethodCall) => boolean
  /** A call that is in force and not to be saved, since it comes back from somewhere else. */
  readonly isKeptElsewhere: (call: MethodCall) => boolean
  readonly clock?: Clock
}

export class Configuration {
  readonly #parts: readonly Configurable[]
  readonly #options: ConfigurationOptions

  constructor(parts: readonly Configurable[], options: ConfigurationOptions) {
    this.#parts = inOrderOfNeed(parts)
    this.#options = options
  }

  /** As `framework_get_subsystems` lists them: whoever is needed comes first. */
  get subsystems(): { subsystem: string; depends_on: string[] }[] {
    return this.#parts.map(({ subsystem, dependsOn }) => ({ subsystem, depends_on: [...dependsOn] }))
  }

  /** The calls that make one part's state. Throws `RpcError` when there is no such part. */
  configOf(name: string): MethodCall[] {
    const part = this.#parts.find(({ subsystem }) => subsystem === name)
    if (part === undefined) {
      const names = this.#parts.map(({ subsystem }) => subsystem).join(', ')
      throw new RpcError('INVALID_PARAMS', `Subsystem '${name}' not found: there are ${names}`)
    }
    return part.config()
  }

  /** Everything, as it is to be saved. */
  snapshot(): SavedConfig {
    const { kept, isKeptElsewhere } = this.#options
    const subsystems = this.#parts.map((part): SubsystemConfig => {
      const config = part.config().filter(call => !isKeptElsewhere(call))
      kept.dropMade(part.subsystem, config)
      return { subsystem: part.subsystem, config: [...config, ...kept.callsOf(part.subsystem)] }
    })
    return { subsystems }
  }

  /** Makes every call of a configuration that somebody wrote: the first that fails ends it. */
  async load(saved: SavedConfig, replay: Replay): Promise<void> {
    for (const { subsystem, config } of this.#sorted(saved)) {
      for (const { method, params } of config) {
        try {
          await replay(method, params)
        } catch (cause) {
          if (isForeignOption(method, cause)) continue
          throw new RpcError('EINVAL', `${subsystem}: ${method} failed: ${(cause as Error).message}`, {
            cause,
          })
        }
      }
    }
  }

  /** Makes every call of the daemon's own saved configuration; those that fail are told and kept. */
  async restore(saved: SavedConfig, replay: Replay): Promise<void> {
    const { kept } = this.#options
    for (const { subsystem, config } of this.#sorted(saved)) {
      for (const call of config.toSorted((a, b) => Number(letsHostsIn(a)) - Number(letsHostsIn(b)))) {
        if (kept.holdBack(subsystem, call)) continue
        const attempt = replay(call.method, call.params)
        try {
          if (!(await this.#hasEnded(call, attempt))) kept.keepRunning(subsystem, call, attempt)
        } catch (error) {
          kept.keep(subsystem, call, error)
        }
      }
    }
  }

  /** False when a call that may take long does. Throws what the call throws. */
  async #hasEnded(call: MethodCall, attempt: Promise<unknown>): Promise<boolean> {
    const { isSlow, clock = systemClock } = this.#options
    const ended = attempt.then(() => true)
    if (!isSlow(call)) return ended
    let lose = (_: false): void => {}
    const late = new Promise<false>(resolve => {
      lose = resolve
    })
    const timer = clock.after(PATIENCE_MS, () => lose(false))
    try {
      return await Promise.race([ended, late])
    } finally {
      timer.cancel()
    }
  }

  /** In the order of need, whatever order the file has; sections that mean nothing here come last and are empty in ours. */
  #sorted(saved: SavedConfig): readonly SubsystemConfig[] {
    const order = (name: string): number => {
      const index = this.#parts.findIndex(({ subsystem }) => subsystem === name)
      return index < 0 ? this.#parts.length : index
    }
    return saved.subsystems
      .filter(({ subsystem, config }) => {
        const known = this.#parts.some(part => part.subsystem === subsystem)
        if (!known && config.length > 0) {
          log.warning(
            `the configuration of ${subsystem} (${config.length} calls) has no counterpart here: left out`,
          )
        }
        return known
      })
      .toSorted((a, b) => order(a.subsystem) - order(b.subsystem))
  }
}

/**
 * SPDK writes the options of every module it was built with. Those of a module that does not exist here change nothing
 * about what is served, unlike a device that could not be made.
 */
function isForeignOption(method: string, error: unknown): boolean {
  const isUnknown = error instanceof RpcError && error.code === 'METHOD_NOT_FOUND'
  if (!isUnknown || !/_set_(options|hotplug|scheduler)$|^bdev_wait_for_examine$/.test(method)) return false
  log.warning(`${method} of the configuration file has no counterpart here: left out`)
  return true
}

/** Sorted so that each part comes after those it depends on. */
function inOrderOfNeed(parts: readonly Configurable[]): Configurable[] {
  const sorted: Configurable[] = []
  const add = (part: Configurable): void => {
    if (sorted.includes(part)) return
    for (const name of part.dependsOn) {
      const needed = parts.find(({ subsystem }) => subsystem === name)
      if (needed !== undefined) add(needed)
    }
    sorted.push(part)
  }
  for (const part of parts) add(part)
  return sorted
}
