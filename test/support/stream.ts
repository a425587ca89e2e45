/**
 * A network in memory, polled by hand. Bytes go through a bounded pipe each way; a seeded generator decides in which
 * pieces they arrive, so that a run can be repeated. The far end of a connection is either another stream or a `Peer`,
 * which a test drives directly.
 */
import { Prng } from '../../src/core/prng.ts'
import type { Listener, Network, SocketAddress, Stream, StreamEvents } from '../../src/reactor/network.ts'
import { bytesAt, viewAt } from '../../src/sys/memory.ts'

const ECANCELED = 125
const ECONNREFUSED = 111
const IOVEC_SIZE = 16

/** How many of `available` bytes go over at once: at least one. */
export type Fragmentation = (available: number) => number

export const whole: Fragmentation = available => available
export const byteByByte: Fragmentation = () => 1

export function fragmentedBy(seed: number): Fragmentation {
  const prng = new Prng(seed)
  return available => prng.between(1, prng.oneIn(2) ? Math.min(available, 100) : available)
}

/** One direction: what was sent and not yet received. */
class Pipe {
  readonly capacity: number
  bytes = new Uint8Array(0)
  isEnded = false

  constructor(capacity: number) {
    this.capacity = capacity
  }

  get room(): number {
    return this.capacity - this.bytes.length
  }

  write(bytes: Uint8Array): void {
    const joined = new Uint8Array(this.bytes.length + bytes.length)
    joined.set(this.bytes)
    joined.set(bytes, this.bytes.length)
    this.bytes = joined
  }

  read(size: number): Uint8Array {
    const taken = this.bytes.slice(0, size)
    this.bytes = this.bytes.slice(size)
    return taken
  }
}

interface Place {
  address: number
  size: number
}

class MemoryStream implements Stream {
  readonly local: SocketAddress
  readonly remote: SocketAddress
  readonly #incoming: Pipe
  readonly #outgoing: Pipe
  readonly #fragmentation: Fragmentation
  readonly #events: StreamEvents
  #receiving: Place[] | null = null
  #sending: Place[] | null = null
  #sentBytes = 0
  #isClosing = false
  #isClosed = false

  constructor(
    events: StreamEvents,
    incoming: Pipe,
    outgoing: Pipe,
    addresses: { local: SocketAddress; remote: SocketAddress },
    fragmentation: Fragmentation,
  ) {
    this.#events = events
    this.#incoming = incoming
    this.#outgoing = outgoing
    this.local = addresses.local
    this.remote = addresses.remote
    this.#fragmentation = fragmentation
  }

  receive(address: number, size: number): void {
    this.#receiveInto([{ address, size }])
  }

  receiveSplit(address: number, size: number, nextAddress: number, nextSize: number): void {
    this.#receiveInto([
      { address, size },
      { address: nextAddress, size: nextSize },
    ])
  }

  #receiveInto(places: Place[]): void {
    if (this.#receiving !== null) throw new Error('one receive is outstanding at a time')
    if (places.some(({ size }) => size <= 0)) throw new Error('a receive has room for at least one byte')
    this.#receiving = places
  }

  send(iovecs: number, count: number): void {
    if (this.#sending !== null) throw new Error('one send is outstanding at a time')
    if (count < 1 || count > 1024) throw new Error(`the kernel refuses ${count} iovecs`)
    const view = viewAt(iovecs, count * IOVEC_SIZE)
    this.#sending = []
    this.#sentBytes = 0
    for (let at = 0; at < count * IOVEC_SIZE; at += IOVEC_SIZE) {
      const address = Number(view.getBigUint64(at, true))
      this.#sending.push({ address, size: Number(view.getBigUint64(at + 8, true)) })
    }
  }

  close(): void {
    this.#isClosing = true
  }

  get isOver(): boolean {
    return this.#isClosed
  }

  /** Moves bytes and tells of what has ended. Returns the number of events. */
  poll(): number {
    if (this.#isClosed) return 0
    if (this.#isClosing) return this.#pollClosing()
    return this.#pollSend() + this.#pollReceive()
  }

  #pollClosing(): number {
    this.#isClosed = true
    this.#outgoing.isEnded = true
    if (this.#receiving !== null) this.#events.onReceived(-ECANCELED)
    if (this.#sending !== null) this.#events.onSent(-ECANCELED)
    this.#events.onClosed()
    return 1
  }

  #pollSend(): number {
    const places = this.#sending
    if (places === null) return 0
    while (places.length > 0 && this.#outgoing.room > 0) {
      const place = places[0]!
      const size = Math.min(place.size, this.#outgoing.room)
      this.#outgoing.write(bytesAt(place.address, size))
      place.address += size
      place.size -= size
      this.#sentBytes += size
      if (place.size === 0) places.shift()
    }
    if (places.length > 0) return 0
    this.#sending = null
    this.#events.onSent(this.#sentBytes)
    return 1
  }

  #pollReceive(): number {
    const places = this.#receiving
    if (places === null) return 0
    if (this.#incoming.bytes.length === 0) {
      if (!this.#incoming.isEnded) return 0
      this.#receiving = null
      this.#events.onReceived(0)
      return 1
    }
    const room = places.reduce((sum, { size }) => sum + size, 0)
    const bytes = this.#incoming.read(this.#fragmentation(Math.min(room, this.#incoming.bytes.length)))
    let from = 0
    for (const { address, size } of places) {
      const part = bytes.subarray(from, from + size)
      bytesAt(address, size).set(part)
      from += part.length
    }
    this.#receiving = null
    this.#events.onReceived(bytes.length)
    return 1
  }
}

/** The far end of a connection, in the test's hand. */
export class Peer {
  readonly #incoming: Pipe
  readonly #outgoing: Pipe

  constructor(incoming: Pipe, outgoing: Pipe) {
    this.#incoming = incoming
    this.#outgoing = outgoing
  }

  send(bytes: Uint8Array): void {
    this.#outgoing.write(bytes)
  }

  /** Takes up to `size` bytes out of the pipe. */
  take(size = Number.POSITIVE_INFINITY): Uint8Array {
    return this.#incoming.read(Math.min(size, this.#incoming.bytes.length))
  }

  /** Bytes that wait to be taken. */
  get waiting(): number {
    return this.#incoming.bytes.length
  }

  /** The other side has closed and everything was taken. */
  get sawEnd(): boolean {
    return this.#incoming.isEnded && this.#incoming.bytes.length === 0
  }

  close(): void {
    this.#outgoing.isEnded = true
  }
}

interface End {
  readonly incoming: Pipe
  readonly outgoing: Pipe
  readonly local: SocketAddress
  readonly remote: SocketAddress
}

export interface MemoryNetworkOptions {
  readonly fragmentation?: Fragmentation
  /** Bytes that fit into each direction of a connection. */
  readonly capacity?: number
}

export class MemoryNetwork implements Network {
  readonly #fragmentation: Fragmentation
  readonly #capacity: number
  readonly #ends = new Map<number, End>()
  readonly #streams: MemoryStream[] = []
  readonly #listeners = new Map<string, (socket: number) => void>()
  #nextSocket = 1
  #nextPort = 40_000

  constructor({ fragmentation = whole, capacity = 1 << 22 }: MemoryNetworkOptions = {}) {
    this.#fragmentation = fragmentation
    this.#capacity = capacity
  }

  /** A poller: one step of every stream. */
  readonly poll = (): number => {
    let events = 0
    for (const stream of [...this.#streams]) {
      events += stream.poll()
      if (stream.isOver) this.#streams.splice(this.#streams.indexOf(stream), 1)
    }
    return events
  }

  /** Streams that are not closed. */
  get openStreams(): number {
    return this.#streams.length
  }

  /** A connected socket for `adopt`, and its far end. */
  dial(): { socket: number; peer: Peer } {
    const { near, far } = this.#connectPipes({ host: '127.0.0.1', port: 4420 })
    const socket = this.#nextSocket++
    this.#ends.set(socket, near)
    return { socket, peer: new Peer(far.incoming, far.outgoing) }
  }

  #connectPipes(local: SocketAddress): { near: End; far: End } {
    const toNear = new Pipe(this.#capacity)
    const toFar = new Pipe(this.#capacity)
    const remote = { host: '127.0.0.1', port: this.#nextPort++ }
    return {
      near: { incoming: toNear, outgoing: toFar, local, remote },
      far: { incoming: toFar, outgoing: toNear, local: remote, remote: local },
    }
  }

  adopt(socket: number, events: StreamEvents): Stream {
    return this.#open(this.#takeEnd(socket), events)
  }

  /** As `adopt`, for a test that plays the accepting side itself. */
  accept(socket: number): Peer {
    const { incoming, outgoing } = this.#takeEnd(socket)
    return new Peer(incoming, outgoing)
  }

  #takeEnd(socket: number): End {
    const end = this.#ends.get(socket)
    if (end === undefined) throw new Error(`socket ${socket} is not one to adopt`)
    this.#ends.delete(socket)
    return end
  }

  #open(end: End, events: StreamEvents): Stream {
    const stream = new MemoryStream(events, end.incoming, end.outgoing, end, this.#fragmentation)
    this.#streams.push(stream)
    return stream
  }

  connect(
    remote: SocketAddress,
    _source: SocketAddress | undefined,
    _timeoutMs: number,
    events: StreamEvents,
    done: (stream: Stream | undefined, errno: number) => void,
  ): () => void {
    let isGivenUp = false
    queueMicrotask(() => {
      if (isGivenUp) return done(undefined, ECANCELED)
      const onSocket = this.#listeners.get(`${remote.host}:${remote.port}`)
      if (onSocket === undefined) return done(undefined, ECONNREFUSED)
      const { near, far } = this.#connectPipes(remote)
      const socket = this.#nextSocket++
      this.#ends.set(socket, near)
      onSocket(socket)
      done(this.#open(far, events), 0)
    })
    return () => {
      isGivenUp = true
    }
  }

  listen(address: SocketAddress, _backlog: number, onSocket: (socket: number) => void): Listener {
    const bound = { host: address.host, port: address.port === 0 ? this.#nextPort++ : address.port }
    const key = `${bound.host}:${bound.port}`
    this.#listeners.set(key, onSocket)
    return { address: bound, close: () => this.#listeners.delete(key) }
  }
}
