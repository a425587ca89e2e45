/** `examples/http-disk.js` against a web server of our own. */
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import type { PluginDisk, PluginOptions } from '../../src/bdev/plugin/disk.ts'
import { Prng } from '../../src/core/prng.ts'

const example = new URL('../../examples/http-disk.js', import.meta.url).href
const { default: httpDisk } = (await import(example)) as {
  default: (options: PluginOptions) => Promise<PluginDisk>
}

const SIZE = 100_000
const image = new Prng(1).fill(new Uint8Array(SIZE))

let server: Server
let url: string
let etag: string
let ranges: string[]
/** What the next requests get instead of an answer. */
let surprises: ((request: IncomingMessage, response: ServerResponse) => void)[]
let disk: PluginDisk | undefined

function answer(request: IncomingMessage, response: ServerResponse): void {
  const range = request.headers.range!
  ranges.push(range)
  const surprise = surprises.shift()
  if (surprise !== undefined) {
    surprise(request, response)
    return
  }
  const [, from, to] = /^bytes=(\d+)-(\d+)$/.exec(range)!
  response.writeHead(206, { etag, 'content-range': `bytes ${from}-${to}/${SIZE}` })
  response.end(image.subarray(Number(from), Number(to) + 1))
}

beforeEach(async () => {
  etag = '"one"'
  ranges = []
  surprises = []
  server = createServer(answer)
  await new Promise<void>(resolve => server.listen(0, '127.0.0.1', resolve))
  url = `http://127.0.0.1:${(server.address() as AddressInfo).port}/images/disk.img`
})

afterEach(async () => {
  await disk?.close?.()
  server.closeAllConnections()
  await new Promise(resolve => server.close(resolve))
})

async function open(options: PluginOptions = {}): Promise<PluginDisk> {
  disk = await httpDisk({ url, chunkKiB: 16, ...options })
  ranges.length = 0
  return disk
}

/** As the device would: whole blocks, zeroes behind the end of the file. */
function expected(offset: number, length: number): Uint8Array {
  const bytes = new Uint8Array(length)
  bytes.set(image.subarray(offset, offset + length))
  return bytes
}

describe('the disk over HTTP', () => {
  it('has the size of the file in whole blocks, its name and an identity of its own', async () => {
    const first = await open()
    expect(first).toMatchObject({ size: 100_352, blockSize: 512, name: 'disk.img' })
    expect((await httpDisk({ url })).uuid).toBe(first.uuid)
    etag = '"two"'
    expect((await httpDisk({ url })).uuid).not.toBe(first.uuid)
  })

  it('reads any range, over the borders of chunks and up to the last block', async () => {
    const { read, size } = await open()
    for (const [offset, length] of [
      [0, 512],
      [512, 1024],
      [16_384 - 512, 1024],
      [0, 65_536],
      [size - 1024, 1024],
      [size - 512, 512],
    ] as const) {
      expect(await read(offset, length), `${length} bytes at ${offset}`).toEqual(expected(offset, length))
    }
  })

  it('asks for a chunk once, also when it is wanted twice at the same time', async () => {
    const { read } = await open()
    await Promise.all([read(0, 512), read(1024, 512)])
    await read(2048, 512)
    expect(ranges).toEqual(['bytes=0-16383'])
  })

  it('keeps no more than it may, and what was used last', async () => {
    const { read } = await open({ cacheMiB: 32 / 1024 })
    await read(0, 512)
    await read(16_384, 512)
    await read(0, 512)
    await read(32_768, 512)
    await read(0, 512)
    await read(16_384, 512)
    expect(ranges).toEqual(['bytes=0-16383', 'bytes=16384-32767', 'bytes=32768-49151', 'bytes=16384-32767'])
  })

  it.each([
    ['an error of the server', (_: unknown, response: ServerResponse) => response.writeHead(503).end()],
    ['a broken connection', (request: IncomingMessage) => request.socket.destroy()],
    [
      'an answer that is cut short',
      (request: IncomingMessage, response: ServerResponse) => {
        response.writeHead(206, {
          etag,
          'content-range': `bytes 0-16383/${SIZE}`,
          'content-length': 16_384,
        })
        response.write(image.subarray(0, 100), () => request.socket.destroy())
      },
    ],
    [
      'an answer of the wrong length',
      (_: unknown, response: ServerResponse) => {
        response.writeHead(206, { etag, 'content-range': `bytes 0-16383/${SIZE}` })
        response.end(image.subarray(0, 100))
      },
    ],
  ])('asks again after %s', async (_, surprise) => {
    const { read } = await open()
    surprises.push(surprise)
    expect(await read(0, 512)).toEqual(expected(0, 512))
    expect(ranges).toHaveLength(2)
  })

  it('gives up after so many tries, and tries again at the next read', async () => {
    const { read } = await open({ retries: 1 })
    surprises.push(...Array(2).fill((_: unknown, response: ServerResponse) => response.writeHead(500).end()))
    await expect(read(0, 512)).rejects.toThrow('answered 500')
    expect(await read(0, 512)).toEqual(expected(0, 512))
  })

  it('fails every read that needs the server once the file has changed there', async () => {
    const { read } = await open()
    await read(0, 512)
    etag = '"two"'
    await expect(read(16_384, 512)).rejects.toThrow('has changed on the server')
    etag = '"one"'
    await expect(read(32_768, 512)).rejects.toThrow('delete the device and create it again')
    expect(ranges).toHaveLength(2)
  })

  it('refuses a server without range requests, and an address that leads nowhere', async () => {
    surprises.push((_, response) => response.writeHead(200).end(image))
    await expect(open()).rejects.toThrow('the server has no range requests')
    surprises.push((_, response) => response.writeHead(404).end())
    await expect(open()).rejects.toThrow('answered 404')
    await expect(httpDisk({})).rejects.toThrow('give the address of the image')
  })
})
