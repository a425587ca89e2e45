/** Snapshots of files: within the image where the format has that, as copies that share their blocks where not. */
import {
  applySnapshot,
  createSnapshot,
  deleteSnapshot,
  listSnapshots,
} from '../../bdev/drivers/qcow2/image.ts'
import type { Call } from '../nvme-export.ts'
import type { OpenBy, SnapshotAction, SnapshotOperations, VolumeFacts, VolumeSnapshot } from '../pool.ts'
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
  whileOpen(): readonly SnapshotAction[] {
    return ['create', 'delete']
  }

  async create(volume: VolumeFacts, snapshot: string, openBy: OpenBy): Promise<void> {
    if (volume.format !== 'qcow2') return this.#raw.create(volume, snapshot)
    const name = writerOf(openBy)
    if (name !== undefined) await this.#call('bdev_qcow2_snapshot_create', { name, snapshot_name: snapshot })
    else await createSnapshot(volume.path, snapshot)
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
    if (volume.format === 'qcow2') await applySnapshot(volume.path, snapshot)
    else await this.#raw.revert(volume, snapshot)
  }

  async delete(volume: VolumeFacts, snapshot: string, openBy: OpenBy): Promise<void> {
    if (volume.format !== 'qcow2') return this.#raw.delete(volume, snapshot)
    const name = writerOf(openBy)
    if (name !== undefined) await this.#call('bdev_qcow2_snapshot_delete', { name, snapshot_name: snapshot })
    else await deleteSnapshot(volume.path, snapshot)
  }

  /** What lies beside the volume goes with it. */
  deleteAll(volume: VolumeFacts): Promise<void> {
    return this.#raw.deleteAll(volume)
  }

  renameAll(volume: VolumeFacts, name: string): Promise<void> {
    return this.#raw.renameAll(volume, name)
  }
}

/** The bdev by which an image that is open is changed. */
const writerOf = (openBy: OpenBy): string | undefined =>
  openBy.find(({ driver, readOnly }) => driver === 'qcow2' && !readOnly)?.name
