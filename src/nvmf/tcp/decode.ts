/**
 * From a submission queue entry to what its slot has to do: where its data comes from or goes to, and the status to
 * refuse it with. The entry is read once, here; `view` and `sqe` say where it is.
 */
import { Psdt, SglId, Sqe } from '../../spec/nvme.ts'
import { Status } from '../../spec/nvme-status.ts'
import { FABRICS_OPCODE, FabricsSqe } from '../../spec/nvmf.ts'
import { statusField, Transfer } from '../io.ts'
import type { IoQueue } from '../request.ts'
import type { Slot } from './slot.ts'

/** A command of the NVM command set. */
export function decodeIo(
  slot: Slot,
  view: DataView,
  sqe: number,
  dataBytes: number,
  queue: IoQueue,
  maxIoSize: number,
): void {
  let status = slot.decode(view, sqe, queue, maxIoSize)
  if (status === Status.SUCCESS) {
    status = checkData(slot, view, sqe, dataBytes)
    if (status === Status.SUCCESS && slot.transfer !== Transfer.NONE) status = checkLength(slot, view, sqe)
  }
  slot.status = statusField(status)
}

function checkLength(slot: Slot, view: DataView, sqe: number): number {
  if (view.getUint8(sqe + 1) >> 6 === Psdt.PRP) return Status.INVALID_FIELD
  const length = view.getUint32(sqe + 32, true)
  const { lengthBytes, sglLengthMaxBytes } = slot
  if (length < lengthBytes || length > sglLengthMaxBytes) return Status.DATA_SGL_LENGTH_INVALID
  slot.lengthBytes = length
  return Status.SUCCESS
}

/** A command that the target executes: its direction is that of its opcode, or FCTYPE, and its length the SGL's. */
export function decodeRequest(
  slot: Slot,
  view: DataView,
  sqe: number,
  dataBytes: number,
  maxIoSize: number,
): void {
  const opcode = Sqe.opcode.get(view, sqe)
  const directed = opcode === FABRICS_OPCODE ? FabricsSqe.fctype.get(view, sqe) : opcode
  const isDirected = (directed & 3) === Transfer.FROM_HOST || (directed & 3) === Transfer.TO_HOST
  slot.lengthBytes = isDirected ? Sqe.sgl1Length.get(view, sqe) : 0
  slot.transfer = slot.lengthBytes > 0 ? ((directed & 3) as Transfer) : Transfer.NONE
  let status = checkData(slot, view, sqe, dataBytes)
  if (status === Status.SUCCESS && slot.lengthBytes > maxIoSize) status = Status.INVALID_FIELD
  slot.status = statusField(status)
}

/** The SGL descriptor against the direction of the command and the data in its capsule (Base 2.1, section 4.3.2). */
function checkData(slot: Slot, view: DataView, sqe: number, dataBytes: number): number {
  if (slot.transfer === Transfer.NONE) return dataBytes > 0 ? Status.INVALID_FIELD : Status.SUCCESS
  const id = view.getUint8(sqe + Sqe.sgl1Id.offset)
  if (id === SglId.TRANSPORT_DATA_BLOCK) return dataBytes > 0 ? Status.INVALID_FIELD : Status.SUCCESS
  const isInCapsule = id === SglId.DATA_BLOCK_OFFSET && slot.transfer === Transfer.FROM_HOST
  if (!isInCapsule) return Status.SGL_DESCRIPTOR_TYPE_INVALID
  const offset = Sqe.sgl1Address.get(view, sqe)
  const length = Sqe.sgl1Length.get(view, sqe)
  if (offset > dataBytes) return Status.SGL_OFFSET_INVALID
  if (length > dataBytes - offset) return Status.DATA_SGL_LENGTH_INVALID
  slot.dataOffset = offset
  slot.arrivedBytes = length
  return Status.SUCCESS
}
