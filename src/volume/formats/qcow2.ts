/** qcow2 images of pools: what is asked for by names, as `qemu-img create -o` has them. */
import { type CreateOptions, createImage, resizeImage } from '../../bdev/drivers/qcow2/image.ts'
import { RpcError } from '../../core/errors.ts'
import { formatSize } from '../../core/format-size.ts'
import { parseSize } from '../../core/parse-size.ts'
import type { Call } from '../nvme-export.ts'
import type { CreateVolume, Progress, ResizeOptions, VolumeFacts } from '../pool.ts'

/** What is needed to make an image: the rest has its default. */
export type ImageRequest = Pick<CreateVolume, 'name' | 'format' | 'capacityBytes'> & Partial<CreateVolume>

export async function createQcow2(path: string, request: ImageRequest, progress: Progress): Promise<void> {
  const { name, capacityBytes, preallocation = 'off', backing, features = {} } = request
  if (backing !== undefined && preallocation !== 'off') {
    throw new RpcError(
      'EINVAL',
      `${name} has a backing volume, ${backing.path}, so that there is nothing to preallocate: leave ${preallocation} out`,
    )
  }
  await createImage(
    path,
    {
      sizeBytes: capacityBytes,
      // Blocks are reserved, not written: the same room, at once.
      preallocation: preallocation === 'full' ? 'falloc' : preallocation,
      ...(backing === undefined
        ? {}
        : { backingFile: backing.path, backingFormat: backing.format === 'qcow2' ? 'qcow2' : 'raw' }),
      ...featuresOf(name, features),
    },
    { onProgress: progress.report, signal: progress.signal },
  )
}

const MIB = 1 << 20

/** Another size; through the bdev that has it open, if one does. */
export async function resizeQcow2(
  { name, path }: VolumeFacts,
  capacityBytes: number,
  { openBy, shrink, allocate }: ResizeOptions,
  call: Call,
): Promise<void> {
  if (allocate) {
    throw new RpcError(
      'ENOTSUP',
      `volume ${name} is qcow2, whose new clusters are not reserved: leave --allocate out`,
    )
  }
  const writer = openBy.find(({ driver, readOnly }) => driver === 'qcow2' && !readOnly)
  if (writer === undefined) {
    await resizeImage(path, capacityBytes, { shrink })
    return
  }
  if (capacityBytes % MIB !== 0) {
    throw new RpcError(
      'EINVAL',
      `volume ${name} is open and grows by whole MiB then, not to ${capacityBytes} bytes: ` +
        `take ${formatSize(Math.ceil(capacityBytes / MIB) * MIB)}`,
    )
  }
  await call('bdev_qcow2_resize', { name: writer.name, new_size: capacityBytes / MIB })
}

/** Throws `RpcError` EINVAL for a feature that is none. */
export function featuresOf(name: string, features: Readonly<Record<string, string>>): CreateOptions {
  return Object.assign({}, ...Object.entries(features).map(([key, value]) => featureOf(name, key, value)))
}

function featureOf(name: string, key: string, value: string): CreateOptions {
  const refuse = (what: string): never => {
    throw new RpcError('EINVAL', `${name} cannot have ${key}=${value}: ${what}`)
  }
  switch (key) {
    case 'cluster_size':
      return { clusterSize: parseSize(value, key) }
    case 'refcount_bits':
      return { refcountBits: Number(value) }
    case 'lazy_refcounts':
      return { lazyRefcounts: isOn(value) ?? refuse('on or off') }
    case 'extended_l2':
      return { extendedL2: isOn(value) ?? refuse('on or off') }
    case 'compat':
      if (value === '0.10' || value === 'v2') return { version: 2 }
      if (value === '1.1' || value === 'v3') return { version: 3 }
      return refuse('0.10 or 1.1')
    case 'compression_type':
      if (value === 'zlib' || value === 'zstd') return { compression: value }
      return refuse('zlib or zstd')
    default:
      return refuse(
        'there are cluster_size, refcount_bits, lazy_refcounts, extended_l2, compat and compression_type',
      )
  }
}

const isOn = (value: string): boolean | undefined =>
  ({ on: true, true: true, off: false, false: false })[value]
