/**
 * One client: handshake, then transmission, over a stream of the reactor's network.
 *
 *   negotiating --GO--> transmitting --DISC, export stopped--> draining --all answered--> closed
 *        |                   |                                    |
 *        +-------------------+------ end of stream, misbehaviour, deadline -----------> closed
 *
 * What arrives is parsed in place in one receive buffer. All that is to be sent, and the next receive, is started once a
 * round by `flush`.
 */
import type { Timer } from '../core/clock.ts'
import type { Logger } from '../core/log.ts'
import type { Stream, StreamEvents } from '../reactor/network.ts'
import type { Flushable, Reactor } from '../reactor/reactor.ts'
import { formatAddress } from '../sys/socket.ts'
import { Negotiation, type Offer } from './negotiation.ts'
import { Output } from './output.ts'
import type { ServedExport } from './reactor-server.ts'
import type { RequestPool } from './request.ts'
import { Transmission, type TransmissionHost } from './transmission.ts'

const RECEIVE_SIZE = 65536
const IOVECS_SIZE = 4096
const STAGING_SIZE = 16384
/** Unsent answers of the handshake beyond which no more options are read, in bytes. */
const UNSENT_MAX = 65536
/** A client that has not come to an agreement after this long is cut off. */
const NEGOTIATION_MS = 30_000
/** A client that does not take its last replies for this long is cut off. */
const DRAIN_MS = 2000

/** The server around it. */
export interface ConnectionHost {
  readonly reactor: Reactor
  readonly pool: RequestPool
  readonly log: Logger
  /** Wants `retry()` in a later round. */
  starve(connection: Connection): void
  /** The connection is over and holds nothing any more. */
  ended(connection: Connection): void
}

export class Connection implements StreamEvents, Flushable, TransmissionHost {
  readonly listenerId: number
  readonly #host: ConnectionHost
  readonly #reactor: Reactor
  readonly #stream: Stream
  readonly #negotiation: Negotiation<ServedExport>
  readonly #timer: Timer
  #drainTimer: Timer | null = null
  #transmission: Transmission | null = null
  readonly #output: Output | null = null

  // The receive buffer, in offsets of the arena: [start, end) is not parsed yet.
  readonly #buffer: number
  readonly #bufferAt: number
  #start: number
  #end: number
  #isReceiving = false
  /** How much of the receive in progress goes to a write's own buffer, first. */
  #direct = 0

  readonly #iovecs: number
  #isSending = false
  // Answers of the handshake: gathered here, then copied to a staging buffer.
  readonly #replies: Uint8Array[] = []
  #unsent = 0
  #staging: number

  #isDirty = false
  #isDraining = false
  #isClosing = false
  #isClosed = false
  #isEnded = false

  constructor(host: ConnectionHost, socket: number, listenerId: number, offer: Offer<ServedExport>) {
    const { reactor } = host
    const { buffers, arena } = reactor
    this.#host = host
    this.#reactor = reactor
    this.listenerId = listenerId
    this.#buffer = buffers.acquire(RECEIVE_SIZE)
    this.#iovecs = buffers.acquire(IOVECS_SIZE)
    this.#staging = buffers.acquire(STAGING_SIZE)
    this.#bufferAt = arena.offsetOf(this.#buffer)
    this.#start = this.#bufferAt
    this.#end = this.#bufferAt
    this.#stream = reactor.network.adopt(socket, this)
    this.#negotiation = new Negotiation(offer, bytes => this.#reply(bytes))
    this.#timer = reactor.clock.after(NEGOTIATION_MS, () =>
      this.fail(`no agreement after ${NEGOTIATION_MS / 1000} seconds`),
    )
    if (this.#buffer === 0 || this.#iovecs === 0 || this.#staging === 0) {
      this.fail('no buffers are left on this reactor')
      return
    }
    this.#output = new Output(arena, this.#iovecs, IOVECS_SIZE)
    this.wake()
  }

  /** What it was let in to; null while it still negotiates. */
  get export(): ServedExport | null {
    return this.#transmission === null ? null : this.#negotiation.export
  }

  /** Refuses what comes now, answers what is in flight, then ends. */
  shutDown(): void {
    if (this.#transmission === null) {
      this.fail('its export is gone')
      return
    }
    this.#transmission.isShutDown = true
    this.#drainLater()
    this.wake()
  }

  /** There may be buffers again. */
  retry(): void {
    this.wake()
  }

  onReceived(result: number): void {
    this.#isReceiving = false
    if (this.#isClosing) return
    if (result <= 0) {
      this.#lost(result)
      return
    }
    const direct = Math.min(this.#direct, result)
    this.#direct = 0
    this.#end += result - direct
    if (direct > 0) this.#transmission!.received(direct)
    this.#advance()
    this.wake()
  }

  onSent(result: number): void {
    this.#isSending = false
    if (this.#transmission !== null) this.#transmission.sent(this.#output!.takeSent())
    if (this.#isClosing) return
    if (result < 0) this.#lost(result)
    else this.wake()
  }

  onClosed(): void {
    this.#isClosed = true
    this.#transmission?.abandon()
    this.#endIfIdle()
  }

  wake(): void {
    if (this.#isClosed) this.#endIfIdle()
    if (this.#isDirty || this.#isClosed) return
    this.#isDirty = true
    this.#reactor.flushLater(this)
  }

  starve(): void {
    if (!this.#isClosing) this.#host.starve(this)
  }

  warn(message: string): void {
    this.#host.log.warning(`${this.#name}: ${message}`)
  }

  fail(reason: string): void {
    if (this.#isClosing) return
    this.warn(`cut off: ${reason}`)
    this.#close()
  }

  drain(): void {
    this.#isDraining = true
    this.#drainLater()
    this.wake()
  }

  flush(): void {
    this.#isDirty = false
    if (this.#isClosing) return
    if (this.#transmission?.isStalled) this.#advance()
    if (!this.#isSending) this.#send()
    if (this.#isClosing) return
    if (this.#isAnswered()) this.#close()
    else if (!this.#isReceiving) this.#receive()
  }

  get #name(): string {
    const { remote, local } = this.#stream
    const who = remote.host === '' ? `a client of ${local.host}` : `client ${formatAddress(remote)}`
    const { export: found } = this.#negotiation
    return found === null ? who : `${who}, export "${found.name}"`
  }

  /** Parses what is there, as far as it goes. */
  #advance(): void {
    const { view } = this.#reactor.arena
    if (this.#transmission === null && !this.#isDraining) {
      this.#start = this.#negotiation.take(view, this.#start, this.#end)
      if (this.#negotiation.state === 'agreed') this.#transmit()
      else if (this.#negotiation.state === 'over') this.#leave()
    }
    if (this.#transmission !== null && !this.#isDraining && !this.#isClosing) {
      this.#start = this.#transmission.take(this.#start, this.#end)
    }
  }

  #transmit(): void {
    this.#timer.cancel()
    const { export: found, structuredReplies, baseAllocation } = this.#negotiation
    const { info, readOnly, channel } = found!
    const { arena, buffers } = this.#reactor
    this.#transmission = new Transmission({
      host: this,
      terms: { info, readOnly, structuredReplies, baseAllocation },
      channel,
      arena,
      buffers,
      pool: this.#host.pool,
      output: this.#output!,
    })
    this.#host.log.info(`${this.#name}: connected`)
    if (found!.isGone) this.shutDown()
  }

  /** The handshake ended without an agreement. */
  #leave(): void {
    if (this.#negotiation.reason !== '') this.warn(`not let in: ${this.#negotiation.reason}`)
    this.drain()
  }

  /** The peer ended its side, or the connection broke. */
  #lost(result: number): void {
    const isMidway = this.#end > this.#start || (this.#transmission?.wantedBytes ?? 0) > 0
    if (result < 0 || isMidway) {
      this.#host.log.info(`${this.#name}: left ${isMidway ? 'in the middle of a message' : `(${result})`}`)
    }
    this.#close()
  }

  #reply(bytes: Uint8Array): void {
    this.#replies.push(bytes)
    this.#unsent += bytes.length
  }

  #send(): void {
    if (this.#unsent > 0) {
      this.#sendReplies()
      return
    }
    if (this.#transmission === null) return
    if (this.#staging !== 0) {
      this.#reactor.buffers.release(this.#staging, STAGING_SIZE)
      this.#staging = 0
    }
    const count = this.#output!.build()
    if (count === 0) return
    this.#isSending = true
    this.#stream.send(this.#iovecs, count)
  }

  #sendReplies(): void {
    const { arena } = this.#reactor
    let room = STAGING_SIZE
    let at = arena.offsetOf(this.#staging)
    const start = at
    for (let reply = this.#replies[0]; reply !== undefined && room > 0; reply = this.#replies[0]) {
      const part = reply.subarray(0, room)
      arena.u8.set(part, at)
      at += part.length
      room -= part.length
      if (part.length < reply.length) this.#replies[0] = reply.subarray(part.length)
      else this.#replies.shift()
    }
    this.#unsent -= at - start
    const iovecsAt = arena.offsetOf(this.#iovecs)
    arena.view.setUint32(iovecsAt, this.#staging % 2 ** 32, true)
    arena.view.setUint32(iovecsAt + 4, this.#staging / 2 ** 32, true)
    arena.view.setUint32(iovecsAt + 8, at - start, true)
    arena.view.setUint32(iovecsAt + 12, 0, true)
    this.#isSending = true
    this.#stream.send(this.#iovecs, 1)
  }

  /** Starts the next receive, if more is wanted: a write's data goes where it belongs. */
  #receive(): void {
    const transmission = this.#transmission
    if (this.#isDraining || transmission?.isStalled || this.#unsent > UNSENT_MAX) return
    const kept = this.#end - this.#start
    if (this.#start > this.#bufferAt) {
      // The beginning of a message: moved to the front, so that the rest fits behind it.
      if (kept > 0) this.#reactor.arena.u8.copyWithin(this.#bufferAt, this.#start, this.#end)
      this.#start = this.#bufferAt
      this.#end = this.#bufferAt + kept
    }
    this.#isReceiving = true
    const address = this.#buffer + kept
    const room = RECEIVE_SIZE - kept
    const wanted = transmission === null ? 0 : transmission.wantedBytes
    if (wanted === 0) {
      this.#stream.receive(address, room)
      return
    }
    this.#direct = wanted
    this.#stream.receiveSplit(transmission!.wantedAddress, wanted, address, room)
  }

  /** Whether the end has come: everything answered, nothing more expected. */
  #isAnswered(): boolean {
    const transmission = this.#transmission
    const isEnding = this.#isDraining || (transmission?.isShutDown ?? false)
    if (!isEnding || this.#isSending || this.#unsent > 0) return false
    return transmission === null || transmission.commandCount === 0
  }

  #drainLater(): void {
    this.#drainTimer ??= this.#reactor.clock.after(DRAIN_MS, () =>
      this.fail(`its last replies were not taken within ${DRAIN_MS / 1000} seconds`),
    )
  }

  #close(): void {
    if (this.#isClosing) return
    this.#isClosing = true
    this.#timer.cancel()
    this.#drainTimer?.cancel()
    this.#stream.close()
  }

  #endIfIdle(): void {
    if (this.#transmission !== null && this.#transmission.commandCount > 0) return
    if (this.#isEnded) return
    this.#isEnded = true
    const { buffers } = this.#reactor
    if (this.#buffer !== 0) buffers.release(this.#buffer, RECEIVE_SIZE)
    if (this.#iovecs !== 0) buffers.release(this.#iovecs, IOVECS_SIZE)
    if (this.#staging !== 0) buffers.release(this.#staging, STAGING_SIZE)
    this.#host.ended(this)
  }
}
