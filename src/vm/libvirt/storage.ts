/** What an operator names as a disk: a volume, a bdev, or a path. */
import { stat } from 'node:fs/promises'
import type { BdevRegistry } from '../../bdev/registry.ts'
import { RpcError } from '../../core/errors.ts'
import type { DiskSource } from '../../libvirt/disk-xml.ts'
import type { Found, Volumes } from '../../volume/volumes.ts'

export type Call = (method: string, params?: unknown) => Promise<unknown>

export interface Storage {
  /** As the operator has named it. */
  readonly name: string
  readonly kind: 'volume' | 'bdev' | 'path'
  /** The bdev that has it open for writing. */
  readonly bdev: string | undefined
  /** Programs that have it open. */
  readonly programs: readonly string[]
  /** How QEMU opens it by itself; undefined where it cannot. */
  readonly direct: DiskSource | undefined
  /** An image of a CD. */
  readonly isIso: boolean
  /** Makes a bdev over it; undefined where there is none for it. */
  readonly open: ((bdev: string, readOnly: boolean) => Promise<unknown>) | undefined
}

export interface StorageOptions {
  readonly pool: string | undefined
  /** Of a path that is in no pool: what a guest has written must not decide how its disk is read. */
  readonly format: string | undefined
}

export interface StorageParts {
  readonly bdevs: BdevRegistry
  readonly volumes: Volumes
  readonly call: Call
}

/** Volumes come first, then bdevs, then paths. Throws `RpcError` ENOENT or EINVAL. */
export async function findStorage(
  name: string,
  options: StorageOptions,
  parts: StorageParts,
): Promise<Storage> {
  let missing: RpcError
  try {
    return await storageOfVolume(name, parts.volumes.find(name, options.pool), parts)
  } catch (error) {
    if (!(error instanceof RpcError && error.code === 'ENOENT') || options.pool !== undefined) throw error
    missing = error
  }
  const bdev = parts.bdevs.find(name)
  if (bdev !== undefined) {
    return {
      ...{ name, kind: 'bdev', bdev: bdev.name, programs: [], direct: undefined, isIso: false },
      open: undefined,
    }
  }
  if (name.startsWith('/')) return storageOfPath(name, options.format ?? 'raw', parts)
  throw new RpcError(
    'ENOENT',
    `${name} is neither a volume, nor a bdev, nor a path (/DIR/FILE, or ./FILE where you are): ${missing.message}`,
  )
}

async function storageOfVolume(name: string, found: Found, { volumes }: StorageParts): Promise<Storage> {
  const { pool, volume } = found
  const { bdevs, programs } = await volumes.useOf(found)
  const isOpenable = canOpen(found)
  return {
    ...{ name, kind: 'volume', programs, isIso: volume.format === 'iso' },
    bdev: bdevs.find(({ readOnly }) => !readOnly)?.name,
    direct:
      volume.type === 'network'
        ? networkSource(found)
        : { kind: volume.type, path: volume.path, format: volume.format },
    open: isOpenable ? (bdev, readOnly) => volumes.open({ pool, volume }, bdev, readOnly) : undefined,
  }
}

function canOpen({ pool, volume }: Found): boolean {
  try {
    pool.backend.opening(volume, { readOnly: false })
    return true
  } catch (error) {
    // There is no bdev for its format; QEMU may know it all the same.
    if (error instanceof RpcError) return false
    throw error
  }
}

/** An image that QEMU reaches by the words of its pool. */
function networkSource({ pool, volume }: Found): DiskSource | undefined {
  const { type, source } = pool.document
  if (type !== 'rbd') return undefined
  const { hosts = [], auth } = source
  return { kind: 'rbd', name: volume.path, hosts, auth }
}

async function storageOfPath(path: string, format: string, { call }: StorageParts): Promise<Storage> {
  const stats = await stat(path).catch((cause: NodeJS.ErrnoException) => {
    throw new RpcError(cause.code === 'EACCES' ? 'EACCES' : 'ENOENT', `${path}: ${cause.message}`, { cause })
  })
  if (!stats.isFile() && !stats.isBlockDevice()) {
    throw new RpcError('EINVAL', `${path} is neither a file nor a block device`)
  }
  const open = (name: string): Promise<unknown> =>
    call('bdev_uring_create', { name, filename: path, block_size: 512 })
  return {
    ...{ name: path, kind: 'path', bdev: undefined, programs: [], isIso: format === 'iso' },
    direct: { kind: stats.isFile() ? 'file' : 'block', path, format },
    open: format === 'raw' ? open : undefined,
  }
}
