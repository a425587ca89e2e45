/**
 * An NVMe/TCP subsystem with one port, played by a test over a network in memory: offsets and numbers are taken from the
 * specifications by hand, so that it shares nothing with the host it talks to.
 */
import type { Listener } from '../../src/reactor/network.ts'
import type { MemoryNetwork, Peer } from './stream.ts'

export interface FakeNamespace {
  nsid: number
  blockSize: number
  data: Uint8Array
  /** 16 bytes in hexadecimal. */
  uuid: string
  anaGroup: number
}

export interface FakeCommand {
  readonly connection: FakeConnection
  readonly qid: number
  readonly opcode: number
  readonly nsid: number
  readonly cid: number
  readonly sqe: DataView
  /** What came within the capsule. */
  readonly data: Uint8Array
}

export interface FakeOptions {
  readonly port?: number
  readonly subnqn?: string
  readonly cntlid?: number
  /** Bytes of in-capsule data, at most. */
  readonly inCapsuleBytes?: number
  readonly maxH2cData?: number
  /** Bytes of one R2T, and of one C2HData PDU. */
  readonly chunkBytes?: number
  /** log2 of pages. */
  readonly mdts?: number
  /** End reads with the SUCCESS flag. */
  readonly c2hSuccess?: boolean
  readonly cpda?: number
  readonly queueEntries?: number
  readonly ioQueues?: number
  readonly anatt?: number
  readonly cmic?: number
}

const hex = (text: string): Uint8Array => new Uint8Array(Buffer.from(text, 'hex'))

export class FakeController {
  readonly host = '10.0.0.1'
  readonly options: Required<FakeOptions>
  readonly namespaces: FakeNamespace[]
  /** State of each ANA group. */
  readonly anaStates = new Map<number, number>([[1, 1]])
  connections: FakeConnection[] = []
  /** What its discovery log names: subtype 2 is an NVM subsystem, 1 a referral. */
  discovery: { subtype: number; host: string; port: number; subnqn: string }[] = []
  generation = 1
  /** Every command that arrived, in order: `qid/opcode`. */
  readonly seen: string[] = []
  /** Connections made so far. */
  accepted = 0
  /** Nothing is read any more and nothing answered, as when packets are dropped. */
  isSilent = false
  /** Called for each command: a 15-bit status field to end it with, `hold` to leave it, `undefined` to do it. */
  intercept: (command: FakeCommand) => number | 'hold' | undefined = () => undefined

  /** Called with the data of each read, Identify and log page before it is sent. */
  spoil: (data: Uint8Array) => void = () => {}

  readonly #network: MemoryNetwork
  #listener: Listener | null = null
  #nextCntlid: number

  constructor(network: MemoryNetwork, namespaces: FakeNamespace[], options: FakeOptions = {}) {
    this.#network = network
    this.namespaces = namespaces
    this.options = {
      port: 4420,
      subnqn: 'nqn.2016-06.io.spdk:cnode1',
      cntlid: 1,
      inCapsuleBytes: 4096,
      maxH2cData: 131072,
      chunkBytes: 131072,
      mdts: 5,
      c2hSuccess: true,
      cpda: 0,
      queueEntries: 128,
      ioQueues: 8,
      anatt: 10,
      cmic: 0x0a,
      ...options,
    }
    this.#nextCntlid = this.options.cntlid
    this.up()
  }

  get port(): number {
    return this.options.port
  }

  up(): void {
    this.#listener ??= this.#network.listen({ host: this.host, port: this.port }, 16, socket => {
      this.accepted++
      this.connections.push(new FakeConnection(this, this.#network.accept(socket)))
    })
  }

  /** Closes every connection and refuses new ones. */
  down(): void {
    this.#listener?.close()
    this.#listener = null
    for (const connection of this.connections) connection.peer.close()
    this.connections = []
  }

  readonly poll = (): number => {
    if (this.isSilent) return 0
    let events = 0
    for (const connection of this.connections) events += connection.poll()
    this.connections = this.connections.filter(({ peer }) => !peer.sawEnd)
    return events
  }

  newCntlid(): number {
    return this.#nextCntlid++
  }

  get admin(): FakeConnection | undefined {
    return this.connections.find(({ qid }) => qid === 0)
  }

  get io(): FakeConnection | undefined {
    return this.connections.find(({ qid }) => qid > 0)
  }

  /** Completes an Asynchronous Event Request with a notice. */
  notify(info: number, logPage: number): void {
    const { admin } = this
    const cid = admin?.events.shift()
    if (cid === undefined) throw new Error('the host has asked for no event')
    admin!.respond(cid, 0, 2 | (info << 8) | (logPage << 16))
  }

  setAna(group: number, state: number): void {
    this.anaStates.set(group, state)
    this.notify(3, 0x0c)
  }
}

interface Write {
  readonly command: FakeCommand
  readonly length: number
  readonly data: Uint8Array
  received: number
}

export class FakeConnection {
  readonly controller: FakeController
  readonly peer: Peer
  qid = -1
  cntlid = 0
  keepAliveMs = 0
  /** What the host said of itself in Connect: 1024 bytes. */
  connectData: Uint8Array = new Uint8Array()
  /** Command identifiers of Asynchronous Event Requests. */
  readonly events: number[] = []
  /** Commands that `intercept` left. */
  readonly held: FakeCommand[] = []
  /** The termination request that the host sent. */
  terminated: Uint8Array | null = null
  #bytes: Uint8Array<ArrayBuffer> = new Uint8Array()
  #isInitialised = false
  #isEnabled = false
  readonly #writes = new Map<number, Write>()

  constructor(controller: FakeController, peer: Peer) {
    this.controller = controller
    this.peer = peer
  }

  poll(): number {
    const arrived = this.peer.take()
    if (arrived.length === 0) return 0
    this.#bytes = new Uint8Array([...this.#bytes, ...arrived])
    for (;;) {
      if (this.#bytes.length < 8) return 1
      const plen = new DataView(this.#bytes.buffer).getUint32(4, true)
      if (this.#bytes.length < plen) return 1
      const pdu = this.#bytes.slice(0, plen)
      this.#bytes = this.#bytes.slice(plen)
      this.#take(pdu, new DataView(pdu.buffer))
    }
  }

  respond(cid: number, statusField: number, dw0 = 0, dw1 = 0): void {
    const pdu = new DataView(new ArrayBuffer(24))
    pdu.setUint8(0, 0x05)
    pdu.setUint8(2, 24)
    pdu.setUint32(4, 24, true)
    pdu.setUint32(8, dw0, true)
    pdu.setUint32(12, dw1, true)
    pdu.setUint16(20, cid, true)
    pdu.setUint16(22, statusField << 1, true)
    this.peer.send(new Uint8Array(pdu.buffer))
  }

  /** Sends the data of a read, in chunks, and ends the command. */
  sendData(cid: number, data: Uint8Array): void {
    this.controller.spoil(data)
    const { chunkBytes, c2hSuccess } = this.controller.options
    for (let at = 0; at < data.length; at += chunkBytes) {
      const chunk = data.subarray(at, at + chunkBytes)
      const isLast = at + chunk.length === data.length
      const head = new DataView(new ArrayBuffer(24))
      head.setUint8(0, 0x07)
      head.setUint8(1, (isLast ? 4 : 0) | (isLast && c2hSuccess ? 8 : 0))
      head.setUint8(2, 24)
      head.setUint8(3, 24)
      head.setUint32(4, 24 + chunk.length, true)
      head.setUint16(8, cid, true)
      head.setUint32(12, at, true)
      head.setUint32(16, chunk.length, true)
      this.peer.send(new Uint8Array(head.buffer))
      this.peer.send(chunk)
    }
    if (!c2hSuccess) this.respond(cid, 0)
  }

  /** Does a held command now. */
  perform(command: FakeCommand): void {
    this.held.splice(this.held.indexOf(command), 1)
    this.#perform(command)
  }

  #take(pdu: Uint8Array, view: DataView): void {
    switch (view.getUint8(0)) {
      case 0x00:
        this.#initialise()
        return
      case 0x02:
        this.terminated = pdu
        this.peer.close()
        return
      case 0x04:
        this.#takeCapsule(pdu)
        return
      case 0x06:
        this.#takeData(pdu, view)
        return
      default:
        throw new Error(`a host does not send PDUs of type ${view.getUint8(0)}`)
    }
  }

  #initialise(): void {
    if (this.#isInitialised) throw new Error('ICReq comes once')
    this.#isInitialised = true
    const pdu = new DataView(new ArrayBuffer(128))
    pdu.setUint8(0, 0x01)
    pdu.setUint8(2, 128)
    pdu.setUint32(4, 128, true)
    pdu.setUint8(10, this.controller.options.cpda)
    pdu.setUint32(12, this.controller.options.maxH2cData, true)
    this.peer.send(new Uint8Array(pdu.buffer))
  }

  #takeCapsule(pdu: Uint8Array): void {
    const sqe = new DataView(pdu.buffer, 8, 64)
    const pdo = pdu[3]!
    const command: FakeCommand = {
      connection: this,
      qid: this.qid,
      opcode: sqe.getUint8(0),
      nsid: sqe.getUint32(4, true),
      cid: sqe.getUint16(2, true),
      sqe,
      data: pdo === 0 ? new Uint8Array() : pdu.slice(pdo),
    }
    this.controller.seen.push(`${this.qid}/${command.opcode.toString(16).padStart(2, '0')}`)
    const wish = this.controller.intercept(command)
    if (wish === 'hold') this.held.push(command)
    else if (wish !== undefined) this.respond(command.cid, wish)
    else this.#perform(command)
  }

  #takeData(pdu: Uint8Array, view: DataView): void {
    const cid = view.getUint16(8, true)
    const write = this.#writes.get(view.getUint16(10, true))
    if (write === undefined || write.command.cid !== cid) throw new Error(`no R2T asked for data of ${cid}`)
    const offset = view.getUint32(12, true)
    const length = view.getUint32(16, true)
    if (offset !== write.received) throw new Error(`data at ${offset} instead of ${write.received}`)
    if (length > this.controller.options.maxH2cData) throw new Error('more than MAXH2CDATA')
    write.data.set(pdu.subarray(view.getUint8(3)), offset)
    write.received += length
    const isLast = (view.getUint8(1) & 4) !== 0
    if (isLast) this.#askOrEnd(write)
  }

  #askOrEnd(write: Write): void {
    const ttag = 0x100 + write.command.cid
    if (write.received === write.length) {
      this.#writes.delete(ttag)
      this.#store(write.command, write.data)
      return
    }
    this.#writes.set(ttag, write)
    const size = Math.min(this.controller.options.chunkBytes, write.length - write.received)
    const pdu = new DataView(new ArrayBuffer(24))
    pdu.setUint8(0, 0x09)
    pdu.setUint8(2, 24)
    pdu.setUint32(4, 24, true)
    pdu.setUint16(8, write.command.cid, true)
    pdu.setUint16(10, ttag, true)
    pdu.setUint32(12, write.received, true)
    pdu.setUint32(16, size, true)
    this.peer.send(new Uint8Array(pdu.buffer))
  }

  #perform(command: FakeCommand): void {
    if (command.opcode === 0x7f) this.#performFabrics(command)
    else if (this.qid === 0) this.#performAdmin(command)
    else this.#performIo(command)
  }

  #performFabrics({ sqe, cid, data }: FakeCommand): void {
    const kind = sqe.getUint8(4)
    if (kind === 0x01) {
      this.qid = sqe.getUint16(42, true)
      this.keepAliveMs = sqe.getUint32(48, true)
      this.connectData = data
      const asked = new DataView(data.buffer, data.byteOffset).getUint16(16, true)
      this.cntlid = this.qid === 0 ? this.controller.newCntlid() : asked
      this.respond(cid, 0, this.cntlid)
    } else if (kind === 0x04) {
      const offset = sqe.getUint32(44, true)
      // CAP: MQES, CQR, TO of 1 s, NVM command set.
      if (offset === 0) this.respond(cid, 0, (this.controller.options.queueEntries - 1) | 0x0201_0000, 0x20)
      else this.respond(cid, 0, offset === 0x1c && this.#isEnabled ? 1 : 0)
    } else {
      if (sqe.getUint32(44, true) === 0x14) this.#isEnabled = (sqe.getUint32(48, true) & 1) !== 0
      this.respond(cid, 0)
    }
  }

  #performAdmin(command: FakeCommand): void {
    const { opcode, cid, sqe } = command
    if (opcode === 0x0c) this.events.push(cid)
    else if (opcode === 0x06) this.sendData(cid, this.#identify(sqe.getUint8(40), command.nsid))
    else if (opcode === 0x02) this.sendData(cid, this.#logPage(sqe))
    else if (opcode === 0x09 && sqe.getUint8(40) === 0x07) {
      const granted = Math.min(sqe.getUint16(44, true), this.controller.options.ioQueues - 1)
      this.respond(cid, 0, granted | (granted << 16))
    } else this.respond(cid, 0)
  }

  #identify(cns: number, nsid: number): Uint8Array {
    const { controller } = this
    const page = new DataView(new ArrayBuffer(4096))
    const bytes = new Uint8Array(page.buffer)
    if (cns === 0x01) this.#identifyController(page, bytes)
    if (cns === 0x02) {
      const after = controller.namespaces.filter(namespace => namespace.nsid > nsid)
      for (const [i, namespace] of after.entries()) page.setUint32(i * 4, namespace.nsid, true)
    }
    const namespace = controller.namespaces.find(candidate => candidate.nsid === nsid)
    if (namespace !== undefined && cns === 0x00) {
      const blocks = namespace.data.length / namespace.blockSize
      for (const at of [0, 8, 16]) page.setUint32(at, blocks, true)
      page.setUint8(30, 1)
      page.setUint32(92, namespace.anaGroup, true)
      bytes.set(hex(namespace.uuid), 104)
      page.setUint8(130, Math.log2(namespace.blockSize))
    }
    if (namespace !== undefined && cns === 0x03) {
      bytes.set([3, 16, 0, 0])
      bytes.set(hex(namespace.uuid), 4)
    }
    return bytes
  }

  #identifyController(page: DataView, bytes: Uint8Array): void {
    const { options } = this.controller
    const text = (at: number, size: number, value: string): void =>
      bytes.set(Buffer.from(value.padEnd(size, ' ')), at)
    page.setUint16(0, 0x1b36, true)
    text(4, 20, 'SERIAL1')
    text(24, 40, 'a model')
    text(64, 8, '1.0')
    page.setUint8(76, options.cmic)
    page.setUint8(77, options.mdts)
    page.setUint16(78, this.cntlid, true)
    page.setUint32(80, 0x0001_0400, true)
    page.setUint32(92, 0x8000_0900, true)
    page.setUint16(128, 2, true)
    page.setUint8(259, 3)
    page.setUint16(320, 10, true)
    page.setUint8(342, options.anatt)
    page.setUint32(344, 8, true)
    page.setUint32(348, 8, true)
    page.setUint16(514, options.queueEntries, true)
    page.setUint32(516, 32, true)
    // Compare, Dataset Management, Write Zeroes; and a write cache.
    page.setUint16(520, 0x0d, true)
    page.setUint8(525, 1)
    page.setUint32(536, 0x0010_0001, true)
    bytes.set(Buffer.from(options.subnqn), 768)
    page.setUint32(1792, (64 + options.inCapsuleBytes) / 16, true)
    page.setUint32(1796, 1, true)
  }

  #logPage(sqe: DataView): Uint8Array {
    const size = (sqe.getUint16(42, true) + (sqe.getUint16(44, true) << 16) + 1) * 4
    const offset = sqe.getUint32(48, true)
    const page = new DataView(new ArrayBuffer(16_384))
    if (sqe.getUint8(40) === 0x70) this.#discoveryLog(page)
    if (sqe.getUint8(40) === 0x0c) {
      page.setUint16(8, this.controller.anaStates.size, true)
      let at = 16
      for (const [group, state] of this.controller.anaStates) {
        const own = this.controller.namespaces.filter(({ anaGroup }) => anaGroup === group)
        page.setUint32(at, group, true)
        page.setUint32(at + 4, own.length, true)
        page.setUint8(at + 16, state)
        for (const [i, { nsid }] of own.entries()) page.setUint32(at + 32 + i * 4, nsid, true)
        at += 32 + own.length * 4
      }
    }
    // 27 degrees, in kelvins.
    if (sqe.getUint8(40) === 0x02) page.setUint16(1, 300, true)
    return new Uint8Array(page.buffer).slice(offset, offset + size)
  }

  #discoveryLog(page: DataView): void {
    const { discovery, generation } = this.controller
    page.setUint32(0, generation, true)
    page.setUint32(8, discovery.length, true)
    for (const [i, { subtype, host, port, subnqn }] of discovery.entries()) {
      const entry = new Uint8Array(page.buffer, 1024 * (i + 1), 1024)
      // TRTYPE TCP, ADRFAM IPv4.
      entry.set([3, 1, subtype])
      entry.set(Buffer.from(String(port).padEnd(32)), 32)
      entry.set(Buffer.from(subnqn), 256)
      entry.set(Buffer.from(host.padEnd(256)), 512)
    }
  }

  #performIo(command: FakeCommand): void {
    const { opcode, cid, sqe, nsid } = command
    const namespace = this.controller.namespaces.find(candidate => candidate.nsid === nsid)
    if (namespace === undefined) {
      this.respond(cid, 0x400b)
      return
    }
    const start = sqe.getUint32(40, true) * namespace.blockSize
    const length = (sqe.getUint16(48, true) + 1) * namespace.blockSize
    if (opcode === 0x02) {
      this.sendData(cid, namespace.data.slice(start, start + length))
    } else if (opcode === 0x00) {
      this.respond(cid, 0)
    } else if (opcode === 0x08) {
      namespace.data.fill(0, start, start + length)
      this.respond(cid, 0)
    } else if (command.data.length > 0) {
      this.#store(command, command.data)
    } else {
      const total = opcode === 0x09 ? 16 : length
      this.#askOrEnd({ command, length: total, data: new Uint8Array(total), received: 0 })
    }
  }

  #store({ opcode, cid, sqe, nsid }: FakeCommand, data: Uint8Array): void {
    const namespace = this.controller.namespaces.find(candidate => candidate.nsid === nsid)!
    const start = sqe.getUint32(40, true) * namespace.blockSize
    if (opcode === 0x05) {
      const isEqual = Buffer.compare(data, namespace.data.slice(start, start + data.length)) === 0
      this.respond(cid, isEqual ? 0 : 0x0285)
      return
    }
    if (opcode === 0x09) {
      const range = new DataView(data.buffer, data.byteOffset, 16)
      const from = range.getUint32(8, true) * namespace.blockSize
      namespace.data.fill(0, from, from + range.getUint32(4, true) * namespace.blockSize)
    } else {
      namespace.data.set(data, start)
    }
    this.respond(cid, 0)
  }
}
