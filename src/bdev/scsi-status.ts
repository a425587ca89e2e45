/** How a SCSI command's end is told as an NVMe status: the only table from SCSI status and sense to statuses. */
import { Status } from '../spec/nvme-status.ts'
import { Asc, ScsiStatus, SenseKey } from '../spec/scsi.ts'
import { IoType } from './io.ts'

/** Not statuses: what `statusFromScsi` answers for a command that is to be sent again. */
export const Again = {
  NOW: -1,
  /** At once too, and its size, or that of another one, may be another. */
  CHANGED: -3,
  /** The device is busy. */
  LATER: -2,
} as const

/** Additional sense codes that say more than their key does. */
const BY_ASC: ReadonlyMap<number, number> = new Map([
  [Asc.WRITE_FAULT, Status.WRITE_FAULT],
  [Asc.ASYMMETRIC_TRANSITION, Status.ANA_TRANSITION],
  [Asc.ASYMMETRIC_UNAVAILABLE, Status.ANA_INACCESSIBLE],
  [Asc.GUARD_CHECK_FAILED, Status.GUARD_CHECK_ERROR],
  [Asc.APPLICATION_TAG_CHECK_FAILED, Status.APPLICATION_TAG_CHECK_ERROR],
  [Asc.REFERENCE_TAG_CHECK_FAILED, Status.REFERENCE_TAG_CHECK_ERROR],
  [Asc.UNRECOVERED_READ_ERROR, Status.UNRECOVERED_READ_ERROR],
  [Asc.MISCOMPARE_DURING_VERIFY, Status.COMPARE_FAILURE],
  [Asc.INVALID_OPCODE, Status.INVALID_OPCODE],
  [Asc.ACCESS_DENIED, Status.ACCESS_DENIED],
  [Asc.LBA_OUT_OF_RANGE, Status.LBA_OUT_OF_RANGE],
  [Asc.UNIT_NOT_SUPPORTED, Status.INVALID_NAMESPACE_OR_FORMAT],
  [Asc.WRITE_PROTECTED, Status.NAMESPACE_WRITE_PROTECTED],
  [Asc.SPACE_ALLOCATION_FAILED, Status.CAPACITY_EXCEEDED],
])

const BY_KEY: ReadonlyMap<number, number> = new Map([
  [SenseKey.RECOVERED_ERROR, Status.SUCCESS],
  [SenseKey.NOT_READY, Status.NAMESPACE_NOT_READY],
  [SenseKey.HARDWARE_ERROR, Status.INTERNAL_ERROR],
  [SenseKey.ILLEGAL_REQUEST, Status.INVALID_FIELD],
  // Something about the device has changed; the command was not carried out.
  [SenseKey.UNIT_ATTENTION, Again.CHANGED],
  [SenseKey.DATA_PROTECT, Status.NAMESPACE_WRITE_PROTECTED],
  [SenseKey.ABORTED_COMMAND, Again.NOW],
  [SenseKey.MISCOMPARE, Status.COMPARE_FAILURE],
])

/**
 * The NVMe status, or one of `Again`, of a command of that type that ended with a SCSI status. `key` and `asc` (code * 256 +
 * qualifier) are its sense data, looked at for CHECK CONDITION only.
 */
export function statusFromScsi(status: number, key: number, asc: number, type: IoType): number {
  switch (status) {
    case ScsiStatus.GOOD:
      return Status.SUCCESS
    case ScsiStatus.CHECK_CONDITION: {
      const medium = type === IoType.READ ? Status.UNRECOVERED_READ_ERROR : Status.WRITE_FAULT
      return BY_ASC.get(asc) ?? BY_KEY.get(key) ?? medium
    }
    case ScsiStatus.BUSY:
    case ScsiStatus.TASK_SET_FULL:
      return Again.LATER
    case ScsiStatus.RESERVATION_CONFLICT:
      return Status.RESERVATION_CONFLICT
    case ScsiStatus.TASK_ABORTED:
      return Again.NOW
    default:
      return Status.INTERNAL_ERROR
  }
}
