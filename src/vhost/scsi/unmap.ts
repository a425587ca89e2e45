/** UNMAP (SBC-3, section 5.28): a list of ranges, which are given back one after the other. */
import { IoType } from '../../bdev/io.ts'
import { Status } from '../../spec/nvme-status.ts'
import { Asc, CdbFlag, SenseKey, UnmapCdb, UnmapDescriptor, UnmapHeader } from '../../spec/scsi.ts'
import { ScsiResponse } from '../../spec/virtio-scsi.ts'
import { good, HANDLED, type Handled, type ScsiCommand, type Step } from './command.ts'
import { blocksIn, UNMAP_DESCRIPTORS_MAX, UNMAP_SIZE_MAX, ZERO_PIECE_SIZE } from './limits.ts'

const LIST_SIZE_MAX = UnmapHeader.size + UNMAP_DESCRIPTORS_MAX * UnmapDescriptor.size

export function unmap(command: ScsiCommand): Handled {
  const { cdb, info } = command
  const length = UnmapCdb.parameterListLength.get(cdb, 0)
  if (!info.supports.has(IoType.UNMAP)) return command.fail(Status.INVALID_OPCODE)
  if ((UnmapCdb.flags.get(cdb, 0) & CdbFlag.UNMAP_ANCHOR) !== 0) return command.refuseField(1)
  if (length > command.dataOutBytes) return command.respond(ScsiResponse.OVERRUN)
  if (length === 0) return command.good(0)
  if (length < UnmapHeader.size) {
    return command.check(SenseKey.ILLEGAL_REQUEST, Asc.PARAMETER_LIST_LENGTH_ERROR)
  }
  const list = readList(command, Math.min(length, LIST_SIZE_MAX))
  const listed = Math.min(UnmapHeader.descriptorsLength.get(list, 0), length - UnmapHeader.size)
  const count = Math.floor(listed / UnmapDescriptor.size)
  if (count > UNMAP_DESCRIPTORS_MAX) return command.refuseParameter(UnmapHeader.descriptorsLength.offset)
  command.parameterAt = UnmapHeader.size
  command.parameterEnd = UnmapHeader.size + count * UnmapDescriptor.size
  command.transferBytes = length
  command.blocksLeft = 0
  return areInside(command, list) ? nextRange(command) : HANDLED
}

/** The guest's list as it is now: it is checked and used later. */
function readList(command: ScsiCommand, size: number): DataView {
  command.parameters ??= new DataView(new ArrayBuffer(LIST_SIZE_MAX))
  const { scratch, scratchAddress } = command.host
  command.copyDataOut(scratchAddress, 0, size)
  new Uint8Array(command.parameters.buffer).set(new Uint8Array(scratch.buffer, scratch.byteOffset, size))
  return command.parameters
}

/** All ranges are checked before the first is given away. False: the command has been answered. */
function areInside(command: ScsiCommand, list: DataView): boolean {
  const { info } = command
  let blocks = 0
  for (let at = command.parameterAt; at < command.parameterEnd; at += UnmapDescriptor.size) {
    const count = UnmapDescriptor.blocks.get(list, at)
    blocks += count
    if (UnmapDescriptor.lba.get(list, at) + count > info.blockCount) {
      command.fail(Status.LBA_OUT_OF_RANGE)
      return false
    }
    if (blocks > blocksIn(info, UNMAP_SIZE_MAX)) {
      command.refuseParameter(at + UnmapDescriptor.blocks.offset)
      return false
    }
  }
  return true
}

const nextRange: Step = command => {
  const list = command.parameters!
  while (command.blocksLeft === 0 && command.parameterAt < command.parameterEnd) {
    command.nextBlock = UnmapDescriptor.lba.get(list, command.parameterAt)
    command.blocksLeft = UnmapDescriptor.blocks.get(list, command.parameterAt)
    command.parameterAt += UnmapDescriptor.size
  }
  if (command.blocksLeft === 0) return command.good(command.transferBytes)
  const blocks = Math.min(command.blocksLeft, blocksIn(command.info, ZERO_PIECE_SIZE))
  command.aim(IoType.UNMAP, command.nextBlock, blocks, false).segments.count = 0
  command.nextBlock += blocks
  command.blocksLeft -= blocks
  const isLast = command.blocksLeft === 0 && command.parameterAt === command.parameterEnd
  return command.submit(isLast ? good : nextRange)
}
