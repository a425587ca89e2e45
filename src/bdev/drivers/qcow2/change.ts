/** Changes to an image that take several steps, on the control thread: marked as under way, so that a crash is mended. */
import { Incompatible } from '../../../spec/qcow2.ts'
import type { ImageHandle } from './image-handle.ts'
import { Refcounts } from './refcounts.ts'

/**
 * Runs `work` while the image is marked dirty, which version 2 cannot be: whoever opens it after a crash counts its
 * references anew. Work that fails leaves it marked for the same reason.
 */
export async function changeImage<T>(
  image: ImageHandle,
  work: (refcounts: Refcounts) => Promise<T>,
): Promise<T> {
  const refcounts = await Refcounts.load(image)
  const canMark = image.header.version >= 3
  if (canMark) await image.changeHeader({ incompatible: image.header.incompatible | Incompatible.DIRTY })
  const result = await work(refcounts)
  await refcounts.write()
  await image.sync()
  if (canMark) await image.changeHeader({ incompatible: image.header.incompatible & ~Incompatible.DIRTY })
  return result
}
