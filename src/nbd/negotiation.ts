/**
 * The fixed newstyle handshake of one connection, as a parser of bytes that arrive in any portions:
 *
 *   greeting ->   <- client flags   <- option   -> replies   <- option …   <- GO or EXPORT_NAME   -> transmission
 */
import type { BdevInfo } from '../bdev/bdev.ts'
import {
  BASE_ALLOCATION,
  BlockSizeInformation,
  ClientFlag,
  EXPORT_NAME_PADDING,
  ExportInformation,
  ExportNameReply,
  Greeting,
  HandshakeFlag,
  IHAVEOPT,
  Info,
  NBDMAGIC,
  OPTION_REPLY_MAGIC,
  Option,
  OptionHeader,
  OptionReply,
  Reply,
  STRING_SIZE_MAX,
} from '../spec/nbd.ts'
import { TRANSFER_SIZE_MAX, transmissionFlags } from './check.ts'

/** The most data of one option that is looked at, in bytes: an export's name and a few dozen queries. */
export const OPTION_SIZE_MAX = 16384
/** More options than any client needs. */
const OPTIONS_MAX = 1000
/** What a metadata context is called by in block status replies. Ours to choose. */
export const BASE_ALLOCATION_ID = 1

/** An export as the handshake sees it. */
export interface OfferedExport {
  readonly name: string
  readonly description: string
  readonly readOnly: boolean
  readonly info: BdevInfo
  /** Counts one more connection; false when there are as many as allowed. */
  enter(): boolean
}

/** What the listener offers. */
export interface Offer<Export extends OfferedExport> {
  readonly exports: readonly Export[]
  /** The empty name stands for the only export there is. */
  find(name: string): Export | undefined
}

/** `negotiating` goes on; `agreed` means that transmission follows; `over` that the connection ends. */
export type NegotiationState = 'negotiating' | 'agreed' | 'over'

export class Negotiation<Export extends OfferedExport> {
  state: NegotiationState = 'negotiating'
  /** Why it is over; empty when the client just left. */
  reason = ''
  export: Export | null = null
  structuredReplies = false

  readonly #offer: Offer<Export>
  readonly #send: (bytes: Uint8Array) => void
  #hasClientFlags = false
  #noZeroes = false
  #optionCount = 0
  /** Bytes of an oversize option that are still to be thrown away, and the option they belong to. */
  #skip = 0
  #skipped = 0
  /** The export for which `base:allocation` was selected. */
  #contextExport: Export | null = null

  /** `send` takes over what it is given. */
  constructor(offer: Offer<Export>, send: (bytes: Uint8Array) => void) {
    this.#offer = offer
    this.#send = send
    const greeting = new Uint8Array(Greeting.size)
    const view = new DataView(greeting.buffer)
    for (const [i, word] of [...NBDMAGIC, ...IHAVEOPT].entries()) view.setUint32(i * 4, word, false)
    Greeting.flags.set(view, 0, HandshakeFlag.FIXED_NEWSTYLE | HandshakeFlag.NO_ZEROES)
    send(greeting)
  }

  get baseAllocation(): boolean {
    return this.#contextExport !== null && this.#contextExport === this.export
  }

  /** Consumes what it can of the bytes from `start` to `end` and returns where it stopped. */
  take(view: DataView, start: number, end: number): number {
    let at = start
    while (this.state === 'negotiating') {
      const next = this.#takeOne(view, at, end)
      if (next === at) break
      at = next
    }
    return at
  }

  #takeOne(view: DataView, at: number, end: number): number {
    if (!this.#hasClientFlags) {
      if (end - at < 4) return at
      this.#clientFlags(view.getUint32(at, false))
      return at + 4
    }
    if (this.#skip > 0) {
      const skipped = Math.min(this.#skip, end - at)
      this.#skip -= skipped
      if (this.#skip === 0) {
        this.#refuse(this.#skipped, Reply.ERR_TOO_BIG, `at most ${OPTION_SIZE_MAX} bytes of data, please`)
      }
      return at + skipped
    }
    if (end - at < OptionHeader.size) return at
    const isMagic =
      OptionHeader.magicHigh.get(view, at) === IHAVEOPT[0] &&
      OptionHeader.magicLow.get(view, at) === IHAVEOPT[1]
    const option = OptionHeader.option.get(view, at)
    const length = OptionHeader.length.get(view, at)
    if (!isMagic) return this.#end('an option does not begin with IHAVEOPT', end)
    if (++this.#optionCount > OPTIONS_MAX) return this.#end(`more than ${OPTIONS_MAX} options`, end)
    if (length > OPTION_SIZE_MAX) {
      if (option === Option.EXPORT_NAME) return this.#end(`an export name of ${length} bytes`, end)
      this.#skip = length
      this.#skipped = option
      return at + OptionHeader.size
    }
    const dataAt = at + OptionHeader.size
    if (end - dataAt < length) return at
    this.#option(option, Buffer.from(view.buffer, view.byteOffset + dataAt, length))
    return dataAt + length
  }

  #clientFlags(flags: number): void {
    const known = ClientFlag.FIXED_NEWSTYLE | ClientFlag.NO_ZEROES
    if ((flags & ~known) !== 0) {
      this.#end(`unknown client flags 0x${flags.toString(16)}`, 0)
      return
    }
    this.#noZeroes = (flags & ClientFlag.NO_ZEROES) !== 0
    this.#hasClientFlags = true
  }

  #option(option: number, data: Buffer): void {
    switch (option) {
      case Option.EXPORT_NAME:
        this.#exportName(data)
        break
      case Option.ABORT:
        this.#reply(option, Reply.ACK)
        this.#end('', 0)
        break
      case Option.LIST:
        this.#list(data)
        break
      case Option.INFO:
      case Option.GO:
        this.#infoOrGo(option, data)
        break
      case Option.STRUCTURED_REPLY:
        if (data.length > 0) {
          this.#refuse(option, Reply.ERR_INVALID, 'structured replies are asked for without data')
          break
        }
        this.structuredReplies = true
        this.#reply(option, Reply.ACK)
        break
      case Option.LIST_META_CONTEXT:
      case Option.SET_META_CONTEXT:
        this.#metaContexts(option, data)
        break
      case Option.STARTTLS:
        this.#refuse(option, Reply.ERR_UNSUP, 'this server has no TLS')
        break
      default:
        this.#refuse(option, Reply.ERR_UNSUP, `option ${option} is unknown here`)
    }
  }

  /** The old way in: there is no answer but to hang up. */
  #exportName(data: Buffer): void {
    const name = data.toString('utf8')
    const found = data.length > STRING_SIZE_MAX ? undefined : this.#offer.find(name)
    if (found === undefined) {
      this.#end(this.#unknown(name), 0)
      return
    }
    if (!found.enter()) {
      this.#end(`${found.name} has as many connections as it allows`, 0)
      return
    }
    const reply = new Uint8Array(ExportNameReply.size + (this.#noZeroes ? 0 : EXPORT_NAME_PADDING))
    const view = new DataView(reply.buffer)
    ExportNameReply.sizeBytes.set(view, 0, sizeOf(found))
    ExportNameReply.flags.set(view, 0, this.#flags(found))
    this.#send(reply)
    this.export = found
    this.state = 'agreed'
  }

  #list(data: Buffer): void {
    if (data.length > 0) {
      this.#refuse(Option.LIST, Reply.ERR_INVALID, 'a list is asked for without data')
      return
    }
    for (const { name, description } of this.#offer.exports) {
      this.#reply(Option.LIST, Reply.SERVER, listed(name, description))
    }
    this.#reply(Option.LIST, Reply.ACK)
  }

  #infoOrGo(option: number, data: Buffer): void {
    const request = readInfoRequest(data)
    if (request === undefined) {
      this.#refuse(option, Reply.ERR_INVALID, 'the name and the number of requests do not fill the data')
      return
    }
    const found = this.#offer.find(request.name)
    if (found === undefined) {
      this.#refuse(option, Reply.ERR_UNKNOWN, this.#unknown(request.name))
      return
    }
    if (option === Option.GO && !found.enter()) {
      this.#refuse(option, Reply.ERR_POLICY, `${found.name} has as many connections as it allows`)
      return
    }
    this.#reply(option, Reply.INFO, this.#exportInformation(found))
    for (const kind of request.kinds) {
      const information = describe(found, kind)
      if (information !== undefined) this.#reply(option, Reply.INFO, information)
    }
    this.#reply(option, Reply.ACK)
    if (option === Option.INFO) return
    this.export = found
    this.state = 'agreed'
  }

  #metaContexts(option: number, data: Buffer): void {
    if (!this.structuredReplies) {
      this.#refuse(option, Reply.ERR_INVALID, 'structured replies come before metadata contexts')
      return
    }
    if (option === Option.SET_META_CONTEXT) this.#contextExport = null
    const request = readContextRequest(data)
    if (request === undefined) {
      this.#refuse(option, Reply.ERR_INVALID, 'the queries do not fill the data')
      return
    }
    const found = this.#offer.find(request.name)
    if (found === undefined) {
      this.#refuse(option, Reply.ERR_UNKNOWN, this.#unknown(request.name))
      return
    }
    const isList = option === Option.LIST_META_CONTEXT
    const isAsked = request.queries.some(query => query === BASE_ALLOCATION || (isList && query === 'base:'))
    if (isAsked || (isList && request.queries.length === 0)) {
      const context = Buffer.alloc(4 + BASE_ALLOCATION.length)
      // A list says only that the context exists; its number has no meaning there.
      context.writeUInt32BE(isList ? 0 : BASE_ALLOCATION_ID, 0)
      context.write(BASE_ALLOCATION, 4)
      this.#reply(option, Reply.META_CONTEXT, context)
      if (!isList) this.#contextExport = found
    }
    this.#reply(option, Reply.ACK)
  }

  #flags(found: Export): number {
    return transmissionFlags({
      info: found.info,
      readOnly: found.readOnly,
      structuredReplies: this.structuredReplies,
      baseAllocation: false,
    })
  }

  #exportInformation(found: Export): Uint8Array {
    const view = new DataView(new ArrayBuffer(ExportInformation.size))
    ExportInformation.type.set(view, 0, Info.EXPORT)
    ExportInformation.sizeBytes.set(view, 0, sizeOf(found))
    ExportInformation.flags.set(view, 0, this.#flags(found))
    return new Uint8Array(view.buffer)
  }

  #unknown(name: string): string {
    const names = this.#offer.exports.map(offered => `"${offered.name}"`)
    return `there is no export "${name.slice(0, 64)}" here, only ${names.slice(0, 16).join(', ') || 'none'}`
  }

  #refuse(option: number, type: number, message: string): void {
    this.#reply(option, type, Buffer.from(message))
  }

  #reply(option: number, type: number, data: Uint8Array = new Uint8Array(0)): void {
    const reply = new Uint8Array(OptionReply.size + data.length)
    const view = new DataView(reply.buffer)
    OptionReply.magicHigh.set(view, 0, OPTION_REPLY_MAGIC[0])
    OptionReply.magicLow.set(view, 0, OPTION_REPLY_MAGIC[1])
    OptionReply.option.set(view, 0, option)
    OptionReply.type.set(view, 0, type)
    OptionReply.length.set(view, 0, data.length)
    reply.set(data, OptionReply.size)
    this.#send(reply)
  }

  #end(reason: string, at: number): number {
    this.state = 'over'
    this.reason = reason
    return at
  }
}

const sizeOf = ({ info }: OfferedExport): number => info.blockCount * info.blockSize

/** The data of NBD_REP_INFO for what a client asked, undefined for what there is nothing to say about. */
function describe(found: OfferedExport, kind: number): Uint8Array | undefined {
  if (kind === Info.NAME) return typed(kind, found.name)
  if (kind === Info.DESCRIPTION) {
    return found.description === '' ? undefined : typed(kind, found.description)
  }
  if (kind !== Info.BLOCK_SIZE) return undefined
  const { blockSize, physicalBlockSize } = found.info
  const view = new DataView(new ArrayBuffer(BlockSizeInformation.size))
  BlockSizeInformation.type.set(view, 0, kind)
  BlockSizeInformation.minimum.set(view, 0, blockSize)
  BlockSizeInformation.preferred.set(view, 0, Math.max(4096, blockSize, physicalBlockSize))
  BlockSizeInformation.maximum.set(view, 0, TRANSFER_SIZE_MAX)
  return new Uint8Array(view.buffer)
}

function typed(kind: number, text: string): Uint8Array {
  const data = Buffer.alloc(2 + Buffer.byteLength(text))
  data.writeUInt16BE(kind, 0)
  data.write(text, 2)
  return data
}

/** Length of the name, name; the rest is for people. */
function listed(name: string, description: string): Uint8Array {
  const nameLength = Buffer.byteLength(name)
  const data = Buffer.alloc(4 + nameLength + Buffer.byteLength(description))
  data.writeUInt32BE(nameLength, 0)
  data.write(name, 4)
  data.write(description, 4 + nameLength)
  return data
}

/** Length of the name, name, number of requests, requests. Undefined when these do not fill the data exactly. */
function readInfoRequest(data: Buffer): { name: string; kinds: number[] } | undefined {
  if (data.length < 6) return undefined
  const nameLength = data.readUInt32BE(0)
  if (nameLength > STRING_SIZE_MAX || data.length < 6 + nameLength) return undefined
  const count = data.readUInt16BE(4 + nameLength)
  const kindsAt = 6 + nameLength
  if (data.length !== kindsAt + count * 2) return undefined
  const kinds = Array.from({ length: count }, (_, i) => data.readUInt16BE(kindsAt + i * 2))
  // A client that asks twice is answered once.
  return { name: data.toString('utf8', 4, kindsAt - 2), kinds: [...new Set(kinds)] }
}

/** Length of the name, name, number of queries, each with its length. Undefined when these do not fill the data. */
function readContextRequest(data: Buffer): { name: string; queries: string[] } | undefined {
  if (data.length < 8) return undefined
  const nameLength = data.readUInt32BE(0)
  if (nameLength > STRING_SIZE_MAX || data.length < 8 + nameLength) return undefined
  const count = data.readUInt32BE(4 + nameLength)
  const queries: string[] = []
  let at = 8 + nameLength
  for (let i = 0; i < count; i++) {
    if (data.length < at + 4) return undefined
    const length = data.readUInt32BE(at)
    if (length > STRING_SIZE_MAX || data.length < at + 4 + length) return undefined
    queries.push(data.toString('utf8', at + 4, at + 4 + length))
    at += 4 + length
  }
  return at === data.length ? { name: data.toString('utf8', 4, 4 + nameLength), queries } : undefined
}
