/** Methods of volumes: making, looking, changing. */
import { z } from 'zod'
import { RpcError } from '../../core/errors.ts'
import { formatSize } from '../../core/format-size.ts'
import { jobStarted } from '../../rpc/job-methods.ts'
import { method } from '../../rpc/method.ts'
import { done } from '../../rpc/params.ts'
import { deleteVolume, renameVolume, resizeVolume } from '../operations/change.ts'
import { cloneVolume } from '../operations/clone.ts'
import { createVolume } from '../operations/create.ts'
import { wipeVolume } from '../operations/wipe.ts'
import { PREALLOCATIONS, WIPE_ALGORITHMS } from '../pool.ts'
import {
  bytesOf,
  followLink,
  group,
  identity,
  inPool,
  mode,
  owner,
  permissionsOf,
  poolName,
  resume,
  size,
  type VolumeContext,
  volumeName,
} from './params.ts'
import {
  type VolumeRow,
  volumeColumns,
  volumeDetails,
  volumeRow,
  volumeRowOf,
  volumeText,
} from './volume-row.ts'
import { volumeCreateXml } from './volume-xml.ts'

export const NO_VOLUME = {
  ENOENT: 'there is no volume of that name in an active pool',
  EINVAL: 'several pools have a volume of that name',
} as const
const CANNOT = {
  EBUSY: 'somebody has it open, or is changing it',
  ENOTSUP: 'volumes of that pool cannot do that',
} as const
const NEW_NAME = { EEXIST: 'there is a volume of the new name' } as const
const VOLUME = { positional: ['volume'] } as const

const volumeCreate = method({
  name: 'volume_create',
  summary: 'Makes a volume. It is thin unless preallocation is asked for, which is a job.',
  params: z.object({
    pool: poolName,
    name: z.string().describe('Its name'),
    capacity: size
      .optional()
      .describe('Bytes, or a number with K, M, G or T; by default that of the backing volume'),
    format: z.string().default('raw').describe('raw or qcow2, where the pool has a choice'),
    preallocation: z
      .enum(PREALLOCATIONS)
      .default('off')
      .describe('full reserves all of it now, metadata only the tables of a qcow2 volume'),
    backing: z
      .string()
      .optional()
      .describe('The volume beneath it, which must not change any more: a name, POOL/NAME or a path'),
    features: z
      .record(z.string(), z.string())
      .default({})
      .describe('Of the format: cluster_size, refcount_bits, lazy_refcounts, extended_l2, compat of qcow2'),
    mode,
    owner,
    group,
  }),
  result: z.object({
    name: z.string(),
    job_id: z.int().optional().describe('When it is not done yet: see job_get'),
  }),
  errors: {
    ENOENT: 'there is no pool of that name, or no backing volume',
    EINVAL: 'the name, the size or a feature is none, or the pool is not active',
    EEXIST: NEW_NAME.EEXIST,
    EBUSY: 'the backing volume is being deleted or overwritten',
    ENOSPC: 'the pool has not that much room',
    ENOTSUP: 'the pool cannot make volumes, or none of that format',
  },
  concurrent: true,
  cli: {
    positional: ['pool', 'name', 'capacity'],
    flags: { backing: ['backing-vol'] },
    job: ({ job_id }) => job_id,
    text: ({ name }) => `Vol ${name} created\n`,
  },
  async run({ pool, name, format, preallocation, features, ...rest }, { volumes }: VolumeContext) {
    const backing = rest.backing === undefined ? undefined : volumes.find(rest.backing)
    const capacity = rest.capacity ?? backing?.volume.capacityBytes
    if (capacity === undefined) {
      throw new RpcError('EINVAL', `volume ${name} needs a capacity: say how big it is, such as 10G`)
    }
    const started = await createVolume(volumes, pool, {
      ...{ name, format, preallocation, features },
      capacityBytes: bytesOf(capacity, 'the capacity'),
      backing: backing && { path: backing.volume.path, format: backing.volume.format },
      permissions: permissionsOf(rest),
    })
    return { name, ...started }
  },
})

const volumeDelete = method({
  name: 'volume_delete',
  summary: 'Deletes a volume and what it holds. It goes on after an interruption.',
  params: z.object({
    volume: volumeName,
    pool: inPool,
    delete_snapshots: z.boolean().default(false).describe('Its snapshots, too'),
    resume,
    identity,
  }),
  result: z.union([done, jobStarted.describe('When it takes longer than a few seconds')]),
  errors: { ...NO_VOLUME, ...CANNOT },
  saves: true,
  concurrent: true,
  cli: {
    ...VOLUME,
    job: result => (result === true ? undefined : result.job_id),
    text: (result, { volume }) =>
      result === true
        ? `Vol ${volume} deleted\n`
        : `Vol ${volume} is being deleted, by job ${result.job_id}\n`,
  },
  async run(params, { volumes }: VolumeContext) {
    const { volume, pool, delete_snapshots: withSnapshots, resume: isResumed, identity: which } = params
    if (isResumed && pool !== undefined && volumes.hasGone(volume, pool)) return true as const
    const call = { method: 'volume_delete', params: { ...params, resume: true } }
    const found = volumes.findAgain(volume, pool, { isResumed, identity: which })
    const { job_id } = await deleteVolume(volumes, found, { withSnapshots, call, isResumed })
    return job_id === undefined ? (true as const) : { job_id }
  },
})

const volumeList = method({
  name: 'volume_list',
  summary: 'Lists the volumes of a pool, or of all that are active.',
  params: z.object({
    pool: poolName.optional(),
    iso: z.boolean().default(false).describe('Only CD images'),
    refresh: z.boolean().default(true).describe('Look again before: false answers what the last look found'),
  }),
  // virsh's spelling; it is the case anyway.
  ignored: ['details'],
  result: z.array(volumeRow),
  errors: { ENOENT: 'there is no pool of that name', EINVAL: 'the pool is not active' },
  cli: { positional: ['pool'], columns: volumeColumns, flags: { details: { on: 'details' } } },
  async run({ pool, iso, refresh }, { pools }: VolumeContext) {
    const wanted = pool === undefined ? pools.list().filter(({ isActive }) => isActive) : [pools.active(pool)]
    const rows: VolumeRow[] = []
    for (const each of wanted) {
      // Of several, one that does not answer has what it had.
      if (refresh && (pool !== undefined || (await each.reach.answers()))) await each.lookAgain()
      for (const volume of each.contents?.volumes ?? []) {
        if (!iso || volume.format === 'iso') rows.push(volumeRowOf(each, volume))
      }
    }
    return rows
  },
})

const volumeInfo = method({
  name: 'volume_info',
  summary: 'Tells of one volume: sizes, what is beneath it, who uses it.',
  params: z.object({ volume: volumeName, pool: inPool }),
  result: volumeDetails,
  errors: NO_VOLUME,
  concurrent: true,
  cli: { ...VOLUME, text: volumeText },
  async run({ volume, pool }, { volumes }: VolumeContext) {
    await volumes.find(volume, pool).pool.lookAgain()
    const found = volumes.find(volume, pool)
    const facts = await volumes.describe(found)
    const { bdev, owners, programs, others, dependents } = await volumes.useAnywhere(found)
    const snapshots = await found.pool.backend.volumes.snapshots?.list(facts)
    return {
      ...volumeRowOf(found.pool, facts),
      ...(bdev === undefined ? {} : { bdev: bdev.name }),
      users: [owners, ...programs, ...others].filter(each => each !== '').join(', '),
      dependents: dependents.map(({ name }) => name),
      snapshots: snapshots?.length ?? 0,
    }
  },
})

const volumeDumpxml = method({
  name: 'volume_dumpxml',
  summary: 'Prints the libvirt document of a volume.',
  params: z.object({ volume: volumeName, pool: inPool }),
  result: z.string(),
  errors: NO_VOLUME,
  concurrent: true,
  cli: VOLUME,
  run: ({ volume, pool }, { volumes }: VolumeContext) => volumes.xmlOf(volumes.find(volume, pool)),
})

const volumeResize = method({
  name: 'volume_resize',
  summary: 'Changes the size of a volume. Those who have it open see that it has grown at once.',
  params: z.object({
    volume: volumeName,
    capacity: size.describe('Its new size: bytes, or a number with K, M, G or T'),
    pool: inPool,
    delta: z.boolean().default(false).describe('The size is what comes on top of what it has'),
    shrink: z.boolean().default(false).describe('It may become smaller: what lies beyond is lost'),
    allocate: z.boolean().default(false).describe('Reserve what it grows by'),
    follow_link: followLink,
  }),
  result: z.object({
    capacity: z.int().describe('In bytes'),
    job_id: z
      .int()
      .optional()
      .describe('When it takes longer than a few seconds, and has that size then: see job_get'),
  }),
  errors: { ...NO_VOLUME, ...CANNOT, ENOSPC: 'the pool has not that much room' },
  concurrent: true,
  cli: {
    positional: ['volume', 'capacity'],
    job: ({ job_id }) => job_id,
    text: ({ capacity, job_id }, { volume }) =>
      job_id === undefined
        ? `Vol ${volume} has ${formatSize(capacity)} now\n`
        : `Vol ${volume} will have ${formatSize(capacity)}, by job ${job_id}\n`,
  },
  async run({ volume, capacity, pool, delta, ...options }, { volumes }: VolumeContext) {
    const { shrink, allocate, follow_link } = options
    const found = volumes.find(volume, pool)
    const given = bytesOf(capacity, 'the capacity')
    const before = delta ? ((await volumes.describe(found)).capacityBytes ?? 0) : 0
    const wanted = { shrink, allocate, followLink: follow_link }
    const { job_id } = await resizeVolume(volumes, found, before + given, wanted)
    if (job_id !== undefined) return { capacity: before + given, job_id }
    // Extents, sectors and blocks are larger than bytes.
    const { capacityBytes } = await volumes.describe(volumes.find(found.volume.name, found.pool.name))
    return { capacity: capacityBytes ?? before + given }
  },
})

const volumeRename = method({
  name: 'volume_rename',
  summary: 'Gives a volume that nobody uses another name.',
  params: z.object({ volume: volumeName, name: z.string().describe('Its new name'), pool: inPool }),
  result: done,
  errors: { ...NO_VOLUME, ...CANNOT, ...NEW_NAME },
  concurrent: true,
  cli: {
    positional: ['volume', 'name'],
    text: (_, { volume, name }) => `Vol ${volume} is called ${name} now\n`,
  },
  async run({ volume, name, pool }, { volumes }: VolumeContext) {
    await renameVolume(volumes, volumes.find(volume, pool), name)
    return true as const
  },
})

const job = { job: ({ job_id }: { job_id: number }) => job_id } as const

const volumeClone = method({
  name: 'volume_clone',
  summary:
    'Copies a volume within its pool: at once where its storage shares blocks between copies. It is begun again after an ' +
    'interruption.',
  params: z.object({
    volume: volumeName,
    name: z.string().describe('The name of the copy'),
    pool: inPool,
    resume,
    identity,
  }),
  result: jobStarted,
  errors: { ...NO_VOLUME, ...CANNOT, ...NEW_NAME },
  saves: true,
  concurrent: true,
  cli: { positional: ['volume', 'name'], ...job },
  run(params, { volumes }: VolumeContext) {
    const { volume, name, pool, resume: isResumed, ...rest } = params
    const call = { method: 'volume_clone', params: { ...params, resume: true } }
    const found = volumes.findAgain(volume, pool, { isResumed, identity: rest.identity })
    return cloneVolume(volumes, found, name, { call, isResumed })
  },
})

const volumeWipe = method({
  name: 'volume_wipe',
  summary: 'Overwrites all that a volume holds. Snapshots and clones that share blocks with it keep theirs.',
  params: z.object({
    volume: volumeName,
    pool: inPool,
    algorithm: z
      .string()
      .default('zero')
      .describe("zero, random, or trim, which gives the blocks back; not libvirt's passes of scrub"),
    follow_link: followLink,
    resume,
    identity,
  }),
  result: jobStarted,
  errors: { ...NO_VOLUME, ...CANNOT },
  saves: true,
  concurrent: true,
  cli: { ...VOLUME, ...job },
  run(params, { volumes }: VolumeContext) {
    const { volume, pool, algorithm, follow_link, resume: isResumed, ...rest } = params
    const known = WIPE_ALGORITHMS.find(each => each === algorithm)
    if (known === undefined) {
      throw new RpcError(
        'ENOTSUP',
        `there is no wiping by ${algorithm}: ${WIPE_ALGORITHMS.join(', ')} there are. The passes of nnsa, dod and the like ` +
          'were for the disks of their time; one of random or zero does the same today',
      )
    }
    const options = { algorithm: known, followLink: follow_link }
    const found = volumes.findAgain(volume, pool, { isResumed, identity: rest.identity })
    return wipeVolume(volumes, found, options, { method: 'volume_wipe', params: { ...params, resume: true } })
  },
})

export const volumeMethods = [
  volumeCreate,
  volumeCreateXml,
  volumeDelete,
  volumeList,
  volumeInfo,
  volumeDumpxml,
  volumeResize,
  volumeRename,
  volumeClone,
  volumeWipe,
]
