/** What an operator names as a disk: a volume, a bdev, or a path. */
import { stat } from 'node:fs/promises'
import type { BdevInfo } from '../../bdev/bdev.ts'
import type { BdevRegistry } from '../../bdev/registry.ts'
import { RpcError } from '../../core/errors.ts'
import type { DiskSource } from '../../libvirt/disk-xml.ts'
import type { Found } from '../../volume/found.ts'
import type { VolumeUse } from '../../volume/use.ts'
import type { Volumes } from '../../volume/volumes.ts'

export type Call = (method: string, params?: unknown) => Promise<unknown>

export interface Storage {
  /** As the operator has named it. */
  readonly name: string
  readonly kind: 'volume' | 'bdev' | 'path'
  /** The bdev that has it open for writing. */
  readonly bdev: string | undefined
  /** Who has its bdevs, for each that somebody has: `subsystem nqn…, NBD export "web-vdb"`. */
  readonly owners: readonly string[]
  /** Programs that have it open. */
  readonly programs: readonly string[]
  /** Volumes that are made of what it has. */
  readonly dependents: readonly string[]
  /** How QEMU opens it by itself; undefined where it cannot. */
  readonly direct: DiskSource | undefined
  /** An image of a CD. */
  readonly isIso: boolean
  /** Who has it open for writing by the word of its server, on whichever machine; absent where there is none to ask. */
  readonly clients?: () => Promise<readonly string[]>
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
      ...{ name, kind: 'bdev', bdev: bdev.name, direct: undefined, isIso: false, open: undefined },
      ...{ owners: ownersOf([bdev], parts), programs: [], dependents: [] },
    }
  }
  if (name.startsWith('/')) return storageOfPath(name, options.format ?? 'raw', parts)
  throw new RpcError(
    'ENOENT',
    `${name} is neither a volume, nor a bdev, nor a path (/DIR/FILE, or ./FILE where you are): ${missing.message}`,
  )
}

async function storageOfVolume(name: string, found: Found, parts: StorageParts): Promise<Storage> {
  const { volumes } = parts
  const { pool, volume } = found
  const isOpenable = canOpen(found)
  return {
    ...{ name, kind: 'volume', isIso: volume.format === 'iso' },
    ...usersOf(await volumes.useOf(found), parts),
    direct:
      volume.type === 'network'
        ? networkSource(found)
        : { kind: volume.type, path: volume.path, format: volume.format },
    ...(volume.type === 'network' && {
      clients: async () => (await volumes.useAnywhere(found)).others,
    }),
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

async function storageOfPath(path: string, format: string, parts: StorageParts): Promise<Storage> {
  const stats = await stat(path).catch((cause: NodeJS.ErrnoException) => {
    throw new RpcError(cause.code === 'EACCES' ? 'EACCES' : 'ENOENT', `${path}: ${cause.message}`, { cause })
  })
  if (!stats.isFile() && !stats.isBlockDevice()) {
    throw new RpcError('EINVAL', `${path} is neither a file nor a block device`)
  }
  const open = (name: string): Promise<unknown> =>
    parts.call('bdev_uring_create', { name, filename: path, block_size: 512 })
  const type: 'file' | 'block' = stats.isFile() ? 'file' : 'block'
  const unknown = { capacityBytes: undefined, allocationBytes: undefined }
  const medium = { ...unknown, ...{ name: path, key: path, path, type, format: 'raw' } } as const
  return {
    ...{ name: path, kind: 'path', isIso: format === 'iso' },
    ...usersOf(await parts.volumes.useOfMedium(medium), parts),
    direct: { kind: type, path, format },
    open: format === 'raw' ? open : undefined,
  }
}

function usersOf(
  { bdevs, programs, others, dependents }: VolumeUse,
  parts: StorageParts,
): Pick<Storage, 'bdev' | 'owners' | 'programs' | 'dependents'> {
  return {
    bdev: bdevs.find(({ readOnly }) => !readOnly)?.name,
    owners: ownersOf(bdevs, parts),
    programs: [...programs, ...others],
    dependents: dependents.map(({ name }) => name),
  }
}

const ownersOf = (bdevs: readonly BdevInfo[], parts: StorageParts): string[] =>
  bdevs.map(({ name }) => parts.bdevs.ownersOf(name)).filter(owners => owners !== '')

/**
 * One writer: two that know nothing of each other destroy a file system. `isOwn` tells whom the guest itself is, when a disk that
 * it has now shall be there after its next start, or the other way round. Throws `RpcError` EBUSY.
 */
export function refuseSecondWriter(
  { name, owners, programs, dependents, isIso }: Storage,
  { isReadOnly, isShared }: { readonly isReadOnly: boolean; readonly isShared: boolean },
  isOwn: (user: string) => boolean = () => false,
): void {
  if (isReadOnly || isIso) return
  const others = [...owners, ...programs].filter(user => !isOwn(user))
  if (others.length > 0 && !isShared) {
    const remedy =
      owners.length > 0
        ? 'take it away there first (qpair vm detach GUEST DISK, qpair volume unexport VOLUME)'
        : 'end that first'
    throw new RpcError(
      'EBUSY',
      `${name} is in use by ${others.join(', ')}, and two writers would destroy it: ${remedy}, or give it to the guest ` +
        'read-only; --shared is for guests that know of each other',
    )
  }
  if (dependents.length === 0) return
  throw new RpcError(
    'EBUSY',
    `${name} is the backing store of ${dependents.join(', ')}, which writes to it would destroy: give the guest one of those, ` +
      'or this one read-only',
  )
}

/**
 * The same for an image that QEMU opens by itself, of which guests on other machines may know. Throws `RpcError` EBUSY naming the
 * clients of its server.
 */
export async function refuseClients({ name, clients }: Storage): Promise<void> {
  const found = (await clients?.()) ?? []
  if (found.length === 0) return
  throw new RpcError(
    'EBUSY',
    `${name} is open for writing by ${found.join(', ')}, and two writers would destroy it: end that first (one that was killed ` +
      'counts for half a minute longer), or give it to the guest read-only; --shared is for guests that know of each other',
  )
}
