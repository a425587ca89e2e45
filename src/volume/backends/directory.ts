/** `dir`: a directory whose files are the volumes. The same for whatever is mounted on one: see `file-system.ts`. */
import { chmod, chown, mkdir, rmdir, stat } from 'node:fs/promises'
import { RpcError } from '../../core/errors.ts'
import type { PoolDocument, PoolUsage } from '../../libvirt/pool-xml.ts'
import { FileVolumes, fileOpening } from '../file-volumes.ts'
import type { BuildMode, PoolBackend, PoolBackendType, PoolContents, PoolServices } from '../pool.ts'

/** libvirt's, for a directory that it makes and whose document says nothing. */
const DEFAULT_MODE = 0o711

export const directoryPool: PoolBackendType = {
  type: 'dir',
  summary: 'A directory whose files are the volumes.',
  create: (document, services) => new DirectoryPool(document, services),
}

export class DirectoryPool implements PoolBackend {
  readonly volumes: FileVolumes
  readonly opening = fileOpening
  protected readonly document: PoolDocument

  constructor(document: PoolDocument, { call }: PoolServices) {
    this.document = document
    // Documents of these types have a target: their reader has seen to it.
    const { path } = document.target!
    this.volumes = new FileVolumes(document.name, path, call, () => this.requireStorage())
  }

  get path(): string {
    return this.volumes.directory
  }

  async build(mode: BuildMode): Promise<void> {
    if (mode !== 'default') {
      throw new RpcError(
        'EINVAL',
        `pool ${this.document.name} is a directory, which is not formatted: leave --${mode} out`,
      )
    }
    await this.makeDirectory()
  }

  /** Makes the directory, and the ones above it; owner and mode are the document's also where it was there. */
  protected async makeDirectory(): Promise<void> {
    const { mode, owner, group } = this.document.target!.permissions ?? {}
    try {
      const made = await mkdir(this.path, { recursive: true, mode: DEFAULT_MODE })
      if (owner !== undefined || group !== undefined) await chown(this.path, owner ?? -1, group ?? -1)
      // Whatever the umask has taken away.
      if (mode !== undefined || made !== undefined) await chmod(this.path, mode ?? DEFAULT_MODE)
    } catch (cause) {
      throw cannot(`make the directory of pool ${this.document.name}`, cause)
    }
  }

  /** Throws when what is at the path is not the storage of the pool. */
  protected async requireStorage(): Promise<void> {}

  async start(): Promise<void> {
    await this.requireDirectory()
  }

  async identity(): Promise<string> {
    const { dev, ino } = await stat(this.path)
    return `directory ${dev}:${ino}`
  }

  removeLeftovers(): Promise<void> {
    return this.volumes.removeLeftovers()
  }

  protected async requireDirectory(): Promise<void> {
    const stats = await stat(this.path).catch((cause: NodeJS.ErrnoException) => {
      const remedy =
        cause.code === 'ENOENT'
          ? `; qpair pool build ${this.document.name} makes it, or this command with --build`
          : ''
      throw new RpcError(
        codeOf(cause),
        `cannot open directory '${this.path}' of pool ${this.document.name}: ${cause.code}${remedy}`,
        { cause },
      )
    })
    if (!stats.isDirectory()) {
      throw new RpcError(
        'ENOTDIR',
        `${this.path}, the target of pool ${this.document.name}, is no directory: name one`,
      )
    }
  }

  async stop(): Promise<void> {}

  async refresh(): Promise<PoolContents> {
    try {
      return await this.volumes.list()
    } catch (cause) {
      throw cannot(`read the directory of pool ${this.document.name}`, cause)
    }
  }

  usage(): Promise<PoolUsage> {
    return this.volumes.usage()
  }

  async delete(): Promise<void> {
    try {
      await rmdir(this.path)
    } catch (cause) {
      throw cannot(`remove the directory of pool ${this.document.name} (it has to be empty)`, cause)
    }
  }
}

function cannot(what: string, cause: unknown): RpcError {
  return new RpcError(codeOf(cause), `cannot ${what}: ${(cause as Error).message}`, { cause })
}

function codeOf(cause: unknown): 'ENOENT' {
  // Node's errors of the file system carry names of errno, all of which `RpcError` takes.
  return ((cause as NodeJS.ErrnoException).code ?? 'EIO') as 'ENOENT'
}
