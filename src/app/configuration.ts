/** What the daemon saves and how it comes back: every part says by which calls its state would be made again. */
import { RpcError } from '../core/errors.ts'
import { logger } from '../core/log.ts'
import type { Configurable, MethodCall } from '../rpc/config.ts'
import type { SavedConfig, SubsystemConfig } from './state-file.ts'

const log = logger('app')

type Replay = (method: string, params?: unknown) => Promise<unknown>

export class Configuration {
  readonly #parts: readonly Configurable[]
  /**
   * Saved calls that failed at start: a file that is not mounted yet, an address that has gone. They are kept in the
   * saved configuration, so that the next start tries them again, until somebody makes the same call with success.
   */
  readonly #failed = new Map<string, MethodCall[]>()
  readonly #isKeptElsewhere: (call: MethodCall) => boolean

  /** `isKeptElsewhere`: calls that are in force and not to be saved, since they come back from somewhere else. */
  constructor(parts: readonly Configurable[], isKeptElsewhere: (call: MethodCall) => boolean = () => false) {
    this.#parts = inOrderOfNeed(parts)
    this.#isKeptElsewhere = isKeptElsewhere
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
    const subsystems = this.#parts.map((part): SubsystemConfig => {
      const config = part.config().filter(call => !this.#isKeptElsewhere(call))
      const made = new Set(config.map(call => JSON.stringify(call)))
      const failed = (this.#failed.get(part.subsystem) ?? []).filter(call => !made.has(JSON.stringify(call)))
      this.#failed.set(part.subsystem, failed)
      return { subsystem: part.subsystem, config: [...config, ...failed] }
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

  /** Makes every call of the daemon's own saved configuration; those that fail are told and kept for the next start. */
  async restore(saved: SavedConfig, replay: Replay): Promise<void> {
    for (const { subsystem, config } of this.#sorted(saved)) {
      for (const call of config) {
        try {
          await replay(call.method, call.params)
        } catch (error) {
          log.error(
            `could not restore ${call.method} ${JSON.stringify(call.params ?? {})}: ${(error as Error).message}. ` +
              'It stays in the saved configuration and is tried again at the next start.',
          )
          const failed = this.#failed.get(subsystem) ?? []
          failed.push(call)
          this.#failed.set(subsystem, failed)
        }
      }
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
