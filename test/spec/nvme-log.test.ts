import { describe, expect, it } from 'vitest'
import { EventResult } from '../../src/spec/nvme-event.ts'
import {
  ErrorRecovery,
  HostBehaviorSupport,
  KeepAliveTimer,
  NumberOfQueues,
  TemperatureThreshold,
  VolatileWriteCache,
} from '../../src/spec/nvme-feature.ts'
import {
  AnaGroupDescriptor,
  AnaLogHeader,
  DiscoveryLogEntry,
  DiscoveryLogHeader,
  ErrorInformation,
  FirmwareSlotLog,
  SmartLog,
  SupportedLogPage,
} from '../../src/spec/nvme-log.ts'
import { ascii, hex, page, read, written, zeroes } from './wire.ts'

// The keys are the byte offsets of the figures in Base 2.1, section 5.1.12.
describe('log pages', () => {
  it('read an Error Information entry', () => {
    const view = page(64, {
      0: '0700000000000000 0100 3412 05c0 2b03', // ECNT SQID CID STATUS PEL
      16: '0000000001000000 02000000 00 03 00 02', // LBA NSID VSIA TRTYPE CSI OPC
      32: '0900000000000000 0500', // CSINFO TTSI
      63: '01',
    })
    expect(read(ErrorInformation, view)).toEqual({
      ecnt: 7,
      sqid: 1,
      cid: 0x1234,
      phase: 1,
      status: 0x6002,
      pelByte: 43,
      pelBit: 3,
      lba: 2 ** 32,
      nsid: 2,
      vsia: 0,
      trtype: 3,
      csi: 0,
      opc: 2,
      csinfo: 9,
      ttsi: 5,
      lpver: 1,
    })
  })

  it('read the SMART log, whose temperature is not aligned', () => {
    const counters = [32, 48, 64, 80, 96, 112, 128, 144, 160, 176]
    const parts = Object.fromEntries(counters.map((at, i) => [at, `0${i}00000001000000`]))
    const view = page(512, { 0: '04 3301 64 0a 01 00', ...parts, 192: '05000000 06000000' })
    const counter = (i: number): number => 2 ** 32 + i
    expect(read(SmartLog, view)).toEqual({
      cw: 4,
      ctemp: 307,
      avsp: 100,
      avspt: 10,
      pused: 1,
      egcws: 0,
      dur: counter(0),
      duw: counter(1),
      hrc: counter(2),
      hwc: counter(3),
      cbt: counter(4),
      pwrc: counter(5),
      poh: counter(6),
      upl: counter(7),
      mdie: counter(8),
      nele: counter(9),
      wctt: 5,
      cctt: 6,
    })
  })

  it('read the firmware slots', () => {
    const view = page(512, {
      0: '21',
      8: ascii('1.0', 8, ' '),
      16: ascii('1.1', 8, ' '),
      56: ascii('7', 8, ' '),
    })
    expect(read(FirmwareSlotLog, view)).toMatchObject({
      active: 1,
      next: 2,
      frs1: '1.0',
      frs2: '1.1',
      frs7: '7',
    })
  })

  it('write an ANA log with one group of two namespaces', () => {
    expect(written(AnaLogHeader, { chgcnt: 3, ngrps: 1 })).toBe(`03000000000000000100${zeroes(6)}`)
    expect(written(AnaGroupDescriptor, { anagrpid: 1, nnsids: 2, chgcnt: 3, anas: 0xf })).toBe(
      `0100000002000000${'03'.padEnd(16, '0')}0f${zeroes(15)}`,
    )
  })

  it('read a discovery log', () => {
    const header = page(1024, { 0: '0500000000000000 0200000000000000 0000' })
    expect(read(DiscoveryLogHeader, header)).toEqual({ genctr: 5, numrec: 2, recfmt: 0 })

    const entry = page(1024, {
      0: '03 01 02 06 0100 ffff 8000 0300', // TRTYPE ADRFAM SUBTYPE TREQ PORTID CNTLID ASQSZ EFLAGS
      32: ascii('4420', 32, ' '),
      256: ascii('nqn.2016-06.io.spdk:cnode1', 256, '\0'),
      512: ascii('127.0.0.1', 256, ' '),
      768: '02',
    })
    expect(read(DiscoveryLogEntry, entry)).toEqual({
      trtype: 3,
      adrfam: 1,
      subtype: 2,
      treq: 6,
      portid: 1,
      cntlid: 0xffff,
      asqsz: 128,
      eflags: 3,
      trsvcid: '4420',
      subnqn: 'nqn.2016-06.io.spdk:cnode1',
      traddr: '127.0.0.1',
      tsas: `02${zeroes(255)}`,
      tsasSectype: 2,
    })
  })

  it('read the address of a discovery entry that is padded with NUL instead of spaces', () => {
    const entry = page(1024, { 32: ascii('4420', 32, '\0'), 512: ascii('::1', 256, '\0') })
    expect(read(DiscoveryLogEntry, entry)).toMatchObject({ trsvcid: '4420', traddr: '::1' })
  })

  it('read an entry of the supported log pages', () => {
    expect(read(SupportedLogPage, hex('03003412'))).toEqual({ lsupp: 1, ios: 1, lidsp: 0x1234 })
  })
})

describe('features and events', () => {
  it('write a notice that the ANA log changed', () => {
    expect(written(EventResult, { type: 2, info: 3, lid: 0x0c })).toBe('02030c00')
  })

  it('read the values of features that are one dword', () => {
    expect(read(NumberOfQueues, hex('03000700'))).toEqual({ nsq: 3, ncq: 7 })
    expect(read(KeepAliveTimer, hex('10270000'))).toEqual({ kato: 10_000 })
    expect(read(VolatileWriteCache, hex('01000000'))).toEqual({ wce: 1 })
    expect(read(ErrorRecovery, hex('0a000100'))).toEqual({ tler: 10, dulbe: 1 })
    // 343 kelvins, sensor 2, under temperature.
    expect(read(TemperatureThreshold, hex('57011200'))).toEqual({ tmpth: 343, tmpsel: 2, thsel: 1 })
  })

  it('read the host behavior support', () => {
    const view = page(512, { 0: '01 00 01 00 0400' })
    expect(read(HostBehaviorSupport, view)).toEqual({ acre: 1, etdas: 0, lbafee: 1, hdisns: 0, cdfe: 4 })
  })
})
