/** Where new refcount blocks, and a larger refcount table, are put. */
import type { Geometry } from './geometry.ts'

export interface GrowthPlan {
  /** The first cluster: of the first block. */
  readonly start: number
  /** New blocks, one cluster each. */
  readonly blocks: number
  /** Of the table: as before, or more, and then it follows the blocks. */
  readonly tableClusters: number
  /** Blocks, and the new table if there is one. */
  readonly usedClusters: number
}

/**
 * For the first cluster that block number `block` counts: blocks, each of which counts the clusters of those that follow,
 * until they also count the larger table, if the present one of `tableClusters` has no room for them, and `others` clusters
 * behind it.
 */
export function planGrowth(geometry: Geometry, block: number, tableClusters: number, others = 0): GrowthPlan {
  const { blockEntries, clusterSize } = geometry
  const start = block * blockEntries
  const entriesPerCluster = clusterSize / 8
  for (let blocks = 1; ; ) {
    const isTableEnough = block + blocks <= tableClusters * entriesPerCluster
    // Half as much again, so that a growing file rarely needs another.
    const table = isTableEnough ? 0 : Math.ceil(((block + blocks) * 1.5) / entriesPerCluster)
    const used = blocks + table
    const needed = Math.ceil((used + others) / blockEntries)
    if (needed <= blocks) {
      return { start, blocks, tableClusters: isTableEnough ? tableClusters : table, usedClusters: used }
    }
    blocks = needed
  }
}
