/** What an open image tells of itself. */
import { librbd } from '../sys/librbd.ts'
import type { Cluster } from './cluster.ts'

export interface ImageFacts {
  /** As `rbd info` names them. */
  readonly features: readonly string[]
  /** In bytes. */
  readonly objectSize: number
  /** Where its data is, when that is not its own pool. */
  readonly dataPool: string | undefined
  /** Of a clone: `pool/image@snapshot`. */
  readonly parent: string | undefined
  /** librbd may keep what is written in memory until a flush. */
  readonly isCached: boolean
}

/** By bit: `RBD_FEATURE_*` of rbd/features.h. */
const FEATURES = [
  'layering',
  'striping',
  'exclusive-lock',
  'object-map',
  'fast-diff',
  'deep-flatten',
  'journaling',
  'data-pool',
  'operations',
  'migrating',
  'non-primary',
  'dirty-cache',
]
const DATA_POOL = 1 << FEATURES.indexOf('data-pool')

export async function factsOf(cluster: Cluster, image: number): Promise<ImageFacts> {
  const library = librbd()
  const bits = await library.features(image)
  const config = await library.imageConfig(image)
  return {
    features: FEATURES.filter((_, bit) => (bits & (1 << bit)) !== 0),
    objectSize: await library.objectSize(image),
    dataPool:
      (bits & DATA_POOL) === 0 ? undefined : library.poolName(cluster.handle, library.dataPoolId(image)),
    parent: await library.parentOf(image),
    isCached: config.get('rbd_cache')?.value !== 'false',
  }
}
