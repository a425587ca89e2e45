/** What is mounted, as the kernel says it (proc_pid_mountinfo(5)). */
import { readFile } from 'node:fs/promises'

export interface Mount {
  readonly mountPoint: string
  /** What of the file system is seen there: `/` for all of it. */
  readonly root: string
  /** `major:minor` of the file system, which for btrfs is not that of its files. */
  readonly device: string
  readonly type: string
  /** A device, `server:/export`, or anything else. */
  readonly source: string
}

export async function readMounts(): Promise<Mount[]> {
  return parseMounts(await readFile('/proc/self/mountinfo', 'utf8'))
}

/** A line: `36 35 98:0 /root /mount/point options optional… - type source options`. */
export function parseMounts(mountinfo: string): Mount[] {
  return mountinfo
    .split('\n')
    .filter(line => line !== '')
    .map(line => {
      const [left = '', right = ''] = line.split(' - ')
      const [type = '', source = ''] = right.split(' ')
      const [, , device = '', root = '', mountPoint = ''] = left.split(' ')
      return { mountPoint: plain(mountPoint), root: plain(root), device, type, source: plain(source) }
    })
}

/** Spaces and the like are octal escapes. */
const plain = (text: string): string =>
  text.replace(/\\([0-7]{3})/g, (_, digits: string) => String.fromCharCode(Number.parseInt(digits, 8)))

/** What is seen at a path: the last that was mounted there. */
export const mountAt = (mounts: readonly Mount[], path: string): Mount | undefined =>
  mounts.findLast(({ mountPoint }) => mountPoint === path)

/** The mount that a path is on: the deepest, and there the last. */
export function mountOf(mounts: readonly Mount[], path: string): Mount | undefined {
  const above = mounts.filter(
    ({ mountPoint }) => mountPoint === '/' || `${path}/`.startsWith(`${mountPoint}/`),
  )
  const depth = Math.max(...above.map(({ mountPoint }) => mountPoint.length))
  return above.findLast(({ mountPoint }) => mountPoint.length === depth)
}
