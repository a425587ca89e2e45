/** Changes of an image that are cut off after any of their writes: the next who opens it mends it, and nothing is lost. */
import { copyFileSync } from 'node:fs'
import { afterEach, beforeEach, expect, it } from 'vitest'
import { deleteBitmap, insertBitmap } from '../../../../src/bdev/drivers/qcow2/bitmaps.ts'
import {
  addBitmap,
  checkImage,
  createImage,
  createSnapshot,
  imageInfo,
} from '../../../../src/bdev/drivers/qcow2/image.ts'
import { ImageHandle } from '../../../../src/bdev/drivers/qcow2/image-handle.ts'
import { resize } from '../../../../src/bdev/drivers/qcow2/resize.ts'
import { dropSnapshot, revertTo, takeSnapshot } from '../../../../src/bdev/drivers/qcow2/snapshots.ts'
import { Prng } from '../../../../src/core/prng.ts'
import { Bench, torture } from './support.ts'

const MIB = 1 << 20
const SIZE = 2 * MIB

let bench: Bench
beforeEach(() => {
  bench = new Bench()
})
afterEach(() => bench.close())

/** The process that writes through it ends before its next write but so many. */
class EndingHandle extends ImageHandle {
  writesLeft = Number.POSITIVE_INFINITY

  override async write(offset: number, bytes: Uint8Array): Promise<void> {
    if (this.writesLeft-- <= 0) throw new Error('the process has ended')
    await super.write(offset, bytes)
  }
}

async function cutOff(
  path: string,
  writes: number,
  work: (image: ImageHandle) => Promise<unknown>,
): Promise<'cut off' | 'done'> {
  const { fd, header } = await ImageHandle.open(path, false)
  const image = new EndingHandle({ fd, path }, header)
  image.writesLeft = writes
  try {
    await work(image)
    return 'done'
  } catch (error) {
    if ((error as Error).message !== 'the process has ended') throw error
    return 'cut off'
  } finally {
    image.close()
  }
}

const goBack = (image: ImageHandle): Promise<void> => revertTo(image, 'old')

const CHANGES: readonly (readonly [name: string, change: (image: ImageHandle) => Promise<unknown>])[] = [
  ['a snapshot is taken', image => takeSnapshot(image, 'new')],
  ['a snapshot is deleted', image => dropSnapshot(image, 'old')],
  ['the disk goes back to a snapshot', goBack],
  ['it grows', image => resize(image, 40 * MIB)],
  ['it shrinks', image => resize(image, MIB - 512, { shrink: true })],
  ['a bitmap is made', image => insertBitmap(image, 'new', 4096, true)],
  ['a bitmap is removed', image => deleteBitmap(image, 'bitmap')],
]

it.each(CHANGES)(
  'is mended, and reads as before or after, when it is cut off while %s',
  async (name, change) => {
    const original = bench.path('original')
    await createImage(original, { sizeBytes: SIZE, clusterSize: 4096 })
    await addBitmap(original, 'bitmap', { granularityBytes: 65536 })
    const before = new Uint8Array(SIZE)
    await torture(await bench.open('original'), before, new Prng(1), 6)
    await bench.delete('original')
    await createSnapshot(original, 'old')
    const now = before.slice()
    await torture(await bench.open('original'), now, new Prng(2), 6)
    await bench.delete('original')

    let ended = 'cut off'
    let cuts = 0
    for (; ended === 'cut off'; cuts++) {
      copyFileSync(original, bench.path('image'))
      ended = await cutOff(bench.path('image'), cuts, change)
      const disk = await bench.open('image')
      const size = Math.min(SIZE, disk.channel.info.blockCount * 512)
      const content = Buffer.from(await disk.read(0, size))
      const isRight =
        content.equals(now.subarray(0, size)) ||
        (change === goBack && content.equals(before.subarray(0, size)))
      expect(isRight, `${name}, cut off after ${cuts} writes`).toBe(true)
      await disk.write(0, new Uint8Array(65536).fill(cuts))
      await bench.delete('image')
      const { corruptions, problems } = await checkImage(bench.path('image'))
      expect(corruptions, `cut off after ${cuts} writes: ${problems.join('\n')}`).toBe(0)
      expect((await imageInfo(bench.path('image'))).isDirty).toBe(false)
    }
    expect(cuts).toBeGreaterThan(3)
  },
)
