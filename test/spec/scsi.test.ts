import { describe, expect, it } from 'vitest'
import * as scsi from '../../src/spec/scsi.ts'
import { ascii, hex, page, read, written, zeroes } from './wire.ts'

describe('CDBs, from SPC-4 and SBC-3', () => {
  it('reads those of READ and WRITE in all four lengths', () => {
    expect(read(scsi.Cdb6, hex('08 ff0102 10 20'))).toEqual({
      opcode: 8,
      lbaHigh: 0x1f,
      lbaLow: 0x0102,
      length: 0x10,
      control: 0x20,
    })
    expect(read(scsi.Cdb10, hex('28 18 01020304 05 0607 08'))).toEqual({
      opcode: 0x28,
      flags: 0x18,
      lba: 0x0102_0304,
      group: 5,
      length: 0x0607,
      control: 8,
    })
    expect(read(scsi.Cdb12, hex('a8 18 01020304 05060708 09 0a'))).toEqual({
      opcode: 0xa8,
      flags: 0x18,
      lba: 0x0102_0304,
      length: 0x0506_0708,
      group: 9,
      control: 10,
    })
    expect(read(scsi.Cdb16, hex('88 18 0000000102030405 06070809 0a 0b'))).toEqual({
      opcode: 0x88,
      flags: 0x18,
      lba: 0x1_0203_0405,
      length: 0x0607_0809,
      group: 10,
      control: 11,
    })
    expect(read(scsi.CompareAndWriteCdb, hex('89 08 0000000102030405 000000 07 00 00'))).toEqual({
      opcode: 0x89,
      flags: 8,
      lba: 0x1_0203_0405,
      blocks: 7,
    })
  })

  it('reads those that ask for something', () => {
    expect(read(scsi.InquiryCdb, hex('12 01 83 0102 00'))).toEqual({
      opcode: 0x12,
      flags: 1,
      page: 0x83,
      allocationLength: 0x0102,
    })
    expect(read(scsi.ModeSense6Cdb, hex('1a 08 88 ff 40 00'))).toEqual({
      opcode: 0x1a,
      flags: 8,
      pageCode: 8,
      pageControl: 2,
      subpage: 0xff,
      allocationLength: 0x40,
    })
    expect(read(scsi.ModeSense10Cdb, hex('5a 18 7f 00 000000 0102 00'))).toMatchObject({
      pageCode: 0x3f,
      pageControl: 1,
      allocationLength: 0x0102,
    })
    expect(read(scsi.ReportLunsCdb, hex('a0 00 02 000000 00001000 00 00'))).toEqual({
      opcode: 0xa0,
      select: 2,
      allocationLength: 4096,
    })
    expect(read(scsi.ReportOpcodesCdb, hex('a3 0c 82 93 0102 00000040 00 00'))).toEqual({
      opcode: 0xa3,
      serviceAction: 12,
      reportingOptions: 2,
      rctd: 1,
      requestedOpcode: 0x93,
      requestedServiceAction: 0x0102,
      allocationLength: 64,
    })
    expect(read(scsi.ReserveOutCdb, hex('5f 04 05 0000 00000018 00'))).toEqual({
      opcode: 0x5f,
      serviceAction: 4,
      type: 5,
      scope: 0,
      parameterListLength: 24,
    })
    expect(read(scsi.StartStopCdb, hex('1b 01 00 00 37 00'))).toEqual({
      opcode: 0x1b,
      flags: 1,
      start: 1,
      loej: 1,
      noFlush: 1,
      powerCondition: 3,
    })
  })
})

describe('answers, from SPC-4 and SBC-3', () => {
  it('writes standard INQUIRY data where the specification has it', () => {
    const dump = written(scsi.StandardInquiry, {
      deviceType: 0x1f,
      qualifier: 3,
      removable: 1,
      version: 6,
      responseFormat: 2,
      hiSup: 1,
      additionalLength: 91,
      tpgs: 1,
      cmdQue: 1,
      vendor: 'QPAIR',
      product: 'Malloc disk',
      revision: '1',
      versionDescriptor1: 0x00a0,
      versionDescriptor2: 0x0460,
      versionDescriptor3: 0x04c0,
    })
    const names = ascii('QPAIR', 8, ' ') + ascii('Malloc disk', 16, ' ') + ascii('1', 4, ' ')
    expect(dump).toBe(`7f8006125b100002${names}${zeroes(22)}00a0046004c0${zeroes(32)}`)
  })

  it('writes capacities', () => {
    expect(written(scsi.ReadCapacity10, { lastLba: 0x0102_0304, blockSize: 512 })).toBe('0102030400000200')
    expect(
      written(scsi.ReadCapacity16, {
        lastLba: 0x1_0203_0405,
        blockSize: 4096,
        protEn: 1,
        physicalExponent: 3,
        lbpme: 1,
        lbprz: 1,
        lowestAlignedLba: 0x0123,
      }),
    ).toBe(`0000000102030405 00001000 01 03 c123 ${zeroes(16)}`.replaceAll(' ', ''))
  })

  it('writes the block limits page', () => {
    const view = page(64, {
      4: '01 ff 0008 00000010 00000020',
      20: '00800000 00000100 00000040 80000004 0000000000200000',
    })
    expect(read(scsi.BlockLimits, view)).toEqual({
      wsnz: 1,
      compareAndWriteMax: 255,
      transferGranularity: 8,
      transferMax: 16,
      transferOptimal: 32,
      unmapBlocksMax: 0x80_0000,
      unmapDescriptorsMax: 256,
      unmapGranularity: 64,
      unmapAlignment: 0x8000_0004,
      writeSameMax: 0x20_0000,
    })
  })

  it('writes the other pages of a disk', () => {
    const provisioning = {
      thresholdExponent: 1,
      lbpu: 1,
      lbpws: 1,
      lbpws10: 1,
      lbprz: 1,
      provisioningType: 2,
    }
    expect(written(scsi.LogicalBlockProvisioning, provisioning)).toBe('0000000001e40200')
    expect(written(scsi.BlockDeviceCharacteristics, { rotationRate: 1 })).toBe(`000000000001${zeroes(58)}`)
    const extended = { simpSup: 1, ordSup: 1, headSup: 1, vSup: 1, luiclr: 1 }
    expect(written(scsi.ExtendedInquiry, extended)).toBe(`0000000000070101${zeroes(56)}`)
    expect(
      written(scsi.Designator, { codeSet: 1, protocol: 6, type: 3, association: 1, piv: 1, length: 8 }),
    ).toBe('61930008')
  })

  it('writes mode headers and block descriptors', () => {
    const six = { dataLength: 0x43, mediumType: 1, deviceSpecific: 0x90, blockDescriptorLength: 8 }
    expect(written(scsi.ModeHeader6, six)).toBe('43019008')
    const ten = {
      dataLength: 0x0102,
      mediumType: 1,
      deviceSpecific: 0x90,
      longLba: 1,
      blockDescriptorLength: 16,
    }
    expect(written(scsi.ModeHeader10, ten)).toBe('0102019001000010')
    expect(written(scsi.ShortBlockDescriptor, { blockCount: 64, blockSize: 512 })).toBe('0000004000000200')
    expect(written(scsi.LongBlockDescriptor, { blockCount: 64, blockSize: 512 })).toBe(
      '00000000000000400000000000000200',
    )
  })

  it('writes sense data in both formats', () => {
    const fixed = {
      responseCode: 0x70,
      valid: 1,
      key: 5,
      information: 0x0102_0304,
      additionalLength: 10,
      commandInformation: 0x0506_0708,
      asc: 0x2400,
      fru: 9,
      fieldFlags: 0xc0,
      fieldPointer: 0x0102,
    }
    expect(written(scsi.FixedSense, fixed)).toBe(
      'f0 00 05 01020304 0a 05060708 2400 09 c0 0102'.replaceAll(' ', ''),
    )
    const descriptor = { responseCode: 0x72, key: 5, asc: 0x2400, additionalLength: 0 }
    expect(written(scsi.DescriptorSense, descriptor)).toBe('7205240000000000')
  })

  it('writes what is known of reservations', () => {
    const key = Uint8Array.of(1, 2, 3, 4, 5, 6, 7, 8)
    expect(written(scsi.ReserveInHeader, { generation: 0x0102_0304, additionalLength: 16 })).toBe(
      '0102030400000010',
    )
    expect(written(scsi.ReservationDescriptor, { key, type: 5, scope: 1 })).toBe(
      `0102030405060708${zeroes(5)}150000`,
    )
    expect(written(scsi.ReserveCapabilities, { length: 8, flags: 0, masks: 0x80, types: 0xea01 })).toBe(
      '00080080ea010000',
    )
    expect(Object.values(scsi.ReservationTypeBit).reduce((all, bit) => all | bit, 0)).toBe(0xea01)
    const status = {
      key,
      holder: 1,
      allTargetPorts: 1,
      type: 5,
      scope: 1,
      relativePort: 1,
      additionalLength: 24,
    }
    expect(written(scsi.FullStatusDescriptor, status)).toBe(
      `0102030405060708 00000000 03 15 00000000 0001 00000018`.replaceAll(' ', ''),
    )
    expect(written(scsi.SasTransportId, { protocol: 6, address: key })).toBe(
      `060000000102030405060708${zeroes(12)}`,
    )
    const view = hex(`0102030405060708 1112131415161718 00000000 0d ${zeroes(3)}`)
    expect(read(scsi.ReserveOutParameters, view)).toEqual({
      key: '0102030405060708',
      serviceActionKey: '1112131415161718',
      flags: 0x0d,
    })
  })

  it('writes what commands and task management functions there are', () => {
    const one = { opcode: 0x9e, serviceAction: 0x10, servactv: 1, ctdp: 1, cdbLength: 16 }
    expect(written(scsi.OpcodeDescriptor, one)).toBe('9e00001000030010')
    expect(written(scsi.OneOpcode, { support: 3, ctdp: 1, cdbSize: 16 })).toBe('00830010')
    expect(written(scsi.TimeoutsDescriptor, { length: 10, nominal: 1, recommended: 2 })).toBe(
      '000a00000000000100000002',
    )
    const functions = {
      abortTask: 1,
      abortTaskSet: 1,
      clearTaskSet: 1,
      unitReset: 1,
      queryTask: 1,
      queryTaskSet: 1,
      nexusReset: 1,
    }
    expect(written(scsi.SupportedTaskManagement, functions)).toBe('dc030000')
  })

  it('reads the parameters of UNMAP', () => {
    expect(read(scsi.UnmapCdb, hex('42 01 00000000 00 0018 00'))).toEqual({
      opcode: 0x42,
      flags: 1,
      parameterListLength: 24,
    })
    expect(read(scsi.UnmapHeader, hex('0016 0010 00000000'))).toEqual({
      dataLength: 22,
      descriptorsLength: 16,
    })
    expect(read(scsi.UnmapDescriptor, hex('0000000102030405 06070809 00000000'))).toEqual({
      lba: 0x1_0203_0405,
      blocks: 0x0607_0809,
    })
  })
})
