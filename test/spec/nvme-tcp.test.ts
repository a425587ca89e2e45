import { describe, expect, it } from 'vitest'
import { Cqe, Sqe } from '../../src/spec/nvme.ts'
import {
  C2hData,
  CapsuleCmd,
  CapsuleResp,
  H2cData,
  IcReq,
  IcResp,
  PduHeader,
  R2t,
  TermReq,
} from '../../src/spec/nvme-tcp.ts'
import { hex, read, written, zeroes } from './wire.ts'

// Each dump follows the figure of its PDU in the TCP Transport specification 1.1, section 3.6.2.
describe('NVMe/TCP PDUs', () => {
  it('have the sizes that HLEN announces', () => {
    const sizes = [PduHeader, IcReq, IcResp, TermReq, CapsuleCmd, CapsuleResp, H2cData, C2hData, R2t]
    expect(sizes.map(pdu => pdu.size)).toEqual([8, 128, 128, 24, 72, 24, 24, 24, 24])
  })

  it('reads an ICReq', () => {
    const view = hex(`00 00 80 00 80000000  0000 1f 03 07000000 ${zeroes(112)}`)
    expect(read(IcReq, view)).toEqual({
      type: 0,
      flags: 0,
      hlen: 128,
      pdo: 0,
      plen: 128,
      pfv: 0,
      hpda: 31,
      dgst: 3,
      maxr2t: 7,
    })
  })

  it('writes an ICResp', () => {
    const bytes = written(IcResp, {
      type: 1,
      hlen: 128,
      plen: 128,
      pfv: 0,
      cpda: 4,
      dgst: 1,
      maxh2cdata: 0x20000,
    })
    expect(bytes).toBe(`01008000800000000000040100000200${zeroes(112)}`)
  })

  it('reads a termination request, whose information is not aligned', () => {
    const view = hex(`03 00 18 00 20000000  0100 02000000 ${zeroes(10)}  0400480048000000`)
    expect(read(TermReq, view)).toEqual({
      type: 3,
      flags: 0,
      hlen: 24,
      pdo: 0,
      plen: 32,
      fes: 1,
      fei: 2,
    })
  })

  it('places the command in its capsule', () => {
    const view = hex(`04 00 48 48 48020000  02 40 3412 01000000 ${zeroes(56)}`)
    expect(PduHeader.pdo.get(view, 0)).toBe(72)
    expect(PduHeader.plen.get(view, 0)).toBe(0x248)
    expect(Sqe.cid.get(view, CapsuleCmd.sqe.offset)).toBe(0x1234)
    expect(Sqe.psdt.get(view, CapsuleCmd.sqe.offset)).toBe(1)
  })

  it('places the completion in its capsule', () => {
    const view = hex('05 00 18 00 18000000  00000000 00000000 0500 0000 3412 0440')
    expect(Cqe.cid.get(view, CapsuleResp.cqe.offset)).toBe(0x1234)
    expect(Cqe.sqhd.get(view, CapsuleResp.cqe.offset)).toBe(5)
  })

  it('reads an H2CData with data and both digests announced', () => {
    const view = hex('06 07 18 1c 20100000  3412 0700 00200000 00100000 00000000')
    expect(read(H2cData, view)).toEqual({
      type: 6,
      flags: 7,
      hlen: 24,
      pdo: 28,
      plen: 0x1020,
      cccid: 0x1234,
      ttag: 7,
      datao: 0x2000,
      datal: 0x1000,
    })
  })

  it('writes a C2HData and leaves the reserved bytes at zero', () => {
    const bytes = written(C2hData, {
      type: 7,
      flags: 0x0c,
      hlen: 24,
      pdo: 24,
      plen: 0x1018,
      cccid: 0x1234,
      datao: 0x2000,
      datal: 0x1000,
    })
    expect(bytes).toBe('070c181818100000341200000020000000100000 00000000'.replace(' ', ''))
  })

  it('reads an R2T', () => {
    const view = hex('09 00 18 00 18000000  3412 0700 00200000 00100000 00000000')
    expect(read(R2t, view)).toEqual({
      type: 9,
      flags: 0,
      hlen: 24,
      pdo: 0,
      plen: 24,
      cccid: 0x1234,
      ttag: 7,
      r2to: 0x2000,
      r2tl: 0x1000,
    })
  })
})
