import { spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { createServer } from 'node:net'
import { join } from 'node:path'
import { describe, expect, it, onTestFinished } from 'vitest'
import { connect, type RpcClient } from '../../src/rpc/client.ts'
import { openShelf, serveShelf, type shelfMethods, temporaryDirectory } from './support.ts'

type ShelfClient = RpcClient<typeof shelfMethods>

async function connected(address: string, timeoutMs?: number): Promise<ShelfClient> {
  const client = await connect<typeof shelfMethods>(address, timeoutMs === undefined ? {} : { timeoutMs })
  onTestFinished(() => client.close())
  return client
}

/** A server that answers every connection with these bytes. */
async function parrot(answer: string): Promise<string> {
  const path = join(temporaryDirectory(), 'parrot.sock')
  const server = createServer(socket => socket.end(answer)).listen(path)
  onTestFinished(() => void server.close())
  await once(server, 'listening')
  return path
}

describe('RpcClient', () => {
  it('calls by name, with the types of the table', async () => {
    const client = await connected((await serveShelf(openShelf())).address)
    const done: true = await client.call('shelf_put', { name: 'a' })
    const names: string[] = await client.call('shelf_get')
    expect([done, names]).toEqual([true, ['a']])
    // @ts-expect-error no such method
    await expect(client.call('shelf_got')).rejects.toThrow('did you mean shelf_get?')
    // @ts-expect-error name is required
    await expect(client.call('shelf_put')).rejects.toThrow('name is required')
  })

  it('throws what the daemon answers, with method and code', async () => {
    const client = await connected((await serveShelf(openShelf())).address)
    await client.call('shelf_put', { name: 'a' })
    await expect(client.call('shelf_put', { name: 'a' })).rejects.toMatchObject({
      name: 'RpcCallError',
      method: 'shelf_put',
      code: -17,
      message: 'a lies on the shelf already',
    })
  })

  it('gives each of many overlapping calls its own answer', async () => {
    const client = await connected((await serveShelf(openShelf())).address)
    const names = Array.from({ length: 50 }, (_, i) => `n${i}`)
    await Promise.all(names.map(name => client.call('shelf_put', { name })))
    expect(await client.call('shelf_get')).toEqual(names)
  })

  it('gives up on a late answer and stays usable', async () => {
    const shelf = openShelf()
    shelf.context.gate = new Promise(() => undefined)
    const client = await connected((await serveShelf(shelf)).address)
    await expect(client.call('shelf_wait', {}, 20)).rejects.toThrow('did not answer shelf_wait within 20 ms')
    const other = await connected((await serveShelf(openShelf())).address)
    expect(await other.call('shelf_get')).toEqual([])
  })

  it('fails open calls when the daemon goes away, and later ones at once', async () => {
    const shelf = openShelf()
    shelf.context.gate = new Promise(() => undefined)
    const server = await serveShelf(shelf)
    const client = await connected(server.address)
    const call = client.call('shelf_wait')
    const failed = expect(call).rejects.toThrow(/closed the connection|ECONNRESET/)
    await server.close(0)
    await failed
    await expect(client.call('shelf_get')).rejects.toThrow(/closed the connection|ECONNRESET/)
  })

  it('says how to start a daemon when none answers', async () => {
    const path = join(temporaryDirectory(), 'none.sock')
    await expect(connect(path)).rejects.toThrow(
      `no daemon answers at ${path} (connect ENOENT ${path}); start it with: qpair serve -r ${path}`,
    )
  })

  it('tries again until the daemon is there', async () => {
    const path = join(temporaryDirectory(), 'late.sock')
    const connecting = connect<typeof shelfMethods>(path, { retries: 50 })
    await serveShelf(openShelf(), path)
    const client = await connecting
    expect(await client.call('shelf_get')).toEqual([])
    client.close()
  })

  it.each([
    ['HTTP/1.1 400 Bad Request', 'does not speak JSON-RPC'],
    ['{"id":1,', 'closed the connection'],
    [
      '{"id":null,"error":{"code":-32700,"message":"Parse error: odd"}}',
      'refused the connection: Parse error: odd',
    ],
    ['{"id":1,]}', 'does not speak JSON-RPC'],
  ])('fails its calls when a peer answers %s', async (answer, reason) => {
    const client = await connected(await parrot(answer))
    await expect(client.call('shelf_get')).rejects.toThrow(reason)
  })
})

const python = spawnSync('python3', ['--version']).status === 0

/** How SPDK's Python client talks: indented requests, params left out when empty, pieces of 4096 bytes decoded one by one. */
const PYTHON_CLIENT = String.raw`
import json, socket, sys

class Client:
    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.connect(path)
        self.buffer = ""
        self.last = 0

    def write(self, *requests):
        texts = []
        for method, params in requests:
            self.last += 1
            request = {"jsonrpc": "2.0", "method": method, "id": self.last}
            if params:
                request["params"] = params
            texts.append(json.dumps(request, indent=2))
        self.socket.sendall("\n".join(texts).encode("utf-8"))

    def read(self):
        while True:
            self.buffer = self.buffer.lstrip()
            try:
                answer, end = json.JSONDecoder().raw_decode(self.buffer)
                self.buffer = self.buffer[end:]
                return answer
            except ValueError:
                piece = self.socket.recv(4096)
                assert piece, "closed"
                self.buffer += piece.decode("utf-8")

    def call(self, method, params=None):
        self.write((method, params))
        return self.read()

client = Client(sys.argv[1])
answers = [client.call("shelf_put", {"name": "n%d-" % i + "ä€" * 30}) for i in range(100)]
answers.append(client.call("shelf_get"))
answers.append(client.call("shelf_put", {"name": "a", "wieght": 1}))
client.write(("shelf_put", {"name": "b"}), ("shelf_get", None))
answers += [client.read(), client.read()]
print(json.dumps(answers))
`

describe.skipIf(!python)("a client that talks like SPDK's, in Python (skipped without python3)", () => {
  it('is understood and understands', async () => {
    const { address } = await serveShelf(openShelf())
    const script = spawn('python3', ['-c', PYTHON_CLIENT, address], { stdio: ['ignore', 'pipe', 'inherit'] })
    let output = ''
    script.stdout.on('data', piece => {
      output += piece
    })
    await once(script, 'close')
    const answers = JSON.parse(output) as {
      id: number
      result?: unknown
      error?: { code: number; message: string }
    }[]
    expect(answers.map(({ id }) => id)).toEqual(answers.map((_, i) => i + 1))
    expect(answers.slice(0, 100).every(({ result }) => result === true)).toBe(true)
    expect(answers[100]!.result).toHaveLength(100)
    expect((answers[100]!.result as string[])[7]).toBe(`n7-${'ä€'.repeat(30)}`)
    expect(answers[101]!.error).toEqual({
      code: -32602,
      message: 'shelf_put: there is no parameter wieght; did you mean weight?',
    })
    expect(answers[103]!.result).toContain('b')
  })
})
