import { describe, expect, it } from 'vitest'
import { Status } from '../../../src/spec/nvme-status.ts'
import {
  BLOCK_COUNT,
  BLOCK_SIZE,
  byTransport,
  bytes,
  c2hData,
  capsule,
  capsuleWith,
  entry,
  h2cData,
  inCapsule,
  join,
  Lab,
  type LabOptions,
  pattern,
  r2t,
  read,
  response,
  show,
  write,
} from './support.ts'

const DNR = 0x4000
/** What the disk holds before a test. */
const FRESH = pattern(BLOCK_COUNT * BLOCK_SIZE, 3)

function open(options: LabOptions = {}, cattr = '00') {
  const lab = new Lab(options)
  lab.device.contents.set(FRESH)
  return { lab, peer: lab.open(1, { cattr }), disk: lab.device.contents }
}

/** The bytes of `count` blocks as a fresh disk has them. */
const stored = (first: number, count: number): Uint8Array =>
  FRESH.slice(first * BLOCK_SIZE, (first + count) * BLOCK_SIZE)

const ranges = (...of: [nlb: number, slba: number][]): Uint8Array => {
  const data = new DataView(new ArrayBuffer(of.length * 16))
  of.forEach(([nlb, slba], i) => {
    data.setUint32(i * 16 + 4, nlb, true)
    data.setUint32(i * 16 + 8, slba, true)
  })
  return new Uint8Array(data.buffer)
}

const deallocate = (cid: number, count: number, sgl: string, cdw11 = 4): string =>
  entry('09', cid, sgl, { cdw10: count - 1, cdw11 })

describe('Read', () => {
  it.each([false, true])('sends data and response, from lent memory: %s', lends => {
    const { lab, peer } = open()
    lab.device.lends = lends
    expect(lab.exchange(peer, capsule(read(7, 2, 3)))).toBe(c2hData(7, stored(2, 3)) + response(7, 2))
    expect(lab.channel.outstanding).toBe(0)
    expect(lab.pool.taken).toBe(3)
  })

  it('ends with its data where there is no flow control', () => {
    const { lab, peer } = open({}, '04')
    expect(lab.exchange(peer, capsule(read(7, 2, 3)))).toBe(c2hData(7, stored(2, 3), '0c'))
  })

  it('has a response of its own where the operator says so', () => {
    const { lab, peer } = open({ transport: { c2hSuccess: false } }, '04')
    const answer = c2hData(7, stored(2, 3)) + response(7, 0xffff)
    expect(lab.exchange(peer, capsule(read(7, 2, 3)))).toBe(answer)
  })

  it('sends no data with a failure', () => {
    const { lab, peer } = open()
    lab.device.failure = Status.UNRECOVERED_READ_ERROR
    expect(lab.exchange(peer, capsule(read(7, 2, 3)))).toBe(response(7, 2, Status.UNRECOVERED_READ_ERROR))
  })

  it('is answered in the order in which the device completes', () => {
    const { lab, peer } = open()
    lab.device.isHolding = true
    peer.send(join(capsule(read(1, 0, 1)), capsule(read(2, 1, 1))))
    lab.settle()
    lab.device.held.reverse()
    lab.device.letGo()
    lab.settle()
    expect(show(peer.take())).toBe(
      c2hData(2, stored(1, 1)) + response(2, 3) + c2hData(1, stored(0, 1)) + response(1, 3),
    )
  })
})

describe('Write', () => {
  it('takes data from its capsule, at the offset that the SGL says', () => {
    const { lab, peer, disk } = open()
    const sqe = write(1, 5, 1, inCapsule(512, 8), { cdw12: 0x4000_0000 })
    expect(lab.exchange(peer, capsuleWith(sqe, join(new Uint8Array(8), pattern(512))))).toBe(response(1, 2))
    expect(show(disk.slice(5 * 512, 6 * 512))).toBe(show(pattern(512)))
    expect(lab.device.log).toEqual(['WRITE 5+1 FUA'])
  })

  it('takes data whose PDO leaves a gap', () => {
    const { lab, peer, disk } = open()
    const pdu = join(
      bytes(`04 00 48 80 80020000 ${write(1, 5, 1, inCapsule(512))}`),
      new Uint8Array(56),
      pattern(512),
    )
    expect(lab.exchange(peer, pdu)).toBe(response(1, 2))
    expect(show(disk.slice(5 * 512, 6 * 512))).toBe(show(pattern(512)))
  })

  it('fetches what is not in the capsule, in as many PDUs as the host likes', () => {
    const { lab, peer, disk } = open()
    const data = pattern(131072)
    expect(lab.exchange(peer, capsule(write(1, 256, 256, byTransport(131072))))).toBe(r2t(1, 0, 131072))
    expect(lab.exchange(peer, h2cData(1, 0, 0, data.subarray(0, 100), '00'))).toBe('')
    expect(lab.exchange(peer, h2cData(1, 0, 100, data.subarray(100, 90_000), '00'))).toBe('')
    expect(lab.exchange(peer, h2cData(1, 0, 90_000, data.subarray(90_000)))).toBe(response(1, 2))
    expect(show(disk.slice(131072, 262144))).toBe(show(data))
    expect(lab.pool.taken).toBe(3)
  })

  it('interleaves with others', () => {
    const { lab, peer, disk } = open()
    const asked = lab.exchange(
      peer,
      capsule(write(1, 0, 2, byTransport(1024))),
      capsule(write(2, 2, 2, byTransport(1024))),
    )
    expect(asked).toBe(r2t(1, 0, 1024) + r2t(2, 31, 1024))
    const [a, b] = [pattern(1024, 50), pattern(1024, 60)]
    const answer = lab.exchange(
      peer,
      h2cData(2, 31, 0, b.subarray(0, 512), '00'),
      h2cData(1, 0, 0, a),
      capsule(read(3, 9, 1)),
      h2cData(2, 31, 512, b.subarray(512)),
    )
    expect(answer).toBe(response(1, 4) + c2hData(3, stored(9, 1)) + response(3, 4) + response(2, 4))
    expect(show(disk.slice(0, 2048))).toBe(show(a) + show(b))
  })
})

describe('the checks of an I/O command', () => {
  const write2 = (sgl: string, fields = {}) => write(1, 0, 2, sgl, fields)

  it.each([
    ['an unknown opcode', entry('7e', 1, byTransport(0)), DNR | Status.INVALID_OPCODE],
    ['a read as half of a fused operation', read(1, 0, 1, { flags: '41' }), DNR | Status.INVALID_FIELD],
    ['a namespace that is not there', read(1, 0, 1, { nsid: 2 }), DNR | Status.INVALID_NAMESPACE_OR_FORMAT],
    ['a PRP', read(1, 0, 1, { flags: '00' }), DNR | Status.INVALID_FIELD],
    ['the end of the device', read(1, BLOCK_COUNT - 1, 2), DNR | Status.LBA_OUT_OF_RANGE],
    ['an address of 64 bits', read(1, 0xffff_ffff, 1, { cdw11: 0xffff_ffff }), DNR | Status.LBA_OUT_OF_RANGE],
    ['more than MDTS', read(1, 0, 257), DNR | Status.INVALID_FIELD],
    [
      'an SGL that is too short',
      entry('02', 1, byTransport(512), { cdw12: 1 }),
      DNR | Status.DATA_SGL_LENGTH_INVALID,
    ],
    ['an SGL that is too long', entry('02', 1, byTransport(1024)), DNR | Status.DATA_SGL_LENGTH_INVALID],
    ['a read into the capsule', entry('02', 1, inCapsule(512)), DNR | Status.SGL_DESCRIPTOR_TYPE_INVALID],
    [
      'a keyed SGL',
      entry('02', 1, `${byTransport(512).slice(0, -2)}40`),
      DNR | Status.SGL_DESCRIPTOR_TYPE_INVALID,
    ],
    ['data that is not in the capsule', write2(inCapsule(1024)), DNR | Status.DATA_SGL_LENGTH_INVALID],
    ['an offset beyond the capsule', write2(inCapsule(1024, 4)), DNR | Status.SGL_OFFSET_INVALID],
    [
      'a Write Zeroes beyond the end',
      entry('08', 1, byTransport(0), { cdw10: BLOCK_COUNT }),
      DNR | Status.LBA_OUT_OF_RANGE,
    ],
    [
      'a flush of every namespace',
      entry('00', 1, byTransport(0), { nsid: 0xffff_ffff }),
      DNR | Status.INVALID_NAMESPACE_OR_FORMAT,
    ],
  ])('refuse %s', (_, sqe, status) => {
    const { lab, peer } = open()
    expect(lab.exchange(peer, capsule(sqe))).toBe(response(1, 2, status))
    expect(lab.device.log).toEqual([])
    expect(lab.pool.taken).toBe(3)
  })

  it.each([
    ['data that nobody asked for', read(1, 0, 1), DNR | Status.INVALID_FIELD],
    ['data twice', write(1, 0, 1, byTransport(512)), DNR | Status.INVALID_FIELD],
    ['a range beyond the end', write(1, BLOCK_COUNT, 1, inCapsule(512)), DNR | Status.LBA_OUT_OF_RANGE],
    ['an SGL beyond the capsule', write(1, 0, 1, inCapsule(512, 4)), DNR | Status.DATA_SGL_LENGTH_INVALID],
  ])('refuse a capsule with %s, and take its data off the wire', (_, sqe, status) => {
    const { lab, peer } = open()
    const next = capsule(entry('00', 2, byTransport(0)))
    expect(lab.exchange(peer, capsuleWith(sqe, pattern(512)), next)).toBe(
      response(1, 3, status) + response(2, 3),
    )
    expect(lab.device.log).toEqual(['FLUSH 0+0'])
  })

  it('give the status of the path while that is not usable, without DNR', () => {
    const { lab, peer } = open()
    lab.namespace.gate = Status.ANA_INACCESSIBLE
    expect(lab.exchange(peer, capsule(read(1, 0, 1)))).toBe(response(1, 2, Status.ANA_INACCESSIBLE))
  })

  it('look again when the data has come', () => {
    const { lab, peer } = open()
    lab.exchange(peer, capsule(write(1, 0, 2, byTransport(1024))))
    lab.namespace.channel = null
    expect(lab.exchange(peer, h2cData(1, 0, 0, pattern(1024)))).toBe(
      response(1, 2, Status.NAMESPACE_NOT_READY),
    )
    expect(lab.device.log).toEqual([])
  })
})

describe('commands without a transfer', () => {
  it('flush and zero', () => {
    const { lab, peer, disk } = open()
    const zero = entry('08', 2, byTransport(0), { cdw10: 4, cdw12: 0x0200_0001 })
    expect(lab.exchange(peer, capsule(entry('00', 1, byTransport(0))), capsule(zero))).toBe(
      response(1, 3) + response(2, 3),
    )
    expect(lab.device.log).toEqual(['FLUSH 0+0', 'WRITE_ZEROES 4+2'])
    expect(show(disk.slice(4 * 512, 7 * 512))).toBe(show(new Uint8Array(1024)) + show(stored(6, 1)))
  })
})

describe('a write fault', () => {
  const zero = (cdw12: number): string => entry('08', 1, byTransport(0), { cdw10: 4, cdw12 })

  // A flush that is sent again may succeed though what the first one was for is lost.
  it.each([
    ['tells not to retry a flush', entry('00', 1, byTransport(0)), DNR | Status.WRITE_FAULT],
    ['tells not to retry a forced write', zero(0x4000_0001), DNR | Status.WRITE_FAULT],
    ['lets the host retry another write', zero(0x0000_0001), Status.WRITE_FAULT],
  ])('%s', (_what, sqe, status) => {
    const { lab, peer } = open()
    lab.device.failure = Status.WRITE_FAULT
    expect(lab.exchange(peer, capsule(sqe))).toBe(response(1, 2, status))
  })
})

describe('Dataset Management', () => {
  it('gives back each range that is not empty, one after the other', () => {
    const { lab, peer } = open()
    const data = ranges([8, 16], [0, 99], [1, 4095])
    expect(lab.exchange(peer, capsuleWith(deallocate(1, 3, inCapsule(48)), data))).toBe(response(1, 2))
    expect(lab.device.log).toEqual(['UNMAP 16+8', 'UNMAP 4095+1'])
  })

  it('takes 256 ranges', () => {
    const { lab, peer } = open()
    const data = ranges(...Array.from({ length: 256 }, (_, i): [number, number] => [1, i]))
    expect(lab.exchange(peer, capsule(deallocate(1, 256, byTransport(4096))))).toBe(r2t(1, 0, 4096))
    expect(lab.exchange(peer, h2cData(1, 0, 0, data))).toBe(response(1, 2))
    expect(lab.device.log).toHaveLength(256)
  })

  it('takes one range in the room of 256, as Linux sends it, and no more room than that', () => {
    const { lab, peer } = open()
    const data = new Uint8Array(4096)
    data.set(ranges([8, 16]))
    expect(lab.exchange(peer, capsuleWith(deallocate(1, 1, inCapsule(4096)), data))).toBe(response(1, 2))
    expect(lab.device.log).toEqual(['UNMAP 16+8'])
    const refused = response(2, 3, DNR | Status.DATA_SGL_LENGTH_INVALID)
    expect(lab.exchange(peer, capsule(deallocate(2, 1, byTransport(4112))))).toBe(refused)
  })

  it('touches nothing when one of the ranges is beyond the end', () => {
    const { lab, peer } = open()
    const data = ranges([8, 16], [2, BLOCK_COUNT - 1])
    const refused = response(1, 2, DNR | Status.LBA_OUT_OF_RANGE)
    expect(lab.exchange(peer, capsuleWith(deallocate(1, 2, inCapsule(32)), data))).toBe(refused)
    expect(lab.device.log).toEqual([])
  })

  it('does nothing when it only gives hints', () => {
    const { lab, peer } = open()
    const pdu = capsuleWith(deallocate(1, 1, inCapsule(16), 3), ranges([8, 16]))
    expect(lab.exchange(peer, pdu)).toBe(response(1, 2))
    expect(lab.device.log).toEqual([])
  })

  it('stops at the range that fails', () => {
    const { lab, peer } = open()
    lab.device.isHolding = true
    peer.send(capsuleWith(deallocate(1, 2, inCapsule(32)), ranges([1, 1], [1, 2])))
    lab.settle()
    lab.device.failure = Status.INTERNAL_ERROR
    lab.device.letGo()
    lab.settle()
    expect(show(peer.take())).toBe(response(1, 2, Status.INTERNAL_ERROR))
    expect(lab.device.log).toEqual(['UNMAP 1+1'])
  })
})

describe('Compare', () => {
  const compare = (cid: number, flags = '40', fields = {}) =>
    entry('05', cid, inCapsule(512), { cdw10: 3, flags, ...fields })
  const second = (cid: number, fields = {}) => write(cid, 3, 1, inCapsule(512), { flags: '42', ...fields })
  const fresh = pattern(512, 99)

  it('tells equal from different', () => {
    const { lab, peer } = open()
    expect(lab.exchange(peer, capsuleWith(compare(1), stored(3, 1)))).toBe(response(1, 2))
    const differs = response(2, 3, DNR | Status.COMPARE_FAILURE)
    expect(lab.exchange(peer, capsuleWith(compare(2), stored(4, 1)))).toBe(differs)
  })

  it('and Write, fused, exchange a block that is as expected', () => {
    const { lab, peer, disk } = open()
    const answer = lab.exchange(
      peer,
      capsuleWith(compare(1, '41'), stored(3, 1)),
      capsuleWith(second(2), fresh),
    )
    expect(answer).toBe(response(1, 3) + response(2, 3))
    expect(lab.device.log).toEqual(['COMPARE_AND_WRITE 3+1'])
    expect(show(disk.slice(3 * 512, 4 * 512))).toBe(show(fresh))
    expect(lab.pool.taken).toBe(3)
  })

  it('and Write, fused, change nothing when it is not', () => {
    const { lab, peer, disk } = open()
    const answer = lab.exchange(peer, capsuleWith(compare(1, '41'), fresh), capsuleWith(second(2), fresh))
    expect(answer).toBe(
      response(1, 3, DNR | Status.COMPARE_FAILURE) + response(2, 3, Status.ABORTED_FAILED_FUSED),
    )
    expect(show(disk.slice(3 * 512, 4 * 512))).toBe(show(stored(3, 1)))
    expect(lab.pool.taken).toBe(3)
  })

  it('and Write, fused, wait for both halves of the data', () => {
    const { lab, peer } = open()
    const asked = lab.exchange(
      peer,
      capsule(entry('05', 1, byTransport(512), { cdw10: 3, flags: '41' })),
      capsule(write(2, 3, 1, byTransport(512), { flags: '42' })),
    )
    expect(asked).toBe(r2t(1, 0, 512) + r2t(2, 31, 512))
    expect(lab.exchange(peer, h2cData(2, 31, 0, fresh))).toBe('')
    expect(lab.exchange(peer, h2cData(1, 0, 0, stored(3, 1)))).toBe(response(1, 3) + response(2, 3))
  })

  it.each([
    [
      'different ranges',
      compare(1, '41', { cdw10: 4 }),
      second(2),
      DNR | Status.INVALID_FIELD,
      Status.ABORTED_FAILED_FUSED,
    ],
    [
      'a first half that is refused',
      compare(1, '41', { nsid: 9 }),
      second(2),
      DNR | Status.INVALID_NAMESPACE_OR_FORMAT,
      Status.ABORTED_FAILED_FUSED,
    ],
    [
      'a second half that is refused',
      compare(1, '41'),
      second(2, { cdw10: 4096 }),
      Status.ABORTED_FAILED_FUSED,
      DNR | Status.LBA_OUT_OF_RANGE,
    ],
    [
      'another command in between',
      compare(1, '41'),
      write(2, 9, 1, inCapsule(512)),
      Status.ABORTED_MISSING_FUSED,
      0,
    ],
    ['a first half twice', compare(1, '41'), compare(2, '41'), Status.ABORTED_MISSING_FUSED, null],
  ])('and Write are not fused: %s', (_, first, next, firstStatus, nextStatus) => {
    const { lab, peer } = open()
    const answer = lab.exchange(peer, capsuleWith(first, stored(3, 1)), capsuleWith(next, fresh))
    expect(answer).toBe(response(1, 3, firstStatus) + (nextStatus === null ? '' : response(2, 3, nextStatus)))
    peer.close()
    lab.settle()
    expect(lab.pool.taken).toBe(0)
  })

  it('and Write, fused, are aborted as one when the connection ends', () => {
    const { lab, peer } = open()
    lab.device.isHolding = true
    lab.exchange(peer, capsuleWith(compare(1, '41'), stored(3, 1)), capsuleWith(second(2), fresh))
    expect(lab.device.held.length).toBe(1)
    peer.close()
    lab.settle()
    expect(lab.device.held.length).toBe(0)
    expect(lab.pool.taken).toBe(0)
  })

  it('is missing before a second half', () => {
    const { lab, peer } = open()
    const answer = lab.exchange(peer, capsuleWith(second(2), fresh))
    expect(answer).toBe(response(2, 2, Status.ABORTED_MISSING_FUSED))
  })
})

describe('capsule data that a memory device takes from the receive buffer', () => {
  const writes = (count: number) =>
    Array.from({ length: count }, (_, cid) =>
      capsuleWith(write(cid, cid * 8, 8, inCapsule(4096)), pattern(4096, cid)),
    )
  const written = (lab: Lab) =>
    Array.from({ length: 32 }, (_, i) => show(lab.device.contents.subarray(i * 4096, (i + 1) * 4096)))
  const expected = Array.from({ length: 32 }, (_, i) => show(pattern(4096, i)))

  it('stays in as many buffers as it fills, until the device has it', () => {
    const { lab, peer } = open()
    lab.device.lends = true
    lab.device.isHolding = true
    expect(lab.exchange(peer, ...writes(32))).toBe('')
    expect(lab.device.held.length).toBe(32)
    lab.device.letGo()
    expect(lab.exchange(peer)).toHaveLength(32 * 48)
    expect(written(lab)).toEqual(expected)
    expect(lab.pool.taken).toBe(3)
  })

  it('is waited for when there is no further buffer', () => {
    const { lab, peer } = open()
    lab.device.lends = true
    lab.device.isHolding = true
    lab.pool.allowance = 0
    lab.exchange(peer, ...writes(32))
    expect(lab.device.held.length).toBeLessThan(32)
    let answer = ''
    while (lab.device.held.length > 0) {
      lab.device.letGo()
      answer += lab.exchange(peer)
    }
    expect(answer).toHaveLength(32 * 48)
    expect(written(lab)).toEqual(expected)
  })

  it('is given back when the connection ends before the device has it', () => {
    const { lab, peer } = open()
    lab.device.lends = true
    lab.device.isHolding = true
    lab.device.abort = () => {}
    lab.exchange(peer, ...writes(32))
    peer.close()
    lab.settle()
    lab.device.letGo()
    lab.settle()
    expect(lab.pool.taken).toBe(0)
    expect(written(lab)).toEqual(expected)
  })
})

describe('back-pressure', () => {
  it('holds commands back for which there is no slot, and loses none', () => {
    const { lab, peer } = open({ sqSize: 4 })
    lab.device.isHolding = true
    for (let cid = 0; cid < 10; cid++) peer.send(capsule(read(cid, cid, 1)))
    lab.settle()
    expect(lab.device.held.length).toBe(4)
    let answer = ''
    for (let turn = 0; turn < 3; turn++) {
      lab.device.letGo()
      lab.settle()
      answer += show(peer.take())
    }
    const cids = [...answer.matchAll(/0704181818020000(..)00/g)].map(([, cid]) => Number.parseInt(cid!, 16))
    expect(cids.sort((a, b) => a - b)).toEqual([0, 1, 2, 3, 4, 5, 6, 7, 8, 9])
  })

  it('keeps commands waiting while there are no buffers, whoever has them', () => {
    const { lab, peer } = open()
    const other = lab.open(1)
    lab.device.isHolding = true
    lab.pool.allowance = 1
    other.send(capsule(read(1, 0, 1)))
    lab.settle()
    peer.send(
      join(
        capsule(read(2, 1, 1)),
        capsule(write(3, 2, 2, byTransport(1024))),
        capsuleWith(write(4, 4, 1, inCapsule(512)), pattern(512)),
      ),
    )
    lab.settle()
    // The queue has a buffer for capsule data: the capsule is not left on the wire, in front of the other write's data.
    expect(lab.device.log).toEqual(['READ 0+1', 'WRITE 4+1'])
    for (let turn = 0; turn < 8; turn++) {
      lab.device.letGo()
      lab.settle()
      const answer = show(peer.take())
      if (answer.includes(r2t(3, 31, 1024))) peer.send(h2cData(3, 31, 0, pattern(1024)))
    }
    expect(lab.device.log.sort()).toEqual(['READ 0+1', 'READ 1+1', 'WRITE 2+2', 'WRITE 4+1'])
    expect(lab.pool.allowance).toBe(1)
  })

  it('tries again by and by when strangers give buffers back', () => {
    const { lab, peer } = open()
    lab.pool.allowance = 0
    expect(lab.exchange(peer, capsule(read(2, 1, 1)))).toBe('')
    lab.pool.allowance = 10
    lab.pass(1000)
    expect(show(peer.take())).toBe(c2hData(2, stored(1, 1)) + response(2, 2))
  })

  it('is felt by a host that does not read, and by nobody else', () => {
    const { lab, peer } = open({ capacity: 8192 })
    lab.device.lends = true
    const other = lab.open(1)
    for (let cid = 0; cid < 100; cid++) peer.send(capsule(read(cid, 0, 16)))
    lab.settle()
    expect(lab.channel.outstanding).toBeLessThanOrEqual(32)
    expect(lab.exchange(other, capsule(read(1, 0, 1)))).toBe(c2hData(1, stored(0, 1)) + response(1, 2))
    let taken = 0
    while (peer.waiting > 0) {
      taken += peer.take().length
      lab.settle()
    }
    expect(taken).toBe(100 * (24 + 8192 + 24))
    expect(lab.channel.outstanding).toBe(0)
  })
})

describe('abort', () => {
  const abort = (lab: Lab, cid: number) => lab.connections.at(-1)!.abort(cid)

  it('ends a command that the device has', () => {
    const { lab, peer } = open()
    lab.device.isHolding = true
    lab.exchange(peer, capsule(read(5, 0, 1)))
    expect(abort(lab, 5)).toBe(true)
    lab.settle()
    expect(show(peer.take())).toBe(response(5, 2, Status.ABORTED_BY_REQUEST))
  })

  it('ends a command that waits for a buffer', () => {
    const { lab, peer } = open()
    lab.pool.allowance = 0
    lab.exchange(peer, capsule(read(5, 0, 1)))
    expect(abort(lab, 5)).toBe(true)
    lab.settle()
    expect(show(peer.take())).toBe(response(5, 2, Status.ABORTED_BY_REQUEST))
  })

  it('leaves a half of a fused operation to its other half, also while it waits for a buffer', () => {
    const { lab, peer } = open()
    lab.pool.allowance = 0
    const first = entry('05', 5, byTransport(512), { cdw10: 3, flags: '41' })
    expect(lab.exchange(peer, capsule(first))).toBe('')
    expect(abort(lab, 5)).toBe(false)
    lab.pool.allowance = 10
    const asked = lab.exchange(peer, capsule(write(6, 3, 1, byTransport(512), { flags: '42' })))
    expect(asked).toBe(r2t(6, 31, 512) + r2t(5, 0, 512))
    const answer = lab.exchange(peer, h2cData(5, 0, 0, stored(3, 1)), h2cData(6, 31, 0, pattern(512)))
    expect(answer).toBe(response(5, 3) + response(6, 3))
    expect(lab.device.log).toEqual(['COMPARE_AND_WRITE 3+1'])
  })

  it('does not know other commands, nor stop the host in the middle of its data', () => {
    const { lab, peer } = open()
    lab.exchange(peer, capsule(write(5, 0, 2, byTransport(1024))))
    expect(abort(lab, 6)).toBe(false)
    expect(abort(lab, 5)).toBe(false)
    expect(lab.exchange(peer, h2cData(5, 0, 0, pattern(1024)))).toBe(response(5, 2))
  })
})
