/** One connection of a controller to its back end: what was agreed on, and the back end's own requests. */
import { errnoName, ProtocolError, RpcError, SysError } from '../core/errors.ts'
import type { MessageSocket, MessageSockets, SocketMessage } from '../reactor/message-sockets.ts'
import {
  BackendRequest,
  MessageFlag,
  MessageHeader,
  ProtocolFeature,
  Request,
  VHOST_USER_VERSION,
} from '../spec/vhost-user.ts'
import { close } from '../sys/libc.ts'
import { unixPair } from '../sys/socket.ts'
import { closeAll } from '../sys/unix-message.ts'
import { FRAMING, FrontEnd } from './front-end.ts'
import { type Agreement, negotiate } from './handshake.ts'
import type { DeviceKind } from './messages.ts'

export interface ConnectOptions {
  readonly path: string
  readonly kind: DeviceKind
  readonly packed: boolean
  /** The device's configuration space has changed. */
  configChanged(): void
  /** Ends the attempt to connect. */
  readonly signal: AbortSignal
}

export class Connection {
  readonly frontEnd: FrontEnd
  readonly agreement: Agreement
  /** What the back end asks of us comes here. */
  readonly #backend: MessageSocket | undefined

  private constructor(frontEnd: FrontEnd, agreement: Agreement, backend: MessageSocket | undefined) {
    this.frontEnd = frontEnd
    this.agreement = agreement
    this.#backend = backend
  }

  /** Throws `RpcError` that names the socket, what was asked of it and what to do. */
  static async open(sockets: MessageSockets, options: ConnectOptions): Promise<Connection> {
    const { path } = options
    const frontEnd = new FrontEnd(await connect(sockets, path))
    let backend: MessageSocket | undefined
    const abort = (): void => void frontEnd.close('the controller is detached')
    options.signal.addEventListener('abort', abort)
    try {
      const agreement = await negotiate(frontEnd, options.kind, options.packed)
      if (frontEnd.has(ProtocolFeature.BACKEND_REQ)) backend = await openBackend(sockets, frontEnd)
      const connection = new Connection(frontEnd, agreement, backend)
      if (backend !== undefined) void connection.#listen(backend, options.configChanged)
      return connection
    } catch (error) {
      await frontEnd.close((error as Error).message)
      await backend?.close()
      throw explain(options, error)
    } finally {
      options.signal.removeEventListener('abort', abort)
    }
  }

  /** Settles with the reason once the connection is of no use any more. */
  get ended(): Promise<string> {
    return this.frontEnd.ended
  }

  async close(reason: string): Promise<void> {
    await this.frontEnd.close(reason)
    await this.#backend?.close()
  }

  async #listen(backend: MessageSocket, configChanged: () => void): Promise<void> {
    try {
      for (let message = await backend.receive(); message !== null; message = await backend.receive()) {
        this.#answer(backend, message, configChanged)
      }
    } catch (error) {
      await this.frontEnd.close(`what it asks cannot be read: ${(error as Error).message}`)
    }
  }

  #answer(backend: MessageSocket, { bytes, descriptors }: SocketMessage, configChanged: () => void): void {
    closeAll([...descriptors])
    const view = new DataView(bytes.buffer, bytes.byteOffset)
    const request = MessageHeader.request.get(view, 0)
    const flags = MessageHeader.flags.get(view, 0)
    if ((flags & MessageFlag.VERSION_MASK) !== VHOST_USER_VERSION || (flags & MessageFlag.REPLY) !== 0) {
      throw new ProtocolError(`a request ${request} with flags 0x${flags.toString(16)}`, 4)
    }
    const isKnown = request === BackendRequest.CONFIG_CHANGE_MSG
    if (isKnown) configChanged()
    if ((flags & MessageFlag.NEED_REPLY) === 0) return
    const answer = new DataView(new ArrayBuffer(MessageHeader.size + 8))
    MessageHeader.request.set(answer, 0, request)
    MessageHeader.flags.set(answer, 0, VHOST_USER_VERSION | MessageFlag.REPLY)
    MessageHeader.payloadBytes.set(answer, 0, 8)
    answer.setBigUint64(MessageHeader.size, isKnown ? 0n : 1n, true)
    backend.send(new Uint8Array(answer.buffer))
  }
}

/** An error as the operator is told it: with the socket's name, and what to do. */
export function explain(
  { path, kind }: { readonly path: string; readonly kind: DeviceKind },
  cause: unknown,
): RpcError {
  const { message } = cause as Error
  if (cause instanceof RpcError) {
    return message.includes(path) ? cause : new RpcError(cause.code, `${path}: ${message}`, { cause })
  }
  return new RpcError(
    'EIO',
    `the back end at ${path} does not serve a ${kind} device as it should: ${message}. Look at its log`,
    { cause },
  )
}

async function openBackend(sockets: MessageSockets, frontEnd: FrontEnd): Promise<MessageSocket> {
  const [own, other] = unixPair()
  const backend = await sockets.adopt(own, FRAMING)
  try {
    await frontEnd.order(Request.SET_BACKEND_REQ_FD, [other])
    return backend
  } catch (error) {
    await backend.close()
    throw error
  } finally {
    close(other)
  }
}

const REMEDIES: Readonly<Record<string, string>> = {
  ENOENT: 'start the back end, or correct the path',
  ECONNREFUSED: 'nobody listens there any more: start the back end',
  EACCES: 'the socket is not for this user: change its owner or mode',
  EAGAIN: 'others wait for it already: it serves one front end at a time',
}

async function connect(sockets: MessageSockets, path: string): Promise<MessageSocket> {
  try {
    return await sockets.connect(path, FRAMING)
  } catch (error) {
    if (!(error instanceof SysError)) throw error
    const remedy = REMEDIES[error.code] ?? 'look at the back end'
    throw new RpcError('EIO', `cannot connect to ${path} (${errnoName(error.errno)}): ${remedy}`, {
      cause: error,
    })
  }
}
