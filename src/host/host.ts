/** The machine as the checks see it: its files under a root, its processor, its environment. */
import { accessSync, constants, readdirSync, readFileSync, readlinkSync } from 'node:fs'
import { release } from 'node:os'
import { join } from 'node:path'
import { RpcError } from '../core/errors.ts'

/** What means "it is not there for us" rather than that something is broken. */
const ABSENT: readonly (string | undefined)[] = ['ENOENT', 'ENOTDIR', 'EACCES', 'EPERM', 'EINVAL']

export interface HostOptions {
  /** Where its files are: `/` but for tests. */
  readonly root?: string
  /** As `process.arch`. */
  readonly arch?: string
  /** As `uname -r`. */
  readonly kernelRelease?: string
  readonly env?: Readonly<Record<string, string | undefined>>
}

export class Host {
  readonly arch: string
  readonly kernelRelease: string
  readonly env: Readonly<Record<string, string | undefined>>
  readonly #root: string

  constructor(options: HostOptions = {}) {
    this.#root = options.root ?? '/'
    this.arch = options.arch ?? process.arch
    this.kernelRelease = options.kernelRelease ?? release()
    this.env = options.env ?? process.env
  }

  /** The real path of one of its files. */
  path(path: string): string {
    return join(this.#root, path)
  }

  exists(path: string): boolean {
    return this.#may(path, constants.F_OK)
  }

  mayReadAndWrite(path: string): boolean {
    return this.#may(path, constants.R_OK | constants.W_OK)
  }

  #may(path: string, mode: number): boolean {
    try {
      accessSync(this.path(path), mode)
      return true
    } catch {
      // Absent or forbidden is the answer.
      return false
    }
  }

  /** A file's text, trimmed; undefined when it is not there or cannot be read. */
  read(path: string): string | undefined {
    return this.#unlessAbsent(path, real => readFileSync(real, 'utf8').trim())
  }

  /** The names in a directory; none when it is not there. */
  list(path: string): readonly string[] {
    return this.#unlessAbsent(path, real => readdirSync(real)) ?? []
  }

  #unlessAbsent<T>(path: string, read: (path: string) => T): T | undefined {
    try {
      return read(this.path(path))
    } catch (cause) {
      if (ABSENT.includes((cause as NodeJS.ErrnoException).code)) return undefined
      throw new RpcError('EIO', `cannot read ${path}: ${(cause as Error).message}`, { cause })
    }
  }

  /** Where a symbolic link leads, as it says; empty when there is none. */
  link(path: string): string {
    return this.#unlessAbsent(path, real => readlinkSync(real)) ?? ''
  }

  /** The path of a program, or undefined: looked for where a shell would look, and where administrators' programs are. */
  program(name: string): string | undefined {
    const folders = [...(this.env['PATH'] ?? '').split(':'), '/usr/sbin', '/sbin', '/usr/libexec']
    return folders.map(folder => join(folder, name)).find(path => this.exists(path))
  }

  /** Whether a kernel module is loaded or can be: there as a file, or built in. */
  moduleState(name: string): 'loaded' | 'loadable' | 'absent' {
    const plain = name.replaceAll('-', '_')
    if (this.exists(`/sys/module/${plain}`)) return 'loaded'
    const lists = ['modules.dep', 'modules.builtin'].map(
      list => this.read(join('/lib/modules', this.kernelRelease, list)) ?? '',
    )
    const pattern = new RegExp(`/${plain.replaceAll('_', '[-_]')}\\.ko`, 'm')
    return lists.some(list => pattern.test(list)) ? 'loadable' : 'absent'
  }

  /** The flags of the first processor, as /proc/cpuinfo has them. */
  get processorFlags(): readonly string[] {
    const line = /^(?:flags|Features|features)\s*:\s*(.*)$/m.exec(this.read('/proc/cpuinfo') ?? '')
    return line?.[1]?.split(' ') ?? []
  }
}
