/** Another backing file for an image. */
import { ExtensionType } from '../../../spec/qcow2.ts'
import { close } from '../../../sys/libc.ts'
import { openChain } from './chain.ts'
import type { ImageHandle } from './image-handle.ts'

/** See `renameBacking` in `image.ts`. */
export async function setBacking(
  image: ImageHandle,
  backing: { readonly file: string; readonly format: 'raw' | 'qcow2' } | null,
): Promise<void> {
  const others = image.header.extensions.filter(({ type }) => type !== ExtensionType.BACKING_FORMAT)
  const changes = {
    backingFile: backing?.file ?? null,
    backingFormat: backing?.format ?? null,
    extensions:
      backing === null
        ? others
        : [{ type: ExtensionType.BACKING_FORMAT, data: Buffer.from(backing.format) }, ...others],
  }
  const file = { fd: image.fd, path: image.path, sizeBytes: image.fileSize }
  for (const link of await openChain(file, { ...image.header, ...changes })) close(link.file.fd)
  await image.changeHeader(changes)
}
