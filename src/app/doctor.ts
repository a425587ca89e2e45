/** `qpair doctor`: looks at the host and says what is missing, what that means and what to type. */
import { accessSync, constants, existsSync, readFileSync } from 'node:fs'
import { connect, createServer } from 'node:net'
import { availableParallelism, freemem, release } from 'node:os'
import { dirname, join } from 'node:path'
import { parseArgs, styleText } from 'node:util'
import { RpcError, SysError } from '../core/errors.ts'
import { foldLines } from '../core/fold-lines.ts'
import { formatSize } from '../core/format-size.ts'
import { Arena } from '../sys/memory.ts'
import { Uring } from '../sys/uring.ts'
import { DEFAULT_RPC_SOCKET } from './options.ts'

type Level = 'ok' | 'note' | 'warning' | 'failure'

interface Finding {
  readonly check: string
  readonly level: Level
  readonly found: string
  /** What to do; absent when there is nothing to do. */
  readonly remedy?: string
}

const HELP = `Usage: qpair doctor [--json]

Checks this host: as the machine that runs qpair (Node.js, io_uring, memory, limits, ports) and as one that connects to it
(the kernel's NVMe modules and tools). Exit code 1 when the daemon cannot run here.
`

/** Each check stands for itself: one that cannot be made is a finding, not the end. */
const CHECKS: readonly (() => Finding | Promise<Finding>)[] = [
  node,
  kernel,
  ioUring,
  memory,
  processors,
  openFiles,
  lockedMemory,
  () => port(4420, 'the port of NVMe/TCP'),
  () => port(8009, 'the port of NVMe/TCP discovery'),
  rpcSocket,
  nvmeModule,
  nativeMultipath,
  nvmeCli,
  kvm,
]

export async function doctor(argv: readonly string[]): Promise<number> {
  let json: boolean
  try {
    const { values } = parseArgs({
      args: [...argv],
      options: { json: { type: 'boolean' }, help: { type: 'boolean', short: 'h' } },
    })
    if (values.help === true) {
      process.stdout.write(foldLines(HELP, process.stdout.columns))
      return 0
    }
    json = values.json === true
  } catch (error) {
    process.stderr.write(`qpair doctor: ${(error as Error).message}\n`)
    return 2
  }
  const findings: Finding[] = []
  for (const check of CHECKS) findings.push(await check())
  process.stdout.write(json ? `${JSON.stringify(findings, null, 2)}\n` : findings.map(line).join(''))
  return findings.some(({ level }) => level === 'failure') ? 1 : 0
}

const MARKS = {
  ok: ['green', 'ok     '],
  note: ['cyan', 'note   '],
  warning: ['yellow', 'warning'],
  failure: ['red', 'FAILURE'],
} as const

/** What stands left of the text. */
const MARGIN = ' '.repeat(28)

/** Text behind the margin, its further lines with a margin of their own. */
const beside = (text: string): string => foldLines(MARGIN + text, process.stdout.columns).slice(MARGIN.length)

function line({ check, level, found, remedy }: Finding): string {
  const [colour, word] = MARKS[level]
  const mark = process.stdout.isTTY ? styleText(colour, word) : word
  return `${mark}  ${check.padEnd(18)} ${beside(found)}\n${remedy === undefined ? '' : `${MARGIN}${beside(`-> ${remedy}`)}\n`}`
}

/** The launcher refuses versions that are too old before anything is loaded; so what runs here is new enough. */
function node(): Finding {
  return { check: 'Node.js', level: 'ok', found: `${process.version}, ${process.arch}` }
}

const KERNEL_MIN = [6, 1] as const

function kernel(): Finding {
  const [major = 0, minor = 0] = release()
    .split('.')
    .map(part => Number.parseInt(part, 10))
  const isNew = major > KERNEL_MIN[0] || (major === KERNEL_MIN[0] && minor >= KERNEL_MIN[1])
  const found = `Linux ${release()}`
  if (isNew) return { check: 'kernel', level: 'ok', found }
  return {
    check: 'kernel',
    level: 'failure',
    found: `${found}; io_uring as it is used here needs ${KERNEL_MIN.join('.')}`,
    remedy: 'install a newer kernel (Debian 12, Ubuntu 24.04, RHEL 10 and later have one)',
  }
}

function ioUring(): Finding {
  const check = 'io_uring'
  try {
    const arena = new Arena(1 << 20)
    new Uring(arena, { entries: 8, completions: 16 }).close()
    arena.close()
    return { check, level: 'ok', found: 'a ring can be made' }
  } catch (error) {
    if (!(error instanceof SysError)) throw error
    return { check, level: 'failure', found: error.message, remedy: ioUringRemedy(error) }
  }
}

function ioUringRemedy({ code }: SysError): string {
  const disabled = readText('/proc/sys/kernel/io_uring_disabled')
  if (disabled === '1' || disabled === '2') {
    return `kernel.io_uring_disabled is ${disabled}: sysctl kernel.io_uring_disabled=0 (or 1 and a member of kernel.io_uring_group)`
  }
  if (code === 'EPERM' || code === 'ENOSYS') {
    return 'a container runtime forbids it: run with a seccomp profile that allows io_uring_setup, io_uring_enter and io_uring_register'
  }
  if (code === 'ENOMEM') return 'raise the limit of locked memory: ulimit -l unlimited'
  return 'see io_uring_setup(2)'
}

function memory(): Finding {
  const free = freemem()
  const found = `${formatSize(Math.round(free / 2 ** 20) * 2 ** 20)} free; no huge pages are needed`
  if (free > 256 * 2 ** 20) return { check: 'memory', level: 'ok', found }
  return {
    check: 'memory',
    level: 'warning',
    found,
    remedy: 'a daemon with one export takes about 100 MiB, each further connection about 200 KiB',
  }
}

function processors(): Finding {
  const count = availableParallelism()
  return {
    check: 'processors',
    level: 'ok',
    found: `${count}; one reactor each with -m, one in all by default`,
  }
}

function limitOf(name: string): { soft: string; hard: string } {
  const row = readText('/proc/self/limits')
    ?.split('\n')
    .find(text => text.startsWith(name))
  const [soft = '', hard = ''] = row?.slice(name.length).trim().split(/\s+/) ?? []
  return { soft, hard }
}

function openFiles(): Finding {
  const { soft } = limitOf('Max open files')
  const found = `at most ${soft}: one for each connection and each image`
  if (soft === 'unlimited' || Number(soft) >= 4096) return { check: 'open files', level: 'ok', found }
  return {
    check: 'open files',
    level: 'warning',
    found,
    remedy: 'ulimit -n 65536, or LimitNOFILE=65536 in the systemd unit',
  }
}

function lockedMemory(): Finding {
  const { soft } = limitOf('Max locked memory')
  return {
    check: 'locked memory',
    level: 'ok',
    found: `${soft === 'unlimited' ? soft : formatSize(Number(soft))}; nothing is locked, so any limit will do`,
  }
}

/** Whether a port can be listened on, on every address. */
function port(number: number, what: string): Promise<Finding> {
  const check = `port ${number}`
  return new Promise(resolve => {
    const server = createServer()
    server.on('error', (error: NodeJS.ErrnoException) =>
      resolve({
        check,
        level: 'note',
        found: `${what}: ${error.code === 'EADDRINUSE' ? 'in use, by a target that runs here already or another program' : error.code}`,
        remedy: `ss -ltnp 'sport = ${number}' shows who has it; or listen on another port`,
      }),
    )
    server.listen({ port: number, host: '0.0.0.0', exclusive: true }, () =>
      server.close(() => resolve({ check, level: 'ok', found: `${what} is free` })),
    )
  })
}

async function rpcSocket(): Promise<Finding> {
  const check = 'RPC socket'
  const path = process.env['QPAIR_SOCKET'] ?? DEFAULT_RPC_SOCKET
  if (existsSync(path)) {
    if (await isServed(path)) return { check, level: 'ok', found: `a daemon serves ${path}` }
    return { check, level: 'note', found: `${path} was left behind; a daemon that starts takes it over` }
  }
  try {
    accessSync(dirname(path), constants.W_OK)
    return { check, level: 'ok', found: `${path} can be made` }
  } catch {
    // Unwritable or absent: the remedy is the same.
    return {
      check,
      level: 'failure',
      found: `${dirname(path)} cannot be written`,
      remedy: 'choose another socket with -r',
    }
  }
}

/** Whether somebody accepts connections there. */
function isServed(path: string): Promise<boolean> {
  return new Promise(resolve => {
    const socket = connect(path)
    const answer = (served: boolean) => () => {
      socket.destroy()
      resolve(served)
    }
    socket.on('connect', answer(true)).on('error', answer(false))
  })
}

function moduleIsThere(name: string): boolean {
  const file = name.replaceAll('-', '_')
  if (existsSync(`/sys/module/${file}`)) return true
  const index = ['modules.dep', 'modules.builtin']
    .map(list => readText(join('/lib/modules', release(), list)) ?? '')
    .join('\n')
  return new RegExp(`/${name.replaceAll('-', '[-_]')}\\.ko`, 'm').test(index)
}

function nvmeModule(): Finding {
  const check = 'nvme-tcp module'
  if (existsSync('/sys/module/nvme_tcp')) return { check, level: 'ok', found: 'loaded' }
  if (moduleIsThere('nvme-tcp')) {
    return {
      check,
      level: 'note',
      found: 'not loaded',
      remedy: 'to connect this host to a target: modprobe nvme-tcp',
    }
  }
  return {
    check,
    level: 'note',
    found: `not part of Linux ${release()} here`,
    remedy:
      'needed only to connect this host to a target: install the kernel package that has it (linux-modules-extra)',
  }
}

function nativeMultipath(): Finding {
  const check = 'native multipath'
  const value = readText('/sys/module/nvme_core/parameters/multipath')
  if (value === undefined) return { check, level: 'note', found: 'nvme-core is not loaded' }
  if (value === 'Y') return { check, level: 'ok', found: 'on' }
  return {
    check,
    level: 'warning',
    found: 'off: two gateways would be two devices on this host',
    remedy: 'echo "options nvme_core multipath=Y" > /etc/modprobe.d/nvme.conf, then reboot',
  }
}

function nvmeCli(): Finding {
  const found = (process.env['PATH'] ?? '').split(':').find(folder => existsSync(join(folder, 'nvme')))
  if (found !== undefined) return { check: 'nvme-cli', level: 'ok', found: join(found, 'nvme') }
  return {
    check: 'nvme-cli',
    level: 'note',
    found: 'not installed',
    remedy: 'to connect this host to a target: apt-get install nvme-cli (or dnf, zypper)',
  }
}

function kvm(): Finding {
  const check = 'KVM'
  if (!existsSync('/dev/kvm')) {
    return { check, level: 'note', found: 'no /dev/kvm: guests would run without acceleration' }
  }
  try {
    accessSync('/dev/kvm', constants.R_OK | constants.W_OK)
    return { check, level: 'ok', found: '/dev/kvm can be used' }
  } catch {
    // Existing but forbidden.
    return { check, level: 'note', found: '/dev/kvm is forbidden', remedy: 'add your user to the group kvm' }
  }
}

function readText(path: string): string | undefined {
  try {
    return readFileSync(path, 'utf8').trim()
  } catch (error) {
    // What is not there is an answer too; anything else is not expected of /proc and /sys.
    const { code } = error as NodeJS.ErrnoException
    if (code === 'ENOENT' || code === 'EACCES') return undefined
    throw new RpcError('EIO', `cannot read ${path}: ${(error as Error).message}`, { cause: error })
  }
}
