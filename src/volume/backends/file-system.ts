/** Pools that are mounted on a directory: `fs` from a block device, `netfs` from a server, `gluster` by its mount. */
import { setTimeout as delay } from 'node:timers/promises'
import { RpcError } from '../../core/errors.ts'
import { fileSystemUsage } from '../../core/file-system-usage.ts'
import { logger } from '../../core/log.ts'
import { type Mount, mountAt, readMounts } from '../../core/mounts.ts'
import { realPath } from '../../core/real-path.ts'
import type { PoolDocument, PoolUsage } from '../../libvirt/pool-xml.ts'
import { fileBehind, refuseFormatted } from '../block-devices.ts'
import type { BuildMode, PoolBackendType, PoolServices, StopOptions } from '../pool.ts'
import type { Remote } from '../reach.ts'
import { explained, install, runTool } from '../tools.ts'
import { DirectoryPool } from './directory.ts'

const log = logger('volume')

/** As libvirt has them: an image in a pool is data, whatever it says of itself. */
const SAFE_OPTIONS = ['nodev', 'nosuid', 'noexec']
/** A server that does not answer is told after this time. */
const MOUNT_TIMEOUT_MS = 90_000
/** What waits for a server is ended sooner or later. */
const UNMOUNT_TIMEOUT_MS = 30_000
/** Some seconds, in which what waits is ended as long as more of it comes. */
const LET_GO_ATTEMPTS = 12
const LET_GO_PAUSE_MS = 250
/** Where pools without a target of their own are mounted. */
const MOUNTS = '/run/qpair/pools'

export const fileSystemPool: PoolBackendType = {
  type: 'fs',
  summary: 'A block device with a file system, mounted on a directory whose files are the volumes.',
  create(document, services) {
    const device = document.source.devices![0]!.path
    const { format = 'auto' } = document.source
    return new MountedPool(document, services, { source: device, type: format, options: [], device })
  },
}

export const networkFileSystemPool: PoolBackendType = {
  type: 'netfs',
  summary: 'A directory of a server (NFS, SMB, Gluster), mounted on a directory.',
  create: (document, services) => new MountedPool(document, services, networkSource(document)),
}

export const glusterPool: PoolBackendType = {
  type: 'gluster',
  summary: `A Gluster volume, mounted as a directory below ${MOUNTS}: its own client fails over.`,
  create(document, services) {
    const { hosts, name, dir = '/' } = document.source
    const source = `${bracketed(hosts![0]!.name)}:/${name}${dir === '/' ? '' : `/${dir.replace(/^\/+/, '')}`}`
    const servers = hosts!.slice(1).map(host => host.name)
    const options = servers.length === 0 ? [] : [`backup-volfile-servers=${servers.join(':')}`]
    const target = { path: `${MOUNTS}/${document.name}` }
    return new MountedPool({ ...document, target }, services, { source, type: 'glusterfs', options })
  },
}

interface MountSource {
  readonly source: string
  /** As of `mount -t`. */
  readonly type: string
  readonly options: readonly string[]
  /** What `build` may format. */
  readonly device?: string
}

function networkSource({ name, source }: PoolDocument): MountSource {
  const { format = 'auto', dir, hosts, protocolVersion } = source
  const host = hosts![0]!
  if (hosts!.length > 1) {
    const names = hosts!.map(each => each.name).join(', ')
    throw new RpcError('EINVAL', `pool ${name} has ${hosts!.length} hosts (${names}): a netfs pool has one`)
  }
  const port = host.port === undefined ? [] : [`port=${host.port}`]
  switch (format) {
    case 'cifs':
      return {
        source: `//${host.name}/${dir!.replace(/^\/+/, '')}`,
        type: 'cifs',
        options: ['guest', ...port],
      }
    case 'glusterfs':
      return { source: `${bracketed(host.name)}:${dir}`, type: 'glusterfs', options: ['direct-io-mode=1'] }
    default: {
      const version = protocolVersion === undefined ? [] : [`nfsvers=${protocolVersion}`]
      return { source: `${bracketed(host.name)}:${dir}`, type: 'nfs', options: [...version, ...port] }
    }
  }
}

const bracketed = (host: string): string => (host.includes(':') ? `[${host}]` : host)

export class MountedPool extends DirectoryPool {
  /** What is mounted from a server. */
  readonly remote?: Remote
  readonly #mount: MountSource
  /** What the kernel calls that, once it is mounted. */
  #found: string | undefined

  constructor(document: PoolDocument, services: PoolServices, mount: MountSource) {
    super(document, services)
    this.#mount = mount
    if (mount.device === undefined) {
      this.remote = { where: mount.source, ask: signal => this.#askForUsage(signal) }
    }
  }

  override async build(mode: BuildMode): Promise<void> {
    if (!(await this.isStarted())) await this.makeDirectory()
    if (mode === 'default') return
    const { device } = this.#mount
    if (device === undefined) {
      throw new RpcError(
        'EINVAL',
        `pool ${this.document.name} is on a server and is not formatted from here: leave --${mode} out`,
      )
    }
    if (mode === 'no-overwrite') await refuseFormatted(`pool ${this.document.name} cannot be built`, device)
    await this.#format(device)
  }

  async isStarted(): Promise<boolean> {
    const mount = mountAt(await readMounts(), this.path)
    return mount !== undefined && (await this.#isOurs(mount))
  }

  /** An empty mount point is no empty pool: what was made there would be on another file system, and be found by nobody. */
  protected override async requireStorage(): Promise<void> {
    if (this.#found === undefined) return
    const now = mountAt(await readMounts(), this.path)?.source
    if (now === this.#found) return
    const { name } = this.document
    throw new RpcError(
      'ENOTCONN',
      `pool ${name}: ${this.#found} is not mounted on ${this.path} any more, but ${now ?? 'nothing'}, which was not done from ` +
        `here: qpair pool destroy ${name}, and then qpair pool start ${name}`,
    )
  }

  override async start(): Promise<void> {
    const { name } = this.document
    const mount = mountAt(await readMounts(), this.path)
    if (mount !== undefined && !(await this.#isOurs(mount))) {
      throw new RpcError(
        'EBUSY',
        `${this.path}, the target of pool ${name}, has ${mount.source} mounted on it, not ${this.#mount.source}: ` +
          'unmount that, or give the pool another target',
      )
    }
    if (mount === undefined) {
      if (this.document.type === 'gluster') await this.makeDirectory()
      await this.requireDirectory()
      await this.#mountIt()
    }
    this.#found = mountAt(await readMounts(), this.path)?.source
    await super.start()
  }

  override async stop({ isForced }: StopOptions = { isForced: false }): Promise<void> {
    if (!(await this.isStarted())) return
    if (isForced) return this.#letGo()
    await this.#unmount([], said =>
      /busy/.test(said)
        ? `Somebody uses files below ${this.path}: fuser -vm ${this.path} says who; this daemon itself where volumes are exported`
        : undefined,
    )
  }

  /**
   * Ends what waits for the server, and then has nobody find the mount any more; whoever has files open keeps them. Each time
   * that fails is what waits just then: a write of many pieces takes several.
   */
  async #letGo(): Promise<void> {
    for (let attempt = 0; attempt < LET_GO_ATTEMPTS; attempt++) {
      await this.#unmount(['--force']).catch(() => {})
      if (!(await this.isStarted())) return
      await delay(LET_GO_PAUSE_MS)
    }
    await this.#unmount(['--force', '--lazy'])
    log.warning(
      `pool ${this.document.name}: files of ${this.#mount.source} are still open, and I/O to them waits until it answers: ` +
        'volumes that are exported keep their bdevs, which bdev_get_bdevs lists',
    )
  }

  /** Without a look at the path, which a server that has gone would not let end. */
  async #unmount(words: readonly string[], remedy?: (said: string) => string | undefined): Promise<void> {
    const args = ['--no-canonicalize', ...words, this.path]
    const options = { timeoutMs: UNMOUNT_TIMEOUT_MS, ...(remedy === undefined ? {} : { remedy }) }
    await runTool(`pool ${this.document.name} cannot be unmounted`, 'umount', args, options)
  }

  /** As a file system on a server is asked: no thread of the daemon waits for it. */
  override usage(): Promise<PoolUsage> {
    return this.remote === undefined ? super.usage() : this.#askForUsage()
  }

  #askForUsage(signal?: AbortSignal): Promise<PoolUsage> {
    return explained('it does not tell its size', fileSystemUsage(this.path, signal))
  }

  async #mountIt(): Promise<void> {
    const { source, type, options } = this.#mount
    const all = [...SAFE_OPTIONS, ...options, ...(this.document.mountOptions ?? [])]
    const args = ['-t', type, '-o', all.join(','), source, this.path]
    await runTool(`pool ${this.document.name} cannot be mounted`, 'mount', args, {
      timeoutMs: MOUNT_TIMEOUT_MS,
      remedy: said => mountRemedy(said, type) ?? (type === 'glusterfs' ? this.#glusterRemedy() : undefined),
    })
  }

  /** Its mount program says no more than that it has failed. */
  #glusterRemedy(): string {
    const { source } = this.#mount
    const log = `/var/log/glusterfs/${this.path.slice(1).replaceAll('/', '-')}.log`
    return `Is ${source} started (gluster volume info), and does its server answer at port 24007? ${log} says more`
  }

  /** The kernel says another name of what we gave: a loop device for a file, a real path for a link. */
  async #isOurs(mount: Mount): Promise<boolean> {
    const { source } = this.#mount
    if (mount.source.replace(/\/$/, '') === source.replace(/\/$/, '')) return true
    if (!source.startsWith('/') || source.startsWith('//')) return false
    const ours = await realPath(source)
    // What was given may be the loop device itself.
    for (const seen of [mount.source, await fileBehind(mount.source)]) {
      if ((await realPath(seen)) === ours) return true
    }
    return false
  }

  async #format(device: string): Promise<void> {
    const { name, source } = this.document
    const { format = 'auto' } = source
    const force = FORCE[format]
    if (force === undefined) {
      throw new RpcError(
        'EINVAL',
        `pool ${name} has the format ${format}, which is not made here: one of ${Object.keys(FORCE).join(', ')} is`,
      )
    }
    await runTool(`pool ${name} cannot be formatted`, `mkfs.${format}`, [...force, device], {
      timeoutMs: Number.POSITIVE_INFINITY,
    })
  }
}

/** Formats that are made here, and how their programs are told not to ask. */
const FORCE: Readonly<Record<string, readonly string[]>> = {
  ext2: ['-q', '-F'],
  ext3: ['-q', '-F'],
  ext4: ['-q', '-F'],
  xfs: ['-q', '-f'],
  vfat: [],
}

function mountRemedy(said: string, type: string): string | undefined {
  const helper = type === 'nfs' ? 'mount.nfs' : `mount.${type}`
  if (/need a \/sbin\/mount\./.test(said)) return `There is no ${helper}: ${install(helper)}`
  if (/wrong fs type/.test(said))
    return 'If nothing is on it yet: qpair pool build POOL --no-overwrite formats it'
  // mount.nfs says it so; of other types it may be the device.
  if (/unknown filesystem type/.test(said) || (type === 'nfs' && /No such device/.test(said)))
    return `The kernel has no ${type}, or its module is not loaded: modprobe ${type}`
  if (/does not exist|No such (file|device)/.test(said)) return 'Is the source of the pool there?'
  return undefined
}
