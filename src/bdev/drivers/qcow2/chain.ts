/** The files underneath an image: found, checked and opened. */
import { fstatSync, readSync, type Stats } from 'node:fs'
import { stat } from 'node:fs/promises'
import { dirname, isAbsolute, join } from 'node:path'
import { RpcError } from '../../../core/errors.ts'
import { Compression, MAGIC } from '../../../spec/qcow2.ts'
import { close } from '../../../sys/libc.ts'
import type { Header } from './header.ts'
import { ImageHandle, type LockedFile, openLocked, readHeader } from './image-handle.ts'
import { canDecompress } from './reactor-parts.ts'

const DEPTH_MAX = 64

export interface ChainLink {
  readonly file: LockedFile
  readonly format: 'raw' | 'qcow2'
  /** Of a qcow2 image. */
  readonly header: Header | null
}

/** Where the backing file is that an image at `path` names. */
export function backingPath(path: string, name: string): string {
  const file = name.startsWith('file:') ? name.slice('file:'.length) : name
  if (/^[a-z][a-z0-9+.-]*:/i.test(file)) {
    throw new RpcError(
      'ENOTSUP',
      `${path} has the backing file ${JSON.stringify(name)}, which is no path: only files can be underneath; ` +
        'copy it and use qemu-img rebase -u',
    )
  }
  if (file.includes('\0')) throw new RpcError('EINVAL', `${path} names a backing file with a NUL in it`)
  return isAbsolute(file) ? file : join(dirname(path), file)
}

/** Opens everything underneath, read only, from the top. Throws `RpcError`, and then nothing is open. */
export async function openChain(file: LockedFile, header: Header): Promise<ChainLink[]> {
  const links: ChainLink[] = []
  const seen = new Set([identity(fstatSync(file.fd))])
  try {
    checkCompression(file.path, header)
    for (let path = file.path, above = header; above.backingFile !== null; ) {
      if (links.length === DEPTH_MAX) {
        throw new RpcError(
          'EINVAL',
          `${file.path} has more than ${DEPTH_MAX} backing files: commit some of them`,
        )
      }
      const link = await openLink(path, above, seen)
      links.push(link)
      seen.add(identity(fstatSync(link.file.fd)))
      if (link.header === null) break
      path = link.file.path
      above = link.header
    }
    return links
  } catch (error) {
    for (const link of links) close(link.file.fd)
    throw error
  }
}

async function openLink(
  path: string,
  { backingFile, backingFormat }: Header,
  seen: ReadonlySet<string>,
): Promise<ChainLink> {
  const below = backingPath(path, backingFile!)
  // Before its lock is tried, which the image above may hold.
  const stats = await stat(below).catch(() => null)
  if (stats !== null && seen.has(identity(stats))) {
    throw new RpcError('EINVAL', `${path} has a backing file, ${below}, that rests on itself: rebase it`)
  }
  const format = checkFormat(path, backingFormat)
  const file = await openLocked(below, true)
  try {
    if (format === undefined && looksLikeQcow2(file)) {
      throw new RpcError(
        'EINVAL',
        `${path} does not say that its backing file ${below} is qcow2, and a guest may have written that: ` +
          `if it is, use qemu-img rebase -u -b ${backingFile} -F qcow2 ${path}`,
      )
    }
    if (format !== 'qcow2') return { file, format: 'raw', header: null }
    const header = await readHeader(file)
    checkCompression(below, header)
    return { file, format, header }
  } catch (error) {
    close(file.fd)
    throw error
  }
}

function checkFormat(path: string, format: string | null): 'raw' | 'qcow2' | undefined {
  if (format === null) return undefined
  if (format === 'raw' || format === 'qcow2') return format
  throw new RpcError(
    'ENOTSUP',
    `${path} has a backing file of the format ${JSON.stringify(format)}: raw and qcow2 can be underneath`,
  )
}

function looksLikeQcow2({ fd }: LockedFile): boolean {
  const bytes = Buffer.alloc(4)
  readSync(fd, bytes, 0, 4, 0)
  return bytes.readUInt32BE(0) === MAGIC
}

function checkCompression(path: string, { compression }: Header): void {
  if (canDecompress(compression)) return
  const name = compression === Compression.ZSTD ? 'zstd' : String(compression)
  throw new RpcError(
    'ENOTSUP',
    `${path} is compressed with ${name}, which Node ${process.versions.node} cannot read: use Node 22.15 or later, ` +
      'or qemu-img convert -o compression_type=zlib',
  )
}

const identity = ({ dev, ino }: Stats): string => `${dev}:${ino}`

/** What can be said of the files underneath without opening them for use; it ends where the chain breaks. */
export async function peekChain(
  path: string,
  header: Header,
): Promise<{ readonly path: string; readonly format: 'raw' | 'qcow2' }[]> {
  const found: { readonly path: string; readonly format: 'raw' | 'qcow2' }[] = []
  for (let at = path, above = header; above.backingFile !== null && found.length < DEPTH_MAX; ) {
    try {
      const below = backingPath(at, above.backingFile)
      const format = checkFormat(at, above.backingFormat) ?? 'raw'
      found.push({ path: below, format })
      if (format === 'raw') break
      const image = await ImageHandle.peek(below)
      image.close()
      at = below
      above = image.header
    } catch (error) {
      if (!(error instanceof RpcError)) throw error
      break
    }
  }
  return found
}
