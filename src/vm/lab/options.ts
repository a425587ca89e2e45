/** The command line of `qpair vm lab`. */
import { parseArgs } from 'node:util'
import { RpcError } from '../../core/errors.ts'
import { formatSize } from '../../core/format-size.ts'
import { parseMemorySize, parseSize } from '../../core/parse-size.ts'
import type { Accel } from '../run/machine.ts'
import type { Kernel } from './kernel.ts'

export const LAB_HELP = `Usage: qpair vm lab [--nvme SIZE]... [--multipath] [options]

Starts a small Linux guest with virtual NVMe disks and puts its console on this terminal: nvme list, lspci and fdisk -l show
them. Needs no daemon, no root, no NVMe hardware. Everything it makes lies in a temporary directory and is removed.

  --nvme SIZE         an NVMe disk of that size: 40G, 512M; may be repeated (default 10G)
  --multipath         the disks are those of two gateways, started with it, and the guest is connected to both; Ctrl-]
                      opens a menu to kill and start gateways, cut networks, show paths and run I/O
  --cpus N            processors (default 2)
  --memory SIZE       memory (default 512M)
  --accel ACCEL       kvm, tcg (emulated, slower), or auto: KVM where it works (default)
  --kernel PATH       a Linux kernel, together with
  --modules DIR       its modules, /lib/modules/VERSION; by default this machine's own, or Debian's, downloaded once
  -h, --help          this text

Ctrl-] ends the lab, or opens the menu; poweroff in the guest ends it, too.
`

export const LAB_OPTIONS = {
  nvme: { type: 'string', multiple: true },
  multipath: { type: 'boolean' },
  cpus: { type: 'string' },
  memory: { type: 'string' },
  accel: { type: 'string' },
  kernel: { type: 'string' },
  modules: { type: 'string' },
  help: { type: 'boolean', short: 'h' },
} as const

export interface LabRequest {
  readonly sizes: readonly number[]
  readonly isMultipath: boolean
  readonly cpus: number
  readonly memoryBytes: number
  readonly accel: Accel | 'auto'
  readonly kernel: Kernel | undefined
}

const DISKS_MAX = 16
const DISK_BYTES_MIN = 1 << 20
const BLOCK_BYTES = 512

/** Throws `RpcError` EINVAL. */
export function parseRequest(argv: readonly string[]): LabRequest | 'help' {
  const values = parse(argv)
  if (values.help === true) return 'help'
  const sizes = (values.nvme ?? ['10G']).map(size => parseSize(size, '--nvme'))
  if (sizes.length > DISKS_MAX) {
    throw new RpcError(
      'EINVAL',
      `--nvme is given ${sizes.length} times: the lab has room for ${DISKS_MAX} disks`,
    )
  }
  const odd = sizes.findIndex(size => size < DISK_BYTES_MIN || size % BLOCK_BYTES !== 0)
  if (odd >= 0) {
    throw new RpcError(
      'EINVAL',
      `--nvme ${values.nvme![odd]}: a disk has ${formatSize(DISK_BYTES_MIN)} at least, in blocks of ${BLOCK_BYTES} bytes`,
    )
  }
  const cpus = Number(values.cpus ?? '2')
  if (!Number.isInteger(cpus) || cpus < 1 || cpus > 64) {
    throw new RpcError('EINVAL', `--cpus ${values.cpus}: give a number from 1 to 64`)
  }
  const { accel = 'auto', kernel, modules } = values
  if (accel !== 'auto' && accel !== 'kvm' && accel !== 'tcg') {
    throw new RpcError('EINVAL', `--accel ${accel}: choose auto, kvm or tcg`)
  }
  if ((kernel === undefined) !== (modules === undefined)) {
    throw new RpcError('EINVAL', '--kernel PATH and --modules DIR go together: modules fit one kernel only')
  }
  return {
    ...{ sizes, cpus, accel, isMultipath: values.multipath === true },
    memoryBytes: parseMemorySize(values.memory ?? '512M', '--memory'),
    kernel: kernel === undefined ? undefined : { image: kernel, modules: modules! },
  }
}

function parse(argv: readonly string[]) {
  try {
    return parseArgs({ args: [...argv], allowPositionals: false, options: LAB_OPTIONS }).values
  } catch (cause) {
    const reason = (cause as Error).message.split('. ')[0]
    throw new RpcError('EINVAL', `${reason}. See qpair vm lab --help`, { cause })
  }
}
