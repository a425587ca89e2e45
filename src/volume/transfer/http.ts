/** What a web server has, as it is: from where an earlier attempt came to, if the server and the file are the same. */
import { RpcError } from '../../core/errors.ts'
import type { Progress } from '../pool.ts'

/** A server that sends less than this in that time has gone, or holds us up with a byte now and then. */
const STALL_MS = 60_000
const STALL_BYTES = 64 << 10
const ATTEMPTS = 5
const RETRY_MS = 1000

/** What says that the file on the server is still the same. */
export interface HttpState {
  readonly doneBytes: number
  /** A strong ETag or the time of the last change; empty when the server says neither. */
  readonly validator: string
}

export interface HttpTarget {
  /** The first bytes and the size, if the server tells: once before all others; throws to refuse them. */
  begin(head: Buffer, totalBytes: number | undefined): Promise<void>
  /** Starts over: what was written counts for nothing. */
  restart(): Promise<void>
  write(bytes: Uint8Array, offset: number): Promise<void>
  /** What has come so far, to go on from there. */
  remember(state: HttpState): Promise<void>
}

/** Resolves with the size in bytes. Throws `RpcError` naming the address and the reason. */
export async function download(
  url: string,
  state: HttpState,
  target: HttpTarget,
  progress: Progress,
): Promise<number> {
  let now = state
  let failures = 0
  for (;;) {
    const attempt = new Attempt(url, now, target, progress)
    try {
      return await attempt.run()
    } catch (error) {
      progress.signal.throwIfAborted()
      if (error instanceof RpcError) throw error
      if (isFinal(error)) throw new RpcError('EPROTO', `${url}: ${reasonOf(error)}`, { cause: error })
      // As long as something comes there is hope.
      failures = attempt.state.doneBytes - now.doneBytes >= STALL_BYTES ? 0 : failures + 1
      now = attempt.state
      if (failures >= ATTEMPTS) {
        throw new RpcError('EIO', `${url}: ${reasonOf(error)}, ${ATTEMPTS} times in a row`, { cause: error })
      }
      await new Promise(resolve => setTimeout(resolve, RETRY_MS * failures))
    }
  }
}

/** How much is asked to be safe between two notes of how far it is. */
const REMEMBER_BYTES = 64 << 20

class Attempt {
  state: HttpState
  readonly #url: string
  readonly #target: HttpTarget
  readonly #progress: Progress
  readonly #stall = new AbortController()

  constructor(url: string, state: HttpState, target: HttpTarget, progress: Progress) {
    this.#url = url
    this.state = state
    this.#target = target
    this.#progress = progress
  }

  async run(): Promise<number> {
    const response = await this.#ask()
    try {
      return await this.#receive(response)
    } catch (error) {
      // Nobody reads the rest.
      await response.body?.cancel().catch(() => {})
      throw error
    }
  }

  async #receive(response: Response): Promise<number> {
    const totalBytes = await this.#begin(response)
    let done = this.state.doneBytes
    let remembered = done
    let timed = done
    let isFirst = done === 0
    const timer = this.#watch()
    try {
      for await (const chunk of response.body!) {
        if (done - timed >= STALL_BYTES) {
          timer.refresh()
          timed = done
        }
        const bytes = Buffer.from(chunk)
        if (isFirst) await this.#target.begin(bytes, totalBytes)
        isFirst = false
        await this.#target.write(bytes, done)
        done += bytes.length
        this.state = { ...this.state, doneBytes: done }
        this.#progress.report(done, totalBytes)
        if (done - remembered >= REMEMBER_BYTES) {
          await this.#target.remember(this.state)
          remembered = done
        }
      }
    } finally {
      clearTimeout(timer)
    }
    if (totalBytes !== undefined && done !== totalBytes) {
      throw new Error(`the server sent ${done} bytes of ${totalBytes}`)
    }
    return done
  }

  async #ask(): Promise<Response> {
    const { doneBytes, validator } = this.state
    const headers: Record<string, string> = { 'accept-encoding': 'identity' }
    if (doneBytes > 0 && validator !== '') {
      headers.range = `bytes=${doneBytes}-`
      headers['if-range'] = validator
    }
    const signal = AbortSignal.any([this.#progress.signal, this.#stall.signal])
    const timer = this.#watch()
    try {
      return await fetch(this.#url, { headers, signal })
    } finally {
      clearTimeout(timer)
    }
  }

  /** Where the answer begins and how much there will be in all. */
  async #begin(response: Response): Promise<number | undefined> {
    const { status, statusText, headers } = response
    // What is packed on the way cannot be gone on with: its parts are those of the package.
    const isPacked = headers.has('content-encoding')
    const validator = isPacked ? '' : strongEtag(headers) || headers.get('last-modified') || ''
    if (status === 206) {
      const range = /^bytes (\d+)-\d+\/(\d+)$/.exec(headers.get('content-range') ?? '')
      if (range === null || Number(range[1]) !== this.state.doneBytes) {
        throw new RpcError('EPROTO', `${this.#url}: the server sends another part than it was asked for`)
      }
      // Not every server knows If-Range, and would put the end of another file behind the beginning of this one.
      if (validator !== '' && validator !== this.state.validator)
        throw this.#another('another file is there now')
      return Number(range[2])
    }
    // There is nothing behind what is here already: all of it has come, or it is another file.
    if (status === 416 && this.state.doneBytes > 0) throw this.#another('it has no more than came before')
    if (status !== 200) {
      const code =
        status === 404 || status === 410 ? 'ENOENT' : status === 401 || status === 403 ? 'EACCES' : 'EIO'
      const error = `${this.#url}: the server answers ${status} ${statusText}`
      // Servers that are overloaded recover.
      if (status >= 500) throw new Error(error)
      throw new RpcError(code, error)
    }
    if (this.state.doneBytes > 0) await this.#target.restart()
    this.state = { doneBytes: 0, validator }
    const length = headers.get('content-length')
    return length === null || isPacked ? undefined : Number(length)
  }

  /** What is here counts for nothing; the next attempt asks for all. */
  #another(reason: string): Error {
    this.state = { doneBytes: 0, validator: '' }
    return new Error(reason)
  }

  #watch(): NodeJS.Timeout {
    return setTimeout(
      () => this.#stall.abort(new Error(`the server sends next to nothing for ${STALL_MS / 1000} s`)),
      STALL_MS,
    )
  }
}

/** A weak one may be that of a file with other bytes. */
function strongEtag(headers: Headers): string {
  const etag = headers.get('etag') ?? ''
  return etag.startsWith('W/') ? '' : etag
}

/** A redirection to what is no web server, or in a circle: it will not be another next time. */
const isFinal = (error: unknown): boolean => /URL scheme must be|redirect count/i.test(reasonOf(error))

/** `fetch failed` is what Node says; why stands behind it. */
function reasonOf(error: unknown): string {
  const { message, cause } = error as Error
  return cause instanceof Error && cause.message !== '' ? cause.message : message
}
