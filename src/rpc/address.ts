/** Where a JSON-RPC server listens, in the one notation that server, client and command line take. */
import { isIP } from 'node:net'
import { resolve } from 'node:path'
import { RpcError } from '../core/errors.ts'

/** SPDK's default, so that its clients find the daemon by themselves. */
export const DEFAULT_SOCKET = '/var/tmp/spdk.sock'

/** The kernel's limit for the path of a Unix socket, without the closing zero. */
const SOCKET_PATH_LENGTH_MAX = 107

export type RpcAddress = { readonly path: string } | { readonly host: string; readonly port: number }

/** Throws EINVAL for what is neither an address nor a usable path. */
export function parseAddress(address: string): RpcAddress {
  const match = /^(?:\[([^\]]+)\]|([^:/]+)):(\d+)$/.exec(address)
  const host = match?.[1] ?? match?.[2] ?? ''
  if (match !== null && isIP(host) !== 0) {
    const port = Number(match[3])
    if (port <= 65535) return { host, port }
    throw new RpcError('EINVAL', `the RPC address ${address} has port ${port}, beyond 65535`)
  }
  const path = resolve(address)
  const length = Buffer.byteLength(path)
  if (length > SOCKET_PATH_LENGTH_MAX) {
    throw new RpcError(
      'EINVAL',
      `the socket path ${path} has ${length} bytes, more than the ${SOCKET_PATH_LENGTH_MAX} of a Unix socket; choose a shorter one`,
    )
  }
  return { path }
}
