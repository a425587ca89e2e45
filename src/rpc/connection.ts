/** One client of the JSON-RPC server: its stream of requests, and its answers in the order of the requests. */
import type { Socket } from 'node:net'
import { ProtocolError } from '../core/errors.ts'
import { logger } from '../core/log.ts'
import { encodeFailure, type Responder, RpcSession } from './dispatcher.ts'
import { JsonScanner, REQUEST_LIMITS } from './json-scanner.ts'

const log = logger('rpc')

/** Requests of one client that may be under way; further ones wait in its socket. */
const PENDING_MAX = 64
/** What may lie in memory for a client that does not read its answers. */
const UNREAD_SIZE_MAX = 32 * 1024 * 1024

export class RpcConnection {
  readonly #socket: Socket
  readonly #dispatcher: Responder
  readonly #session = new RpcSession()
  readonly #scanner = new JsonScanner(REQUEST_LIMITS)
  #pending = 0
  /** Settles when everything before has been answered, so that each answer waits for its turn. */
  #answered: Promise<void> = Promise.resolve()
  #ending = false

  constructor(socket: Socket, dispatcher: Responder) {
    this.#socket = socket
    this.#dispatcher = dispatcher
    socket.on('data', chunk => this.#receive(chunk))
    // A client may send, shut its side down and then read: answer what it asked before the socket is closed.
    socket.on('end', () => this.endWhenAnswered())
    socket.on('error', error => log.debug(`a client's connection failed: ${error.message}`))
  }

  /** Takes no more requests, and ends the connection when those so far have been answered. */
  endWhenAnswered(): void {
    this.#ending = true
    void this.#answered.then(() => this.#socket.destroySoon())
  }

  destroy(): void {
    this.#socket.destroy()
  }

  #receive(chunk: Uint8Array): void {
    if (this.#ending) return
    try {
      this.#scanner.feed(chunk, text => this.#accept(text))
    } catch (error) {
      if (!(error instanceof ProtocolError)) throw error
      log.info(`a client is disconnected: ${error.message} (byte ${error.offsetBytes} of its stream)`)
      this.#send(encodeFailure(error))
      // Nothing in such a stream says where the next request begins.
      this.endWhenAnswered()
    }
  }

  #accept(text: string): void {
    this.#pending++
    if (this.#pending === PENDING_MAX) this.#socket.pause()
    const answer = this.#dispatcher.respond(text, this.#session)
    const before = this.#answered
    this.#answered = (async () => {
      const encoded = await answer
      await before
      if (encoded !== undefined) this.#write(encoded)
      this.#pending--
      if (this.#pending === PENDING_MAX - 1) this.#socket.resume()
    })()
  }

  #send(encoded: string): void {
    this.#answered = this.#answered.then(() => this.#write(encoded))
  }

  #write(encoded: string): void {
    const { writableLength } = this.#socket
    if (writableLength + encoded.length > UNREAD_SIZE_MAX) {
      log.warning(`a client is disconnected: it left ${writableLength} bytes of answers unread`)
      this.#socket.destroy()
    }
    if (this.#socket.writable) this.#socket.write(`${encoded}\n`)
  }
}
