/**
 * A front end at the wire, for tests of the vhost-user protocol: it sends what it is told to, right or wrong, and reads
 * what comes back. The back end is real, but for the reactors' part, which a `RecordingReactor` plays unless a test wants
 * that to be real as well.
 */
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { drivers } from '../../src/bdev/drivers/index.ts'
import { ReactorBdevs } from '../../src/bdev/reactor-bdevs.ts'
import { BdevRegistry } from '../../src/bdev/registry.ts'
import { ProtocolError } from '../../src/core/errors.ts'
import { logger, logSettings } from '../../src/core/log.ts'
import { Acceptor, ReactorAcceptor } from '../../src/reactor/acceptor.ts'
import { MessageSockets, ReactorMessageSockets } from '../../src/reactor/message-sockets.ts'
import { eventfd } from '../../src/sys/libc.ts'
import { createSharedMemory } from '../../src/sys/shared-memory.ts'
import { connectUnix } from '../../src/sys/socket.ts'
import { closeAll, receiveMessage, sendMessage } from '../../src/sys/unix-message.ts'
import type { ControllerSession, SessionOptions } from '../../src/vhost/controller.ts'
import { type SessionStats, Topic } from '../../src/vhost/messages.ts'
import type { DeviceModel, ModelState } from '../../src/vhost/model.ts'
import { ReactorVhost } from '../../src/vhost/reactor-vhost.ts'
import { FrontEnds } from '../../src/vhost/session/front-ends.ts'
import { LocalReactorGroup } from '../support/reactor.ts'

const NEED_REPLY = 8

/** The bytes of a message as the document has them. */
export function wire(request: number, payload: Uint8Array = new Uint8Array(0), flags = 1): Uint8Array {
  const bytes = Buffer.alloc(12 + payload.length)
  bytes.writeUInt32LE(request, 0)
  bytes.writeUInt32LE(flags, 4)
  bytes.writeUInt32LE(payload.length, 8)
  bytes.set(payload, 12)
  return bytes
}

export function u32s(...values: number[]): Uint8Array {
  const bytes = Buffer.alloc(values.length * 4)
  for (const [i, value] of values.entries()) bytes.writeUInt32LE(value, i * 4)
  return bytes
}

export function u64s(...values: (number | bigint)[]): Uint8Array {
  const bytes = Buffer.alloc(values.length * 8)
  for (const [i, value] of values.entries()) bytes.writeBigUInt64LE(BigInt(value), i * 8)
  return bytes
}

export const joined = (...parts: Uint8Array[]): Uint8Array => Buffer.concat(parts)

export interface Reply {
  readonly request: number
  readonly flags: number
  readonly payload: Buffer
  readonly descriptors: number[]
}

export class FrontEnd {
  readonly #lab: VhostLab
  #socket: number
  /** Everything that was made for messages; closed with the front end. */
  readonly #own: number[] = []

  constructor(lab: VhostLab, socket: number) {
    this.#lab = lab
    this.#socket = socket
  }

  send(
    request: number,
    payload: Uint8Array = new Uint8Array(0),
    descriptors: readonly number[] = [],
    flags = 1,
  ): void {
    this.sendRaw(wire(request, payload, flags), descriptors)
  }

  sendRaw(bytes: Uint8Array, descriptors: readonly number[] = []): number {
    return sendMessage(this.#socket, bytes, descriptors)
  }

  /** Sends and waits for the answer. */
  async ask(request: number, payload?: Uint8Array, descriptors?: readonly number[]): Promise<Reply> {
    this.send(request, payload, descriptors)
    return (await this.receive())!
  }

  /** Sends with NEED_REPLY and resolves with the u64 that comes back: 0 for success. */
  async acknowledged(
    request: number,
    payload?: Uint8Array,
    descriptors?: readonly number[],
  ): Promise<bigint> {
    this.send(request, payload, descriptors, 1 | NEED_REPLY)
    const reply = (await this.receive())!
    if (reply.request !== request || reply.payload.length !== 8) throw new Error('this is another answer')
    return reply.payload.readBigUInt64LE()
  }

  /** The next message from the back end; null when it has hung up. */
  async receive(): Promise<Reply | null> {
    const descriptors: number[] = []
    const header = await this.#read(12, descriptors)
    if (header === null) return null
    const payload = (await this.#read(header.readUInt32LE(8), descriptors))!
    this.#own.push(...descriptors)
    return { request: header.readUInt32LE(0), flags: header.readUInt32LE(4), payload, descriptors }
  }

  /** Resolves when the back end has thrown this front end out; answers that come before that are dropped. */
  async untilHungUp(): Promise<void> {
    while ((await this.receive()) !== null);
  }

  eventfd(): number {
    const descriptor = eventfd()
    this.#own.push(descriptor)
    return descriptor
  }

  /** A descriptor that the test opened, to be closed with the front end. */
  owns(descriptor: number): number {
    this.#own.push(descriptor)
    return descriptor
  }

  memory(sizeBytes: number, name = 'guest-memory'): number {
    const descriptor = createSharedMemory(name, sizeBytes)
    this.#own.push(descriptor)
    return descriptor
  }

  /** Throws away what has come back, without waiting. Returns false once the back end has hung up. */
  drain(): boolean {
    const descriptors: number[] = []
    let result = 1
    while (result > 0) result = receiveMessage(this.#socket, new Uint8Array(65536), descriptors, 253)
    closeAll(descriptors)
    return result === -11
  }

  hangUp(): void {
    closeAll(this.#own)
    if (this.#socket >= 0) closeAll([this.#socket])
    this.#socket = -1
  }

  async #read(size: number, descriptors: number[]): Promise<Buffer | null> {
    const bytes = Buffer.alloc(size)
    let done = 0
    while (done < size) {
      let result = 0
      await this.#lab.reactors.until(() => {
        result = receiveMessage(this.#socket, bytes.subarray(done), descriptors, 8)
        return result !== -11
      })
      if (result <= 0) return null
      done += result
    }
    return bytes
  }
}

/** What the reactors were told, in order, and what they answer. */
export class RecordingReactor {
  readonly calls: { readonly topic: string; readonly body: Record<string, unknown> }[] = []
  /** Bases that STOP answers with, by queue. */
  readonly bases = new Map<number, number>()
  /** Called before a topic is answered; may wait, or throw. */
  onCall: (topic: string, body: Record<string, unknown>) => void | Promise<void> = () => {}

  answers(topic: string): (body: unknown) => Promise<unknown> {
    return async body => {
      const known = body as Record<string, unknown>
      this.calls.push({ topic, body: known })
      await this.onCall(topic, known)
      if (topic === Topic.STOP) return this.bases.get(known['index'] as number) ?? 0
      if (topic === Topic.STATS) return { queues: [] } satisfies SessionStats
      return undefined
    }
  }

  /** The last body of a topic. */
  last(topic: string): Record<string, unknown> | undefined {
    return this.calls.findLast(call => call.topic === topic)?.body
  }

  topics(): string[] {
    return this.calls.map(({ topic }) => topic.replace('vhost.', ''))
  }
}

/** A disk of which only the configuration matters. */
export class TestModel implements DeviceModel {
  readonly deviceId = 2
  readonly features = 0x200n
  readonly fixedQueues = 0
  capacity = 100

  config(): Uint8Array {
    const bytes = Buffer.alloc(60)
    bytes.writeBigUInt64LE(BigInt(this.capacity))
    return bytes
  }

  writeConfig(offset: number, bytes: Uint8Array, state: ModelState): boolean {
    if (offset !== 32) throw new ProtocolError(`byte ${offset} cannot be written`, offset)
    state.writeback = bytes[0] === 1
    return true
  }

  describe(_features: bigint, { writeback }: ModelState) {
    return { kind: 'blk', bdev: 'm0', readOnly: false, writeThrough: !writeback, serial: 'm0' } as const
  }
}

export class VhostLab {
  readonly reactors = new LocalReactorGroup({ count: 2, ring: true, time: 'real' })
  readonly vhost: readonly RecordingReactor[]
  readonly model = new TestModel()
  readonly sessions: ControllerSession[] = []
  /** Lines of the log, without time. */
  readonly lines: string[] = []
  readonly #directory = mkdtempSync(join(tmpdir(), 'qpair-vhost-'))
  readonly #frontEnds: FrontEnd[] = []
  readonly #write = logSettings.write
  #bdevs: BdevRegistry | undefined
  #ended = 0
  #listener: { close(): Promise<void> } | undefined

  constructor(part: 'recording' | 'real' = 'recording') {
    this.vhost = part === 'recording' ? this.#record() : []
    if (part === 'real') {
      this.#bdevs = new BdevRegistry(this.reactors, drivers)
      for (const reactor of this.reactors.reactors) {
        new ReactorVhost(reactor, new ReactorBdevs(reactor, drivers))
      }
    }
    logSettings.write = line => this.lines.push(line.replace(/^\S+ /, '').trimEnd())
  }

  #record(): RecordingReactor[] {
    return this.reactors.reactors.map(({ control }) => {
      const recording = new RecordingReactor()
      for (const topic of Object.values(Topic)) {
        control.on(topic, recording.answers(topic))
      }
      return recording
    })
  }

  async open(change: Partial<SessionOptions> = {}): Promise<void> {
    for (const reactor of this.reactors.reactors) {
      new ReactorMessageSockets(reactor, new ReactorAcceptor(reactor))
    }
    const sockets = new MessageSockets(this.reactors, new Acceptor(this.reactors))
    const listening = new FrontEnds(this.reactors, sockets).listen(this.#path, {}, start => {
      this.sessions.push(
        start({
          number: this.sessions.length + 1,
          controllerName: 'disk0',
          model: this.model,
          reactorIndexes: [0, 1],
          tuning: { quietUs: 50, delayBaseUs: 0, iopsThreshold: 60_000 },
          offerPacked: true,
          options: { requireSealedMemory: true },
          log: logger('vhost'),
          onEnd: () => this.#ended++,
          ...change,
        }),
      )
      return true
    })
    this.#listener = await this.reactors.run(listening)
    const disk = { block_size: 512, num_blocks: 100 }
    if (this.#bdevs !== undefined) await this.reactors.run(this.#bdevs.create('malloc', 'm0', disk))
  }

  async connect(): Promise<FrontEnd> {
    const count = this.sessions.length
    const frontEnd = new FrontEnd(this, connectUnix(this.#path))
    this.#frontEnds.push(frontEnd)
    await this.reactors.until(() => this.sessions.length > count)
    return frontEnd
  }

  /** Resolves when every session has ended, and nothing of it is left. */
  async untilEnded(): Promise<void> {
    await this.reactors.until(() => this.#ended === this.sessions.length)
  }

  async close(): Promise<void> {
    for (const frontEnd of this.#frontEnds) frontEnd.hangUp()
    await this.untilEnded()
    await this.reactors.run(this.#listener!.close())
    if (this.#bdevs !== undefined) await this.reactors.run(this.#bdevs.remove('m0'))
    // What was cancelled ends in the next rounds.
    for (let round = 0; round < 10; round++) this.reactors.poll()
    this.reactors.close()
    logSettings.write = this.#write
    rmSync(this.#directory, { recursive: true })
  }

  get #path(): string {
    return join(this.#directory, 'disk0')
  }
}
