import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, statSync, writeFileSync } from 'node:fs'
import { createServer } from 'node:net'
import { join } from 'node:path'
import { describe, expect, it, onTestFinished } from 'vitest'
import { Prng } from '../../src/core/prng.ts'
import { parseAddress } from '../../src/rpc/address.ts'
import { CONNECTIONS_MAX, RpcServer } from '../../src/rpc/server.ts'
import { lockFile } from '../../src/sys/file-lock.ts'
import { openShelf, RawClient, type Shelf, serveShelf, temporaryDirectory } from './support.ts'

async function served(
  shelf: Shelf = openShelf(),
): Promise<{ shelf: Shelf; client: RawClient; path: string }> {
  const server = await serveShelf(shelf)
  return { shelf, client: new RawClient(server.address), path: server.address }
}

const put = (id: number, name: string): string =>
  JSON.stringify({ jsonrpc: '2.0', id, method: 'shelf_put', params: { name } }, null, 2)

describe('RpcServer', () => {
  it('answers requests that were torn into single bytes', async () => {
    const { client } = await served()
    client.socket.setNoDelay(true)
    for (const byte of Buffer.from(`${put(1, 'a')}\n${put(2, 'ü')}`)) client.send(Uint8Array.of(byte))
    expect(await client.answers(2)).toEqual([
      { jsonrpc: '2.0', id: 1, result: true },
      { jsonrpc: '2.0', id: 2, result: true },
    ])
  })

  it('answers a hundred pipelined requests in their order', async () => {
    const { client } = await served()
    const ids = Array.from({ length: 100 }, (_, i) => i)
    client.send(
      ids.map(id => (id % 3 === 0 ? `{"id":${id},"method":"shelf_get"}` : put(id, `n${id}`))).join(''),
    )
    expect((await client.answers(100)).map(({ id }) => id)).toEqual(ids)
  })

  it('keeps the order of answers when a later request is done first', async () => {
    const shelf = openShelf()
    let open = (): void => {}
    shelf.context.gate = new Promise(resolve => (open = resolve))
    const { client, path } = await served(shelf)
    client.send('{"id":1,"method":"shelf_wait"}{"id":2,"method":"shelf_get"}')
    const other = new RawClient(path)
    other.send('{"id":3,"method":"shelf_get"}')
    await other.answers(1)
    expect(client.lines()).toEqual([])
    open()
    expect((await client.answers(2)).map(({ id }) => id)).toEqual([1, 2])
  })

  it('answers a client that shuts its side down after asking', async () => {
    const { client } = await served()
    client.socket.end(put(1, 'a'))
    await client.closed
    expect(client.lines()).toEqual(['{"jsonrpc":"2.0","id":1,"result":true}'])
  })

  it.each([
    ['bytes that are not JSON', 'GET / HTTP/1.1\r\n\r\n', 'begins with { or [, not with byte 0x47'],
    ['a text that is not JSON', '{"id":1,}', 'Parse error'],
    ['bytes that are not UTF-8', Uint8Array.of(0x5b, 0x22, 0xff, 0x22, 0x5d), 'not UTF-8'],
    ['a request beyond 256 KiB', `{"id":"${'x'.repeat(300_000)}"}`, 'more than 262144 bytes'],
    ['nesting beyond 64', '['.repeat(65), 'deeper than 64'],
  ])('answers %s with -32700', async (_, sent, reason) => {
    const { client } = await served()
    client.send(sent)
    const [answer] = await client.answers(1)
    expect(answer).toEqual({
      jsonrpc: '2.0',
      id: null,
      error: { code: -32700, message: expect.stringContaining(reason) },
    })
  })

  it('ends a stream it cannot follow after answering what came before, and nobody else notices', async () => {
    const { client, path } = await served()
    const other = new RawClient(path)
    client.send(`${put(1, 'a')} x ${put(2, 'b')}`)
    await client.closed
    expect(client.lines()).toHaveLength(2)
    expect(client.lines()[0]).toBe('{"jsonrpc":"2.0","id":1,"result":true}')
    other.send('{"id":1,"method":"shelf_get"}')
    expect(await other.answers(1)).toMatchObject([{ result: ['a'] }])
  })

  it('carries on when a client vanishes with requests under way', async () => {
    const shelf = openShelf()
    let open = (): void => {}
    shelf.context.gate = new Promise(resolve => (open = resolve))
    const { client, path } = await served(shelf)
    client.send(put(1, 'a'))
    await once(client.socket, 'connect')
    client.socket.destroy()
    await client.closed
    open()
    const other = new RawClient(path)
    other.send('{"id":1,"method":"shelf_get"}')
    await other.answers(1)
  })

  it(`turns the ${CONNECTIONS_MAX + 1}th client away`, async () => {
    const { client, path } = await served()
    const clients = [client, ...Array.from({ length: CONNECTIONS_MAX - 1 }, () => new RawClient(path))]
    for (const each of clients) each.send('{"id":1,"method":"shelf_get"}')
    await Promise.all(clients.map(each => each.answers(1)))
    const late = new RawClient(path)
    await late.closed
    expect(late.received).toBe('')
  })

  it('listens on TCP when the address is one, IPv4 or IPv6', async () => {
    for (const address of ['127.0.0.1:0', '[::1]:0']) {
      const server = await serveShelf(openShelf(), address)
      const port = Number(/:(\d+)$/.exec(server.address)![1])
      expect(server.address).toBe(address.replace(/0$/, String(port)))
      const client = new RawClient({ host: address.startsWith('[') ? '::1' : '127.0.0.1', port })
      client.send(put(1, 'a'))
      expect(await client.answers(1)).toEqual([{ jsonrpc: '2.0', id: 1, result: true }])
    }
  })

  it('closes: answers what was asked, cuts off who waits, and takes the socket file away', async () => {
    const shelf = openShelf()
    const address = join(temporaryDirectory(), 'rpc.sock')
    const server = await serveShelf(shelf, address)
    const [quick, waiting] = [new RawClient(address), new RawClient(address)]
    for (const client of [quick, waiting]) client.send('{"id":1,"method":"shelf_get"}')
    await Promise.all([quick.answers(1), waiting.answers(1)])
    shelf.context.gate = new Promise(() => undefined)
    waiting.send('{"id":1,"method":"shelf_wait"}{"id":2,"method":"shelf_get"}')
    await server.close(0)
    await Promise.all([quick.closed, waiting.closed])
    expect(existsSync(address)).toBe(false)
  })
})

describe('the socket file', () => {
  it('is for owner and group', async () => {
    const { path } = await served()
    expect(statSync(path).mode & 0o777).toBe(0o660)
  })

  it('belongs to one daemon: a second is refused, and leaves the first in peace', async () => {
    const { client, path } = await served()
    await expect(serveShelf(openShelf(), path)).rejects.toThrow(
      expect.objectContaining({
        code: 'EADDRINUSE',
        message: `the RPC socket ${path} is in use: another daemon holds ${path}.lock; stop it, or choose another socket with -r`,
      }),
    )
    client.send(put(1, 'a'))
    await client.answers(1)
  })

  it('is not taken from a process that keeps no lock', async () => {
    const path = join(temporaryDirectory(), 'rpc.sock')
    const foreign = createServer().listen(path)
    onTestFinished(() => void foreign.close())
    await once(foreign, 'listening')
    await expect(serveShelf(openShelf(), path)).rejects.toThrow('another process accepts connections there')
  })

  it('that a killed daemon left behind is replaced', async () => {
    const path = join(temporaryDirectory(), 'rpc.sock')
    const script = `require('net').createServer().listen(${JSON.stringify(path)}, () => console.log('up'))`
    const daemon = spawn(process.execPath, ['-e', script], { stdio: ['ignore', 'pipe', 'inherit'] })
    await once(daemon.stdout, 'data')
    daemon.kill('SIGKILL')
    await once(daemon, 'exit')
    expect(existsSync(path)).toBe(true)
    const server = await serveShelf(openShelf(), path)
    const client = new RawClient(server.address)
    client.send(put(1, 'a'))
    await client.answers(1)
  })

  it('never replaces a file that is not a socket', async () => {
    const path = join(temporaryDirectory(), 'disk.raw')
    writeFileSync(path, 'data')
    await expect(serveShelf(openShelf(), path)).rejects.toThrow(
      'exists and is not a socket; it is not removed',
    )
    expect(statSync(path).size).toBe(4)
    // The lock was released, or this would fail another way.
    await expect(serveShelf(openShelf(), path)).rejects.toThrow('exists and is not a socket')
  })

  it('in a directory that does not exist is refused with its name', async () => {
    const path = join(temporaryDirectory(), 'none', 'rpc.sock')
    await expect(
      RpcServer.listen({ dispatcher: openShelf().dispatcher, address: path, lock: () => () => undefined }),
    ).rejects.toThrow(path)
  })

  it('can be locked again once released', () => {
    const path = join(temporaryDirectory(), 'lock')
    const release = lockFile(path)
    expect(release).toBeTypeOf('function')
    expect(lockFile(path)).toBeUndefined()
    release!()
    expect(lockFile(path)).toBeTypeOf('function')
  })
})

describe('parseAddress', () => {
  it.each([
    ['127.0.0.1:5260', { host: '127.0.0.1', port: 5260 }],
    ['[::1]:5260', { host: '::1', port: 5260 }],
    ['/run/qpair.sock', { path: '/run/qpair.sock' }],
    ['/run/odd:1', { path: '/run/odd:1' }],
  ])('reads %s', (text, address) => {
    expect(parseAddress(text)).toEqual(address)
  })

  it.each([
    ['127.0.0.1:65536', 'port 65536, beyond 65535'],
    [`/${'x'.repeat(107)}`, 'has 108 bytes, more than the 107'],
  ])('refuses %s', (text, reason) => {
    expect(() => parseAddress(text)).toThrow(reason)
  })
})

describe('fuzz', () => {
  const VALID = [
    put(1, 'a'),
    '{"id":2,"method":"shelf_get","params":{}}',
    '[{"id":3,"method":"shelf_get"},{"method":"shelf_put","params":{"name":"ü"}}]',
    '{"jsonrpc":"2.0","method":"rpc_get_methods","params":{"current":true},"id":"x"}',
  ]

  it.each([1, 2, 3, 4, 5, 6, 7, 8])('survives seed %i: mutated requests in torn writes', async seed => {
    const random = new Prng(seed)
    const { path } = await served()
    for (let round = 0; round < 40; round++) {
      const client = new RawClient(path)
      const bytes = Buffer.from(Array.from({ length: 4 }, () => VALID[random.below(VALID.length)]).join(''))
      for (let flips = random.below(6); flips > 0; flips--)
        bytes[random.below(bytes.length)] = random.below(256)
      for (let i = 0; i < bytes.length; ) {
        const size = 1 + random.below(60)
        client.send(bytes.subarray(i, i + size))
        i += size
      }
      client.socket.end()
      await client.closed
      for (const line of client.lines()) expect(() => JSON.parse(line), `seed ${seed}`).not.toThrow()
    }
    const client = new RawClient(path)
    client.send('{"id":"alive","method":"shelf_get"}')
    expect(await client.answers(1), `seed ${seed}`).toMatchObject([{ id: 'alive' }])
  })
})
