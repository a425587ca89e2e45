/**
 * The JSON-RPC server: a Unix socket, or a TCP port when the address is `IP:PORT`.
 *
 * Whoever can open the socket controls the daemon, so the socket file is for its owner and group, and a TCP address is
 * for loopback or a network of which every member is trusted.
 */
import { lstatSync, unlinkSync } from 'node:fs'
import { createConnection, createServer, type Server, type Socket } from 'node:net'
import { RpcError } from '../core/errors.ts'
import { logger } from '../core/log.ts'
import { parseAddress, type RpcAddress } from './address.ts'
import { RpcConnection } from './connection.ts'
import type { Responder } from './dispatcher.ts'

const log = logger('rpc')

export const CONNECTIONS_MAX = 64

export interface RpcServerOptions {
  readonly dispatcher: Responder
  /** The path of a Unix socket, `127.0.0.1:5260` or `[::1]:5260`; port 0 lets the kernel choose. */
  readonly address: string
  /**
   * Takes an exclusive lock on a file, creating it, for as long as the process lives; returns how to release it, or
   * undefined when another process has it. SPDK's daemons use flock(2) on the same file.
   */
  readonly lock: (path: string) => (() => void) | undefined
}

export class RpcServer {
  readonly #server: Server
  readonly #connections = new Set<RpcConnection>()
  readonly #release: () => void

  private constructor(server: Server, dispatcher: RpcServerOptions['dispatcher'], release: () => void) {
    this.#server = server
    this.#release = release
    server.maxConnections = CONNECTIONS_MAX
    server.on('connection', socket => this.#accept(socket, dispatcher))
    server.on('drop', () => log.warning(`a client was turned away: ${CONNECTIONS_MAX} are connected already`))
    server.on('error', error => log.error(`the RPC socket failed: ${error.message}`))
  }

  /** Starts to listen. Throws EADDRINUSE when another daemon serves this address. */
  static async listen(options: RpcServerOptions): Promise<RpcServer> {
    const address = parseAddress(options.address)
    const release = 'path' in address ? await claimPath(address.path, options.lock) : () => {}
    const server = createServer({ allowHalfOpen: true })
    try {
      await listening(server, address)
    } catch (cause) {
      release()
      const { message, code } = cause as NodeJS.ErrnoException
      throw new RpcError(
        code === 'EADDRINUSE' || code === 'EACCES' ? code : 'EINVAL',
        `the RPC server cannot listen on ${options.address}: ${message}`,
        { cause },
      )
    }
    return new RpcServer(server, options.dispatcher, release)
  }

  /** Where it listens: the socket's path, or host and port. */
  get address(): string {
    const address = this.#server.address()
    if (address === null || typeof address === 'string') return address ?? ''
    return address.family === 'IPv6'
      ? `[${address.address}]:${address.port}`
      : `${address.address}:${address.port}`
  }

  /**
   * Accepts nobody any more, answers what was asked, ends the connections and removes the socket file. A client whose
   * request is not done after `graceMs`, or who does not read, is cut off.
   */
  async close(graceMs = 1000): Promise<void> {
    const closed = new Promise(resolve => this.#server.close(resolve))
    const cutOff = setTimeout(() => {
      for (const connection of this.#connections) connection.destroy()
    }, graceMs)
    for (const connection of this.#connections) connection.endWhenAnswered()
    await closed
    clearTimeout(cutOff)
    this.#release()
  }

  #accept(socket: Socket, dispatcher: RpcServerOptions['dispatcher']): void {
    const connection = new RpcConnection(socket, dispatcher)
    this.#connections.add(connection)
    socket.on('close', () => this.#connections.delete(connection))
  }
}

/**
 * Makes sure that nobody else serves this path, and removes what a dead daemon left there. The lock settles who may
 * look; the connection attempt finds a daemon that keeps no lock.
 */
async function claimPath(path: string, lock: RpcServerOptions['lock']): Promise<() => void> {
  const inUse = (who: string): RpcError =>
    new RpcError(
      'EADDRINUSE',
      `the RPC socket ${path} is in use: ${who}; stop it, or choose another socket with -r`,
    )
  const release = lock(`${path}.lock`)
  if (release === undefined) throw inUse(`another daemon holds ${path}.lock`)
  try {
    if (await answers(path)) throw inUse('another process accepts connections there')
    const left = lstatSync(path, { throwIfNoEntry: false })
    if (left !== undefined && !left.isSocket()) {
      throw new RpcError(
        'EEXIST',
        `${path} exists and is not a socket; it is not removed: choose another path with -r`,
      )
    }
    if (left !== undefined) unlinkSync(path)
  } catch (error) {
    release()
    throw error
  }
  return release
}

/** Whether somebody accepts connections at this path. */
function answers(path: string): Promise<boolean> {
  return new Promise(resolve => {
    const socket = createConnection(path)
    socket.on('connect', () => {
      socket.destroy()
      resolve(true)
    })
    socket.on('error', () => resolve(false))
  })
}

function listening(server: Server, address: RpcAddress): Promise<void> {
  return new Promise((resolve, reject) => {
    server.once('error', reject)
    // The file is made by this call, for its owner and group from the first moment.
    const umask = process.umask(0o117)
    try {
      server.listen(address, () => {
        server.off('error', reject)
        resolve()
      })
    } finally {
      process.umask(umask)
    }
  })
}
