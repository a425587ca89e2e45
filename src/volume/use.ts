/**
 * Who uses a volume, told from what is there and not from a book of ours: the bdevs that have it open, whoever has those, and
 * other programs, which QEMU's images are locked by.
 */
import { lstat, readdir, readFile, readlink, stat } from 'node:fs/promises'
import type { BdevInfo } from '../bdev/bdev.ts'
import { deviceNumbers, readText } from '../bdev/drivers/file-identity.ts'
import { serverMountOf } from '../bdev/drivers/file-server.ts'
import type { BdevRegistry } from '../bdev/registry.ts'
import { RpcError } from '../core/errors.ts'
import { mountOf, readMounts } from '../core/mounts.ts'
import { realPath } from '../core/real-path.ts'
import { kernelUsesOf } from './kernel-use.ts'
import type { VolumeFacts } from './pool.ts'
import type { Pool } from './storage-pool.ts'

export interface VolumeUse {
  /** The bdev over it that writes, or else one that reads. */
  readonly bdev: BdevInfo | undefined
  /** All bdevs over it. */
  readonly bdevs: readonly BdevInfo[]
  /** Who has those: `subsystem nqn…`, `NBD export …`; empty when nobody has. */
  readonly owners: string
  /** Other processes that have the file locked, as QEMU does: `qemu-system-x86 (pid 4711)`. */
  readonly programs: readonly string[]
  /**
   * Who else has it open: the host itself (`the file system on /srv`), clients on other machines. Neither snapshots nor growing
   * disturb them.
   */
  readonly others: readonly string[]
  /** Volumes of active pools that have this one beneath them. */
  readonly dependents: readonly VolumeFacts[]
}

export async function useOf(
  volume: VolumeFacts,
  bdevs: BdevRegistry,
  pools: readonly Pool[],
): Promise<VolumeUse> {
  const isNetwork = volume.type === 'network'
  const path = isNetwork ? volume.path : await realPath(volume.path)
  const inode = isNetwork ? undefined : await inodeOf(path)
  const all: BdevInfo[] = []
  for (const info of bdevs.list()) {
    const medium = await mediumOnce(info)
    // It has other paths by hard links and by mounts of one directory on another.
    if (medium?.path === path || (inode !== undefined && medium?.inode === inode)) all.push(info)
  }
  // A copy's own is there for a while: whoever may not come near is kept off by the copy's job.
  const over = all.filter(({ name }) => !bdevs.unsaved.has(name))
  const owners = over.map(({ name }) => bdevs.ownersOf(name)).filter(each => each !== '')
  const dependents: VolumeFacts[] = []
  for (const { contents, backend } of pools) {
    for (const each of contents?.volumes ?? []) {
      if (each.backing === undefined) continue
      // A server may be gone, and nobody waits for it here.
      const isNear = each.type !== 'network' && backend.remote === undefined
      const beneath = isNear ? await realPath(each.backing.path) : each.backing.path
      const isThis = isNear && inode !== undefined && (await inodeOf(beneath)) === inode
      if (isThis || beneath === path || beneath === volume.path) dependents.push(each)
    }
  }
  return {
    bdev: over.find(({ readOnly }) => !readOnly) ?? over[0],
    bdevs: over,
    owners: owners.join(', '),
    programs: isNetwork ? [] : await lockersOf(path, all.some(locksItsFile)),
    others: volume.type === 'block' ? await kernelUsesOf(path) : [],
    dependents,
  }
}

interface Medium {
  readonly path: string | undefined
  readonly inode: string | undefined
}

const media = new WeakMap<BdevInfo, Promise<Medium>>()

/** Looked up once: what is open stays the same, while a server that it is on may be gone at the next look. */
function mediumOnce(info: BdevInfo): Promise<Medium> {
  const medium = media.get(info) ?? lookUp(info)
  media.set(info, medium)
  return medium
}

async function lookUp(info: BdevInfo): Promise<Medium> {
  const path = await mediumOf(info)
  return { path, inode: path?.startsWith('/') === true ? await inodeOf(path) : undefined }
}

/** What a file or device is, whatever its name; undefined for what is not there, or on a server, which may be gone. */
async function inodeOf(path: string): Promise<string | undefined> {
  if (serverMountOf(await readMounts(), path) !== undefined) return undefined
  const stats = await stat(path).catch(() => undefined)
  if (stats === undefined) return undefined
  return stats.isBlockDevice() ? `device ${stats.rdev}` : `${stats.dev}:${stats.ino}`
}

/** The path of the file or block device that a bdev has, or Ceph's names of the image; undefined for others. */
export async function mediumOf({ driver, driverSpecific }: BdevInfo): Promise<string | undefined> {
  const facts = driverSpecific[driver] as Record<string, unknown> | undefined
  if (driver === 'rbd') {
    const { pool_name, namespace, rbd_name } = facts ?? {}
    return [pool_name, namespace, rbd_name].filter(part => part !== undefined && part !== '').join('/')
  }
  // Without the password, which a volume's path has not.
  if (driver === 'iscsi') return String(facts?.url).replace(/\/\/[^@/]*@/, '//')
  const filename = facts?.filename
  if (typeof filename !== 'string') return undefined
  return realPath(filename)
}

/**
 * Processes that have locks on a file (proc_locks(5)): `1: OFDLCK ADVISORY READ -1 08:01:1234 100 101`. QEMU's locks belong to
 * an open file, not to a process, so who has the file open is looked up only when there is such a lock.
 */
async function lockersOf(path: string, isLockedHere: boolean): Promise<string[]> {
  const stats = await stat(path).catch(() => undefined)
  if (stats === undefined) return []
  const devices = [deviceNumbers(stats.dev), mountOf(await readMounts(), path)?.device ?? '']
  const inodes = devices.map(device => ` ${hexNumbers(device)}:${stats.ino} `)
  const lines = (await readText('/proc/locks'))
    .split('\n')
    // udev has devices that it looks at to itself like this for a moment.
    .filter(line => inodes.some(each => line.includes(each)) && !/: FLOCK +ADVISORY +READ /.test(line))
  const pids = new Set(lines.map(line => Number(line.trim().split(/\s+/).at(-4))))
  const found: string[] = []
  for (const pid of pids) {
    // Locks of open files are nobody's; two programs that write do not have them together.
    if (pid === process.pid || (pid < 0 && isLockedHere)) continue
    if (pid > 0) found.push(await describeProcess(pid))
    else found.push(...(await openersOf(path)))
  }
  return found
}

/** Other processes that have a file open. Those of other users are seen by root only. */
async function openersOf(path: string): Promise<string[]> {
  const found: string[] = []
  for (const pid of await readdir('/proc')) {
    if (!/^\d+$/.test(pid) || Number(pid) === process.pid) continue
    const descriptors = await readdir(`/proc/${pid}/fd`).catch(() => [])
    const paths = descriptors.map(each => readlink(`/proc/${pid}/fd/${each}`).catch(() => ''))
    if ((await Promise.all(paths)).includes(path)) found.push(await describeProcess(Number(pid)))
  }
  return found.length > 0 ? found : ['another program (a QEMU guest, qemu-img, qemu-nbd)']
}

/** `8:17` as /proc/locks writes it: `08:11`. */
const hexNumbers = (device: string): string =>
  device.replaceAll(/\d+/g, digits => Number(digits).toString(16).padStart(2, '0'))

/** Images are locked here as QEMU does it. */
const locksItsFile = ({ driver }: BdevInfo): boolean => driver === 'qcow2'

async function describeProcess(pid: number): Promise<string> {
  const name = await readFile(`/proc/${pid}/comm`, 'utf8').catch(() => 'process')
  const guest = guestOf(await readFile(`/proc/${pid}/cmdline`, 'utf8').catch(() => ''))
  return `${guest === undefined ? '' : `guest ${guest}, `}${name.trim()} (pid ${pid})`
}

/** The guest of a QEMU, by its command line: `-name guest=web,debug-threads=on` or `-name web`. */
export function guestOf(cmdline: string): string | undefined {
  const [program = '', ...args] = cmdline.split('\0')
  const at = args.indexOf('-name')
  if (at < 0 || !/(^|\/)(qemu-(system-\w+|kvm)|kvm)$/.test(program)) return undefined
  return /^(?:guest=)?([^,]+)/.exec(args[at + 1] ?? '')?.[1]
}

/** What an export's bdev is called when nobody chose a name. Names of bdevs and of vhost's sockets have no slash. */
export const bdevNameOf = (volume: string): string => volume.replace('/', '-').replaceAll(/[^\w.-]/g, '_')

/** How a bdev over the volume POOL/NAME is given back: by the opposite of what made it, which its name tells. */
export function takingBack(volume: string, bdev: string): string {
  const [, guest, target] = /^(.+)-([vs]d[a-z]+|nvme\d+)$/.exec(bdev) ?? []
  if (bdev === bdevNameOf(volume)) return `qpair volume unexport ${volume} takes it back`
  if (guest !== undefined) {
    return `qpair vm detach ${guest} ${target} takes it away, with --config if that is a domain that does not run`
  }
  return `qpair volume unexport ${volume} --bdev ${bdev} takes it back where an export made it; else delete it as it was made`
}

/**
 * Throws `RpcError` EBUSY when somebody uses the volume, naming who and what to do. `fullName` is POOL/NAME; without one it is a
 * file outside the pools.
 */
export function refuseInUse(
  volume: VolumeFacts,
  done: string,
  use: VolumeUse,
  fullName: string | undefined,
): void {
  const { bdev, owners, programs, others } = use
  const who = [
    ...(bdev === undefined ? [] : [`bdev ${bdev.name} has it open${owners === '' ? '' : ` for ${owners}`}`]),
    ...[...programs, ...others].map(each => `${each} has it open`),
  ]
  if (who.length === 0) return
  const remedy =
    bdev === undefined || fullName === undefined ? 'end that first' : takingBack(fullName, bdev.name)
  throw new RpcError('EBUSY', `volume ${volume.name} cannot be ${done}: ${who.join('; ')}: ${remedy}`)
}

/**
 * Throws `RpcError` EINVAL for a volume that is a symbolic link, or one of several hard links: what is done to it would be done
 * to whatever has another name, which may be anything of this machine. `remedy` says how to do it all the same.
 */
export async function refuseLink(
  { type, name, path }: VolumeFacts,
  done: string,
  remedy: string,
): Promise<void> {
  if (type !== 'file') return
  const stats = await lstat(path)
  if (!stats.isSymbolicLink() && stats.nlink < 2) return
  const what = stats.isSymbolicLink()
    ? `it is a symbolic link to ${await realPath(path)}`
    : `the file has ${stats.nlink} names, all but one of which are elsewhere (find -samefile ${path})`
  throw new RpcError('EINVAL', `volume ${name} cannot be ${done}: ${what}. ${remedy}`)
}

/** Throws `RpcError` EBUSY when other volumes are made of what this one has. */
export function refuseWithDependents(volume: VolumeFacts, done: string, { dependents }: VolumeUse): void {
  if (dependents.length === 0) return
  const names = dependents.map(({ name }) => name).join(', ')
  throw new RpcError(
    'EBUSY',
    `volume ${volume.name} cannot be ${done}: it is the backing store of ${names}, which would be destroyed. ` +
      'Delete those first',
  )
}
