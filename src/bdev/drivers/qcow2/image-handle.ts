/** An image that is open on the control thread: its file, its lock, its header, and reading and writing by promises. */
import {
  constants,
  fdatasync as fdatasyncCallback,
  ftruncate as ftruncateCallback,
  open as openCallback,
  read as readCallback,
  write as writeCallback,
} from 'node:fs'
import { stat } from 'node:fs/promises'
import { promisify } from 'node:util'
import { ProtocolError, type RpcCode, RpcError } from '../../../core/errors.ts'
import { whereItBegins } from '../../../core/relative-path.ts'
import { lockImage } from '../../../sys/image-lock.ts'
import { close, lseek } from '../../../sys/libc.ts'
import { requireServer } from '../file-server.ts'
import { encodeHeader, HEADER_BYTES_MAX, type Header, parseHeader } from './header.ts'

const open = promisify(openCallback)
const read = promisify(readCallback)
const write = promisify(writeCallback)
const fdatasync = promisify(fdatasyncCallback)
const ftruncate = promisify(ftruncateCallback)
const SEEK_END = 2
const PIECE = 4 << 20

/** A file with the locks of an image on it. */
export interface LockedFile {
  readonly fd: number
  readonly path: string
  readonly sizeBytes: number
}

/**
 * Opens a file or a block device with the locks that QEMU takes. Throws `RpcError`: ENOENT, EINVAL (what cannot be an
 * image), EACCES, EROFS, EPERM, EBUSY when another program has it. `create`: it must not exist yet.
 */
export async function openLocked(path: string, isReadOnly: boolean, create = false): Promise<LockedFile> {
  if (!create) await checkKind(path)
  const fd = await openFile(path, isReadOnly, create)
  if (!lockImage(fd, isReadOnly)) {
    close(fd)
    throw new RpcError(
      'EBUSY',
      `${path} is in use by another program, or by another device here: end that use first (fuser ${path} says whose)`,
    )
  }
  return { fd, path, sizeBytes: lseek(fd, 0, SEEK_END) }
}

const OPEN_REMEDIES: { readonly [code in RpcCode]?: string } = {
  EEXIST: 'delete it first, or choose another name',
  EROFS: 'remount its file system',
  ENOSPC: 'free room on its file system',
}

function openFile(path: string, isReadOnly: boolean, create: boolean): Promise<number> {
  const flags = isReadOnly ? constants.O_RDONLY : constants.O_RDWR
  return open(path, flags | (create ? constants.O_CREAT | constants.O_EXCL : 0), 0o644).catch(
    (cause: NodeJS.ErrnoException) => {
      const code = asCode(cause.code)
      const remedy = `${OPEN_REMEDIES[code] ?? 'check who owns it'}${isReadOnly || create ? '' : ', or use read_only: true'}`
      throw new RpcError(code, `cannot open ${path}: ${cause.code}; ${remedy}`, { cause })
    },
  )
}

async function checkKind(path: string): Promise<void> {
  const stats = await stat(path).catch((cause: NodeJS.ErrnoException) => {
    const remedy = cause.code === 'ENOENT' ? `: name an image that is there${whereItBegins(path)}` : ''
    throw new RpcError(asCode(cause.code), `cannot open ${path}: ${cause.code}${remedy}`, { cause })
  })
  if (stats.isFile() || stats.isBlockDevice()) return
  const what = stats.isDirectory() ? 'a directory' : 'neither'
  throw new RpcError('EINVAL', `an image is a file or a block device, and ${path} is ${what}`)
}

/** What to do when the file cannot be read or written. */
const REMEDIES = {
  ENOSPC: 'free room on its file system',
  EDQUOT: 'raise the quota of its owner, or free some of it',
  EFBIG: 'its tables point farther than files go: use qemu-img check',
  EROFS: 'its file system has become read-only: see the kernel log',
  EIO: 'look at the disk underneath, and the kernel log',
} as const

const CODES = ['ENOENT', 'EACCES', 'EROFS', 'EPERM', 'EEXIST', 'ENOSPC'] as const
const asCode = (code: string | undefined): (typeof CODES)[number] | 'EINVAL' =>
  CODES.find(known => known === code) ?? 'EINVAL'

/** The header's bytes as a header. Throws `RpcError` EINVAL that says what is wrong with the image. */
export async function readHeader(file: LockedFile): Promise<Header> {
  const bytes = Buffer.alloc(Math.min(HEADER_BYTES_MAX, file.sizeBytes))
  await read(file.fd, bytes, 0, bytes.length, 0)
  return explain(file.path, () => parseHeader(bytes, file.sizeBytes))
}

/** Has what an image has wrong told with its path. */
export function explain<T>(path: string, parse: () => T): T {
  try {
    return parse()
  } catch (cause) {
    if (!(cause instanceof ProtocolError)) throw cause
    throw new RpcError(
      'EINVAL',
      `${path} cannot be used as a qcow2 image: ${cause.message} (at byte ${cause.offsetBytes})`,
      {
        cause,
      },
    )
  }
}

/** What the operations on images work with. */
export class ImageHandle {
  readonly fd: number
  readonly path: string
  header: Header

  constructor(file: Pick<LockedFile, 'fd' | 'path'>, header: Header) {
    this.fd = file.fd
    this.path = file.path
    this.header = header
  }

  static async open(path: string, isReadOnly: boolean): Promise<ImageHandle> {
    await requireServer(path)
    const file = await openLocked(path, isReadOnly)
    try {
      return new ImageHandle(file, await readHeader(file))
    } catch (error) {
      close(file.fd)
      throw error
    }
  }

  /** Read only and without a lock, to be looked at while somebody else may have it. */
  static async peek(path: string): Promise<ImageHandle> {
    await checkKind(path)
    const fd = await openFile(path, true, false)
    const file = { fd, path, sizeBytes: lseek(fd, 0, SEEK_END) }
    try {
      return new ImageHandle(file, await readHeader(file))
    } catch (error) {
      close(fd)
      throw error
    }
  }

  close(): void {
    close(this.fd)
  }

  get fileSize(): number {
    return lseek(this.fd, 0, SEEK_END)
  }

  /** What lies behind the file's end is zero. */
  async read(offset: number, length: number): Promise<Buffer<ArrayBuffer>> {
    const bytes = Buffer.alloc(length)
    await this.readInto(bytes, offset)
    return bytes
  }

  async readInto(bytes: Uint8Array, offset: number): Promise<void> {
    this.#checkRange(offset, bytes.length)
    for (let done = 0; done < bytes.length; ) {
      const piece = Math.min(PIECE, bytes.length - done)
      const { bytesRead } = await this.#told('read', read(this.fd, bytes, done, piece, offset + done))
      if (bytesRead === 0) {
        bytes.fill(0, done)
        return
      }
      done += bytesRead
    }
  }

  async write(offset: number, bytes: Uint8Array): Promise<void> {
    this.#checkRange(offset, bytes.length)
    for (let done = 0; done < bytes.length; ) {
      const piece = Math.min(PIECE, bytes.length - done)
      const { bytesWritten } = await this.#told('write', write(this.fd, bytes, done, piece, offset + done))
      done += bytesWritten
    }
  }

  async sync(): Promise<void> {
    await this.#told('sync', fdatasync(this.fd))
  }

  async truncate(sizeBytes: number): Promise<void> {
    await this.#told('truncate', ftruncate(this.fd, sizeBytes))
  }

  /** Has what the system refuses said with the path and the remedy. */
  async #told<T>(what: string, work: Promise<T>): Promise<T> {
    return await work.catch((cause: NodeJS.ErrnoException) => {
      const { code = 'EIO' } = cause
      throw new RpcError(
        code in REMEDIES ? (code as keyof typeof REMEDIES) : 'EIO',
        `cannot ${what} ${this.path}: ${code}; ${REMEDIES[code as keyof typeof REMEDIES] ?? REMEDIES.EIO}`,
        { cause },
      )
    })
  }

  #checkRange(offset: number, length: number): void {
    if (Number.isSafeInteger(offset + length)) return
    throw new RpcError(
      'EINVAL',
      `${this.path} points to byte ${offset}, which no file has: use qemu-img check`,
    )
  }

  /** Changes the header, on stable storage. The part before its extensions is one sector, so it changes as a whole. */
  async changeHeader(changes: Partial<Header>): Promise<void> {
    const header = { ...this.header, ...changes }
    const bytes = explain(this.path, () => encodeHeader(header))
    await this.sync()
    await this.write(0, bytes)
    await this.sync()
    this.header = header
  }
}
