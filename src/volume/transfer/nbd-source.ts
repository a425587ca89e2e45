/**
 * An export of an NBD server, read by our own client: fixed newstyle negotiation, structured replies and base:allocation
 * where the server has them. What it answers is checked against what was asked; a server that lies ends the copy.
 */
import { connect, type Socket } from 'node:net'
import { ProtocolError, RpcError } from '../../core/errors.ts'
import {
  AllocationState,
  BASE_ALLOCATION,
  ClientFlag,
  Command,
  ExportInformation,
  Greeting,
  HandshakeFlag,
  IHAVEOPT,
  Info,
  NBDMAGIC,
  OPTION_REPLY_MAGIC,
  Option,
  OptionHeader,
  OptionReply,
  REPLY_FLAG_DONE,
  REQUEST_MAGIC,
  Reply,
  ReplyType,
  Request,
  SIMPLE_REPLY_MAGIC,
  STRUCTURED_REPLY_MAGIC,
} from '../../spec/nbd.ts'
import type { Piece, Source } from './copy.ts'
import { type NbdAddress, parseNbdUri } from './nbd-uri.ts'
import { StreamReader } from './stream-reader.ts'

const CONNECT_TIMEOUT_MS = 30_000
/** Answers to options are names and numbers. */
const OPTION_BYTES_MAX = 64 << 10
/** What one question about holes is about. */
const STATUS_BYTES = 1 << 30
const EXTENTS_MAX = 1 << 20

/** A request that waits for its answer. */
interface Outstanding {
  /** Where the data of a read goes; undefined for block status. */
  readonly target: Buffer | undefined
  readonly offset: number
  readonly extents: { length: number; flags: number }[]
  error: number
  resolve(): void
  reject(error: Error): void
}

export class NbdSource implements Source {
  readonly #uri: string
  readonly #socket: Socket
  readonly #reader: StreamReader
  readonly #outstanding = new Map<number, Outstanding>()
  #sizeBytes = 0
  #knowsHoles = false
  #lastCookie = 0
  #failure: Error | undefined

  private constructor(uri: string, socket: Socket) {
    this.#uri = uri
    this.#socket = socket
    this.#reader = new StreamReader(socket)
  }

  /** Throws `RpcError` naming the address and the reason. */
  static async open(uri: string): Promise<NbdSource> {
    const address = parseNbdUri(uri)
    const socket = await connectTo(uri, address)
    const source = new NbdSource(uri, socket)
    try {
      await source.#negotiate(address.exportName)
    } catch (cause) {
      socket.destroy()
      if (cause instanceof RpcError) throw cause
      throw new RpcError('EIO', `${uri}: ${(cause as Error).message}`, { cause })
    }
    void source.#receive()
    return source
  }

  get sizeBytes(): number {
    return this.#sizeBytes
  }

  async *ranges(fromBytes: number): AsyncGenerator<readonly [number, number]> {
    if (!this.#knowsHoles) {
      if (fromBytes < this.#sizeBytes) yield [fromBytes, this.#sizeBytes]
      return
    }
    for (let at = fromBytes; at < this.#sizeBytes; ) {
      const extents = await this.#status(at, Math.min(STATUS_BYTES, this.#sizeBytes - at))
      for (const { length, flags } of extents) {
        // An extent may reach beyond what was asked about.
        const end = Math.min(at + length, this.#sizeBytes)
        if ((flags & AllocationState.ZERO) === 0) yield [at, end]
        at = end
      }
    }
  }

  read({ bytes }: Piece, offset: number, length: number): Promise<void> {
    const target = bytes.subarray(0, length)
    return this.#send(Command.READ, offset, length, target).then(() => undefined)
  }

  abort(): void {
    this.#socket.destroy()
  }

  async close(): Promise<void> {
    if (this.#failure === undefined) this.#writeRequest(Command.DISC, 0, 0, 0)
    this.#socket.destroySoon()
  }

  async #negotiate(name: string): Promise<void> {
    const greeting = view(await this.#reader.read(Greeting.size))
    checkMagic(greeting, 0, NBDMAGIC, 'it is no NBD server')
    checkMagic(greeting, 8, IHAVEOPT, 'it speaks the oldstyle protocol')
    if ((Greeting.flags.get(greeting, 0) & HandshakeFlag.FIXED_NEWSTYLE) === 0) {
      throw new RpcError('ENOTSUP', `${this.#uri}: the server does not speak fixed newstyle`)
    }
    const flags = Buffer.alloc(4)
    flags.writeUInt32BE(ClientFlag.FIXED_NEWSTYLE | ClientFlag.NO_ZEROES)
    this.#socket.write(flags)
    const isStructured = await this.#option(Option.STRUCTURED_REPLY, Buffer.alloc(0), () => {})
    if (isStructured === Reply.ACK) {
      await this.#option(Option.SET_META_CONTEXT, contextQuery(name), type => {
        if (type === Reply.META_CONTEXT) this.#knowsHoles = true
      })
    }
    const outcome = await this.#option(Option.GO, goRequest(name), (type, data) => {
      if (type !== Reply.INFO || data.length < ExportInformation.size) return
      if (data.readUInt16BE(0) === Info.EXPORT) {
        this.#sizeBytes = ExportInformation.sizeBytes.get(view(data), 0)
      }
    })
    if (outcome !== Reply.ACK) {
      const why = GO_REFUSALS[outcome] ?? `it answers 0x${outcome.toString(16)}`
      throw new RpcError('EIO', `${this.#uri}: the server does not give the export "${name}": ${why}`)
    }
    if (!Number.isSafeInteger(this.#sizeBytes)) {
      throw new ProtocolError(`an export of ${this.#sizeBytes} bytes is none`, 0)
    }
  }

  /** Sends an option and answers the type that ended it: ACK or an error. */
  async #option(option: number, data: Buffer, hear: (type: number, data: Buffer) => void): Promise<number> {
    const header = Buffer.alloc(OptionHeader.size)
    const fields = view(header)
    OptionHeader.magicHigh.set(fields, 0, IHAVEOPT[0])
    OptionHeader.magicLow.set(fields, 0, IHAVEOPT[1])
    OptionHeader.option.set(fields, 0, option)
    OptionHeader.length.set(fields, 0, data.length)
    this.#socket.write(Buffer.concat([header, data]))
    for (;;) {
      const reply = view(await this.#reader.read(OptionReply.size))
      checkMagic(reply, 0, OPTION_REPLY_MAGIC, 'an answer to an option begins otherwise')
      const answered = OptionReply.option.get(reply, 0)
      const length = OptionReply.length.get(reply, 0)
      if (answered !== option || length > OPTION_BYTES_MAX) {
        throw new ProtocolError(`option ${option} is answered as ${answered} with ${length} bytes`, 8)
      }
      const type = OptionReply.type.get(reply, 0)
      const body = await this.#reader.read(length)
      if (type === Reply.ACK || type >= 0x8000_0000) return type
      hear(type, body)
    }
  }

  async #status(offset: number, length: number): Promise<{ length: number; flags: number }[]> {
    const { extents } = await this.#send(Command.BLOCK_STATUS, offset, length, undefined)
    if (extents.length === 0 || extents.some(extent => extent.length === 0)) {
      throw new RpcError('EIO', `${this.#uri}: the server tells nothing of what is at ${offset}`)
    }
    return extents
  }

  async #send(
    type: number,
    offset: number,
    length: number,
    target: Buffer | undefined,
  ): Promise<Outstanding> {
    if (this.#failure !== undefined) throw this.#failure
    const cookie = ++this.#lastCookie
    const answer = await new Promise<Outstanding>((resolve, reject) => {
      const outstanding: Outstanding = {
        ...{ target, offset, extents: [], error: 0, reject },
        resolve: () => resolve(outstanding),
      }
      this.#outstanding.set(cookie, outstanding)
      this.#writeRequest(type, cookie, offset, length)
    })
    if (answer.error === 0) return answer
    throw new RpcError('EIO', `${this.#uri}: the server cannot read at ${offset}: error ${answer.error}`)
  }

  #writeRequest(type: number, cookie: number, offset: number, length: number): void {
    const request = Buffer.alloc(Request.size)
    const fields = view(request)
    Request.magic.set(fields, 0, REQUEST_MAGIC)
    Request.type.set(fields, 0, type)
    Request.cookieLow.set(fields, 0, cookie)
    Request.offsetBytes.set(fields, 0, offset)
    Request.lengthBytes.set(fields, 0, length)
    this.#socket.write(request)
  }

  /** Hears answers until the connection ends; then everything that waits for one fails. */
  async #receive(): Promise<void> {
    try {
      for (;;) {
        const magic = (await this.#reader.read(4)).readUInt32BE()
        if (magic === SIMPLE_REPLY_MAGIC) await this.#simpleReply()
        else if (magic === STRUCTURED_REPLY_MAGIC) await this.#structuredReply()
        else throw new ProtocolError(`an answer begins with 0x${magic.toString(16)}`, 0)
      }
    } catch (cause) {
      this.#failure = new RpcError('EIO', `${this.#uri}: ${(cause as Error).message}`, { cause })
      this.#socket.destroy()
      for (const { reject } of this.#outstanding.values()) reject(this.#failure)
      this.#outstanding.clear()
    }
  }

  async #simpleReply(): Promise<void> {
    const reply = await this.#reader.read(12)
    const outstanding = this.#take(reply.readUInt32BE(8))
    outstanding.error = reply.readUInt32BE(0)
    if (outstanding.error === 0 && outstanding.target !== undefined) {
      await this.#reader.readInto(outstanding.target)
    }
    outstanding.resolve()
  }

  /** Flags, type, cookie and length behind the magic number, then the payload. */
  async #structuredReply(): Promise<void> {
    const reply = await this.#reader.read(16)
    const cookie = reply.readUInt32BE(8)
    const outstanding = this.#outstanding.get(cookie) ?? this.#take(cookie)
    await this.#chunk(outstanding, reply.readUInt16BE(2), reply.readUInt32BE(12))
    if ((reply.readUInt16BE(0) & REPLY_FLAG_DONE) !== 0) this.#take(cookie).resolve()
  }

  async #chunk(outstanding: Outstanding, type: number, length: number): Promise<void> {
    const { target, offset, extents } = outstanding
    if (type === ReplyType.OFFSET_DATA && target !== undefined && length > 8) {
      const at = Number((await this.#reader.read(8)).readBigUInt64BE()) - offset
      checkWithin(at, length - 8, target.length)
      return this.#reader.readInto(target.subarray(at, at + length - 8))
    }
    if (length > EXTENTS_MAX) throw new ProtocolError(`a chunk of type ${type} has ${length} bytes`, 16)
    const payload = await this.#reader.read(length)
    if (type === ReplyType.OFFSET_HOLE && target !== undefined && length === 12) {
      const at = Number(payload.readBigUInt64BE()) - offset
      checkWithin(at, payload.readUInt32BE(8), target.length)
      target.fill(0, at, at + payload.readUInt32BE(8))
    } else if (type === ReplyType.BLOCK_STATUS && length >= 12 && length % 8 === 4) {
      for (let i = 4; i < length; i += 8) {
        extents.push({ length: payload.readUInt32BE(i), flags: payload.readUInt32BE(i + 4) })
      }
    } else if (type >= 0x8000 && length >= 4) outstanding.error ||= payload.readUInt32BE()
    else if (type !== ReplyType.NONE) throw new ProtocolError(`a chunk of type ${type} answers nothing`, 6)
  }

  #take(cookie: number): Outstanding {
    const outstanding = this.#outstanding.get(cookie)
    if (outstanding === undefined)
      throw new ProtocolError(`an answer is to request ${cookie}, which was not sent`, 8)
    this.#outstanding.delete(cookie)
    return outstanding
  }
}

const GO_REFUSALS: Readonly<Record<number, string>> = {
  [Reply.ERR_UNSUP]: 'it is too old to be asked for one (NBD_OPT_GO)',
  [Reply.ERR_UNKNOWN]: 'it has none of that name',
  [Reply.ERR_POLICY]: 'its policy forbids it',
  [Reply.ERR_TLS_REQD]: 'it asks for TLS, which is not spoken here',
}

function connectTo(uri: string, { host, port, socketPath }: NbdAddress): Promise<Socket> {
  return new Promise((resolve, reject) => {
    const socket = socketPath === undefined ? connect(port, host) : connect(socketPath)
    const fail = (why: string, cause?: Error): void => {
      socket.destroy()
      reject(new RpcError('ECONNREFUSED', `${uri} cannot be reached: ${why}`, { cause }))
    }
    socket.setTimeout(CONNECT_TIMEOUT_MS, () => fail(`no answer within ${CONNECT_TIMEOUT_MS / 1000} s`))
    socket.once('error', error => fail(error.message, error))
    socket.once('connect', () => {
      socket.removeAllListeners('error').setTimeout(0)
      socket.setNoDelay(true)
      resolve(socket)
    })
  })
}

const view = (bytes: Buffer): DataView => new DataView(bytes.buffer, bytes.byteOffset, bytes.length)

function checkMagic(fields: DataView, offset: number, magic: readonly [number, number], why: string): void {
  if (fields.getUint32(offset) === magic[0] && fields.getUint32(offset + 4) === magic[1]) return
  throw new ProtocolError(why, offset)
}

function checkWithin(at: number, length: number, size: number): void {
  if (at >= 0 && length >= 0 && at + length <= size) return
  throw new ProtocolError(`an answer has ${length} bytes at ${at}, and ${size} were asked for`, 0)
}

/** Length and name of the export, then one query. */
function contextQuery(name: string): Buffer {
  return Buffer.concat([text(name), uint32(1), text(BASE_ALLOCATION)])
}

/** Length and name of the export, then no wishes for information. */
const goRequest = (name: string): Buffer => Buffer.concat([text(name), Buffer.alloc(2)])

const text = (value: string): Buffer => Buffer.concat([uint32(Buffer.byteLength(value)), Buffer.from(value)])

function uint32(value: number): Buffer {
  const bytes = Buffer.alloc(4)
  bytes.writeUInt32BE(value)
  return bytes
}
