/**
 * What the daemon keeps of a guest that outlives it, in a directory of the guest's own below the state directory:
 *
 *     guests/NAME/guest.json    this record
 *                 qmp           QEMU's monitor
 *                 console       the guest's serial port
 *                 log           what QEMU has complained of
 *                 vnc           its screen, if it has one on a socket
 *     nvram/NAME.fd             the variables of its UEFI firmware, which stay when it ends: what is to be booted, above all
 */
import { readdirSync, readFileSync } from 'node:fs'
import { mkdir, rename, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { type RpcCode, RpcError } from '../../core/errors.ts'
import type { DiskSource } from '../../libvirt/disk-xml.ts'
import type { Means } from '../disk/means.ts'
import type { GuestBus, Version } from './guest-disk.ts'
import type { Accel } from './machine.ts'
import type { QemuProcess } from './qemu-process.ts'

export interface RecordedDisk {
  readonly target: string
  readonly bus: GuestBus | 'cdrom'
  readonly means: Means
  /** As the operator named it. */
  readonly volume: string
  readonly source: DiskSource
  readonly serial: string
  readonly isReadOnly: boolean
  /** The port that it is plugged in; undefined where there are none. */
  readonly port: string | undefined
}

export interface GuestRecord {
  readonly name: string
  readonly process: QemuProcess
  readonly version: Version
  readonly cpus: number
  readonly memoryBytes: number
  readonly machine: string
  readonly accel: Accel
  readonly network: string
  /** Where its screen is: a path, or ADDRESS:PORT. */
  readonly vnc: string | undefined
  /** An interface that goes with the guest. */
  readonly interface: string | undefined
  readonly ports: number
  readonly disks: readonly RecordedDisk[]
  readonly program: string
  readonly arguments: readonly string[]
}

/** sockaddr_un has room for so many bytes and a zero. */
const SOCKET_PATH_BYTES_MAX = 107

export interface GuestPaths {
  readonly directory: string
  readonly record: string
  readonly qmp: string
  readonly console: string
  readonly log: string
  readonly vnc: string
  readonly variables: string
}

/** Throws `RpcError` EINVAL when the names of sockets become too long. */
export function pathsOf(guests: string, name: string): GuestPaths {
  const directory = join(guests, name)
  const console = join(directory, 'console')
  if (Buffer.byteLength(console) > SOCKET_PATH_BYTES_MAX) {
    throw new RpcError(
      'EINVAL',
      `the guest's socket would be ${console}, longer than the ${SOCKET_PATH_BYTES_MAX} bytes that sockets may have: ` +
        'choose a shorter --state directory, or a shorter name',
    )
  }
  return {
    directory,
    console,
    record: join(directory, 'guest.json'),
    qmp: join(directory, 'qmp'),
    log: join(directory, 'log'),
    vnc: join(directory, 'vnc'),
    variables: join(guests, '..', 'nvram', `${name}.fd`),
  }
}

/** Throws `RpcError` with the system's reason where nothing can be kept: ENOSPC, EROFS … */
export function writeRecord({ directory, record }: GuestPaths, guest: GuestRecord): Promise<void> {
  return keeping(directory, async () => {
    await mkdir(directory, { recursive: true, mode: 0o700 })
    const temporary = `${record}.new`
    await writeFile(temporary, `${JSON.stringify(guest, null, 2)}\n`, { mode: 0o600 })
    await rename(temporary, record)
  })
}

/** Says of a system call that fails what it was for. */
export async function keeping<Result>(where: string, work: () => Promise<Result>): Promise<Result> {
  try {
    return await work()
  } catch (error) {
    const { code, message, syscall } = error as NodeJS.ErrnoException
    if (syscall === undefined) throw error
    throw new RpcError(
      code as RpcCode,
      `what is kept of the guest in ${where} cannot be written: ${message}. The daemon needs a state directory that it may ` +
        'write to, with room',
      { cause: error },
    )
  }
}

/** The names of all that have a directory. */
export function recordedGuests(guests: string): string[] {
  try {
    return readdirSync(guests, { withFileTypes: true })
      .filter(entry => entry.isDirectory())
      .map(({ name }) => name)
  } catch (error) {
    // No guest has ever run here.
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return []
    throw error
  }
}

/** Undefined when its start never came so far as to be recorded. */
export function readRecord({ record }: GuestPaths): GuestRecord | undefined {
  try {
    return JSON.parse(readFileSync(record, 'utf8')) as GuestRecord
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined
    throw error
  }
}
