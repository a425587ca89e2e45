/**
 * Snapshots of raw volumes: copies that share their blocks with the volume, in a hidden directory of the pool.
 *
 *     POOL/.snapshots/VOLUME/SNAPSHOT
 */
import { mkdir, readdir, readlink, rename, rm, rmdir, stat, symlink, utimes } from 'node:fs/promises'
import { basename, dirname, join } from 'node:path'
import { RpcError, thereAre } from '../../core/errors.ts'
import type { VolumeFacts, VolumeSnapshot } from '../pool.ts'
import { isPartial, partialName } from '../volume-name.ts'
import { moveSafely, reflink, takePlace, writeError } from './raw.ts'

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
    for (const directory of [this.#directory, dirname(path)]) {
      await mkdir(directory, { mode: 0o700 }).catch(ignoreExisting)
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
    await moveSafely(partial, path)
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

  async deleteAll(volume: VolumeFacts): Promise<void> {
    await rm(join(this.#directory, volume.name), { recursive: true, force: true })
    await rmdir(this.#directory).catch(() => {
      // It is not there, or has snapshots of others.
    })
  }

  /** Gives them to the name that `rename` gives the volume; a note says so until both are done. */
  async renameAll(volume: VolumeFacts, name: string, renameVolume: () => Promise<void>): Promise<void> {
    if ((await this.#names(volume)).length === 0) return renameVolume()
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

  /** Ends a renaming, and removes the rest of what this machine was at when it was interrupted. */
  async removeLeftovers(): Promise<void> {
    const names = (await readdir(this.#directory).catch(ignoreMissing)) ?? []
    for (const name of names.filter(each => !isPartial(each))) {
      if (names.includes(partialName(name))) await this.#finishRename(name)
      const left = (await readdir(join(this.#directory, name)).catch(ignoreMissing)) ?? []
      for (const file of left.filter(isPartial)) await rm(join(this.#directory, name, file))
      await this.#removeEmpty({ name })
    }
    for (const name of names.filter(isPartial)) await rm(join(this.#directory, name))
  }

  async #finishRename(from: string): Promise<void> {
    const to = await readlink(join(this.#directory, partialName(from)))
    const volumes = await readdir(dirname(this.#directory))
    if (volumes.includes(from) || !volumes.includes(to)) return
    await rename(join(this.#directory, from), join(this.#directory, to))
  }

  #path(volume: VolumeFacts, snapshot: string): string {
    return join(this.#directory, volume.name, snapshot)
  }

  async #names(volume: Pick<VolumeFacts, 'name'>): Promise<string[]> {
    const names = (await readdir(join(this.#directory, volume.name)).catch(ignoreMissing)) ?? []
    return names.filter(name => !isPartial(name))
  }

  async #existing(volume: VolumeFacts, snapshot: string): Promise<string> {
    const names = await this.#names(volume)
    if (names.includes(snapshot)) return this.#path(volume, snapshot)
    throw new RpcError('ENOENT', `volume ${volume.name} has no snapshot ${snapshot}: ${thereAre(names)}`)
  }

  async #removeEmpty(volume: Pick<VolumeFacts, 'name'>): Promise<void> {
    if ((await this.#names(volume)).length > 0) return
    for (const directory of [join(this.#directory, volume.name), this.#directory]) {
      await rmdir(directory).catch(() => {
        // Something else is in it: it stays.
      })
    }
  }
}

function ignoreMissing(error: NodeJS.ErrnoException): undefined {
  if (error.code === 'ENOENT') return undefined
  throw error
}

function ignoreExisting(error: NodeJS.ErrnoException): undefined {
  if (error.code !== 'EEXIST') throw error
}
