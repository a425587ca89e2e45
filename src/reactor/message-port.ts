/** A `Port` over a `MessagePort` or a `Worker`: topics, calls and their answers, errors of the operator's included. */
import { errnoName, type RpcCode, RpcError, SysError } from '../core/errors.ts'
import type { Port } from './port.ts'

/** What `Worker` and `MessagePort` have in common. */
export interface Channel {
  postMessage(message: unknown): void
  on(event: 'message', listener: (message: unknown) => void): unknown
}

type Message =
  | { readonly kind: 'post'; readonly topic: string; readonly body: unknown }
  | { readonly kind: 'call'; readonly topic: string; readonly body: unknown; readonly id: number }
  | { readonly kind: 'result'; readonly id: number; readonly result: unknown }
  | { readonly kind: 'error'; readonly id: number; readonly error: PlainError }

interface PlainError {
  readonly type: 'RpcError' | 'SysError' | 'Error'
  readonly message: string
  readonly code?: RpcCode
  readonly call?: string
  readonly errno?: number
  readonly stack?: string | undefined
}

interface Pending {
  resolve(result: unknown): void
  reject(error: Error): void
}

export class ChannelPort implements Port {
  readonly #channel: Channel
  /** Called after each message, to wake a reactor that sleeps in its ring. */
  readonly #wake: () => void
  readonly #listeners = new Map<string, (body: unknown) => unknown>()
  readonly #pending = new Map<number, Pending>()
  #nextId = 1

  constructor(channel: Channel, wake: () => void = () => {}) {
    this.#channel = channel
    this.#wake = wake
    channel.on('message', message => this.#receive(message as Message))
  }

  post(topic: string, body: unknown): void {
    this.#send({ kind: 'post', topic, body })
  }

  call<T = unknown>(topic: string, body: unknown): Promise<T> {
    const id = this.#nextId++
    return new Promise<T>((resolve, reject) => {
      this.#pending.set(id, { resolve: result => resolve(result as T), reject })
      this.#send({ kind: 'call', topic, body, id })
    })
  }

  on<T = unknown>(topic: string, listener: (body: T) => unknown): void {
    this.#listeners.set(topic, listener as (body: unknown) => unknown)
  }

  #send(message: Message): void {
    this.#channel.postMessage(message)
    this.#wake()
  }

  #receive(message: Message): void {
    if (message.kind === 'post') {
      this.#listener(message.topic)(message.body)
    } else if (message.kind === 'call') {
      void this.#answer(message.id, message.topic, message.body)
    } else {
      const pending = this.#pending.get(message.id)!
      this.#pending.delete(message.id)
      if (message.kind === 'result') pending.resolve(message.result)
      else pending.reject(reviveError(message.error))
    }
  }

  async #answer(id: number, topic: string, body: unknown): Promise<void> {
    try {
      const result = await this.#listener(topic)(body)
      this.#send({ kind: 'result', id, result })
    } catch (error) {
      this.#send({ kind: 'error', id, error: flattenError(error) })
    }
  }

  #listener(topic: string): (body: unknown) => unknown {
    const listener = this.#listeners.get(topic)
    if (listener === undefined) throw new Error(`nobody listens to ${topic}`)
    return listener
  }
}

/** An error as plain data: structured cloning keeps neither classes nor codes. */
export function flattenError(error: unknown): PlainError {
  if (error instanceof RpcError) return { type: 'RpcError', message: error.message, code: error.code }
  if (error instanceof SysError) {
    return { type: 'SysError', message: error.message, call: error.call, errno: error.errno }
  }
  if (error instanceof Error) return { type: 'Error', message: error.message, stack: error.stack }
  return { type: 'Error', message: String(error) }
}

/** What a thread has thrown: it comes with its members, and without its class. */
export function reviveThrown(error: Error & { readonly call?: string; readonly errno?: number }): Error {
  const { name, message, call, errno } = error
  if (name !== 'SysError' || call === undefined || errno === undefined) return error
  return reviveError({ type: 'SysError', message, call, errno })
}

export function reviveError(plain: PlainError): Error {
  if (plain.type === 'RpcError') return new RpcError(plain.code!, plain.message)
  if (plain.type === 'SysError') {
    const detail = plain.message.slice(plain.call!.length, -`: ${errnoName(plain.errno!)}`.length).trim()
    return new SysError(plain.call!, plain.errno!, detail)
  }
  return new Error(plain.message, { cause: plain.stack })
}
