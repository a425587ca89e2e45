/** What the host itself does with a block device: whoever overwrites it then destroys that. */
import { constants } from 'node:fs'
import { open, readdir, readFile, stat } from 'node:fs/promises'
import { join } from 'node:path'
import { deviceNumbers, readText } from '../bdev/drivers/file-identity.ts'
import { RpcError } from '../core/errors.ts'
import { readMounts } from '../core/mounts.ts'
import { realPath } from '../core/real-path.ts'

/**
 * The file systems, swap and devices on a block device or on its partitions: `the file system on /srv`. Empty for what is no
 * block device, and for those that only programs have open.
 */
export async function kernelUsesOf(path: string): Promise<string[]> {
  const stats = await stat(path).catch(() => undefined)
  if (stats?.isBlockDevice() !== true) return []
  const device = join('/sys/dev/block', deviceNumbers(stats.rdev))
  const [mounts, swaps] = await Promise.all([readMounts(), swapDevices()])
  const seen = new Set<string>()
  const uses = await usesOf(device, seen, async ({ numbers, node }) => [
    ...mounts
      .filter(({ device: of, source }) => of === numbers || source === node)
      .map(({ mountPoint }) => `the file system on ${mountPoint}`),
    ...(swaps.includes(node) ? ['swap'] : []),
  ])
  if (uses.length > 0 || seen.size > 1 || !(await isTaken(path))) return uses
  return ['somebody on this host, maybe in a container,']
}

/** The kernel gives a device that somebody has to himself to nobody else who asks for that; other mount namespaces count. */
async function isTaken(path: string): Promise<boolean> {
  try {
    await (await open(path, constants.O_RDONLY | constants.O_EXCL | constants.O_NONBLOCK)).close()
    return false
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === 'EBUSY'
  }
}

/** Throws `RpcError` EBUSY naming what the host does with a device. */
export async function refuseUsedByHost(what: string, path: string): Promise<void> {
  const uses = await kernelUsesOf(path)
  if (uses.length === 0) return
  throw new RpcError('EBUSY', `${what}: ${path} is used by ${uses.join(', ')}. End that first`)
}

interface Device {
  readonly numbers: string
  /** `/dev/sdb1`. */
  readonly node: string
}

/** `directory`: of the device in sysfs. */
async function usesOf(
  directory: string,
  seen: Set<string>,
  ofOne: (device: Device) => Promise<string[]>,
): Promise<string[]> {
  const real = await realPath(directory)
  const numbers = await readText(join(real, 'dev'))
  if (seen.has(numbers)) return []
  seen.add(numbers)
  const node = join('/dev', real.slice(real.lastIndexOf('/') + 1).replaceAll('!', '/'))
  const found = await ofOne({ numbers, node })
  for (const name of await entries(real)) {
    // A partition is a directory of its disk.
    if ((await readText(join(real, name, 'partition'))) !== '') {
      found.push(...(await usesOf(join(real, name), seen, ofOne)))
    }
  }
  for (const holder of await entries(join(real, 'holders'))) {
    const above = join(real, 'holders', holder)
    // kpartx maps the partitions of whatever it sees; that alone is no use.
    if ((await readText(join(above, 'dm/uuid'))).startsWith('part')) {
      found.push(...(await usesOf(above, seen, ofOne)))
    } else found.push(`the device ${(await readText(join(above, 'dm/name'))) || holder}`)
  }
  return found
}

const entries = (directory: string): Promise<string[]> => readdir(directory).catch(() => [])

async function swapDevices(): Promise<string[]> {
  const [, ...lines] = (await readFile('/proc/swaps', 'utf8').catch(() => '')).split('\n')
  return Promise.all(lines.map(line => line.split(/\s+/)[0]!).map(realPath))
}
