import { describe, expect, it } from 'vitest'
import { crc32c } from '../../../src/core/crc32c.ts'
import { logSettings } from '../../../src/core/log.ts'
import { Status } from '../../../src/spec/nvme-status.ts'
import {
  byTransport,
  bytes,
  connect,
  entry,
  IC_REQ,
  IC_RESP,
  inCapsule,
  join,
  Lab,
  pattern,
  read,
  show,
  termReq,
  write,
} from './support.ts'

logSettings.write = () => {}

const digest = (data: Uint8Array): Uint8Array => {
  const view = new DataView(data.slice().buffer)
  const value = new Uint8Array(4)
  new DataView(value.buffer).setUint32(0, crc32c(view, 0, data.length), true)
  return value
}

/** A PDU as it is with both digests: flags, PDO and PLEN made to fit. */
function protectedPdu(header: string, data: Uint8Array = new Uint8Array(0)): Uint8Array {
  const head = bytes(header)
  const hasData = data.length > 0
  head[1]! |= hasData ? 0x03 : 0x01
  if (hasData) head[3] = head.length + 4
  new DataView(head.buffer).setUint32(4, head.length + 4 + (hasData ? data.length + 4 : 0), true)
  return hasData ? join(head, digest(head), data, digest(data)) : join(head, digest(head))
}

const capsule = (sqe: string, data?: Uint8Array): Uint8Array =>
  protectedPdu(`04 00 48 00 00000000 ${sqe}`, data)
const h2cData = (data: Uint8Array): Uint8Array =>
  protectedPdu('06 04 18 00 00000000 0500 0000 00000000 00040000 00000000', data)
const response = (dump: string): string => show(protectedPdu(`05 00 18 00 00000000 ${dump}`))

/** DGST 3: header and data. */
function open() {
  const lab = new Lab()
  const peer = lab.dial()
  const answer = lab.exchange(peer, bytes(IC_REQ.replace('0000 00 00', '0000 00 03')))
  expect(answer).toBe(show(bytes(IC_RESP.replace('0000 00 00', '0000 00 03'))))
  const connecting = connect(1)
  lab.exchange(peer, capsule(show(connecting.subarray(8, 72)), connecting.subarray(72)))
  return { lab, peer }
}

describe('with digests', () => {
  it.each([false, true])('a read has one over header and one over data, from lent memory: %s', lends => {
    const { lab, peer } = open()
    lab.device.lends = lends
    lab.device.contents.set(pattern(1024))
    const data = protectedPdu('07 04 18 00 00000000 0500 0000 00000000 00040000 00000000', pattern(1024))
    const end = response('00000000 00000000 0200 0000 0500 0000')
    expect(lab.exchange(peer, capsule(read(5, 0, 2)))).toBe(show(data) + end)
  })

  it('data starts where both digest and alignment allow', () => {
    const lab = new Lab()
    const peer = lab.dial()
    lab.exchange(peer, bytes(IC_REQ.replace('0000 00 00', '0000 07 01')))
    const connecting = connect(1)
    const head = join(bytes('04 01 48 4c 4c040000'), connecting.subarray(8, 72))
    lab.exchange(peer, head, digest(head), connecting.subarray(72))
    const answer = lab.exchange(peer, capsule(read(5, 0, 1)))
    const header = bytes('07 05 18 20 20020000 0500 0000 00000000 00020000 00000000')
    expect(answer.slice(0, 64)).toBe(show(join(header, digest(header), new Uint8Array(4))))
  })

  it('a write is checked, in its capsule and by R2T', () => {
    const { lab, peer } = open()
    const first = capsule(write(4, 8, 1, inCapsule(512)), pattern(512, 9))
    expect(lab.exchange(peer, first)).toBe(response('00000000 00000000 0200 0000 0400 0000'))
    const asked = show(protectedPdu('09 00 18 00 00000000 0500 0000 00000000 00040000 00000000'))
    expect(lab.exchange(peer, capsule(write(5, 0, 2, byTransport(1024))))).toBe(asked)
    const end = response('00000000 00000000 0300 0000 0500 0000')
    expect(lab.exchange(peer, h2cData(pattern(1024)))).toBe(end)
    expect(show(lab.device.contents.slice(0, 1024))).toBe(show(pattern(1024)))
    expect(show(lab.device.contents.slice(4096, 4608))).toBe(show(pattern(512, 9)))
  })

  it('wrong data fails its command only, and never reaches the device', () => {
    const { lab, peer } = open()
    const broken = capsule(write(4, 8, 1, inCapsule(512)), pattern(512))
    broken[200]! ^= 1
    const failed = response(
      `00000000 00000000 0200 0000 0400 ${show(Uint8Array.of(Status.TRANSIENT_TRANSPORT_ERROR * 2))}00`,
    )
    expect(lab.exchange(peer, broken)).toBe(failed)
    lab.exchange(peer, capsule(write(5, 0, 2, byTransport(1024))))
    const late = h2cData(pattern(1024))
    late[500]! ^= 1
    const failedToo = response(
      `00000000 00000000 0300 0000 0500 ${show(Uint8Array.of(Status.TRANSIENT_TRANSPORT_ERROR * 2))}00`,
    )
    expect(lab.exchange(peer, late)).toBe(failedToo)
    expect(lab.device.log).toEqual([])
  })

  it('a wrong header ends the connection, naming the digest that came', () => {
    const { lab, peer } = open()
    const broken = capsule(entry('00', 4, byTransport(0)))
    broken[72] = 0x11
    broken[73] = 0x22
    broken[74] = 0x33
    broken[75] = 0x44
    expect(lab.exchange(peer, broken)).toBe(termReq(3, 0x4433_2211, broken.subarray(0, 72)))
  })

  it('a PDU without its header digest is refused', () => {
    const { lab, peer } = open()
    const header = bytes('04 00 48 00 48000000')
    expect(lab.exchange(peer, header)).toBe(termReq(1, 1, header))
  })
})
