/**
 * The seam between a transport and the target behind it. A transport turns bytes into commands and back; it knows
 * queues, data transfer and I/O commands. The target knows subsystems, controllers and admin commands.
 *
 *   transport (tcp/)                       target (this folder)
 *   connection accepted
 *   first capsule: Connect   ---------->   ReactorTarget.connect(connection, request)
 *                            <----------   connection.becomeAdminQueue(…) or becomeIoQueue(…), request.complete(…)
 *   admin and fabrics capsule ---------->  AdminQueue.execute(request)
 *   I/O capsule: executed by the transport's I/O code against IoQueue.namespace(nsid)
 *   connection ended         ---------->   queue.closed()
 */
import type { Channel } from '../bdev/channel.ts'
import type { SocketAddress } from '../reactor/network.ts'

/** A command that is not on the fast path: Connect, everything of the admin queue, fabrics commands of any queue. */
export interface CommandRequest {
  /** The submission queue entry, 64 bytes from 0: a stable copy. */
  readonly sqe: DataView
  /** The length of the command's data, in bytes, by its SGL: what the host sends, or how much it takes. */
  readonly lengthBytes: number
  /** The data of a command that transfers from host to controller, entirely arrived; empty for others. */
  readonly dataOut: Uint8Array
  /** Ends the command, once; at a time of the target's choosing. A request whose connection has ended ignores it. */
  complete(completion: Completion): void
}

export interface Completion {
  /** NVMe status: status code type * 256 + status code. */
  readonly status: number
  /** The host should not try again. */
  readonly doNotRetry?: boolean
  readonly dw0?: number
  readonly dw1?: number
  /** For the host, at most `lengthBytes`; a longer one is cut. Copied before `complete` returns. */
  readonly data?: Uint8Array
}

/** A connection as the target sees it. */
export interface Connection {
  readonly local: SocketAddress
  readonly remote: SocketAddress
  /** The listener it came in by, as numbered by the target. */
  readonly listenerId: number
  becomeAdminQueue(queue: AdminQueue, sqSize: number): void
  becomeIoQueue(queue: IoQueue, sqSize: number): void
  /** Asks for the early end of a command. True when it has been ended with `ABORTED_BY_REQUEST`, false for any other. */
  abort(cid: number): boolean
  /** Ends the connection after what is already queued was sent. `reason` is for the log. */
  disconnect(reason: string): void
}

export interface AdminQueue {
  /** Starts a command; it may complete at any later time (asynchronous event requests do). */
  execute(request: CommandRequest): void
  /** Any capsule arrived: traffic-based keep alive. */
  noteTraffic(): void
  /** Ends the connection so that its host hears of it. */
  end(reason: string): void
  /** The connection ended; every request still open has been forgotten. */
  closed(): void
}

export interface IoQueue {
  /** What the namespace id stands for at this moment, undefined when the host has no such namespace. */
  namespace(nsid: number): NamespaceView | undefined
  /** A fabrics command on an I/O queue (Disconnect, authentication). */
  execute(request: CommandRequest): void
  noteTraffic(): void
  closed(): void
}

/** One namespace as one I/O queue sees it. Read for every I/O: plain fields, changed in place by the target. */
export interface NamespaceView {
  /** Shared by the reactor; null while the device is being taken away. */
  readonly channel: Channel | null
  /** `SUCCESS`, or the status every I/O gets because of the ANA state of this path (`ANA_INACCESSIBLE` …). */
  readonly gate: number
}

/** One reactor's part of the target, as the transport sees it. */
export interface ReactorTarget {
  /** The first command of a connection, a Connect. Completes the request itself. */
  connect(connection: Connection, request: CommandRequest): void
}

/** Limits of a transport, from `nvmf_create_transport`. */
export interface TransportOptions {
  /** Entries of an I/O queue, at most. */
  readonly maxQueueDepth: number
  /** Entries of an admin queue, at most. */
  readonly maxAqDepth: number
  readonly maxIoQpairsPerCtrlr: number
  /** Bytes of data a host may send within a command capsule of an I/O queue. */
  readonly inCapsuleDataSize: number
  /** Bytes a single command may transfer (sets MDTS): a power of two. */
  readonly maxIoSize: number
  /** Whether a successful read ends with the last data PDU (SUCCESS flag) instead of a response capsule. */
  readonly c2hSuccess: boolean
}
