/** READ CAPACITY (SBC-3, sections 5.15 and 5.16). */
import { IoType } from '../../bdev/io.ts'
import { isSupported } from '../../bdev/support.ts'
import { ReadCapacity10, ReadCapacity16, ReadCapacity16Cdb } from '../../spec/scsi.ts'
import type { Handled, ScsiCommand } from './command.ts'

/** A larger disk says so with this, and is asked with the longer command. */
const LBA_MAX = 0xffff_ffff

export function readCapacity10(command: ScsiCommand): Handled {
  const { blockCount, blockSize } = command.info
  const view = command.clearScratch(ReadCapacity10.size)
  ReadCapacity10.lastLba.set(view, 0, Math.min(blockCount - 1, LBA_MAX))
  ReadCapacity10.blockSize.set(view, 0, blockSize)
  return command.reply(ReadCapacity10.size, ReadCapacity10.size)
}

/** LBPRZ stays clear: a bdev does not promise what blocks that were unmapped read as. */
export function readCapacity16(command: ScsiCommand): Handled {
  const { info } = command
  const view = command.clearScratch(ReadCapacity16.size)
  ReadCapacity16.lastLba.set(view, 0, info.blockCount - 1)
  ReadCapacity16.blockSize.set(view, 0, info.blockSize)
  ReadCapacity16.physicalExponent.set(view, 0, Math.log2(info.physicalBlockSize / info.blockSize))
  ReadCapacity16.lbpme.set(view, 0, isSupported(info, IoType.UNMAP) ? 1 : 0)
  return command.reply(ReadCapacity16.size, ReadCapacity16Cdb.allocationLength.get(command.cdb, 0))
}
