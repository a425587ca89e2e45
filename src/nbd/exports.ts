/** The NBD exports as the control thread knows them. Several may share one socket; clients choose by name. */

import type { BdevInfo } from '../bdev/bdev.ts'
import type { Claim } from '../bdev/claims.ts'
import type { BdevRegistry } from '../bdev/registry.ts'
import { assert } from '../core/assert.ts'
import { RpcError, thereAre } from '../core/errors.ts'
import { logger } from '../core/log.ts'
import type { Acceptor } from '../reactor/acceptor.ts'
import type { ReactorGroup } from '../reactor/group.ts'
import type { SocketAddress } from '../reactor/network.ts'
import { type AccessOptions, applyAccess, resolveAccess } from '../reactor/socket-access.ts'
import type { Configurable, MethodCall } from '../rpc/config.ts'
import { NBD_PORT } from '../spec/nbd.ts'
import { formatAddress } from '../sys/socket.ts'
import type { ExportDescription } from './reactor-server.ts'

const log = logger('nbd')

export interface ExportOptions {
  /** A bdev's name, alias or UUID. */
  readonly bdev: string
  /** The bdev's name when undefined. */
  readonly name: string | undefined
  readonly address: SocketAddress
  readonly readOnly: boolean
  readonly description: string
  /** 0: as many as come. */
  readonly connectionsMax: number
  /** Who may connect to a Unix socket; what is undefined is as the process makes files. */
  readonly access?: AccessOptions
}

/** An export that is being served. */
export interface NbdExport {
  readonly name: string
  readonly bdev: string
  /** With the port that was chosen, when 0 was asked for. */
  readonly address: SocketAddress
  readonly uri: string
  readonly readOnly: boolean
  readonly description: string
  readonly connectionsMax: number
  /** Clients at this moment. */
  readonly connectionCount: number
}

interface SharedListener {
  readonly id: number
  readonly address: SocketAddress
  /** Exports that are offered there. */
  users: number
}

interface Entry extends Omit<NbdExport, 'connectionCount'> {
  readonly connections: Int32Array
  readonly listener: SharedListener
  readonly claim: Claim
  /** As it was asked for. */
  readonly options: ExportOptions
}

export interface NbdExportsParts {
  readonly reactors: ReactorGroup
  readonly acceptor: Acceptor
  readonly bdevs: BdevRegistry
}

export class NbdExports implements Configurable {
  readonly subsystem = 'nbd'
  readonly dependsOn: readonly string[] = ['bdev']
  readonly #reactors: ReactorGroup
  readonly #acceptor: Acceptor
  readonly #bdevs: BdevRegistry
  readonly #exports = new Map<string, Entry>()
  /** By formatted address. */
  readonly #listeners = new Map<string, SharedListener>()

  constructor({ reactors, acceptor, bdevs }: NbdExportsParts) {
    this.#reactors = reactors
    this.#acceptor = acceptor
    this.#bdevs = bdevs
    bdevs.listen({ removing: info => this.#bdevRemoved(info) })
  }

  /**
   * Throws `RpcError`: ENODEV without such a bdev, EPERM when another has it for itself, EEXIST for a name that is
   * taken, and what `Acceptor.listen` throws.
   */
  async start(options: ExportOptions): Promise<NbdExport> {
    const info = this.#bdevs.get(options.bdev)
    const name = options.name ?? info.name
    if (/\p{Surrogate}/u.test(name)) {
      throw new RpcError('EINVAL', 'the export name has half a surrogate pair: give it whole characters')
    }
    const taken = this.#exports.get(name)
    if (taken !== undefined) {
      throw new RpcError(
        'EEXIST',
        `an NBD export named "${name}" exists already, of ${taken.bdev} at ${taken.uri}: choose another name`,
      )
    }
    const access = await resolveAccess(options.access ?? { mode: undefined, owner: undefined })
    const readOnly = options.readOnly || info.readOnly
    if (readOnly && !options.readOnly) log.notice(`export "${name}" is read only, as ${info.name} is`)
    const claim = this.#bdevs.claim(info.name, `NBD export "${name}"`, readOnly ? 'read' : 'write')
    try {
      const listener = await this.#openListener(options.address)
      try {
        if (options.address.host.startsWith('/')) applyAccess(options.address.host, access)
        const entry = this.#describe(options, info, { name, readOnly, listener, claim })
        await this.#announce(entry)
        this.#exports.set(name, entry)
        log.notice(`${info.name} is served as ${entry.uri}`)
        return view(entry)
      } catch (error) {
        await this.#closeListener(listener)
        throw error
      }
    } catch (error) {
      claim.release()
      throw error
    }
  }

  /** Ends its connections after what is in flight was answered. Throws `RpcError` ENOENT. */
  async stop(name: string): Promise<void> {
    await this.#stop(this.#get(name))
  }

  list(): NbdExport[] {
    return [...this.#exports.values()].map(view)
  }

  /** Throws `RpcError` ENOENT naming the exports there are. */
  get(name: string): NbdExport {
    return view(this.#get(name))
  }

  config(): MethodCall[] {
    return [...this.#exports.values()].map(({ name, bdev, address, options }) => ({
      method: 'nbd_export_start',
      params: {
        bdev_name: bdev,
        name,
        ...(address.host.startsWith('/') ? { unix: address.host } : address),
        ...(options.readOnly ? { read_only: true } : {}),
        ...(options.description === '' ? {} : { description: options.description }),
        ...(options.connectionsMax === 0 ? {} : { max_connections: options.connectionsMax }),
        ...(options.access?.mode === undefined ? {} : { socket_mode: options.access.mode }),
        ...(options.access?.owner === undefined ? {} : { socket_owner: options.access.owner }),
      },
    }))
  }

  #get(name: string): Entry {
    const entry = this.#exports.get(name)
    if (entry !== undefined) return entry
    const names = [...this.#exports.keys()].map(other => `"${other}"`)
    throw new RpcError('ENOENT', `there is no NBD export "${name}": ${thereAre(names)}`)
  }

  #describe(
    options: ExportOptions,
    info: BdevInfo,
    rest: Pick<Entry, 'name' | 'readOnly' | 'listener' | 'claim'>,
  ): Entry {
    const { address } = rest.listener
    return {
      ...rest,
      bdev: info.name,
      address,
      uri: exportUri(rest.name, address),
      description: options.description,
      connectionsMax: options.connectionsMax,
      connections: new Int32Array(new SharedArrayBuffer(4)),
      options,
    }
  }

  /** Tells every reactor; if one cannot open the device, none serves it. */
  async #announce(entry: Entry): Promise<void> {
    const { name, bdev, description, readOnly, connectionsMax, listener, connections } = entry
    const message: ExportDescription = {
      name,
      bdev,
      description,
      readOnly,
      connectionsMax,
      listenerId: listener.id,
      connections,
    }
    try {
      await this.#reactors.broadcast('nbd.add', message)
    } catch (error) {
      await this.#reactors.broadcast('nbd.remove', name)
      throw error
    }
  }

  async #stop(entry: Entry): Promise<void> {
    this.#exports.delete(entry.name)
    // The socket goes first, so that nobody connects to what is ending.
    await this.#closeListener(entry.listener)
    await this.#reactors.broadcast('nbd.remove', entry.name)
    entry.claim.release()
    log.notice(`${entry.uri} is no longer served`)
  }

  async #bdevRemoved(info: BdevInfo): Promise<void> {
    const gone = [...this.#exports.values()].filter(entry => entry.bdev === info.name)
    await Promise.all(gone.map(entry => this.#stop(entry)))
  }

  async #openListener(address: SocketAddress): Promise<SharedListener> {
    const shared = this.#listeners.get(formatAddress(address))
    if (shared !== undefined) {
      shared.users++
      return shared
    }
    const id = this.#acceptor.newListenerId()
    const bound = await this.#acceptor.listen('nbd', id, address)
    const listener: SharedListener = { id, address: bound, users: 1 }
    this.#listeners.set(formatAddress(bound), listener)
    return listener
  }

  async #closeListener(listener: SharedListener): Promise<void> {
    assert(listener.users > 0, 'a listener is closed by whoever opened it')
    listener.users--
    if (listener.users > 0) return
    this.#listeners.delete(formatAddress(listener.address))
    await this.#acceptor.close(listener.id)
  }
}

function view({
  connections,
  name,
  bdev,
  address,
  uri,
  readOnly,
  description,
  connectionsMax,
}: Entry): NbdExport {
  const connectionCount = Atomics.load(connections, 0)
  return { name, bdev, address, uri, readOnly, description, connectionsMax, connectionCount }
}

/** As in the NBD project's doc/uri.md. */
export function exportUri(name: string, address: SocketAddress): string {
  const path = encodeURIComponent(name)
  if (address.host.startsWith('/')) {
    return `nbd+unix:///${path}?socket=${encodeURIComponent(address.host).replaceAll('%2F', '/')}`
  }
  const host = address.host.includes(':') ? `[${address.host}]` : address.host
  return `nbd://${host}${address.port === NBD_PORT ? '' : `:${address.port}`}/${path}`
}
