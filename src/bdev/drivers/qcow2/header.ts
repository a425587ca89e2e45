/**
 * The header of an image: read and checked in one place, in the order of the format's description, and written back.
 * An image may come from anybody, so every refusal is a `ProtocolError` that names the field and where it lies.
 */
import { ProtocolError } from '../../../core/errors.ts'
import * as spec from '../../../spec/qcow2.ts'
import { type Geometry, geometryOf } from './geometry.ts'

const { Header: Field } = spec

export interface Extension {
  readonly type: number
  readonly data: Uint8Array
}

export interface BitmapDirectory {
  readonly count: number
  readonly sizeBytes: number
  readonly offset: number
}

export interface Header {
  version: number
  geometry: Geometry
  /** Of the virtual disk, in bytes: any number, not always a whole number of sectors. */
  sizeBytes: number
  backingFile: string | null
  backingFormat: string | null
  l1Size: number
  l1Offset: number
  refcountTableOffset: number
  refcountTableClusters: number
  snapshotCount: number
  snapshotsOffset: number
  incompatible: number
  compatible: number
  autoclear: number
  compression: number
  headerLength: number
  /** Null also when there is an extension that the auto-clear bit says is not to be trusted. */
  bitmaps: BitmapDirectory | null
  /** As they are, in their order; the end marker is left out. */
  extensions: readonly Extension[]
}

/** How much of the file `parseHeader` wants at most: a cluster of the largest size is not needed. */
export const HEADER_BYTES_MAX = 65536

const fail = (offset: number, message: string): never => {
  throw new ProtocolError(message, offset)
}

/** `bytes`: the file's beginning, at most `HEADER_BYTES_MAX`; `fileSize`: bytes of the whole file. */
export function parseHeader(bytes: Uint8Array, fileSize: number): Header {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length)
  const version = checkStart(view)
  const isV3 = version === 3
  const clusterBits = Field.clusterBits.get(view, 0)
  if (clusterBits < spec.CLUSTER_BITS_MIN || clusterBits > spec.CLUSTER_BITS_MAX) {
    fail(20, `clusters of 2^${clusterBits} bytes: from 2^9 to 2^21 are supported`)
  }
  const headerLength = isV3 ? Field.headerLength.get(view, 0) : spec.HEADER_SIZE_V2
  const clusterSize = 2 ** clusterBits
  if (isV3 && (headerLength < spec.HEADER_SIZE_V3 || headerLength > Math.min(clusterSize, bytes.length))) {
    fail(
      100,
      `a header of ${headerLength} bytes: it has at least 104 and fits into a cluster of ${clusterSize}`,
    )
  }
  const extensions = parseExtensions(view, headerLength, clusterSize)
  const incompatible = checkFeatures(view, isV3, extensions)
  const isExtended = (incompatible & spec.Incompatible.EXTENDED_L2) !== 0
  if (isExtended && clusterBits < spec.EXTENDED_CLUSTER_BITS_MIN) {
    fail(20, `clusters of ${clusterSize} bytes with extended L2 entries: they need at least 16384`)
  }
  const refcountOrder = isV3 ? Field.refcountOrder.get(view, 0) : 4
  if (refcountOrder > 6) fail(96, `refcounts of 2^${refcountOrder} bits: at most 64 are possible`)
  const cryptMethod = Field.cryptMethod.get(view, 0)
  if (cryptMethod !== 0) {
    fail(32, `it is encrypted (method ${cryptMethod}): convert it with qemu-img convert first`)
  }
  const geometry = geometryOf(clusterBits, isExtended, refcountOrder)
  const autoclear = isV3 ? Field.autoclear.get(view, 0) : 0
  const header: Header = {
    version,
    geometry,
    sizeBytes: Field.diskSize.get(view, 0),
    ...backing(view, bytes, clusterSize, extensions),
    l1Size: Field.l1Size.get(view, 0),
    l1Offset: Field.l1TableOffset.get(view, 0),
    refcountTableOffset: Field.refcountTableOffset.get(view, 0),
    refcountTableClusters: Field.refcountTableClusters.get(view, 0),
    snapshotCount: Field.snapshotCount.get(view, 0),
    snapshotsOffset: Field.snapshotsOffset.get(view, 0),
    incompatible,
    compatible: isV3 ? Field.compatible.get(view, 0) : 0,
    autoclear,
    compression: compressionOf(view, headerLength, incompatible),
    headerLength,
    bitmaps: bitmapDirectory(extensions, autoclear, clusterSize),
    extensions,
  }
  checkTables(header, fileSize)
  return header
}

function checkStart(view: DataView): number {
  if (view.byteLength < spec.HEADER_SIZE_V2)
    fail(0, `${view.byteLength} bytes, fewer than a qcow2 header has`)
  const magic = Field.magic.get(view, 0)
  if (magic !== spec.MAGIC) fail(0, 'it does not begin as a qcow2 image does')
  const version = Field.version.get(view, 0)
  if (version !== 2 && version !== 3) fail(4, `version ${version}: 2 and 3 are known`)
  if (version === 3 && view.byteLength < spec.HEADER_SIZE_V3) fail(4, 'it ends within its header')
  return version
}

/** Extensions begin behind the header and end with their marker, or with the first cluster. */
function parseExtensions(view: DataView, start: number, clusterSize: number): Extension[] {
  const found: Extension[] = []
  const nameAt = spec.Header.backingFileOffset.get(view, 0)
  const limit = Math.min(clusterSize, view.byteLength)
  const end = nameAt >= start && nameAt < limit ? nameAt : limit
  let at = start
  while (at + spec.Extension.size <= end) {
    const type = spec.Extension.type.get(view, at)
    const length = spec.Extension.length.get(view, at)
    if (type === spec.ExtensionType.END) break
    at += spec.Extension.size
    if (length > end - at) fail(at, `a header extension of ${length} bytes, ${end - at} have room`)
    found.push({ type, data: new Uint8Array(view.buffer, view.byteOffset + at, length).slice() })
    at += Math.ceil(length / 8) * 8
  }
  return found
}

/** Refuses features that are not known, by name where the image has a table of names. */
function checkFeatures(view: DataView, isV3: boolean, extensions: readonly Extension[]): number {
  if (!isV3) return 0
  const high = Field.incompatibleHigh.get(view, 0)
  const low = Field.incompatible.get(view, 0)
  const known = Object.values(spec.Incompatible).reduce((sum, bit) => sum | bit, 0)
  const names = featureNames(extensions)
  const unknown: string[] = []
  for (let bit = 0; bit < 64; bit++) {
    const isSet = bit < 32 ? ((low & ~known) >>> bit) & 1 : (high >>> (bit - 32)) & 1
    if (isSet) unknown.push(names.get(bit) ?? `bit ${bit}`)
  }
  if (unknown.length > 0) fail(72, `it has features that are not known here: ${unknown.join(', ')}`)
  if ((low & spec.Incompatible.EXTERNAL_DATA_FILE) !== 0) {
    fail(72, 'its data is in another file (external data file): convert it with qemu-img convert first')
  }
  return low
}

function featureNames(extensions: readonly Extension[]): Map<number, string> {
  const names = new Map<number, string>()
  const table = extensions.find(({ type }) => type === spec.ExtensionType.FEATURE_NAMES)
  if (table === undefined) return names
  const view = new DataView(table.data.buffer, table.data.byteOffset, table.data.length)
  for (let at = 0; at + spec.FeatureName.size <= table.data.length; at += spec.FeatureName.size) {
    if (spec.FeatureName.type.get(view, at) !== spec.FeatureType.INCOMPATIBLE) continue
    const name = textOf(table.data.subarray(at + spec.FEATURE_NAME_AT, at + spec.FeatureName.size))
    // It becomes part of a message: nothing in it may look like another one.
    names.set(spec.FeatureName.bit.get(view, at), JSON.stringify(name.replace(/\0.*$/s, '')))
  }
  return names
}

const textOf = (bytes: Uint8Array): string => Buffer.from(bytes).toString('utf8')

function backing(
  view: DataView,
  bytes: Uint8Array,
  clusterSize: number,
  extensions: readonly Extension[],
): Pick<Header, 'backingFile' | 'backingFormat'> {
  const offset = Field.backingFileOffset.get(view, 0)
  if (offset === 0) return { backingFile: null, backingFormat: null }
  const size = Field.backingFileSize.get(view, 0)
  if (size > spec.BACKING_NAME_MAX)
    fail(16, `a backing file's name of ${size} bytes: at most 1023 are possible`)
  if (offset + size > Math.min(clusterSize, bytes.length)) {
    fail(8, `the backing file's name at ${offset} leaves the first cluster of ${clusterSize} bytes`)
  }
  const format = extensions.find(({ type }) => type === spec.ExtensionType.BACKING_FORMAT)
  return {
    backingFile: size === 0 ? null : textOf(bytes.subarray(offset, offset + size)),
    backingFormat: format === undefined ? null : textOf(format.data),
  }
}

function compressionOf(view: DataView, headerLength: number, incompatible: number): number {
  const type = headerLength > Field.compressionType.offset ? Field.compressionType.get(view, 0) : 0
  const isNamed = (incompatible & spec.Incompatible.COMPRESSION_TYPE) !== 0
  if (isNamed !== (type !== 0)) fail(104, `compression type ${type} does not go with its feature bit`)
  if (type > spec.Compression.ZSTD) fail(104, `compression type ${type}: 0 (zlib) and 1 (zstd) are known`)
  return type
}

function bitmapDirectory(
  extensions: readonly Extension[],
  autoclear: number,
  clusterSize: number,
): BitmapDirectory | null {
  const extension = extensions.find(({ type }) => type === spec.ExtensionType.BITMAPS)
  if (extension === undefined || (autoclear & spec.Autoclear.BITMAPS) === 0) return null
  const { data } = extension
  if (data.length !== spec.BitmapsExtension.size)
    fail(0, `a bitmaps extension of ${data.length} bytes, not 24`)
  const view = new DataView(data.buffer, data.byteOffset, data.length)
  const count = spec.BitmapsExtension.count.get(view, 0)
  const sizeBytes = spec.BitmapsExtension.directorySize.get(view, 0)
  const offset = spec.BitmapsExtension.directoryOffset.get(view, 0)
  if (count < 1 || count > spec.BITMAPS_MAX)
    fail(0, `${count} bitmaps: from 1 to ${spec.BITMAPS_MAX} are possible`)
  if (sizeBytes > spec.BITMAP_DIRECTORY_BYTES_MAX || sizeBytes < count * spec.BitmapEntry.size) {
    fail(0, `a bitmap directory of ${sizeBytes} bytes for ${count} bitmaps`)
  }
  if (offset % clusterSize !== 0 || offset === 0) fail(0, `a bitmap directory at ${offset}, not at a cluster`)
  return { count, sizeBytes, offset }
}

function checkTables(header: Header, fileSize: number): void {
  const { geometry, sizeBytes, l1Size, refcountTableClusters, snapshotCount } = header
  const { clusterSize } = geometry
  // 2^56 is what entries can address; a disk that a number cannot count exactly is refused long before.
  if (sizeBytes > Number.MAX_SAFE_INTEGER) fail(24, `a disk of ${sizeBytes} bytes: 2^53 are possible`)
  if (l1Size * 8 > spec.L1_BYTES_MAX) fail(36, `an L1 table of ${l1Size} entries: 32 MiB are possible`)
  const needed = Math.ceil(sizeBytes / geometry.l2Span)
  if (l1Size < needed) fail(36, `an L1 table of ${l1Size} entries for a disk that needs ${needed}`)
  checkTable(40, 'L1 table', header.l1Offset, l1Size * 8, clusterSize, fileSize)
  const tableBytes = refcountTableClusters * clusterSize
  if (refcountTableClusters === 0) fail(56, 'no refcount table')
  if (tableBytes > spec.REFCOUNT_TABLE_BYTES_MAX) {
    fail(56, `a refcount table of ${refcountTableClusters} clusters: 8 MiB are possible`)
  }
  checkTable(48, 'refcount table', header.refcountTableOffset, tableBytes, clusterSize, fileSize)
  if (snapshotCount > spec.SNAPSHOTS_MAX) fail(60, `${snapshotCount} snapshots: 65536 are possible`)
  const snapshotBytes = snapshotCount * spec.SnapshotEntry.size
  if (snapshotCount > 0) {
    checkTable(64, 'snapshot table', header.snapshotsOffset, snapshotBytes, clusterSize, fileSize)
  }
  const { bitmaps } = header
  if (bitmaps !== null)
    checkTable(0, 'bitmap directory', bitmaps.offset, bitmaps.sizeBytes, clusterSize, fileSize)
}

/** The last cluster of a table may end behind the file's last byte. */
function checkTable(
  at: number,
  what: string,
  offset: number,
  size: number,
  clusterSize: number,
  fileSize: number,
): void {
  if (offset % clusterSize !== 0) fail(at, `the ${what} is at ${offset}, not at the beginning of a cluster`)
  if (size > 0 && offset === 0) fail(at, `the ${what} is where the header is`)
  if (offset + size > Math.ceil(fileSize / clusterSize) * clusterSize) {
    fail(at, `the ${what} is at ${offset} with ${size} bytes, beyond the file's ${fileSize}`)
  }
}

/** The bytes of the first cluster, as far as they are used. Throws `ProtocolError` when they do not fit into it. */
export function encodeHeader(header: Header): Buffer {
  const { clusterSize, clusterBits, refcountOrder } = header.geometry
  const headerLength =
    header.version === 3 ? Math.max(header.headerLength, spec.HEADER_SIZE_OURS) : spec.HEADER_SIZE_V2
  const name = Buffer.from(header.backingFile ?? '')
  let { extensions } = header
  let size = sizeOf(headerLength, extensions)
  if (size + name.length > clusterSize) {
    // Names of features only make messages better.
    extensions = extensions.filter(({ type }) => type !== spec.ExtensionType.FEATURE_NAMES)
    size = sizeOf(headerLength, extensions)
  }
  if (size + name.length > clusterSize) {
    fail(
      0,
      `a header of ${size} bytes and a backing file's name of ${name.length}: a cluster has ${clusterSize}`,
    )
  }
  const bytes = Buffer.alloc(size + name.length)
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length)
  Field.magic.set(view, 0, spec.MAGIC)
  Field.version.set(view, 0, header.version)
  Field.backingFileOffset.set(view, 0, name.length > 0 ? size : 0)
  Field.backingFileSize.set(view, 0, name.length)
  Field.clusterBits.set(view, 0, clusterBits)
  Field.diskSize.set(view, 0, header.sizeBytes)
  Field.l1Size.set(view, 0, header.l1Size)
  Field.l1TableOffset.set(view, 0, header.l1Offset)
  Field.refcountTableOffset.set(view, 0, header.refcountTableOffset)
  Field.refcountTableClusters.set(view, 0, header.refcountTableClusters)
  Field.snapshotCount.set(view, 0, header.snapshotCount)
  Field.snapshotsOffset.set(view, 0, header.snapshotsOffset)
  if (header.version === 3) {
    Field.incompatible.set(view, 0, header.incompatible)
    Field.compatible.set(view, 0, header.compatible)
    Field.autoclear.set(view, 0, header.autoclear)
    Field.refcountOrder.set(view, 0, refcountOrder)
    Field.headerLength.set(view, 0, headerLength)
    Field.compressionType.set(view, 0, header.compression)
  }
  let at = headerLength
  for (const { type, data } of extensions) {
    spec.Extension.type.set(view, at, type)
    spec.Extension.length.set(view, at, data.length)
    bytes.set(data, at + spec.Extension.size)
    at += spec.Extension.size + Math.ceil(data.length / 8) * 8
  }
  bytes.set(name, size)
  return bytes
}

/** Up to the end of its extensions. */
function sizeOf(headerLength: number, extensions: readonly Extension[]): number {
  return extensions.reduce(
    (size, { data }) => size + spec.Extension.size + Math.ceil(data.length / 8) * 8,
    headerLength + spec.Extension.size,
  )
}

/** The table of the features that are known here, as an extension. */
export function featureNameTable(): Extension {
  const data = Buffer.alloc(spec.FEATURE_NAMES.length * spec.FeatureName.size)
  for (const [index, [type, bit, name]] of spec.FEATURE_NAMES.entries()) {
    const at = index * spec.FeatureName.size
    data[at] = type
    data[at + 1] = bit
    data.write(name, at + spec.FEATURE_NAME_AT, 'latin1')
  }
  return { type: spec.ExtensionType.FEATURE_NAMES, data }
}
