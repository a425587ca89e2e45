/**
 * Chooses the path of each I/O of one device on one reactor.
 *
 * A path is usable when its I/O queue is connected and the namespace's ANA state lets I/O through. Optimized paths go
 * before non-optimized ones. Among those that are left:
 *   active_passive                 the preferred path, else the first; with failback disabled the one used last
 *   active_active, round_robin     `rrMinIo` I/Os on each in turn
 *   active_active, queue_depth     the one with the fewest commands outstanding
 */
import { AnaState } from '../spec/nvme-log.ts'
import type { MultipathPolicy } from './messages.ts'

/** What choosing needs to know of a path. */
export interface SelectablePath {
  readonly id: number
  /** I/O can be submitted now. */
  readonly isConnected: boolean
  /** Of the namespace at hand; undefined when the path does not have it. */
  readonly anaState: AnaState | undefined
  /** Commands outstanding. */
  readonly outstanding: number
}

export const DEFAULT_POLICY: MultipathPolicy = {
  policy: 'active_passive',
  selector: 'round_robin',
  rrMinIo: 1,
  preferredPathId: undefined,
}

export class PathSelector<Path extends SelectablePath> {
  /** In use or used last. */
  current: Path | null = null

  #policy: MultipathPolicy = DEFAULT_POLICY
  #failsBack = true
  /** The usable paths of the best ANA state. */
  #candidates: readonly Path[] = []
  #turn = 0
  #left = 0

  setPolicy(policy: MultipathPolicy, failsBack: boolean): void {
    this.#policy = policy
    this.#failsBack = failsBack
    // What the operator prefers now holds even where failing back by itself is disabled.
    this.current = null
    this.#left = policy.rrMinIo
  }

  /** To be called whenever one of the paths changes. `paths` are in the order in which they were attached. */
  refresh(paths: readonly Path[]): void {
    const inState = (state: AnaState): Path[] =>
      paths.filter(path => path.isConnected && path.anaState === state)
    const optimized = inState(AnaState.OPTIMIZED)
    this.#candidates = optimized.length > 0 ? optimized : inState(AnaState.NON_OPTIMIZED)
    this.#turn = 0
    this.#left = this.#policy.rrMinIo
    this.current = this.#first()
  }

  /** The path for the next I/O, or null when none is usable. */
  next(): Path | null {
    if (this.#policy.policy === 'active_passive' || this.#candidates.length < 2) return this.current
    this.current = this.#policy.selector === 'round_robin' ? this.#nextInTurn() : this.#leastBusy()
    return this.current
  }

  /** A usable path other than `avoided`, or null. */
  other(avoided: Path): Path | null {
    for (let i = 0; i < this.#candidates.length; i++) {
      if (this.#candidates[i] !== avoided) return this.#candidates[i]!
    }
    return null
  }

  #first(): Path | null {
    const candidates = this.#candidates
    if (candidates.length === 0) return null
    const { policy, preferredPathId } = this.#policy
    if (policy === 'active_passive' && !this.#failsBack && candidates.includes(this.current!)) {
      return this.current
    }
    return candidates.find(path => path.id === preferredPathId) ?? candidates[0]!
  }

  #nextInTurn(): Path {
    if (this.#left === 0) {
      this.#turn = (this.#turn + 1) % this.#candidates.length
      this.#left = this.#policy.rrMinIo
    }
    this.#left--
    return this.#candidates[this.#turn]!
  }

  #leastBusy(): Path {
    const candidates = this.#candidates
    let best = candidates[0]!
    for (let i = 1; i < candidates.length; i++) {
      if (candidates[i]!.outstanding < best.outstanding) best = candidates[i]!
    }
    return best
  }
}
