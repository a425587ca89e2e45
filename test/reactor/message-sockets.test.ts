import { existsSync, mkdtempSync, rmSync, statSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest'
import { ProtocolError, SysError } from '../../src/core/errors.ts'
import { Acceptor, ReactorAcceptor } from '../../src/reactor/acceptor.ts'
import {
  type Framing,
  type MessageListener,
  type MessageSocket,
  MessageSockets,
  ReactorMessageSockets,
} from '../../src/reactor/message-sockets.ts'
import { eventfd } from '../../src/sys/libc.ts'
import { isEventfd } from '../../src/sys/shared-memory.ts'
import { connectUnix } from '../../src/sys/socket.ts'
import { closeAll, receiveMessage, sendMessage } from '../../src/sys/unix-message.ts'
import { openDescriptors } from '../support/descriptors.ts'
import { LocalReactorGroup } from '../support/reactor.ts'

/** As vhost-user has it: request, flags, size. */
const FRAMING: Framing = { headerBytes: 12, sizeAt: 8, payloadBytesMax: 64, descriptorsMax: 8 }

let reactors: LocalReactorGroup
let sockets: MessageSockets
let directory: string
let path: string
let listener: MessageListener
let accepted: MessageSocket[]
let before: number

beforeAll(() => {
  reactors = new LocalReactorGroup({ count: 2, ring: true, time: 'real' })
  for (const reactor of reactors.reactors) {
    new ReactorMessageSockets(reactor, new ReactorAcceptor(reactor))
  }
  sockets = new MessageSockets(reactors, new Acceptor(reactors))
  directory = mkdtempSync(join(tmpdir(), 'qpair-messages-'))
})

afterAll(() => {
  reactors.close()
  rmSync(directory, { recursive: true })
})

beforeEach(async () => {
  before = openDescriptors()
  path = join(directory, 'test.sock')
  accepted = []
  listener = await run(sockets.listen(path, { framing: FRAMING }, socket => accepted.push(socket)))
})

afterEach(async () => {
  await run(listener.close())
  for (const socket of accepted) await run(socket.close())
  closeAll(peers)
  closeAll(events)
  // The listening socket closes when its accept has ended.
  await reactors.until(() => openDescriptors() === before)
})

const peers: number[] = []
const events: number[] = []

const run = <T>(promise: Promise<T>): Promise<T> => reactors.run(promise)

function event(): number {
  const fd = eventfd()
  events.push(fd)
  return fd
}

/** A peer at the wire, and the socket that was accepted from it. */
async function pair(): Promise<{ peer: number; socket: MessageSocket }> {
  const peer = connectUnix(path)
  peers.push(peer)
  const count = accepted.length
  await reactors.until(() => accepted.length > count)
  return { peer, socket: accepted[count]! }
}

/** A message with a payload of `size` bytes, all `fill`. */
function message(request: number, size: number, fill = 0): Buffer {
  const bytes = Buffer.alloc(12 + size, fill)
  bytes.writeUInt32LE(request, 0)
  bytes.writeUInt32LE(1, 4)
  bytes.writeUInt32LE(size, 8)
  return bytes
}

function hangUp(peer: number): void {
  closeAll(peers.splice(peers.indexOf(peer), 1))
}

describe('a message socket', () => {
  it('receives one message after the other, however they were cut, each with its own descriptors', async () => {
    const { peer, socket } = await pair()
    const first = message(5, 10, 0xaa)
    const receiving = socket.receive()
    sendMessage(peer, first.subarray(0, 7), [event()])
    reactors.poll()
    sendMessage(peer, first.subarray(7, 14))
    reactors.poll()
    sendMessage(peer, Buffer.concat([first.subarray(14), message(6, 0)]))
    const one = (await run(receiving))!
    expect(Buffer.from(one.bytes)).toEqual(first)
    expect(one.descriptors.map(isEventfd)).toEqual([true])

    sendMessage(peer, message(7, 64), [event(), event()])
    const two = (await run(socket.receive()))!
    expect(Buffer.from(two.bytes)).toEqual(message(6, 0))
    expect(two.descriptors).toEqual([])
    const three = (await run(socket.receive()))!
    expect(three.bytes).toHaveLength(76)
    expect(three.descriptors).toHaveLength(2)
    closeAll([...one.descriptors, ...three.descriptors])
  })

  it('sends messages with descriptors', async () => {
    const { peer, socket } = await pair()
    socket.send(message(31, 20, 1), [event()])
    const target = new Uint8Array(100)
    const received: number[] = []
    expect(receiveMessage(peer, target, received, 8)).toBe(32)
    expect(Buffer.from(target.subarray(0, 32))).toEqual(message(31, 20, 1))
    expect(received.map(isEventfd)).toEqual([true])
    closeAll(received)
  })

  it('tells the end of the connection with null, again and again', async () => {
    const { peer, socket } = await pair()
    sendMessage(peer, message(1, 0))
    hangUp(peer)
    expect((await run(socket.receive()))!.bytes).toHaveLength(12)
    expect(await run(socket.receive())).toBeNull()
    expect(await run(socket.receive())).toBeNull()
  })

  it('calls what ends within a message a fault, and closes what came with it', async () => {
    const { peer, socket } = await pair()
    sendMessage(peer, message(1, 20).subarray(0, 20), [event()])
    hangUp(peer)
    await expect(run(socket.receive())).rejects.toThrow(
      new ProtocolError('the connection ended 20 bytes into a message', 20),
    )
    expect(await run(socket.receive())).toBeNull()
  })

  it('refuses a payload that is too long before it arrives', async () => {
    const { peer, socket } = await pair()
    sendMessage(peer, message(1, 65).subarray(0, 12), [event()])
    const receiving = run(socket.receive())
    await expect(receiving).rejects.toBeInstanceOf(ProtocolError)
    await expect(receiving).rejects.toThrow('a message has a payload of 65 bytes, more than 64')
  })

  it.each([
    ['at once', [9]],
    ['little by little', [5, 5]],
  ])('refuses more descriptors than a message may have, %s', async (_, counts) => {
    const { peer, socket } = await pair()
    const bytes = message(1, 0)
    const fd = event()
    for (const [i, count] of counts.entries()) {
      sendMessage(peer, bytes.subarray(i * 4, (i + 1) * 4), new Array<number>(count).fill(fd))
    }
    await expect(run(socket.receive())).rejects.toThrow('more descriptors than the 8')
  })

  it('ends a receive that waits when it is closed, and closes what arrives too late', async () => {
    const { peer, socket } = await pair()
    const receiving = socket.receive()
    const closing = socket.close()
    expect(await run(receiving)).toBeNull()
    await run(closing)
    await run(socket.close())
    expect(receiveMessage(peer, new Uint8Array(1), [], 0)).toBe(0)

    const other = await pair()
    const late = other.socket.receive()
    sendMessage(other.peer, message(1, 0), [event()])
    reactors.poll()
    void other.socket.close()
    expect(await run(late)).toBeNull()
    // `afterEach` counts descriptors.
  })

  it('does not wait for a peer that never reads', async () => {
    const { socket } = await pair()
    const flood = (): void => {
      for (;;) socket.send(new Uint8Array(4096))
    }
    expect(flood).toThrow(SysError)
    expect(flood).toThrow('EAGAIN')
  })
})

describe('connect', () => {
  it('reaches a listener, in both directions', async () => {
    const client = await run(sockets.connect(path, FRAMING))
    await reactors.until(() => accepted.length === 1)
    client.send(message(3, 8))
    expect((await run(accepted[0]!.receive()))!.bytes).toHaveLength(20)
    accepted[0]!.send(message(3, 0))
    expect((await run(client.receive()))!.bytes).toHaveLength(12)
    await run(accepted[0]!.close())
    expect(await run(client.receive())).toBeNull()
    await run(client.close())
  })

  it('tells that nobody is there', async () => {
    await expect(sockets.connect(join(directory, 'nobody'), FRAMING)).rejects.toThrow('ENOENT')
  })
})

describe('listen', () => {
  it('gives the socket file the mode and owner that were asked for, and removes it at the end', async () => {
    const other = join(directory, 'given.sock')
    const mine = { uid: process.getuid!(), gid: process.getgid!() }
    const given = await run(sockets.listen(other, { framing: FRAMING, mode: 0o660, ...mine }, () => {}))
    expect(statSync(other).mode & 0o777).toBe(0o660)
    await run(given.close())
    expect(existsSync(other)).toBe(false)
  })

  it('listens no more when the file cannot be given away', async () => {
    const other = join(directory, 'foreign.sock')
    // No user has such a number, so that it fails for root as well.
    const impossible = { framing: FRAMING, uid: 2 ** 33 }
    await expect(run(sockets.listen(other, impossible, () => {}))).rejects.toThrow(
      `cannot set owner and mode of ${other}`,
    )
    expect(existsSync(other)).toBe(false)
  })

  it('refuses a path on which this process listens already', async () => {
    await expect(run(sockets.listen(path, { framing: FRAMING }, () => {}))).rejects.toThrow(
      'another process accepts connections',
    )
  })
})
