/** What a web server has, as a file: looked at as it comes, since its name says nothing. */
import { statfs } from 'node:fs/promises'
import { dirname } from 'node:path'
import { RpcError } from '../../core/errors.ts'
import { formatSize } from '../../core/format-size.ts'
import { probe, probeHead } from '../formats/probe.ts'
import { checkRoom } from '../formats/raw.ts'
import type { Progress, VolumeFormat } from '../pool.ts'
import { FileSink } from './file.ts'
import { download } from './http.ts'
import { refusePacked } from './packed.ts'
import type { PartialFile } from './partial.ts'

/** Throws `RpcError` when it is not of the `format` that is wanted, has no end, or is no disk by itself. */
export async function downloadFile(
  partial: PartialFile,
  url: string,
  format: VolumeFormat | undefined,
  progress: Progress,
): Promise<void> {
  const wanted = { source: url, format: format ?? '' }
  const earlier = await partial.resume(wanted)
  const sink = await FileSink.file(partial.path, undefined, earlier === undefined)
  try {
    const state = { doneBytes: earlier?.doneBytes ?? 0, validator: earlier?.identity ?? '' }
    // What is gone on with told its size when it began.
    let hasEnd = true
    const size = await download(
      url,
      state,
      {
        begin: async (head, totalBytes) => {
          refuseOther(url, head, format)
          if (format === undefined) refusePacked(url, head)
          hasEnd = totalBytes !== undefined
          await checkRoom(partial.path, totalBytes ?? 0)
        },
        restart: () => sink.truncate(0),
        write: (bytes, offset) => sink.writeBytes(bytes, offset),
        remember: async ({ doneBytes, validator: identity }) => {
          await sink.flush()
          await partial.remember({ ...wanted, identity, doneBytes })
          if (!hasEnd) await refuseFlood(url, partial.path)
        },
      },
      progress,
    )
    // A file that was there before may have been longer.
    await sink.truncate(size)
    await sink.flush()
    const { backing } = await probe(partial.path, size)
    if (backing !== undefined) throw standsOnOurs(url, backing.path)
  } finally {
    await sink.close()
  }
}

function refuseOther(url: string, head: Buffer, wanted: VolumeFormat | undefined): void {
  const { format } = probeHead(head, head.length)
  const isWanted = wanted === undefined || format === wanted || (format === 'raw' && wanted === 'iso')
  if (isWanted) return
  throw new RpcError(
    'EINVAL',
    `${url} is ${format}, not ${wanted}: import it as it is, and then that volume with --format ${wanted}`,
  )
}

/** What a server that never ends leaves to the other volumes. */
const ROOM_KEPT = 0.02

async function refuseFlood(url: string, path: string): Promise<void> {
  const { blocks, bavail, bsize } = await statfs(dirname(path))
  if (bavail > blocks * ROOM_KEPT) return
  throw new RpcError(
    'ENOSPC',
    `${url}: it has no end yet, and ${dirname(path)} has ${formatSize(bavail * bsize)} left, which its other volumes need`,
  )
}

/** Somebody else's image that names a file beneath it would show that file of this machine. */
function standsOnOurs(url: string, path: string): RpcError {
  return new RpcError(
    'EINVAL',
    `${url} is an image that stands on ${path}, which would be looked for on this machine: have it flattened where it ` +
      'is (qemu-img convert)',
  )
}
