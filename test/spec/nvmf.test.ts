import { describe, expect, it } from 'vitest'
import {
  Cap,
  Cc,
  ConnectData,
  ConnectInvalid,
  ConnectResponse,
  ConnectSqe,
  Crto,
  Csts,
  DisconnectSqe,
  FabricsSqe,
  FabricsStatus,
  fabricsStatusName,
  NSSR_RESET,
  PropertyGetSqe,
  PropertySetSqe,
  Vs,
} from '../../src/spec/nvmf.ts'
import { ascii, hex, page, read, written, zeroes } from './wire.ts'

/** A Fabrics command: FCTYPE, then bytes 40 to 63. */
const command = (fctype: string, rest: string): DataView => hex(`7f 40 3412 ${fctype} ${zeroes(35)} ${rest}`)

// Base 2.1, section 6.
describe('Fabrics commands', () => {
  it('read a Connect of an I/O queue without flow control', () => {
    const view = command('01', `0000 0300 7f00 0c 00 10270000 ${zeroes(12)}`)
    expect(read(ConnectSqe, view)).toEqual({
      opcode: 0x7f,
      psdt: 1,
      cid: 0x1234,
      fctype: 1,
      recfmt: 0,
      qid: 3,
      sqsize: 127,
      cattr: 0x0c,
      priority: 0,
      disableSqFlow: 1,
      kato: 10_000,
    })
  })

  it('read the data of a Connect', () => {
    const view = page(1024, {
      0: '00112233445566778899aabbccddeeff',
      16: 'ffff',
      256: ascii('nqn.2016-06.io.spdk:cnode1', 256, '\0'),
      512: ascii('nqn.2014-08.org.nvmexpress:uuid:1', 256, '\0'),
    })
    expect(ConnectData.size).toBe(1024)
    expect(read(ConnectData, view)).toEqual({
      hostid: '00112233445566778899aabbccddeeff',
      cntlid: 0xffff,
      subnqn: 'nqn.2016-06.io.spdk:cnode1',
      hostnqn: 'nqn.2014-08.org.nvmexpress:uuid:1',
    })
  })

  it('write the answers to a Connect', () => {
    expect(written(ConnectResponse, { cntlid: 0x1234, authreq: 4 })).toBe('3412040000000000')
    // The host NQN, at byte 512 of the data.
    expect(written(ConnectInvalid, { ipo: 512, iattr: 1 })).toBe('00020100')
  })

  it('read a Property Get of eight bytes', () => {
    const view = command('04', `01000000 00000000 ${zeroes(16)}`)
    expect(read(PropertyGetSqe, view)).toMatchObject({ fctype: 4, propertySize: 1, ofst: 0 })
  })

  it('read a Property Set of CC', () => {
    const view = command('00', `00000000 14000000 01004600 00000000 ${zeroes(8)}`)
    expect(read(PropertySetSqe, view)).toMatchObject({
      fctype: 0,
      propertySize: 0,
      ofst: 0x14,
      valueLow: 0x46_0001,
      valueHigh: 0,
    })
  })

  it('read a Disconnect', () => {
    const view = command('08', `0100 ${zeroes(22)}`)
    expect(read(DisconnectSqe, view)).toMatchObject({ fctype: 8, recfmt: 1 })
    expect(FabricsSqe.fctype.get(view, 0)).toBe(8)
  })

  it('put a status in words, also one that is not theirs', () => {
    const names = Object.values(FabricsStatus).map(fabricsStatusName)
    expect(new Set(names).size).toBe(8)
    expect(fabricsStatusName(0x4184)).toBe('the host is not allowed to connect to this subsystem (0x184)')
    expect(fabricsStatusName(0x4002)).toBe('a field of the command is invalid (0x002)')
  })
})

// Base 2.1, section 3.1.4.
describe('properties', () => {
  it('read the bits of CAP', () => {
    // MQES 127, CQR, AMS 1, TO 30; DSTRD 4, NSSRS, CSS 41h (bits 43 and 37), BPS, CPS 2, MPSMIN 1, MPSMAX 4, PMRS to CRIMS.
    const view = hex('7f00 03 1e 34a8 41 1f')
    expect(read(Cap, view)).toEqual({
      mqes: 127,
      cqr: 1,
      ams: 1,
      to: 30,
      dstrd: 4,
      nssrs: 1,
      css: 0x41,
      bps: 1,
      cps: 2,
      mpsmin: 1,
      mpsmax: 4,
      pmrs: 1,
      cmbs: 1,
      nsss: 1,
      crwms: 1,
      crims: 1,
    })
  })

  it('read the bits of CC', () => {
    // EN, CSS 6, MPS 1, AMS 1, SHN 2, IOSQES 6, IOCQES 4, CRIME.
    expect(read(Cc, hex('e1884601'))).toEqual({
      en: 1,
      css: 6,
      mps: 1,
      ams: 1,
      shn: 2,
      iosqes: 6,
      iocqes: 4,
      crime: 1,
    })
  })

  it('read the bits of CSTS, VS and CRTO', () => {
    expect(read(Csts, hex('59000000'))).toEqual({ rdy: 1, cfs: 0, shst: 2, nssro: 1, pp: 0, st: 1 })
    expect(read(Vs, hex('00040100'))).toEqual({ ter: 0, mnr: 4, mjr: 1 })
    expect(read(Crto, hex('1e000a00'))).toEqual({ crwmt: 30, crimt: 10 })
  })

  it('resets the subsystem with the word NVMe', () => {
    expect(hex(Buffer.from('eMVN', 'latin1').toString('hex')).getUint32(0, true)).toBe(NSSR_RESET)
  })
})
