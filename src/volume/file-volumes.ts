/** Volumes that are files of one directory. */
import { chmod, chown, lstat, readdir, rm, stat, statfs } from 'node:fs/promises'
import { dirname, isAbsolute, join, resolve } from 'node:path'
import { checkImage, createImage, imageInfo } from '../bdev/drivers/qcow2/image.ts'
import { RpcError } from '../core/errors.ts'
import { logger } from '../core/log.ts'
import type { Permissions, PoolUsage } from '../libvirt/pool-xml.ts'
import type { MethodCall } from '../rpc/config.ts'
import { FileSnapshots } from './formats/file-snapshots.ts'
import { probe } from './formats/probe.ts'
import { createQcow2, type ImageRequest, resizeQcow2 } from './formats/qcow2.ts'
import {
  copyFileSparsely,
  createRaw,
  moveToFree,
  renameFree,
  resizeRaw,
  takePlace,
  writeError,
} from './formats/raw.ts'
import { RawSnapshots } from './formats/raw-snapshots.ts'
import type { Call } from './nvme-export.ts'
import type {
  CreateVolume,
  OpenOptions,
  PoolContents,
  Progress,
  ResizeOptions,
  VolumeFacts,
  VolumeOperations,
  WipeAlgorithm,
} from './pool.ts'
import {
  imageToCheck,
  isPartial,
  isPartialState,
  partialName,
  partialStateName,
  SNAPSHOT_DIRECTORY,
} from './volume-name.ts'
import { wipeFile } from './wipe.ts'

const log = logger('volume')

/** Files that are looked at together: as many of the daemon's 32 threads wait for a server that goes away meanwhile. */
const PROBES_AT_ONCE = 8
const SECTOR = 512
/** libvirt's, for images that it makes. */
const DEFAULT_MODE = 0o600

export class FileVolumes implements VolumeOperations {
  readonly areChangesLong = true
  readonly directory: string
  readonly require: () => Promise<void>
  readonly snapshots: FileSnapshots
  readonly #call: Call

  /**
   * `call`: a method of the daemon, for volumes that are open. `require` throws when the directory is not what it is to be: what
   * was mounted there is not any more.
   */
  constructor(pool: string, directory: string, call: Call, require: () => Promise<void> = async () => {}) {
    this.#call = call
    this.directory = directory
    this.require = require
    this.snapshots = new FileSnapshots(new RawSnapshots(pool, join(directory, SNAPSHOT_DIRECTORY)), call)
  }

  async usage(): Promise<PoolUsage> {
    await this.require()
    const { blocks, bfree, bavail, bsize } = await statfs(this.directory)
    return {
      capacityBytes: blocks * bsize,
      allocationBytes: (blocks - bfree) * bsize,
      availableBytes: bavail * bsize,
    }
  }

  async list(): Promise<PoolContents> {
    await this.require()
    const names = await readdir(this.directory)
    const wanted = names.filter(name => !name.startsWith('.')).sort()
    const volumes: VolumeFacts[] = []
    for (let at = 0; at < wanted.length; at += PROBES_AT_ONCE) {
      const some = wanted.slice(at, at + PROBES_AT_ONCE)
      const facts = await Promise.all(some.map(name => this.#facts(join(this.directory, name), name)))
      volumes.push(...facts.filter(each => each !== undefined))
    }
    return { ...(await this.usage()), volumes }
  }

  /** Undefined for what is no volume: a directory, a socket, a file that has gone meanwhile or may not be read. */
  async #facts(path: string, name: string): Promise<VolumeFacts | undefined> {
    try {
      const stats = await stat(path)
      if (!stats.isFile()) return undefined
      const { format, capacityBytes, backing } = await probe(path, stats.size)
      return {
        ...{ name, key: path, path, type: 'file', format, capacityBytes },
        allocationBytes: stats.blocks * SECTOR,
        permissions: { mode: stats.mode & 0o777, owner: stats.uid, group: stats.gid },
        // An inode is given to another again, but not at the same time.
        identity: `${stats.ino}:${stats.birthtimeMs}`,
        ...(backing === undefined ? {} : { backing: { ...backing, path: backingPath(path, backing.path) } }),
      }
    } catch {
      // Somebody else's file, or one that went: a list is of what is there and can be used.
      return undefined
    }
  }

  /** Removes what this machine was making when it was interrupted, unless it can go on with it. */
  async removeLeftovers(): Promise<void> {
    const names = new Set(await readdir(this.directory))
    for (const name of names) {
      const path = join(this.directory, name)
      if (isPartial(name) && !names.has(`${name}.json`)) await removeLeft(path)
      // The note of a file that is whole.
      if (isPartialState(name) && !names.has(name.replace(/\.json$/, ''))) await removeLeft(path)
      const image = imageToCheck(name)
      if (image !== undefined) await this.#repair(image, path)
    }
    await this.snapshots.removeLeftovers()
  }

  async #repair(name: string, note: string): Promise<void> {
    try {
      const { repaired } = await checkImage(join(this.directory, name), { repair: true })
      log.notice(`volume ${name} was being changed when that was interrupted: ${repaired} counts are mended`)
    } catch (error) {
      // A guest that went on without us has it: another time.
      if ((error as RpcError).code === 'EBUSY') return
      log.warning(
        `volume ${name} was being changed when that was interrupted, and cannot be checked: ${(error as Error).message}. ` +
          'Its content is whole; qemu-img check -r all finds what room it has lost',
      )
    }
    await rm(note, { force: true })
  }

  /** Whether it is being made, or was when that was interrupted. */
  async hasPartial(name: string): Promise<boolean> {
    return (await lstat(join(this.directory, partialName(name))).catch(() => undefined)) !== undefined
  }

  async create(request: CreateVolume, progress: Progress): Promise<void> {
    const { name, permissions } = request
    await this.make(name, permissions, path => this.createImage(path, request, progress))
  }

  /** An image at a path that need not be the one that it will have. */
  async createImage(path: string, request: ImageRequest, progress: Progress): Promise<void> {
    const { name, format, capacityBytes, preallocation = 'off' } = request
    if (format === 'qcow2') return createQcow2(path, request, progress)
    if (format !== 'raw' && format !== 'iso') {
      throw new RpcError('ENOTSUP', `${name} cannot be made ${format} here: raw and qcow2 can`)
    }
    refuseOfRaw(name, request)
    await createRaw(path, capacityBytes, preallocation, progress)
  }

  /** Makes a file under a hidden name and gives it its own when it is whole and safe on the medium. */
  async make(
    name: string,
    permissions: Permissions | undefined,
    work: (path: string) => Promise<void>,
  ): Promise<void> {
    await this.require()
    const partial = join(this.directory, partialName(name))
    try {
      // Of an earlier attempt; whoever goes on with one does not come here.
      await rm(partial, { force: true })
      await rm(join(this.directory, partialStateName(name)), { force: true })
      await work(partial)
      await this.finish(name, permissions)
    } catch (error) {
      await rm(partial, { force: true }).catch(() => {
        // On a file system that has become read only.
      })
      throw writeError(this.directory, error)
    }
  }

  /** The last step of `make`, for those who have made the hidden file otherwise. */
  async finish(name: string, permissions: Permissions | undefined): Promise<void> {
    await this.require()
    const partial = join(this.directory, partialName(name))
    const { owner, group, mode } = permissions ?? {}
    if (owner !== undefined || group !== undefined) await chown(partial, owner ?? -1, group ?? -1)
    await chmod(partial, mode ?? DEFAULT_MODE)
    // Names are free when work begins, but it may take hours.
    const path = join(this.directory, name)
    await moveToFree(partial, path)
    await rm(join(this.directory, partialStateName(name)), { force: true })
  }

  async delete(volume: VolumeFacts): Promise<void> {
    await this.snapshots.deleteAll(volume)
    await rm(volume.path)
  }

  async resize(volume: VolumeFacts, capacityBytes: number, options: ResizeOptions): Promise<void> {
    if (volume.format === 'qcow2') return resizeQcow2(volume, capacityBytes, options, this.#call)
    if (volume.format !== 'raw') {
      throw new RpcError(
        'ENOTSUP',
        `volume ${volume.name} is ${volume.format}, which has the size that it has`,
      )
    }
    await resizeRaw(volume.path, capacityBytes, options.allocate, options)
    for (const { name, driver } of options.openBy) await this.#call(`bdev_${driver}_rescan`, { name })
  }

  async rename(volume: VolumeFacts, name: string): Promise<void> {
    await this.snapshots.renameAll(volume, name, () => renameFree(volume.path, join(this.directory, name)))
  }

  async clone(volume: VolumeFacts, name: string, progress: Progress): Promise<void> {
    await this.make(name, volume.permissions, path => copyFileSparsely(volume.path, path, progress))
  }

  async wipe(volume: VolumeFacts, algorithm: WipeAlgorithm, progress: Progress): Promise<void> {
    if (volume.format !== 'qcow2') return wipeFile(volume.path, algorithm, progress)
    // Its header stays until there is an empty image in its place, so that it is one also after an interruption; and that is
    // made first, so that nothing is overwritten where there is no room for it.
    const { virtualSizeBytes, version, clusterSize, ...made } = await imageInfo(volume.path)
    const { refcountBits, extendedL2, lazyRefcounts, compression } = made
    const partial = join(this.directory, partialName(volume.name))
    await rm(partial, { force: true })
    try {
      await createImage(partial, {
        ...{ sizeBytes: virtualSizeBytes, version, clusterSize, refcountBits },
        ...{ extendedL2, lazyRefcounts, compression },
      })
      await wipeFile(volume.path, algorithm, progress, clusterSize)
      await takePlace(partial, volume.path)
    } catch (error) {
      await rm(partial, { force: true })
      throw error
    }
  }
}

async function removeLeft(path: string): Promise<void> {
  await rm(path, { force: true })
  log.notice(`${path} is removed: it was being made when that was interrupted`)
}

/** Relative names are relative to the image that has them. */
function backingPath(image: string, name: string): string {
  if (isAbsolute(name) || /^[a-z]+:/.test(name)) return name
  return resolve(dirname(image), name)
}

function refuseOfRaw(name: string, { backing, features = {}, preallocation }: ImageRequest): void {
  const feature = Object.keys(features)[0]
  let what = ''
  if (backing !== undefined) what = `a backing volume (${backing.path})`
  else if (feature !== undefined) what = `the feature ${feature}`
  else if (preallocation === 'metadata') what = 'metadata to preallocate'
  if (what === '') return
  throw new RpcError('EINVAL', `${name} is raw, and a raw volume has not ${what}: use format qcow2`)
}

/** How a file or a block device becomes a bdev. */
export function fileOpening(volume: VolumeFacts, { readOnly }: OpenOptions): MethodCall {
  const { path: filename, format } = volume
  switch (format) {
    case 'raw':
    case 'iso':
      return readOnly
        ? { method: 'bdev_aio_create', params: { filename, readonly: true } }
        : { method: 'bdev_uring_create', params: { filename } }
    case 'qcow2':
      return { method: 'bdev_qcow2_create', params: { filename, ...(readOnly ? { read_only: true } : {}) } }
    default:
      throw new RpcError(
        'ENOTSUP',
        `volume ${volume.name} is ${format}, which cannot be opened here: qemu-img convert makes it raw or qcow2`,
      )
  }
}
