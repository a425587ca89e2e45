/**
 * A read-only disk over HTTP: an image on a web server or in an object store, served as a block device without copying it
 * first. Blocks come by range requests and stay in a bounded cache in memory.
 *
 *     HTTP_DISK_URL=https://example.org/debian.iso qpair serve --plugin examples/http-disk.js
 *     qpair bdev plugin-create ./examples/http-disk.js -b iso0 --options '{"url":"https://example.org/debian.iso"}'
 *
 * Options: `url`; `headers`, for authorization; `blockSize` (512); `chunkKiB`, how much one request asks for (256);
 * `cacheMiB`, how much is kept (256); `retries` (5), `timeoutMs` of one request (10000).
 *
 * The server must answer range requests. A file that changes on the server while it is being served would be a mixture of
 * two files, so every answer is checked (ETag, Last-Modified, length), and from the first one that differs every read
 * fails. Answers that are cut short, server errors (5xx, 429) and broken connections are asked for again.
 */
import { createHash } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'

/** @type {import('qpair/driver').PluginModule} */
export default async function httpDisk(options) {
  const url = options.url ?? process.env.HTTP_DISK_URL
  if (typeof url !== 'string') throw new Error('give the address of the image: option url, or HTTP_DISK_URL')
  const { blockSize = 512, chunkKiB = 256, cacheMiB = 256 } = options
  const chunkSize = chunkKiB * 1024
  const file = await RemoteFile.open(url, options)
  const chunks = new ChunkCache(Math.max(1, Math.floor((cacheMiB * 1024 * 1024) / chunkSize)), index =>
    file.read(index * chunkSize, Math.min(chunkSize, file.size - index * chunkSize)),
  )

  return {
    name:
      new URL(url).pathname
        .split('/')
        .pop()
        ?.replace(/[^\w.-]/g, '_') || 'http0',
    // What is missing of the last block reads as zeroes.
    size: Math.ceil(file.size / blockSize) * blockSize,
    blockSize,
    // The same file has the same identity wherever it is served from.
    uuid: uuidOf(`${url} ${file.size} ${file.version}`),

    async read(offset, length) {
      const bytes = new Uint8Array(length)
      const first = Math.floor(offset / chunkSize)
      const last = Math.floor((Math.min(offset + length, file.size) - 1) / chunkSize)
      const wanted = []
      for (let index = first; index <= last; index++) wanted.push(chunks.get(index))
      for (const [i, chunk] of (await Promise.all(wanted)).entries()) {
        const start = (first + i) * chunkSize
        const from = Math.max(offset - start, 0)
        bytes.set(chunk.subarray(from, offset + length - start), start + from - offset)
      }
      return bytes
    },

    close: () => file.close(),
  }
}

/** Chunks by number: the least recently used one goes when there are too many; one that is on its way is asked for once. */
class ChunkCache {
  /** A Map keeps the order of insertion, so the first one is the least recently used. */
  #chunks = new Map()
  #capacity
  #load

  constructor(capacity, load) {
    this.#capacity = capacity
    this.#load = load
  }

  get(index) {
    const chunk = this.#chunks.get(index) ?? this.#load(index)
    this.#chunks.delete(index)
    this.#chunks.set(index, chunk)
    // A failed one is forgotten, so that the next read tries again.
    chunk.catch(() => {
      if (this.#chunks.get(index) === chunk) this.#chunks.delete(index)
    })
    if (this.#chunks.size > this.#capacity) this.#chunks.delete(this.#chunks.keys().next().value)
    return chunk
  }
}

/** One version of one file on a web server. */
class RemoteFile {
  size = 0
  /** What tells this version from others: its ETag, else its date, else nothing but its length. */
  version = ''
  #url
  #headers
  #retries
  #timeoutMs
  #changed = ''
  #closing = new AbortController()

  constructor(url, { headers = {}, retries = 5, timeoutMs = 10_000 }) {
    this.#url = url
    this.#headers = headers
    this.#retries = retries
    this.#timeoutMs = timeoutMs
  }

  static async open(url, options) {
    const file = new RemoteFile(url, options)
    await file.#persist(async () => {
      const response = await file.#fetch(0, 1)
      await response.body?.cancel()
      file.size = totalOf(response)
      file.version = versionOf(response)
    })
    return file
  }

  /** Exactly `length` bytes. Throws when the server does not give them, or gives those of another version. */
  read(offset, length) {
    return this.#persist(async () => {
      if (this.#changed !== '') throw new Final(this.#changed)
      const response = await this.#fetch(offset, length)
      this.#checkVersion(response)
      const bytes = new Uint8Array(await response.arrayBuffer())
      if (bytes.length !== length) throw new Error(`${bytes.length} bytes came instead of ${length}`)
      return bytes
    })
  }

  close() {
    this.#closing.abort(new Error('the disk is closed'))
  }

  async #fetch(offset, length) {
    const range = `bytes=${offset}-${offset + length - 1}`
    const response = await fetch(this.#url, {
      headers: { ...this.#headers, range, 'accept-encoding': 'identity' },
      signal: AbortSignal.any([this.#closing.signal, AbortSignal.timeout(this.#timeoutMs)]),
    })
    if (response.status === 206) {
      const from = Number(/^bytes (\d+)-/.exec(response.headers.get('content-range') ?? '')?.[1])
      if (from === offset) return response
      throw new Final(`${this.#url} answered bytes from ${from} instead of ${offset}`)
    }
    await response.body?.cancel()
    const problem = `${this.#url} answered ${response.status} ${response.statusText} to a request for ${range}`
    if (response.status >= 500 || response.status === 429) throw new Error(problem)
    throw new Final(response.status === 200 ? `${problem}: the server has no range requests` : problem)
  }

  #checkVersion(response) {
    if (totalOf(response) === this.size && versionOf(response) === this.version) return
    this.#changed = `${this.#url} has changed on the server since it was opened: delete the device and create it again`
    throw new Final(this.#changed)
  }

  /** Tries again, at growing intervals, until it succeeds or trying again is pointless. */
  async #persist(attempt) {
    for (let tries = 0; ; tries++) {
      try {
        return await attempt()
      } catch (error) {
        const isPointless = error instanceof Final || this.#closing.signal.aborted
        if (isPointless || tries >= this.#retries) throw error
        await sleep(100 * 2 ** tries, undefined, { signal: this.#closing.signal })
      }
    }
  }
}

/** An error that trying again does not mend. */
class Final extends Error {}

/** The file's size, from `Content-Range: bytes 0-0/12345`. */
function totalOf(response) {
  const total = Number(/\/(\d+)$/.exec(response.headers.get('content-range') ?? '')?.[1])
  if (Number.isSafeInteger(total) && total > 0) return total
  throw new Final(
    `the server does not tell the file's size (Content-Range: ${response.headers.get('content-range')})`,
  )
}

function versionOf(response) {
  return response.headers.get('etag') ?? response.headers.get('last-modified') ?? ''
}

/** A UUID (version 8, RFC 9562) made of a text. */
function uuidOf(text) {
  const hex = createHash('sha256').update(text).digest('hex')
  return `${hex.slice(0, 8)}-${hex.slice(8, 12)}-8${hex.slice(13, 16)}-a${hex.slice(17, 20)}-${hex.slice(20, 32)}`
}
