import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { type AddressInfo, connect, createServer, type Server, type Socket } from 'node:net'
import { constants, tmpdir } from 'node:os'
import { join } from 'node:path'
import { isDeepStrictEqual } from 'node:util'
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest'
import { TimerHeap } from '../../src/core/clock.ts'
import type { Listener, SocketAddress, Stream, StreamEvents } from '../../src/reactor/network.ts'
import { Reactor } from '../../src/reactor/reactor.ts'
import { UringNetwork } from '../../src/reactor/uring-network.ts'
import { Arena, BufferPool, bytesAt, viewAt } from '../../src/sys/memory.ts'
import { Uring } from '../../src/sys/uring.ts'

let arena: Arena
let ring: Uring
let network: UringNetwork
let reactor: Reactor
let directory: string

beforeAll(() => {
  arena = new Arena(64 << 20)
  ring = Uring.open(arena, { entries: 64, completions: 256 })
  network = new UringNetwork(ring, arena)
  reactor = new Reactor({
    index: 0,
    clock: new TimerHeap(() => performance.now() * 1000),
    network,
    arena,
    buffers: new BufferPool(arena),
    control: { post() {}, call: () => Promise.reject(new Error('no control thread')), on() {} },
    ring,
  })
  network.attach(reactor)
  directory = mkdtempSync(join(tmpdir(), 'qpair-net-'))
})

afterAll(() => {
  ring.close()
  arena.close()
  rmSync(directory, { recursive: true })
})

const cleanups: (() => void)[] = []
afterEach(() => {
  for (const cleanup of cleanups.splice(0)) cleanup()
})

async function until(condition: () => boolean): Promise<void> {
  while (!condition()) {
    reactor.poll()
    await new Promise(resolve => setImmediate(resolve))
  }
}

/** Sends back what it receives, in the way a real connection would: one receive and one send at a time. */
class Echo implements StreamEvents {
  readonly buffer = arena.allocate(1 << 16, 4096)
  readonly iovecs = arena.allocate(64)
  readonly received: number[] = []
  stream: Stream | undefined
  closed = 0

  start(stream: Stream): void {
    this.stream = stream
    stream.receive(this.buffer, 1 << 16)
  }

  onReceived(result: number): void {
    this.received.push(result)
    if (result <= 0) {
      this.stream!.close()
      return
    }
    const at = arena.offsetOf(this.iovecs)
    arena.view.setUint32(at, this.buffer % 2 ** 32, true)
    arena.view.setUint32(at + 4, this.buffer / 2 ** 32, true)
    arena.view.setUint32(at + 8, result, true)
    arena.view.setUint32(at + 12, 0, true)
    this.stream!.send(this.iovecs, 1)
  }

  onSent(result: number): void {
    if (result > 0) this.stream!.receive(this.buffer, 1 << 16)
    else this.stream!.close()
  }

  onClosed(): void {
    this.closed++
  }
}

/** Of a connection from that port, in bytes: what the kernel holds back at this end, and what nobody has read at the other. */
function queuesOf(port: number): { unsent: number; unread: number } {
  const end = `:${port.toString(16).toUpperCase().padStart(4, '0')}`
  const rows = readFileSync('/proc/net/tcp', 'utf8')
    .split('\n')
    .map(line => line.trim().split(/\s+/))
  // sl, local_address, rem_address, st, tx_queue:rx_queue
  const [unsent = '0'] = rows.find(row => row[1]?.endsWith(end))?.[4]?.split(':') ?? []
  const [, unread = '0'] = rows.find(row => row[2]?.endsWith(end))?.[4]?.split(':') ?? []
  return { unsent: Number.parseInt(unsent, 16), unread: Number.parseInt(unread, 16) }
}

function listenEcho(address: SocketAddress): { listener: Listener; echoes: Echo[] } {
  const echoes: Echo[] = []
  const listener = network.listen(address, 16, socket => {
    const echo = new Echo()
    echoes.push(echo)
    echo.start(network.adopt(socket, echo))
  })
  cleanups.push(() => listener.close())
  return { listener, echoes }
}

describe.each([
  ['IPv4', { host: '127.0.0.1', port: 0 }],
  ['IPv6', { host: '::1', port: 0 }],
])('a listener on %s', (_, address) => {
  it('accepts a connection, knows both addresses, echoes a megabyte and hears of the end', async () => {
    const { listener, echoes } = listenEcho(address)
    expect(listener.address.host).toBe(address.host)
    expect(listener.address.port).toBeGreaterThan(0)

    const client = connect(listener.address.port, address.host)
    const sent = Buffer.alloc(1 << 20, 'qpair over io_uring ')
    const back: Buffer[] = []
    let ended = false
    client.on('data', chunk => back.push(chunk))
    client.on('end', () => (ended = true))
    client.write(sent)
    await until(() => back.reduce((sum, chunk) => sum + chunk.length, 0) === sent.length)
    expect(Buffer.concat(back).equals(sent)).toBe(true)
    expect(echoes[0]!.stream!.remote.port).toBe(client.localPort)
    expect(echoes[0]!.stream!.local).toEqual(listener.address)

    client.end()
    await until(() => ended && echoes[0]!.closed > 0)
    expect(echoes[0]!.closed).toBe(1)
    expect(echoes[0]!.received.at(-1)).toBe(0)
  })
})

describe('a Unix socket', () => {
  it('is a listener like any other', async () => {
    const path = join(directory, 'echo.sock')
    const { echoes } = listenEcho({ host: path, port: 0 })
    const client = connect(path)
    let back = ''
    client.on('data', chunk => (back += chunk))
    client.write('hello')
    await until(() => back === 'hello')
    client.destroy()
    await until(() => echoes[0]?.closed === 1)
  })
})

describe('connect', () => {
  let server: Server
  let port: number
  const sockets: Socket[] = []

  beforeAll(async () => {
    server = createServer(socket => sockets.push(socket))
    await new Promise<void>(resolve => server.listen(0, '127.0.0.1', resolve))
    port = (server.address() as { port: number }).port
  })

  afterAll(() => {
    for (const socket of sockets) socket.destroy()
    server.close()
  })

  function attempt(remote: SocketAddress, source?: SocketAddress, timeoutMs = 10_000) {
    const outcome: { stream?: Stream | undefined; errno?: number; events: Echo } = { events: new Echo() }
    const giveUp = network.connect(remote, source, timeoutMs, outcome.events, (stream, errno) => {
      outcome.stream = stream
      outcome.errno = errno
    })
    return { outcome, giveUp }
  }

  it('reaches a server, from the source address that was asked for', async () => {
    const { outcome } = attempt({ host: '127.0.0.1', port }, { host: '127.0.0.2', port: 0 })
    await until(() => outcome.errno !== undefined && sockets.length > 0)
    expect(outcome.errno).toBe(0)
    expect(sockets.at(-1)!.remoteAddress).toBe('127.0.0.2')
    outcome.stream!.close()
    await until(() => outcome.events.closed === 1)
  })

  it('tells ECONNREFUSED where nobody listens', async () => {
    const { outcome } = attempt({ host: '127.0.0.1', port: 1 })
    await until(() => outcome.errno !== undefined)
    expect(outcome.errno).toBe(constants.errno.ECONNREFUSED)
    expect(outcome.stream).toBeUndefined()
  })

  it('tells EINVAL for what is no address, later, not from inside the call', async () => {
    const { outcome } = attempt({ host: 'no address', port: 1 })
    expect(outcome.errno).toBeUndefined()
    await until(() => outcome.errno !== undefined)
    expect(outcome.errno).toBe(constants.errno.EINVAL)
  })

  it('ends receive and send of a connection that is closed under them', async () => {
    const { outcome } = attempt({ host: '127.0.0.1', port })
    await until(() => outcome.errno !== undefined)
    outcome.events.start(outcome.stream!)
    reactor.poll()
    outcome.stream!.close()
    await until(() => outcome.events.closed === 1)
    expect(outcome.events.received).toHaveLength(1)
  })

  it('sends nothing more of a connection that it made and closed', async () => {
    // It takes only what fits into its kernel's buffers, as a target does that hangs.
    const hung = createServer({ pauseOnConnect: true })
    const accepted = new Promise<Socket>(resolve => hung.once('connection', resolve))
    await new Promise<void>(resolve => hung.listen(0, '127.0.0.1', resolve))
    cleanups.push(() => hung.close())
    const { outcome } = attempt({ host: '127.0.0.1', port: (hung.address() as AddressInfo).port })
    await until(() => outcome.errno !== undefined)
    const { events, stream } = outcome
    events.onSent = () => {}
    // 64 MiB of the same 64 KiB.
    const count = 1024
    const iovecs = arena.allocate(count * 16)
    for (let i = 0; i < count; i++) {
      viewAt(iovecs, count * 16).setBigUint64(i * 16, BigInt(events.buffer), true)
      viewAt(iovecs, count * 16).setBigUint64(i * 16 + 8, 65536n, true)
    }
    stream!.send(iovecs, count)
    const socket = await accepted
    let queues = { unsent: 0, unread: 0 }
    await until(() => {
      const before = queues
      queues = queuesOf(socket.remotePort!)
      return queues.unsent > 0 && queues.unread > 0 && isDeepStrictEqual(queues, before)
    })
    stream!.close()
    await until(() => events.closed === 1)

    let received = 0
    socket.on('data', data => (received += data.length))
    const over = new Promise(resolve => socket.once('error', resolve).once('end', resolve))
    socket.resume()
    await over
    expect(received).toBe(queues.unread)
  })

  it('receives into two places, the second once the first is full', async () => {
    const { outcome } = attempt({ host: '127.0.0.1', port })
    const known = sockets.length
    await until(() => outcome.errno !== undefined && sockets.length > known)
    sockets.at(-1)!.write('abcdefgh')
    await until(() => true)
    const { buffer } = outcome.events
    let received = 0
    outcome.events.onReceived = result => (received = result)
    outcome.stream!.receiveSplit(buffer, 3, buffer + 100, 50)
    await until(() => received !== 0)
    expect(received).toBe(8)
    expect(Buffer.from(bytesAt(buffer, 3)).toString()).toBe('abc')
    expect(Buffer.from(bytesAt(buffer + 100, 5)).toString()).toBe('defgh')
    outcome.stream!.close()
    await until(() => outcome.events.closed === 1)
  })
})

describe('an address in use', () => {
  it('is refused with the errno and the address', () => {
    const { listener } = listenEcho({ host: '127.0.0.1', port: 0 })
    expect(() => network.listen(listener.address, 1, () => {})).toThrow(
      `bind to 127.0.0.1:${listener.address.port}: EADDRINUSE`,
    )
  })
})
