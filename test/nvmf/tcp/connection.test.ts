import { beforeEach, describe, expect, it } from 'vitest'
import { logSettings } from '../../../src/core/log.ts'
import { Status } from '../../../src/spec/nvme-status.ts'
import {
  BLOCK_SIZE,
  byTransport,
  bytes,
  c2hData,
  capsule,
  capsuleWith,
  connect,
  entry,
  h2cData,
  IC_REQ,
  IC_RESP,
  inCapsule,
  join,
  Lab,
  pattern,
  r2t,
  read,
  response,
  show,
  termReq,
  write,
} from './support.ts'

const lines: string[] = []

beforeEach(() => {
  lines.length = 0
  logSettings.write = line => void lines.push(line)
})

describe('a connection', () => {
  it('answers an ICReq with what it grants', () => {
    const lab = new Lab()
    expect(lab.exchange(lab.dial(), bytes(IC_REQ))).toBe(show(bytes(IC_RESP)))
  })

  it('becomes a queue by a Connect, whose response says how far the queue was read', () => {
    const lab = new Lab()
    const peer = lab.dial()
    expect(lab.exchange(peer, bytes(IC_REQ), connect(0))).toBe(show(bytes(IC_RESP)) + response(0, 1, 0, 1))
    expect(lab.transport.stats).toEqual({
      admin_qpairs: 1,
      io_qpairs: 0,
      current_admin_qpairs: 1,
      current_io_qpairs: 0,
      completed_nvme_io: 0,
    })
  })

  it('takes commands as soon as the Connect has been executed, in order', () => {
    const lab = new Lab()
    const peer = lab.dial()
    const answer = lab.exchange(peer, bytes(IC_REQ), connect(1), capsule(read(5, 0, 1)))
    expect(answer).toBe(
      show(bytes(IC_RESP)) + response(0, 2, 0, 1) + c2hData(5, new Uint8Array(512)) + response(5, 2),
    )
  })

  it('refuses every other command before the Connect, and stays', () => {
    const lab = new Lab()
    const peer = lab.dial()
    const answer = lab.exchange(peer, bytes(IC_REQ), capsule(read(5, 0, 1)), connect(0))
    const refused = response(5, 1, 0x4000 | Status.COMMAND_SEQUENCE_ERROR)
    expect(answer).toBe(show(bytes(IC_RESP)) + refused + response(0, 0, 0, 1))
  })

  it('tells SQHD FFFFh where the host does without flow control', () => {
    const lab = new Lab()
    const peer = lab.dial()
    const answer = lab.exchange(peer, bytes(IC_REQ), connect(1, '04'))
    expect(answer).toBe(show(bytes(IC_RESP)) + response(0, 0xffff, 0, 1))
  })

  it('counts SQHD around the size of the queue', () => {
    const lab = new Lab({ sqSize: 4 })
    const peer = lab.open(1)
    const flush = (cid: number) => capsule(entry('00', cid, byTransport(0)))
    expect(lab.exchange(peer, flush(1))).toBe(response(1, 2))
    expect(lab.exchange(peer, flush(2))).toBe(response(2, 3))
    expect(lab.exchange(peer, flush(3))).toBe(response(3, 0))
    expect(lab.exchange(peer, flush(4))).toBe(response(4, 1))
  })

  it('aligns data as the host wishes', () => {
    const lab = new Lab()
    // HPDA 15: sixteen dwords.
    const peer = lab.open(1, { icReq: IC_REQ.replace('0000 00 00', '0000 0f 00') })
    const answer = lab.exchange(peer, capsule(read(3, 0, 1)))
    const header = show(bytes(`07 04 18 40 40020000 0300 0000 00000000 00020000 00000000 ${'00'.repeat(40)}`))
    expect(answer).toBe(header + show(new Uint8Array(512)) + response(3, 2))
  })

  it('is closed by a host that goes away, and gives everything back', () => {
    const lab = new Lab()
    const peer = lab.open(1)
    expect(lab.pool.taken).toBe(3)
    peer.close()
    lab.settle()
    expect(peer.sawEnd).toBe(true)
    expect(lab.pool.taken).toBe(0)
    expect(lab.closedQueues).toBe(1)
    expect(lab.endedConnections).toBe(1)
    expect(lab.network.openStreams).toBe(0)
  })

  it('sends what is queued before it disconnects', () => {
    const lab = new Lab()
    const peer = lab.open(0)
    peer.send(capsule(entry('06', 9, byTransport(4096))))
    lab.settle()
    lab.requests[0]!.complete({ status: 0, data: pattern(4096) })
    lab.connections[0]!.disconnect('the listener is removed')
    lab.settle()
    expect(show(peer.take())).toBe(c2hData(9, pattern(4096)) + response(9, 2))
    expect(peer.sawEnd).toBe(true)
    expect(lab.pool.taken).toBe(0)
  })

  it('ends with its listener, and if its Connect is under way, when that is answered', () => {
    const lab = new Lab()
    const [connected, silent, connecting] = [lab.open(0), lab.dial(), lab.dial()]
    expect(lab.exchange(connecting, bytes(IC_REQ))).toBe(show(bytes(IC_RESP)))
    lab.transport.closeListener(7, 'the listener is closed')
    lab.settle()
    expect([connected, silent, connecting].map(({ sawEnd }) => sawEnd)).toEqual([true, true, false])
    expect(lab.exchange(connecting, connect(0))).toBe(response(0, 1, 0, 1))
    expect(connecting.sawEnd).toBe(true)
    expect(lab.pool.taken).toBe(0)
  })

  it('is refused while too many others have not sent their Connect, and no host notices', () => {
    const lab = new Lab()
    const host = lab.open(1)
    const idle = Array.from({ length: 512 }, () => lab.dial())
    lab.settle()
    lab.dial()
    lab.settle()
    expect(lab.endedConnections).toBe(1)
    expect(lines.join('')).toContain('512 connections have not sent their Connect yet')
    expect(lab.exchange(host, capsule(read(7, 2, 3)))).not.toBe('')
    idle[0]!.close()
    lab.settle()
    lab.open(2)
    expect(lab.endedConnections).toBe(2)
  })

  it('is closed when no Connect comes in time', () => {
    const lab = new Lab({ timeouts: { connectMs: 10_000 } })
    const peer = lab.dial()
    peer.send(bytes(IC_REQ))
    lab.settle()
    lab.pass(9_999)
    expect(peer.sawEnd).toBe(false)
    peer.take()
    lab.pass(1)
    expect(peer.sawEnd).toBe(true)
    expect(lab.pool.taken).toBe(0)
    expect(lines.join('')).toContain('no Connect within 10000 ms')
  })

  it('is refused when the reactor has no buffers left', () => {
    const lab = new Lab()
    lab.pool.allowance = 2
    const peer = lab.dial()
    lab.settle()
    expect(peer.sawEnd).toBe(true)
    expect(lab.pool.taken).toBe(0)
    expect(lab.endedConnections).toBe(1)
    expect(lines.join('')).toContain('refused')
  })
})

describe('a request of the target', () => {
  it('has its own copy of the entry, the data and its length', () => {
    const lab = new Lab()
    const peer = lab.open(0)
    const features = entry('09', 2, inCapsule(8), { cdw10: 0x81 })
    peer.send(capsuleWith(features, pattern(8)))
    lab.settle()
    const request = lab.requests[0]!
    expect(show(new Uint8Array(request.sqe.buffer))).toBe(show(bytes(features)))
    expect(request.lengthBytes).toBe(8)
    expect([...request.dataOut]).toEqual([...pattern(8)])
  })

  it('fetches data that is not in the capsule', () => {
    const lab = new Lab()
    const peer = lab.open(0)
    expect(lab.exchange(peer, capsule(entry('09', 2, byTransport(5000))))).toBe(r2t(2, 0, 5000))
    lab.exchange(peer, h2cData(2, 0, 0, pattern(5000)))
    expect(show(lab.requests[0]!.dataOut)).toBe(show(pattern(5000)))
  })

  it('completes with status, dwords and data, cut to what the host takes', () => {
    const lab = new Lab()
    const peer = lab.open(0)
    peer.send(join(capsule(entry('06', 1, byTransport(16))), capsule(entry('0a', 2, byTransport(0)))))
    lab.settle()
    lab.requests[1]!.complete({ status: Status.INVALID_FIELD, doNotRetry: true, dw0: 0xffff_ffff })
    lab.requests[0]!.complete({ status: 0, dw0: 5, data: pattern(4096) })
    lab.settle()
    expect(show(peer.take())).toBe(
      response(2, 3, 0x4000 | Status.INVALID_FIELD, 0xffff_ffff) +
        c2hData(1, pattern(4096).subarray(0, 16)) +
        response(1, 3, 0, 5),
    )
  })

  it('is forgotten when its connection ends', () => {
    const lab = new Lab()
    const peer = lab.open(0)
    peer.send(capsule(entry('0c', 1, byTransport(0))))
    lab.settle()
    peer.close()
    lab.settle()
    lab.requests[0]!.complete({ status: 0 })
    lab.settle()
    expect(lab.pool.taken).toBe(0)
    expect(() => lab.requests[0]!.complete({ status: 0 })).toThrow('once')
  })

  it('goes to the target on an I/O queue when it is a fabrics command', () => {
    const lab = new Lab()
    const peer = lab.open(1)
    peer.send(capsule(`7f 40 0100 08 000000 ${'00'.repeat(56)}`))
    lab.settle()
    expect(lab.requests).toHaveLength(1)
  })
})

describe('a fault of the host', () => {
  const opened = () => {
    const lab = new Lab()
    return { lab, peer: lab.open(1) }
  }
  const header = (dump: string) => bytes(dump).subarray(0, 8)
  const H2C = '06 04 18 18 18020000 0500 0000 00000000 00020000 00000000'

  it.each([
    ['a type that nobody assigned', `08 00 48 00 48000000 ${read(1, 0, 1)}`, 1, 0],
    ['a PDU of a controller', `05 00 18 00 18000000 ${'00'.repeat(16)}`, 1, 0],
    ['a second ICReq', IC_REQ, 2, 0],
    ['a header digest that was not agreed', `04 01 48 00 4c000000 ${read(1, 0, 1)} 00000000`, 1, 1],
    ['a data digest that was not agreed', `04 02 48 48 4c000000 ${read(1, 0, 1)} 00000000`, 1, 1],
    ['an HLEN of another type', `04 00 18 00 48000000 ${read(1, 0, 1)}`, 1, 2],
    ['a PDO within the header', `04 00 48 44 58000000 ${read(1, 0, 1)} ${'00'.repeat(16)}`, 1, 3],
    ['a PDO that is not aligned', `04 00 48 4a 58000000 ${read(1, 0, 1)} ${'00'.repeat(16)}`, 1, 3],
    ['a PDO beyond the end', `04 00 48 58 58000000 ${read(1, 0, 1)} ${'00'.repeat(16)}`, 1, 3],
    ['a PLEN shorter than the header', `04 00 48 00 47000000 ${read(1, 0, 1)}`, 1, 4],
    ['more data than a capsule may hold', `04 00 48 48 4c100000 ${read(1, 0, 1)}`, 1, 4],
    ['an H2CData without data', H2C.replace('18020000', '18000000'), 1, 4],
    ['more data than MAXH2CDATA', H2C.replace('18020000', '1c000200'), 5, 16],
  ])('%s is answered with its place and the header', (_, dump, fes, fei) => {
    const { lab, peer } = opened()
    // The fault lies in the common header, so nothing else has to arrive for it to be found.
    expect(lab.exchange(peer, header(dump))).toBe(termReq(fes, fei, header(dump)))
    expect(peer.sawEnd).toBe(false)
    peer.close()
    lab.settle()
    expect(peer.sawEnd).toBe(true)
    expect(lab.pool.taken).toBe(0)
  })

  it.each([
    ['an unknown version', IC_REQ.replace('0000 00 00', '0100 00 00'), 6, 8],
    ['an alignment beyond 128 bytes', IC_REQ.replace('0000 00 00', '0000 20 00'), 1, 10],
  ])('%s in the ICReq', (_, dump, fes, fei) => {
    const lab = new Lab()
    const peer = lab.dial()
    expect(lab.exchange(peer, bytes(dump))).toBe(termReq(fes, fei, bytes(dump)))
  })

  it.each([
    ['HLEN', '00 00 48 00 80000000', 1, 2],
    ['PLEN', '00 00 80 00 84000000', 1, 4],
    ['a capsule before it', '04 00 48 00 48000000', 2, 0],
  ])('ICReq: %s', (_, dump, fes, fei) => {
    const lab = new Lab()
    expect(lab.exchange(lab.dial(), bytes(dump))).toBe(termReq(fes, fei, bytes(dump)))
  })

  it.each([
    ['a tag that no R2T has', h2cData(5, 30, 0, pattern(512)), 1, 10],
    ['a tag beyond the queue', h2cData(5, 999, 0, pattern(512)), 1, 10],
    ['another command', h2cData(6, 0, 0, pattern(512)), 1, 8],
    ['an offset with a gap', h2cData(5, 0, 512, pattern(512)), 4, 12],
    ['a DATAL that PLEN denies', join(bytes(H2C.replace('00020000', '04020000')), pattern(512)), 1, 16],
    ['more than was asked for', h2cData(5, 0, 0, pattern(8704)), 4, 16],
    ['a last PDU before the end', h2cData(5, 0, 0, pattern(512)), 1, 1],
  ])('H2CData: %s', (_, pdu, fes, fei) => {
    const { lab, peer } = opened()
    expect(lab.exchange(peer, capsule(write(5, 0, 16, byTransport(8192))))).toBe(r2t(5, 0, 8192))
    expect(lab.exchange(peer, pdu)).toBe(termReq(fes, fei, pdu.subarray(0, 24)))
  })

  it('is a data PDU for an R2T that has not been sent yet', () => {
    const lab = new Lab({ capacity: 4096 })
    const peer = lab.open(1)
    // The pipe to the host is full with a read's data, so that the R2T behind it has to wait.
    peer.send(join(capsule(read(1, 0, 16)), capsule(write(2, 0, 16, byTransport(8192)))))
    lab.settle()
    peer.send(join(capsule(write(3, 0, 16, byTransport(8192))), h2cData(3, 30, 0, pattern(512), '00')))
    lab.settle()
    let answer = ''
    while (peer.waiting > 0) {
      answer += show(peer.take())
      lab.settle()
    }
    expect(answer).toContain(r2t(3, 30, 8192))
    expect(answer.slice(-96)).toBe(
      termReq(1, 10, bytes('06 00 18 18 18020000 0300 1e00 00000000 00020000 00000000')),
    )
  })

  it('is answered after what was ready, and nothing follows', () => {
    const { lab, peer } = opened()
    lab.device.isHolding = true
    lab.exchange(peer, capsule(read(1, 0, 1)))
    const [first, late] = lab.device.held
    expect(late).toBeUndefined()
    lab.exchange(peer, capsule(read(2, 0, 1)))
    lab.device.held.splice(0, 1)
    first!.complete(Status.INTERNAL_ERROR)
    const fault = bytes('08 00 48 00 48000000')
    expect(lab.exchange(peer, fault)).toBe(response(1, 3, Status.INTERNAL_ERROR) + termReq(1, 0, fault))
    lab.device.letGo()
    expect(lab.exchange(peer)).toBe('')
    peer.close()
    lab.settle()
    expect(lab.pool.taken).toBe(0)
  })

  it('ends by time where the host does not close', () => {
    const { lab, peer } = opened()
    lab.exchange(peer, bytes('08 00 48 00 48000000'))
    lab.pass(4_999)
    expect(peer.sawEnd).toBe(false)
    lab.pass(1)
    expect(peer.sawEnd).toBe(true)
    expect(lab.pool.taken).toBe(0)
  })

  it('says in the log what was sent', () => {
    const { lab, peer } = opened()
    lab.exchange(peer, bytes('04 00 18 00 48000000'))
    expect(lines.join('')).toContain(
      "an HLEN that is not the type's (type 04h, flags 00h, HLEN 24, PDO 0, PLEN 72); terminating (INVALID_PDU_HEADER_FIELD)",
    )
  })

  it('is not answered when it is a termination request, but the connection ends', () => {
    const { lab, peer } = opened()
    expect(lab.exchange(peer, bytes(`02 00 18 00 18000000 0200 07000000 ${'00'.repeat(10)}`))).toBe('')
    expect(peer.sawEnd).toBe(true)
    expect(lab.pool.taken).toBe(0)
  })
})

describe('data in flight when the connection ends', () => {
  it('stays until the device lets go of it', () => {
    const lab = new Lab()
    const peer = lab.open(1)
    lab.device.isHolding = true
    lab.device.abort = () => {}
    peer.send(
      join(capsule(read(1, 0, 8)), capsuleWith(write(2, 8, 1, inCapsule(BLOCK_SIZE)), pattern(BLOCK_SIZE))),
    )
    lab.settle()
    peer.close()
    lab.settle()
    expect(lab.pool.taken).toBe(4)
    lab.device.letGo()
    lab.settle()
    expect(lab.pool.taken).toBe(0)
    expect(show(lab.device.contents.subarray(4096, 4096 + BLOCK_SIZE))).toBe(show(pattern(BLOCK_SIZE)))
  })

  it('is aborted', () => {
    const lab = new Lab()
    const peer = lab.open(1)
    lab.device.isHolding = true
    peer.send(capsule(read(1, 0, 8)))
    lab.settle()
    peer.close()
    lab.settle()
    expect(lab.device.held.length).toBe(0)
    expect(lab.pool.taken).toBe(0)
    expect(lab.channel.outstanding).toBe(0)
  })

  it('is given back when it was lent and the host never reads', () => {
    const lab = new Lab({ capacity: 4096, timeouts: { stallMs: 30_000 } })
    lab.device.lends = true
    const peer = lab.open(1)
    for (let i = 0; i < 16; i++) peer.send(capsule(read(i, 0, 256)))
    lab.settle()
    expect(lab.channel.outstanding).toBe(16)
    for (let second = 0; second < 32; second++) lab.pass(1000)
    expect(lab.channel.outstanding).toBe(0)
    expect(lab.pool.taken).toBe(0)
    expect(lines.join('')).toContain('the host takes no data')
  })

  it('is given back when the host never sends it', () => {
    const lab = new Lab({ timeouts: { stallMs: 30_000 } })
    const peer = lab.open(1)
    lab.exchange(peer, capsule(write(5, 0, 16, byTransport(8192))))
    peer.send(h2cData(5, 0, 0, pattern(8192)).subarray(0, 1000))
    for (let second = 0; second < 32; second++) lab.pass(1000)
    expect(peer.sawEnd).toBe(true)
    expect(lab.pool.taken).toBe(0)
    expect(lines.join('')).toContain('does not send the data')
  })
})
