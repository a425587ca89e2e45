/** A file that is being filled under a hidden name, with a note of how far it is, so that it can be gone on with. */
import { lstat, readFile, rename, rm, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import type { Permissions } from '../../libvirt/pool-xml.ts'
import type { FileVolumes } from '../file-volumes.ts'
import { partialName, partialStateName } from '../volume-name.ts'

export interface PartialState {
  /** What it is filled from, and in which format: another source starts over. */
  readonly source: string
  readonly format: string
  /** What says that the source is still the same: its size and time, an ETag. */
  readonly identity: string
  readonly doneBytes: number
}

export class PartialFile {
  readonly path: string
  readonly #statePath: string
  readonly #files: FileVolumes
  readonly #name: string

  constructor(files: FileVolumes, name: string) {
    this.#files = files
    this.#name = name
    this.path = join(files.directory, partialName(name))
    this.#statePath = join(files.directory, partialStateName(name))
  }

  /**
   * How far an earlier attempt came from the same source; undefined when it starts anew, with nothing there. Without an
   * `identity` the source is still to be asked whether it is the same.
   */
  async resume(wanted: {
    readonly source: string
    readonly format: string
    readonly identity?: string
  }): Promise<PartialState | undefined> {
    await this.#files.require()
    const state = await this.#read()
    const isSame =
      state?.source === wanted.source &&
      state.format === wanted.format &&
      (wanted.identity === undefined || state.identity === wanted.identity)
    // A link that somebody has put there leads to another file.
    if (isSame && (await lstat(this.path).catch(() => undefined))?.isFile() === true) return state
    await this.discard()
    return undefined
  }

  /** Atomically: a note that is torn would be none. */
  async remember(state: PartialState): Promise<void> {
    await this.#files.require()
    await writeFile(`${this.#statePath}.new`, JSON.stringify(state), { mode: 0o600, flush: true })
    await rename(`${this.#statePath}.new`, this.#statePath)
  }

  /** It is whole: it gets its name. */
  finish(permissions: Permissions | undefined): Promise<void> {
    return this.#files.finish(this.#name, permissions)
  }

  async discard(): Promise<void> {
    for (const path of [this.path, this.#statePath, `${this.#statePath}.new`]) await rm(path, { force: true })
  }

  async #read(): Promise<PartialState | undefined> {
    try {
      return JSON.parse(await readFile(this.#statePath, 'utf8'))
    } catch {
      // There is none, or it is from a machine that stopped in the middle: the work starts anew.
      return undefined
    }
  }
}
