/** What an operator names as a disk, made ready for a guest of ours: served by the daemon where that is best, or needed. */
import { RpcError } from '../../core/errors.ts'
import type { Turns } from '../../volume/turns.ts'
import { findForGuest } from '../disk/find-for-guest.ts'
import { chooseMeans, type Means } from '../disk/means.ts'
import { diskOf } from '../disk/server-images.ts'
import { type ReleaseParts, serve } from '../disk/serving.ts'
import { findStorage, refuseClients, type Storage, type StorageParts } from '../disk/storage.ts'
import type { Undo } from '../undo.ts'
import type { DiskWord, GuestBus } from './guest-disk.ts'
import type { RecordedDisk } from './guest-record.ts'

export interface DiskParts extends ReleaseParts, StorageParts {
  /** From the look at who uses a storage until it is served no other guest begins anything with one. */
  readonly turns: Turns
}

export interface DiskRequest extends DiskWord {
  readonly pool: string | undefined
  /** The first that is free when undefined. */
  readonly target: string | undefined
}

/** Targets of a bus, in the order in which they are given out. */
const PREFIX: Readonly<Record<GuestBus, string>> = { virtio: 'vd', nvme: 'nvme', scsi: 'sd' }
const LETTERS = 'abcdefghijklmnopqrstuvwxyz'

export function freeTarget(bus: GuestBus, taken: readonly string[]): string {
  for (let index = 0; ; index++) {
    const target = `${PREFIX[bus]}${bus === 'nvme' ? index : (LETTERS[index] ?? `a${LETTERS[index - 26]}`)}`
    if (!taken.includes(target)) return target
  }
}

/** `guest`: its name and the targets that it has. Throws `RpcError`; what it has made is on `undo`. */
export async function prepareDisk(
  request: DiskRequest,
  guest: { readonly name: string; readonly targets: readonly string[] },
  undo: Undo,
  parts: DiskParts,
): Promise<Omit<RecordedDisk, 'port'>> {
  const { volume, bus } = request
  const target = request.target ?? freeTarget(bus, guest.targets)
  if (guest.targets.includes(target)) {
    throw new RpcError(
      'EEXIST',
      `guest ${guest.name} has a disk ${target} already: choose another target, or none, and the first that is free is taken`,
    )
  }
  return parts.turns.next(async () => {
    const storage = await findForGuest(request, { guest: guest.name, target, sources: [] }, parts)
    // A secret would stand among the arguments, where everybody on the machine reads it.
    const isSecret = storage.direct?.kind === 'rbd' && storage.direct.auth !== undefined
    const means = chooseMeans({
      // A disk that is plugged in reconnects here as one of the start does, so that it makes no difference when it comes.
      ...{ volume, bus, wished: request.means, hasSharedMemory: true, isLive: false },
      isOpenHere: storage.bdev !== undefined,
      canServe: storage.bdev !== undefined || storage.open !== undefined,
      isManaged: storage.kind !== 'path',
      canBeDirect: storage.direct !== undefined && !isSecret,
      isHiddenDevice: false,
    })
    const readOnly = request.isReadOnly || storage.isIso
    if (means === 'direct' && !readOnly) await holdImage(storage, request, { ...guest, target }, undo, parts)
    const source =
      means === 'direct'
        ? storage.direct!
        : await serve(
            storage,
            { domain: guest.name, target, means, isReadOnly: readOnly, owner: undefined },
            undo,
            parts,
          )
    const serial = request.serial ?? `${guest.name.slice(0, 19 - target.length)}-${target}`
    return { target, bus, means, volume, source, serial, isReadOnly: readOnly }
  })
}

/** Nothing but this keeps the next guest from an image on a server. */
async function holdImage(
  storage: Storage,
  { isShared }: DiskRequest,
  { name, target }: { readonly name: string; readonly target: string },
  undo: Undo,
  { images }: DiskParts,
): Promise<void> {
  if (!isShared) await refuseClients(storage)
  const disk = diskOf('guest', name, target)
  images.hold(disk, storage.direct!)
  undo.add(`hold of ${storage.name}`, async () => images.letGo(disk))
}

/** The image of a CD, which QEMU opens itself. */
export async function prepareCdrom(volume: string, parts: DiskParts): Promise<Omit<RecordedDisk, 'port'>> {
  const storage = await findStorage(volume, { pool: undefined, format: 'raw' }, parts)
  const { direct } = storage
  if (direct === undefined || direct.kind === 'vhost') {
    throw new RpcError(
      'EINVAL',
      `${volume} cannot be a CD: QEMU opens those itself, from a file or a device (qpair volume list --iso)`,
    )
  }
  const means: Means = 'direct'
  return { target: 'cd', bus: 'cdrom', means, volume, source: direct, serial: 'cd', isReadOnly: true }
}
