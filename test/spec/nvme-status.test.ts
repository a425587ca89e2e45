import { describe, expect, it } from 'vitest'
import { DNR, MORE, STATUS_MASK, Status, StatusCodeType, statusName } from '../../src/spec/nvme-status.ts'
import { hex } from './wire.ts'

describe('status', () => {
  it('is the code type and the code of Base 2.1, section 4.2.3', () => {
    // The figures of the specification, by hand: type, code.
    const table = [
      [Status.INVALID_OPCODE, 0, 0x01],
      [Status.INVALID_NAMESPACE_OR_FORMAT, 0, 0x0b],
      [Status.KEEP_ALIVE_TIMEOUT_INVALID, 0, 0x1a],
      [Status.LBA_OUT_OF_RANGE, 0, 0x80],
      [Status.INVALID_LOG_PAGE, 1, 0x09],
      [Status.FEATURE_NOT_CHANGEABLE, 1, 0x0e],
      [Status.WRITE_TO_READ_ONLY_RANGE, 1, 0x82],
      [Status.UNRECOVERED_READ_ERROR, 2, 0x81],
      [Status.COMPARE_FAILURE, 2, 0x85],
      [Status.ANA_TRANSITION, 3, 0x03],
      [Status.HOST_PATHING_ERROR, 3, 0x70],
      [Status.ABORTED_BY_HOST, 3, 0x71],
    ] as const
    for (const [status, type, code] of table) expect(status).toBe(type * 256 + code)
    expect(StatusCodeType.PATH).toBe(Status.ANA_INACCESSIBLE >> 8)
  })

  it('keeps do-not-retry and more where a completion has them above the phase', () => {
    // Bits 15 and 14 of the last word of a completion, INTERNAL_ERROR, phase 0.
    const statusField = hex('0cc0').getUint16(0, true) >> 1
    expect(statusField).toBe(DNR | MORE | Status.INTERNAL_ERROR)
    expect(statusField & STATUS_MASK).toBe(Status.INTERNAL_ERROR)
  })

  it('gives every value one name and one sentence of its own', () => {
    const values = Object.values(Status)
    expect(new Set(values).size).toBe(values.length)
    expect(new Set(values.map(statusName)).size).toBe(values.length)
  })

  it('is put in words with its number, whatever the retry bits', () => {
    expect(statusName(Status.WRITE_FAULT)).toBe('the medium refused the write (0x280)')
    expect(statusName(Status.INVALID_FIELD | DNR)).toBe('a field of the command is invalid (0x002)')
  })

  it('is named by its number when no table knows it', () => {
    expect(statusName(0x7c1)).toBe('status 0x7c1')
  })
})
