/**
 * Byte streams as a polled program sees them. The real network drives sockets through io_uring; the simulation's
 * copies bytes between the two ends as its seed decides. Addresses are (host, port), with IPv6 in its plain form.
 */

/** What a stream tells its owner: from the reactor's round, never from inside a call to the stream. */
export interface StreamEvents {
  /** A receive ended: with that many bytes, 0 when the peer has closed its side, or -errno. */
  onReceived(result: number): void
  /** A send ended: everything was taken (> 0), or -errno. */
  onSent(result: number): void
  /** After `close()`: no operation is outstanding, so buffers may be used again. Called exactly once. */
  onClosed(): void
}

/** One connection. At most one receive and one send are outstanding at a time. */
export interface Stream {
  readonly local: SocketAddress
  readonly remote: SocketAddress
  /** Receives at least one byte into [address, address + size). */
  receive(address: number, size: number): void
  /** Receives into two places, the second after the first is full: data to where it belongs, what follows to a buffer. */
  receiveSplit(address: number, size: number, nextAddress: number, nextSize: number): void
  /**
   * Sends everything in `count` iovecs (`struct iovec`: address and length, 8 bytes each) at `iovecs`. The iovecs and
   * what they name must stay as they are until `onSent`; the stream may change the iovecs themselves.
   */
  send(iovecs: number, count: number): void
  /** Ends outstanding operations (their events are still told, with an error), then the connection. Idempotent. */
  close(): void
}

export interface SocketAddress {
  /** An IPv4 or IPv6 address, or the path of a Unix socket. */
  readonly host: string
  /** 0 for a Unix socket. */
  readonly port: number
}

export interface Listener {
  readonly address: SocketAddress
  close(): void
}

export interface Network {
  /**
   * Takes a connected socket that another thread accepted. `socket` is what `listen` handed out: a file descriptor in
   * the real network.
   */
  adopt(socket: number, events: StreamEvents): Stream
  /**
   * Starts to connect, from `source` when it is given. `done` hears the stream, or the positive errno (ETIMEDOUT after
   * `timeoutMs`). The returned function gives up early; `done` is then told ECANCELED.
   *
   * What the peer has not taken when such a stream is closed is not sent any more: it is the requests of one who may send
   * them elsewhere meanwhile. (An adopted stream's, which are answers, arrive after the close as well.)
   */
  connect(
    remote: SocketAddress,
    source: SocketAddress | undefined,
    timeoutMs: number,
    events: StreamEvents,
    done: (stream: Stream | undefined, errno: number) => void,
  ): () => void
  /**
   * Hands each accepted socket to `onSocket`, which passes it to `adopt` on the reactor that is to own it. Throws
   * `SysError` when the address cannot be bound (EADDRINUSE, EADDRNOTAVAIL …). Port 0 picks a free one.
   */
  listen(address: SocketAddress, backlog: number, onSocket: (socket: number) => void): Listener
}
