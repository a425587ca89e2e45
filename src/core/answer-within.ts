/** Questions that may never be answered. */
import { RpcError } from './errors.ts'

/**
 * What `ask` comes to, if that comes in time. Else rejects with `RpcError` ETIMEDOUT: `ask` is told, and its end is nobody's concern
 * any more, since a program that waits in the kernel cannot even be ended.
 */
export function answerWithin<T>(limitMs: number, ask: (signal: AbortSignal) => Promise<T>): Promise<T> {
  const given = new AbortController()
  return new Promise<T>((resolve, reject) => {
    const late = setTimeout(() => {
      given.abort()
      reject(new RpcError('ETIMEDOUT', `no answer came within ${limitMs / 1000} s`))
    }, limitMs)
    void ask(given.signal)
      .then(resolve, reject)
      .finally(() => clearTimeout(late))
  })
}
