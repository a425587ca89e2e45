/** How full a pool is, and when that is said. */
import { formatSize } from '../core/format-size.ts'
import type { Logger } from '../core/log.ts'
import type { PoolUsage } from '../libvirt/pool-xml.ts'

/** Percents. A thin pool promises more than it has: there has to be time to act. */
export const DEFAULT_LEVELS: readonly number[] = [80, 90, 95]

/** Whole percents of a pool that are taken: what is neither free nor reserved counts as taken. */
export function percentOf({ capacityBytes, availableBytes }: PoolUsage): number {
  return capacityBytes === 0 ? 0 : Math.floor(((capacityBytes - availableBytes) * 100) / capacityBytes)
}

/** The highest level that is reached, 0 for none. */
export function levelOf(usage: PoolUsage, levels: readonly number[]): number {
  const percent = percentOf(usage)
  return levels.findLast(level => percent >= level) ?? 0
}

export function sayLevel(
  log: Logger,
  pool: string,
  usage: PoolUsage,
  { before, now, highest }: { before: number; now: number; highest: number | undefined },
): void {
  const what = `pool ${pool} is ${percentOf(usage)} % full, ${formatSize(usage.availableBytes)} are left`
  if (now < before) log.notice(`${what}: it was over ${before} % before`)
  else if (now === highest) log.error(`${what}: writes to thin volumes fail when it is full`)
  else log.warning(`${what}: make room, or enlarge it`)
}
