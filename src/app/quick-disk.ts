/** `qpair serve --disk`: a thin image, a device, a subsystem, a namespace and listeners, by the methods anybody would use. */
import { open } from 'node:fs/promises'
import { basename, resolve } from 'node:path'
import { RpcError } from '../core/errors.ts'
import { formatSize } from '../core/format-size.ts'
import type { QuickDisk } from './options.ts'

const BLOCK_SIZE = 512

/** What it needs of a daemon. */
interface Callable {
  call(method: string, params?: unknown): Promise<unknown>
}

/** Brings the disk up and returns what to tell the user. A disk that a saved configuration already has stays as it is. */
export async function openQuickDisk(daemon: Callable, disk: QuickDisk): Promise<string> {
  const path = resolve(disk.path)
  const made = await makeThin(path, disk.sizeBytes)
  const listeners = disk.listen.map(parseListen)
  const bdev = basename(path).replace(/[^\w.-]/g, '_')
  if (!(await has(daemon, 'nvmf_get_transports', { trtype: 'TCP' }))) {
    await daemon.call('nvmf_create_transport', { trtype: 'TCP' })
  }
  if (!(await has(daemon, 'bdev_get_bdevs', { name: bdev }))) {
    await daemon.call('bdev_uring_create', { name: bdev, filename: path, block_size: BLOCK_SIZE })
  }
  if (!(await has(daemon, 'nvmf_get_subsystems', { nqn: disk.nqn }))) {
    const subsystem = { nqn: disk.nqn, allow_any_host: true, ana_reporting: true, serial_number: 'QPAIR0' }
    await daemon.call('nvmf_create_subsystem', subsystem)
    await daemon.call('nvmf_subsystem_add_ns', { nqn: disk.nqn, namespace: { bdev_name: bdev } })
  }
  const present = (await daemon.call('nvmf_subsystem_get_listeners', { nqn: disk.nqn })) as {
    address: { traddr: string; trsvcid: string }
  }[]
  for (const { traddr, trsvcid } of listeners) {
    if (present.some(({ address }) => address.traddr === traddr && address.trsvcid === trsvcid)) continue
    const adrfam = traddr.includes(':') ? 'IPv6' : 'IPv4'
    await daemon.call('nvmf_subsystem_add_listener', {
      nqn: disk.nqn,
      listen_address: { trtype: 'TCP', adrfam, traddr, trsvcid },
    })
  }
  // An image that was there has the size that it has.
  const [opened] = (await daemon.call('bdev_get_bdevs', { name: bdev })) as [
    { num_blocks: number; block_size: number },
  ]
  const connect = listeners.map(
    ({ traddr, trsvcid }) => `    nvme connect -t tcp -a ${traddr} -s ${trsvcid} -n ${disk.nqn}`,
  )
  return [
    '',
    `  ${path}: ${made ? 'a new thin disk' : 'an existing disk'} of ${formatSize(opened.num_blocks * opened.block_size)}`,
    '  On the Linux host that is to use it, as root:',
    '',
    '    modprobe nvme-tcp',
    ...connect,
    '',
    '  It appears as /dev/nvmeXn1. Elsewhere: `qpair subsystem list`, `qpair bdev list`.',
    '  Ctrl-C ends the daemon; the data stays.',
    '',
    '',
  ].join('\n')
}

/** Makes a sparse file unless there is one; says whether it did. */
async function makeThin(path: string, sizeBytes: number): Promise<boolean> {
  try {
    const file = await open(path, 'wx', 0o600)
    try {
      await file.truncate(sizeBytes)
    } finally {
      await file.close()
    }
    return true
  } catch (cause) {
    const { code, message } = cause as NodeJS.ErrnoException
    if (code === 'EEXIST') return false
    throw new RpcError('EINVAL', `--disk ${path} cannot be made: ${message}`, { cause })
  }
}

/** Whether one of the objects that a method lists has these values. */
async function has(
  daemon: Callable,
  method: string,
  wanted: Readonly<Record<string, string>>,
): Promise<boolean> {
  const rows = (await daemon.call(method)) as Record<string, unknown>[]
  return rows.some(row => Object.entries(wanted).every(([key, value]) => row[key] === value))
}

function parseListen(text: string): { traddr: string; trsvcid: string } {
  const match = /^(?:\[([\da-f:.]+)\]|([\d.]+)):(\d+)$/i.exec(text)
  if (match === null) {
    throw new RpcError(
      'EINVAL',
      `--listen ${text}: give IP:PORT, such as 192.0.2.7:4420 or [2001:db8::7]:4420`,
    )
  }
  return { traddr: (match[1] ?? match[2])!, trsvcid: match[3]! }
}
