/** Volumes from libvirt's documents: virsh's `vol-create`. */
import { z } from 'zod'
import { RpcError } from '../../core/errors.ts'
import { parseVolume, type VolumeDocument } from '../../libvirt/volume-xml.ts'
import { method } from '../../rpc/method.ts'
import { createVolume } from '../operations/create.ts'
import type { CreateVolume } from '../pool.ts'
import type { Pool } from '../storage-pool.ts'
import { poolName, type VolumeContext } from './params.ts'

export const volumeCreateXml = method({
  name: 'volume_create_xml',
  summary: 'Makes a volume of this libvirt document. One that is to be allocated whole is a job.',
  params: z.object({
    pool: poolName,
    xml: z
      .string()
      .min(1)
      .describe("The volume's libvirt document; on the command line the file that has it, - for stdin"),
  }),
  result: z.object({
    name: z.string(),
    job_id: z.int().optional().describe('When it is not done yet: see job_get'),
  }),
  errors: {
    ENOENT: 'there is no pool of that name',
    EINVAL: 'the document is not one of a volume, or the pool is not active',
    EEXIST: 'there is a volume of that name',
    EBUSY: 'the backing volume is being deleted or overwritten',
    ENOSPC: 'the pool has not that much room',
    ENOTSUP: 'the pool cannot make volumes, or none of that format',
  },
  concurrent: true,
  cli: {
    positional: ['pool', 'xml'],
    files: ['xml'],
    job: ({ job_id }) => job_id,
    text: ({ name }) => `Vol ${name} created\n`,
  },
  async run({ pool, xml }, { volumes, pools }: VolumeContext) {
    const active = pools.active(pool)
    const request = requestOf(parseVolume(xml, active.document.type), active)
    return { name: request.name, ...(await createVolume(volumes, pool, request)) }
  },
})

/**
 * As libvirt reads it: without an allocation a raw volume has all of its blocks from the start. One in between is thin
 * here, since what is not allocated comes when it is written.
 */
export function requestOf(
  document: VolumeDocument,
  { document: { type } }: Pick<Pool, 'document'>,
): CreateVolume {
  const { name, capacityBytes, allocationBytes = Number.POSITIVE_INFINITY, target, backingStore } = document
  if (capacityBytes === undefined) {
    throw new RpcError(
      'EINVAL',
      `the document of volume ${name} says no capacity, and its backing store none either`,
    )
  }
  if (target.encryption !== undefined) {
    throw new RpcError(
      'ENOTSUP',
      `volume ${name} is to be encrypted with ${target.encryption.format}: that is not done here`,
    )
  }
  // Partitions have formats of their own; what is in one is its user's.
  const format = type === 'disk' ? 'raw' : (target.format ?? 'raw')
  const isWhole = format === 'raw' && backingStore === undefined && allocationBytes >= capacityBytes
  return {
    ...{ name, format, capacityBytes, features: featuresOf(document) },
    preallocation: isWhole ? 'full' : 'off',
    backing: backingStore && { path: backingStore.path, format: backingStore.format },
    permissions: target.permissions,
  }
}

function featuresOf({ target }: VolumeDocument): Record<string, string> {
  const { compat, clusterSizeBytes, lazyRefcounts } = target
  return {
    ...(compat === undefined ? {} : { compat }),
    ...(clusterSizeBytes === undefined ? {} : { cluster_size: String(clusterSizeBytes) }),
    ...(lazyRefcounts === undefined ? {} : { lazy_refcounts: lazyRefcounts ? 'on' : 'off' }),
  }
}
