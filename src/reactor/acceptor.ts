/**
 * Listening sockets of every front end, and the spreading of their connections over the reactors:
 *
 *   control thread                    a listening reactor             any reactor
 *   Acceptor.listen()  --listen-->    network.listen
 *   least loaded?      <--accepted--  a socket arrives
 *                      ---------------adopt------------------------->  the service's own `adopt(socket, listenerId)`
 *   load - 1           <--------------ended------------------------->  ReactorAcceptor.ended()
 *
 * One `Acceptor` serves all front ends, so that the connections of one are spread with those of the others in mind.
 */
import { lstatSync, type Stats, unlinkSync } from 'node:fs'
import { createConnection } from 'node:net'
import { assert } from '../core/assert.ts'
import { RpcError, SysError } from '../core/errors.ts'
import { formatAddress } from '../sys/socket.ts'
import type { ReactorGroup } from './group.ts'
import type { Listener, SocketAddress } from './network.ts'
import type { Reactor } from './reactor.ts'

const BACKLOG = 1024

interface ListenRequest {
  readonly service: string
  readonly listenerId: number
  readonly address: SocketAddress
}

/** A socket that one reactor accepted, and that any may adopt. */
interface AcceptedSocket {
  readonly service: string
  readonly listenerId: number
  readonly socket: number
}

interface OpenListener {
  readonly reactor: number
  readonly address: SocketAddress
  /** The inode of a Unix socket's file, to remove no other one at the end; 0 for TCP. */
  readonly inode: number
}

/** The control thread's side. */
export class Acceptor {
  readonly #reactors: ReactorGroup
  /** Connections of each reactor. */
  readonly #loads: number[]
  readonly #listeners = new Map<number, OpenListener>()
  #lastId = 0

  constructor(reactors: ReactorGroup) {
    this.#reactors = reactors
    this.#loads = new Array<number>(reactors.count).fill(0)
    for (let index = 0; index < reactors.count; index++) {
      const port = reactors.port(index)
      port.on<AcceptedSocket>('acceptor.accepted', accepted => this.#assign(accepted))
      port.on('acceptor.ended', () => {
        this.#loads[index]!--
      })
    }
  }

  /** The number for the next listener: `adopt` hears it, so a service may tell its reactors of it before it listens. */
  newListenerId(): number {
    return ++this.#lastId
  }

  /**
   * Listens for `service` and resolves with the address, its port chosen when 0 was asked for. Throws `RpcError`
   * EADDRINUSE, EADDRNOTAVAIL, EACCES … that names the address and what to do. A socket file that a dead process left
   * is replaced; any other file is not touched.
   */
  async listen(service: string, listenerId: number, address: SocketAddress): Promise<SocketAddress> {
    if (isPath(address)) await clearStaleSocket(address.host)
    // Listening costs a reactor little, but many listeners on one would still be unfair.
    const reactor = listenerId % this.#reactors.count
    const request: ListenRequest = { service, listenerId, address }
    let bound: SocketAddress
    try {
      bound = await this.#reactors.port(reactor).call<SocketAddress>('acceptor.listen', request)
    } catch (error) {
      throw error instanceof SysError ? listenError(address, error) : error
    }
    const inode = isPath(address) ? (lstatSync(address.host, { throwIfNoEntry: false })?.ino ?? 0) : 0
    this.#listeners.set(listenerId, { reactor, address: bound, inode })
    return bound
  }

  /** Stops listening and removes the socket file. Connections are left alone: they are the service's. */
  async close(listenerId: number): Promise<void> {
    const listener = this.#listeners.get(listenerId)
    assert(listener, `listener ${listenerId} is open`)
    this.#listeners.delete(listenerId)
    const { host } = listener.address
    if (listener.inode !== 0 && lstatSync(host, { throwIfNoEntry: false })?.ino === listener.inode) {
      unlinkSync(host)
    }
    await this.#reactors.port(listener.reactor).call('acceptor.close', listenerId)
  }

  #assign(accepted: AcceptedSocket): void {
    const loads = this.#loads
    let least = 0
    for (let index = 1; index < loads.length; index++) if (loads[index]! < loads[least]!) least = index
    loads[least]!++
    this.#reactors.port(least).post('acceptor.adopt', accepted)
  }
}

/** Takes over an accepted socket; always, so that it is not lost, be it only to close it at once. */
export type Adopt = (socket: number, listenerId: number) => void

/** One reactor's side. */
export class ReactorAcceptor {
  readonly #reactor: Reactor
  readonly #services = new Map<string, Adopt>()
  readonly #listeners = new Map<number, Listener>()

  constructor(reactor: Reactor) {
    this.#reactor = reactor
    const { control } = reactor
    control.on<ListenRequest>('acceptor.listen', request => this.#listen(request))
    control.on<number>('acceptor.close', listenerId => {
      this.#listeners.get(listenerId)?.close()
      this.#listeners.delete(listenerId)
    })
    control.on<AcceptedSocket>('acceptor.adopt', ({ service, socket, listenerId }) => {
      const adopt = this.#services.get(service)
      assert(adopt, `reactor ${reactor.index} serves ${service}`)
      adopt(socket, listenerId)
    })
  }

  /** Sockets that a listener of `service` accepted and this reactor is to own are handed to `adopt`. */
  serve(service: string, adopt: Adopt): void {
    this.#services.set(service, adopt)
  }

  /** One adopted connection is over. Called once for each socket that `adopt` was given. */
  ended(): void {
    this.#reactor.control.post('acceptor.ended', null)
  }

  #listen({ service, listenerId, address }: ListenRequest): SocketAddress {
    const { network, control } = this.#reactor
    const listener = network.listen(address, BACKLOG, socket => {
      control.post('acceptor.accepted', { service, listenerId, socket } satisfies AcceptedSocket)
    })
    this.#listeners.set(listenerId, listener)
    return listener.address
  }
}

const isPath = ({ host }: SocketAddress): boolean => host.startsWith('/')

/** Removes the socket file of a dead process; refuses what is alive or is no socket. */
async function clearStaleSocket(path: string): Promise<void> {
  const found = look(path)
  if (found === undefined) return
  if (!found.isSocket()) {
    throw new RpcError('EEXIST', `${path} exists and is not a socket: it is left alone, choose another path`)
  }
  if (await answers(path)) {
    throw new RpcError(
      'EADDRINUSE',
      `another process accepts connections at ${path}: stop it, or choose another path`,
    )
  }
  unlinkSync(path)
}

function look(path: string): Stats | undefined {
  try {
    return lstatSync(path, { throwIfNoEntry: false })
  } catch (cause) {
    const { code } = cause as NodeJS.ErrnoException
    throw new RpcError(
      code === 'EACCES' ? 'EACCES' : 'EINVAL',
      `${path} cannot be a socket (${code}): name one in a directory that the daemon may enter`,
      { cause },
    )
  }
}

/** Only a refused connection proves that nobody listens: a full backlog or a forbidden path does not. */
function answers(path: string): Promise<boolean> {
  return new Promise(resolve => {
    const probe = createConnection(path)
    probe.on('connect', () => {
      probe.destroy()
      resolve(true)
    })
    probe.on('error', (error: NodeJS.ErrnoException) =>
      resolve(error.code !== 'ECONNREFUSED' && error.code !== 'ENOENT'),
    )
  })
}

function listenError(address: SocketAddress, cause: SysError): RpcError {
  const where = formatAddress(address)
  switch (cause.code) {
    case 'EADDRINUSE':
      return new RpcError(
        'EADDRINUSE',
        `${where} is in use by another socket: stop its owner (ss -ltnp shows it), or choose another port`,
        { cause },
      )
    case 'EADDRNOTAVAIL':
      return new RpcError(
        'EADDRNOTAVAIL',
        `${address.host} is no address of this machine: choose one that "ip address" shows`,
        { cause },
      )
    case 'EACCES':
      return new RpcError(
        'EACCES',
        `this process may not listen on ${where}: choose ${isPath(address) ? 'a directory that it may write to' : 'a port above 1023, or run it as root'}`,
        { cause },
      )
    case 'ENOENT':
      return new RpcError('ENOENT', `the directory of ${where} does not exist: create it first`, { cause })
    default:
      return new RpcError('EINVAL', `cannot listen on ${where}: ${cause.message}`, { cause })
  }
}
