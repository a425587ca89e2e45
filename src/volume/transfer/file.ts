/** Files and block devices as ends of a copy. */
import { type FileHandle, open } from 'node:fs/promises'
import { RpcError } from '../../core/errors.ts'
import { fallocate } from '../../sys/libc.ts'
import { dataRanges, sizeOf } from '../formats/raw.ts'
import { PIECE_BYTES, type Piece, type Sink, type Source } from './copy.ts'

const PUNCH_HOLE_KEEP_SIZE = 0x03
const ZEROES = Buffer.alloc(PIECE_BYTES)

/** The bytes of a file, whatever they mean. */
export class FileSource implements Source {
  readonly sizeBytes: number
  readonly #path: string
  readonly #file: FileHandle

  private constructor(path: string, file: FileHandle) {
    this.#path = path
    this.#file = file
    this.sizeBytes = sizeOf(file.fd)
  }

  static async open(path: string): Promise<FileSource> {
    const file = await open(path, 'r').catch((cause: NodeJS.ErrnoException) => {
      throw new RpcError((cause.code ?? 'EIO') as 'ENOENT', `cannot read ${path}: ${cause.message}`, {
        cause,
      })
    })
    return new FileSource(path, file)
  }

  async *ranges(fromBytes: number): AsyncGenerator<readonly [number, number]> {
    yield* dataRanges(this.#file.fd, fromBytes, this.sizeBytes)
  }

  async read({ bytes }: Piece, offset: number, length: number): Promise<void> {
    for (let done = 0; done < length; ) {
      const { bytesRead } = await this.#file.read(bytes, done, length - done, offset + done)
      if (bytesRead === 0) {
        throw new RpcError(
          'EIO',
          `${this.#path} ends at ${offset + done} bytes, and had ${this.sizeBytes} before`,
        )
      }
      done += bytesRead
    }
  }

  close(): Promise<void> {
    return this.#file.close()
  }
}

export class FileSink implements Sink {
  readonly isZeroed: boolean
  readonly #file: FileHandle

  private constructor(file: FileHandle, isZeroed: boolean) {
    this.#file = file
    this.isZeroed = isZeroed
  }

  /** A file of that size if it is known, new or gone on with: what was not written reads as zeroes. */
  static async file(path: string, sizeBytes: number | undefined, isNew: boolean): Promise<FileSink> {
    const file = await open(path, isNew ? 'wx' : 'r+', 0o600)
    if (sizeBytes !== undefined) await file.truncate(sizeBytes)
    return new FileSink(file, true)
  }

  /** A block device, which holds whatever was on its blocks before. */
  static async device(path: string): Promise<FileSink> {
    return new FileSink(await open(path, 'r+'), false)
  }

  async write({ bytes }: Piece, offset: number, length: number): Promise<void> {
    await this.writeBytes(bytes.subarray(0, length), offset)
  }

  async writeBytes(bytes: Uint8Array, offset: number): Promise<void> {
    for (let done = 0; done < bytes.length; ) {
      const { bytesWritten } = await this.#file.write(bytes, done, bytes.length - done, offset + done)
      done += bytesWritten
    }
  }

  truncate(sizeBytes: number): Promise<void> {
    return this.#file.truncate(sizeBytes)
  }

  async zero(offset: number, length: number): Promise<void> {
    if (fallocate(this.#file.fd, PUNCH_HOLE_KEEP_SIZE, offset, length) === 0) return
    for (let done = 0; done < length; done += ZEROES.length) {
      await this.writeBytes(ZEROES.subarray(0, Math.min(ZEROES.length, length - done)), offset + done)
    }
  }

  flush(): Promise<void> {
    return this.#file.datasync()
  }

  close(): Promise<void> {
    return this.#file.close()
  }
}
