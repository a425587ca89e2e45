/** Snapshots and clones of images that are open. */
import { z } from 'zod'
import { formatSize } from '../../core/format-size.ts'
import { jobStarted, type NeedsJobs } from '../../rpc/job-methods.ts'
import { method } from '../../rpc/method.ts'
import { done } from '../../rpc/params.ts'
import { RbdSnapshots, type SnapshotAction } from '../snapshots.ts'
import { deviceName, type RbdContext } from './params.ts'

const ERRORS = {
  ENODEV: 'no RBD device has that name',
  ENOENT: 'the image has no snapshot of that name',
  EROFS: 'the device is read only',
  EIO: 'Ceph cannot do it for another reason, which is named',
} as const

/** librbd counts objects, and cannot be stopped. */
const LONG = { unit: 'objects', isCancellable: false } as const

const snapshot = z.string().min(1).describe('The snapshot')

function action<const Name extends string>(
  name: Name,
  verb: SnapshotAction,
  summary: string,
  errors: object,
) {
  return method({
    name,
    summary,
    params: z.object({ name: deviceName, snapshot }),
    result: done,
    errors: { ...ERRORS, ...errors },
    concurrent: true,
    cli: { positional: ['name', 'snapshot'], commands: [`rbd snapshot-${verb}`] },
    async run(params, { rbd }: RbdContext) {
      await new RbdSnapshots(rbd).act(verb, params.name, params.snapshot)
      return true as const
    },
  })
}

export const bdevRbdSnapshotCreate = action(
  'bdev_rbd_snapshot_create',
  'create',
  'Makes a snapshot of an image, while it is in use.',
  { EEXIST: 'the image has a snapshot of that name' },
)

export const bdevRbdSnapshotDelete = action(
  'bdev_rbd_snapshot_delete',
  'delete',
  'Deletes a snapshot of an image.',
  { EBUSY: 'it is protected, has clones, or is open as a device' },
)

export const bdevRbdSnapshotProtect = action(
  'bdev_rbd_snapshot_protect',
  'protect',
  'Protects a snapshot from being deleted: clones of older clusters need that.',
  { EBUSY: 'it is protected already' },
)

export const bdevRbdSnapshotUnprotect = action(
  'bdev_rbd_snapshot_unprotect',
  'unprotect',
  'Lets a snapshot be deleted again.',
  { EBUSY: 'it has clones', EINVAL: 'it is not protected' },
)

export const bdevRbdSnapshotList = method({
  name: 'bdev_rbd_snapshot_list',
  summary: 'Lists the snapshots of an image, the oldest first.',
  params: z.object({ name: deviceName }),
  result: z.array(
    z.object({
      name: z.string(),
      id: z.int(),
      size: z.int().describe('In bytes'),
      protected: z.boolean(),
      created: z.string().describe('As in ISO 8601'),
    }),
  ),
  errors: { ENODEV: ERRORS.ENODEV },
  cli: {
    positional: ['name'],
    columns: ['name', 'id', { title: 'SIZE', value: row => formatSize(row.size) }, 'protected', 'created'],
    commands: ['rbd snapshot-list'],
  },
  run: async ({ name }, { rbd }: RbdContext) =>
    (await new RbdSnapshots(rbd).list(name)).map(each => ({
      name: each.name,
      id: each.id,
      size: each.sizeBytes,
      protected: each.isProtected,
      created: each.created.toISOString(),
    })),
})

export const bdevRbdSnapshotRollback = method({
  name: 'bdev_rbd_snapshot_rollback',
  summary: 'Makes an image what it was when the snapshot was made. Nobody may have the device in use.',
  params: z.object({
    name: deviceName,
    snapshot,
    force: z.boolean().default(false).describe('Also while other clients of Ceph have the image open'),
  }),
  result: jobStarted,
  errors: {
    ...ERRORS,
    EBUSY: 'somebody has the device or, elsewhere, the image, or it is being rolled back',
  },
  saves: true,
  concurrent: true,
  cli: {
    positional: ['name', 'snapshot'],
    commands: ['rbd snapshot-rollback'],
    job: ({ job_id }) => job_id,
  },
  async run(params, { rbd, jobs }: RbdContext & NeedsJobs) {
    const work = await new RbdSnapshots(rbd).rollBack(params.name, params.snapshot, params)
    // One that was cut short would leave an image that is partly what it was; a daemon that was killed counts as a client
    // for a while.
    const resume = { method: 'bdev_rbd_snapshot_rollback', params: { ...params, force: true } }
    return jobs.start({ kind: 'bdev_rbd_snapshot_rollback', name: params.name, ...LONG, resume }, work)
  },
})

export const bdevRbdClone = method({
  name: 'bdev_rbd_clone',
  summary: 'Makes a new image from a snapshot, which shares with it what is not written to.',
  params: z.object({
    name: deviceName,
    snapshot,
    clone_name: z.string().min(1).describe('The new image'),
    clone_pool: z.string().min(1).optional().describe('Its pool; the same by default'),
  }),
  result: done,
  errors: { ...ERRORS, EEXIST: 'there is an image of that name', EINVAL: 'the snapshot has to be protected' },
  concurrent: true,
  cli: { positional: ['name', 'snapshot', 'clone_name'], commands: ['rbd clone'] },
  async run({ name, snapshot: of, clone_name, clone_pool }, { rbd }: RbdContext) {
    await new RbdSnapshots(rbd).clone(name, { snapshot: of, image: clone_name, pool: clone_pool })
    return true as const
  },
})

export const bdevRbdFlatten = method({
  name: 'bdev_rbd_flatten',
  summary:
    'Copies to a clone what it has from its parent, so that it needs it no more. It may be in use meanwhile.',
  params: z.object({ name: deviceName }),
  result: jobStarted,
  errors: { ...ERRORS, EINVAL: 'it is no clone', EBUSY: 'it is being flattened already' },
  saves: true,
  concurrent: true,
  cli: { positional: ['name'], commands: ['rbd flatten'], job: ({ job_id }) => job_id },
  run(params, { rbd, jobs }: RbdContext & NeedsJobs) {
    const work = new RbdSnapshots(rbd).flatten(params.name)
    const resume = { method: 'bdev_rbd_flatten', params }
    return jobs.start({ kind: 'bdev_rbd_flatten', name: params.name, ...LONG, resume }, work)
  },
})
