/**
 * An iSCSI target with one disk in memory, for tests: RFC 7143 by hand, sharing nothing with the code under test. It lets
 * everybody in, takes unsolicited data up to the first burst and asks for the rest, and does what a test tells it to.
 */
import { createServer, type Server, type Socket } from 'node:net'

const BURST = 65536
const LUN = 1

export interface Answer {
  /** Of SCSI. */
  readonly status: number
  /** Of CHECK CONDITION: key, additional code and qualifier. */
  readonly sense?: readonly [key: number, asc: number, ascq: number]
  readonly data?: Buffer
}

/** What a test has the target do with a command: answer it, leave it unanswered, cut the connection; else it is carried out. */
export type Whim = (cdb: Buffer) => Answer | 'silence' | 'cut' | undefined

const GOOD: Answer = { status: 0 }
const check = (key: number, asc: number, ascq = 0): Answer => ({ status: 2, sense: [key, asc, ascq] })
const hex = (text: string): Buffer => Buffer.from(text.replaceAll(' ', ''), 'hex')
const bigEndian32 = (value: number): Buffer => {
  const bytes = Buffer.alloc(4)
  bytes.writeUInt32BE(value)
  return bytes
}

export class Target {
  readonly name = 'iqn.2026-01.test.qpair:disk'
  readonly blockSize: number
  disk: Buffer
  whim: Whim = () => undefined
  /** Answered to a login request in its place: status class and detail, and keys. */
  login: { readonly status: number; readonly keys: string } | undefined
  /** Operation codes of all commands, and session identifiers of all logins, in their order. */
  readonly commands: number[] = []
  readonly sessions: string[] = []
  readonly connections = new Set<Connection>()
  readonly #server: Server
  #port = 0

  constructor(blockCount: number, blockSize = 512) {
    this.blockSize = blockSize
    this.disk = Buffer.alloc(blockCount * blockSize)
    this.#server = createServer({ noDelay: true }, socket => {
      const connection = new Connection(this, socket)
      this.connections.add(connection)
      socket.on('close', () => this.connections.delete(connection))
    })
  }

  /** On the port that it had, if it had one. */
  async listen(): Promise<void> {
    await new Promise<void>((resolve, reject) => {
      this.#server.once('error', reject)
      this.#server.listen(this.#port, '127.0.0.1', resolve)
    })
    this.#port = (this.#server.address() as { port: number }).port
  }

  /** Ends every connection, and takes no more of them. */
  async close(): Promise<void> {
    this.cut()
    if (this.#server.listening) await new Promise(resolve => this.#server.close(resolve))
  }

  cut(): void {
    for (const { socket } of this.connections) socket.destroy()
  }

  get portal(): string {
    return `127.0.0.1:${this.#port}`
  }

  get url(): string {
    return `iscsi://${this.portal}/${this.name}/${LUN}`
  }

  execute(lun: number, cdb: Buffer, data: Buffer): Answer {
    const opcode = cdb[0]!
    if (opcode === 0xa0)
      return { status: 0, data: hex('00000010 00000000 0000000000000000 0001000000000000') }
    if (lun !== LUN)
      return opcode === 0x12 ? { status: 0, data: Buffer.from([0x7f, 0, 5, 2]) } : check(5, 0x25)
    switch (opcode) {
      case 0x00: // TEST UNIT READY
      case 0x35: // SYNCHRONIZE CACHE (10)
        return GOOD
      case 0x12:
        return this.#inquiry(cdb)
      case 0x1a: // MODE SENSE (6) of the caching page, with a write cache and FUA
        return {
          status: 0,
          data: hex('17001000 0812040000000000000000000000000000000000'),
        }
      case 0x9e:
        return this.#capacity()
      case 0x42:
        return this.#write(
          Number(data.readBigUInt64BE(8)),
          Buffer.alloc(data.readUInt32BE(16) * this.blockSize),
        )
      case 0x93: {
        const blocks = cdb.readUInt32BE(10)
        return this.#write(
          Number(cdb.readBigUInt64BE(2)),
          Buffer.concat(Array.from({ length: blocks }, () => data)),
        )
      }
      case 0x28:
        return this.#read(cdb.readUInt32BE(2), cdb.readUInt16BE(7))
      case 0x88:
        return this.#read(Number(cdb.readBigUInt64BE(2)), cdb.readUInt32BE(10))
      case 0x2a:
        return this.#write(cdb.readUInt32BE(2), data)
      case 0x8a:
        return this.#write(Number(cdb.readBigUInt64BE(2)), data)
      default:
        return check(5, 0x20)
    }
  }

  #read(block: number, count: number): Answer {
    const at = block * this.blockSize
    const end = at + count * this.blockSize
    return end > this.disk.length
      ? check(5, 0x21)
      : { status: 0, data: Buffer.from(this.disk.subarray(at, end)) }
  }

  #write(block: number, data: Buffer): Answer {
    const at = block * this.blockSize
    if (at + data.length > this.disk.length) return check(5, 0x21)
    data.copy(this.disk, at)
    return GOOD
  }

  #capacity(): Answer {
    const data = Buffer.alloc(32)
    data.writeBigUInt64BE(BigInt(this.disk.length / this.blockSize - 1))
    data.writeUInt32BE(this.blockSize, 8)
    data[13] = 3 // eight logical blocks in a physical one
    data[14] = 0xc0
    return { status: 0, data }
  }

  #inquiry(cdb: Buffer): Answer {
    if ((cdb[1]! & 1) === 0) {
      const text = 'QPAIR   TEST DISK       0001'
      return { status: 0, data: Buffer.concat([Buffer.from([0, 0, 6, 2, 31, 0, 0, 2]), Buffer.from(text)]) }
    }
    const pages: Record<number, string> = {
      131: '00830014 0103000c 3000000000000001deadbeef 00000000',
      // At most 4096 blocks in a command, in an UNMAP of one descriptor, and 256 in a WRITE SAME.
      176: `00b0003c 00000000 00001000 00000000 00000000 00001000 00000001 00000000 00000000 0000000000000100 ${'00'.repeat(20)}`,
      178: '00b20004 00c40200',
    }
    const page = pages[cdb[2]!]
    return page === undefined ? check(5, 0x24) : { status: 0, data: hex(page) }
  }
}

interface Write {
  readonly header: Buffer
  readonly data: Buffer
  received: number
  transfers: number
}

class Connection {
  readonly socket: Socket
  readonly #target: Target
  #input: Buffer = Buffer.alloc(0)
  #statSn = 1
  #expCmdSn = 0
  /** By initiator task tag. */
  readonly #writes = new Map<number, Write>()

  constructor(target: Target, socket: Socket) {
    this.#target = target
    this.socket = socket
    socket.on('data', data => this.#feed(data))
    // What was cut, or is cut by the other side, is what tests are about.
    socket.on('error', () => {})
  }

  #feed(data: Buffer): void {
    this.#input = Buffer.concat([this.#input, data])
    while (this.#input.length >= 48) {
      const length = this.#input.readUIntBE(5, 3)
      const whole = 48 + Math.ceil(length / 4) * 4
      if (this.#input.length < whole) return
      const pdu = this.#input.subarray(0, whole)
      this.#input = this.#input.subarray(whole)
      this.#take(pdu.subarray(0, 48), pdu.subarray(48, 48 + length))
    }
  }

  #take(header: Buffer, data: Buffer): void {
    const opcode = header[0]! & 0x3f
    if (opcode !== 0x05 && opcode !== 0x10) {
      const isImmediate = (header[0]! & 0x40) !== 0
      this.#expCmdSn = header.readUInt32BE(24) + (isImmediate ? 0 : 1)
    }
    if (opcode === 0x03) this.#login(header, data)
    else if (opcode === 0x01) this.#command(header, data)
    else if (opcode === 0x05) this.#dataOut(header, data)
    else if (opcode === 0x06) this.#send(0x26, 0x80, header)
  }

  #login(header: Buffer, data: Buffer): void {
    const { login, sessions } = this.#target
    if (!data.includes('AuthMethod')) sessions.push(header.toString('hex', 8, 14))
    if (login !== undefined) {
      const refusal = (answer: Buffer): void => void answer.writeUInt16BE(login.status, 36)
      this.#send(0x23, 0, header, Buffer.from(login.keys), answer => {
        header.copy(answer, 8, 8, 14)
        refusal(answer)
      })
      return
    }
    const isSecurity = (header[1]! & 0x0c) === 0
    const keys = isSecurity
      ? ['AuthMethod=None', 'TargetPortalGroupTag=1']
      : [
          ...['HeaderDigest=None', 'DataDigest=None', 'InitialR2T=No', 'ImmediateData=Yes'],
          ...['MaxRecvDataSegmentLength=65536', `FirstBurstLength=${BURST}`, `MaxBurstLength=${BURST}`],
          ...['MaxConnections=1', 'ErrorRecoveryLevel=0', 'MaxOutstandingR2T=1'],
        ]
    this.#send(0x23, header[1]! & 0x8f, header, Buffer.from(`${keys.join('\0')}\0`), answer => {
      header.copy(answer, 8, 8, 14)
      answer.writeUInt16BE(1, 14)
    })
  }

  #command(header: Buffer, data: Buffer): void {
    const isWrite = (header[1]! & 0x20) !== 0
    const length = header.readUInt32BE(20)
    if (!isWrite || data.length === length) {
      this.#execute(header, data)
      return
    }
    const write = {
      header: Buffer.from(header),
      data: Buffer.alloc(length),
      received: data.length,
      transfers: 0,
    }
    data.copy(write.data)
    this.#writes.set(header.readUInt32BE(16), write)
    // Without the final bit more of the first burst follows by itself.
    if ((header[1]! & 0x80) !== 0) this.#ask(write)
  }

  #dataOut(header: Buffer, data: Buffer): void {
    const tag = header.readUInt32BE(16)
    const write = this.#writes.get(tag)!
    data.copy(write.data, header.readUInt32BE(40))
    write.received += data.length
    if ((header[1]! & 0x80) === 0) return
    if (write.received < write.data.length) {
      this.#ask(write)
      return
    }
    this.#writes.delete(tag)
    this.#execute(write.header, write.data)
  }

  /** Ready to transfer. */
  #ask(write: Write): void {
    this.#send(0x31, 0x80, write.header, undefined, answer => {
      write.header.copy(answer, 8, 8, 16)
      bigEndian32(write.transfers + 1).copy(answer, 20)
      bigEndian32(write.transfers++).copy(answer, 36)
      bigEndian32(write.received).copy(answer, 40)
      bigEndian32(Math.min(BURST, write.data.length - write.received)).copy(answer, 44)
    })
  }

  #execute(header: Buffer, data: Buffer): void {
    const cdb = Buffer.from(header.subarray(32, 48))
    this.#target.commands.push(cdb[0]!)
    const wish = this.#target.whim(cdb)
    if (wish === 'silence') return
    if (wish === 'cut') {
      this.socket.destroy()
      return
    }
    const { status, sense, data: answer } = wish ?? this.#target.execute(header[9]!, cdb, data)
    if (answer === undefined) this.#respond(header, status, sense)
    else this.#sendData(header, answer)
  }

  #respond(header: Buffer, status: number, sense: Answer['sense']): void {
    const bytes = sense === undefined ? undefined : Buffer.alloc(20)
    bytes?.set([0, 18, 0x70, 0, sense![0], 0, 0, 0, 0, 10, 0, 0, 0, 0, sense![1], sense![2]])
    this.#send(0x21, 0x80, header, bytes, answer => {
      answer[3] = status
    })
  }

  /** In pieces of at most a burst, the status with the last one. */
  #sendData(header: Buffer, whole: Buffer): void {
    const expected = header.readUInt32BE(20)
    const data = whole.subarray(0, expected)
    for (let at = 0, number = 0; at < data.length || number === 0; number++) {
      const piece = data.subarray(at, at + BURST)
      const isLast = at + piece.length >= data.length
      const residual = expected - data.length
      const flags = isLast ? 0x81 | (residual > 0 ? 0x02 : 0) : 0
      const offset = at
      this.#send(0x25, flags, header, piece, answer => {
        bigEndian32(0xffffffff).copy(answer, 20)
        bigEndian32(number).copy(answer, 36)
        bigEndian32(offset).copy(answer, 40)
        if (isLast) bigEndian32(residual).copy(answer, 44)
      })
      at += piece.length
    }
  }

  #send(
    opcode: number,
    flags: number,
    request: Buffer,
    data: Buffer = Buffer.alloc(0),
    fill = (_: Buffer): void => {},
  ): void {
    const answer = Buffer.alloc(48 + Math.ceil(data.length / 4) * 4)
    answer[0] = opcode
    answer[1] = flags
    answer.writeUIntBE(data.length, 5, 3)
    request.copy(answer, 16, 16, 20)
    bigEndian32(opcode === 0x31 ? this.#statSn : this.#statSn++).copy(answer, 24)
    bigEndian32(this.#expCmdSn).copy(answer, 28)
    bigEndian32(this.#expCmdSn + 128).copy(answer, 32)
    data.copy(answer, 48)
    fill(answer)
    this.socket.write(answer)
  }
}
