/** Sockets by descriptor, for those who drive them through a ring. */
import { isIPv4, isIPv6 } from 'node:net'
import { errnoName, SysError } from '../core/errors.ts'
import {
  bind,
  close,
  connect,
  getpeername,
  getsockname,
  listen,
  setsockopt,
  socket,
  socketpair,
} from './libc.ts'
import { bytesAt, mapAnonymous, unmap, viewAt } from './memory.ts'

const AF_UNIX = 1
const AF_INET = 2
const AF_INET6 = 10
const SOCK_STREAM_CLOEXEC = 1 | 0o2000000
const SOCK_NONBLOCK = 0o4000
const SOL_SOCKET = 1
const SO_REUSEADDR = 2
const SO_KEEPALIVE = 9
const SO_LINGER = 13
const IPPROTO_TCP = 6
const TCP_NODELAY = 1
const TCP_KEEPIDLE = 4
const TCP_KEEPINTVL = 5
const TCP_KEEPCNT = 6
const IPPROTO_IPV6 = 41
const IPV6_V6ONLY = 26
const EINVAL = 22
const ENAMETOOLONG = 36

/** Scratch for one address: sockaddr_un is the longest, 110 bytes; the last word holds lengths and option values. */
export const SOCKADDR_ROOM = 128
const WORD_AT = 120
const UNIX_PATH_MAX = 108

/** A host (IPv4, IPv6 or the path of a Unix socket) and a port. */
export interface HostPort {
  readonly host: string
  readonly port: number
}

/** For messages: `127.0.0.1:4420`, `[::1]:4420`, `/run/x.sock`. */
export function formatAddress({ host, port }: HostPort): string {
  if (host.startsWith('/')) return host
  return host.includes(':') ? `[${host}]:${port}` : `${host}:${port}`
}

/** Writes the sockaddr for `address` at `at` and returns its size, or throws `SysError` EINVAL for what is none. */
export function writeSockaddr(at: number, { host, port }: HostPort): number {
  const view = viewAt(at, SOCKADDR_ROOM)
  new Uint8Array(view.buffer, view.byteOffset, SOCKADDR_ROOM).fill(0)
  if (host.startsWith('/')) {
    const path = Buffer.from(host)
    if (path.length >= UNIX_PATH_MAX) throw new SysError('bind', ENAMETOOLONG, `of ${host}`)
    view.setUint16(0, AF_UNIX, true)
    bytesAt(at + 2, path.length).set(path)
    return 2 + path.length + 1
  }
  view.setUint16(2, port, false)
  if (isIPv4(host)) {
    view.setUint16(0, AF_INET, true)
    for (const [i, part] of host.split('.').entries()) view.setUint8(4 + i, Number(part))
    return 16
  }
  if (!isIPv6(host)) throw new SysError('bind', EINVAL, `of "${host}", which is no IPv4 or IPv6 address`)
  view.setUint16(0, AF_INET6, true)
  for (const [i, group] of expandIPv6(host).entries()) view.setUint16(8 + i * 2, group, false)
  return 28
}

function expandIPv6(host: string): number[] {
  // The WHATWG parser knows every spelling, embedded IPv4 included, and prints hexadecimal groups.
  const plain = new URL(`http://[${host}]/`).hostname.slice(1, -1)
  const [head = '', tail] = plain.split('::')
  const groups = (text: string): number[] =>
    text === '' ? [] : text.split(':').map(group => Number.parseInt(group, 16))
  if (tail === undefined) return groups(head)
  const zeroes = 8 - groups(head).length - groups(tail).length
  return [...groups(head), ...new Array<number>(zeroes).fill(0), ...groups(tail)]
}

/** Reads the sockaddr of `size` bytes at `at`. */
export function readSockaddr(at: number, size: number): HostPort {
  const view = viewAt(at, SOCKADDR_ROOM)
  const family = size < 2 ? AF_UNIX : view.getUint16(0, true)
  if (family === AF_INET) {
    return { host: [4, 5, 6, 7].map(i => view.getUint8(i)).join('.'), port: view.getUint16(2, false) }
  }
  if (family === AF_INET6) {
    const groups = Array.from({ length: 8 }, (_, i) => view.getUint16(8 + i * 2, false).toString(16))
    return {
      host: new URL(`http://[${groups.join(':')}]/`).hostname.slice(1, -1),
      port: view.getUint16(2, false),
    }
  }
  const path = size <= 2 ? '' : Buffer.from(bytesAt(at + 2, size - 2)).toString()
  return { host: path.replace(/\0.*$/s, ''), port: 0 }
}

/** The address of this end (`local`) or the other (`remote`); `{host: '', port: 0}` when the socket has none any more. */
export function addressOf(fd: number, end: 'local' | 'remote', scratch: number): HostPort {
  viewAt(scratch + WORD_AT, 4).setUint32(0, WORD_AT, true)
  const call = end === 'local' ? getsockname : getpeername
  if (call(fd, scratch, scratch + WORD_AT) < 0) return { host: '', port: 0 }
  return readSockaddr(scratch, viewAt(scratch + WORD_AT, 4).getUint32(0, true))
}

function setOption(fd: number, level: number, name: number, value: number, scratch: number): void {
  viewAt(scratch + WORD_AT, 4).setInt32(0, value, true)
  setsockopt(fd, level, name, scratch + WORD_AT, 4)
}

/**
 * What every connection wants of TCP: small messages are sent at once, and a peer that has vanished without a word, and
 * of which nothing is expected (no keep alive was agreed), is found after two minutes. Without effect on Unix sockets.
 */
export function tuneConnection(fd: number, scratch: number): void {
  setOption(fd, IPPROTO_TCP, TCP_NODELAY, 1, scratch)
  setOption(fd, SOL_SOCKET, SO_KEEPALIVE, 1, scratch)
  setOption(fd, IPPROTO_TCP, TCP_KEEPIDLE, 60, scratch)
  setOption(fd, IPPROTO_TCP, TCP_KEEPINTVL, 10, scratch)
  setOption(fd, IPPROTO_TCP, TCP_KEEPCNT, 6, scratch)
}

/**
 * What the peer has not taken when the socket is closed is never sent again, and the peer gets a reset: for who will send it
 * elsewhere, and must not have it arrive behind that. Without effect on Unix sockets.
 */
export function dropUnsent(fd: number, scratch: number): void {
  const linger = viewAt(scratch, 8)
  linger.setInt32(0, 1, true)
  linger.setInt32(4, 0, true)
  setsockopt(fd, SOL_SOCKET, SO_LINGER, scratch, 8)
}

/** A new stream socket of the family that `address` needs. */
export function openSocket({ host }: HostPort): number {
  const family = host.startsWith('/') ? AF_UNIX : isIPv6(host) ? AF_INET6 : AF_INET
  const fd = socket(family, SOCK_STREAM_CLOEXEC, 0)
  if (fd < 0) throw new SysError('socket', -fd)
  return fd
}

/** Binds `fd` to a source address; port 0 lets the kernel choose. */
export function bindSocket(fd: number, address: HostPort, scratch: number): void {
  const result = bind(fd, scratch, writeSockaddr(scratch, address))
  if (result < 0) throw new SysError('bind', -result, `to ${formatAddress(address)}`)
}

/** A listening socket. Throws `SysError`: EADDRINUSE, EADDRNOTAVAIL, EACCES … */
export function listenSocket(address: HostPort, backlog: number, scratch: number): number {
  const fd = openSocket(address)
  try {
    setOption(fd, SOL_SOCKET, SO_REUSEADDR, 1, scratch)
    if (isIPv6(address.host)) setOption(fd, IPPROTO_IPV6, IPV6_V6ONLY, 1, scratch)
    bindSocket(fd, address, scratch)
    const result = listen(fd, backlog)
    if (result < 0) {
      throw new SysError('listen', -result, `on ${formatAddress(address)} (${errnoName(-result)})`)
    }
    return fd
  } catch (error) {
    close(fd)
    throw error
  }
}

/** A socket that is connected to the Unix socket at `path`. Does not wait: EAGAIN when too many others do already. */
export function connectUnix(path: string): number {
  const scratch = mapAnonymous(SOCKADDR_ROOM)
  try {
    const size = writeSockaddr(scratch, { host: path, port: 0 })
    const fd = socket(AF_UNIX, SOCK_STREAM_CLOEXEC | SOCK_NONBLOCK, 0)
    if (fd < 0) throw new SysError('socket', -fd)
    const result = connect(fd, scratch, size)
    if (result < 0) {
      close(fd)
      throw new SysError('connect', -result, `to ${path}`)
    }
    return fd
  } finally {
    unmap(scratch, SOCKADDR_ROOM)
  }
}

/** Two Unix sockets that are connected to each other, for this process and for one it hands a descriptor to. */
export function unixPair(): readonly [number, number] {
  const scratch = mapAnonymous(SOCKADDR_ROOM)
  try {
    const result = socketpair(AF_UNIX, SOCK_STREAM_CLOEXEC | SOCK_NONBLOCK, 0, scratch)
    if (result < 0) throw new SysError('socketpair', -result)
    const view = viewAt(scratch, 8)
    return [view.getInt32(0, true), view.getInt32(4, true)]
  } finally {
    unmap(scratch, SOCKADDR_ROOM)
  }
}
