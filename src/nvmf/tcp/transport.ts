/** NVMe/TCP on one reactor: the connections it owns, what they share, and how they end. */

import { assert } from '../../core/assert.ts'
import type { Timer } from '../../core/clock.ts'
import { logger } from '../../core/log.ts'
import type { Reactor } from '../../reactor/reactor.ts'
import { ADMIN_IN_CAPSULE_SIZE } from '../../spec/nvme-tcp.ts'
import { BufferPool } from '../../sys/memory.ts'
import type { ReactorTarget, TransportOptions } from '../request.ts'
import type { CapsuleRequest } from './capsule-request.ts'
import type { ConnectionBuffers } from './command-queue.ts'
import { type ConnectionHost, TcpConnection, type TcpTimeouts } from './connection.ts'
import { Receiver } from './receiver.ts'
import { Sender } from './sender.ts'

const log = logger('nvmf_tcp')

/** How often connections are looked at that may have stalled, and waiting ones get another chance. */
const SWEEP_MS = 1000

/** Connections that have sent no Connect yet: more than this at a time are not hosts, and would take the others' memory. */
const UNCONNECTED_MAX = 512

export const DEFAULT_TIMEOUTS: TcpTimeouts = { connectMs: 10_000, endMs: 5_000, stallMs: 30_000 }

export interface TcpTransportParts {
  readonly reactor: Reactor
  readonly target: ReactorTarget
  /** `maxIoSize` is at most `BufferPool.MAX_SIZE`. */
  readonly options: TransportOptions
  readonly timeouts?: Partial<TcpTimeouts>
  /** Called once for each adopted socket, when its connection is over. */
  readonly onEnded?: () => void
}

/** Counters as `nvmf_get_stats` shows them. */
export interface TcpTransportStats {
  /** Since the start. */
  readonly admin_qpairs: number
  readonly io_qpairs: number
  readonly current_admin_qpairs: number
  readonly current_io_qpairs: number
  readonly completed_nvme_io: number
}

export class TcpTransport implements ConnectionHost {
  readonly options: TransportOptions
  readonly timeouts: TcpTimeouts

  readonly #reactor: Reactor
  readonly #target: ReactorTarget
  readonly #onEnded: () => void
  readonly #connections = new Set<TcpConnection>()
  /** Those of them whose Connect has not succeeded. */
  readonly #unconnected = new Set<TcpConnection>()
  /** Connections with a command that waits for a buffer. */
  readonly #starved: TcpConnection[] = []
  #adminQueues = 0
  #ioQueues = 0
  #completedIos = 0
  #sweep: Timer | null = null

  constructor({ reactor, target, options, timeouts, onEnded }: TcpTransportParts) {
    assert(options.maxIoSize <= BufferPool.MAX_SIZE, `${options.maxIoSize} bytes fit into one buffer`)
    this.#reactor = reactor
    this.#target = target
    this.#onEnded = onEnded ?? (() => {})
    this.options = options
    this.timeouts = { ...DEFAULT_TIMEOUTS, ...timeouts }
  }

  /** Takes over an accepted socket. Without memory for its buffers the connection is closed at once. */
  adopt(socket: number, listenerId: number): void {
    if (this.#unconnected.size >= UNCONNECTED_MAX) {
      this.#refuse(socket, `${UNCONNECTED_MAX} connections have not sent their Connect yet`)
      return
    }
    const buffers = this.#acquireBuffers()
    if (buffers === null) {
      this.#refuse(socket, `the reactor's ${this.#reactor.arena.sizeBytes} bytes of buffers are in use`)
    } else {
      const connection = new TcpConnection(this, this.#reactor, socket, listenerId, buffers)
      this.#connections.add(connection)
      this.#unconnected.add(connection)
    }
    this.#sweep ??= this.#reactor.clock.after(SWEEP_MS, () => this.#sweepConnections())
  }

  #acquireBuffers(): ConnectionBuffers | null {
    const pool = this.#reactor.buffers
    const receive = pool.acquire(Receiver.BUFFER_SIZE)
    const send = receive === 0 ? 0 : pool.acquire(Sender.AREA_SIZE)
    const capsule = send === 0 ? 0 : pool.acquire(this.#capsuleDataMax)
    if (capsule !== 0) return { receive, send, capsule }
    if (send !== 0) pool.release(send, Sender.AREA_SIZE)
    if (receive !== 0) pool.release(receive, Receiver.BUFFER_SIZE)
    return null
  }

  #releaseBuffers({ receive, send, capsule }: ConnectionBuffers): void {
    const pool = this.#reactor.buffers
    pool.release(receive, Receiver.BUFFER_SIZE)
    pool.release(send, Sender.AREA_SIZE)
    pool.release(capsule, this.#capsuleDataMax)
  }

  get #capsuleDataMax(): number {
    return Math.max(ADMIN_IN_CAPSULE_SIZE, this.options.inCapsuleDataSize)
  }

  #refuse(socket: number, reason: string): void {
    const stream = this.#reactor.network.adopt(socket, {
      onReceived() {},
      onSent() {},
      onClosed: this.#onEnded,
    })
    const { host, port } = stream.remote
    log.error(`host at ${host}:${port}: refused: ${reason}`)
    stream.close()
  }

  get stats(): TcpTransportStats {
    let current_admin_qpairs = 0
    let current_io_qpairs = 0
    for (const connection of this.#connections) {
      if (connection.isAdminQueue) current_admin_qpairs++
      if (connection.isIoQueue) current_io_qpairs++
    }
    return {
      admin_qpairs: this.#adminQueues,
      io_qpairs: this.#ioQueues,
      current_admin_qpairs,
      current_io_qpairs,
      completed_nvme_io: this.#completedIos,
    }
  }

  /** Ends every connection that came by the listener, those that are about to connect as soon as they are answered. */
  closeListener(listenerId: number, reason: string): void {
    for (const connection of this.#connections) {
      if (connection.listenerId === listenerId) connection.listenerClosed(reason)
    }
  }

  // Called by connections.

  connect(connection: TcpConnection, request: CapsuleRequest): void {
    this.#target.connect(connection, request)
  }

  connected(connection: TcpConnection): void {
    this.#unconnected.delete(connection)
    if (connection.isAdminQueue) this.#adminQueues++
    else this.#ioQueues++
  }

  starve(connection: TcpConnection): void {
    if (!this.#starved.includes(connection)) this.#starved.push(connection)
  }

  bufferFreed(): void {
    if (this.#starved.length > 0) this.#feed()
  }

  ioEnded(): void {
    this.#completedIos++
  }

  ended(connection: TcpConnection, buffers: ConnectionBuffers): void {
    this.#releaseBuffers(buffers)
    this.#connections.delete(connection)
    this.#unconnected.delete(connection)
    const index = this.#starved.indexOf(connection)
    if (index >= 0) this.#starved.splice(index, 1)
    this.bufferFreed()
    this.#onEnded()
  }

  /** Those who wait try again at the end of this round; who fails waits again. */
  #feed(): void {
    for (const connection of this.#starved) connection.markDirty()
    this.#starved.length = 0
  }

  /** Buffers may also have been given back by strangers (other exports), which is not told. */
  #sweepConnections(): void {
    this.#sweep = null
    this.#feed()
    for (const connection of this.#connections) connection.closeIfStalled()
    if (this.#connections.size > 0)
      this.#sweep = this.#reactor.clock.after(SWEEP_MS, () => this.#sweepConnections())
  }
}
