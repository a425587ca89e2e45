/** The bitmaps of an open device that record writes: from the file to memory that the data path writes to, and back. */
import { RpcError } from '../../../core/errors.ts'
import { logger } from '../../../core/log.ts'
import { bytesAt, mapAnonymous, unmap } from '../../../sys/memory.ts'
import {
  type Bitmap,
  bitmapBytes,
  isRecording,
  loadBits,
  markBitmaps,
  readBitmaps,
  storeBits,
} from './bitmaps.ts'
import { changeImage } from './change.ts'
import { BitmapTable, type Qcow2Device } from './device.ts'
import type { ImageHandle } from './image-handle.ts'

const log = logger('bdev')
const PAGE = 4096
/** Of all bitmaps of one image. */
const MEMORY_MAX = 2 ** 30

interface Loaded {
  readonly bitmap: Bitmap
  readonly address: number
  readonly sizeBytes: number
}

/** By the device's id; only the control thread has them. */
const loaded = new Map<string, readonly Loaded[]>()

/** Nothing may run on the device. */
export async function loadBitmaps(image: ImageHandle, device: Qcow2Device): Promise<void> {
  const recording = (await readBitmaps(image)).filter(isRecording)
  const all: Loaded[] = []
  checkMemory(image, recording)
  for (const bitmap of recording.slice(0, BitmapTable.MAX)) {
    const sizeBytes = bitmapBytes(image.header.sizeBytes, bitmap.granularityBits)
    const address = mapAnonymous(pages(sizeBytes))
    all.push({ bitmap, address, sizeBytes })
    await loadBits(image, bitmap, bytesAt(address, sizeBytes))
  }
  // Those that find no place stay marked for ever, as what they are from now on: not to be trusted.
  if (recording.length > 0) await markBitmaps(image, namesOf(recording), true)
  loaded.set(device.id, all)
  new BitmapTable(device.bitmaps).set(
    all.map(({ bitmap, address, sizeBytes }) => ({
      address,
      sizeBytes,
      granularityBits: bitmap.granularityBits,
    })),
  )
}

function checkMemory(image: ImageHandle, recording: readonly Bitmap[]): void {
  const { sizeBytes } = image.header
  const total = recording.reduce((sum, bitmap) => sum + bitmapBytes(sizeBytes, bitmap.granularityBits), 0)
  if (total <= MEMORY_MAX) return
  throw new RpcError(
    'ENOMEM',
    `the bitmaps of ${image.path} take ${total} bytes of memory, more than ${MEMORY_MAX}: ` +
      'remove some, or make them coarser (qemu-img bitmap), or use read_only: true',
  )
}

/** Writes them back. Nothing may run on the device any more. */
export async function storeBitmaps(image: ImageHandle, device: Qcow2Device): Promise<void> {
  const all = loaded.get(device.id) ?? []
  loaded.delete(device.id)
  try {
    if (all.length > 0) {
      await changeImage(image, async refcounts => {
        for (const { bitmap, address, sizeBytes } of all) {
          await storeBits(image, refcounts, bitmap, bytesAt(address, sizeBytes))
        }
      })
      await markBitmaps(image, namesOf(all.map(({ bitmap }) => bitmap)), false)
    }
  } catch (error) {
    // They stay marked as in use, which says that they are not to be trusted.
    log.error(`the bitmaps of ${image.path} were not stored: ${(error as Error).message}`)
  } finally {
    new BitmapTable(device.bitmaps).set([])
    for (const { address, sizeBytes } of all) unmap(address, pages(sizeBytes))
  }
}

const namesOf = (bitmaps: readonly Bitmap[]): ReadonlySet<string> => new Set(bitmaps.map(({ name }) => name))

const pages = (sizeBytes: number): number => Math.max(1, Math.ceil(sizeBytes / PAGE)) * PAGE
