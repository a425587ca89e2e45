/** What the daemon itself needs of the machine. */
import { accessSync, constants, existsSync } from 'node:fs'
import { connect, createServer } from 'node:net'
import { availableParallelism, freemem } from 'node:os'
import { dirname } from 'node:path'
import { RpcError, SysError } from '../../core/errors.ts'
import { formatSize } from '../../core/format-size.ts'
import { DEFAULT_SOCKET } from '../../rpc/address.ts'
import { Arena } from '../../sys/memory.ts'
import { Uring } from '../../sys/uring.ts'
import type { Check, Finding } from '../finding.ts'
import { Host } from '../host.ts'

/** The launcher refuses versions that are too old before anything is loaded; so what runs here is new enough. */
export const node: Check = () => ({
  check: 'Node.js',
  level: 'pass',
  found: `${process.version}, ${process.arch}`,
})

const KERNEL_MIN = [6, 1] as const
const NEWER_KERNEL = 'install a newer kernel (Debian 12, Ubuntu 24.04, RHEL 10 and later have one)'

export const kernel: Check = ({ kernelRelease }) => {
  const [major = 0, minor = 0] = kernelRelease.split('.').map(part => Number.parseInt(part, 10))
  const isNew = major > KERNEL_MIN[0] || (major === KERNEL_MIN[0] && minor >= KERNEL_MIN[1])
  const found = `Linux ${kernelRelease}`
  if (isNew) return { check: 'kernel', level: 'pass', found }
  return {
    check: 'kernel',
    level: 'fail',
    found: `${found}; io_uring as it is used here needs ${KERNEL_MIN.join('.')}`,
    remedy: NEWER_KERNEL,
  }
}

export const ioUring: Check = host => {
  const check = 'io_uring'
  try {
    const arena = new Arena(1 << 20)
    Uring.open(arena, { entries: 8, completions: 16 }).close()
    arena.close()
    return { check, level: 'pass', found: 'a ring can be made' }
  } catch (error) {
    if (!(error instanceof SysError)) throw error
    return { check, level: 'fail', found: error.message, remedy: ioUringRemedy(host, error) }
  }
}

/** Throws `RpcError` EOPNOTSUPP, with the remedy, where no reactor could run. */
export async function requireIoUring(): Promise<void> {
  const { level, found, remedy } = await ioUring(new Host())
  if (level !== 'pass') throw noIoUring(found, remedy)
}

/** What a reactor has against starting, in the words of `requireIoUring` where it is the system that refuses a ring. */
export function explainNoReactor(error: unknown): unknown {
  if (!(error instanceof SysError && error.call.startsWith('io_uring'))) return error
  return noIoUring(error.message, ioUringRemedy(new Host(), error), error)
}

function noIoUring(found: string, remedy: string | undefined, cause?: SysError): RpcError {
  return new RpcError(
    'EOPNOTSUPP',
    `io_uring, by which all I/O is done, cannot be used here (${found}): ${remedy}`,
    { cause },
  )
}

function ioUringRemedy(host: Host, { code }: SysError): string {
  const disabled = host.read('/proc/sys/kernel/io_uring_disabled')
  if (disabled === '1' || disabled === '2') {
    return `kernel.io_uring_disabled is ${disabled}: sysctl kernel.io_uring_disabled=0 (or 1 and a member of kernel.io_uring_group)`
  }
  if (code === 'EPERM' || code === 'ENOSYS') {
    return 'a container runtime forbids it: run with a seccomp profile that allows io_uring_setup, io_uring_enter and io_uring_register'
  }
  if (code === 'EINVAL') return `the kernel is too old for what is used of it: ${NEWER_KERNEL}`
  if (code === 'ENOMEM') return 'raise that limit, by about half a MiB for each reactor, or give -m fewer'
  return 'see io_uring_setup(2)'
}

export const memory: Check = () => {
  const free = freemem()
  const found = `${formatSize(Math.round(free / 2 ** 20) * 2 ** 20)} free; no huge pages are needed`
  if (free > 256 * 2 ** 20) return { check: 'memory', level: 'pass', found }
  return {
    check: 'memory',
    level: 'warn',
    found,
    remedy: 'a daemon with one export takes about 130 MiB, each further connection about 200 KiB',
  }
}

export const processors: Check = () => ({
  check: 'processors',
  level: 'pass',
  found: `${availableParallelism()}; one reactor each with -m, one in all by default`,
})

function softLimit(host: Host, name: string): string {
  const row = host
    .read('/proc/self/limits')
    ?.split('\n')
    .find(text => text.startsWith(name))
  return row?.slice(name.length).trim().split(/\s+/)[0] ?? ''
}

export const openFiles: Check = host => {
  const soft = softLimit(host, 'Max open files')
  const found = `at most ${soft}: one for each connection and each image`
  if (soft === 'unlimited' || Number(soft) >= 4096) return { check: 'open files', level: 'pass', found }
  return {
    check: 'open files',
    level: 'warn',
    found,
    remedy: 'ulimit -n 65536, or LimitNOFILE=65536 in the systemd unit',
  }
}

export const lockedMemory: Check = host => {
  const soft = softLimit(host, 'Max locked memory')
  return {
    check: 'locked memory',
    level: 'pass',
    found: `${soft === 'unlimited' ? soft : formatSize(Number(soft))}; nothing is locked, so any limit will do`,
  }
}

/** Whether a port can be listened on, on every address. */
export const portIsFree =
  (number: number, what: string): Check =>
  () =>
    new Promise<Finding>(resolve => {
      const check = `port ${number}`
      const server = createServer()
      server.on('error', ({ code }: NodeJS.ErrnoException) =>
        resolve({
          check,
          level: 'note',
          found: `${what}: ${code === 'EADDRINUSE' ? 'in use, by a target that runs here already or another program' : code}`,
          remedy: `ss -ltnp 'sport = ${number}' shows who has it; or listen on another port`,
        }),
      )
      server.listen({ port: number, host: '0.0.0.0', exclusive: true }, () =>
        server.close(() => resolve({ check, level: 'pass', found: `${what} is free` })),
      )
    })

export const rpcSocket: Check = async ({ env }) => {
  const check = 'RPC socket'
  const path = env['QPAIR_SOCKET'] || DEFAULT_SOCKET
  if (existsSync(path)) {
    if (await isServed(path)) return { check, level: 'pass', found: `a daemon serves ${path}` }
    return { check, level: 'note', found: `${path} was left behind; a daemon that starts takes it over` }
  }
  try {
    accessSync(dirname(path), constants.W_OK)
    return { check, level: 'pass', found: `${path} can be made` }
  } catch {
    // Unwritable or absent: the remedy is the same.
    return {
      check,
      level: 'fail',
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
