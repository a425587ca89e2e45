/** Requests of a virtio block device (Virtual I/O Device specification 1.2, section 5.2.6). */
import { IoType } from '../bdev/io.ts'
import { Status } from '../spec/nvme-status.ts'
import { BlkHeader, BlkRange, BlkStatus, BlkType, SECTOR_SIZE } from '../spec/virtio-blk.ts'
import { type Codec, carriesData } from './codec.ts'
import type { Unit } from './messages.ts'
import { PAYLOAD_AT, RESPONSE_AT, type Slot } from './slot.ts'

/** By `IoType`. */
const TYPE_OF: readonly number[] = [
  BlkType.IN,
  BlkType.OUT,
  BlkType.FLUSH,
  BlkType.WRITE_ZEROES,
  BlkType.DISCARD,
]

/** No status: a device that has ended a request has replaced it. */
const UNANSWERED = 0xff

export class BlkCodec implements Codec {
  readonly #segmentBytes: number
  readonly #sectorsPerBlock: number

  constructor(unit: Unit, blockSize: number) {
    this.#segmentBytes = unit.segmentBytes
    this.#sectorsPerBlock = blockSize / SECTOR_SIZE
  }

  encode(slot: Slot): void {
    const { view, base, address, type } = slot
    BlkHeader.type.set(view, base, TYPE_OF[type]!)
    const sector = slot.firstBlock * this.#sectorsPerBlock
    const isRange = type === IoType.UNMAP || type === IoType.WRITE_ZEROES
    BlkHeader.sector.set(view, base, carriesData(type) ? sector : 0)
    view.setUint8(base + RESPONSE_AT, UNANSWERED)
    slot.clearSegments()
    slot.addReadable(address, BlkHeader.size)
    if (isRange) {
      BlkRange.sector.set(view, base + PAYLOAD_AT, sector)
      BlkRange.numSectors.set(view, base + PAYLOAD_AT, slot.blockCount * this.#sectorsPerBlock)
      BlkRange.flags.set(view, base + PAYLOAD_AT, 0)
      slot.addReadable(address + PAYLOAD_AT, BlkRange.size)
    } else {
      slot.addData(this.#segmentBytes)
    }
    slot.addWritable(address + RESPONSE_AT, 1)
  }

  outcome({ view, base, type }: Slot): number {
    switch (view.getUint8(base + RESPONSE_AT)) {
      case BlkStatus.OK:
        return Status.SUCCESS
      case BlkStatus.IOERR:
        return type === IoType.READ ? Status.UNRECOVERED_READ_ERROR : Status.WRITE_FAULT
      case BlkStatus.UNSUPP:
        return Status.INVALID_OPCODE
      default:
        return Status.INTERNAL_ERROR
    }
  }
}
