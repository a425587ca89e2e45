/** Where a volume's content comes from, as it is typed: a file, a volume, an NBD export, a web server. */
import { stat } from 'node:fs/promises'
import { RpcError } from '../../core/errors.ts'
import { realPath } from '../../core/real-path.ts'
import type { MethodCall } from '../../rpc/config.ts'
import { fileOpening } from '../file-volumes.ts'
import { probe } from '../formats/probe.ts'
import type { Found } from '../found.ts'
import type { VolumeFacts, VolumeFormat } from '../pool.ts'
import { refuseInUse } from '../use.ts'
import type { Volumes } from '../volumes.ts'
import { parseNbdUri } from './nbd-uri.ts'

export type TransferSource =
  | { readonly kind: 'http'; readonly text: string }
  | { readonly kind: 'nbd'; readonly text: string }
  /** A file or a block device. */
  | {
      readonly kind: 'file'
      readonly text: string
      readonly path: string
      readonly format: VolumeFormat
      /** It stands alone, so that its bytes are all that there is to it. */
      readonly isWhole: boolean
      /** Changes when the file does. */
      readonly identity: string
      readonly opening: MethodCall | undefined
      readonly facts: VolumeFacts
      /** The volume that it is, as POOL/NAME. */
      readonly volume: string | undefined
    }
  /** A volume that only a bdev can read. */
  | {
      readonly kind: 'bdev'
      readonly text: string
      readonly opening: MethodCall
      readonly facts: VolumeFacts
      readonly volume: string
    }

/** Throws `RpcError` naming the source and what is wrong with it. */
export async function sourceOf(text: string, volumes: Volumes): Promise<TransferSource> {
  if (/^https?:/i.test(text)) {
    if (!URL.canParse(text)) throw new RpcError('EINVAL', `${text} is no URL`)
    const { username, password, host } = new URL(text)
    if (username === '' && password === '') return { kind: 'http', text }
    throw new RpcError(
      'EINVAL',
      `the address at ${host} has a user or password in it, which everybody sees who lists jobs: serve it without`,
    )
  }
  if (/^nbds?(\+\w+)?:/i.test(text)) {
    parseNbdUri(text)
    return { kind: 'nbd', text }
  }
  if (/^[a-z+]+:\/\//i.test(text)) {
    throw new RpcError(
      'ENOTSUP',
      `${text} cannot be read: http, https, nbd, nbd+unix, a path or a volume can`,
    )
  }
  if (text.startsWith('/')) return fileSource(text, text, await volumeAt(text, volumes), volumes)
  return volumeSource(volumeNamed(text, volumes), volumes)
}

function volumeNamed(text: string, volumes: Volumes): Found {
  try {
    return volumes.find(text)
  } catch (cause) {
    if (!(cause instanceof RpcError) || cause.code !== 'ENOENT') throw cause
    if (text.startsWith('rbd:')) {
      throw new RpcError(
        'ENOTSUP',
        `${text} is how QEMU names an image of Ceph: here it is a volume of a pool. Define one of type rbd (qpair pool ` +
          'define-as NAME rbd --source-name CEPH-POOL --source-host MONITOR …), start it, and give NAME/IMAGE',
        { cause },
      )
    }
    throw new RpcError(
      'ENOENT',
      `${text} is neither a volume nor a path (/DIR/FILE, or ./FILE where you are): ${cause.message}`,
      { cause },
    )
  }
}

/** What a volume holds, as a source. Throws EBUSY when somebody has it open. */
export async function volumeSource(found: Found, volumes: Volumes): Promise<TransferSource> {
  const { pool, volume } = found
  const text = `${pool.name}/${volume.name}`
  volumes.claims.refuseBusy(pool, volume.name, 'read')
  refuseInUse(volume, 'read', await volumes.useAnywhere(found), text)
  if (volume.type !== 'network') return fileSource(volume.path, text, text, volumes)
  const opening = pool.backend.opening(volume, { readOnly: true })
  return { kind: 'bdev', text, opening, facts: volume, volume: text }
}

/** The volume that a path leads to. */
async function volumeAt(path: string, { pools }: Volumes): Promise<string | undefined> {
  const real = await realPath(path)
  for (const { name, contents, backend } of pools.list()) {
    for (const volume of contents?.volumes ?? []) {
      // A server may be gone, and nobody waits for it here.
      const isNear = volume.type !== 'network' && backend.remote === undefined
      if ((isNear ? await realPath(volume.path) : volume.path) === real) return `${name}/${volume.name}`
    }
  }
  return undefined
}

/** What says that a file is still the same: another writer changes one of these. */
export async function identityOf(path: string): Promise<string> {
  const { dev, ino, size, mtimeMs } = await stat(path)
  return `${dev}:${ino}:${size}:${mtimeMs}`
}

async function fileSource(
  path: string,
  text: string,
  volume: string | undefined,
  volumes: Volumes,
): Promise<TransferSource> {
  const stats = await stat(path).catch((cause: NodeJS.ErrnoException) => {
    throw new RpcError((cause.code ?? 'EIO') as 'ENOENT', `${path} cannot be read: ${cause.code}`, { cause })
  })
  if (!stats.isFile() && !stats.isBlockDevice()) {
    throw new RpcError('EINVAL', `${path} is neither a file nor a block device`)
  }
  const { format, capacityBytes, backing } = await probe(path, stats.size)
  const facts: VolumeFacts = {
    ...{ name: text, key: path, path, type: stats.isFile() ? 'file' : 'block', format, capacityBytes },
    allocationBytes: undefined,
  }
  refuseInUse(facts, 'read', await volumes.useOfMedium(facts), volume)
  const isPlain = format === 'raw' || format === 'iso'
  return {
    ...{ kind: 'file', text, path, format, facts, volume },
    isWhole: backing === undefined,
    identity: await identityOf(path),
    opening: isPlain || format !== 'qcow2' ? undefined : fileOpening(facts, { readOnly: true }),
  }
}
