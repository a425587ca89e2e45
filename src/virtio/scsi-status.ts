/** How a SCSI command's end is told as an NVMe status: the only table from responses and sense to statuses. */
import { IoType } from '../bdev/io.ts'
import { Status } from '../spec/nvme-status.ts'
import { Asc, DescriptorSense, FixedSense, ScsiStatus, SenseFormat, SenseKey } from '../spec/scsi.ts'
import { ScsiResponse } from '../spec/virtio-scsi.ts'
import { Again } from './codec.ts'

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

const BY_RESPONSE: ReadonlyMap<number, number> = new Map([
  [ScsiResponse.OVERRUN, Status.DATA_TRANSFER_ERROR],
  [ScsiResponse.ABORTED, Again.NOW],
  [ScsiResponse.BAD_TARGET, Status.INVALID_NAMESPACE_OR_FORMAT],
  [ScsiResponse.RESET, Again.NOW],
  [ScsiResponse.BUSY, Again.LATER],
  [ScsiResponse.TRANSPORT_FAILURE, Status.TRANSIENT_TRANSPORT_ERROR],
  [ScsiResponse.TARGET_FAILURE, Status.INTERNAL_PATH_ERROR],
  [ScsiResponse.NEXUS_FAILURE, Status.RESERVATION_CONFLICT],
])

/** Key and additional code of sense data, of either format; no sense when there is none. */
export function readSense(
  view: DataView,
  at: number,
  sizeBytes: number,
): { readonly key: number; readonly asc: number } {
  if (sizeBytes < DescriptorSense.size) return { key: SenseKey.NO_SENSE, asc: Asc.NONE }
  const code = FixedSense.responseCode.get(view, at)
  if (code >= SenseFormat.DESCRIPTOR) {
    return { key: DescriptorSense.key.get(view, at), asc: DescriptorSense.asc.get(view, at) }
  }
  const asc = sizeBytes > FixedSense.asc.offset + 1 ? FixedSense.asc.get(view, at) : Asc.NONE
  return { key: FixedSense.key.get(view, at), asc }
}

/** An NVMe status, or one of `Again`. */
export function statusOf(
  response: number,
  status: number,
  view: DataView,
  senseAt: number,
  senseBytes: number,
  type: IoType,
): number {
  if (response !== ScsiResponse.OK) return BY_RESPONSE.get(response) ?? Status.INTERNAL_ERROR
  switch (status) {
    case ScsiStatus.GOOD:
      return Status.SUCCESS
    case ScsiStatus.CHECK_CONDITION: {
      const { key, asc } = readSense(view, senseAt, senseBytes)
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
