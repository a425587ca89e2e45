/**
 * The socket on which the back end says something unasked: here, that the configuration space has changed.
 *
 * QEMU answers that from wherever it is, even while it waits for the answer to a request of its own, and then takes one
 * answer for the other (7.2: `vhost_user_read` runs a nested loop that serves this socket). So the message waits until the
 * front end has been silent for a while.
 */
import { errnoName } from '../../core/errors.ts'
import { BackendRequest } from '../../spec/vhost-user.ts'
import { close } from '../../sys/libc.ts'
import { sendMessage } from '../../sys/unix-message.ts'
import { backendRequest } from './protocol.ts'

const SILENCE_MS = 50

export class BackendChannel {
  readonly #warn: (message: string) => void
  #descriptor = -1
  #timer: NodeJS.Timeout | undefined
  #hasNews = false
  #isBusy = false

  constructor(warn: (message: string) => void) {
    this.#warn = warn
  }

  get isOpen(): boolean {
    return this.#descriptor >= 0
  }

  /** Takes over the socket. */
  open(descriptor: number): void {
    if (this.isOpen) close(this.#descriptor)
    this.#descriptor = descriptor
  }

  /** The front end waits for an answer. */
  pause(): void {
    this.#isBusy = true
    clearTimeout(this.#timer)
  }

  /** It has got it. */
  resume(): void {
    this.#isBusy = false
    if (this.#hasNews) this.#arm()
  }

  /** Tells the front end in a while to read the configuration space again; once, however often it is asked to. */
  announceConfig(): void {
    this.#hasNews = true
    if (!this.#isBusy) this.#arm()
  }

  close(): void {
    clearTimeout(this.#timer)
    this.#hasNews = false
    if (this.isOpen) close(this.#descriptor)
    this.#descriptor = -1
  }

  #arm(): void {
    clearTimeout(this.#timer)
    this.#timer = setTimeout(() => this.#send(), SILENCE_MS)
  }

  #send(): void {
    this.#hasNews = false
    if (!this.isOpen) return
    const message = backendRequest(BackendRequest.CONFIG_CHANGE_MSG)
    const result = sendMessage(this.#descriptor, message)
    if (result === message.length) return
    this.#warn(`the front end could not be told of its new configuration: ${errnoName(-Math.min(result, 0))}`)
  }
}
