/** NVMe status to SCSI status and sense: the one place where the two vocabularies meet. */
import { Status } from '../../spec/nvme-status.ts'
import { Asc, DescriptorSense, FixedSense, ScsiStatus, SenseFormat, SenseKey } from '../../spec/scsi.ts'

export interface Outcome {
  readonly status: number
  readonly key: number
  readonly asc: number
}

const check = (key: number, asc: number): Outcome => ({ status: ScsiStatus.CHECK_CONDITION, key, asc })
const bare = (status: number): Outcome => ({ status, key: SenseKey.NO_SENSE, asc: Asc.NONE })

/** Guests come again after these. */
const RETRY = check(SenseKey.ABORTED_COMMAND, Asc.UNIT_COMMUNICATION_FAILURE)
const WRITE_PROTECTED = check(SenseKey.DATA_PROTECT, Asc.WRITE_PROTECTED)
const NO_SPACE = check(SenseKey.DATA_PROTECT, Asc.SPACE_ALLOCATION_FAILED)
const BAD_FIELD = check(SenseKey.ILLEGAL_REQUEST, Asc.INVALID_FIELD_IN_CDB)
const UNREADABLE = check(SenseKey.MEDIUM_ERROR, Asc.UNRECOVERED_READ_ERROR)

/** What is not in the table is HARDWARE ERROR, INTERNAL TARGET FAILURE. */
export const OUTCOME_OF: ReadonlyMap<number, Outcome> = new Map([
  [Status.INVALID_OPCODE, check(SenseKey.ILLEGAL_REQUEST, Asc.INVALID_OPCODE)],
  [Status.INVALID_FIELD, BAD_FIELD],
  [Status.ATOMIC_WRITE_UNIT_EXCEEDED, BAD_FIELD],
  [Status.COMMAND_SIZE_LIMIT_EXCEEDED, BAD_FIELD],
  [Status.LBA_OUT_OF_RANGE, check(SenseKey.ILLEGAL_REQUEST, Asc.LBA_OUT_OF_RANGE)],
  [Status.CAPACITY_EXCEEDED, NO_SPACE],
  [Status.NAMESPACE_INSUFFICIENT_CAPACITY, NO_SPACE],
  [Status.NAMESPACE_WRITE_PROTECTED, WRITE_PROTECTED],
  [Status.WRITE_TO_READ_ONLY_RANGE, WRITE_PROTECTED],
  [Status.OPERATION_DENIED, WRITE_PROTECTED],
  [Status.ACCESS_DENIED, check(SenseKey.ILLEGAL_REQUEST, Asc.ACCESS_DENIED)],
  [Status.RESERVATION_CONFLICT, bare(ScsiStatus.RESERVATION_CONFLICT)],
  [Status.NAMESPACE_NOT_READY, check(SenseKey.NOT_READY, Asc.UNIT_NOT_READY)],
  [Status.INVALID_NAMESPACE_OR_FORMAT, check(SenseKey.NOT_READY, Asc.UNIT_NOT_READY)],
  // Linux repeats what ends with MEDIUM ERROR: a second flush may succeed, and nobody hears of what the first one lost.
  [Status.WRITE_FAULT, check(SenseKey.HARDWARE_ERROR, Asc.WRITE_FAULT)],
  [Status.UNRECOVERED_READ_ERROR, UNREADABLE],
  [Status.DEALLOCATED_OR_UNWRITTEN_BLOCK, UNREADABLE],
  [Status.COMPARE_FAILURE, check(SenseKey.MISCOMPARE, Asc.MISCOMPARE_DURING_VERIFY)],
  [Status.GUARD_CHECK_ERROR, check(SenseKey.ABORTED_COMMAND, Asc.GUARD_CHECK_FAILED)],
  [Status.APPLICATION_TAG_CHECK_ERROR, check(SenseKey.ABORTED_COMMAND, Asc.APPLICATION_TAG_CHECK_FAILED)],
  [Status.REFERENCE_TAG_CHECK_ERROR, check(SenseKey.ABORTED_COMMAND, Asc.REFERENCE_TAG_CHECK_FAILED)],
  [Status.DATA_TRANSFER_ERROR, check(SenseKey.ABORTED_COMMAND, Asc.DATA_PHASE_ERROR)],
  [Status.ANA_TRANSITION, check(SenseKey.NOT_READY, Asc.ASYMMETRIC_TRANSITION)],
  [Status.ANA_INACCESSIBLE, check(SenseKey.NOT_READY, Asc.ASYMMETRIC_UNAVAILABLE)],
  [Status.ANA_PERSISTENT_LOSS, check(SenseKey.NOT_READY, Asc.UNIT_NOT_READY)],
  [Status.COMMAND_INTERRUPTED, bare(ScsiStatus.BUSY)],
  [Status.TRANSIENT_TRANSPORT_ERROR, RETRY],
  [Status.ABORTED_POWER_LOSS, RETRY],
  [Status.ABORTED_BY_REQUEST, RETRY],
  [Status.ABORTED_SQ_DELETION, RETRY],
  [Status.ABORTED_BY_HOST, RETRY],
  [Status.INTERNAL_PATH_ERROR, RETRY],
  [Status.CONTROLLER_PATHING_ERROR, RETRY],
  [Status.HOST_PATHING_ERROR, RETRY],
])

/** Writes sense data in fixed format. Returns its size. */
export function writeFixedSense(view: DataView, at: number, key: number, asc: number): number {
  new Uint8Array(view.buffer, view.byteOffset + at, FixedSense.size).fill(0)
  FixedSense.responseCode.set(view, at, SenseFormat.FIXED)
  FixedSense.key.set(view, at, key)
  FixedSense.additionalLength.set(view, at, FixedSense.size - FixedSense.additionalLength.offset - 1)
  FixedSense.asc.set(view, at, asc)
  return FixedSense.size
}

/** The same in descriptor format, without descriptors. */
export function writeDescriptorSense(view: DataView, at: number, key: number, asc: number): number {
  new Uint8Array(view.buffer, view.byteOffset + at, DescriptorSense.size).fill(0)
  DescriptorSense.responseCode.set(view, at, SenseFormat.DESCRIPTOR)
  DescriptorSense.key.set(view, at, key)
  DescriptorSense.asc.set(view, at, asc)
  return DescriptorSense.size
}
