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
 * until they also count the larger table, if the present one of `tableClusters` has no room for them.
 */
export function planGrowth(geometry: Geometry, block: number, tableClusters: number): GrowthPlan {
  const { blockEntries, clusterSize } = geometry
  const start = block * blockEntries
  const entriesPerCluster = clusterSize / 8
  if (block + 1 <= tableClusters * entriesPerCluster) {
    return { start, blocks: 1, tableClusters, usedClusters: 1 }
  }
  let blocks = 1
  for (;;) {
    // Half as much again, so that a growing file rarely needs another.
    const table = Math.ceil(((block + blocks) * 1.5) / entriesPerCluster)
    const used = blocks + table
    const needed = Math.ceil(used / blockEntries)
    if (needed <= blocks) return { start, blocks, tableClusters: table, usedClusters: used }
    blocks = needed
  }
}
