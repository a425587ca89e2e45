/** The cache of an image that is open here: what it keeps back, and what others have to know of it. */
import type { HeldWrites } from '../../bdev/bdev.ts'
import { judge, type LiveConfig, liveValues, type Retention, retentionOf, type Value } from './rules.ts'

export interface OpenCache {
  readonly retention: Retention
  /** Undefined when nothing is kept back. */
  readonly heldWrites: HeldWrites | undefined
}

/** `path`: of the image. */
export function openCacheOf(live: LiveConfig, path: string): OpenCache {
  const values = liveValues(live)
  // A cache mode has no say here.
  const judgement = judge('qpair', 'writeback', values)
  const retention = retentionOf(judgement)
  if (retention === 'nothing') return { retention, heldWrites: undefined }
  const by = `RBD's cache, which is on by ${byOf(values.rbd_cache)}`
  return {
    retention,
    heldWrites: { bytesMax: judgement.lossBytesMax, by, remedy: remedyOf(values.rbd_cache, path) },
  }
}

const isStored = ({ kind }: Value): boolean => kind === 'pool' || kind === 'image'

const byOf = (cache: Value): string => (isStored(cache) ? `"${cache.from}"` : 'the option rbd_cache')

function remedyOf(cache: Value, path: string): string {
  // The image's own setting is stronger than its pool's.
  if (isStored(cache))
    return `switch it off (rbd config image set ${path} rbd_cache false) and open the image again`
  return 'open the image without it (--config-param rbd_cache=false for its cluster, or no rbd_cache in its own options)'
}
