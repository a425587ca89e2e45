/** The command line of `qpair serve`: SPDK's flags, and a few of our own. */
import { resolve } from 'node:path'
import { parseArgs } from 'node:util'
import { parseCoreMask } from '../core/core-mask.ts'
import { RpcError } from '../core/errors.ts'
import { LogLevel, type LogLevelName } from '../core/log.ts'
import { parseSize, wholeBlocks } from '../core/parse-size.ts'

export interface QuickDisk {
  /** The image; made thin if it does not exist. */
  readonly path: string
  readonly sizeBytes: number
  /** Where hosts connect: IP addresses with a port. */
  readonly listen: readonly string[]
  readonly nqn: string
}

/** Where the sockets of vhost controllers are, and whose they are unless a controller says so itself. */
export interface VhostSockets {
  /** Absolute, and made if it is not there; the current one when undefined. */
  readonly directory: string | undefined
  /** As for chmod: `0660`. */
  readonly mode: string | undefined
  /** As for chown: `libvirt-qemu:kvm`. */
  readonly owner: string | undefined
}

export interface ServeOptions {
  readonly rpcSocket: string
  /** One reactor an element: the processor it stays on, or -1. */
  readonly cpus: readonly number[]
  readonly configFile: string | undefined
  readonly stateDirectory: string | undefined
  readonly vhost: VhostSockets
  readonly waitForRpc: boolean
  readonly logLevel: LogLevelName
  readonly logFlags: readonly string[]
  readonly plugins: readonly string[]
  readonly disk: QuickDisk | undefined
}

export const DEFAULT_RPC_SOCKET = '/var/tmp/spdk.sock'
export const DEFAULT_DISK_SIZE = '10G'
export const DEFAULT_NQN = 'nqn.2026-11.io.qpair:disk0'
const DEFAULT_LISTEN = '127.0.0.1:4420'

export const SERVE_HELP = `Usage: qpair serve [options]

Starts the daemon: block devices, an NVMe/TCP target, an NVMe/TCP host with multipath, vhost-user disks for guests and
NBD exports, controlled by SPDK-compatible JSON-RPC.

A disk in one command
  --disk FILE             serve FILE as an NVMe/TCP disk; it is made, thin, if it does not exist
  --size SIZE             how large to make it: 10G, 512M (default ${DEFAULT_DISK_SIZE})
  --listen IP:PORT        where hosts connect; may be repeated (default ${DEFAULT_LISTEN})
  --nqn NQN               the subsystem's name (default ${DEFAULT_NQN})

As SPDK's applications have them
  -r, --rpc-socket PATH   the RPC socket, or IP:PORT (default ${DEFAULT_RPC_SOCKET})
  -m, --cpumask MASK      one reactor for each processor in the mask: 0x3 or [0,1] (default: one, on any)
  -c, --config FILE       configuration to load at start, in SPDK's format; a call that fails ends the start
  -S PATH                 directory of the vhost controllers' sockets, made if missing (default: this one)
  -L, --logflag FLAG      log everything of a component; may be repeated, "all" for all
  --loglevel LEVEL        least level to print: ${Object.keys(LogLevel).join(', ')} (default NOTICE)
  --wait-for-rpc          wait for framework_start_init before anything is brought up
  -s, -u, -g, --no-huge   accepted and without meaning: there are no huge pages and no DPDK to configure

Its own
  --state DIR             keep the configuration in DIR: every acknowledged change survives a restart
  --vhost-mode MODE       who may connect to vhost sockets, as for chmod: 0660
  --vhost-owner USER:GROUP  whose they are, as for chown: libvirt-qemu:kvm
  --plugin FILE           load a driver written by you; may be repeated
  --reactors N            so many reactors that stay on no processor in particular
  -h, --help              this text

See also: qpair --help for the commands that control a running daemon.
`

/** Parses `serve`'s arguments. Throws `RpcError` EINVAL that names the argument, its value and what it may be. */
export function parseServeOptions(argv: readonly string[]): ServeOptions | 'help' {
  const values = parse(argv)
  if (values.help === true) return 'help'
  const logLevel = (values.loglevel ?? 'NOTICE').toUpperCase()
  if (!(logLevel in LogLevel)) {
    throw new RpcError(
      'EINVAL',
      `--loglevel ${values.loglevel}: give one of ${Object.keys(LogLevel).join(', ')}`,
    )
  }
  return {
    rpcSocket: values['rpc-socket'] ?? process.env['QPAIR_SOCKET'] ?? DEFAULT_RPC_SOCKET,
    cpus: reactorCpus(values.cpumask, values.reactors),
    configFile: values.config,
    stateDirectory: values.state,
    vhost: {
      directory: values['vhost-path'] === undefined ? undefined : resolve(values['vhost-path']),
      mode: values['vhost-mode'],
      owner: values['vhost-owner'],
    },
    waitForRpc: values['wait-for-rpc'] === true,
    logLevel: logLevel as LogLevelName,
    logFlags: values.logflag ?? [],
    plugins: values.plugin ?? [],
    disk: quickDisk(values),
  }
}

type Values = ReturnType<typeof parse>

const text = { type: 'string' } as const
const list = { type: 'string', multiple: true } as const
const flag = { type: 'boolean' } as const

/** The flags of `qpair serve`, by their long names. */
export const SERVE_OPTIONS = {
  'rpc-socket': { ...text, short: 'r' },
  cpumask: { ...text, short: 'm' },
  config: { ...text, short: 'c' },
  'vhost-path': { ...text, short: 'S' },
  'vhost-mode': text,
  'vhost-owner': text,
  logflag: { ...list, short: 'L' },
  loglevel: text,
  'wait-for-rpc': flag,
  'mem-size': { ...text, short: 's' },
  'no-pci': { ...flag, short: 'u' },
  'single-file-segments': { ...flag, short: 'g' },
  'no-huge': flag,
  state: text,
  plugin: list,
  reactors: text,
  disk: text,
  size: text,
  listen: list,
  nqn: text,
  help: { ...flag, short: 'h' },
}

function parse(argv: readonly string[]) {
  try {
    return parseArgs({ args: [...argv], allowPositionals: false, options: SERVE_OPTIONS }).values
  } catch (cause) {
    throw new RpcError('EINVAL', `${(cause as Error).message.split('. ')[0]}. See qpair serve --help`, {
      cause,
    })
  }
}

function reactorCpus(mask: string | undefined, count: string | undefined): readonly number[] {
  if (mask !== undefined && count !== undefined) {
    throw new RpcError(
      'EINVAL',
      `-m ${mask} and --reactors ${count} both say how many reactors: give one of them`,
    )
  }
  if (mask !== undefined) return parseCoreMask(mask, '-m')
  const reactors = Number(count ?? '1')
  if (!Number.isInteger(reactors) || reactors < 1 || reactors > 128) {
    throw new RpcError('EINVAL', `--reactors ${count}: give a number from 1 to 128`)
  }
  return new Array<number>(reactors).fill(-1)
}

function quickDisk({ disk, size, listen, nqn }: Values): QuickDisk | undefined {
  if (disk === undefined) {
    const [lonely] = Object.entries({ size, listen, nqn }).find(([, value]) => value !== undefined) ?? []
    if (lonely !== undefined) throw new RpcError('EINVAL', `--${lonely} goes with --disk FILE`)
    return undefined
  }
  return {
    path: disk,
    sizeBytes: wholeBlocks(parseSize(size ?? DEFAULT_DISK_SIZE, '--size')),
    listen: listen ?? [DEFAULT_LISTEN],
    nqn: nqn ?? DEFAULT_NQN,
  }
}
