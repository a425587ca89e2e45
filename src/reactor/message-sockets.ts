/**
 * Messages with file descriptors over Unix sockets, for protocols that hand over memory (vhost-user). The control thread
 * asks for one message at a time; the reactor that has the socket in its ring reads it:
 *
 *   control thread                          reactor
 *   MessageSocket.receive()  --receive-->   waits for the socket, reads one header and its payload
 *                            <--message--   bytes, descriptors
 *   MessageSocket.send()     sendmsg at once: an answer is small, and a peer that does not read loses its connection
 *
 * What nobody asked for stays in the socket: a peer cannot make this process hold more than one message.
 */
import { chmodSync, chownSync } from 'node:fs'
import { assert } from '../core/assert.ts'
import { ProtocolError, RpcError, SysError } from '../core/errors.ts'
import { Opcode } from '../spec/io-uring.ts'
import { close } from '../sys/libc.ts'
import { connectUnix } from '../sys/socket.ts'
import { closeAll, receiveMessage, sendMessage } from '../sys/unix-message.ts'
import type { RingHandler, Uring } from '../sys/uring.ts'
import type { Acceptor, ReactorAcceptor } from './acceptor.ts'
import type { ReactorGroup } from './group.ts'
import type { Port } from './port.ts'
import type { Reactor } from './reactor.ts'

const SERVICE = 'message-sockets'
const POLLIN = 1
const EINTR = 4
const EAGAIN = 11
const EMSGSIZE = 90
const ECONNRESET = 104

const Topic = {
  /** From the reactor: `Adopted`. */
  ADOPTED: 'message-sockets.adopted',
  /** A connected socket, which the reactor owns from then on. */
  ADOPT: 'message-sockets.adopt',
  /** `ReceiveRequest`, answered with `Received`. */
  RECEIVE: 'message-sockets.receive',
  /** A socket, answered when it is closed. */
  CLOSE: 'message-sockets.close',
} as const

/** How a message is cut out of the stream. Plain data, since it travels between threads. */
export interface Framing {
  /** Every message begins with so many bytes … */
  readonly headerBytes: number
  /** … of which four, little-endian, at this offset say how many bytes follow. */
  readonly sizeAt: number
  /** More than this is a fault of the peer, and ends the connection. */
  readonly payloadBytesMax: number
  readonly descriptorsMax: number
}

export interface SocketMessage {
  /** Header and payload. */
  readonly bytes: Uint8Array
  /** The receiver's to close. */
  readonly descriptors: readonly number[]
}

interface Adopted {
  readonly socket: number
  readonly listenerId: number
}

interface ReceiveRequest {
  readonly socket: number
  readonly framing: Framing
}

/** Plain data: a port carries no `ProtocolError`. Null at the end of the connection. */
type Received = SocketMessage | { readonly fault: string; readonly offsetBytes: number } | null

export interface MessageListenOptions {
  readonly framing: Framing
  /** The mode and the owner of the socket's file; what is absent stays as the process makes files. */
  readonly mode?: number | undefined
  readonly uid?: number | undefined
  readonly gid?: number | undefined
}

export interface MessageListener {
  readonly path: string
  /** Stops listening and removes the file. Connections are left alone. */
  close(): Promise<void>
}

/** One connection, from the control thread's side. Whoever has it closes it. */
export class MessageSocket {
  readonly #socket: number
  readonly #port: Port
  readonly #framing: Framing
  #closed: Promise<void> | undefined

  constructor(socket: number, port: Port, framing: Framing) {
    this.#socket = socket
    this.#port = port
    this.#framing = framing
  }

  /**
   * The next message; null once the peer has closed the connection, or `close` was called. Throws `ProtocolError` when
   * what arrives is no message, `SysError` when the socket fails; there are no more messages then. One call at a time.
   */
  async receive(): Promise<SocketMessage | null> {
    if (this.#closed !== undefined) return null
    const request: ReceiveRequest = { socket: this.#socket, framing: this.#framing }
    const received = await this.#port.call<Received>(Topic.RECEIVE, request)
    if (received === null) return null
    if ('fault' in received) throw new ProtocolError(received.fault, received.offsetBytes)
    // It was closed while the message was on its way.
    if (this.#closed !== undefined) {
      closeAll([...received.descriptors])
      return null
    }
    return received
  }

  /**
   * Sends a whole message at once. The descriptors stay the caller's own. Throws `SysError`; EAGAIN when the peer does
   * not read what it asked for. The connection is of no use after a failure, since part of the message may be out.
   */
  send(bytes: Uint8Array, descriptors: readonly number[] = []): void {
    assert(this.#closed === undefined, 'messages are sent before the socket is closed')
    const result = sendMessage(this.#socket, bytes, descriptors)
    if (result < 0) throw new SysError('sendmsg', -result, `of ${bytes.length} bytes`)
    if (result < bytes.length) throw new SysError('sendmsg', EAGAIN, `of ${bytes.length - result} bytes more`)
  }

  /** Ends the connection, and a `receive` that waits. Resolves when the descriptor is closed. Idempotent. */
  close(): Promise<void> {
    this.#closed ??= this.#port.call<void>(Topic.CLOSE, this.#socket)
    return this.#closed
  }
}

/** The control thread's side. */
export class MessageSockets {
  readonly #reactors: ReactorGroup
  readonly #acceptor: Acceptor
  readonly #listeners = new Map<number, (adopted: number, port: Port) => void>()
  #nextReactor = 0

  constructor(reactors: ReactorGroup, acceptor: Acceptor) {
    this.#reactors = reactors
    this.#acceptor = acceptor
    for (let index = 0; index < reactors.count; index++) {
      const port = reactors.port(index)
      port.on<Adopted>(Topic.ADOPTED, ({ socket, listenerId }) => {
        const onSocket = this.#listeners.get(listenerId)
        // The listener was closed while the connection was on its way.
        if (onSocket === undefined) void port.call(Topic.CLOSE, socket)
        else onSocket(socket, port)
      })
    }
  }

  /**
   * Listens at `path` and hands over each connection. Throws `RpcError` that names the path and what to do: EADDRINUSE,
   * EEXIST for another kind of file, EACCES, ENOENT, EPERM when the file may not be given away.
   */
  async listen(
    path: string,
    options: MessageListenOptions,
    onSocket: (socket: MessageSocket) => void,
  ): Promise<MessageListener> {
    const { framing } = options
    const listenerId = this.#acceptor.newListenerId()
    this.#listeners.set(listenerId, (socket, port) => onSocket(new MessageSocket(socket, port, framing)))
    const stop = async (): Promise<void> => {
      this.#listeners.delete(listenerId)
      await this.#acceptor.close(listenerId)
    }
    try {
      await this.#acceptor.listen(SERVICE, listenerId, { host: path, port: 0 })
    } catch (error) {
      this.#listeners.delete(listenerId)
      throw error
    }
    try {
      giveAway(path, options)
    } catch (error) {
      await stop()
      throw error
    }
    return { path, close: stop }
  }

  /** Throws `SysError`: ENOENT, ECONNREFUSED, EACCES; EAGAIN when the other side has too many waiting already. */
  async connect(path: string, framing: Framing): Promise<MessageSocket> {
    return this.adopt(connectUnix(path), framing)
  }

  /** Takes a connected socket over: whoever has what this resolves with closes it. */
  async adopt(socket: number, framing: Framing): Promise<MessageSocket> {
    const port = this.#reactors.port(this.#nextReactor++ % this.#reactors.count)
    await port.call(Topic.ADOPT, socket)
    return new MessageSocket(socket, port, framing)
  }
}

/** Until here nobody but the process's own user may connect, unless the umask is an open one. */
function giveAway(path: string, { mode, uid, gid }: MessageListenOptions): void {
  try {
    if (uid !== undefined || gid !== undefined) chownSync(path, uid ?? -1, gid ?? -1)
    if (mode !== undefined) chmodSync(path, mode)
  } catch (cause) {
    throw new RpcError(
      'EPERM',
      `cannot set owner and mode of ${path}: ${(cause as Error).message}. Run as root, or name a user and a group that this process belongs to`,
      { cause },
    )
  }
}

/** One reactor's side. */
export class ReactorMessageSockets {
  readonly #reactor: Reactor
  readonly #sockets = new Map<number, ReceivingSocket>()

  constructor(reactor: Reactor, acceptor: ReactorAcceptor) {
    this.#reactor = reactor
    const { control } = reactor
    acceptor.serve(SERVICE, (socket, listenerId) => {
      this.#adopt(socket, () => acceptor.ended())
      control.post(Topic.ADOPTED, { socket, listenerId } satisfies Adopted)
    })
    control.on<number>(Topic.ADOPT, socket => this.#adopt(socket, () => {}))
    control.on<ReceiveRequest>(Topic.RECEIVE, ({ socket, framing }) => this.#socket(socket).receive(framing))
    control.on<number>(Topic.CLOSE, async socket => {
      await this.#socket(socket).close()
    })
  }

  #adopt(socket: number, ended: () => void): void {
    const { ring } = this.#reactor
    assert(ring, 'message sockets need a ring')
    const receiving = new ReceivingSocket(ring, socket, () => {
      this.#sockets.delete(socket)
      ended()
    })
    this.#sockets.set(socket, receiving)
  }

  #socket(socket: number): ReceivingSocket {
    const receiving = this.#sockets.get(socket)
    assert(receiving, `socket ${socket} is open`)
    return receiving
  }
}

/** Reads one message when it is asked to, and waits in the ring while there is none. */
class ReceivingSocket implements RingHandler {
  readonly #ring: Uring
  readonly #fd: number
  readonly #token: number
  readonly #onClosed: () => void
  /** What has arrived of the next message. */
  #bytes = new Uint8Array(0)
  #size = 0
  readonly #descriptors: number[] = []
  /** Who waits for it. */
  #framing: Framing | null = null
  #answer: ((received: Received) => void) | null = null
  #fail: ((error: Error) => void) | null = null
  #isArmed = false
  /** The stream has lost its frame, or has ended. */
  #isOver = false
  #closed: (() => void) | null = null

  constructor(ring: Uring, fd: number, onClosed: () => void) {
    this.#ring = ring
    this.#fd = fd
    this.#onClosed = onClosed
    this.#token = ring.register(this)
  }

  receive(framing: Framing): Promise<Received> {
    assert(this.#answer === null, 'one message is asked for at a time')
    if (this.#isOver || this.#closed !== null) return Promise.resolve(null)
    this.#framing = framing
    if (this.#bytes.length === 0) this.#bytes = new Uint8Array(framing.headerBytes + framing.payloadBytesMax)
    return new Promise((resolve, reject) => {
      this.#answer = resolve
      this.#fail = reject
      this.#read()
    })
  }

  close(): Promise<void> {
    assert(this.#closed === null, 'a socket is closed once')
    return new Promise(resolve => {
      this.#closed = resolve
      this.#end(null)
      if (this.#isArmed) this.#ring.cancel(this.#token)
      else this.#finish()
    })
  }

  /** The socket has become readable, or the wait for that was cancelled. */
  complete(): void {
    this.#isArmed = false
    if (this.#closed !== null) this.#finish()
    else if (this.#answer !== null) this.#read()
  }

  #read(): void {
    const framing = this.#framing!
    for (;;) {
      const wanted = this.#wanted(framing)
      if (wanted < 0) return
      if (this.#size === wanted) {
        this.#deliver()
        return
      }
      const descriptors = this.#descriptors
      const target = this.#bytes.subarray(this.#size, wanted)
      const result = receiveMessage(this.#fd, target, descriptors, framing.descriptorsMax)
      if (result === -EINTR) continue
      if (result === -EAGAIN) {
        this.#arm()
        return
      }
      if (result === -EMSGSIZE || descriptors.length > framing.descriptorsMax) {
        this.#break(
          `a message carries more descriptors than the ${framing.descriptorsMax} that are allowed, or than this process may open`,
          0,
        )
        return
      }
      if (result <= 0) {
        this.#lost(result)
        return
      }
      this.#size += result
    }
  }

  /** How long the message is, as far as is known by now; -1 when it would be too long: the stream is broken then. */
  #wanted({ headerBytes, sizeAt, payloadBytesMax }: Framing): number {
    if (this.#size < headerBytes) return headerBytes
    const payloadBytes = new DataView(this.#bytes.buffer).getUint32(sizeAt, true)
    if (payloadBytes <= payloadBytesMax) return headerBytes + payloadBytes
    this.#break(`a message has a payload of ${payloadBytes} bytes, more than ${payloadBytesMax}`, sizeAt)
    return -1
  }

  #arm(): void {
    if (this.#isArmed) return
    this.#isArmed = true
    this.#ring.prepare(Opcode.POLL_ADD, this.#fd, 0, 0, 0, POLLIN, this.#token)
  }

  #deliver(): void {
    const answer = this.#answer!
    const message = { bytes: this.#bytes.slice(0, this.#size), descriptors: this.#descriptors.splice(0) }
    this.#size = 0
    this.#answer = null
    answer(message)
  }

  /** The peer is gone: with `result` 0 in peace. */
  #lost(result: number): void {
    if (result < 0 && result !== -ECONNRESET) {
      const fail = this.#fail!
      this.#answer = null
      fail(new SysError('recvmsg', -result))
      this.#end(null)
    } else if (this.#size > 0) {
      this.#break(`the connection ended ${this.#size} bytes into a message`, this.#size)
    } else {
      this.#end(null)
    }
  }

  #break(fault: string, offsetBytes: number): void {
    this.#end({ fault, offsetBytes })
  }

  /** No more messages. */
  #end(received: Received): void {
    this.#isOver = true
    closeAll(this.#descriptors)
    const answer = this.#answer
    this.#answer = null
    answer?.(received)
  }

  #finish(): void {
    this.#ring.unregister(this.#token)
    close(this.#fd)
    this.#onClosed()
    this.#closed!()
  }
}
