/** A hidden file that is being filled with a disk's content, in its format. */
import { checkImage } from '../../bdev/drivers/qcow2/image.ts'
import { logger } from '../../core/log.ts'
import type { MethodCall } from '../../rpc/config.ts'
import { fileOpening } from '../file-volumes.ts'
import type { VolumeFormat } from '../pool.ts'
import type { Source } from './copy.ts'
import { FileSource } from './file.ts'
import type { PartialFile, PartialState } from './partial.ts'
import type { ScratchBdevs } from './scratch-bdevs.ts'
import { isSameSoFar } from './so-far.ts'

const log = logger('volume')

export class PartialImage {
  /** The file is the content. */
  readonly isPlain: boolean
  readonly #partial: PartialFile
  readonly #format: VolumeFormat
  readonly #scratch: ScratchBdevs

  constructor(partial: PartialFile, format: VolumeFormat, scratch: ScratchBdevs) {
    this.isPlain = format === 'raw' || format === 'iso'
    this.#partial = partial
    this.#format = format
    this.#scratch = scratch
  }

  opening(readOnly: boolean): MethodCall {
    const { path } = this.#partial
    const unknown = { capacityBytes: undefined, allocationBytes: undefined }
    const facts = { name: path, key: path, path, type: 'file', format: this.#format, ...unknown } as const
    return fileOpening(facts, { readOnly })
  }

  /** How far an earlier attempt came, if what it has is what the source has; undefined when it starts anew, with nothing there. */
  async resume(
    note: Omit<PartialState, 'doneBytes'>,
    from: Source,
    signal: AbortSignal,
  ): Promise<PartialState | undefined> {
    const earlier = await this.#partial.resume(note)
    if (earlier === undefined) return undefined
    // Interrupted, it may count clusters that nobody has.
    if (!this.isPlain) await checkImage(this.#partial.path, { repair: true }, { signal })
    let isSame = true
    await this.#read(async copy => {
      isSame = await isSameSoFar(from, copy, earlier.doneBytes, signal)
    })
    if (isSame) return earlier
    log.warning(`${note.source} is no longer what ${this.#partial.path} was filled from: it is begun anew`)
    await this.#partial.discard()
    return undefined
  }

  async #read(look: (copy: Source) => Promise<void>): Promise<void> {
    if (!this.isPlain) return this.#scratch.lend(this.opening(true), 'read', look)
    const copy = await FileSource.open(this.#partial.path)
    try {
      await look(copy)
    } finally {
      await copy.close()
    }
  }
}
