/**
 * Data into volumes and out of them: `volume import`, `volume save`.
 *
 *     source                                    target
 *     file, volume  -- its bytes as they are -->  file of a pool, under a hidden name until it is whole
 *     web server    --        the same       -->  the same, or a block device
 *     disk (NBD, qcow2, raw, RBD) -- content -->  raw or qcow2 file, block device, any other volume
 *
 * What fills a file notes how far it is, and goes on from there when the daemon comes back; other targets start over.
 */
import { randomUUID } from 'node:crypto'
import { readdir, statfs } from 'node:fs/promises'
import { basename, dirname, isAbsolute } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { checkImage } from '../bdev/drivers/qcow2/image.ts'
import type { BdevRegistry } from '../bdev/registry.ts'
import { RpcError } from '../core/errors.ts'
import { formatSize } from '../core/format-size.ts'
import { logger } from '../core/log.ts'
import { mountOf, readMounts } from '../core/mounts.ts'
import type { Permissions } from '../libvirt/pool-xml.ts'
import type { ReactorGroup } from '../reactor/group.ts'
import type { MethodCall } from '../rpc/config.ts'
import { DAEMON_STOPS } from '../rpc/jobs.ts'
import { FileVolumes, fileOpening } from './file-volumes.ts'
import { probe, probeHead, readHead } from './formats/probe.ts'
import { checkRoom, reflink, writeError } from './formats/raw.ts'
import { deleteLeftover } from './leftovers.ts'
import type { Call } from './nvme-export.ts'
import { startDone, startJob, type VolumeJob } from './operations/job.ts'
import { operationOf } from './operations/supported.ts'
import type { Progress, VolumeFacts, VolumeFormat } from './pool.ts'
import { type Pool, volumeIn } from './storage-pool.ts'
import { copyDisk, type Sink, type Source } from './transfer/copy.ts'
import { BdevDisk } from './transfer/disk.ts'
import { FileSink, FileSource } from './transfer/file.ts'
import { download } from './transfer/http.ts'
import { NbdSource } from './transfer/nbd-source.ts'
import { PartialFile } from './transfer/partial.ts'
import { identityOf, sourceOf, type TransferSource, volumeSource } from './transfer/source.ts'
import { refuseInUse } from './use.ts'
import { checkFileName, partialName } from './volume-name.ts'
import { type Again, type Found, pinned, type Volumes } from './volumes.ts'

const log = logger('volume')

export interface TransfersOptions {
  readonly bdevs: BdevRegistry
  readonly reactors: ReactorGroup
  /** A method of the daemon at once, saving nothing. */
  readonly replay: Call
}

export interface ImportOptions {
  readonly pool: string
  readonly name: string
  readonly source: string
  /** The source's own when absent; a disk's content becomes raw. */
  readonly format: VolumeFormat | undefined
  readonly permissions: Permissions | undefined
  /** It was begun before. */
  readonly isResumed: boolean
  /** Of what it makes, so that what it left is known to be its own. */
  readonly identity: string
  /** The call that goes on with it. */
  readonly resume: MethodCall
  /** Of the file system that it was begun on. */
  readonly mount?: string | undefined
}

export class Transfers {
  readonly #volumes: Volumes
  readonly #options: TransfersOptions
  #lastId = 0

  constructor(volumes: Volumes, options: TransfersOptions) {
    this.#volumes = volumes
    this.#options = options
  }

  async import(options: ImportOptions): Promise<{ job_id: number }> {
    const { halfFilled } = this.#volumes
    if (options.isResumed) halfFilled.add(options.identity)
    const started = await this.#import(options)
    halfFilled.delete(options.identity)
    return started
  }

  async #import(options: ImportOptions): Promise<{ job_id: number }> {
    const { name, permissions, identity } = options
    if (options.isResumed) this.#volumes.awaitPool(options.pool)
    const pool = this.#volumes.pools.active(options.pool)
    const files = pool.backend.volumes instanceof FileVolumes ? pool.backend.volumes : undefined
    const there = options.isResumed ? volumeIn(pool, name) : undefined
    const resume = files === undefined ? options.resume : await onItsMount(files.directory, options)
    const job = { kind: 'volume_import', name, takes: [name], resume }
    // It has its name only when it is whole: the daemon was killed between that and the job's end.
    const isWhole =
      there !== undefined &&
      (files === undefined ? pool.backend.volumes.canHide : !(await files.hasPartial(name)))
    if (isWhole === true) return startDone(this.#volumes, pool, job)
    if (there?.identity !== identity) this.#volumes.claims.refuseName(pool, name)
    else refuseInUse(there, 'imported', await this.#volumes.useOfMedium(there), `${pool.name}/${name}`)
    const source = await sourceOf(options.source, this.#volumes)
    const format = formatFor(name, source, options.format ?? (files === undefined ? 'raw' : undefined))
    if (source.kind === 'file' && source.format === 'raw' && options.format === undefined) {
      refusePacked(source.text, await readHead(source.path))
    }
    const plan = { source, name, permissions, format, isResumed: options.isResumed, identity }
    if (files === undefined && plan.format !== 'raw') {
      throw new RpcError(
        'EINVAL',
        `pool ${pool.name} is of type ${pool.document.type}, whose volumes are raw: ${name} cannot be ${plan.format}`,
      )
    }
    if (files === undefined && source.kind === 'http') {
      throw new RpcError(
        'ENOTSUP',
        `${source.text} cannot be read into pool ${pool.name} of type ${pool.document.type}: ` +
          'import it into a directory pool first, and that volume into this one',
      )
    }
    return startJob(this.#volumes, pool, { ...job, ...this.#holding(source) }, progress =>
      files === undefined ? this.#fillVolume(pool, plan, progress) : this.#fillFile(files, plan, progress),
    )
  }

  /** The volume as a file that is not a volume. */
  async save(
    found: Found,
    file: string,
    format: VolumeFormat | undefined,
    { call, isResumed, mount }: Omit<Again, 'identity'> & { readonly mount: string | undefined },
  ): Promise<{ job_id: number }> {
    const { pool, volume } = found
    if (!isAbsolute(file)) {
      throw new RpcError(
        'EINVAL',
        `${file} is relative, and the daemon may be elsewhere: give a path from / on`,
      )
    }
    const name = basename(file)
    checkFileName(name, 'a file')
    const files = new FileVolumes(pool.name, dirname(file), this.#options.replay)
    const names = await readdir(files.directory).catch((cause: NodeJS.ErrnoException) => {
      throw new RpcError((cause.code ?? 'EIO') as 'ENOENT', `${file} cannot be written: ${cause.message}`, {
        cause,
      })
    })
    const resume = await onItsMount(files.directory, { resume: pinned(found, call), mount, isResumed })
    const job = { kind: 'volume_save', name: volume.name, takes: [], resume }
    // A file has its name only when it is whole: the daemon was killed between that and the job's end.
    if (isResumed && names.includes(name) && !names.includes(partialName(name))) {
      return startDone(this.#volumes, pool, job)
    }
    if (names.includes(name))
      throw new RpcError('EEXIST', `${file} exists already: name another file, or remove it`)
    const source = await volumeSource(found, this.#volumes)
    const plan = {
      ...{ source, name, permissions: undefined, isResumed, identity: '' },
      format: formatFor(name, source, format),
    }
    return startJob(this.#volumes, pool, { ...job, ...this.#holding(source) }, progress =>
      this.#fillFile(files, plan, progress),
    )
  }

  /** The volume that a copy is made of, which nobody is to change meanwhile; and a last look whether somebody does. */
  #holding(source: TransferSource): Pick<VolumeJob, 'holds' | 'check'> {
    if (source.kind !== 'file' && source.kind !== 'bdev') return {}
    const { volume, facts } = source
    return {
      holds: volume === undefined ? [] : [volume],
      check: async () => refuseInUse(facts, 'read', await this.#volumes.useOfMedium(facts), volume),
    }
  }

  async #fillFile(files: FileVolumes, plan: Plan, progress: Progress): Promise<void> {
    const partial = new PartialFile(files, plan.name)
    try {
      const { source, format } = plan
      if (source.kind === 'http') await this.#downloadFile(partial, source.text, format, progress)
      else if (isAsItIs(source, format)) await copyBytes(partial, source, progress)
      else await this.#copyContent(files, partial, plan, progress)
      await refuseChanged(source)
      await partial.finish(plan.permissions)
    } catch (error) {
      const failure = writeError(files.directory, error)
      if (progress.signal.reason === DAEMON_STOPS) throw failure
      await partial.discard().catch(() => {
        // On a file system that has become read only.
      })
      throw failure
    }
  }

  async #downloadFile(
    partial: PartialFile,
    url: string,
    format: VolumeFormat | undefined,
    progress: Progress,
  ): Promise<void> {
    const wanted = { source: url, format: format ?? '' }
    const earlier = await partial.resume(wanted)
    const sink = await FileSink.file(partial.path, undefined, earlier === undefined)
    try {
      const state = { doneBytes: earlier?.doneBytes ?? 0, validator: earlier?.identity ?? '' }
      // What is gone on with told its size when it began.
      let hasEnd = true
      const size = await download(
        url,
        state,
        {
          begin: async (head, totalBytes) => {
            refuseOther(url, head, format)
            if (format === undefined) refusePacked(url, head)
            hasEnd = totalBytes !== undefined
            await checkRoom(partial.path, totalBytes ?? 0)
          },
          restart: () => sink.truncate(0),
          write: (bytes, offset) => sink.writeBytes(bytes, offset),
          remember: async ({ doneBytes, validator: identity }) => {
            await sink.flush()
            await partial.remember({ ...wanted, identity, doneBytes })
            if (!hasEnd) await refuseFlood(url, partial.path)
          },
        },
        progress,
      )
      // A file that was there before may have been longer.
      await sink.truncate(size)
      await sink.flush()
      const { backing } = await probe(partial.path, size)
      if (backing !== undefined) throw standsOnOurs(url, backing.path)
    } finally {
      await sink.close()
    }
  }

  /** A disk's content into a new image. */
  async #copyContent(
    files: FileVolumes,
    partial: PartialFile,
    plan: Plan,
    progress: Progress,
  ): Promise<void> {
    const { source, name, format = 'raw' } = plan
    await this.#withSource(plan, progress, async from => {
      const identity = identityIn(source, from.sizeBytes)
      const note = { source: source.text, format, identity }
      const earlier = await partial.resume(note)
      const options = {
        ...progress,
        fromBytes: earlier?.doneBytes ?? 0,
        checkpoint: (doneBytes: number) => partial.remember({ ...note, doneBytes }),
      }
      if (format === 'raw' || format === 'iso') {
        const sink = await FileSink.file(partial.path, from.sizeBytes, earlier === undefined)
        return copyAndClose(from, sink, options)
      }
      if (earlier === undefined) {
        await files.createImage(partial.path, { name, format, capacityBytes: from.sizeBytes }, progress)
        await partial.remember({ ...note, doneBytes: 0 })
      } else {
        // Interrupted, it may count clusters that nobody has.
        await checkImage(partial.path, { repair: true }, { signal: progress.signal })
      }
      const facts = { name, key: partial.path, path: partial.path, type: 'file', format } as const
      const opening = fileOpening(
        { ...facts, capacityBytes: undefined, allocationBytes: undefined },
        { readOnly: false },
      )
      return this.#withBdev(opening, 'zeroed', sink => copyDisk(from, sink, options))
    })
  }

  /**
   * Into a volume that is no file: it is made first, under a hidden name where it can have one, and goes again when it cannot
   * be filled. One that somebody else has made meanwhile is neither filled nor taken away.
   */
  async #fillVolume(pool: Pool, plan: Plan, progress: Progress): Promise<void> {
    const { volumes: operations } = pool.backend
    const name = operations.canHide ? partialName(plan.name) : plan.name
    const find = async (): Promise<VolumeFacts | undefined> =>
      (await pool.backend.refresh()).volumes.find(each => each.name === name)
    const isOurs = ({ identity }: VolumeFacts): boolean =>
      operations.canHide === true || identity === plan.identity
    let isMade = false
    try {
      await this.#withSource(plan, progress, async from => {
        let volume = await find()
        if (volume !== undefined && !isOurs(volume)) throw taken(pool, name)
        if (volume !== undefined && operations.canHide) {
          await deleteLeftover(operations, volume, progress.signal)
          volume = undefined
        }
        if (volume === undefined) {
          await this.#makeVolume(pool, { ...plan, name }, from.sizeBytes, progress)
          volume = await find()
        }
        isMade = true
        if (volume === undefined) throw new RpcError('ENOENT', `volume ${name} of pool ${pool.name} has gone`)
        const options = { ...progress, fromBytes: 0 }
        if (volume.type === 'block') return copyAndClose(from, await FileSink.device(volume.path), options)
        const opening = pool.backend.opening(volume, { readOnly: false })
        return this.#withBdev(opening, 'zeroed', sink => copyDisk(from, sink, options))
      })
      await refuseChanged(plan.source)
      if (name !== plan.name) await operations.rename!((await find())!, plan.name)
    } catch (error) {
      const left = progress.signal.reason === DAEMON_STOPS ? undefined : await find()
      if (left !== undefined && (isMade || isOurs(left))) await operations.delete?.(left)
      throw error
    }
  }

  #makeVolume(pool: Pool, plan: Plan, sizeBytes: number, progress: Progress): Promise<void> {
    const { name, permissions, identity } = plan
    return operationOf(pool, 'create')(
      {
        ...{ name, format: 'raw', capacityBytes: sizeBytes, preallocation: 'off', permissions, identity },
        features: {},
      },
      progress,
    )
  }

  /** Lends the content of a source. */
  async #withSource(
    { source, isResumed }: Plan,
    { signal }: Progress,
    work: (from: Source) => Promise<void>,
  ): Promise<void> {
    if (source.kind === 'http') throw new RpcError('ENOTSUP', `${source.text} is not read in pieces`)
    if (source.kind === 'bdev') return this.#withBdev(source.opening, 'read', work)
    if (source.kind === 'file' && source.opening !== undefined) {
      return this.#withBdev(source.opening, 'read', work)
    }
    const from =
      source.kind === 'file'
        ? await FileSource.open(source.path)
        : await openNbd(source.text, isResumed ? RESUME_ATTEMPTS : 1, signal)
    try {
      await work(from)
    } finally {
      await from.close()
    }
  }

  /** Lends a bdev that is there only for that. */
  async #withBdev(
    { method, params }: MethodCall,
    use: 'read' | 'zeroed',
    work: (disk: BdevDisk) => Promise<void>,
  ): Promise<void> {
    const { bdevs, reactors, replay } = this.#options
    const name = `transfer${++this.#lastId}`
    bdevs.unsaved.add(name)
    try {
      // Two copies of one volume are two devices over one medium, which would have one UUID.
      const uuid = TAKES_UUID.test(method) ? { uuid: randomUUID() } : {}
      await replay(method, { ...params, ...uuid, name })
      const disk = await BdevDisk.open(bdevs, reactors, name, 'a copy of its content', use)
      try {
        await work(disk)
      } finally {
        await disk.close()
      }
    } finally {
      if (bdevs.find(name) !== undefined) await bdevs.remove(name)
      bdevs.unsaved.delete(name)
    }
  }
}

function taken(pool: Pool, name: string): RpcError {
  return new RpcError('EEXIST', `pool ${pool.name} has a volume ${name} already: choose another name`)
}

const TAKES_UUID = /^bdev_(aio|uring|qcow2|rbd)_create$/

/** Every other second: a machine that starts has its servers by then. */
const RESUME_ATTEMPTS = 30
const RETRY_MS = 2000

async function openNbd(uri: string, attempts: number, signal: AbortSignal): Promise<NbdSource> {
  for (let left = attempts; ; left--) {
    try {
      return await NbdSource.open(uri)
    } catch (error) {
      if (left <= 1 || (error as RpcError).code !== 'ECONNREFUSED') throw error
      log.notice(`${(error as Error).message}: it is tried again`)
      await delay(RETRY_MS, undefined, { signal })
    }
  }
}

/** Somebody else's image that names a file beneath it would show that file of this machine. */
function standsOnOurs(url: string, path: string): RpcError {
  return new RpcError(
    'EINVAL',
    `${url} is an image that stands on ${path}, which would be looked for on this machine: have it flattened where it ` +
      'is (qemu-img convert)',
  )
}

/** As a disk it would be noise. */
function refusePacked(text: string, head: Buffer): void {
  const found = PACKERS.find(({ magic }) => head.subarray(0, magic.length).equals(magic))
  if (found === undefined) return
  throw new RpcError(
    'EINVAL',
    `${text} is packed: unpack it first (${found.unpack}), or take it as it is with --format raw`,
  )
}

const PACKERS = [
  { magic: Buffer.from('1f8b08', 'hex'), unpack: 'gunzip' },
  { magic: Buffer.from('28b52ffd', 'hex'), unpack: 'zstd -d' },
  { magic: Buffer.from('fd377a585a00', 'hex'), unpack: 'xz -d' },
  { magic: Buffer.from('425a68', 'hex'), unpack: 'bzip2 -d' },
] as const

/** What a server that never ends leaves to the other volumes. */
const ROOM_KEPT = 0.02

async function refuseFlood(url: string, path: string): Promise<void> {
  const { blocks, bavail, bsize } = await statfs(dirname(path))
  if (bavail > blocks * ROOM_KEPT) return
  throw new RpcError(
    'ENOSPC',
    `${url}: it has no end yet, and ${dirname(path)} has ${formatSize(bavail * bsize)} left, which its other volumes need`,
  )
}

/** Who writes without a lock is known by what he leaves: half of a file from before and half from after is neither. */
async function refuseChanged(source: TransferSource): Promise<void> {
  if (source.kind !== 'file' || (await identityOf(source.path)) === source.identity) return
  throw new RpcError(
    'ESTALE',
    `${source.text} was written to while it was read: have whoever does that stop, and begin again`,
  )
}

interface Plan {
  readonly source: TransferSource
  readonly name: string
  readonly format: VolumeFormat | undefined
  readonly permissions: Permissions | undefined
  /** It is gone on with: then its server may be starting, too. */
  readonly isResumed: boolean
  /** Of the volume that is made. */
  readonly identity: string
}

type FileTransfer = Extract<TransferSource, { kind: 'file' }>

/**
 * The call with where the file system is mounted that a directory is on. Throws `RpcError` EAGAIN where that has not come yet since
 * the daemon was stopped: what is begun anew in its mount point fills another file system, and is found by nobody.
 */
async function onItsMount(
  directory: string,
  { resume, mount, isResumed }: Pick<ImportOptions, 'resume' | 'mount' | 'isResumed'>,
): Promise<MethodCall> {
  const now = mountOf(await readMounts(), directory)?.mountPoint ?? '/'
  if (isResumed && mount !== undefined && mount !== now) {
    throw new RpcError(
      'EAGAIN',
      `${directory} was on the file system that is mounted on ${mount}, and is on that of ${now}: this goes on when it is mounted`,
    )
  }
  return { method: resume.method, params: { ...resume.params, mount: now } }
}

/** What a note says of the source, so that half of it as it was and half as it is by then are not put together. */
function identityIn(source: TransferSource, sizeBytes: number): string {
  if (source.kind === 'file') return source.identity
  // Nobody tells whether an image of Ceph was written to meanwhile: it is begun again.
  return source.kind === 'bdev' ? randomUUID() : String(sizeBytes)
}

/** What the new volume is to be. Undefined for what a web server has, which only its bytes tell. */
function formatFor(
  name: string,
  source: TransferSource,
  given: VolumeFormat | undefined,
): VolumeFormat | undefined {
  if (given !== undefined && given !== 'raw' && given !== 'qcow2' && given !== 'iso') {
    throw new RpcError('ENOTSUP', `${name} cannot be made ${given} here: raw and qcow2 can`)
  }
  if (source.kind !== 'file') return source.kind === 'http' ? given : (given ?? 'raw')
  const { format, text } = source
  if (format !== 'raw' && format !== 'iso' && format !== 'qcow2') {
    throw new RpcError(
      'ENOTSUP',
      `${text} is ${format}, which is not read here: qemu-img convert makes it qcow2`,
    )
  }
  return given ?? format
}

const isAsItIs = (source: TransferSource, format: VolumeFormat | undefined): source is FileTransfer =>
  source.kind === 'file' &&
  source.isWhole &&
  (source.format === format || (source.format === 'iso' && format === 'raw'))

/** The bytes of a file, whatever they are; shared with it where the file system can. */
async function copyBytes(partial: PartialFile, source: FileTransfer, progress: Progress): Promise<void> {
  const note = { source: source.text, format: source.format, identity: source.identity }
  const earlier = await partial.resume(note)
  if (earlier === undefined && (await reflink(source.path, partial.path).catch(() => false))) return
  const from = await FileSource.open(source.path)
  try {
    const sink = await FileSink.file(partial.path, from.sizeBytes, earlier === undefined)
    await copyAndClose(from, sink, {
      ...progress,
      fromBytes: earlier?.doneBytes ?? 0,
      checkpoint: doneBytes => partial.remember({ ...note, doneBytes }),
    })
  } finally {
    await from.close()
  }
}

async function copyAndClose(
  from: Source,
  sink: Sink,
  options: Parameters<typeof copyDisk>[2],
): Promise<void> {
  try {
    await copyDisk(from, sink, options)
  } finally {
    await sink.close()
  }
}

function refuseOther(url: string, head: Buffer, wanted: VolumeFormat | undefined): void {
  const { format } = probeHead(head, head.length)
  const isWanted = wanted === undefined || format === wanted || (format === 'raw' && wanted === 'iso')
  if (isWanted) return
  throw new RpcError(
    'EINVAL',
    `${url} is ${format}, not ${wanted}: import it as it is, and then that volume with --format ${wanted}`,
  )
}
