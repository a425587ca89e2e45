/** Snapshots of files: within the image where the format has that, as copies that share their blocks where not. */
import { rm, writeFile } from 'node:fs/promises'
import { basename, dirname, join } from 'node:path'
import {
  applySnapshot,
  createSnapshot,
  deleteSnapshot,
  listSnapshots,
} from '../../bdev/drivers/qcow2/image.ts'
import type { Call } from '../nvme-export.ts'
import type { OpenBy, SnapshotOperations, VolumeFacts, VolumeSnapshot } from '../pool.ts'
import { checkNoteName } from '../volume-name.ts'
import { writeError } from './raw.ts'
import type { RawSnapshots } from './raw-snapshots.ts'

export class FileSnapshots implements SnapshotOperations {
  readonly #raw: RawSnapshots
  readonly #call: Call

  constructor(raw: RawSnapshots, call: Call) {
    this.#raw = raw
    this.#call = call
  }

  /**
   * A raw volume shares each block or does not: writes that come meanwhile are in the copy whole or not at all. An image
   * that is open is changed by its bdev, which has requests wait.
   */
  whileOpen(): readonly ('create' | 'delete')[] {
    return ['create', 'delete']
  }

  async create(volume: VolumeFacts, snapshot: string, openBy: OpenBy): Promise<void> {
    if (volume.format !== 'qcow2') return this.#raw.create(volume, snapshot)
    const name = writerOf(openBy)
    if (name !== undefined) await this.#call('bdev_qcow2_snapshot_create', { name, snapshot_name: snapshot })
    else await noted(volume.path, () => createSnapshot(volume.path, snapshot))
  }

  async list(volume: VolumeFacts): Promise<VolumeSnapshot[]> {
    if (volume.format !== 'qcow2') return this.#raw.list(volume)
    const snapshots = await listSnapshots(volume.path)
    return snapshots.map(({ name, date, diskSizeBytes }) => ({
      name,
      created: date,
      sizeBytes: diskSizeBytes,
    }))
  }

  async revert(volume: VolumeFacts, snapshot: string): Promise<void> {
    if (volume.format === 'qcow2') await noted(volume.path, () => applySnapshot(volume.path, snapshot))
    else await this.#raw.revert(volume, snapshot)
  }

  async delete(volume: VolumeFacts, snapshot: string, openBy: OpenBy): Promise<void> {
    if (volume.format !== 'qcow2') return this.#raw.delete(volume, snapshot)
    const name = writerOf(openBy)
    if (name !== undefined) await this.#call('bdev_qcow2_snapshot_delete', { name, snapshot_name: snapshot })
    else await noted(volume.path, () => deleteSnapshot(volume.path, snapshot))
  }

  /** What lies beside the volume goes with it; beside one that has its own within lies what is not of it. */
  async deleteAll(volume: VolumeFacts): Promise<void> {
    if (volume.format !== 'qcow2') await this.#raw.deleteAll(volume)
  }

  renameAll(volume: VolumeFacts, name: string, renameVolume: () => Promise<void>): Promise<void> {
    return this.#raw.renameAll(volume, name, renameVolume)
  }

  removeLeftovers(): Promise<void> {
    return this.#raw.removeLeftovers()
  }
}

/** Does something to the tables of an image, with a note beside it that has it checked when that is interrupted. */
async function noted(image: string, work: () => Promise<unknown>): Promise<void> {
  const note = join(dirname(image), checkNoteName(basename(image)))
  await writeFile(note, '').catch((error: NodeJS.ErrnoException) => {
    // Without room for it, all that an interruption could leave is clusters that nobody has: a snapshot has to be deleted now.
    if (error.code !== 'ENOSPC') throw writeError(dirname(image), error)
  })
  try {
    await work()
  } finally {
    await rm(note, { force: true })
  }
}

/** The bdev by which an image that is open is changed. */
const writerOf = (openBy: OpenBy): string | undefined =>
  openBy.find(({ driver, readOnly }) => driver === 'qcow2' && !readOnly)?.name
