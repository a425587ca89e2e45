/**
 * Snapshots of raw volumes: copies that share their blocks with the volume, in a hidden directory of the pool.
 *
 *     POOL/.snapshots/VOLUME/SNAPSHOT
 */
import { mkdir, readdir, readlink, rename, rm, rmdir, stat, symlink, utimes } from 'node:fs/promises'
import { basename, dirname, join } from 'node:path'
import { RpcError, thereAre } from '../../core/errors.ts'
import { logger } from '../../core/log.ts'
import type { VolumeFacts, VolumeSnapshot } from '../pool.ts'
import { isPartial, partialName } from '../volume-name.ts'
import { moveToFree, reflink, takePlace, writeError } from './raw.ts'

const log = logger('volume')

export class RawSnapshots {
  readonly #pool: string
  readonly #directory: string

  constructor(pool: string, directory: string) {
    this.#pool = pool
    this.#directory = directory
  }

  async create(volume: VolumeFacts, snapshot: string): Promise<void> {
    const path = this.#path(volume, snapshot)
    if ((await this.#names(volume)).includes(snapshot)) {
      throw new RpcError(
        'EEXIST',
        `volume ${volume.name} has a snapshot ${snapshot} already: choose another name`,
      )
    }
    try {
      await this.#share(volume, path)
    } catch (error) {
      // Of a pool that is full nothing is left in the way of deleting its volumes.
      await this.#removeEmpty(volume)
      throw writeError(dirname(this.#directory), error)
    }
  }

  async #share(volume: VolumeFacts, path: string): Promise<void> {
    // One by one: where there is no room, Node.js calls a recursive one ENOENT.
    const isFirst = await makeDirectory(this.#directory)
    try {
      await makeDirectory(dirname(path))
    } catch (error) {
      if (isFirst) await rmdir(this.#directory)
      throw error
    }
    const partial = join(dirname(path), partialName(basename(path)))
    await rm(partial, { force: true })
    if (!(await reflink(volume.path, partial))) {
      throw new RpcError(
        'ENOTSUP',
        `volume ${volume.name} is raw and the file system of pool ${this.#pool} cannot share blocks between files: ` +
          'use a qcow2 volume, or a pool on XFS (reflink=1) or btrfs',
      )
    }
    // The copy has the times of the moment in which it was made, not those of the volume.
    const now = new Date()
    await utimes(partial, now, now)
    await moveToFree(partial, path)
  }

  async list(volume: VolumeFacts): Promise<VolumeSnapshot[]> {
    const snapshots = await Promise.all(
      (await this.#names(volume)).map(async name => {
        const { mtime, size } = await stat(this.#path(volume, name))
        return { name, created: mtime, sizeBytes: size }
      }),
    )
    return snapshots.sort((a, b) => a.created.getTime() - b.created.getTime() || (a.name < b.name ? -1 : 1))
  }

  async revert(volume: VolumeFacts, snapshot: string): Promise<void> {
    const path = await this.#existing(volume, snapshot)
    const partial = join(dirname(volume.path), partialName(volume.name))
    await rm(partial, { force: true })
    if (!(await reflink(path, partial))) {
      throw new RpcError(
        'ENOTSUP',
        `snapshot ${snapshot} of volume ${volume.name} cannot be shared with it any more`,
      )
    }
    await takePlace(partial, volume.path)
  }

  async delete(volume: VolumeFacts, snapshot: string): Promise<void> {
    await rm(await this.#existing(volume, snapshot))
    await this.#removeEmpty(volume)
  }

  /** Whatever else is in the directory stays, and so does that: it is somebody's. */
  async deleteAll(volume: VolumeFacts): Promise<void> {
    for (const name of await this.#names(volume)) await rm(this.#path(volume, name))
    await this.#removeEmpty(volume)
  }

  /** Gives them to the name that `rename` gives the volume; a note says so until both are done. */
  async renameAll(volume: VolumeFacts, name: string, renameVolume: () => Promise<void>): Promise<void> {
    if ((await this.#names(volume)).length === 0) return renameVolume()
    const others = await this.#names({ name })
    if (others.length > 0) {
      throw new RpcError(
        'EEXIST',
        `${join(this.#directory, name)} has snapshots of a volume ${name} that has gone (${others.join(', ')}), and volume ` +
          `${volume.name} has some, too: choose another name, or remove those`,
      )
    }
    const note = join(this.#directory, partialName(volume.name))
    await rm(note, { force: true })
    await symlink(name, note)
    try {
      await renameVolume()
      await rename(join(this.#directory, volume.name), join(this.#directory, name))
    } finally {
      await rm(note)
    }
  }

  /** Ends a renaming, and removes the rest of what this daemon was at when it was interrupted. */
  async removeLeftovers(): Promise<void> {
    const names = (await readdir(this.#directory).catch(ignoreOthers)) ?? []
    for (const name of names.filter(each => !isPartial(each))) {
      if (names.includes(partialName(name))) await this.#finishRename(name)
      const left = (await readdir(join(this.#directory, name)).catch(ignoreOthers)) ?? []
      for (const file of left.filter(isPartial)) {
        await rm(join(this.#directory, name, file))
        log.notice(
          `${join(this.#directory, name, file)} is removed: it was being made when that was interrupted`,
        )
        await this.#removeEmpty({ name })
      }
    }
    for (const name of names.filter(isPartial)) await rm(join(this.#directory, name))
  }

  async #finishRename(from: string): Promise<void> {
    const to = await readlink(join(this.#directory, partialName(from)))
    const volumes = await readdir(dirname(this.#directory))
    if (volumes.includes(from) || !volumes.includes(to)) return
    await rename(join(this.#directory, from), join(this.#directory, to))
    log.notice(
      `${join(this.#directory, to)} has the snapshots of ${from}, which was being renamed when that was interrupted`,
    )
  }

  #path(volume: VolumeFacts, snapshot: string): string {
    return join(this.#directory, volume.name, snapshot)
  }

  async #names(volume: Pick<VolumeFacts, 'name'>): Promise<string[]> {
    const directory = join(this.#directory, volume.name)
    const entries = (await readdir(directory, { withFileTypes: true }).catch(ignoreOthers)) ?? []
    return entries.filter(each => each.isFile() && !each.name.startsWith('.')).map(each => each.name)
  }

  async #existing(volume: VolumeFacts, snapshot: string): Promise<string> {
    const names = await this.#names(volume)
    if (names.includes(snapshot)) return this.#path(volume, snapshot)
    throw new RpcError('ENOENT', `volume ${volume.name} has no snapshot ${snapshot}: ${thereAre(names)}`)
  }

  /** The directory of the last snapshot of a volume, and that of the last volume; none that was empty before. */
  async #removeEmpty(volume: Pick<VolumeFacts, 'name'>): Promise<void> {
    try {
      await rmdir(join(this.#directory, volume.name))
      await rmdir(this.#directory)
    } catch {
      // Something is in it, or it is not there.
    }
  }
}

/** Other programs have directories of this name as well (Snapper's), and files in them. */
function ignoreOthers(error: NodeJS.ErrnoException): undefined {
  if (error.code === 'ENOENT' || error.code === 'ENOTDIR') return undefined
  throw error
}

/** False when it is there already. */
async function makeDirectory(path: string): Promise<boolean> {
  try {
    await mkdir(path, { mode: 0o700 })
    return true
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'EEXIST') return false
    throw error
  }
}
