/**
 * A back end at the wire: it answers what the document says, or what a test says, and notes what it was sent. It serves no
 * I/O.
 */
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { ReactorBdevs } from '../../src/bdev/reactor-bdevs.ts'
import { BdevRegistry } from '../../src/bdev/registry.ts'
import type { SysError } from '../../src/core/errors.ts'
import { Acceptor, ReactorAcceptor } from '../../src/reactor/acceptor.ts'
import {
  type MessageListener,
  type MessageSocket,
  MessageSockets,
  ReactorMessageSockets,
  type SocketMessage,
} from '../../src/reactor/message-sockets.ts'
import { closeAll, sendMessage } from '../../src/sys/unix-message.ts'
import type { ControllerOptions } from '../../src/virtio/controller.ts'
import { virtioDriver } from '../../src/virtio/driver.ts'
import { FRAMING } from '../../src/virtio/front-end.ts'
import { installVirtio } from '../../src/virtio/reactor-virtio.ts'
import { VirtioControllers } from '../../src/virtio/virtio-controllers.ts'
import { LocalReactorGroup } from '../support/reactor.ts'

const VERSION_1 = 1n << 32n
const PROTOCOL_FEATURES = 1n << 30n
const FLUSH = 1n << 9n
/** MQ, REPLY_ACK, BACKEND_REQ, CONFIG. */
export const PROTOCOL = (1n << 0n) | (1n << 3n) | (1n << 5n) | (1n << 9n)

export interface Sent {
  readonly request: number
  readonly flags: number
  readonly payload: Buffer
}

/** A request, its flags and its payload as bytes. */
export function message(request: number, flags: number, payload: Uint8Array = new Uint8Array(0)): Uint8Array {
  const bytes = Buffer.alloc(12 + payload.length)
  bytes.writeUInt32LE(request, 0)
  bytes.writeUInt32LE(flags, 4)
  bytes.writeUInt32LE(payload.length, 8)
  bytes.set(payload, 12)
  return bytes
}

export function u64(value: bigint): Uint8Array {
  const bytes = Buffer.alloc(8)
  bytes.writeBigUInt64LE(value)
  return bytes
}

/** What a request is answered with: bytes on the wire, whatever they are; null closes the connection. */
export type Answer = (sent: Sent) => Uint8Array | null | undefined

export class BackEnd {
  readonly directory = mkdtempSync(join(tmpdir(), 'qpair-back-end-'))
  readonly path = join(this.directory, 'disk')
  readonly reactors = new LocalReactorGroup({ ring: true, time: 'real', arenaBytes: 8 << 20 })
  readonly bdevs = new BdevRegistry(this.reactors, [virtioDriver])
  readonly controllers: VirtioControllers
  readonly sent: Sent[] = []
  /** In sectors. */
  capacity = 2048
  connections = 0
  /** By request; what is not here is answered as the document says. */
  readonly answers = new Map<number, Answer>()
  readonly #sockets: MessageSockets
  #listener: MessageListener | undefined
  #socket: MessageSocket | undefined
  #channel = -1
  #open = 0

  constructor() {
    const reactor = this.reactors.reactors[0]!
    installVirtio(reactor)
    new ReactorMessageSockets(reactor, new ReactorAcceptor(reactor))
    new ReactorBdevs(reactor, [virtioDriver])
    this.#sockets = new MessageSockets(this.reactors, new Acceptor(this.reactors))
    this.controllers = new VirtioControllers({ ...this, sockets: this.#sockets })
  }

  async listen(): Promise<void> {
    this.#listener = await this.reactors.run(
      this.#sockets.listen(this.path, { framing: FRAMING }, socket => void this.#serve(socket)),
    )
  }

  attach(options: Partial<ControllerOptions> = {}): Promise<string[]> {
    const attached = this.controllers.attach({
      name: 'V0',
      path: this.path,
      kind: 'blk',
      vqCount: undefined,
      vqSize: 64,
      packedRing: false,
      ...options,
    })
    return this.reactors.run(attached.then(disks => disks.map(({ name }) => name)))
  }

  /** Ends the connection there is. */
  async drop(): Promise<void> {
    await this.reactors.run(this.#socket!.close())
  }

  /** Sends on the socket of the front end, or on the one for the back end's own requests. */
  say(bytes: Uint8Array): void {
    this.#socket!.send(bytes)
  }

  ask(bytes: Uint8Array): void {
    sendMessage(this.#channel, bytes)
  }

  /** Waits until no front end is connected any more. */
  async gone(): Promise<void> {
    await this.reactors.until(() => this.#open === 0)
    if (this.#channel >= 0) closeAll([this.#channel])
    this.#channel = -1
  }

  async close(): Promise<void> {
    await this.reactors.run(this.controllers.stop())
    await this.reactors.run(Promise.all([this.#listener?.close(), this.#socket?.close()]))
    if (this.#channel >= 0) closeAll([this.#channel])
    this.reactors.close()
    rmSync(this.directory, { recursive: true })
  }

  async #serve(socket: MessageSocket): Promise<void> {
    this.connections++
    this.#open++
    this.#socket = socket
    for (let next = await receive(socket); next !== null; next = await receive(socket)) {
      const bytes = Buffer.from(next.bytes)
      const sent = {
        request: bytes.readUInt32LE(0),
        flags: bytes.readUInt32LE(4),
        payload: bytes.subarray(12),
      }
      this.sent.push(sent)
      this.#keep(sent.request, [...next.descriptors])
      const given = this.answers.get(sent.request)
      const answer = given === undefined ? this.#right(sent) : given(sent)
      if (answer === null) break
      if (answer !== undefined) this.#send(socket, answer)
    }
    await socket.close()
    this.#open--
  }

  /** A front end that has gone meanwhile misses it. */
  #send(socket: MessageSocket, answer: Uint8Array): void {
    try {
      socket.send(answer)
    } catch (error) {
      if ((error as SysError).code !== 'EPIPE') throw error
    }
  }

  /** Keeps the descriptor of SET_BACKEND_REQ_FD. */
  #keep(request: number, descriptors: number[]): void {
    if (request === 21) {
      if (this.#channel >= 0) closeAll([this.#channel])
      this.#channel = descriptors.shift()!
    }
    closeAll(descriptors)
  }

  /** vhost-user specification, "Front-end message types". */
  #right({ request, flags, payload }: Sent): Uint8Array | undefined {
    const reply = (body: Uint8Array): Uint8Array => message(request, 5, body)
    switch (request) {
      case 1: // GET_FEATURES
        return reply(u64(VERSION_1 | PROTOCOL_FEATURES | FLUSH))
      case 15: // GET_PROTOCOL_FEATURES
        return reply(u64(PROTOCOL))
      case 17: // GET_QUEUE_NUM
        return reply(u64(1n))
      case 31: // GET_INFLIGHT_FD, without the descriptor: nothing is kept here
      case 11: // GET_VRING_BASE
        return reply(payload)
      case 24: {
        // GET_CONFIG: le32 offset, le32 size, le32 flags, then the space, which begins with le64 capacity.
        const answer = Buffer.from(payload)
        answer.writeBigUInt64LE(BigInt(this.capacity), 12)
        return reply(answer)
      }
      default:
        return (flags & 8) !== 0 ? reply(u64(0n)) : undefined
    }
  }
}

/** The next message, or null at the end of any kind. */
async function receive(socket: MessageSocket): Promise<SocketMessage | null> {
  try {
    return await socket.receive()
  } catch {
    // What the front end did wrong, or that it has gone, is for other tests to find out.
    return null
  }
}
