/** Volumes that are block devices: how large they are, and what is done to all of them alike. */
import { readdir, readFile, realpath, stat } from 'node:fs/promises'
import { basename, join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { readText } from '../bdev/drivers/file-identity.ts'
import { RpcError } from '../core/errors.ts'
import { ProgramError, runProgram } from '../core/program.ts'
import type { OpenBy, PoolContents, VolumeFacts } from './pool.ts'
import { runTool } from './tools.ts'

/** The kernel counts in these, whatever the blocks of a device are. */
export const SECTOR = 512

/** A whole device as a volume: all of it is allocated. */
export function blockVolume(name: string, path: string, capacityBytes: number): VolumeFacts {
  return {
    ...{ name, key: path, path, type: 'block', format: 'raw', capacityBytes },
    allocationBytes: capacityBytes,
  }
}

/** Of devices that somebody else has carved out: the pool is what they have together. */
export function fullOf(volumes: readonly VolumeFacts[]): PoolContents {
  const capacityBytes = volumes.reduce((sum, volume) => sum + (volume.capacityBytes ?? 0), 0)
  return { capacityBytes, allocationBytes: capacityBytes, availableBytes: 0, volumes: sortedByName(volumes) }
}

export const sortedByName = (volumes: readonly VolumeFacts[]): VolumeFacts[] =>
  volumes.toSorted((a, b) => a.name.localeCompare(b.name, 'en', { numeric: true }))

/** In bytes, by any of a device's paths. Throws `RpcError` ENOENT naming `what`. */
export async function deviceSize(what: string, path: string): Promise<number> {
  try {
    const name = basename(await realpath(path))
    return Number(await readFile(`/sys/class/block/${name}/size`, 'utf8')) * SECTOR
  } catch (cause) {
    throw new RpcError('ENOENT', `${what}: ${path} is no block device of this machine`, { cause })
  }
}

/** The name of a device in a directory of links such as /dev/disk/by-path, or its own in /dev. */
export async function pathBelow(directory: string, device: string): Promise<string> {
  const own = `/dev/${device}`
  if (directory === '/dev') return own
  for (const name of (await readdir(directory).catch(() => [])).sort()) {
    const path = join(directory, name)
    if ((await realpath(path).catch(() => '')) === own) return path
  }
  return own
}

/** Waits until udev has made the links of devices that have just come. */
export async function settleDevices(): Promise<void> {
  try {
    await runProgram('udevadm', ['settle', '--timeout=10'])
  } catch {
    // Without udev there are no links to wait for, and those that are late the next look finds.
  }
}

const COMES_WITHIN_MS = 10_000
const LOOK_AGAIN_MS = 50

/** Waits for the path of a device that has just been made; false when it does not come. */
export async function waitForDevice(path: string): Promise<boolean> {
  await settleDevices()
  const deadlineMs = performance.now() + COMES_WITHIN_MS
  while ((await stat(path).catch(() => undefined)) === undefined) {
    if (performance.now() > deadlineMs) return false
    await delay(LOOK_AGAIN_MS)
  }
  return true
}

/** Those who have a volume open hear that it has another size. */
export async function tellNewSize(
  call: (method: string, params?: unknown) => Promise<unknown>,
  openBy: OpenBy,
): Promise<void> {
  for (const { name, driver } of openBy) await call(`bdev_${driver}_rescan`, { name })
}

const BLKID_NOTHING = 2

/** What is on a device (`ext4`, `LVM2_member`, a partition table), or nothing. */
export async function probeDevice(what: string, device: string): Promise<string> {
  const args = ['-p', '-o', 'export', '--', device]
  try {
    const said = await runProgram('blkid', args)
    const facts = new Map(said.split('\n').map(line => line.split('=', 2) as [string, string]))
    const table = facts.get('PTTYPE')
    return facts.get('TYPE') ?? (table === undefined ? 'something' : `a ${table} partition table`)
  } catch (error) {
    if (error instanceof ProgramError && error.exitCode === BLKID_NOTHING && error.stderr === '') return ''
    return runTool(what, 'blkid', args)
  }
}

/** Throws `RpcError` EEXIST when there is something on a device that is about to be lost. */
export async function refuseFormatted(what: string, device: string): Promise<void> {
  const found = await probeDevice(what, device)
  if (found === '') return
  throw new RpcError(
    'EEXIST',
    `${what}: ${device} has ${found} on it already. --overwrite replaces it all the same, and what it holds is lost`,
  )
}

/** The file behind a loop device, or the source itself. */
export async function fileBehind(source: string): Promise<string> {
  const loop = /^\/dev\/(loop\d+)$/.exec(source)?.[1]
  if (loop === undefined) return source
  return (await readText(`/sys/block/${loop}/loop/backing_file`)) || source
}
