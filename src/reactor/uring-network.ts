/** The real network: sockets driven through the reactor's io_uring. */
import { assert } from '../core/assert.ts'
import type { Clock } from '../core/clock.ts'
import { SysError } from '../core/errors.ts'
import {
  ACCEPT_MULTISHOT,
  CqeFlag,
  IOVEC_SIZE,
  Msghdr,
  Opcode,
  RECVSEND_POLL_FIRST,
} from '../spec/io-uring.ts'
import { close, shutdown } from '../sys/libc.ts'
import { type Arena, viewAt } from '../sys/memory.ts'
import {
  addressOf,
  bindSocket,
  dropUnsent,
  listenSocket,
  openSocket,
  SOCKADDR_ROOM,
  tuneConnection,
  writeSockaddr,
} from '../sys/socket.ts'
import type { RingHandler, Uring } from '../sys/uring.ts'
import type { Listener, Network, SocketAddress, Stream, StreamEvents } from './network.ts'
import type { Deliverable } from './reactor.ts'

const SHUT_RDWR = 2
const MSG_WAITALL = 0x100
const MSG_NOSIGNAL = 0x4000
const IOV_MAX = 1024
const ECANCELED = 125
const ETIMEDOUT = 110

/** What one stream keeps in the arena: two message headers and the two iovecs of a split receive. */
const BLOCK_SIZE = Msghdr.size * 2 + IOVEC_SIZE * 2
const RECEIVE_HEADER_AT = 0
const SEND_HEADER_AT = Msghdr.size
const IOVECS_AT = Msghdr.size * 2

/** What the network needs of the reactor around it. */
export interface NetworkHost {
  readonly clock: Clock
  deliverLater(done: Deliverable): void
}

export class UringNetwork implements Network {
  readonly ring: Uring
  readonly arena: Arena
  /** For one call at a time. */
  readonly scratch: number
  readonly #freeBlocks: number[] = []
  #host: NetworkHost | undefined

  constructor(ring: Uring, arena: Arena) {
    this.ring = ring
    this.arena = arena
    this.scratch = arena.allocate(SOCKADDR_ROOM)
  }

  /** The reactor that owns this network: told once it exists. */
  attach(host: NetworkHost): void {
    this.#host = host
  }

  get host(): NetworkHost {
    assert(this.#host, 'the network is attached to a reactor')
    return this.#host
  }

  adopt(socket: number, events: StreamEvents): Stream {
    tuneConnection(socket, this.scratch)
    return new UringStream(this, socket, events, {
      local: addressOf(socket, 'local', this.scratch),
      remote: addressOf(socket, 'remote', this.scratch),
    })
  }

  connect(
    remote: SocketAddress,
    source: SocketAddress | undefined,
    timeoutMs: number,
    events: StreamEvents,
    done: (stream: Stream | undefined, errno: number) => void,
  ): () => void {
    const attempt = new ConnectAttempt(this, done, events)
    attempt.start(remote, source, timeoutMs)
    return () => attempt.giveUp(ECANCELED)
  }

  listen(address: SocketAddress, backlog: number, onSocket: (socket: number) => void): Listener {
    const fd = listenSocket(address, backlog, this.scratch)
    return new UringListener(this, fd, addressOf(fd, 'local', this.scratch), onSocket)
  }

  acquireBlock(): number {
    const block = this.#freeBlocks.pop() ?? this.arena.allocate(BLOCK_SIZE)
    assert(block !== 0, 'the arena has room for the headers of a connection')
    return block
  }

  releaseBlock(block: number): void {
    this.#freeBlocks.push(block)
  }
}

class UringStream implements Stream, Deliverable {
  readonly local: SocketAddress
  readonly remote: SocketAddress
  next: Deliverable | null = null

  readonly #network: UringNetwork
  readonly #ring: Uring
  readonly #fd: number
  readonly #events: StreamEvents
  readonly #block: number
  readonly #view: DataView
  readonly #receiveToken: number
  readonly #sendToken: number
  #receiving = false
  #sending = false
  #closing = false
  #finished = false
  /** The last receive left nothing behind: wait for data instead of trying at once. */
  #pollFirst = RECVSEND_POLL_FIRST
  // What remains of the send in progress.
  #iovecs = 0
  #iovecCount = 0
  #sent = 0

  constructor(
    network: UringNetwork,
    fd: number,
    events: StreamEvents,
    addresses: { local: SocketAddress; remote: SocketAddress },
  ) {
    this.#network = network
    this.#ring = network.ring
    this.#fd = fd
    this.#events = events
    this.local = addresses.local
    this.remote = addresses.remote
    this.#block = network.acquireBlock()
    this.#view = viewAt(this.#block, BLOCK_SIZE)
    new Uint8Array(this.#view.buffer, this.#view.byteOffset, BLOCK_SIZE).fill(0)
    Msghdr.iov.set(this.#view, RECEIVE_HEADER_AT, this.#block + IOVECS_AT)
    Msghdr.iovCount.set(this.#view, RECEIVE_HEADER_AT, 2)
    this.#receiveToken = this.#ring.register({ complete: (result, flags) => this.#received(result, flags) })
    this.#sendToken = this.#ring.register({ complete: result => this.#wasSent(result) })
  }

  receive(address: number, size: number): void {
    assert(!this.#receiving && !this.#closing, 'one receive at a time, on an open stream')
    this.#receiving = true
    this.#ring.prepare(Opcode.RECV, this.#fd, 0, address, size, 0, this.#receiveToken, this.#pollFirst)
  }

  receiveSplit(address: number, size: number, nextAddress: number, nextSize: number): void {
    assert(!this.#receiving && !this.#closing, 'one receive at a time, on an open stream')
    this.#receiving = true
    this.#setIovec(0, address, size)
    this.#setIovec(1, nextAddress, nextSize)
    this.#ring.prepare(
      Opcode.RECVMSG,
      this.#fd,
      0,
      this.#block + RECEIVE_HEADER_AT,
      1,
      0,
      this.#receiveToken,
      this.#pollFirst,
    )
  }

  send(iovecs: number, count: number): void {
    assert(!this.#sending && !this.#closing, 'one send at a time, on an open stream')
    assert(count > 0, 'a send has something to send')
    this.#sending = true
    this.#iovecs = iovecs
    this.#iovecCount = count
    this.#sent = 0
    this.#sendRest()
  }

  close(): void {
    if (this.#closing) return
    this.#closing = true
    // Wakes what waits in the kernel; a socket that is not connected any more has nothing to wake.
    shutdown(this.#fd, SHUT_RDWR)
    this.#finishIfQuiet()
  }

  /** The queued end of `close`. */
  deliver(): void {
    this.#events.onClosed()
  }

  #received(result: number, flags: number): void {
    this.#receiving = false
    this.#pollFirst = (flags & CqeFlag.SOCK_NONEMPTY) === 0 ? RECVSEND_POLL_FIRST : 0
    this.#events.onReceived(result)
    if (this.#closing) this.#finishIfQuiet()
  }

  #wasSent(result: number): void {
    if (result > 0) {
      this.#sent += result
      this.#advance(result)
      if (this.#iovecCount > 0 && !this.#closing) {
        this.#sendRest()
        return
      }
    }
    this.#sending = false
    const isCut = this.#iovecCount > 0 && result >= 0
    this.#events.onSent(isCut ? -ECANCELED : result > 0 ? this.#sent : result)
    if (this.#closing) this.#finishIfQuiet()
  }

  #sendRest(): void {
    Msghdr.iov.set(this.#view, SEND_HEADER_AT, this.#iovecs)
    Msghdr.iovCount.set(this.#view, SEND_HEADER_AT, Math.min(this.#iovecCount, IOV_MAX))
    const header = this.#block + SEND_HEADER_AT
    const flags = MSG_NOSIGNAL | MSG_WAITALL
    this.#ring.prepare(Opcode.SENDMSG, this.#fd, 0, header, 1, flags, this.#sendToken)
  }

  /** Takes `bytes` off the front of the iovecs that are still to be sent. */
  #advance(bytes: number): void {
    const { arena } = this.#network
    let left = bytes
    while (left > 0 && this.#iovecCount > 0) {
      const at = arena.offsetOf(this.#iovecs)
      const length = arena.view.getUint32(at + 8, true)
      if (left < length) {
        // The low half carries into the high one only if the data crosses a multiple of 4 GiB.
        const low = arena.view.getUint32(at, true) + left
        arena.view.setUint32(at, low, true)
        if (low >= 2 ** 32) arena.view.setUint32(at + 4, arena.view.getUint32(at + 4, true) + 1, true)
        arena.view.setUint32(at + 8, length - left, true)
        return
      }
      left -= length
      this.#iovecs += IOVEC_SIZE
      this.#iovecCount--
    }
  }

  #setIovec(index: number, address: number, size: number): void {
    const at = IOVECS_AT + index * IOVEC_SIZE
    const view = this.#view
    view.setUint32(at, address % 2 ** 32, true)
    view.setUint32(at + 4, address / 2 ** 32, true)
    view.setUint32(at + 8, size, true)
  }

  #finishIfQuiet(): void {
    if (this.#receiving || this.#sending || this.#finished) return
    this.#finished = true
    this.#ring.unregister(this.#receiveToken)
    this.#ring.unregister(this.#sendToken)
    this.#network.releaseBlock(this.#block)
    close(this.#fd)
    this.#network.host.deliverLater(this)
  }
}

class ConnectAttempt implements RingHandler, Deliverable {
  next: Deliverable | null = null
  readonly #network: UringNetwork
  readonly #done: (stream: Stream | undefined, errno: number) => void
  readonly #events: StreamEvents
  #fd = -1
  #token = 0
  #block = 0
  #timer: { cancel(): void } | undefined
  #gaveUp = 0
  #failure = 0

  constructor(
    network: UringNetwork,
    done: (stream: Stream | undefined, errno: number) => void,
    events: StreamEvents,
  ) {
    this.#network = network
    this.#done = done
    this.#events = events
  }

  start(remote: SocketAddress, source: SocketAddress | undefined, timeoutMs: number): void {
    const { ring, host } = this.#network
    this.#block = this.#network.acquireBlock()
    try {
      this.#fd = openSocket(remote)
      if (source !== undefined) bindSocket(this.#fd, source, this.#block)
      const size = writeSockaddr(this.#block, remote)
      this.#token = ring.register(this)
      ring.prepare(Opcode.CONNECT, this.#fd, size, this.#block, 0, 0, this.#token)
    } catch (error) {
      if (!(error instanceof SysError)) throw error
      if (this.#fd >= 0) close(this.#fd)
      this.#network.releaseBlock(this.#block)
      this.#failure = error.errno
      host.deliverLater(this)
      return
    }
    this.#timer = host.clock.after(timeoutMs, () => this.giveUp(ETIMEDOUT))
  }

  giveUp(errno: number): void {
    if (this.#token === 0 || this.#gaveUp !== 0) return
    this.#gaveUp = errno
    this.#network.ring.cancel(this.#token)
  }

  complete(result: number): void {
    this.#timer?.cancel()
    this.#network.ring.unregister(this.#token)
    this.#network.releaseBlock(this.#block)
    this.#token = 0
    if (result === 0 && this.#gaveUp === 0) {
      dropUnsent(this.#fd, this.#network.scratch)
      this.#done(this.#network.adopt(this.#fd, this.#events), 0)
      return
    }
    close(this.#fd)
    this.#done(undefined, this.#gaveUp !== 0 ? this.#gaveUp : -result)
  }

  /** The queued end of an attempt that failed before it reached the kernel. */
  deliver(): void {
    this.#done(undefined, this.#failure)
  }
}

class UringListener implements Listener, RingHandler {
  readonly address: SocketAddress
  readonly #network: UringNetwork
  readonly #fd: number
  readonly #token: number
  readonly #onSocket: (socket: number) => void
  #closing = false

  constructor(network: UringNetwork, fd: number, address: SocketAddress, onSocket: (socket: number) => void) {
    this.#network = network
    this.#fd = fd
    this.address = address
    this.#onSocket = onSocket
    this.#token = network.ring.register(this)
    this.#arm()
  }

  close(): void {
    if (this.#closing) return
    this.#closing = true
    // A listening socket stops listening at once, and the accept that is armed ends with an error.
    shutdown(this.#fd, SHUT_RDWR)
    this.#network.ring.cancel(this.#token)
  }

  complete(result: number, flags: number): void {
    if (result >= 0) {
      if (this.#closing) close(result)
      else this.#onSocket(result)
    }
    if ((flags & CqeFlag.MORE) !== 0) return
    if (this.#closing) {
      this.#network.ring.unregister(this.#token)
      close(this.#fd)
      return
    }
    // Out of descriptors or memory: give others time to release some instead of failing in a loop.
    if (result < 0) this.#network.host.clock.after(100, () => this.#arm())
    else this.#arm()
  }

  #arm(): void {
    if (this.#closing) {
      this.complete(-ECANCELED, 0)
      return
    }
    const SOCK_CLOEXEC = 0o2000000
    this.#network.ring.prepare(Opcode.ACCEPT, this.#fd, 0, 0, 0, SOCK_CLOEXEC, this.#token, ACCEPT_MULTISHOT)
  }
}
