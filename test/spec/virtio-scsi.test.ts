import { describe, expect, it } from 'vitest'
import {
  LunAddress,
  NotificationRequest,
  NotificationResponse,
  ScsiConfig,
  ScsiEvent,
  ScsiRequestHeader,
  ScsiResponseHeader,
  TaskManagementRequest,
  TaskManagementResponse,
} from '../../src/spec/virtio-scsi.ts'
import { hex, read, written } from './wire.ts'

describe('virtio-scsi structures, from section 5.6 of the specification', () => {
  it('reads the configuration space', () => {
    const view = hex(`
      04000000  // num_queues
      7e000000  // seg_max
      ffff0000  // max_sectors
      80000000  // cmd_per_lun
      10000000  // event_info_size
      60000000  // sense_size
      20000000  // cdb_size
      0100      // max_channel
      ff00      // max_target
      ff3f0000  // max_lun
    `)
    expect(ScsiConfig.size).toBe(36)
    expect(read(ScsiConfig, view)).toEqual({
      numQueues: 4,
      segMax: 126,
      maxSectors: 0xffff,
      cmdPerLun: 128,
      eventInfoSize: 16,
      senseSize: 96,
      cdbSize: 32,
      maxChannel: 1,
      maxTarget: 255,
      maxLun: 16383,
    })
  })

  it('reads a request header as Linux writes it', () => {
    const view = hex(`
      01 05 4001 00000000   // target 5, LUN 1
      8877665544332211      // id
      02 03 04              // task attribute, priority, CRN
    `)
    expect(read(ScsiRequestHeader, view)).toEqual({
      lun: '0105400100000000',
      idLow: 0x5566_7788,
      idHigh: 0x1122_3344,
      taskAttr: 2,
      prio: 3,
      crn: 4,
    })
    expect(read(LunAddress, view)).toEqual({ one: 1, target: 5, lunHigh: 0x40, lunLow: 1, rest: 0 })
  })

  it('writes a response', () => {
    const fields = { senseLen: 18, residual: 0x1234, statusQualifier: 5, status: 2, response: 9 }
    expect(written(ScsiResponseHeader, fields)).toBe('12000000 34120000 0500 02 09'.replaceAll(' ', ''))
  })

  it('reads what comes on the control queue', () => {
    const task = hex('00000000 05000000 0103400000000000 8877665544332211')
    expect(read(TaskManagementRequest, task)).toEqual({
      type: 0,
      subtype: 5,
      lun: '0103400000000000',
      idLow: 0x5566_7788,
      idHigh: 0x1122_3344,
    })
    expect(written(TaskManagementResponse, { response: 10 })).toBe('0a')
    expect(read(NotificationRequest, hex('02000000 0103400000000000 7e000000'))).toEqual({
      type: 2,
      lun: '0103400000000000',
      eventRequested: 0x7e,
    })
    expect(written(NotificationResponse, { eventActual: 2, response: 0 })).toBe('0200000000')
  })

  it('writes an event', () => {
    const lun = Uint8Array.of(1, 2, 0x40, 0, 0, 0, 0, 0)
    expect(written(ScsiEvent, { event: 0x8000_0001, lun, reason: 2 })).toBe(
      '01000080 0102400000000000 02000000'.replaceAll(' ', ''),
    )
  })
})
