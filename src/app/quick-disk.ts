/** `qpair serve --disk`: a thin image, a device, a subsystem, a namespace and listeners, by the methods anybody would use. */
import { open } from 'node:fs/promises'
import { basename, resolve } from 'node:path'
import { RpcError } from '../core/errors.ts'
import { formatSize } from '../core/format-size.ts'
import { type Call, exportOverNvme, has, parseListen } from '../volume/nvme-export.ts'
import type { QuickDisk } from './options.ts'

const BLOCK_SIZE = 512

/** What it needs of a daemon. */
interface Callable {
  call(method: string, params?: unknown): Promise<unknown>
}

/** Brings the disk up and returns what to tell the user. A disk that a saved configuration already has stays as it is. */
export async function openQuickDisk(daemon: Callable, disk: QuickDisk): Promise<string> {
  const path = resolve(disk.path)
  // Before an image is made for nothing.
  disk.listen.forEach(parseListen)
  const made = await makeThin(path, disk.sizeBytes)
  const bdev = basename(path).replace(/[^\w.-]/g, '_')
  const call: Call = (method, params) => daemon.call(method, params)
  if (!(await has(call, 'bdev_get_bdevs', { name: bdev }))) {
    await call('bdev_uring_create', { name: bdev, filename: path, block_size: BLOCK_SIZE })
  }
  const connect = await exportOverNvme(call, {
    bdev,
    nqn: disk.nqn,
    listen: disk.listen,
    serialNumber: 'QPAIR0',
  })
  // An image that was there has the size that it has.
  const [opened] = (await daemon.call('bdev_get_bdevs', { name: bdev })) as [
    { num_blocks: number; block_size: number },
  ]
  return [
    '',
    `  ${path}: ${made ? 'a new thin disk' : 'an existing disk'} of ${formatSize(opened.num_blocks * opened.block_size)}`,
    '  On the Linux host that is to use it, as root:',
    '',
    '    modprobe nvme-tcp',
    ...connect.map(line => `    ${line}`),
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
