/**
 * A client of the daemon, or of any SPDK application. With the type of a method table every call is typed:
 *
 *     const client = await connect<typeof methods>('/var/tmp/spdk.sock')
 *     const bdevs = await client.call('bdev_get_bdevs', { name: 'disk0' })
 */
import { createConnection, type Socket } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import type { z } from 'zod'
import { DEFAULT_SOCKET, parseAddress } from './address.ts'
import { JsonScanner, RESPONSE_LIMITS } from './json-scanner.ts'

/** What a client sees of one declared method. */
interface Callable {
  readonly name: string
  readonly params: z.ZodObject
  readonly result: z.ZodType
}

/** The methods of a table by their names. */
export type MethodNames<Methods extends readonly Callable[]> = Methods[number]['name']
export type ParamsOf<Methods extends readonly Callable[], Name extends string> = z.input<
  Extract<Methods[number], { name: Name }>['params']
>
/** Parameters may be left out when none of them is required. */
type Arguments<Params> =
  Record<never, never> extends Params
    ? [params?: Params, timeoutMs?: number]
    : [params: Params, timeoutMs?: number]
export type ResultOf<Methods extends readonly Callable[], Name extends string> = z.output<
  Extract<Methods[number], { name: Name }>['result']
>

export interface ConnectOptions {
  /** For an answer, and for the connection. SPDK's clients wait as long. */
  readonly timeoutMs?: number
  /** How often to try again, every 200 ms, when nobody listens yet. */
  readonly retries?: number
}

/** The daemon refused a call. */
export class RpcCallError extends Error {
  override readonly name = 'RpcCallError'
  readonly method: string
  /** A negative errno, or one of JSON-RPC's reserved numbers. */
  readonly code: number

  constructor(method: string, code: number, message: string) {
    super(message)
    this.method = method
    this.code = code
  }
}

/** There is no connection, or it ended, or the answer did not come in time. */
export class RpcConnectionError extends Error {
  override readonly name = 'RpcConnectionError'
}

interface Waiting {
  readonly method: string
  readonly resolve: (result: unknown) => void
  readonly reject: (error: Error) => void
  readonly timer: NodeJS.Timeout
}

const RETRY_INTERVAL_MS = 200

export async function connect<Methods extends readonly Callable[]>(
  address: string = DEFAULT_SOCKET,
  { timeoutMs = 60_000, retries = 0 }: ConnectOptions = {},
): Promise<RpcClient<Methods>> {
  for (let attempt = 0; ; attempt++) {
    try {
      return new RpcClient<Methods>(await open(address, timeoutMs), address, timeoutMs)
    } catch (cause) {
      if (attempt < retries) {
        await sleep(RETRY_INTERVAL_MS)
        continue
      }
      const { code, message } = cause as NodeJS.ErrnoException
      throw new RpcConnectionError(
        code === 'EACCES'
          ? `${address} may not be opened by this user (${message}): be the user of the daemon, as with sudo, or of its socket's group`
          : `no daemon answers at ${address} (${message}); start it with: qpair serve${address === DEFAULT_SOCKET ? '' : ` -r ${address}`}`,
        { cause },
      )
    }
  }
}

export class RpcClient<Methods extends readonly Callable[]> {
  readonly #socket: Socket
  readonly #address: string
  readonly #timeoutMs: number
  readonly #waiting = new Map<number, Waiting>()
  #lastId = 0
  #failure: RpcConnectionError | undefined

  /** `connect` makes these. */
  constructor(socket: Socket, address: string, timeoutMs: number) {
    this.#socket = socket
    this.#address = address
    this.#timeoutMs = timeoutMs
    const scanner = new JsonScanner(RESPONSE_LIMITS)
    socket.on('data', chunk => {
      try {
        scanner.feed(chunk, text => this.#receive(text))
      } catch (cause) {
        this.#fail(`${address} does not speak JSON-RPC: ${(cause as Error).message}`, cause)
      }
    })
    socket.on('error', cause => this.#fail(`the connection to ${address} failed: ${cause.message}`, cause))
    socket.on('close', () => this.#fail(`${address} closed the connection`))
  }

  /** Calls a method and waits for its answer. Calls may overlap. Throws `RpcCallError` or `RpcConnectionError`. */
  call<Name extends MethodNames<Methods>>(
    method: Name,
    ...[params, timeoutMs]: Arguments<ParamsOf<Methods, Name>>
  ): Promise<ResultOf<Methods, Name>> {
    // The daemon answers with what the method's declaration says.
    return this.request(method, params, timeoutMs) as Promise<ResultOf<Methods, Name>>
  }

  /** The same for a method that the type of the table does not know. */
  request(method: string, params?: object, timeoutMs: number = this.#timeoutMs): Promise<unknown> {
    if (this.#failure !== undefined) return Promise.reject(this.#failure)
    const id = ++this.#lastId
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => {
        this.#waiting.delete(id)
        reject(
          new RpcConnectionError(
            `${this.#address} did not answer ${method} within ${timeoutMs} ms; it may still be working on it`,
          ),
        )
      }, timeoutMs)
      this.#waiting.set(id, { method, resolve, reject, timer })
      // As SPDK's client: params are left out when there are none.
      const given = params === undefined || Object.keys(params).length === 0 ? {} : { params }
      this.#socket.write(JSON.stringify({ jsonrpc: '2.0', method, id, ...given }))
    })
  }

  close(): void {
    this.#socket.end()
    this.#fail('the connection was closed here')
  }

  #receive(text: string): void {
    const { id, result, error } = JSON.parse(text) as {
      id: number | null
      result?: unknown
      error?: { code: number; message: string }
    }
    const waiting = this.#waiting.get(id ?? -1)
    if (waiting === undefined) {
      // An answer without an id is the daemon's last word about a stream that it could not parse.
      if (id === null && error !== undefined)
        this.#fail(`${this.#address} refused the connection: ${error.message}`)
      return
    }
    this.#waiting.delete(id ?? -1)
    clearTimeout(waiting.timer)
    if (error === undefined) waiting.resolve(result)
    else waiting.reject(new RpcCallError(waiting.method, error.code, error.message))
  }

  #fail(message: string, cause?: unknown): void {
    this.#failure ??= new RpcConnectionError(message, { cause })
    this.#socket.destroySoon()
    for (const { reject, timer } of this.#waiting.values()) {
      clearTimeout(timer)
      reject(this.#failure)
    }
    this.#waiting.clear()
  }
}

function open(address: string, timeoutMs: number): Promise<Socket> {
  return new Promise((resolve, reject) => {
    const socket = createConnection(parseAddress(address))
    socket.setTimeout(timeoutMs, () => socket.destroy(new Error(`no connection within ${timeoutMs} ms`)))
    socket.once('error', reject)
    socket.once('connect', () => {
      socket.setTimeout(0)
      socket.off('error', reject)
      resolve(socket)
    })
  })
}
