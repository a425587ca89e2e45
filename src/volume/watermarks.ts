/** How full a pool is, and when that is said. */
import { formatSize } from '../core/format-size.ts'
import { logger } from '../core/log.ts'
import type { PoolFill } from './pool.ts'

const log = logger('volume')

/** Percents. A thin pool promises more than it has: there has to be time to act. */
export const DEFAULT_LEVELS: readonly number[] = [80, 90, 95]

/** Is told when a pool reaches another of its levels: its name and how full it is. */
export type NotifyUsage = (type: 'pool_usage', context: string) => void

/** The levels of one pool. It tells of one that is reached, and of one that is left again. */
export class Watermarks {
  readonly #pool: string
  readonly #notify: NotifyUsage
  #levels = DEFAULT_LEVELS
  #reached = 0

  constructor(pool: string, notify: NotifyUsage) {
    this.#pool = pool
    this.#notify = notify
  }

  /** Percents, rising. */
  get levels(): readonly number[] {
    return this.#levels
  }

  /** The highest of them that is reached, 0 for none. */
  get reached(): number {
    return this.#reached
  }

  set(levels: readonly number[]): void {
    this.#levels = levels.toSorted((a, b) => a - b)
    this.reset()
  }

  /** None is reached. */
  reset(): void {
    this.#reached = 0
  }

  judge(usage: PoolFill): void {
    const before = this.#reached
    const now = levelOf(usage, this.#levels)
    if (now === before) return
    this.#reached = now
    const part = partOf(usage)
    const what =
      part === undefined
        ? `pool ${this.#pool} is ${percentOf(usage)} % full, ${formatSize(usage.availableBytes)} are left`
        : `${part} of pool ${this.#pool} is ${percentOf(usage)} % full`
    if (now < before) log.notice(`${what}: it was over ${before} % before`)
    else if (now === this.#levels.at(-1)) log.error(`${what}: writes to thin volumes fail when it is full`)
    else log.warning(`${what}: make room, or enlarge it`)
    if (now > before) this.#notify('pool_usage', `${this.#pool} ${percentOf(usage)}`)
  }
}

/** Whole percents that are taken of a pool, or of what is fullest in it: what is neither free nor reserved counts as taken. */
export function percentOf({ capacityBytes, availableBytes, fullest }: PoolFill): number {
  const taken = capacityBytes === 0 ? 0 : ((capacityBytes - availableBytes) * 100) / capacityBytes
  return Math.floor(Math.max(taken, fullest?.percent ?? 0))
}

/** The part of a pool that `percentOf` tells of; undefined: it is the pool. */
export function partOf(usage: PoolFill): string | undefined {
  const { fullest } = usage
  return fullest !== undefined && fullest.percent > percentOf({ ...usage, fullest: undefined })
    ? fullest.what
    : undefined
}

/** The highest level that is reached, 0 for none. */
export function levelOf(usage: PoolFill, levels: readonly number[]): number {
  const percent = percentOf(usage)
  return levels.findLast(level => percent >= level) ?? 0
}
