import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { Segments } from '../../../src/bdev/io.ts'
import { logSettings } from '../../../src/core/log.ts'
import { Prng } from '../../../src/core/prng.ts'
import { type QueueEvents, TcpQueue } from '../../../src/nvme/tcp/queue.ts'
import { Transfer } from '../../../src/nvme/tcp/slots.ts'
import { Status } from '../../../src/spec/nvme-status.ts'
import { bytesAt } from '../../../src/sys/memory.ts'
import { LocalReactorGroup } from '../../support/reactor.ts'
import { fragmentedBy, MemoryNetwork, type Peer } from '../../support/stream.ts'

const lines: string[] = []
logSettings.write = line => void lines.push(line)

const hex = (text: string): Uint8Array => new Uint8Array(Buffer.from(text.replace(/\s/g, ''), 'hex'))
const textOf = (bytes: Uint8Array): string => Buffer.from(bytes).toString('hex')

// ICReq: type 0, HLEN 128, PLEN 128, PFV 0, HPDA 0, no digests, MAXR2T 0 (one).
const IC_REQ = `00 00 80 00 80000000 ${'00'.repeat(120)}`
// ICResp: PFV 0, CPDA 0, no digests, MAXH2CDATA 8192.
const IC_RESP = `01 00 80 00 80000000 0000 00 00 00200000 ${'00'.repeat(112)}`

class Recorder implements QueueEvents {
  readonly told: string[] = []
  onReady(): void {
    this.told.push('ready')
  }
  onEnding(): void {
    this.told.push('ending')
  }
  onCompleted(context: unknown, statusField: number, dw0: number): void {
    this.told.push(`${context} ${statusField.toString(16)} ${dw0}`)
  }
  onEnded(reason: string): void {
    this.told.push(`ended: ${reason}`)
  }
}

class Rig {
  readonly network: MemoryNetwork
  readonly reactors: LocalReactorGroup
  readonly events = new Recorder()
  readonly queue: TcpQueue
  peer!: Peer

  constructor(network = new MemoryNetwork()) {
    this.network = network
    this.reactors = new LocalReactorGroup({ network })
    const [reactor] = this.reactors.reactors
    reactor!.addPoller(network.poll)
    reactor!.addPoller(() => reactor!.clock.fireDue())
    network.listen({ host: '10.0.0.1', port: 4420 }, 1, socket => {
      this.peer = network.accept(socket)
    })
    const remote = { host: '10.0.0.1', port: 4420 }
    this.queue = new TcpQueue(reactor!, { remote, source: undefined, timeoutMs: 1000, depth: 4 }, this.events)
  }

  /** Connects and answers ICReq. */
  async ready(icResp = IC_RESP): Promise<void> {
    await Promise.resolve()
    this.settle()
    this.peer.take()
    this.send(icResp)
    this.queue.inCapsuleBytes = 4096
  }

  /** Polls until nothing happens any more; what a round flushes shows only in the next. */
  settle(): void {
    for (let idle = 0; idle < 2; ) idle = this.reactors.poll() > 0 ? 0 : idle + 1
  }

  send(text: string): void {
    this.peer.send(hex(text))
    this.settle()
  }

  take(): string {
    this.settle()
    return textOf(this.peer.take())
  }

  segments(...lengths: number[]): Segments {
    const { arena } = this.reactors.reactors[0]!
    const segments = new Segments(lengths.length)
    for (const length of lengths) segments.push(arena.allocate(length + 64), length)
    return segments
  }

  write(name: string, segments: Segments): void {
    const slot = this.queue.acquire()
    const at = this.queue.begin(slot, 0x01)
    this.queue.words[at + 1] = 5
    this.queue.words[at + 10] = 0x1234
    this.queue.submit(slot, Transfer.TO_CONTROLLER, segments, segments.totalBytes, name)
  }

  read(name: string, segments: Segments): void {
    const slot = this.queue.acquire()
    this.queue.words[this.queue.begin(slot, 0x02) + 1] = 5
    this.queue.submit(slot, Transfer.FROM_CONTROLLER, segments, segments.totalBytes, name)
  }
}

let rig: Rig
beforeEach(() => {
  lines.length = 0
  rig = new Rig()
})
afterEach(() => rig.reactors.close())

// CapsuleResp: dword 0, SQHD, CID and the status field with its phase bit.
const response = (cid: string, status = '0000', dw0 = '00000000'): string =>
  `05 00 18 00 18000000 ${dw0} 00000000 0000 0000 ${cid} ${status}`
// R2T: CCCID, TTAG, R2TO, R2TL.
const r2t = (cid: string, ttag: string, offset: string, length: string): string =>
  `09 00 18 00 18000000 ${cid} ${ttag} ${offset} ${length} 00000000`
// C2HData: flags, PLEN, CCCID, DATAO, DATAL.
const c2hData = (flags: string, plen: string, cid: string, datao: string, datal: string): string =>
  `07 ${flags} 18 18 ${plen} ${cid} 0000 ${datao} ${datal} 00000000`

describe('connecting', () => {
  it('sends ICReq and is ready when ICResp has come', async () => {
    await Promise.resolve()
    expect(rig.take()).toBe(textOf(hex(IC_REQ)))
    expect(rig.events.told).toEqual([])
    rig.send(IC_RESP)
    expect(rig.events.told).toEqual(['ready'])
  })

  it('ends when nobody answers ICReq', async () => {
    await Promise.resolve()
    rig.settle()
    rig.reactors.advance(1_000_001)
    rig.settle()
    expect(rig.events.told).toEqual(['ending', 'ended: the controller did not answer ICReq'])
  })

  it('ends when the connection is refused', async () => {
    const events = new Recorder()
    const options = { remote: { host: '10.0.0.2', port: 1 }, source: undefined, timeoutMs: 1, depth: 1 }
    new TcpQueue(rig.reactors.reactors[0]!, options, events)
    await Promise.resolve()
    rig.settle()
    expect(events.told).toEqual(['ending', 'ended: connecting to 10.0.0.2 port 1: ECONNREFUSED'])
  })
})

describe('commands', () => {
  it('sends a read as a capsule with a transport data block, and reads of one round in one piece', async () => {
    await rig.ready()
    rig.read('a', rig.segments(512))
    rig.read('b', rig.segments(1024))
    const capsule = (cid: string, length: string): string =>
      // PSDT 1, NSID 5, SGL1 of type 5Ah; no in-capsule data, so PDO is 0.
      `04 00 48 00 48000000  02 40 ${cid} 05000000 ${'00'.repeat(16)} ${'00'.repeat(8)} ${length} 000000 5a ${'00'.repeat(24)}`
    expect(rig.take()).toBe(textOf(hex(capsule('0000', '00020000') + capsule('0100', '00040000'))))
  })

  it('sends a short write with its data in the capsule, gathered from its segments', async () => {
    await rig.ready()
    const segments = rig.segments(4, 8)
    bytesAt(segments.addresses[0]!, 4).set([1, 2, 3, 4])
    bytesAt(segments.addresses[1]!, 8).set([5, 6, 7, 8, 9, 10, 11, 12])
    rig.write('w', segments)
    expect(rig.take()).toBe(
      // PLEN 84, PDO 72; SGL1 is a data block by offset (01h) of 12 bytes; CDW10.
      textOf(
        hex(`04 00 48 48 54000000  01 40 0000 05000000 ${'00'.repeat(16)} ${'00'.repeat(8)} 0c000000 000000 01
             34120000 ${'00'.repeat(20)}  0102030405060708090a0b0c`),
      ),
    )
    rig.send(response('0000'))
    expect(rig.events.told.at(-1)).toBe('w 0 0')
  })

  it('answers an R2T with H2CData of at most MAXH2CDATA, the last one marked', async () => {
    await rig.ready()
    const segments = rig.segments(6000, 6000)
    const data = new Prng(3).fill(new Uint8Array(12_000))
    bytesAt(segments.addresses[0]!, 6000).set(data.subarray(0, 6000))
    bytesAt(segments.addresses[1]!, 6000).set(data.subarray(6000))
    rig.write('w', segments)
    expect(rig.take()).toHaveLength(72 * 2)
    rig.send(r2t('0000', 'cdab', '00000000', '10270000'))
    // 10000 bytes asked for: 8192, then 1808.
    const first = hex('06 00 18 18 18200000 0000 cdab 00000000 00200000 00000000')
    const second = hex('06 04 18 18 28070000 0000 cdab 00200000 10070000 00000000')
    const parts = [first, data.subarray(0, 8192), second, data.subarray(8192, 10_000)]
    expect(rig.take()).toBe(textOf(Buffer.concat(parts)))
    rig.send(r2t('0000', '0100', '10270000', 'd0070000'))
    const third = hex('06 04 18 18 e8070000 0000 0100 10270000 d0070000 00000000')
    expect(rig.take()).toBe(textOf(Buffer.concat([third, data.subarray(10_000)])))
    rig.send(response('0000'))
    expect(rig.events.told.at(-1)).toBe('w 0 0')
  })

  it('puts read data in its place and ends the read with SUCCESS or with its response', async () => {
    await rig.ready()
    const a = rig.segments(4, 4)
    const b = rig.segments(8)
    rig.read('a', a)
    rig.read('b', b)
    rig.take()
    rig.send(`${c2hData('0c', '20000000', '0000', '00000000', '08000000')} 1112131415161718`)
    expect(rig.events.told.at(-1)).toBe('a 0 0')
    expect([...bytesAt(a.addresses[1]!, 4)]).toEqual([0x15, 0x16, 0x17, 0x18])
    rig.send(`${c2hData('00', '1c000000', '0100', '00000000', '04000000')} 21222324`)
    rig.send(`${c2hData('04', '1c000000', '0100', '04000000', '04000000')} 25262728 ${response('0100')}`)
    expect(rig.events.told.at(-1)).toBe('b 0 0')
    expect(textOf(bytesAt(b.addresses[0]!, 8))).toBe('2122232425262728')
  })

  it('passes on the whole status field and dword 0 of a completion', async () => {
    await rig.ready()
    rig.read('r', rig.segments(512))
    rig.take()
    // DNR, CRD 2, SCT 2, SC 81h, and the phase bit that means nothing.
    rig.send(response('0000', '03a5', '2a000000'))
    expect(rig.events.told.at(-1)).toBe('r 5281 42')
  })

  it('takes a success without all of its data for a transfer error', async () => {
    await rig.ready()
    rig.read('r', rig.segments(512))
    rig.take()
    rig.send(response('0000'))
    expect(rig.events.told.at(-1)).toBe(`r ${(0x4000 | Status.DATA_TRANSFER_ERROR).toString(16)} 0`)
  })

  it('ends no command before what it sends was taken by the stream', async () => {
    rig.reactors.close()
    rig = new Rig(new MemoryNetwork({ capacity: 200 }))
    await rig.ready()
    rig.write('w', rig.segments(512))
    rig.settle()
    // An impatient controller: 384 bytes of the capsule have not left yet.
    rig.send(response('0000'))
    expect(rig.events.told).toEqual(['ready'])
    while (rig.take() !== '');
    expect(rig.events.told.at(-1)).toBe('w 0 0')
  })

  it('has no slot when as many commands as it is deep are outstanding', async () => {
    await rig.ready()
    for (const name of 'abcd') rig.read(name, rig.segments(512))
    expect(rig.queue.acquire()).toBe(-1)
    rig.take()
    rig.send(response('0200', '0200'))
    expect(rig.queue.acquire()).toBe(2)
  })
})

describe('the end of a connection', () => {
  it('ends every command: as aborted when it had left, as never sent when not', async () => {
    await rig.ready()
    rig.read('left', rig.segments(512))
    rig.take()
    rig.read('kept', rig.segments(512))
    rig.queue.close('enough')
    rig.settle()
    expect(rig.events.told).toEqual(['ready', 'ending', 'left 371 0', 'kept 370 0', 'ended: enough'])
  })

  it('is noticed when the controller closes', async () => {
    await rig.ready()
    rig.read('r', rig.segments(512))
    rig.take()
    rig.peer.close()
    rig.settle()
    expect(rig.events.told.slice(1)).toEqual([
      'ending',
      'r 371 0',
      'ended: the controller closed the connection',
    ])
  })

  it('follows a termination request of the controller', async () => {
    await rig.ready()
    // C2HTermReq: FES 1, FEI 4, and the first eight bytes of what it complains of.
    rig.send('03 00 18 00 20000000 0100 04000000 000000000000000000 00 0000000000000000')
    expect(rig.events.told.at(-1)).toBe(
      'ended: the controller ended the connection: fatal error status 1, information 4',
    )
  })
})

// Each with FES and FEI of the H2CTermReq that answers it.
const faults: [string, string, number, number][] = [
  ['a type of the host', '04 00 48 00 48000000', 1, 0],
  ['an unassigned type', '08 00 18 00 18000000', 1, 0],
  ['a second ICResp', IC_RESP, 2, 0],
  ['C2HData with digest flags', c2hData('02', '20000000', '0000', '00000000', '08000000'), 1, 1],
  ['SUCCESS without LAST_PDU', c2hData('08', '20000000', '0000', '00000000', '08000000'), 1, 1],
  ['C2HData with another header length', '07 00 19 18 20000000', 1, 2],
  ['data within the header', '07 00 18 14 20000000', 1, 3],
  ['data that is not aligned', '07 00 18 19 20000000', 1, 3],
  ['C2HData shorter than its header', '07 00 18 18 17000000', 1, 4],
  ['data for no command', c2hData('00', '20000000', '0300', '00000000', '08000000'), 1, 8],
  ['data for a slot that does not exist', c2hData('00', '20000000', 'ffff', '00000000', '08000000'), 1, 8],
  ['data for a write', c2hData('00', '20000000', '0100', '00000000', '08000000'), 1, 8],
  ['data out of order', c2hData('00', '20000000', '0000', '04000000', '08000000'), 1, 12],
  ['a data length that is not the PDU’s', c2hData('00', '20000000', '0000', '00000000', '07000000'), 1, 16],
  ['no data at all', c2hData('00', '18000000', '0000', '00000000', '00000000'), 1, 16],
  ['more data than was asked for', c2hData('00', '18040000', '0000', '00000000', '00040000'), 4, 0],
  ['a last PDU before the data is whole', c2hData('04', '20000000', '0000', '00000000', '08000000'), 2, 0],
  ['a response with flags', '05 01 18 00 18000000', 1, 1],
  ['a response with another header length', '05 00 14 00 18000000', 1, 2],
  ['a response that is too long', '05 00 18 00 1c000000', 1, 4],
  ['a response for no command', response('0200'), 1, 20],
  ['an R2T for no command', r2t('0300', '0000', '00000000', '00020000'), 1, 8],
  ['an R2T for a read', r2t('0000', '0000', '00000000', '00020000'), 1, 8],
  ['an R2T that skips data', r2t('0100', '0000', '00020000', '00020000'), 1, 12],
  ['an R2T for nothing', r2t('0100', '0000', '00000000', '00000000'), 1, 16],
  ['an R2T beyond the data', r2t('0100', '0000', '00000000', '01400000'), 4, 0],
  ['a termination request that is too long', '03 00 18 00 99000000', 1, 4],
]

describe('a controller that breaks the protocol', () => {
  it.each(faults)('is told of %s and loses its connection', async (_, sent, fes, fei) => {
    await rig.ready()
    rig.read('read', rig.segments(512))
    rig.write('write', rig.segments(0x4000))
    rig.take()
    rig.send(sent)
    const answer = hex(rig.take())
    const view = new DataView(answer.buffer)
    expect([answer[0], view.getUint32(4, true)]).toEqual([2, answer.length])
    expect([view.getUint16(8, true), view.getUint32(10, true)]).toEqual([fes, fei])
    expect(textOf(hex(sent)).startsWith(textOf(answer.subarray(24)))).toBe(true)
    expect(rig.peer.sawEnd).toBe(true)
    expect(rig.events.told.slice(2, 4)).toEqual(['read 371 0', 'write 371 0'])
    expect(lines.at(-1)).toMatch(/10\.0\.0\.1 port 4420 sent .*: the connection ends/)
  })

  it('may not ask for more while an R2T is being answered', async () => {
    rig.reactors.close()
    rig = new Rig(new MemoryNetwork({ capacity: 1000 }))
    await rig.ready()
    rig.write('first', rig.segments(0x4000))
    rig.write('second', rig.segments(0x4000))
    rig.take()
    // The first answer fills the connection, so that the second stays queued.
    rig.send(r2t('0000', '0000', '00000000', '00400000'))
    rig.send(r2t('0100', '0000', '00000000', '00200000'))
    rig.send(r2t('0100', '0000', '00200000', '00200000'))
    expect(lines.at(-1)).toContain('a second R2T while one is outstanding')
  })

  it.each([
    ['a format version', IC_RESP.replace('0000 00 00 0020', '0100 00 00 0020'), 6, 8],
    ['an alignment beyond 128 bytes', IC_RESP.replace('0000 00 00 0020', '0000 20 00 0020'), 1, 10],
    ['digests', IC_RESP.replace('0000 00 00 0020', '0000 00 01 0020'), 1, 11],
    ['a MAXH2CDATA of 4095', IC_RESP.replace('00200000', 'ff0f0000'), 1, 12],
    ['a response before ICResp', response('0000'), 2, 0],
  ])('is told of %s in its first PDU', async (_, sent, fes, fei) => {
    await rig.ready(sent)
    const view = new DataView(hex(rig.take()).buffer)
    expect([view.getUint16(8, true), view.getUint32(10, true)]).toEqual([fes, fei])
    expect(rig.events.told[0]).toBe('ending')
  })

  it('is left after a second when it does not read its termination request', async () => {
    rig.reactors.close()
    rig = new Rig(new MemoryNetwork({ capacity: 128 }))
    await rig.ready()
    for (const name of 'abcd') rig.read(name, rig.segments(512))
    rig.settle()
    rig.send('08 00 18 00 18000000')
    expect(rig.events.told).toEqual(['ready', 'ending'])
    rig.reactors.advance(1_000_001)
    rig.settle()
    expect(rig.events.told.at(-1)).toContain('ended: the controller sent a PDU of a type')
  })

  it.each(Array.from({ length: 40 }, (_, seed) => seed))('can send any bytes, seed %i', async seed => {
    const prng = new Prng(seed)
    rig.reactors.close()
    rig = new Rig(new MemoryNetwork({ fragmentation: fragmentedBy(seed) }))
    await rig.ready()
    rig.read('r', rig.segments(100, 412))
    rig.write('w', rig.segments(0x4000))
    rig.take()
    const valid = [
      r2t('0100', '0700', '00000000', '00020000'),
      `${c2hData('00', '98000000', '0000', '00000000', '80000000')} ${'ab'.repeat(128)}`,
      response('0100'),
      response('0000', '0200'),
    ]
    const bytes = hex(valid.join(''))
    for (let i = prng.between(1, 4); i > 0; i--) bytes[prng.below(bytes.length)] = prng.u32()
    rig.peer.send(bytes)
    rig.peer.close()
    rig.settle()
    rig.take()
    rig.reactors.advance(1_000_001)
    rig.settle()
    const { told } = rig.events
    expect(told.at(-1)).toMatch(/^ended: /)
    expect(told.filter(line => /^[rw] /.test(line))).toHaveLength(2)
  })
})
