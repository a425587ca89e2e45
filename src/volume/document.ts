/** The libvirt document of a volume. */
import { imageInfo } from '../bdev/drivers/qcow2/image.ts'
import { formatVolume, type VolumeTarget } from '../libvirt/volume-xml.ts'
import type { Found } from './found.ts'
import type { VolumeFacts } from './pool.ts'

/** `facts`: with those that only opening it tells. */
export async function documentOf(found: Found, facts: VolumeFacts): Promise<string> {
  const { name, key, path, type, format, permissions, backing } = facts
  return formatVolume({
    ...{ type, name, key },
    target: { path, format, permissions, ...(await imageFeatures(found)) },
    capacityBytes: facts.capacityBytes,
    allocationBytes: facts.allocationBytes,
    backingStore: backing && { path: backing.path, format: backing.format },
  })
}

/** What a qcow2 file says of itself; nothing when it cannot be read, or something else stands in it. */
async function imageFeatures({ pool, volume: { format, path } }: Found): Promise<Partial<VolumeTarget>> {
  if (format !== 'qcow2') return {}
  return pool.ask(() =>
    imageInfo(path).then(
      ({ version, clusterSize, lazyRefcounts }) => ({
        ...{ compat: version === 2 ? '0.10' : '1.1', clusterSizeBytes: clusterSize, lazyRefcounts },
      }),
      () => ({}),
    ),
  )
}
