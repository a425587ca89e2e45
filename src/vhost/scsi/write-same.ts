/**
 * WRITE SAME (SBC-3, sections 5.41 and 5.42): one block of data, written to a whole range. Zeroes go to the bdev as zeroes,
 * which is also what UNMAP is: what a bdev returns for blocks that were unmapped is its own affair, and WRITE SAME promises
 * the data.
 */
import { IoType } from '../../bdev/io.ts'
import { Status } from '../../spec/nvme-status.ts'
import { Cdb10, Cdb16, CdbFlag } from '../../spec/scsi.ts'
import { ScsiResponse } from '../../spec/virtio-scsi.ts'
import { BufferPool, memcpy, viewAt } from '../../sys/memory.ts'
import { good, HANDLED, type Handled, type ScsiCommand, type Step } from './command.ts'
import { blocksIn, WRITE_SAME_SIZE_MAX, ZERO_PIECE_SIZE } from './limits.ts'

/** PBDATA and LBDATA of earlier standards: each block would be different. */
const OBSOLETE = 0x06

export function writeSame10(command: ScsiCommand): Handled {
  const { cdb } = command
  const flags = Cdb10.flags.get(cdb, 0)
  if ((flags & CdbFlag.NDOB) !== 0) return command.refuseField(1)
  return writeSame(command, Cdb10.lba.get(cdb, 0), Cdb10.length.get(cdb, 0), flags)
}

export function writeSame16(command: ScsiCommand): Handled {
  const { cdb } = command
  return writeSame(command, Cdb16.lba.get(cdb, 0), Cdb16.length.get(cdb, 0), Cdb16.flags.get(cdb, 0))
}

function writeSame(command: ScsiCommand, firstBlock: number, blocks: number, flags: number): Handled {
  const { info } = command
  if ((flags & (CdbFlag.PROTECT | CdbFlag.ANCHOR | OBSOLETE)) !== 0) return command.refuseField(1)
  // WSNZ in the block limits: 0 is not "to the end".
  if (blocks === 0 || blocks > blocksIn(info, WRITE_SAME_SIZE_MAX)) {
    return command.refuseField(command.cdb.getUint8(0) === 0x41 ? Cdb10.length.offset : Cdb16.length.offset)
  }
  if (firstBlock + blocks > info.blockCount) return command.fail(Status.LBA_OUT_OF_RANGE)
  command.nextBlock = firstBlock
  command.blocksLeft = blocks
  command.request.io.fua = command.isWriteThrough
  if ((flags & CdbFlag.NDOB) !== 0) return zeroPiece(command)
  if (command.dataOutBytes < info.blockSize) return command.respond(ScsiResponse.OVERRUN)
  command.transferBytes = info.blockSize
  const size = Math.min(blocks * info.blockSize, BufferPool.MAX_SIZE)
  if (!command.acquireBuffer(size)) return HANDLED
  // Once, and then looked at: the guest may change its own copy at any moment.
  command.copyDataOut(command.buffer, 0, info.blockSize)
  if (isZero(command.buffer, info.blockSize)) return zeroPiece(command)
  repeat(command.buffer, info.blockSize, size)
  return patternPiece(command)
}

const zeroPiece: Step = command => {
  const blocks = Math.min(command.blocksLeft, blocksIn(command.info, ZERO_PIECE_SIZE))
  const { io } = command.request
  command.aim(IoType.WRITE_ZEROES, command.nextBlock, blocks, io.fua)
  io.segments.count = 0
  command.nextBlock += blocks
  command.blocksLeft -= blocks
  return command.submit(command.blocksLeft > 0 ? zeroPiece : good)
}

const patternPiece: Step = command => {
  const blocks = Math.min(command.blocksLeft, blocksIn(command.info, command.bufferSize))
  const { io } = command.request
  command.aim(IoType.WRITE, command.nextBlock, blocks, io.fua)
  io.segments.set(command.buffer, blocks * command.info.blockSize)
  command.nextBlock += blocks
  command.blocksLeft -= blocks
  return command.submit(command.blocksLeft > 0 ? patternPiece : good)
}

function isZero(address: number, size: number): boolean {
  const view = viewAt(address, size)
  for (let at = 0; at < size; at += 4) if (view.getUint32(at) !== 0) return false
  return true
}

/** Fills `size` bytes with the first `unit` of them. */
function repeat(address: number, unit: number, size: number): void {
  for (let done = unit; done < size; done *= 2) memcpy(address + done, address, Math.min(done, size - done))
}
