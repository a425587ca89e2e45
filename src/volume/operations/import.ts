/** Data into volumes: a file, another volume, an NBD export or what a web server has becomes a volume. */
import { RpcError } from '../../core/errors.ts'
import type { Permissions } from '../../libvirt/pool-xml.ts'
import { FileVolumes } from '../file-volumes.ts'
import { readHead } from '../formats/probe.ts'
import type { VolumeFormat } from '../pool.ts'
import { type Pool, volumeIn } from '../storage-pool.ts'
import { fillFile } from '../transfer/fill-file.ts'
import { fillVolume } from '../transfer/fill-volume.ts'
import { refusePacked } from '../transfer/packed.ts'
import { formatFor, isMadeBy, keeping, type MountedCall, onItsMount } from '../transfer/plan.ts'
import { sourceOf } from '../transfer/source.ts'
import { refuseInUse } from '../use.ts'
import type { Volumes } from '../volumes.ts'
import { type JobStarted, startDone, startJob } from './job.ts'

export interface ImportVolume extends MountedCall {
  readonly pool: string
  readonly name: string
  readonly source: string
  /** The source's own when absent; a disk's content becomes raw. */
  readonly format: VolumeFormat | undefined
  readonly permissions: Permissions | undefined
  /** Of what it makes, so that what it left is known to be its own. */
  readonly identity: string
}

export async function importVolume(volumes: Volumes, options: ImportVolume): Promise<JobStarted> {
  const { halfFilled } = volumes
  if (options.isResumed) halfFilled.add(options.identity)
  const started = await startImport(volumes, options)
  halfFilled.delete(options.identity)
  return started
}

async function startImport(volumes: Volumes, options: ImportVolume): Promise<JobStarted> {
  const { name, permissions, identity, isResumed } = options
  if (isResumed) volumes.awaitPool(options.pool)
  const pool = volumes.pools.active(options.pool)
  const files = pool.backend.volumes instanceof FileVolumes ? pool.backend.volumes : undefined
  const there = isResumed ? volumeIn(pool, name) : undefined
  const resume = files === undefined ? options.resume : await onItsMount(files.directory, options)
  const job = { kind: 'volume_import', name, takes: [name], resume }
  const isWhole =
    there !== undefined &&
    (files === undefined ? pool.backend.volumes.canHide : !(await files.hasPartial(name)))
  if (isWhole === true) return startDone(volumes, pool, job)
  if (there === undefined || !isMadeBy(options, there)) volumes.claims.refuseName(pool, name)
  else refuseInUse(there, 'imported', await volumes.useOfMedium(there), `${pool.name}/${name}`)
  const source = await sourceOf(options.source, volumes)
  const format = formatFor(name, source, options.format ?? (files === undefined ? 'raw' : undefined))
  if (source.kind === 'file' && source.format === 'raw' && options.format === undefined) {
    refusePacked(source.text, await readHead(source.path))
  }
  const plan = { source, name, permissions, format, isResumed, identity }
  if (files !== undefined) {
    return startJob(volumes, pool, { ...job, ...keeping(source, volumes) }, progress =>
      fillFile(files, plan, volumes.scratch, progress),
    )
  }
  if (format !== 'raw') throw onlyRaw(pool, name, format)
  if (source.kind === 'http') throw notFromTheWeb(pool, source.text)
  return startJob(volumes, pool, { ...job, ...keeping(source, volumes) }, progress =>
    fillVolume(pool, plan, volumes.scratch, progress),
  )
}

function onlyRaw({ name: pool, document }: Pool, name: string, format: VolumeFormat | undefined): RpcError {
  return new RpcError(
    'EINVAL',
    `pool ${pool} is of type ${document.type}, whose volumes are raw: ${name} cannot be ${format}`,
  )
}

function notFromTheWeb({ name, document }: Pool, url: string): RpcError {
  return new RpcError(
    'ENOTSUP',
    `${url} cannot be read into pool ${name} of type ${document.type}: ` +
      'import it into a directory pool first, and that volume into this one',
  )
}
