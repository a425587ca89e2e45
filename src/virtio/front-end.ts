/**
 * A connection to a vhost-user back end, from the front end's side: sends requests and checks what comes back. One request
 * at a time is on its way.
 */
import { ProtocolError } from '../core/errors.ts'
import type { Framing, MessageSocket, SocketMessage } from '../reactor/message-sockets.ts'
import {
  ConfigHeader,
  InflightDescription,
  MemoryRegion,
  MemoryTable,
  MessageFlag,
  MessageHeader,
  ProtocolFeature,
  Request,
  VHOST_USER_VERSION,
  VringAddress,
  VringState,
} from '../spec/vhost-user.ts'
import { closeAll } from '../sys/unix-message.ts'
import type { RingAddresses } from './driver-ring.ts'

export const FRAMING: Framing = {
  headerBytes: MessageHeader.size,
  sizeAt: MessageHeader.payloadBytes.offset,
  payloadBytesMax: 4096,
  descriptorsMax: 8,
}

/** How long a back end may take to answer. */
const PATIENCE_MS = 10_000

const REQUEST_NAMES = new Map(Object.entries(Request).map(([name, number]) => [number as number, name]))

/** A request by its name, for messages. */
const nameOf = (request: number): string => REQUEST_NAMES.get(request) ?? `request ${request}`

/** Memory of ours that the back end keeps its notes in, as it described it. */
export interface InflightMemory {
  /** A descriptor, ours to close. */
  readonly fd: number
  readonly sizeBytes: number
  readonly offsetBytes: number
  readonly queueCount: number
  readonly queueSize: number
}

interface Asked {
  readonly request: number
  answer(message: SocketMessage): void
  fail(error: Error): void
}

export class FrontEnd {
  /** Settles with the reason once the connection is of no use any more. */
  readonly ended: Promise<string>
  /** PROTOCOL features that were agreed on. */
  protocolFeatures = 0n
  readonly #socket: MessageSocket
  #asked: Asked | undefined
  #end!: (reason: string) => void
  #reason: string | undefined

  constructor(socket: MessageSocket) {
    this.#socket = socket
    this.ended = new Promise(resolve => {
      this.#end = resolve
    })
    void this.#receive()
  }

  /** Ends the connection; resolves when its descriptor is closed. */
  async close(reason: string): Promise<void> {
    this.#lose(reason)
    await this.#socket.close()
  }

  has(feature: bigint): boolean {
    return (this.protocolFeatures & feature) !== 0n
  }

  async getU64(request: number): Promise<bigint> {
    return this.#payload(request, await this.#ask(request, new Uint8Array(0)), 8).getBigUint64(0, true)
  }

  setU64(request: number, value: bigint, descriptors: readonly number[] = []): Promise<void> {
    const payload = new DataView(new ArrayBuffer(8))
    payload.setBigUint64(0, value, true)
    return this.#tell(request, payload, descriptors)
  }

  /** For requests without a payload. */
  order(request: number, descriptors: readonly number[] = []): Promise<void> {
    return this.#tell(request, new DataView(new ArrayBuffer(0)), descriptors)
  }

  /** The first `sizeBytes` of the device's configuration space. */
  async getConfig(sizeBytes: number): Promise<DataView> {
    const payload = new DataView(new ArrayBuffer(ConfigHeader.size + sizeBytes))
    ConfigHeader.sizeBytes.set(payload, 0, sizeBytes)
    const answer = await this.#ask(Request.GET_CONFIG, new Uint8Array(payload.buffer))
    const view = this.#payload(Request.GET_CONFIG, answer, 0)
    const isWhole = view.byteLength >= payload.byteLength && ConfigHeader.sizeBytes.get(view, 0) === sizeBytes
    if (!isWhole) {
      throw new ProtocolError(
        `GET_CONFIG has no ${sizeBytes} bytes of configuration: the back end serves another kind of device`,
        MessageHeader.size,
      )
    }
    return new DataView(view.buffer, view.byteOffset + ConfigHeader.size, sizeBytes)
  }

  setVringState(request: number, index: number, num: number): Promise<void> {
    return this.#tell(request, vringState(index, num), [])
  }

  /** Stops a queue; resolves once the back end has nothing of it in flight. */
  async getVringBase(index: number): Promise<number> {
    const payload = vringState(index, 0)
    const answer = await this.#ask(Request.GET_VRING_BASE, new Uint8Array(payload.buffer))
    return VringState.num.get(this.#payload(Request.GET_VRING_BASE, answer, VringState.size), 0)
  }

  setVringAddress(index: number, { descriptors, driverArea, deviceArea }: RingAddresses): Promise<void> {
    const payload = new DataView(new ArrayBuffer(VringAddress.size))
    VringAddress.index.set(payload, 0, index)
    VringAddress.descriptor.set(payload, 0, descriptors)
    VringAddress.available.set(payload, 0, driverArea)
    VringAddress.used.set(payload, 0, deviceArea)
    return this.#tell(Request.SET_VRING_ADDR, payload, [])
  }

  /** SET_VRING_KICK or CALL, with an eventfd. */
  setVringFd(request: number, index: number, fd: number): Promise<void> {
    return this.setU64(request, BigInt(index), [fd])
  }

  /** One region, whose guest addresses and user addresses are the same. */
  setMemory(fd: number, address: number, sizeBytes: number): Promise<void> {
    const payload = new DataView(new ArrayBuffer(MemoryTable.size + MemoryRegion.size))
    MemoryTable.regionCount.set(payload, 0, 1)
    MemoryRegion.guestAddress.set(payload, MemoryTable.size, address)
    MemoryRegion.userAddress.set(payload, MemoryTable.size, address)
    MemoryRegion.sizeBytes.set(payload, MemoryTable.size, sizeBytes)
    return this.#tell(Request.SET_MEM_TABLE, payload, [fd])
  }

  async getInflight(queueCount: number, queueSize: number): Promise<InflightMemory> {
    const payload = new DataView(new ArrayBuffer(InflightDescription.size))
    InflightDescription.queueCount.set(payload, 0, queueCount)
    InflightDescription.queueSize.set(payload, 0, queueSize)
    const answer = await this.#ask(Request.GET_INFLIGHT_FD, new Uint8Array(payload.buffer), 1)
    const [fd] = answer.descriptors
    if (fd === undefined || answer.bytes.length < MessageHeader.size + InflightDescription.size) {
      closeAll([...answer.descriptors])
      throw new ProtocolError('GET_INFLIGHT_FD was answered without an inflight region', MessageHeader.size)
    }
    const view = this.#payload(Request.GET_INFLIGHT_FD, answer, InflightDescription.size)
    return {
      fd,
      sizeBytes: InflightDescription.mmapSize.get(view, 0),
      offsetBytes: InflightDescription.mmapOffset.get(view, 0),
      queueCount,
      queueSize,
    }
  }

  setInflight({ fd, sizeBytes, offsetBytes, queueCount, queueSize }: InflightMemory): Promise<void> {
    const payload = new DataView(new ArrayBuffer(InflightDescription.size))
    InflightDescription.mmapSize.set(payload, 0, sizeBytes)
    InflightDescription.mmapOffset.set(payload, 0, offsetBytes)
    InflightDescription.queueCount.set(payload, 0, queueCount)
    InflightDescription.queueSize.set(payload, 0, queueSize)
    return this.#tell(Request.SET_INFLIGHT_FD, payload, [fd])
  }

  /** Sends what has no answer of its own; with REPLY_ACK the back end says whether it did it. */
  async #tell(request: number, payload: DataView, descriptors: readonly number[]): Promise<void> {
    const body = new Uint8Array(payload.buffer, payload.byteOffset, payload.byteLength)
    if (!this.has(ProtocolFeature.REPLY_ACK)) {
      this.#send(request, body, 0, descriptors)
      return
    }
    this.#send(request, body, MessageFlag.NEED_REPLY, descriptors)
    const result = this.#payload(request, await this.#expect(request), 8).getBigUint64(0, true)
    if (result !== 0n)
      throw new ProtocolError(`${nameOf(request)} was refused (${result})`, MessageHeader.size)
  }

  /** `descriptorsMax`: how many may come with the answer; all others are closed. */
  async #ask(request: number, payload: Uint8Array, descriptorsMax = 0): Promise<SocketMessage> {
    this.#send(request, payload, 0, [])
    const answer = await this.#expect(request)
    if (answer.descriptors.length > descriptorsMax) {
      closeAll([...answer.descriptors])
      throw new ProtocolError(
        `${nameOf(request)} was answered with ${answer.descriptors.length} descriptors`,
        MessageHeader.size,
      )
    }
    return answer
  }

  #send(request: number, payload: Uint8Array, flags: number, descriptors: readonly number[]): void {
    if (this.#reason !== undefined) throw new Error(this.#reason)
    const bytes = new Uint8Array(MessageHeader.size + payload.length)
    const view = new DataView(bytes.buffer)
    MessageHeader.request.set(view, 0, request)
    MessageHeader.flags.set(view, 0, VHOST_USER_VERSION | flags)
    MessageHeader.payloadBytes.set(view, 0, payload.length)
    bytes.set(payload, MessageHeader.size)
    this.#socket.send(bytes, descriptors)
  }

  /** The next message, which must answer `request`. */
  #expect(request: number): Promise<SocketMessage> {
    if (this.#reason !== undefined) return Promise.reject(new Error(this.#reason))
    return new Promise((answer, fail) => {
      const timer = setTimeout(() => {
        this.#lose(`${nameOf(request)} was not answered within ${PATIENCE_MS / 1000} s`)
      }, PATIENCE_MS)
      timer.unref()
      this.#asked = {
        request,
        answer: message => {
          clearTimeout(timer)
          answer(message)
        },
        fail: error => {
          clearTimeout(timer)
          fail(error)
        },
      }
    })
  }

  /** The payload of an answer of at least that size. */
  #payload(request: number, { bytes }: SocketMessage, sizeMin: number): DataView {
    const size = bytes.length - MessageHeader.size
    if (size < sizeMin) {
      throw new ProtocolError(`${nameOf(request)} was answered with ${size} bytes, not ${sizeMin}`, 8)
    }
    return new DataView(bytes.buffer, bytes.byteOffset + MessageHeader.size, size)
  }

  async #receive(): Promise<void> {
    try {
      for (;;) {
        const message = await this.#socket.receive()
        if (message === null) break
        this.#received(message)
      }
      this.#lose('it has closed the connection')
    } catch (error) {
      this.#lose((error as Error).message)
    }
  }

  #received(message: SocketMessage): void {
    const view = new DataView(message.bytes.buffer, message.bytes.byteOffset)
    const request = MessageHeader.request.get(view, 0)
    const flags = MessageHeader.flags.get(view, 0)
    const asked = this.#asked
    const isAnswer =
      asked?.request === request &&
      (flags & MessageFlag.VERSION_MASK) === VHOST_USER_VERSION &&
      (flags & MessageFlag.REPLY) !== 0
    if (!isAnswer) {
      closeAll([...message.descriptors])
      const wanted =
        asked === undefined ? 'nothing was asked' : `the answer to ${nameOf(asked.request)} is due`
      throw new ProtocolError(
        `a message ${nameOf(request)} came with flags 0x${flags.toString(16)}, while ${wanted}`,
        0,
      )
    }
    this.#asked = undefined
    asked.answer(message)
  }

  #lose(reason: string): void {
    if (this.#reason !== undefined) return
    this.#reason = reason
    this.#asked?.fail(new Error(reason))
    this.#asked = undefined
    this.#end(reason)
  }
}

function vringState(index: number, num: number): DataView {
  const payload = new DataView(new ArrayBuffer(VringState.size))
  VringState.index.set(payload, 0, index)
  VringState.num.set(payload, 0, num)
  return payload
}
