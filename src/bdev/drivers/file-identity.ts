/**
 * What identifies the medium behind a path, so that every process that serves the same medium derives the same UUID for
 * it, and two media never get one UUID: a multipath host would take them for one disk.
 *
 *   a disk with a world-wide identifier      that identifier: the same from every machine that sees the disk
 *   a file on a network file system          server, export and path below it: the same on every client
 *   anything else                            this machine and the real path: the same for every process here
 */
import { readFile, realpath, stat } from 'node:fs/promises'
import { hostname } from 'node:os'
import { type Mount, readMounts } from '../../core/mounts.ts'

/** Lists what the medium is identified by. `path` exists. */
export async function mediumIdentity(path: string): Promise<string[]> {
  const real = await realpath(path)
  const stats = await stat(real)
  if (stats.isBlockDevice()) {
    const device = `/sys/dev/block/${deviceNumbers(stats.rdev)}`
    const wwid = (await readText(`${device}/wwid`)) || (await readText(`${device}/device/wwid`))
    if (wwid !== '') return ['wwid', wwid]
  }
  const shared = networkIdentity(await readMounts(), deviceNumbers(stats.dev), real)
  return shared ?? ['local', (await readText('/etc/machine-id')) || hostname(), real]
}

export const NETWORK_TYPES: ReadonlySet<string> = new Set([
  'nfs',
  'nfs4',
  'cifs',
  'smb3',
  'ceph',
  'glusterfs',
  'fuse.glusterfs',
])

/** Server, export and path of a file on a network file system, or undefined. */
export function networkIdentity(
  mounts: readonly Mount[],
  device: string,
  path: string,
): string[] | undefined {
  for (const { mountPoint, root, device: numbers, type, source } of mounts) {
    if (numbers !== device || !NETWORK_TYPES.has(type)) continue
    const below = mountPoint === '/' ? path : path.slice(mountPoint.length)
    if (mountPoint !== '/' && path !== mountPoint && !path.startsWith(`${mountPoint}/`)) continue
    return [type.replace(/\d$/, ''), source, `${root === '/' ? '' : root}${below}`]
  }
  return undefined
}

/** `major:minor`, as sysfs writes them (the inverse of makedev(3)). */
export function deviceNumbers(device: number): string {
  const major = Math.floor(device / 256) % 4096
  const minor = (device % 256) + Math.floor(device / 2 ** 20) * 256
  return `${major}:${minor}`
}

export async function readText(path: string): Promise<string> {
  try {
    return (await readFile(path, 'utf8')).trim()
  } catch {
    // The machine does not have it: the next way to identify the medium is tried.
    return ''
  }
}
