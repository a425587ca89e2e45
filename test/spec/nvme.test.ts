import { describe, expect, it } from 'vitest'
import {
  AbortSqe,
  Cqe,
  DsmRange,
  DsmSqe,
  GetFeaturesSqe,
  GetLogPageSqe,
  IdentifySqe,
  ReadWriteSqe,
  SetFeaturesSqe,
  Sqe,
  WriteZeroesSqe,
} from '../../src/spec/nvme.ts'
import { hex, read, written, zeroes } from './wire.ts'

/** A command whose dwords 10 to 15 are `dwords`, with an SGL for in-capsule data as SGL1. */
const command = (opcode: string, flags: string, dwords: string): DataView =>
  hex(`${opcode} ${flags} 3412 07000000
       a2a2a2a2 a3a3a3a3 ${zeroes(8)}
       0020000000000000 00100000 000000 01
       ${dwords}`)

describe('commands', () => {
  it('read each dword of the common format where Base 2.1, section 4.1, puts it', () => {
    const view = command('7f', '41', '10101010 11111111 12121212 13131313 14141414 15151515')
    expect(read(Sqe, view)).toEqual({
      opcode: 0x7f,
      fuse: 1,
      psdt: 1,
      cid: 0x1234,
      nsid: 7,
      cdw2: 0xa2a2a2a2,
      cdw3: 0xa3a3a3a3,
      mptr: 0,
      sgl1Address: 0x2000,
      sgl1Length: 0x1000,
      sgl1Id: 0x01,
      sgl1Subtype: 1,
      sgl1Type: 0,
      cdw10: 0x10101010,
      cdw11: 0x11111111,
      cdw12: 0x12121212,
      cdw13: 0x13131313,
      cdw14: 0x14141414,
      cdw15: 0x15151515,
    })
  })

  it('write a transport data block as the data pointer', () => {
    const bytes = written(Sqe, { opcode: 2, psdt: 1, cid: 5, nsid: 1, sgl1Length: 4096, sgl1Id: 0x5a })
    expect(bytes).toBe(`0240050001000000${zeroes(24)}001000000000005a${zeroes(24)}`)
  })

  it('split the SGL identifier into type 5 and subtype Ah of a transport data block', () => {
    const view = hex(`0140 0500 01000000 ${zeroes(24)} 00100000 000000 5a ${zeroes(24)}`)
    expect([Sqe.sgl1Type.get(view, 0), Sqe.sgl1Subtype.get(view, 0)]).toEqual([0x5, 0xa])
  })

  it('read a Write with a starting block above 32 bits, forced unit access and limited retry', () => {
    const view = command('01', '40', '02000000 01000000 0700 00c0 00000000 00000000 00000000')
    expect(read(ReadWriteSqe, view)).toMatchObject({
      opcode: 1,
      cid: 0x1234,
      nsid: 7,
      slba: 0x1_0000_0002,
      nlb: 7,
      dtype: 0,
      stc: 0,
      prinfo: 0,
      fua: 1,
      lr: 1,
    })
  })

  it('read the directive, storage tag check and protection bits of a Write', () => {
    // Dword 12: DTYPE 1 at bit 20, STC at bit 24, PRINFO 1010b at bit 26. Dword 13: DSM 42h, DSPEC 1234h.
    const view = command('01', '40', `${zeroes(8)} ffff1029 42003412 ${zeroes(8)}`)
    expect(read(ReadWriteSqe, view)).toMatchObject({
      nlb: 0xffff,
      dtype: 1,
      stc: 1,
      prinfo: 0b1010,
      fua: 0,
      lr: 0,
      dsm: 0x42,
      dspec: 0x1234,
    })
  })

  it('read a Write Zeroes that asks to deallocate the whole namespace', () => {
    const view = command('08', '40', `0800000000000000 ff008002 ${zeroes(12)}`)
    expect(read(WriteZeroesSqe, view)).toMatchObject({ slba: 8, nlb: 255, nsz: 1, deac: 1, fua: 0, lr: 0 })
  })

  it('read a Dataset Management that deallocates two ranges', () => {
    const view = command('09', '40', `01000000 04000000 ${zeroes(16)}`)
    expect(read(DsmSqe, view)).toMatchObject({ opcode: 9, nr: 1, idr: 0, idw: 0, ad: 1 })
  })

  it('read a Dataset Management range', () => {
    const view = hex('01000000 00080000 0000000001000000')
    expect(read(DsmRange, view)).toEqual({ cattr: 1, nlb: 2048, slba: 0x1_0000_0000 })
    expect(DsmRange.size).toBe(16)
  })

  it('read an Abort', () => {
    const view = command('08', '40', `0300 cdab ${zeroes(20)}`)
    expect(read(AbortSqe, view)).toMatchObject({ sqid: 3, abortCid: 0xabcd })
  })

  it('read an Identify', () => {
    const view = command('06', '40', `0500 0200 3400 00 03 ${zeroes(8)} 7f000000 ${zeroes(4)}`)
    expect(read(IdentifySqe, view)).toMatchObject({ cns: 5, cntid: 2, cnsid: 0x34, csi: 3, uidx: 0x7f })
  })

  it('read a Get Log Page with both halves of the length and of the offset', () => {
    const view = command('02', '40', '0c 81 ff03 0100 0900 00100000 01000000 05 00 80 02 00000000')
    expect(read(GetLogPageSqe, view)).toMatchObject({
      lid: 0x0c,
      lsp: 1,
      rae: 1,
      numdl: 0x3ff,
      numdu: 1,
      lsi: 9,
      lpol: 0x1000,
      lpou: 1,
      uidx: 5,
      ot: 1,
      csi: 2,
    })
  })

  it('read a Get Features of the default value', () => {
    const view = command('0a', '40', `07010000 01000000 ${zeroes(16)}`)
    expect(read(GetFeaturesSqe, view)).toMatchObject({ fid: 7, sel: 1, cdw11: 1 })
  })

  it('read a Set Features that is to be saved', () => {
    const view = command('09', '40', `07000080 03000700 ${zeroes(16)}`)
    expect(read(SetFeaturesSqe, view)).toMatchObject({ fid: 7, sv: 1, cdw11: 0x0007_0003 })
  })
})

describe('completion', () => {
  it('reads each part of the status field where Base 2.1, section 4.2.3, puts it', () => {
    // Status word: DNR, More, CRD 3, SCT 1, SC 82h, phase 1.
    const view = hex('01000000 02000000 0500 0300 3412 05f3')
    expect(read(Cqe, view)).toEqual({
      dw0: 1,
      dw1: 2,
      sqhd: 5,
      sqid: 3,
      cid: 0x1234,
      phase: 1,
      status: 0x7982,
      sc: 0x82,
      sct: 1,
      crd: 3,
      more: 1,
      dnr: 1,
    })
  })

  it('writes a status without touching the phase', () => {
    expect(written(Cqe, { phase: 1, cid: 9, status: 0x4002 })).toBe(`${zeroes(12)}09000580`)
  })

  it('has the sizes of the specification', () => {
    const sqes = [Sqe, ReadWriteSqe, WriteZeroesSqe, DsmSqe, AbortSqe, IdentifySqe, GetLogPageSqe]
    expect(sqes.map(sqe => sqe.size)).toEqual(sqes.map(() => 64))
    expect(Cqe.size).toBe(16)
  })
})
