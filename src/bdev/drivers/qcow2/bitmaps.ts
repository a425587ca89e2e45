/**
 * Persistent dirty bitmaps: their directory, and their bits between the file and memory.
 *
 * While an image is written to, a bitmap that records is marked as in use: what the file has of it is not to be trusted.
 * When the image is closed its bits are written and the mark goes; after a crash the mark is still there.
 */
import { RpcError, thereAre } from '../../../core/errors.ts'
import * as spec from '../../../spec/qcow2.ts'
import { changeImage } from './change.ts'
import { offsetOf } from './geometry.ts'
import type { BitmapInfo } from './image.ts'
import type { ImageHandle } from './image-handle.ts'
import type { Refcounts } from './refcounts.ts'
import { setEntry, viewOf } from './tree.ts'

const { BitmapEntry, BitmapFlag } = spec

export interface Bitmap {
  readonly name: string
  readonly tableOffset: number
  readonly tableSize: number
  readonly flags: number
  readonly type: number
  readonly granularityBits: number
  readonly extra: Uint8Array
}

export const isUsable = ({ flags, type, extra }: Bitmap): boolean =>
  (flags & BitmapFlag.IN_USE) === 0 &&
  type === spec.BITMAP_DIRTY_TRACKING &&
  (extra.length === 0 || (flags & BitmapFlag.EXTRA_COMPATIBLE) !== 0)

export const isRecording = (bitmap: Bitmap): boolean =>
  isUsable(bitmap) && (bitmap.flags & BitmapFlag.AUTO) !== 0

export const toInfo = (bitmap: Bitmap): BitmapInfo => ({
  name: bitmap.name,
  granularityBytes: 2 ** bitmap.granularityBits,
  isRecording: (bitmap.flags & BitmapFlag.AUTO) !== 0,
  isInconsistent: (bitmap.flags & BitmapFlag.IN_USE) !== 0,
})

/** Bytes of a bitmap of the whole disk. */
export const bitmapBytes = (sizeBytes: number, granularityBits: number): number =>
  Math.ceil(Math.ceil(sizeBytes / 2 ** granularityBits) / 8)

/** Throws `RpcError` EINVAL when the directory is damaged. */
export async function readBitmaps(image: ImageHandle): Promise<Bitmap[]> {
  const directory = image.header.bitmaps
  if (directory === null) return []
  const bytes = await image.read(directory.offset, directory.sizeBytes)
  const view = viewOf(bytes)
  const found: Bitmap[] = []
  for (let at = 0; found.length < directory.count; ) {
    if (at + BitmapEntry.size > bytes.length) refuse(image, 'a bitmap directory that ends too early')
    const nameSize = BitmapEntry.nameSize.get(view, at)
    const extraSize = BitmapEntry.extraSize.get(view, at)
    const start = at + BitmapEntry.size
    const end = start + extraSize + nameSize
    if (nameSize < 1 || nameSize > spec.BITMAP_NAME_MAX || end > bytes.length) {
      refuse(image, `a bitmap whose name has ${nameSize} bytes, and ${extraSize} of extra data`)
    }
    const bitmap: Bitmap = {
      name: bytes.toString('utf8', start + extraSize, end),
      tableOffset: BitmapEntry.tableOffset.get(view, at),
      tableSize: BitmapEntry.tableSize.get(view, at),
      flags: BitmapEntry.flags.get(view, at),
      type: BitmapEntry.type.get(view, at),
      granularityBits: BitmapEntry.granularityBits.get(view, at),
      extra: bytes.subarray(start, start + extraSize),
    }
    check(image, bitmap)
    found.push(bitmap)
    at = Math.ceil(end / 8) * 8
  }
  return found
}

function check(image: ImageHandle, bitmap: Bitmap): void {
  const { geometry, sizeBytes } = image.header
  const { name, tableOffset, tableSize, granularityBits } = bitmap
  const what = `a bitmap ${JSON.stringify(name)}`
  if (
    granularityBits < spec.BITMAP_GRANULARITY_BITS_MIN ||
    granularityBits > spec.BITMAP_GRANULARITY_BITS_MAX
  ) {
    refuse(image, `${what} of a granularity of 2^${granularityBits} bytes: 2^9 to 2^31 are known`)
  }
  const bytes = bitmapBytes(sizeBytes, granularityBits)
  if (bytes > spec.BITMAP_BYTES_MAX) refuse(image, `${what} of ${bytes} bytes`)
  const end = Math.ceil(image.fileSize / geometry.clusterSize) * geometry.clusterSize
  if (tableOffset % geometry.clusterSize !== 0 || tableOffset + tableSize * 8 > end) {
    refuse(image, `${what} with a table of ${tableSize} entries at ${tableOffset}`)
  }
  // One that is in use may be of a size that the disk had once.
  if (isUsable(bitmap) && tableSize !== Math.ceil(bytes / geometry.clusterSize)) {
    refuse(image, `${what} with a table of ${tableSize} entries for ${bytes} bytes`)
  }
}

function refuse(image: ImageHandle, what: string): never {
  throw new RpcError('EINVAL', `${image.path} has ${what}: use qemu-img check ${image.path}`)
}

/** The bits, into `bits`, which is zero and has the size that `bitmapBytes` tells. */
export async function loadBits(image: ImageHandle, bitmap: Bitmap, bits: Uint8Array): Promise<void> {
  const { clusterSize } = image.header.geometry
  const table = viewOf(await image.read(bitmap.tableOffset, bitmap.tableSize * 8))
  for (let index = 0; index < bitmap.tableSize; index++) {
    const low = table.getUint32(index * 8 + 4)
    const offset = offsetOf(table.getUint32(index * 8), low)
    const part = bits.subarray(index * clusterSize, (index + 1) * clusterSize)
    if (offset > 0) await image.readInto(part, offset)
    else if ((low & 1) === 1) part.fill(0xff)
  }
}

/** Marks bitmaps as in use, or not any more, where they stand. On stable storage when it ends. */
export async function markBitmaps(
  image: ImageHandle,
  names: ReadonlySet<string>,
  isInUse: boolean,
): Promise<void> {
  const bitmaps = (await readBitmaps(image)).map(bitmap =>
    names.has(bitmap.name)
      ? { ...bitmap, flags: (bitmap.flags & ~BitmapFlag.IN_USE) | (isInUse ? BitmapFlag.IN_USE : 0) }
      : bitmap,
  )
  const bytes = encodeBitmaps(bitmaps)
  const { offset, sizeBytes } = image.header.bitmaps!
  if (bytes.length !== sizeBytes) refuse(image, 'a bitmap directory with padding or names that nobody writes')
  await image.sync()
  await image.write(offset, bytes)
  await image.sync()
}

/** Writes the bits of a bitmap that is marked as in use. Clusters that are all zeroes or all ones are not kept. */
export async function storeBits(
  image: ImageHandle,
  refcounts: Refcounts,
  bitmap: Bitmap,
  bits: Uint8Array,
): Promise<void> {
  const { clusterSize } = image.header.geometry
  const table = await image.read(bitmap.tableOffset, bitmap.tableSize * 8)
  const view = viewOf(table)
  const freed: number[] = []
  for (let index = 0; index < bitmap.tableSize; index++) {
    const part = bits.subarray(index * clusterSize, (index + 1) * clusterSize)
    const offset = offsetOf(view.getUint32(index * 8), view.getUint32(index * 8 + 4))
    const isZero = part.every(byte => byte === 0)
    // The last cluster's tail is to be zero, so it is all ones only if it is full.
    if (isZero || (part.length === clusterSize && part.every(byte => byte === 0xff))) {
      if (offset > 0) freed.push(offset / clusterSize)
      setEntry(view, index * 8, 0, 0)
      view.setUint32(index * 8 + 4, isZero ? 0 : 1)
      continue
    }
    const cluster = offset > 0 ? offset / clusterSize : await refcounts.allocate(1)
    const whole = Buffer.alloc(clusterSize)
    whole.set(part)
    await image.write(cluster * clusterSize, whole)
    setEntry(view, index * 8, cluster * clusterSize, 0)
  }
  await refcounts.write()
  await image.write(bitmap.tableOffset, table)
  await image.sync()
  for (const cluster of freed) await refcounts.add(cluster, 1, -1)
}

function encodeBitmaps(bitmaps: readonly Bitmap[]): Buffer {
  return Buffer.concat(
    bitmaps.map(bitmap => {
      const name = Buffer.from(bitmap.name)
      const size = BitmapEntry.size + bitmap.extra.length + name.length
      const bytes = Buffer.alloc(Math.ceil(size / 8) * 8)
      const view = viewOf(bytes)
      BitmapEntry.tableOffset.set(view, 0, bitmap.tableOffset)
      BitmapEntry.tableSize.set(view, 0, bitmap.tableSize)
      BitmapEntry.flags.set(view, 0, bitmap.flags)
      BitmapEntry.type.set(view, 0, bitmap.type)
      BitmapEntry.granularityBits.set(view, 0, bitmap.granularityBits)
      BitmapEntry.nameSize.set(view, 0, name.length)
      BitmapEntry.extraSize.set(view, 0, bitmap.extra.length)
      bytes.set(bitmap.extra, BitmapEntry.size)
      name.copy(bytes, BitmapEntry.size + bitmap.extra.length)
      return bytes
    }),
  )
}

export async function insertBitmap(
  image: ImageHandle,
  name: string,
  granularityBytes: number,
  isRecordingFrom: boolean,
): Promise<void> {
  const bitmaps = await readBitmaps(image)
  const granularityBits = Math.log2(granularityBytes)
  checkNew(image, bitmaps, name, granularityBits)
  const { clusterSize } = image.header.geometry
  await changeImage(image, async refcounts => {
    const bytes = bitmapBytes(image.header.sizeBytes, granularityBits)
    const tableSize = Math.ceil(bytes / clusterSize)
    const clusters = Math.max(1, Math.ceil((tableSize * 8) / clusterSize))
    const start = await refcounts.allocate(clusters)
    await image.write(start * clusterSize, Buffer.alloc(clusters * clusterSize))
    const bitmap: Bitmap = {
      name,
      tableOffset: start * clusterSize,
      tableSize,
      flags: isRecordingFrom ? BitmapFlag.AUTO : 0,
      type: spec.BITMAP_DIRTY_TRACKING,
      granularityBits,
      extra: new Uint8Array(0),
    }
    await replaceDirectory(image, refcounts, [...bitmaps, bitmap])
  })
}

function checkNew(image: ImageHandle, bitmaps: readonly Bitmap[], name: string, bits: number): void {
  const fail = (code: 'EINVAL' | 'EEXIST' | 'ENOTSUP' | 'ENOSPC', message: string): never => {
    throw new RpcError(code, `${image.path} ${message}`)
  }
  if (image.header.version < 3)
    fail('ENOTSUP', 'is of version 2, which has no bitmaps: use qemu-img amend -o compat=1.1')
  const size = Buffer.byteLength(name)
  if (size < 1 || size > spec.BITMAP_NAME_MAX)
    fail('EINVAL', `cannot have a bitmap with a name of ${size} bytes`)
  if (
    !Number.isInteger(bits) ||
    bits < spec.BITMAP_GRANULARITY_BITS_MIN ||
    bits > spec.BITMAP_GRANULARITY_BITS_MAX
  ) {
    fail(
      'EINVAL',
      `cannot have a bitmap of a granularity of ${2 ** bits} bytes: use a power of two from 512 on`,
    )
  }
  if (bitmaps.some(other => other.name === name))
    fail('EEXIST', `has a bitmap ${JSON.stringify(name)} already`)
  if (bitmaps.length >= spec.BITMAPS_MAX) fail('ENOSPC', `has ${bitmaps.length} bitmaps: remove some`)
}

function findBitmap(image: ImageHandle, bitmaps: readonly Bitmap[], name: string): Bitmap {
  const found = bitmaps.find(bitmap => bitmap.name === name)
  if (found !== undefined) return found
  const names = bitmaps.map(bitmap => bitmap.name)
  throw new RpcError('ENOENT', `${image.path} has no bitmap ${JSON.stringify(name)}: ${thereAre(names)}`)
}

export async function deleteBitmap(image: ImageHandle, name: string): Promise<void> {
  const bitmaps = await readBitmaps(image)
  const bitmap = findBitmap(image, bitmaps, name)
  await changeImage(image, async refcounts => {
    await replaceDirectory(
      image,
      refcounts,
      bitmaps.filter(other => other !== bitmap),
    )
    await freeBitmap(image, refcounts, bitmap)
  })
}

/** Before the disk gets another size: a crash leaves them as what is not to be trusted. Returns what there is. */
export async function suspendBitmaps(image: ImageHandle): Promise<readonly Bitmap[]> {
  const bitmaps = await readBitmaps(image)
  const usable = bitmaps.filter(isUsable)
  if (usable.length > 0) await markBitmaps(image, new Set(usable.map(({ name }) => name)), true)
  return bitmaps
}

/**
 * The disk has another size: bits for what is new are zero. `bitmaps`: what `suspendBitmaps` returned. `isOther`: it has another
 * content as well, so all of it is dirty to those that record.
 */
export async function resizeBitmaps(
  image: ImageHandle,
  refcounts: Refcounts,
  bitmaps: readonly Bitmap[],
  oldSize: number,
  isOther = false,
): Promise<void> {
  if (bitmaps.length === 0) return
  const { geometry, sizeBytes } = image.header
  const { clusterSize } = geometry
  const resized: Bitmap[] = []
  for (const bitmap of bitmaps) {
    if (!isUsable(bitmap)) {
      resized.push(bitmap)
      continue
    }
    const bytes = bitmapBytes(sizeBytes, bitmap.granularityBits)
    const bits = new Uint8Array(Math.max(bytes, bitmapBytes(oldSize, bitmap.granularityBits)))
    await loadBits(image, bitmap, bits)
    if (isOther && isRecording(bitmap)) bits.fill(0xff)
    const tableSize = Math.ceil(bytes / clusterSize)
    const clusters = Math.max(1, Math.ceil((tableSize * 8) / clusterSize))
    const start = await refcounts.allocate(clusters)
    await image.write(start * clusterSize, Buffer.alloc(clusters * clusterSize))
    const next: Bitmap = { ...bitmap, tableOffset: start * clusterSize, tableSize }
    await storeBits(image, refcounts, next, clipped(bits, bytes, sizeBytes, bitmap.granularityBits))
    resized.push(next)
  }
  await replaceDirectory(image, refcounts, resized)
  for (const bitmap of bitmaps.filter(isUsable)) await freeBitmap(image, refcounts, bitmap)
}

/** Bits behind the disk's end are to be zero. */
function clipped(bits: Uint8Array, bytes: number, sizeBytes: number, granularityBits: number): Uint8Array {
  const part = bits.subarray(0, bytes)
  const used = Math.ceil(sizeBytes / 2 ** granularityBits) % 8
  if (used > 0) part[bytes - 1]! &= 0xff >>> (8 - used)
  return part
}

async function freeBitmap(image: ImageHandle, refcounts: Refcounts, bitmap: Bitmap): Promise<void> {
  const { clusterSize } = image.header.geometry
  const table = viewOf(await image.read(bitmap.tableOffset, bitmap.tableSize * 8))
  for (let index = 0; index < bitmap.tableSize; index++) {
    const offset = offsetOf(table.getUint32(index * 8), table.getUint32(index * 8 + 4))
    if (offset > 0) await refcounts.add(offset / clusterSize, 1, -1)
  }
  await refcounts.add(
    bitmap.tableOffset / clusterSize,
    Math.max(1, Math.ceil((bitmap.tableSize * 8) / clusterSize)),
    -1,
  )
}

/** Writes a new directory, has the header name it, and gives the old one up. */
async function replaceDirectory(
  image: ImageHandle,
  refcounts: Refcounts,
  bitmaps: readonly Bitmap[],
): Promise<void> {
  const { header } = image
  const { clusterSize } = header.geometry
  const old = header.bitmaps
  const others = header.extensions.filter(({ type }) => type !== spec.ExtensionType.BITMAPS)
  if (bitmaps.length === 0) {
    await refcounts.write()
    const autoclear = header.autoclear & ~spec.Autoclear.BITMAPS
    await image.changeHeader({ bitmaps: null, extensions: others, autoclear })
  } else {
    const bytes = encodeBitmaps(bitmaps)
    const clusters = Math.ceil(bytes.length / clusterSize)
    const start = await refcounts.allocate(clusters)
    await refcounts.write()
    const whole = Buffer.alloc(clusters * clusterSize)
    bytes.copy(whole)
    await image.write(start * clusterSize, whole)
    const data = Buffer.alloc(spec.BitmapsExtension.size)
    const view = viewOf(data as Buffer<ArrayBuffer>)
    spec.BitmapsExtension.count.set(view, 0, bitmaps.length)
    spec.BitmapsExtension.directorySize.set(view, 0, bytes.length)
    spec.BitmapsExtension.directoryOffset.set(view, 0, start * clusterSize)
    await image.changeHeader({
      bitmaps: { count: bitmaps.length, sizeBytes: bytes.length, offset: start * clusterSize },
      extensions: [...others, { type: spec.ExtensionType.BITMAPS, data }],
      autoclear: header.autoclear | spec.Autoclear.BITMAPS,
    })
  }
  if (old !== null) {
    await refcounts.add(old.offset / clusterSize, Math.ceil(old.sizeBytes / clusterSize), -1)
  }
}
