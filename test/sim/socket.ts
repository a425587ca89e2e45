/**
 * One end of a simulated TCP connection: a kernel's socket and, once it is adopted, the stream over it.
 *
 *   send: memory --pump--> wire: segments on their way --link--> inbox of the other end --> receive: memory
 *
 * What was taken from the sender's memory arrives even after the sender has crashed or lost interest, as long as the link
 * lets it through: that is what TCP does, and what makes an old command land late. The end that connected sends nothing
 * again once it is closed (SO_LINGER 0): what the link has held back until then never arrives.
 */
import type { Prng } from '../../src/core/prng.ts'
import type { SocketAddress, Stream, StreamEvents } from '../../src/reactor/network.ts'
import { bytesAt, viewAt } from '../../src/sys/memory.ts'
import type { SimClock } from './clock.ts'
import type { Link } from './link.ts'

export const Errno = {
  EPIPE: 32,
  EADDRINUSE: 98,
  EADDRNOTAVAIL: 99,
  ECONNRESET: 104,
  ETIMEDOUT: 110,
  ECONNREFUSED: 111,
  ECANCELED: 125,
} as const

const IOVEC_SIZE = 16
const IOV_MAX = 1024

type Segment =
  | { readonly kind: 'data'; readonly bytes: Uint8Array; dueUs: number }
  | { readonly kind: 'fin' | 'reset'; dueUs: number }

interface Place {
  address: number
  size: number
}

/** What a socket needs of its network. */
export interface SocketHost {
  /** The socket has something to tell: its `poll` is wanted in the reactor's round. */
  markReady(socket: SimSocket): void
}

/** What a socket needs of the machine it is on. */
export interface SocketMachine {
  readonly isUp: boolean
  whenUp(go: () => void): void
  forget(socket: SimSocket): void
}

export interface SocketParts {
  readonly clock: SimClock
  readonly prng: Prng
  readonly machine: SocketMachine
  readonly link: Link
  readonly local: SocketAddress
  readonly remote: SocketAddress
  /** It connected: see `Network.connect`. */
  readonly dropsUnsent: boolean
  /** Bytes that may be on their way or unread at the other end. */
  readonly capacity: number
  readonly segmentMax: number
  /** A fault of the simulation itself, to prove that it is noticed: one in so many segments arrives twice. */
  readonly duplicates: number
}

export class SimSocket implements Stream {
  readonly local: SocketAddress
  readonly remote: SocketAddress
  /** The other end. */
  peer!: SimSocket
  isReady = false

  readonly #parts: SocketParts
  #host: SocketHost | null = null
  #events: StreamEvents | null = null
  readonly #wire: Segment[] = []
  #lastDueUs = 0
  #isWaitingForLink = false
  /** Bytes that the other end has not read yet. */
  #unreadBytes = 0
  readonly #inbox: Uint8Array[] = []
  #inboxBytes = 0
  #isEnded = false
  #isReset = false
  #receiving: Place[] | null = null
  #sending: Place[] | null = null
  #sentBytes = 0
  /** What was taken from memory by the present send, to see that it is left alone until the end. */
  #taken: { readonly address: number; readonly bytes: Uint8Array }[] = []
  /** Everything was taken, and the sender may be told. */
  #isSent = false
  #isClosing = false
  /** No program has it any more. */
  isGone = false

  constructor(parts: SocketParts) {
    this.#parts = parts
    this.local = parts.local
    this.remote = parts.remote
  }

  /** A reactor takes the socket over. */
  attach(host: SocketHost, events: StreamEvents): void {
    this.#host = host
    this.#events = events
    this.#wake()
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
    if (this.#receiving !== null || this.#isClosing)
      throw new Error('one receive at a time, on an open stream')
    if (places.some(({ size }) => size <= 0)) throw new Error('a receive has room for at least one byte')
    this.#receiving = places
    this.#wake()
  }

  send(iovecs: number, count: number): void {
    if (this.#sending !== null || this.#isClosing) throw new Error('one send at a time, on an open stream')
    if (count < 1 || count > IOV_MAX) throw new Error(`a send has 1 to ${IOV_MAX} iovecs, not ${count}`)
    const view = viewAt(iovecs, count * IOVEC_SIZE)
    this.#sending = []
    this.#sentBytes = 0
    this.#taken = []
    this.#isSent = false
    for (let at = 0; at < count * IOVEC_SIZE; at += IOVEC_SIZE) {
      const address = view.getUint32(at, true) + view.getUint32(at + 4, true) * 2 ** 32
      this.#sending.push({ address, size: view.getUint32(at + 8, true) })
    }
    this.#pump()
    this.#wake()
  }

  close(): void {
    if (this.#isClosing) return
    this.#isClosing = true
    this.#wake()
  }

  /** What the reactor is told in its round. Returns the number of events. */
  poll(): number {
    if (this.isGone) return 0
    let events = 0
    const sendFirst = this.#parts.prng.oneIn(2)
    for (let i = 0; i < 2 && !this.#isClosing; i++) {
      events += (i === 0) === sendFirst ? this.#pollSend() : this.#pollReceive()
    }
    return this.#isClosing ? events + this.#pollClosing() : events
  }

  #pollSend(): number {
    if (this.#sending === null) return 0
    if (!this.#isReset && !this.#isSent) return 0
    this.#sending = null
    for (const { address, bytes } of this.#taken) {
      if (Buffer.compare(bytesAt(address, bytes.length), bytes) === 0) continue
      throw new Error('memory changed between send and onSent')
    }
    this.#events!.onSent(this.#isReset ? -Errno.EPIPE : this.#sentBytes)
    return 1
  }

  #pollReceive(): number {
    if (this.#receiving === null) return 0
    let result = 0
    if (this.#inboxBytes > 0) result = this.#read(this.#receiving)
    else if (this.#isReset) result = -Errno.ECONNRESET
    else if (!this.#isEnded) return 0
    this.#receiving = null
    this.#events!.onReceived(result)
    if (this.#receiving !== null) this.#wake()
    return 1
  }

  /** Operations that are outstanding end in one way or another, as the kernel races with the close. */
  #pollClosing(): number {
    const { prng } = this.#parts
    if (this.#receiving !== null) {
      const places = this.#receiving
      this.#receiving = null
      const races = this.#inboxBytes > 0 && prng.oneIn(4)
      this.#events!.onReceived(races ? this.#read(places) : prng.oneIn(2) ? 0 : -Errno.ECANCELED)
      this.#wake()
      return 1
    }
    if (this.#sending !== null) {
      const isDone = this.#sending.length === 0
      this.#sending = null
      this.#events!.onSent(isDone ? this.#sentBytes : prng.oneIn(2) ? -Errno.EPIPE : -Errno.ECANCELED)
      this.#wake()
      return 1
    }
    this.#leave()
    this.#events!.onClosed()
    return 1
  }

  /** Somebody in between resets the connection: what was on its way is lost, and both ends hear of it. */
  sever(): void {
    for (const end of [this as SimSocket, this.peer]) {
      end.#isReset = true
      end.#wire.length = 0
      end.#wake()
    }
  }

  /** The program is gone: so is the socket, and the kernel tells the other end. */
  abandon(): void {
    this.#leave()
  }

  /** The machine is gone, without a word. `takesWire`: what was on its way is lost, too. */
  vanish(takesWire: boolean): void {
    this.isGone = true
    if (takesWire) this.#wire.length = 0
  }

  #leave(): void {
    if (this.isGone) return
    const { dropsUnsent, link, machine, prng } = this.#parts
    const isRude = this.#inboxBytes > 0 && prng.oneIn(2)
    this.isGone = true
    this.#inbox.length = 0
    machine.forget(this)
    if (this.#isReset) return
    // The reset itself is lost like everything else.
    if (dropsUnsent && (link.isCut || this.#isWaitingForLink)) this.#wire.length = 0
    else this.#transmit({ kind: dropsUnsent || isRude ? 'reset' : 'fin', dueUs: 0 })
  }

  #read(places: Place[]): number {
    const { prng } = this.#parts
    const room = places.reduce((sum, { size }) => sum + size, 0)
    let left = Math.min(room, this.#inboxBytes)
    if (prng.oneIn(3)) left = prng.between(1, prng.oneIn(2) ? Math.min(left, 100) : left)
    const total = left
    for (const place of places) {
      let { address, size } = place
      while (left > 0 && size > 0) {
        const chunk = this.#inbox[0]!
        const part = Math.min(left, size, chunk.length)
        bytesAt(address, part).set(chunk.subarray(0, part))
        if (part === chunk.length) this.#inbox.shift()
        else this.#inbox[0] = chunk.subarray(part)
        address += part
        size -= part
        left -= part
      }
    }
    this.#inboxBytes -= total
    this.peer.#wasRead(total)
    return total
  }

  /** The other end has read: there is room again, once this end hears of it. */
  #wasRead(bytes: number): void {
    this.#unreadBytes -= bytes
    const back = this.peer.#parts.link
    if (back.isCut) back.whenWhole(() => this.#pump())
    else this.#pump()
  }

  /** Takes from memory what there is room for. */
  #pump(): void {
    const places = this.#sending
    if (places === null || this.isGone || this.#isReset) return
    const { capacity, segmentMax, prng } = this.#parts
    while (places.length > 0 && this.#unreadBytes < capacity) {
      const sizeMax = Math.min(capacity - this.#unreadBytes, segmentMax)
      const bytes = new Uint8Array(prng.oneIn(4) ? prng.between(1, sizeMax) : sizeMax)
      let filled = 0
      while (places.length > 0 && filled < bytes.length) {
        const place = places[0]!
        const part = Math.min(place.size, bytes.length - filled)
        bytes.set(bytesAt(place.address, part), filled)
        this.#taken.push({ address: place.address, bytes: bytes.subarray(filled, filled + part) })
        filled += part
        place.address += part
        place.size -= part
        if (place.size === 0) places.shift()
      }
      this.#sentBytes += filled
      this.#unreadBytes += filled
      this.#transmit({ kind: 'data', bytes: bytes.subarray(0, filled), dueUs: 0 })
    }
    if (places.length > 0) return
    // The kernel tells the sender when it likes, perhaps after the peer has answered.
    const { clock } = this.#parts
    const tell = (): void => {
      if (this.#sending !== places) return
      this.#isSent = true
      this.#wake()
    }
    if (prng.oneIn(4)) clock.after(prng.between(1, 1000), tell)
    else tell()
  }

  #transmit(segment: Segment): void {
    const { clock, link, prng, duplicates } = this.#parts
    const size = segment.kind === 'data' ? segment.bytes.length : 0
    segment.dueUs = Math.max(this.#lastDueUs, clock.nowUs + link.takesUs(size))
    this.#lastDueUs = segment.dueUs
    this.#wire.push(segment)
    if (duplicates > 0 && segment.kind === 'data' && prng.oneIn(duplicates)) this.#wire.push(segment)
    clock.after(segment.dueUs - clock.nowUs, this.#arrive)
  }

  /** Hands over what is due, in order. */
  readonly #arrive = (): void => {
    const { link, clock } = this.#parts
    const { peer } = this
    // Rounding may make a segment due a hair after the timer that was set for it.
    while (this.#wire.length > 0 && this.#wire[0]!.dueUs <= clock.nowUs + 0.001) {
      if (link.isCut || !peer.#parts.machine.isUp) {
        this.#waitForLink()
        return
      }
      peer.#arrived(this.#wire.shift()!)
    }
  }

  #waitForLink(): void {
    if (this.#isWaitingForLink) return
    this.#isWaitingForLink = true
    const go = (): void => {
      this.#isWaitingForLink = false
      this.#arrive()
    }
    const { link } = this.#parts
    if (link.isCut) link.whenWhole(go)
    else this.peer.#parts.machine.whenUp(go)
  }

  #arrived(segment: Segment): void {
    if (this.isGone) {
      // Nobody has the socket any more: data is answered with a reset.
      if (segment.kind === 'data') this.#transmit({ kind: 'reset', dueUs: 0 })
      return
    }
    if (segment.kind === 'data') {
      this.#inbox.push(segment.bytes)
      this.#inboxBytes += segment.bytes.length
    } else if (segment.kind === 'fin') {
      this.#isEnded = true
    } else {
      this.#isReset = true
      this.#wire.length = 0
    }
    this.#wake()
  }

  #wake(): void {
    this.#host?.markReady(this)
  }
}
