/**
 * Sockets of vhost-user disks are where the daemon was told to make them (`-S`), or in its current directory. A QEMU that runs on
 * looks for them where they were when it was started.
 */
import { basename, dirname, resolve } from 'node:path'
import type { RecordedDisk } from './guest-record.ts'

/** Disks that a guest waits for in another directory than the one that they are served in now, with the remedy. */
export function movedSockets(
  disks: readonly Pick<RecordedDisk, 'target' | 'source'>[],
  controllers: readonly { readonly name: string; readonly socketPath: string }[],
): string[] {
  return disks.flatMap(({ target, source }) => {
    if (source.kind !== 'vhost') return []
    const { socketPath } = source
    const served = controllers.find(({ name }) => name === basename(socketPath))
    if (served === undefined || resolve(served.socketPath) === socketPath) return []
    return [
      `${target}, which it looks for at ${socketPath}, is served at ${resolve(served.socketPath)}: its I/O waits until the ` +
        `daemon is started with -S ${dirname(socketPath)} again`,
    ]
  })
}
