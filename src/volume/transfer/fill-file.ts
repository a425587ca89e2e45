/** Fills a new file: with the bytes of another, with what a web server has, or with a disk's content as an image. */
import { randomUUID } from 'node:crypto'
import { DAEMON_STOPS } from '../../rpc/jobs.ts'
import type { FileVolumes } from '../file-volumes.ts'
import { reflink, writeError } from '../formats/raw.ts'
import type { Progress, VolumeFormat } from '../pool.ts'
import { copyAndClose, withContent } from './content.ts'
import { copyDisk } from './copy.ts'
import { downloadFile } from './download-file.ts'
import { FileSink, FileSource } from './file.ts'
import { PartialFile } from './partial.ts'
import { PartialImage } from './partial-image.ts'
import { type Plan, refuseChanged } from './plan.ts'
import type { ScratchBdevs } from './scratch-bdevs.ts'
import type { TransferSource } from './source.ts'

/** It has its name only when it is whole. What fails goes again; what the daemon's end interrupts is gone on with. */
export async function fillFile(
  files: FileVolumes,
  plan: Plan,
  scratch: ScratchBdevs,
  progress: Progress,
): Promise<void> {
  const partial = new PartialFile(files, plan.name)
  try {
    const { source, format } = plan
    if (source.kind === 'http') await downloadFile(partial, source.text, format, progress)
    else if (isAsItIs(source, format)) await copyBytes(partial, source, progress)
    else await copyContent(files, partial, plan, scratch, progress)
    await refuseChanged(source)
    await partial.finish(plan.permissions)
  } catch (error) {
    const failure = writeError(files.directory, error)
    if (progress.signal.reason === DAEMON_STOPS) throw failure
    await partial.discard().catch(() => {
      // On a file system that has become read only.
    })
    throw failure
  }
}

type FileTransfer = Extract<TransferSource, { kind: 'file' }>

const isAsItIs = (source: TransferSource, format: VolumeFormat | undefined): source is FileTransfer =>
  source.kind === 'file' &&
  source.isWhole &&
  (source.format === format || (source.format === 'iso' && format === 'raw'))

/** The bytes of a file, whatever they are; shared with it where the file system can. */
async function copyBytes(partial: PartialFile, source: FileTransfer, progress: Progress): Promise<void> {
  const note = { source: source.text, format: source.format, identity: source.identity }
  const earlier = await partial.resume(note)
  if (earlier === undefined && (await reflink(source.path, partial.path).catch(() => false))) return
  const from = await FileSource.open(source.path)
  try {
    const sink = await FileSink.file(partial.path, from.sizeBytes, earlier === undefined)
    await copyAndClose(from, sink, {
      ...progress,
      fromBytes: earlier?.doneBytes ?? 0,
      checkpoint: doneBytes => partial.remember({ ...note, doneBytes }),
    })
  } finally {
    await from.close()
  }
}

/** A disk's content into a new image. */
async function copyContent(
  files: FileVolumes,
  partial: PartialFile,
  plan: Plan,
  scratch: ScratchBdevs,
  progress: Progress,
): Promise<void> {
  const { source, name, format = 'raw' } = plan
  await withContent(plan, scratch, progress.signal, async from => {
    const identity = identityIn(source, from.sizeBytes)
    const note = { source: source.text, format, identity }
    const image = new PartialImage(partial, format, scratch)
    const earlier = await image.resume(note, from, progress.signal)
    const options = {
      ...progress,
      fromBytes: earlier?.doneBytes ?? 0,
      checkpoint: (doneBytes: number) => partial.remember({ ...note, doneBytes }),
    }
    if (image.isPlain) {
      const sink = await FileSink.file(partial.path, from.sizeBytes, earlier === undefined)
      return copyAndClose(from, sink, options)
    }
    if (earlier === undefined) {
      await files.createImage(partial.path, { name, format, capacityBytes: from.sizeBytes }, progress)
      await partial.remember({ ...note, doneBytes: 0 })
    }
    return scratch.lend(image.opening(false), 'zeroed', sink => copyDisk(from, sink, options))
  })
}

/** What a note says of the source, so that half of it as it was and half as it is by then are not put together. */
function identityIn(source: TransferSource, sizeBytes: number): string {
  if (source.kind === 'file') return source.identity
  // Nobody tells whether an image of Ceph was written to meanwhile: it is begun again.
  return source.kind === 'bdev' ? randomUUID() : String(sizeBytes)
}
