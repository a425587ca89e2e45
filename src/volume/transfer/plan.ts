/**
 * What a copy is to be, settled before it begins.
 *
 *     source                                    target
 *     file, volume  -- its bytes as they are -->  file of a pool, under a hidden name until it is whole
 *     web server    --        the same       -->  the same, or a block device
 *     disk (NBD, qcow2, raw, RBD) -- content -->  raw or qcow2 file, block device, any other volume
 *
 * What fills a file notes how far it is, and goes on from there when the daemon comes back; other targets start over.
 */
import { RpcError } from '../../core/errors.ts'
import { mountOf, readMounts } from '../../core/mounts.ts'
import type { Permissions } from '../../libvirt/pool-xml.ts'
import type { MethodCall } from '../../rpc/config.ts'
import type { VolumeJob } from '../operations/job.ts'
import type { VolumeFacts, VolumeFormat } from '../pool.ts'
import { refuseInUse } from '../use.ts'
import type { Volumes } from '../volumes.ts'
import { identityOf, type TransferSource } from './source.ts'

export interface Plan {
  readonly source: TransferSource
  readonly name: string
  /** Undefined for what a web server has, which only its bytes tell. */
  readonly format: VolumeFormat | undefined
  readonly permissions: Permissions | undefined
  /** It is gone on with: then its server may be starting, too. */
  readonly isResumed: boolean
  /** Of the volume that is made. */
  readonly identity: string
}

/** The format of `Plan`, for what was `given`. Throws `RpcError` ENOTSUP for one that is not read or made here. */
export function formatFor(
  name: string,
  source: TransferSource,
  given: VolumeFormat | undefined,
): VolumeFormat | undefined {
  if (given !== undefined && given !== 'raw' && given !== 'qcow2' && given !== 'iso') {
    throw new RpcError('ENOTSUP', `${name} cannot be made ${given} here: raw and qcow2 can`)
  }
  if (source.kind !== 'file') return source.kind === 'http' ? given : (given ?? 'raw')
  const { format, text } = source
  if (format !== 'raw' && format !== 'iso' && format !== 'qcow2') {
    throw new RpcError(
      'ENOTSUP',
      `${text} is ${format}, which is not read here: qemu-img convert makes it qcow2`,
    )
  }
  return given ?? format
}

/**
 * Whether an import has made the volume of its name that is there. Where volumes have no identity the mark has to do for one that
 * goes on.
 */
export function isMadeBy(
  { identity, isResumed }: Pick<Plan, 'identity' | 'isResumed'>,
  volume: VolumeFacts,
): boolean {
  if (volume.identity !== undefined) return volume.identity === identity
  return isResumed && volume.isHalfFilled === true
}

/** The volume that a copy is made of, which nobody is to change meanwhile; and a last look whether somebody does. */
export function keeping(source: TransferSource, volumes: Volumes): Pick<VolumeJob, 'holds' | 'check'> {
  if (source.kind !== 'file' && source.kind !== 'bdev') return {}
  const { volume, facts } = source
  return {
    holds: volume === undefined ? [] : [volume],
    check: async () => refuseInUse(facts, 'read', await volumes.useOfMedium(facts), volume),
  }
}

/** Who writes without a lock is known by what he leaves: half of a file from before and half from after is neither. */
export async function refuseChanged(source: TransferSource): Promise<void> {
  if (source.kind !== 'file' || (await identityOf(source.path)) === source.identity) return
  throw new RpcError(
    'ESTALE',
    `${source.text} was written to while it was read: have whoever does that stop, and begin again`,
  )
}

export interface MountedCall {
  /** The call that goes on with it. */
  readonly resume: MethodCall
  /** It was begun before. */
  readonly isResumed: boolean
  /** Where the file system is mounted that it was begun on. */
  readonly mount?: string | undefined
}

/**
 * The call with where the file system is mounted that a directory is on. Throws `RpcError` EAGAIN where that has not come yet since
 * the daemon was stopped: what is begun anew in its mount point fills another file system, and is found by nobody.
 */
export async function onItsMount(
  directory: string,
  { resume, mount, isResumed }: MountedCall,
): Promise<MethodCall> {
  const now = mountOf(await readMounts(), directory)?.mountPoint ?? '/'
  if (isResumed && mount !== undefined && mount !== now) {
    throw new RpcError(
      'EAGAIN',
      `${directory} was on the file system that is mounted on ${mount}, and is on that of ${now}: this goes on when it is mounted`,
    )
  }
  return { method: resume.method, params: { ...resume.params, mount: now } }
}
