/** Data into volumes and out of them. */
import { randomUUID } from 'node:crypto'
import { z } from 'zod'
import { jobStarted } from '../../rpc/job-methods.ts'
import { method } from '../../rpc/method.ts'
import { importVolume } from '../operations/import.ts'
import { saveVolume } from '../operations/save.ts'
import {
  group,
  identity,
  inPool,
  mode,
  mount,
  owner,
  permissionsOf,
  poolName,
  resume,
  type VolumeContext,
  volumeName,
} from './params.ts'

const job = ({ job_id }: { job_id: number }): number => job_id

const volumeImport = method({
  name: 'volume_import',
  summary:
    'Makes a volume of a file, another volume, an NBD export or what a web server has. It goes on after an interruption.',
  params: z.object({
    pool: poolName,
    name: z.string().describe('The name of the volume'),
    source: z
      .string()
      .min(1)
      .describe("A path on the daemon's machine, a volume (POOL/NAME), nbd://…, nbd+unix:///…, http(s)://…"),
    format: z
      .enum(['raw', 'qcow2', 'iso'])
      .optional()
      .describe("What it is made; the source's own when absent, raw for what has none"),
    mode,
    owner,
    group,
    resume,
    identity: identity.describe('Which volume it was making. The daemon says so itself'),
    mount,
  }),
  result: jobStarted,
  errors: {
    ENOENT: 'there is no such pool, or no such source',
    EINVAL: 'the name or the source is none, or the pool is not active',
    EEXIST: 'there is a volume of that name',
    EBUSY: 'somebody has the source open',
    ENOTSUP: 'a format that is not read or made here',
    EIO: 'the server of the source does not answer, or not as it should',
  },
  saves: true,
  concurrent: true,
  cli: { positional: ['pool', 'name', 'source'], job },
  run(params, { volumes }: VolumeContext) {
    // What cannot be hidden until it is whole is known by it to be no other's.
    const made = params.identity ?? randomUUID()
    return importVolume(volumes, {
      ...params,
      format: params.format,
      permissions: permissionsOf(params),
      isResumed: params.resume,
      identity: made,
      resume: { method: 'volume_import', params: { ...params, resume: true, identity: made } },
    })
  },
})

const volumeSave = method({
  name: 'volume_save',
  summary:
    'Copies a volume that nobody uses to a file, as it is or in another format. It goes on after an interruption.',
  params: z.object({
    volume: volumeName,
    file: z.string().min(1).describe("The path of the new file, on the daemon's machine"),
    pool: inPool,
    format: z.enum(['raw', 'qcow2']).optional().describe("The volume's own when absent"),
    resume,
    identity,
    mount,
  }),
  result: jobStarted,
  errors: {
    ENOENT: 'there is no such volume, or no such directory',
    EINVAL: 'several pools have a volume of that name, or the path is relative',
    EEXIST: 'the file exists',
    EBUSY: 'somebody has the volume open',
  },
  saves: true,
  concurrent: true,
  cli: { positional: ['volume', 'file'], job },
  run(params, { volumes }: VolumeContext) {
    const { volume, file, pool, format, resume: isResumed, ...rest } = params
    const call = { method: 'volume_save', params: { ...params, resume: true } }
    const found = volumes.findAgain(volume, pool, { isResumed, identity: rest.identity })
    return saveVolume(volumes, found, file, format, { resume: call, isResumed, mount: rest.mount })
  },
})

export const transferMethods = [volumeImport, volumeSave]
