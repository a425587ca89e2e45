/**
 * Files of servers. To open one whose server has gone is to wait for it, maybe for ever, and with it the start of the daemon
 * that had it open: so a program asks first, which can be given up.
 */
import { resolve } from 'node:path'
import { answerWithin } from '../../core/answer-within.ts'
import { RpcError } from '../../core/errors.ts'
import { fileSystemUsage } from '../../core/file-system-usage.ts'
import { type Mount, mountOf, readMounts } from '../../core/mounts.ts'
import { NETWORK_TYPES } from './file-identity.ts'

const ANSWER_MS = 3000
/** So long the next files of a server that did not answer are refused at once. */
const SILENT_MS = 20_000

/** Mount points of servers that did not answer, with the time until which nobody asks again. */
const silent = new Map<string, number>()

/** Throws `RpcError` ETIMEDOUT when the file is on a server that does not answer. */
export async function requireServer(path: string): Promise<void> {
  const mountPoint = serverMountOf(await readMounts(), resolve(path))
  if (mountPoint === undefined) return
  if ((silent.get(mountPoint) ?? 0) < performance.now()) {
    silent.delete(mountPoint)
    try {
      await answerWithin(ANSWER_MS, signal => fileSystemUsage(mountPoint, signal))
      return
    } catch {
      // Whatever is wrong there, the file is not to be touched.
      silent.set(mountPoint, performance.now() + SILENT_MS)
    }
  }
  throw new RpcError(
    'ETIMEDOUT',
    `${path} cannot be opened: ${mountPoint} is mounted from a server that does not answer. Opening it would wait: try ` +
      'again when it does',
  )
}

/** Where the file system of a server is mounted that a path is on, by its words alone; undefined for one of this machine. */
export function serverMountOf(mounts: readonly Mount[], path: string): string | undefined {
  const mount = mountOf(mounts, path)
  return mount !== undefined && NETWORK_TYPES.has(mount.type) ? mount.mountPoint : undefined
}
