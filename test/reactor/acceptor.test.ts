import { mkdtempSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { createConnection, createServer, type Server } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { Acceptor, ReactorAcceptor } from '../../src/reactor/acceptor.ts'
import { close } from '../../src/sys/libc.ts'
import { bindSocket, openSocket, SOCKADDR_ROOM } from '../../src/sys/socket.ts'
import { LocalReactorGroup } from '../support/reactor.ts'
import { MemoryNetwork } from '../support/stream.ts'

const NOBODY = { onReceived() {}, onSent() {}, onClosed() {} }

describe('the spreading of connections', () => {
  let network: MemoryNetwork
  let reactors: LocalReactorGroup
  let acceptor: Acceptor
  let ends: ReactorAcceptor[]
  /** What each reactor adopted: service, listener. */
  let adopted: string[][]

  beforeEach(() => {
    network = new MemoryNetwork()
    reactors = new LocalReactorGroup({ count: 2, network })
    acceptor = new Acceptor(reactors)
    adopted = [[], []]
    ends = reactors.reactors.map((reactor, index) => {
      const end = new ReactorAcceptor(reactor)
      for (const service of ['a', 'b']) {
        end.serve(service, (socket, listenerId) => {
          network.adopt(socket, NOBODY)
          adopted[index]!.push(`${service}${listenerId}`)
        })
      }
      return end
    })
  })

  afterEach(() => reactors.close())

  async function listen(service: string): Promise<{ host: string; port: number }> {
    return acceptor.listen(service, acceptor.newListenerId(), { host: '127.0.0.1', port: 0 })
  }

  async function connect(address: { host: string; port: number }): Promise<number> {
    const errno = await new Promise<number>(resolve => {
      network.connect(address, undefined, 1000, NOBODY, (_, result) => resolve(result))
    })
    for (let i = 0; i < 4; i++) await new Promise(setImmediate)
    return errno
  }

  it('gives each connection to the reactor that has the fewest, whichever service it is for', async () => {
    const a = await listen('a')
    const b = await listen('b')
    for (const address of [a, b, b, a]) await connect(address)
    expect(adopted.map(list => list.length)).toEqual([2, 2])
    expect(adopted.flat().sort()).toEqual(['a1', 'a1', 'b2', 'b2'])
  })

  it('counts a connection no more once it has ended', async () => {
    const a = await listen('a')
    for (let i = 0; i < 2; i++) await connect(a)
    ends[1]!.ended()
    await connect(a)
    await connect(a)
    expect(adopted.map(list => list.length)).toEqual([2, 2])
  })

  it('accepts nobody any more after close', async () => {
    const a = await listen('a')
    await acceptor.close(1)
    expect(await connect(a)).toBeGreaterThan(0)
    expect(adopted).toEqual([[], []])
  })
})

describe('listening through the kernel', () => {
  let directory: string
  let reactors: LocalReactorGroup
  let acceptor: Acceptor
  const servers: Server[] = []

  beforeEach(() => {
    directory = mkdtempSync(join(tmpdir(), 'qpair-acceptor-'))
    reactors = new LocalReactorGroup({ ring: true, time: 'real' })
    acceptor = new Acceptor(reactors)
    for (const reactor of reactors.reactors) new ReactorAcceptor(reactor)
  })

  afterEach(() => {
    for (const server of servers.splice(0)) server.close()
    reactors.close()
    rmSync(directory, { recursive: true })
  })

  const listen = (host: string, port = 0): Promise<{ host: string; port: number }> =>
    reactors.run(acceptor.listen('a', acceptor.newListenerId(), { host, port }))

  function occupy(where: string | number): Promise<number> {
    const server = createServer()
    servers.push(server)
    return new Promise(resolve => {
      const listening = (): void => {
        const address = server.address()
        resolve(typeof address === 'object' && address !== null ? address.port : 0)
      }
      if (typeof where === 'string') server.listen(where, listening)
      else server.listen(where, '127.0.0.1', listening)
    })
  }

  it('makes the socket file and removes it at the end', async () => {
    const path = join(directory, 's')
    expect(await listen(path)).toEqual({ host: path, port: 0 })
    expect(statSync(path).isSocket()).toBe(true)
    await reactors.run(acceptor.close(1))
    expect(() => statSync(path)).toThrow('ENOENT')
  })

  it('replaces the socket file of a process that is gone', async () => {
    const path = join(directory, 's')
    // As after SIGKILL: bound once, and nobody listens.
    const left = openSocket({ host: path, port: 0 })
    bindSocket(left, { host: path, port: 0 }, reactors.reactors[0]!.arena.allocate(SOCKADDR_ROOM))
    close(left)
    await listen(path)
    const client = createConnection(path)
    expect(
      await new Promise(resolve => client.on('connect', () => resolve('connected')).on('error', resolve)),
    ).toBe('connected')
    client.destroy()
  })

  it('leaves the socket of a process that lives, and any other file', async () => {
    const path = join(directory, 's')
    await occupy(path)
    await expect(listen(path)).rejects.toMatchObject({
      code: 'EADDRINUSE',
      message: `another process accepts connections at ${path}: stop it, or choose another path`,
    })
    const file = join(directory, 'f')
    writeFileSync(file, 'x')
    await expect(listen(file)).rejects.toMatchObject({ code: 'EEXIST' })
    expect(statSync(file).size).toBe(1)
  })

  it('names the port that is in use', async () => {
    const port = await occupy(0)
    await expect(listen('127.0.0.1', port)).rejects.toMatchObject({
      code: 'EADDRINUSE',
      message: expect.stringContaining(`127.0.0.1:${port} is in use`),
    })
  })

  it.each([
    [
      'an address of another machine',
      '192.0.2.1',
      'EADDRNOTAVAIL',
      '192.0.2.1 is no address of this machine',
    ],
    [
      'a directory that is not there',
      '/nonexistent/s',
      'ENOENT',
      'the directory of /nonexistent/s does not exist',
    ],
    ['a file as the directory', '/dev/null/s', 'EINVAL', '/dev/null/s cannot be a socket (ENOTDIR)'],
  ])('refuses %s and says so', async (_, host, code, message) => {
    await expect(listen(host)).rejects.toMatchObject({ code, message: expect.stringContaining(message) })
  })
})
