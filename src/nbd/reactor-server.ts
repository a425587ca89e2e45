/** The NBD server's part on one reactor: its exports and the clients that were spread to it. */
import type { BdevInfo, ChannelContext } from '../bdev/bdev.ts'
import type { Channel } from '../bdev/channel.ts'
import { logger } from '../core/log.ts'
import type { ReactorAcceptor } from '../reactor/acceptor.ts'
import type { Reactor } from '../reactor/reactor.ts'
import { Connection, type ConnectionHost } from './connection.ts'
import type { OfferedExport } from './negotiation.ts'
import { RequestPool } from './request.ts'

/** An export as plain data, cloned to every reactor. */
export interface ExportDescription {
  readonly name: string
  readonly bdev: string
  readonly description: string
  readonly readOnly: boolean
  /** 0: as many as come. */
  readonly connectionsMax: number
  readonly listenerId: number
  /** One word, shared by all threads: connections of this export. */
  readonly connections: Int32Array
}

/** An export on this reactor. */
export class ServedExport implements OfferedExport {
  readonly description: string
  readonly name: string
  readonly readOnly: boolean
  readonly listenerId: number
  readonly channel: Channel
  /** It is being stopped, or its device removed. */
  isGone = false
  /** Told once nobody is connected any more. */
  onQuiet: (() => void) | null = null
  readonly #description: ExportDescription

  constructor(description: ExportDescription, channel: Channel) {
    this.#description = description
    this.name = description.name
    this.description = description.description
    this.readOnly = description.readOnly || channel.info.readOnly
    this.listenerId = description.listenerId
    this.channel = channel
  }

  get info(): BdevInfo {
    return this.channel.info
  }

  enter(): boolean {
    const { connections, connectionsMax } = this.#description
    const before = Atomics.add(connections, 0, 1)
    if (connectionsMax === 0 || before < connectionsMax) return true
    Atomics.sub(connections, 0, 1)
    return false
  }

  leave(): void {
    Atomics.sub(this.#description.connections, 0, 1)
  }
}

export class ReactorNbdServer implements ConnectionHost {
  readonly reactor: Reactor
  readonly pool: RequestPool
  readonly log = logger('nbd')
  readonly #acceptor: ReactorAcceptor
  readonly #context: ChannelContext
  readonly #exports = new Map<string, ServedExport>()
  readonly #connections = new Set<Connection>()
  #starved: Connection[] = []

  constructor(reactor: Reactor, acceptor: ReactorAcceptor, context: ChannelContext) {
    this.reactor = reactor
    this.pool = new RequestPool(reactor.arena)
    this.#acceptor = acceptor
    this.#context = context
    reactor.control.on<ExportDescription>('nbd.add', description => this.#add(description))
    reactor.control.on<string>('nbd.remove', name => this.#remove(name))
    acceptor.serve('nbd', (socket, listenerId) => this.#adopt(socket, listenerId))
  }

  starve(connection: Connection): void {
    if (this.#starved.length === 0) this.reactor.addPoller(this.#retry)
    if (!this.#starved.includes(connection)) this.#starved.push(connection)
  }

  ended(connection: Connection): void {
    this.#connections.delete(connection)
    this.#acceptor.ended()
    const found = connection.export
    if (found === null) return
    found.leave()
    this.#closeIfQuiet(found)
  }

  #adopt(socket: number, listenerId: number): void {
    const offered = (): ServedExport[] =>
      [...this.#exports.values()].filter(found => found.listenerId === listenerId && !found.isGone)
    const offer = {
      get exports() {
        return offered()
      },
      find: (name: string): ServedExport | undefined => {
        const exports = offered()
        const isDefault = name === '' && exports.length === 1
        return isDefault ? exports[0] : exports.find(found => found.name === name)
      },
    }
    this.#connections.add(new Connection(this, socket, listenerId, offer))
  }

  #add(description: ExportDescription): void {
    const channel = this.#context.open(description.bdev)
    this.#exports.set(description.name, new ServedExport(description, channel))
  }

  /** Ends its connections, then gives the device back. Resolves when both are done. */
  #remove(name: string): Promise<void> {
    const found = this.#exports.get(name)
    if (found === undefined) return Promise.resolve()
    found.isGone = true
    return new Promise(resolve => {
      found.onQuiet = resolve
      const isListening = [...this.#exports.values()].some(
        other => other.listenerId === found.listenerId && !other.isGone,
      )
      for (const connection of this.#connections) {
        const isLost =
          connection.export === null && connection.listenerId === found.listenerId && !isListening
        if (connection.export === found || isLost) connection.shutDown()
      }
      this.#closeIfQuiet(found)
    })
  }

  #closeIfQuiet(found: ServedExport): void {
    if (found.onQuiet === null) return
    for (const connection of this.#connections) if (connection.export === found) return
    this.#exports.delete(found.name)
    this.#context.close(found.channel)
    found.onQuiet()
    found.onQuiet = null
  }

  /** Those that found no buffer try again, in the order in which they came. */
  readonly #retry = (): number => {
    const starved = this.#starved
    this.#starved = []
    this.reactor.removePoller(this.#retry)
    for (const connection of starved) connection.retry()
    return 0
  }
}
