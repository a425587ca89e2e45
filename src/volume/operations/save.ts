/** Data out of volumes: the volume as a file that is not a volume. */
import { readdir } from 'node:fs/promises'
import { basename, dirname, isAbsolute } from 'node:path'
import { RpcError } from '../../core/errors.ts'
import { FileVolumes } from '../file-volumes.ts'
import { type Found, pinned } from '../found.ts'
import type { VolumeFormat } from '../pool.ts'
import { fillFile } from '../transfer/fill-file.ts'
import { formatFor, keeping, type MountedCall, onItsMount } from '../transfer/plan.ts'
import { volumeSource } from '../transfer/source.ts'
import { checkFileName, partialName } from '../volume-name.ts'
import type { Volumes } from '../volumes.ts'
import { type JobStarted, startDone, startJob } from './job.ts'

/** `file`: an absolute path. The volume's own format when none is given. */
export async function saveVolume(
  volumes: Volumes,
  found: Found,
  file: string,
  format: VolumeFormat | undefined,
  call: MountedCall,
): Promise<JobStarted> {
  const { pool, volume } = found
  if (!isAbsolute(file)) {
    throw new RpcError(
      'EINVAL',
      `${file} is relative, and the daemon may be elsewhere: give a path from / on`,
    )
  }
  const name = basename(file)
  checkFileName(name, 'a file')
  const files = new FileVolumes(pool.name, dirname(file), volumes.replay)
  const names = await readdir(files.directory).catch((cause: NodeJS.ErrnoException) => {
    throw new RpcError((cause.code ?? 'EIO') as 'ENOENT', `${file} cannot be written: ${cause.message}`, {
      cause,
    })
  })
  const { isResumed } = call
  const resume = await onItsMount(files.directory, { ...call, resume: pinned(found, call.resume) })
  const job = { kind: 'volume_save', name: volume.name, takes: [], resume }
  if (isResumed && names.includes(name) && !names.includes(partialName(name))) {
    return startDone(volumes, pool, job)
  }
  if (names.includes(name))
    throw new RpcError('EEXIST', `${file} exists already: name another file, or remove it`)
  const source = await volumeSource(found, volumes)
  const plan = {
    ...{ source, name, permissions: undefined, isResumed, identity: '' },
    format: formatFor(name, source, format),
  }
  return startJob(volumes, pool, { ...job, ...keeping(source, volumes) }, progress =>
    fillFile(files, plan, volumes.scratch, progress),
  )
}
