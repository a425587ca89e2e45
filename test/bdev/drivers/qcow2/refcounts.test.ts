/** Reference counts of images whose tables are many clusters long. */
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, expect, it } from 'vitest'
import {
  applySnapshot,
  checkImage,
  createImage,
  createSnapshot,
  deleteSnapshot,
  resizeImage,
} from '../../../../src/bdev/drivers/qcow2/image.ts'

let directory: string
beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), 'qpair-qcow2-refcounts-'))
})
afterEach(() => rmSync(directory, { recursive: true }))

it.each([16, 64])(
  'find room for an L1 table of more clusters than a block of %d-bit counts has',
  async refcountBits => {
    const path = join(directory, 'image')
    await createImage(path, { sizeBytes: 2 ** 30, clusterSize: 512, refcountBits })
    const expectWhole = async () => expect(await checkImage(path)).toMatchObject({ corruptions: 0, leaks: 0 })
    await createSnapshot(path, 's')
    await expectWhole()
    await resizeImage(path, 3 * 2 ** 30)
    await expectWhole()
    await applySnapshot(path, 's')
    await deleteSnapshot(path, 's')
    await expectWhole()
  },
)
