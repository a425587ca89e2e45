/** Snapshots of volumes. */
import { z } from 'zod'
import { formatSize } from '../../core/format-size.ts'
import { jobStarted } from '../../rpc/job-methods.ts'
import { method } from '../../rpc/method.ts'
import { done } from '../../rpc/params.ts'
import { changeSnapshots, listSnapshots, revertToSnapshot } from '../operations/snapshots.ts'
import { identity, inPool, resume, type VolumeContext, volumeName } from './params.ts'

const ERRORS = {
  ENOENT: 'there is no volume, or no snapshot, of that name',
  EINVAL: 'several pools have a volume of that name',
  ENOTSUP: 'the storage of the pool has no snapshots',
  EBUSY: 'somebody has the volume open, or is changing it',
} as const

function action<const Name extends string>(
  name: Name,
  verb: 'create' | 'delete',
  summary: string,
  errors: object,
) {
  return method({
    name,
    summary,
    params: z.object({ volume: volumeName, snapshot: z.string().describe('The snapshot'), pool: inPool }),
    result: done,
    errors: { ...ERRORS, ...errors },
    concurrent: true,
    cli: {
      positional: ['volume', 'snapshot'],
      text: (_, { volume, snapshot }) => `Snapshot ${snapshot} of vol ${volume} ${verb}d\n`,
    },
    async run({ volume, snapshot, pool }, { volumes }: VolumeContext) {
      await changeSnapshots(volumes, volumes.find(volume, pool), verb, snapshot)
      return true as const
    },
  })
}

const volumeSnapshotList = method({
  name: 'volume_snapshot_list',
  summary: 'Lists the snapshots of a volume, the oldest first.',
  params: z.object({ volume: volumeName, pool: inPool }),
  result: z.array(
    z.object({
      name: z.string(),
      created: z.string().describe('As in ISO 8601'),
      size: z.int().describe("The volume's capacity then, in bytes"),
    }),
  ),
  errors: ERRORS,
  cli: {
    positional: ['volume'],
    columns: [
      { title: 'Name', value: row => row.name },
      { title: 'Creation Time', value: row => row.created },
      { title: 'Capacity', value: row => formatSize(row.size) },
    ],
  },
  run: async ({ volume, pool }, { volumes }: VolumeContext) =>
    (await listSnapshots(volumes.find(volume, pool))).map(({ name, created, sizeBytes }) => ({
      ...{ name, created: created.toISOString(), size: sizeBytes },
    })),
})

const volumeSnapshotRevert = method({
  name: 'volume_snapshot_revert',
  summary:
    'Makes a volume that nobody uses what it was when the snapshot was made. It goes on after an interruption.',
  params: z.object({
    volume: volumeName,
    snapshot: z.string().describe('The snapshot'),
    pool: inPool,
    resume,
    identity,
  }),
  result: jobStarted,
  errors: ERRORS,
  saves: true,
  concurrent: true,
  cli: { positional: ['volume', 'snapshot'], job: ({ job_id }) => job_id },
  run(params, { volumes }: VolumeContext) {
    const { volume, snapshot, pool, resume: isResumed, ...rest } = params
    const call = { method: 'volume_snapshot_revert', params: { ...params, resume: true } }
    const found = volumes.findAgain(volume, pool, { isResumed, identity: rest.identity })
    return revertToSnapshot(volumes, found, snapshot, { call, isResumed })
  },
})

export const snapshotMethods = [
  action('volume_snapshot_create', 'create', 'Makes a snapshot of a volume.', {
    EEXIST: 'the volume has a snapshot of that name',
  }),
  volumeSnapshotList,
  volumeSnapshotRevert,
  action('volume_snapshot_delete', 'delete', 'Deletes a snapshot of a volume.', {}),
]
