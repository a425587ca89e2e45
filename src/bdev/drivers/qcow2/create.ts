/**
 * New images. All tables are made at once and lie together at the file's beginning:
 *
 *   | header | refcount table | refcount blocks | L1 table | L2 tables and data, if they are preallocated |
 */
import { unlinkSync } from 'node:fs'
import { constants } from 'node:os'
import { RpcError } from '../../../core/errors.ts'
import * as spec from '../../../spec/qcow2.ts'
import { close, fallocate } from '../../../sys/libc.ts'
import { openChain } from './chain.ts'
import { type Geometry, geometryOf, setRefcount } from './geometry.ts'
import { type Extension, encodeHeader, featureNameTable, type Header } from './header.ts'
import type { CreateOptions, LongOperation, Preallocation } from './image.ts'
import { explain, ImageHandle, type LockedFile, openLocked } from './image-handle.ts'
import { setEntry } from './tree.ts'

const PIECE = 1 << 20
const { ENOSPC } = constants.errno

/** Where everything goes, in clusters. */
interface Layout {
  readonly tableAt: number
  readonly tableClusters: number
  readonly blocksAt: number
  readonly blocks: number
  readonly l1At: number
  readonly l1Clusters: number
  readonly l2At: number
  readonly l2Tables: number
  readonly dataAt: number
  readonly dataClusters: number
  readonly total: number
}

/** See `createImage` in `image.ts`. Leaves nothing behind when it fails. */
export async function create(path: string, options: CreateOptions, long: LongOperation = {}): Promise<void> {
  const preallocation = options.preallocation ?? 'off'
  const file = await openLocked(path, false, true)
  try {
    const header = await newHeader(file, options)
    const layout = planLayout(header, preallocation)
    header.refcountTableOffset = layout.tableAt * header.geometry.clusterSize
    header.refcountTableClusters = layout.tableClusters
    header.l1Offset = layout.l1At * header.geometry.clusterSize
    const image = new ImageHandle(file, header)
    await writeRefcounts(image, layout)
    if (preallocation !== 'off') await preallocate(image, layout, preallocation, long)
    await image.sync()
    await image.write(
      0,
      explain(path, () => encodeHeader(header)),
    )
    // QEMU takes a file that ends within its tables for a damaged one.
    if (image.fileSize < layout.total * header.geometry.clusterSize) {
      await image.truncate(layout.total * header.geometry.clusterSize)
    }
    await image.sync()
  } catch (error) {
    unlinkSync(path)
    throw error
  } finally {
    close(file.fd)
  }
}

async function newHeader(file: LockedFile, options: CreateOptions): Promise<Header> {
  const {
    version = 3,
    clusterSize = 65536,
    refcountBits = 16,
    extendedL2 = false,
    lazyRefcounts = false,
  } = options
  const isZstd = options.compression === 'zstd'
  const { path } = file
  checkOptions(path, options)
  const clusterBits = Math.log2(clusterSize)
  const geometry = geometryOf(clusterBits, extendedL2, Math.log2(refcountBits))
  const extensions: Extension[] = []
  if (options.backingFile !== undefined && options.backingFormat !== undefined) {
    extensions.push({ type: spec.ExtensionType.BACKING_FORMAT, data: Buffer.from(options.backingFormat) })
  }
  if (version === 3) extensions.push(featureNameTable())
  const header: Header = {
    version,
    geometry,
    sizeBytes: 0,
    backingFile: options.backingFile ?? null,
    backingFormat: options.backingFormat ?? null,
    l1Size: 0,
    l1Offset: 0,
    refcountTableOffset: 0,
    refcountTableClusters: 0,
    snapshotCount: 0,
    snapshotsOffset: 0,
    incompatible:
      (extendedL2 ? spec.Incompatible.EXTENDED_L2 : 0) | (isZstd ? spec.Incompatible.COMPRESSION_TYPE : 0),
    compatible: lazyRefcounts ? spec.Compatible.LAZY_REFCOUNTS : 0,
    autoclear: 0,
    compression: isZstd ? spec.Compression.ZSTD : spec.Compression.ZLIB,
    headerLength: version === 3 ? spec.HEADER_SIZE_OURS : spec.HEADER_SIZE_V2,
    bitmaps: null,
    extensions,
  }
  header.sizeBytes = await sizeOf(file, header, options)
  header.l1Size = Math.ceil(header.sizeBytes / geometry.l2Span)
  if (header.l1Size * 8 > spec.L1_BYTES_MAX) {
    throw new RpcError(
      'EINVAL',
      `${path} would have ${header.sizeBytes} bytes, too many for clusters of ${clusterSize}: use larger clusters`,
    )
  }
  return header
}

function checkOptions(path: string, options: CreateOptions): void {
  const {
    version = 3,
    clusterSize = 65536,
    refcountBits = 16,
    extendedL2 = false,
    lazyRefcounts = false,
  } = options
  const refuse = (message: string): never => {
    throw new RpcError('EINVAL', `${path} ${message}`)
  }
  const clusterMin = extendedL2 ? 2 ** spec.EXTENDED_CLUSTER_BITS_MIN : 2 ** spec.CLUSTER_BITS_MIN
  const clusterMax = 2 ** spec.CLUSTER_BITS_MAX
  if (clusterSize < clusterMin || clusterSize > clusterMax || !Number.isInteger(Math.log2(clusterSize))) {
    refuse(
      `would have clusters of ${clusterSize} bytes: use a power of two from ${clusterMin} to ${clusterMax}`,
    )
  }
  if (![1, 2, 4, 8, 16, 32, 64].includes(refcountBits)) {
    refuse(`would have refcounts of ${refcountBits} bits: use 1, 2, 4, 8, 16, 32 or 64`)
  }
  if (
    version === 2 &&
    (refcountBits !== 16 || extendedL2 || lazyRefcounts || options.compression === 'zstd')
  ) {
    refuse('of version 2 cannot have what came with version 3: leave those options out, or use version 3')
  }
  if (options.backingFile !== undefined && options.backingFormat === undefined) {
    refuse(`has the backing file ${options.backingFile} of a format that is not told: use raw or qcow2`)
  }
  if (options.backingFile !== undefined && (options.preallocation ?? 'off') !== 'off' && !extendedL2) {
    refuse('cannot be preallocated over a backing file, which it would hide: use extended L2 entries, or off')
  }
}

/** Also opens the whole chain once, so that nothing is made that cannot be used. */
async function sizeOf(
  file: LockedFile,
  header: Header,
  { sizeBytes, backingFile }: CreateOptions,
): Promise<number> {
  const { path } = file
  let size = sizeBytes
  if (backingFile !== undefined) {
    const links = await openChain(file, header)
    const first = links[0]!
    size ??= first.header?.sizeBytes ?? first.file.sizeBytes
    for (const link of links) close(link.file.fd)
  }
  if (size === undefined) throw new RpcError('EINVAL', `${path} needs a size, as it has no backing file`)
  if (!Number.isSafeInteger(size) || size < 0)
    throw new RpcError('EINVAL', `${path} cannot have ${size} bytes`)
  return Math.ceil(size / spec.SECTOR) * spec.SECTOR
}

function planLayout({ geometry, l1Size, sizeBytes }: Header, preallocation: Preallocation): Layout {
  const { clusterSize, blockEntries } = geometry
  const l1Clusters = Math.max(1, Math.ceil((l1Size * 8) / clusterSize))
  const l2Tables = preallocation === 'off' ? 0 : l1Size
  const dataClusters = preallocation === 'off' ? 0 : Math.ceil(sizeBytes / clusterSize)
  const others = 1 + l1Clusters + l2Tables + dataClusters
  let blocks = 1
  let tableClusters = 1
  for (;;) {
    const total = others + blocks + tableClusters
    const blocksNeeded = Math.ceil(total / blockEntries)
    const tableNeeded = Math.ceil((blocksNeeded * 8) / clusterSize)
    if (blocksNeeded <= blocks && tableNeeded <= tableClusters) break
    blocks = Math.max(blocks, blocksNeeded)
    tableClusters = Math.max(tableClusters, tableNeeded)
  }
  const blocksAt = 1 + tableClusters
  const l1At = blocksAt + blocks
  const l2At = l1At + l1Clusters
  const dataAt = l2At + l2Tables
  return {
    tableAt: 1,
    tableClusters,
    blocksAt,
    blocks,
    l1At,
    l1Clusters,
    l2At,
    l2Tables,
    dataAt,
    dataClusters,
    total: dataAt + dataClusters,
  }
}

async function writeRefcounts(image: ImageHandle, layout: Layout): Promise<void> {
  const { clusterSize, blockEntries, refcountOrder } = image.header.geometry
  const table = new DataView(new ArrayBuffer(layout.tableClusters * clusterSize))
  for (let block = 0; block < layout.blocks; block++) {
    const offset = (layout.blocksAt + block) * clusterSize
    setEntry(table, block * 8, offset, 0)
    const bytes = new DataView(new ArrayBuffer(clusterSize))
    const count = Math.min(blockEntries, layout.total - block * blockEntries)
    for (let i = 0; i < count; i++) setRefcount(bytes, 0, i, refcountOrder, 1)
    await image.write(offset, new Uint8Array(bytes.buffer))
  }
  await image.write(layout.tableAt * clusterSize, new Uint8Array(table.buffer))
}

/** Entries for every cluster; then room for them, or zeroes in them. */
async function preallocate(
  image: ImageHandle,
  layout: Layout,
  preallocation: Preallocation,
  long: LongOperation,
): Promise<void> {
  const { geometry } = image.header
  const { clusterSize, l2Entries } = geometry
  const l1 = new DataView(new ArrayBuffer(layout.l1Clusters * clusterSize))
  const hasBacking = image.header.backingFile !== null
  for (let index = 0; index < layout.l2Tables; index++) {
    long.signal?.throwIfAborted()
    const offset = (layout.l2At + index) * clusterSize
    setEntry(l1, index * 8, offset, spec.ENTRY_COPIED)
    const first = index * l2Entries
    const count = Math.min(l2Entries, layout.dataClusters - first)
    const table = tableOf(geometry, (layout.dataAt + first) * clusterSize, count, hasBacking)
    await image.write(offset, table)
  }
  await image.write(layout.l1At * clusterSize, new Uint8Array(l1.buffer))
  const start = layout.dataAt * clusterSize
  const size = layout.dataClusters * clusterSize
  if (preallocation === 'falloc') {
    const result = fallocate(image.fd, 0, start, Math.max(size, 1))
    if (result < 0) {
      const code = result === -ENOSPC ? 'ENOSPC' : 'ENOTSUP'
      throw new RpcError(
        code,
        `${image.path} cannot have ${size} bytes reserved: use preallocation full or metadata`,
      )
    }
    long.onProgress?.(size, size)
  }
  if (preallocation === 'full') await writeZeroes(image, start, size, long)
}

function tableOf(geometry: Geometry, start: number, count: number, hasBacking: boolean): Uint8Array {
  const { clusterSize, entrySize, isExtended } = geometry
  const table = new DataView(new ArrayBuffer(clusterSize))
  for (let i = 0; i < count; i++) {
    setEntry(table, i * entrySize, start + i * clusterSize, spec.ENTRY_COPIED)
    // Over a backing file the clusters are there, and nothing in them counts yet.
    if (isExtended) table.setUint32(i * entrySize + 12, hasBacking ? 0 : 0xffff_ffff)
  }
  return new Uint8Array(table.buffer)
}

async function writeZeroes(
  image: ImageHandle,
  start: number,
  size: number,
  long: LongOperation,
): Promise<void> {
  const zeroes = new Uint8Array(PIECE)
  for (let done = 0; done < size; done += PIECE) {
    long.signal?.throwIfAborted()
    const part = Math.min(PIECE, size - done)
    await image.write(start + done, part === PIECE ? zeroes : zeroes.subarray(0, part))
    long.onProgress?.(done + part, size)
  }
}
