/**
 * Files of servers. To open one whose server has gone is to wait for it, maybe for ever, and with it the start of the daemon
 * that had it open: so a program asks first, which can be given up.
 */
import { resolve } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { RpcError } from '../../core/errors.ts'
import { runProgram } from '../../core/program.ts'
import { NETWORK_TYPES, readText } from './file-identity.ts'

const ANSWER_MS = 3000
/** So long the next files of a server that did not answer are refused at once. */
const SILENT_MS = 20_000

/** Mount points of servers that did not answer, with the time until which nobody asks again. */
const silent = new Map<string, number>()

/** Throws `RpcError` ETIMEDOUT when the file is on a server that does not answer. */
export async function requireServer(path: string): Promise<void> {
  const mountPoint = serverMountOf(await readText('/proc/self/mountinfo'), resolve(path))
  if (mountPoint === undefined) return
  if ((silent.get(mountPoint) ?? 0) < performance.now()) {
    silent.delete(mountPoint)
    const asked = runProgram('stat', ['--file-system', '--', mountPoint], { timeoutMs: ANSWER_MS }).then(
      () => true,
      () => false,
    )
    // One that waits for FUSE cannot even be ended.
    if (await Promise.race([asked, delay(ANSWER_MS, false, { ref: false })])) return
    silent.set(mountPoint, performance.now() + SILENT_MS)
  }
  throw new RpcError(
    'ETIMEDOUT',
    `${path} cannot be opened: ${mountPoint} is mounted from a server that does not answer. Opening it would wait: try ` +
      'again when it does',
  )
}

/**
 * Where the file system of a server is mounted that a path is on, by its words alone; undefined for one of this machine. A
 * line of mountinfo: `36 35 98:0 /root /mount/point options optional… - type source options`.
 */
export function serverMountOf(mountinfo: string, path: string): string | undefined {
  let found = { mountPoint: '', type: '' }
  for (const line of mountinfo.split('\n')) {
    const [left = '', right = ''] = line.split(' - ')
    const mountPoint = left.split(' ')[4] ?? ''
    const isAbove = mountPoint === '/' || `${path}/`.startsWith(`${mountPoint}/`)
    // The last at a place hides those before it.
    if (mountPoint === '' || !isAbove || mountPoint.length < found.mountPoint.length) continue
    found = { mountPoint, type: right.split(' ')[0] ?? '' }
  }
  return NETWORK_TYPES.has(found.type) ? found.mountPoint : undefined
}
