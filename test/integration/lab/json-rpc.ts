/** JSON-RPC 2.0 over a Unix socket as SPDK speaks it: JSON texts one after another, with nothing between them. */
import { connect } from 'node:net'

/** What the server answered instead of a result. */
export class RpcFailure extends Error {
  override readonly name = 'RpcFailure'
  readonly method: string
  readonly code: number

  constructor(method: string, { code, message }: { readonly code: number; readonly message: string }) {
    super(message)
    this.method = method
    this.code = code
  }
}

/** After which time a server that does not answer counts as hung: longer than any time-out that a method is given. */
const TIMEOUT_MS = 180_000

/** Calls one method on a connection of its own, to a socket or a port of 127.0.0.1. */
export function call<T>(address: string | number, method: string, params?: unknown): Promise<T> {
  return new Promise((resolve, reject) => {
    let text = ''
    const socket = typeof address === 'string' ? connect(address) : connect(address, '127.0.0.1')
    socket.setTimeout(TIMEOUT_MS, () => socket.destroy(new Error(`no answer after ${TIMEOUT_MS} ms`)))
    socket.on('error', reject)
    socket.on('close', () => reject(new Error(`${method}: the server closed the connection after: ${text}`)))
    socket.setEncoding('utf8').on('data', chunk => {
      text += chunk
      const response = wholeJson(text)
      if (response === undefined) return
      socket.destroy()
      if (response.error === undefined) resolve(response.result as T)
      else reject(new RpcFailure(method, response.error))
    })
    socket.write(
      JSON.stringify({ jsonrpc: '2.0', id: 1, method, ...(params === undefined ? {} : { params }) }),
    )
  })
}

/** The same for a method that becomes a job when it takes long: that has ended, too. Rejects with what it has failed for. */
export async function settled(address: string | number, method: string, params: object): Promise<void> {
  const { job_id: id }: { job_id?: number } = Object(await call(address, method, params))
  if (id === undefined) return
  const wait = { id, timeout_ms: TIMEOUT_MS / 2 }
  const { state, error } = await call<{ state: string } & Response>(address, 'job_wait', wait)
  if (error !== undefined) throw new RpcFailure(method, error)
  if (state !== 'completed') throw new Error(`${method}: job ${id} is ${state}`)
}

interface Response {
  readonly result?: unknown
  readonly error?: { readonly code: number; readonly message: string }
}

/** The response, once all of its text has arrived: where a text ends, only parsing it tells. */
function wholeJson(text: string): Response | undefined {
  if (!text.trimEnd().endsWith('}')) return undefined
  try {
    return JSON.parse(text)
  } catch {
    // The brace closes something inside; more is to come.
    return undefined
  }
}
