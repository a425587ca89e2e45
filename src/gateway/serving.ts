/** What the keeper directs: the ANA states of this daemon's listeners, and the time until which I/O is let through. */
import type { Clock } from '../core/clock.ts'
import { logger } from '../core/log.ts'
import type { NvmfTarget } from '../nvmf/target.ts'
import { AnaState } from '../spec/nvme-log.ts'
import { anagrpidOf, groupKey, nqnOf } from './group-state.ts'
import type { Serving } from './keeper.ts'
import type { SharedConfig } from './shared-config.ts'

const log = logger('gateway')

/** A number of hosts counts once it has been so for this long: one that connects to its paths in turn moves nothing. */
const REACH_HOLD_MS = 1000

interface Reach {
  told: number
  seen: number
  sinceUs: number
}

export class NvmfServing implements Serving {
  readonly #nvmf: NvmfTarget
  readonly #config: SharedConfig
  readonly #clock: Clock
  readonly #reach = new Map<string, Reach>()

  constructor(nvmf: NvmfTarget, config: SharedConfig, clock: Clock) {
    this.#nvmf = nvmf
    this.#config = config
    this.#clock = clock
  }

  get groups(): readonly string[] {
    return this.#config.groups
  }

  get unable(): readonly string[] {
    return this.#config.unable
  }

  get version(): number {
    return this.#config.version
  }

  hosts(): Record<string, number> {
    const nowUs = this.#clock.nowUs()
    const counts: Record<string, number> = {}
    for (const subsystem of this.#subsystems()) {
      const { nqn } = subsystem
      const controllers = this.#nvmf.directory.controllers(subsystem)
      const seen = new Set(controllers.map(({ hostnqn }) => hostnqn)).size
      const reach = this.#reach.get(nqn) ?? { told: 0, seen, sinceUs: nowUs }
      this.#reach.set(nqn, reach)
      if (reach.seen !== seen) {
        reach.seen = seen
        reach.sinceUs = nowUs
      }
      if (nowUs - reach.sinceUs >= REACH_HOLD_MS * 1000) reach.told = seen
      counts[nqn] = reach.told
    }
    return counts
  }

  serveUntil(us: number): void {
    this.#nvmf.lease[0] = us
  }

  /** The states are set before the first of them is waited for: a later call has the last word. */
  async open(keys: ReadonlySet<string>): Promise<void> {
    await Promise.all(
      this.#subsystems().map(({ nqn }) =>
        this.#nvmf.setAnaStates(nqn, anagrpid =>
          keys.has(groupKey(nqn, anagrpid)) ? AnaState.OPTIMIZED : AnaState.INACCESSIBLE,
        ),
      ),
    )
  }

  async drain(keys: readonly string[]): Promise<void> {
    const nqns = new Set(keys.map(nqnOf))
    await Promise.all(
      [...nqns].map(nqn => this.#nvmf.drain(nqn, keys.filter(key => nqnOf(key) === nqn).map(anagrpidOf))),
    )
  }

  disconnect(reason: string): void {
    for (const { nqn } of this.#subsystems()) {
      this.#nvmf.disconnectHosts(nqn, reason).catch((error: Error) => log.error(error.message))
    }
  }

  #subsystems() {
    return this.#nvmf.list().filter(({ isDiscovery }) => !isDiscovery)
  }
}
