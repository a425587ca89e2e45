import { describe, expect, it } from 'vitest'
import {
  ControllerList,
  IdentifyController,
  IdentifyIndependentNamespace,
  IdentifyNamespace,
  IdentifyNvmController,
  IdentifyNvmNamespace,
  NamespaceDescriptor,
} from '../../src/spec/nvme-identify.ts'
import { ascii, hex, page, read } from './wire.ts'

// The keys are the byte offsets of the figures in Base 2.1, section 5.1.13, and NVM Command Set 1.1, section 4.1.5.
describe('Identify Controller', () => {
  it('has its general attributes in the first 256 bytes', () => {
    const view = page(4096, {
      0: '4d1b f41a',
      4: ascii('SN0001', 20, ' '),
      24: ascii('qpair disk', 40, ' '),
      64: ascii('0.1.0', 8, ' '),
      72: '06', // RAB
      73: 'e4d25c', // IEEE
      76: '0a', // CMIC
      77: '05', // MDTS
      78: '3412', // CNTLID
      80: '00010200', // VER 2.1
      84: '40420f00', // RTD3R
      88: '80841e00', // RTD3E
      92: '00090080', // OAES
      96: '41000000', // CTRATT
      100: '0500', // RRLS
      111: '01', // CNTRLTYPE
      112: '00112233445566778899aabbccddeeff', // FGUID
      128: '0100 0200 0300', // CRDT1 to CRDT3
      253: '01 82 03', // NVMSR, VWCI, MEC
    })
    expect(read(IdentifyController, view)).toMatchObject({
      vid: 0x1b4d,
      ssvid: 0x1af4,
      sn: 'SN0001',
      mn: 'qpair disk',
      fr: '0.1.0',
      rab: 6,
      ieee: 0x5cd2e4,
      cmic: 0x0a,
      mdts: 5,
      cntlid: 0x1234,
      ver: 0x20100,
      rtd3r: 1_000_000,
      rtd3e: 2_000_000,
      oaes: 0x8000_0900,
      ctratt: 0x41,
      rrls: 5,
      cntrltype: 1,
      fguid: '00112233445566778899aabbccddeeff',
      crdt1: 1,
      crdt2: 2,
      crdt3: 3,
      nvmsr: 1,
      vwci: 0x82,
      mec: 3,
    })
  })

  it('has its admin command set attributes from byte 256 on', () => {
    const view = page(4096, {
      256: '0600 03 04 17 06 3f 02 01 00', // OACS ACL AERL FRMW LPA ELPE NPSS AVSCC APSTA
      266: '5701 6101 0a00', // WCTEMP CCTEMP MTFA
      272: '01000000 02000000', // HMPRE HMMIN
      280: '0000000080020000', // TNVMCAP
      296: '0000000040010000', // UNVMCAP
      312: '05000000 0600 07 08', // RPMBS EDSTT DSTO FWUG
      320: '6400 0100 1101 7201', // KAS HCTMA MNTMT MXTMT
      328: '03000000 09000000 0a00', // SANICAP HMMINDS HMMAXD
      338: '0b00 0c00', // NSETIDMAX ENDGIDMAX
      342: '0a df', // ANATT ANACAP
      344: '20000000 21000000', // ANAGRPMAX NANAGRPID
      352: '0d000000 0e00', // PELS DOMAINID
      368: '0000000000010000', // MEGCAP
    })
    expect(read(IdentifyController, view)).toMatchObject({
      oacs: 6,
      acl: 3,
      aerl: 4,
      frmw: 0x17,
      lpa: 6,
      elpe: 63,
      npss: 2,
      avscc: 1,
      apsta: 0,
      wctemp: 343,
      cctemp: 353,
      mtfa: 10,
      hmpre: 1,
      hmmin: 2,
      tnvmcap: 640 * 2 ** 32,
      unvmcap: 320 * 2 ** 32,
      rpmbs: 5,
      edstt: 6,
      dsto: 7,
      fwug: 8,
      kas: 100,
      hctma: 1,
      mntmt: 273,
      mxtmt: 370,
      sanicap: 3,
      hmminds: 9,
      hmmaxd: 10,
      nsetidmax: 11,
      endgidmax: 12,
      anatt: 10,
      anacap: 0xdf,
      anagrpmax: 32,
      nanagrpid: 33,
      pels: 13,
      domainid: 14,
      megcap: 256 * 2 ** 32,
    })
  })

  it('has its NVM and Fabrics attributes and power state 0 where the figure says', () => {
    const view = page(4096, {
      512: '66 44 8000 00040000', // SQES CQES MAXCMD NN
      520: '0d00 0100 00 07', // ONCS FUSES FNA VWC
      526: 'ff00 0300 01 02 0400 0500', // AWUN AWUPF ICSVSCC NWPC ACWU CDFS
      536: '01003000 00020000', // SGLS MNAN
      768: ascii('nqn.2014-08.org.nvmexpress:uuid:0', 256, '\0'),
      1792: '04020000 01000000 0000 00 10 0100 01', // IOCCSZ IORCSZ ICDOFF FCATT MSDBD OFCS DCTYPE
      2048: 'a60e 00 02 10000000 04000000', // MP, flags with NOPS, ENLAT, EXLAT
    })
    expect(read(IdentifyController, view)).toMatchObject({
      sqes: 0x66,
      cqes: 0x44,
      maxcmd: 128,
      nn: 1024,
      oncs: 0x0d,
      fuses: 1,
      fna: 0,
      vwc: 7,
      awun: 255,
      awupf: 3,
      icsvscc: 1,
      nwpc: 2,
      acwu: 4,
      cdfs: 5,
      sgls: 0x30_0001,
      mnan: 512,
      subnqn: 'nqn.2014-08.org.nvmexpress:uuid:0',
      ioccsz: 516,
      iorcsz: 1,
      icdoff: 0,
      fcatt: 0,
      msdbd: 16,
      ofcs: 1,
      dctype: 1,
      psd0Mp: 3750,
      psd0Mxps: 0,
      psd0Nops: 1,
      psd0Enlat: 16,
      psd0Exlat: 4,
    })
  })
})

describe('Identify Namespace', () => {
  it('has each field where the figure says', () => {
    const view = page(4096, {
      0: '0000000001000000 0000000002000000 0000000003000000', // NSZE NCAP NUSE
      24: '19 01 21 03 1f 29 01 bf 80 09', // NSFEAT NLBAF FLBAS MC DPC DPS NMIC RESCAP FPI DLFEAT
      34: '0100 0200 0300 0400 0500 0600 0700', // NAWUN NAWUPF NACWU NABSN NABO NABSPF NOIOB
      48: '0000000000100000', // NVMCAP
      64: '0800 0900 0a00 0b00 0c00 0d00 0e000000 0f', // NPWG NPWA NPDG NPDA NOWS MSSRL MCL MSRC
      92: '10000000',
      99: '01 1100 1200', // NSATTR NVMSETID ENDGID
      104: '00112233445566778899aabbccddeeff', // NGUID
      120: '0123456789abcdef', // EUI64
      128: '0800 0c 02', // LBAF0
    })
    expect(read(IdentifyNamespace, view)).toEqual({
      nsze: 1 * 2 ** 32,
      ncap: 2 * 2 ** 32,
      nuse: 3 * 2 ** 32,
      nsfeat: 0x19,
      nlbaf: 1,
      flbas: 0x21,
      mc: 3,
      dpc: 0x1f,
      dps: 0x29,
      nmic: 1,
      rescap: 0xbf,
      fpi: 0x80,
      dlfeat: 9,
      nawun: 1,
      nawupf: 2,
      nacwu: 3,
      nabsn: 4,
      nabo: 5,
      nabspf: 6,
      noiob: 7,
      nvmcap: 4096 * 2 ** 32,
      npwg: 8,
      npwa: 9,
      npdg: 10,
      npda: 11,
      nows: 12,
      mssrl: 13,
      mcl: 14,
      msrc: 15,
      anagrpid: 16,
      nsattr: 1,
      nvmsetid: 17,
      endgid: 18,
      nguid: '00112233445566778899aabbccddeeff',
      eui64: '0123456789abcdef',
      lbaf0Ms: 8,
      lbaf0Lbads: 12,
      lbaf0Rp: 2,
    })
  })

  it('has its command set specific and independent parts', () => {
    const nvm = page(4096, { 0: 'ffff000000000000 03', 12: '90000000' })
    expect(read(IdentifyNvmNamespace, nvm)).toEqual({ lbstm: 0xffff, pic: 3, elbaf0Sts: 16, elbaf0Pif: 1 })

    const independent = page(4096, { 0: '08 01 ff 80 03000000 01', 10: '0400 0500 01' })
    expect(read(IdentifyIndependentNamespace, independent)).toEqual({
      nsfeat: 8,
      nmic: 1,
      rescap: 255,
      fpi: 0x80,
      anagrpid: 3,
      nsattr: 1,
      nvmsetid: 4,
      endgid: 5,
      nstat: 1,
    })
  })
})

describe('the smaller structures', () => {
  it('read the limits of the NVM command set', () => {
    const view = page(4096, { 0: '01 02 03 04 00000400 0000000001000000' })
    expect(read(IdentifyNvmController, view)).toEqual({
      vsl: 1,
      wzsl: 2,
      wusl: 3,
      dmrl: 4,
      dmrsl: 0x40000,
      dmsl: 2 ** 32,
    })
  })

  it('read the header of a descriptor and the count of a controller list', () => {
    expect(read(NamespaceDescriptor, hex('03 10 0000'))).toEqual({ nidt: 3, nidl: 16 })
    expect(read(ControllerList, page(4096, { 0: '0200 0100 0500' }))).toEqual({ numids: 2 })
  })
})
