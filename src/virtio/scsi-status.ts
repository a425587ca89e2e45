/** How the end of a virtio SCSI request is told as an NVMe status: the only table from responses to statuses. */
import type { IoType } from '../bdev/io.ts'
import { Again, statusFromScsi } from '../bdev/scsi-status.ts'
import { Status } from '../spec/nvme-status.ts'
import { Asc, DescriptorSense, FixedSense, ScsiStatus, SenseFormat, SenseKey } from '../spec/scsi.ts'
import { ScsiResponse } from '../spec/virtio-scsi.ts'

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
  if (status !== ScsiStatus.CHECK_CONDITION) return statusFromScsi(status, SenseKey.NO_SENSE, Asc.NONE, type)
  const { key, asc } = readSense(view, senseAt, senseBytes)
  return statusFromScsi(status, key, asc, type)
}
