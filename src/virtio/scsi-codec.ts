/** Requests of a virtio SCSI device (Virtual I/O Device specification 1.2, section 5.6.6.1), as a disk takes them. */
import { IoType } from '../bdev/io.ts'
import { Status } from '../spec/nvme-status.ts'
import { Cdb10, Cdb16, Opcode, UnmapCdb, UnmapDescriptor, UnmapHeader } from '../spec/scsi.ts'
import {
  CDB_SIZE_DEFAULT,
  LUN_FLAT,
  LunAddress,
  ScsiRequestHeader,
  ScsiResponseHeader,
  SENSE_SIZE_DEFAULT,
} from '../spec/virtio-scsi.ts'
import { bytesAt, memset } from '../sys/memory.ts'
import type { Codec } from './codec.ts'
import type { ExecuteScsi, ScsiAnswer, Unit } from './messages.ts'
import { statusOf } from './scsi-status.ts'
import { PAYLOAD_AT, RESPONSE_AT, type Slot } from './slot.ts'

const CDB_AT = ScsiRequestHeader.size
const REQUEST_BYTES = ScsiRequestHeader.size + CDB_SIZE_DEFAULT
const RESPONSE_BYTES = ScsiResponseHeader.size + SENSE_SIZE_DEFAULT
const SENSE_AT = RESPONSE_AT + ScsiResponseHeader.size
const UNMAP_BYTES = UnmapHeader.size + UnmapDescriptor.size

/** No response: a device that has ended a request has replaced it. */
const UNANSWERED = 0xff

export class ScsiCodec implements Codec {
  readonly #unit: Unit

  constructor(unit: Unit) {
    this.#unit = unit
  }

  encode(slot: Slot): void {
    writeHeader(slot, this.#unit.target, 0)
    const { view, base, address, firstBlock, blockCount } = slot
    const cdb = base + CDB_AT
    slot.clearSegments()
    slot.addReadable(address, REQUEST_BYTES)
    switch (slot.type) {
      case IoType.READ:
        writeCdb16(slot, Opcode.READ_16)
        slot.addWritable(address + RESPONSE_AT, RESPONSE_BYTES)
        slot.addData(this.#unit.segmentBytes)
        return
      case IoType.WRITE:
        writeCdb16(slot, Opcode.WRITE_16)
        slot.addData(this.#unit.segmentBytes)
        break
      case IoType.UNMAP:
        UnmapCdb.opcode.set(view, cdb, Opcode.UNMAP)
        UnmapCdb.parameterListLength.set(view, cdb, UNMAP_BYTES)
        UnmapHeader.dataLength.set(view, base + PAYLOAD_AT, UNMAP_BYTES - 2)
        UnmapHeader.descriptorsLength.set(view, base + PAYLOAD_AT, UnmapDescriptor.size)
        UnmapDescriptor.lba.set(view, base + PAYLOAD_AT + UnmapHeader.size, firstBlock)
        UnmapDescriptor.blocks.set(view, base + PAYLOAD_AT + UnmapHeader.size, blockCount)
        slot.addReadable(address + PAYLOAD_AT, UNMAP_BYTES)
        break
      default:
        // A flush of everything: no blocks from block 0 on.
        Cdb10.opcode.set(view, cdb, Opcode.SYNCHRONIZE_CACHE_10)
    }
    slot.addWritable(address + RESPONSE_AT, RESPONSE_BYTES)
  }

  outcome(slot: Slot): number {
    const { view, base } = slot
    const response = ScsiResponseHeader.response.get(view, base + RESPONSE_AT)
    if (response === UNANSWERED) return Status.INTERNAL_ERROR
    const residual = ScsiResponseHeader.residual.get(view, base + RESPONSE_AT)
    const status = ScsiResponseHeader.status.get(view, base + RESPONSE_AT)
    const senseBytes = Math.min(ScsiResponseHeader.senseLen.get(view, base + RESPONSE_AT), SENSE_SIZE_DEFAULT)
    const outcome = statusOf(response, status, view, base + SENSE_AT, senseBytes, slot.type)
    // Less than was asked for is no success, since a bdev's I/O is all or nothing.
    if (outcome === Status.SUCCESS && residual > 0 && slot.bufferBytes > 0) return Status.DATA_TRANSFER_ERROR
    return outcome
  }
}

/** Writes a command of the control thread, which reads into the slot's buffer. */
export function encodeExecution(slot: Slot, { target, lun, cdb }: ExecuteScsi): void {
  writeHeader(slot, target, lun)
  for (const [i, byte] of cdb.entries()) slot.view.setUint8(slot.base + CDB_AT + i, byte)
  slot.clearSegments()
  slot.addReadable(slot.address, REQUEST_BYTES)
  slot.addWritable(slot.address + RESPONSE_AT, RESPONSE_BYTES)
  if (slot.bufferBytes > 0) slot.addWritable(slot.buffer, slot.bufferBytes)
}

/** What came back for it, as a copy. */
export function readAnswer({ view, base, buffer, bufferBytes }: Slot): ScsiAnswer {
  const at = base + RESPONSE_AT
  const senseBytes = Math.min(ScsiResponseHeader.senseLen.get(view, at), SENSE_SIZE_DEFAULT)
  const residual = Math.min(ScsiResponseHeader.residual.get(view, at), bufferBytes)
  return {
    response: ScsiResponseHeader.response.get(view, at),
    status: ScsiResponseHeader.status.get(view, at),
    sense: new Uint8Array(view.buffer, view.byteOffset + base + SENSE_AT, senseBytes).slice(),
    data: buffer === 0 ? new Uint8Array(0) : bytesAt(buffer, bufferBytes - residual).slice(),
  }
}

function writeHeader({ view, base, address }: Slot, target: number, lun: number): void {
  memset(address, 0, REQUEST_BYTES)
  LunAddress.one.set(view, base, 1)
  LunAddress.target.set(view, base, target)
  LunAddress.lunHigh.set(view, base, LUN_FLAT | (lun >> 8))
  LunAddress.lunLow.set(view, base, lun & 0xff)
  ScsiResponseHeader.senseLen.set(view, base + RESPONSE_AT, 0)
  ScsiResponseHeader.residual.set(view, base + RESPONSE_AT, 0)
  ScsiResponseHeader.response.set(view, base + RESPONSE_AT, UNANSWERED)
}

function writeCdb16({ view, base, firstBlock, blockCount }: Slot, opcode: number): void {
  Cdb16.opcode.set(view, base + CDB_AT, opcode)
  Cdb16.lba.set(view, base + CDB_AT, firstBlock)
  Cdb16.length.set(view, base + CDB_AT, blockCount)
}
