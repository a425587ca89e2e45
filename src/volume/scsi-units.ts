/** Block devices of SCSI hosts, as the kernel has them in sysfs. */
import { readdir, readFile, realpath } from 'node:fs/promises'
import { join } from 'node:path'
import { blockVolume, pathBelow, SECTOR } from './block-devices.ts'
import type { VolumeFacts } from './pool.ts'

export interface ScsiUnit {
  readonly host: number
  readonly bus: number
  readonly target: number
  readonly lun: number
  /** The kernel's name: `sda`. */
  readonly device: string
  readonly sizeBytes: number
}

export const SYS = '/sys'

/** The first line of a file of sysfs; empty when there is none. */
export async function sysText(...path: readonly string[]): Promise<string> {
  const text = await readFile(join(...path), 'utf8').catch(() => '')
  return text.trim()
}

const entries = async (path: string): Promise<string[]> => (await readdir(path).catch(() => [])).sort()

/** Disks of a host, or of all: `/sys/bus/scsi/devices/HOST:BUS:TARGET:LUN/block/sda`. */
export async function scsiUnits(host: number | undefined, sys = SYS): Promise<ScsiUnit[]> {
  const units: ScsiUnit[] = []
  const directory = join(sys, 'bus/scsi/devices')
  for (const name of await entries(directory)) {
    const [, ...numbers] = /^(\d+):(\d+):(\d+):(\d+)$/.exec(name) ?? []
    if (numbers.length === 0) continue
    const [of, bus, target, lun] = numbers.map(Number) as [number, number, number, number]
    if (host !== undefined && of !== host) continue
    const [device] = await entries(join(directory, name, 'block'))
    // A controller, an enclosure, a tape.
    if (device === undefined) continue
    const sizeBytes = Number(await sysText(sys, 'class/block', device, 'size')) * SECTOR
    units.push({ ...{ host: of, bus, target, lun }, device, sizeBytes })
  }
  return units
}

/** The disks of a host as volumes, by libvirt's names, with their paths below a directory of links such as /dev/disk/by-path. */
export async function unitVolumes(host: number, directory: string, sys = SYS): Promise<VolumeFacts[]> {
  const volumes: VolumeFacts[] = []
  for (const { bus, target, lun, device, sizeBytes } of await scsiUnits(host, sys)) {
    volumes.push(blockVolume(`unit:${bus}:${target}:${lun}`, await pathBelow(directory, device), sizeBytes))
  }
  return volumes
}

/** Whether the kernel has looked at every disk of a host: they come one by one after a login. */
export async function hasAllDisks(host: number, sys = SYS): Promise<boolean> {
  const directory = join(sys, 'bus/scsi/devices')
  const seen = (await scsiUnits(host, sys)).filter(({ sizeBytes }) => sizeBytes > 0)
  let disks = 0
  for (const name of await entries(directory)) {
    const isDisk = name.startsWith(`${host}:`) && (await sysText(directory, name, 'type')) === '0'
    if (isDisk) disks++
  }
  return disks === seen.length
}

export interface IscsiSession {
  readonly target: string
  /** The host number of its units. */
  readonly host: number
  /** The address that it is connected to; empty while it is not. */
  readonly address: string
  readonly initiator: string
  /** The record of open-iscsi that it was made by: `default`, or a name that somebody has chosen. */
  readonly interface: string
}

/** Sessions of the kernel's initiator: `/sys/class/iscsi_session/session1`, below its host's device. */
export async function iscsiSessions(sys = SYS): Promise<IscsiSession[]> {
  const sessions: IscsiSession[] = []
  const directory = join(sys, 'class/iscsi_session')
  for (const name of await entries(directory)) {
    const path = await realpath(join(directory, name)).catch(() => '')
    const host = Number(/\/host(\d+)\//.exec(path)?.[1] ?? Number.NaN)
    if (Number.isNaN(host)) continue
    const connection = join(sys, 'class/iscsi_connection', `${name.replace('session', 'connection')}:0`)
    sessions.push({
      host,
      target: await sysText(directory, name, 'targetname'),
      initiator: await sysText(directory, name, 'initiatorname'),
      address: await sysText(connection, 'persistent_address'),
      interface: await sysText(directory, name, 'ifacename'),
    })
  }
  return sessions
}
