/**
 * Disks over vhost-user: a daemon that serves them, and what QEMU has to be told so that a guest gets one.
 *
 *   guest ── virtqueues in shared memory ── daemon ── bdev
 *   QEMU ── Unix socket: descriptors of that memory, of kicks and calls ── daemon
 */
import { mkdtempSync, rmSync, truncateSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { type Daemon, type DaemonOptions, startDaemon } from './daemon.ts'
import type { Guest } from './guest.ts'

/** A device of QEMU as the guest gets it. */
export interface VhostDevice {
  /** Names the device in QEMU; its chardev is `ID-socket`. */
  readonly id: string
  /** The controller's socket. */
  readonly socket: string
  /** Default 1. */
  readonly queues?: number
  /** Asks for packed rings, which QEMU does not by itself. Default false. */
  readonly packed?: boolean
  /** Where to plug it in, for what may be unplugged. */
  readonly bus?: string
}

/** A device's properties as QEMU's `device_add` takes them. */
type Properties = Readonly<Record<string, string | number | boolean>>

/** What vhost_get_controllers tells, as far as tests look at it. */
export interface Controller {
  readonly ctrlr: string
  readonly socket: string
  readonly sessions: readonly { readonly inflight_task_cnt: number; readonly started: boolean }[]
  readonly backend_specific: {
    readonly scsi?: readonly { readonly scsi_dev_num: number; readonly luns: readonly unknown[] }[]
  }
}

/** How long QEMU waits, in seconds, before it looks again for a daemon that went away. */
const RECONNECT_S = 1

/** QEMU's arguments for a virtio-blk disk. */
export const blkArgs = (device: VhostDevice): string[] => [
  ...['-chardev', `socket,id=${device.id}-socket,path=${device.socket},reconnect=${RECONNECT_S}`],
  ...['-device', commandLine(blkProperties(device))],
]

/** QEMU's arguments for a virtio-scsi adapter. It has no `reconnect`: before version 8.2 QEMU fails to start with it. */
export function scsiArgs(device: VhostDevice): string[] {
  const { id, queues = 1, packed = false } = device
  const properties = {
    driver: 'vhost-user-scsi-pci',
    id,
    chardev: `${id}-socket`,
    num_queues: queues,
    packed,
  }
  const chardev = ['-chardev', `socket,id=${id}-socket,path=${device.socket}`]
  return [...chardev, '-device', commandLine(properties)]
}

/** A slot into which a device can be plugged while the guest runs. */
export const slotArgs = (bus: string, slot: number): string[] => [
  ...['-device', `pcie-root-port,id=${bus},chassis=${slot},slot=${slot}`],
]

/** Plugs a virtio-blk disk into a guest that runs. */
export async function plugBlk(guest: Guest, device: VhostDevice): Promise<void> {
  const addr = { type: 'unix', data: { path: device.socket } }
  const backend = { type: 'socket', data: { addr, server: false, reconnect: RECONNECT_S } }
  await guest.qmp.execute('chardev-add', { id: `${device.id}-socket`, backend })
  await guest.qmp.execute('device_add', blkProperties(device))
}

/** Unplugs a device and takes its chardev away, once the guest has let go of it. */
export async function unplug(guest: Guest, id: string): Promise<void> {
  const gone = guest.qmp.event('DEVICE_DELETED', data => data['device'] === id)
  await guest.qmp.execute('device_del', { id })
  await gone
  await guest.qmp.execute('chardev-remove', { id: `${id}-socket` })
}

/** Starts a daemon with a directory of its own for the sockets of its controllers. The caller must `stop` it. */
export async function startVhost(options: DaemonOptions = {}): Promise<VhostTarget> {
  // The path of a Unix socket is short, so this is not below the daemon's directory.
  const sockets = mkdtempSync(join(tmpdir(), 'qpair-vhost-'))
  try {
    const args = ['-S', sockets, ...(options.args ?? [])]
    return new VhostTarget(await startDaemon({ ...options, args }), sockets)
  } catch (error) {
    rmSync(sockets, { recursive: true, force: true })
    throw error
  }
}

export class VhostTarget {
  readonly daemon: Daemon
  /** The directory of the controllers' sockets. */
  readonly sockets: string

  constructor(daemon: Daemon, sockets: string) {
    this.daemon = daemon
    this.sockets = sockets
  }

  /** Makes a sparse file that lives as long as the daemon. */
  image(name: string, bytes: number): string {
    const path = join(this.daemon.directory, name)
    writeFileSync(path, '')
    truncateSync(path, bytes)
    return path
  }

  /** Serves a bdev as a virtio-blk disk; resolves with the socket. */
  async serveBlk(ctrlr: string, dev_name: string, params: object = {}): Promise<string> {
    await this.daemon.rpc('vhost_create_blk_controller', { ctrlr, dev_name, ...params })
    return join(this.sockets, ctrlr)
  }

  /** Serves bdevs as the targets 0, 1 … of a virtio-scsi adapter; resolves with the socket. */
  async serveScsi(ctrlr: string, bdevs: readonly string[], params: object = {}): Promise<string> {
    await this.daemon.rpc('vhost_create_scsi_controller', { ctrlr, ...params })
    for (const [target, bdev] of bdevs.entries()) await this.addTarget(ctrlr, target, bdev)
    return join(this.sockets, ctrlr)
  }

  addTarget(ctrlr: string, scsi_target_num: number, bdev_name: string): Promise<number> {
    return this.daemon.rpc<number>('vhost_scsi_controller_add_target', { ctrlr, scsi_target_num, bdev_name })
  }

  async removeTarget(ctrlr: string, scsi_target_num: number): Promise<void> {
    await this.daemon.rpc('vhost_scsi_controller_remove_target', { ctrlr, scsi_target_num })
  }

  async controller(name: string): Promise<Controller> {
    const [controller] = await this.daemon.rpc<Controller[]>('vhost_get_controllers', { name })
    return controller!
  }

  /** Requests that the controller's guests have sent and that are not answered. */
  async inflight(name: string): Promise<number> {
    const { sessions } = await this.controller(name)
    return sessions.reduce((sum, { inflight_task_cnt }) => sum + inflight_task_cnt, 0)
  }

  async stop(): Promise<void> {
    try {
      await this.daemon.stop()
    } finally {
      rmSync(this.sockets, { recursive: true, force: true })
    }
  }
}

const blkProperties = ({ id, queues = 1, packed = false, bus }: VhostDevice): Properties => ({
  driver: 'vhost-user-blk-pci',
  id,
  chardev: `${id}-socket`,
  'num-queues': queues,
  packed,
  ...(bus === undefined ? {} : { bus }),
})

const commandLine = ({ driver, ...properties }: Properties): string =>
  [driver, ...Object.entries(properties).map(([name, value]) => `${name}=${onOff(value)}`)].join(',')

const onOff = (value: string | number | boolean): string | number =>
  typeof value === 'boolean' ? (value ? 'on' : 'off') : value
