import { createServer, type IncomingHttpHeaders, type Server } from 'node:http'
import type { AddressInfo } from 'node:net'
import { gzipSync } from 'node:zlib'
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest'
import { download, type HttpState } from '../../../src/volume/transfer/http.ts'

const CONTENT = Buffer.from(Array.from({ length: 200_000 }, (_, i) => i % 251))
const REST = `bytes 150000-${CONTENT.length - 1}/${CONTENT.length}`
const NEW = { doneBytes: 0, validator: '' }

let server: Server
let url: string
/** How the next requests are answered; the last for all that follow. */
let answers: ((headers: IncomingHttpHeaders) => Answer)[]
let asked: IncomingHttpHeaders[]

interface Answer {
  readonly status: number
  readonly headers?: Record<string, string>
  readonly body?: Buffer
  /** The connection ends after so many bytes. */
  readonly breakAt?: number
}

beforeEach(async () => {
  asked = []
  server = createServer((request, response) => {
    asked.push(request.headers)
    const answer = answers[Math.min(asked.length, answers.length) - 1]!
    const { status, headers = {}, body = Buffer.alloc(0), breakAt } = answer(request.headers)
    response.writeHead(status, headers)
    if (breakAt === undefined) response.end(body)
    else response.write(body.subarray(0, breakAt), () => response.destroy())
  })
  await new Promise<void>(resolve => server.listen(0, '127.0.0.1', resolve))
  url = `http://127.0.0.1:${(server.address() as AddressInfo).port}/disk.img`
})
afterEach(() => {
  server.closeAllConnections()
  server.close()
})

/** What a server with ranges does. */
const ranged =
  (etag: string, breakAt?: number) =>
  ({ range, 'if-range': condition }: IncomingHttpHeaders): Answer => {
    const from = Number(/^bytes=(\d+)-$/.exec(range ?? '')?.[1] ?? Number.NaN)
    const cut = breakAt === undefined ? {} : { breakAt }
    if (Number.isNaN(from) || condition !== etag) {
      return { status: 200, headers: { etag, 'content-length': `${CONTENT.length}` }, body: CONTENT, ...cut }
    }
    const part = { 'content-range': `bytes ${from}-${CONTENT.length - 1}/${CONTENT.length}` }
    return { status: 206, headers: { etag, ...part }, body: CONTENT.subarray(from), ...cut }
  }

class Target {
  content = Buffer.alloc(0)
  begun: (number | undefined)[] = []
  restarts = 0
  refusal: Error | undefined
  async begin(_: Buffer, totalBytes: number | undefined): Promise<void> {
    this.begun.push(totalBytes)
    if (this.refusal !== undefined) throw this.refusal
  }
  async restart(): Promise<void> {
    this.restarts++
    this.content = Buffer.alloc(0)
  }
  async write(bytes: Uint8Array, offset: number): Promise<void> {
    this.content = Buffer.concat([this.content.subarray(0, offset), bytes])
  }
  async remember(): Promise<void> {}
}

const quiet = { report: () => {}, signal: new AbortController().signal }
const get = (target: Target, state: HttpState = NEW): Promise<number> => download(url, state, target, quiet)

describe('download', () => {
  it('gets all of a file and tells its size before the first byte is kept', async () => {
    answers = [ranged('"a"')]
    const target = new Target()
    expect(await get(target)).toBe(CONTENT.length)
    expect(target.content.equals(CONTENT)).toBe(true)
    expect(target.begun).toEqual([CONTENT.length])
    expect(asked[0]).not.toHaveProperty('range')
  })

  it('asks only for the rest of what it had begun', async () => {
    answers = [ranged('"a"')]
    const target = new Target()
    target.content = CONTENT.subarray(0, 150_000)
    await get(target, { doneBytes: 150_000, validator: '"a"' })
    expect(target.content.equals(CONTENT)).toBe(true)
    expect(asked[0]).toMatchObject({ range: 'bytes=150000-', 'if-range': '"a"' })
    expect(target.restarts).toBe(0)
  })

  it('starts over when the file is another one now', async () => {
    answers = [ranged('"b"')]
    const target = new Target()
    target.content = Buffer.alloc(150_000, 0xff)
    await get(target, { doneBytes: 150_000, validator: '"a"' })
    expect(target.content.equals(CONTENT)).toBe(true)
    expect(target.restarts).toBe(1)
  })

  it('goes on by itself when the connection breaks', async () => {
    answers = [ranged('"a"', 70_000), ranged('"a"')]
    const target = new Target()
    await get(target)
    expect(target.content.equals(CONTENT)).toBe(true)
    expect(asked).toHaveLength(2)
    expect(asked[1]!.range).toMatch(/^bytes=[1-9]\d*-$/)
  })

  it('does not trust a weak ETag, but the time of the last change', async () => {
    const headers = { etag: 'W/"a"', 'last-modified': 'Sat, 21 Nov 2026 11:00:00 GMT' }
    answers = [() => ({ status: 200, headers, body: CONTENT, breakAt: 70_000 }), ranged('"a"')]
    const target = new Target()
    await get(target)
    expect(asked[1]).toMatchObject({ 'if-range': 'Sat, 21 Nov 2026 11:00:00 GMT' })
    expect(target.content.equals(CONTENT)).toBe(true)
  })

  it.each([
    [
      'sends the end of another file',
      { status: 206, headers: { etag: '"b"', 'content-range': REST }, body: CONTENT.subarray(150_000) },
    ],
    ['has no more than came before', { status: 416 }],
  ])('starts over when a server that does not know If-Range %s', async (_, answer) => {
    answers = [() => answer, ranged('"b"')]
    const target = new Target()
    target.content = Buffer.alloc(150_000, 0xff)
    await get(target, { doneBytes: 150_000, validator: '"a"' })
    expect(target.content.equals(CONTENT)).toBe(true)
    expect(asked[1]).not.toHaveProperty('range')
  })

  it('refuses another part than the one it asked for', async () => {
    const wrong = { 'content-range': 'bytes 5-9/10' }
    answers = [() => ({ status: 206, headers: wrong, body: CONTENT })]
    await expect(get(new Target(), { doneBytes: 7, validator: '"a"' })).rejects.toMatchObject({
      code: 'EPROTO',
    })
  })

  it.each([
    [404, 'ENOENT'],
    [403, 'EACCES'],
    [418, 'EIO'],
  ])('says what the server says with %i', async (status, code) => {
    answers = [() => ({ status })]
    await expect(get(new Target())).rejects.toMatchObject({
      code,
      message: expect.stringContaining(`${status}`),
    })
    expect(asked).toHaveLength(1)
  })

  it.each(['file:///etc/passwd', 'ftp://127.0.0.1/x', 'unix:/run/x'])(
    'does not follow a redirection to %s',
    async location => {
      answers = [() => ({ status: 302, headers: { location } })]
      const target = new Target()
      await expect(get(target)).rejects.toMatchObject({ code: 'EPROTO' })
      expect([asked.length, target.content.length]).toEqual([1, 0])
    },
  )

  it('does not follow redirections for ever', async () => {
    answers = [() => ({ status: 302, headers: { location: url } })]
    await expect(get(new Target())).rejects.toMatchObject({
      code: 'EPROTO',
      message: expect.stringContaining('redirect count'),
    })
  })

  it('takes a file for whole only when all came that was told', async () => {
    const headers = { 'content-length': `${CONTENT.length + 10}` }
    answers = [() => ({ status: 200, headers, body: CONTENT, breakAt: CONTENT.length }), ranged('"a"')]
    const target = new Target()
    expect(await get(target)).toBe(CONTENT.length)
    expect(target.restarts).toBe(1)
    expect(target.content.equals(CONTENT)).toBe(true)
  })

  it('does not go on within what was packed on the way', async () => {
    const headers = { etag: '"a"', 'content-encoding': 'gzip' }
    const body = gzipSync(CONTENT)
    answers = [() => ({ status: 200, headers, body, breakAt: body.length - 10 }), ranged('"a"')]
    const target = new Target()
    await get(target)
    expect(target.content.equals(CONTENT)).toBe(true)
    expect(asked.map(({ range }) => range)).toEqual([undefined, undefined])
  })

  it('gives up a server that sends a byte now and then', async () => {
    vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout'] })
    server.removeAllListeners('request').on('request', (_, response) => {
      asked.push({})
      response.writeHead(200, { etag: '"a"' })
      response.write('x')
      const drip = setInterval(() => response.write('x'), 5)
      response.on('close', () => clearInterval(drip))
    })
    const failed = expect(get(new Target())).rejects.toThrow('next to nothing for 60 s, 5 times in a row')
    const isOver = failed.then(() => true)
    while (!(await Promise.race([isOver, new Promise<false>(done => setImmediate(done, false))]))) {
      vi.advanceTimersByTime(1000)
    }
    vi.useRealTimers()
    expect(asked).toHaveLength(5)
  })

  it('ends at once when the first bytes are refused', async () => {
    answers = [ranged('"a"')]
    const target = new Target()
    target.refusal = Object.assign(new Error('it is vmdk'), { name: 'AbortError' })
    const abort = new AbortController()
    target.begin = async () => {
      abort.abort()
      throw target.refusal
    }
    await expect(download(url, NEW, target, { ...quiet, signal: abort.signal })).rejects.toMatchObject({
      name: 'AbortError',
    })
    expect(target.content).toHaveLength(0)
  })
})
