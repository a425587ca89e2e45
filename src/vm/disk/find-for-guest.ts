/** What an operator names as a disk, seen to be the guest's alone. */
import { type ReleaseParts, releaseLeft, servedAs } from './serving.ts'
import {
  findStorage,
  refuseSecondWriter,
  type Storage,
  type StorageOptions,
  type StorageParts,
} from './storage.ts'

export interface ForGuest {
  readonly guest: string
  readonly target: string
  /** What the guest's disks are made of already. */
  readonly sources: readonly (string | undefined)[]
  /** Whether a user of the storage is the guest itself. */
  readonly isGuestItself?: (user: string, storage: Storage) => boolean
}

export interface StorageRequest extends StorageOptions {
  readonly volume: string
  readonly isReadOnly: boolean
  readonly isShared: boolean
}

/** Throws `RpcError` ENOENT, EINVAL or EBUSY. */
export async function findForGuest(
  request: StorageRequest,
  { guest, target, sources, isGuestItself = () => false }: ForGuest,
  parts: StorageParts & ReleaseParts,
): Promise<Storage> {
  const find = (): Promise<Storage> => findStorage(request.volume, request, parts)
  let storage = await find()
  // A daemon that was killed while it did the same before has left it.
  const isLeft = storage.owners.some(owners => servedAs(guest, target).includes(owners))
  if (isLeft && (await releaseLeft(guest, target, sources, parts)).length > 0) storage = await find()
  const { direct } = storage
  const holders = direct === undefined ? [] : parts.images.holdersOf(direct)
  const used = { ...storage, programs: [...storage.programs, ...holders] }
  refuseSecondWriter(used, request, user => isGuestItself(user, storage))
  return storage
}
