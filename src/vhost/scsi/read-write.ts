/**
 * READ, WRITE, WRITE AND VERIFY, VERIFY, COMPARE AND WRITE (SBC-3, section 5). The guest's memory is where the bdev reads
 * and writes; a check of the medium alone goes through a buffer of ours.
 */
import { IoType } from '../../bdev/io.ts'
import type { Field } from '../../core/struct.ts'
import { Status } from '../../spec/nvme-status.ts'
import { BYTCHK_SHIFT, Cdb6, CdbFlag, CompareAndWriteCdb } from '../../spec/scsi.ts'
import { ScsiResponse } from '../../spec/virtio-scsi.ts'
import { good, HANDLED, type Handled, type ScsiCommand, type Step } from './command.ts'

/**
 * In bytes. A guest may ask for all of its disk at once; a bdev in memory would keep the reactor busy for as long. So larger
 * commands are done in pieces; of what follows their first ones a device submits one in a round.
 */
const PIECE_SIZE = 4 << 20
/** What is read at a time to check the medium. */
const CHECK_SIZE = 1 << 18

/** BYTCHK: with what VERIFY compares. */
const ByteCheck = { MEDIUM: 0, DATA: 1 } as const

type Getter = Pick<Field, 'get'>

/** Where a CDB has the range of a command. */
interface RangeFields {
  readonly lba: Getter
  readonly length: Getter
  readonly flags: Getter
}

/** The short form: no flags, and no blocks means 256 of them. */
export const Range6: RangeFields = {
  lba: { get: (cdb, at) => Cdb6.lbaHigh.get(cdb, at) * 0x10000 + Cdb6.lbaLow.get(cdb, at) },
  length: { get: (cdb, at) => Cdb6.length.get(cdb, at) || 256 },
  flags: { get: () => 0 },
}

type Run = (command: ScsiCommand) => Handled
type RunRange = (command: ScsiCommand, firstBlock: number, blocks: number, flags: number) => Handled

/** A command by what it does to a range: one for each form of the CDB. */
const ranged =
  (run: RunRange) =>
  ({ lba, length, flags }: RangeFields): Run =>
  command => {
    const { cdb } = command
    return run(command, lba.get(cdb, 0), length.get(cdb, 0), flags.get(cdb, 0))
  }

export const read = ranged((command, firstBlock, blocks, flags) =>
  transfer(command, IoType.READ, firstBlock, blocks, flags),
)
export const write = ranged((command, firstBlock, blocks, flags) =>
  transfer(command, IoType.WRITE, firstBlock, blocks, flags),
)
export const verify = ranged(verifyRange)
export const writeAndVerify = ranged(writeAndVerifyRange)

/** The data out is what is expected, then what is to be written. */
export function compareAndWrite(command: ScsiCommand): Handled {
  const { cdb } = command
  const blocks = CompareAndWriteCdb.blocks.get(cdb, 0)
  const flags = CompareAndWriteCdb.flags.get(cdb, 0)
  const firstBlock = CompareAndWriteCdb.lba.get(cdb, 0)
  const size = 2 * blocks * command.info.blockSize
  if (!isAdmitted(command, firstBlock, blocks, flags, size, command.dataOutBytes)) return HANDLED
  command.aim(IoType.COMPARE_AND_WRITE, firstBlock, blocks, isForced(command, flags))
  command.sliceDataOut(0, size)
  command.transferBytes = size
  return command.submit(good)
}

function transfer(
  command: ScsiCommand,
  type: typeof IoType.READ | typeof IoType.WRITE,
  firstBlock: number,
  blocks: number,
  flags: number,
): Handled {
  const isRead = type === IoType.READ
  const size = blocks * command.info.blockSize
  const room = isRead ? command.dataInBytes : command.dataOutBytes
  if (!isAdmitted(command, firstBlock, blocks, flags, size, room)) return HANDLED
  command.transferBytes = size
  if (size > PIECE_SIZE) {
    command.request.io.type = type
    startPieces(command, firstBlock, blocks)
    command.request.io.fua = !isRead && isForced(command, flags)
    return nextPiece(command)
  }
  command.aim(type, firstBlock, blocks, !isRead && isForced(command, flags))
  if (isRead) command.sliceDataIn(0, size)
  else command.sliceDataOut(0, size)
  return command.submit(good)
}

function verifyRange(command: ScsiCommand, firstBlock: number, blocks: number, flags: number): Handled {
  const check = (flags & CdbFlag.BYTCHK) >> BYTCHK_SHIFT
  if (check > ByteCheck.DATA) return command.refuseField(1)
  const size = check === ByteCheck.DATA ? blocks * command.info.blockSize : 0
  if (!isAdmitted(command, firstBlock, blocks, flags, size, command.dataOutBytes)) return HANDLED
  command.transferBytes = size
  startPieces(command, firstBlock, blocks)
  return check === ByteCheck.DATA ? compare(command) : checkMedium(command)
}

function writeAndVerifyRange(
  command: ScsiCommand,
  firstBlock: number,
  blocks: number,
  flags: number,
): Handled {
  const check = (flags & CdbFlag.BYTCHK) >> BYTCHK_SHIFT
  if (check > ByteCheck.DATA) return command.refuseField(1)
  const size = blocks * command.info.blockSize
  if (!isAdmitted(command, firstBlock, blocks, flags, size, command.dataOutBytes)) return HANDLED
  command.transferBytes = size
  startPieces(command, firstBlock, blocks)
  command.aim(IoType.WRITE, firstBlock, 0, true)
  return writePiece(command, check === ByteCheck.DATA ? compareWritten : checkWritten)
}

/** The checks of every command with a range, in the order of the specification. False: it has been answered. */
function isAdmitted(
  command: ScsiCommand,
  firstBlock: number,
  blocks: number,
  flags: number,
  size: number,
  room: number,
): boolean {
  if ((flags & CdbFlag.PROTECT) !== 0) command.refuseField(1)
  else if (firstBlock + blocks > command.info.blockCount) command.fail(Status.LBA_OUT_OF_RANGE)
  else if (size > room) command.respond(ScsiResponse.OVERRUN)
  else if (blocks === 0) command.good(0)
  else return true
  return false
}

const isForced = (command: ScsiCommand, flags: number): boolean =>
  (flags & CdbFlag.FUA) !== 0 || command.isWriteThrough

function startPieces(command: ScsiCommand, firstBlock: number, blocks: number): void {
  command.nextBlock = firstBlock
  command.blocksLeft = blocks
  command.dataOffset = 0
}

/** Aims the I/O, of which type and FUA are set, at the next piece. */
function aimPiece(command: ScsiCommand, type: IoType, sizeMax: number): number {
  const { blockSize } = command.info
  const blocks = Math.min(command.blocksLeft, sizeMax / blockSize)
  command.aim(type, command.nextBlock, blocks, command.request.io.fua)
  command.nextBlock += blocks
  command.blocksLeft -= blocks
  return blocks * blockSize
}

const nextPiece: Step = command => {
  const { type } = command.request.io
  const size = aimPiece(command, type, PIECE_SIZE)
  if (type === IoType.READ) command.sliceDataIn(command.dataOffset, size)
  else command.sliceDataOut(command.dataOffset, size)
  command.dataOffset += size
  return command.submit(command.blocksLeft > 0 ? nextPiece : good)
}

const compare: Step = command => {
  const size = aimPiece(command, IoType.COMPARE, PIECE_SIZE)
  command.sliceDataOut(command.dataOffset, size)
  command.dataOffset += size
  return command.submit(command.blocksLeft > 0 ? compare : good)
}

function checkMedium(command: ScsiCommand): Handled {
  const size = Math.min(command.blocksLeft * command.info.blockSize, CHECK_SIZE)
  return command.acquireBuffer(size) ? checkPiece(command) : HANDLED
}

const checkPiece: Step = command => {
  const size = aimPiece(command, IoType.READ, CHECK_SIZE)
  command.request.io.segments.set(command.buffer, size)
  return command.submit(command.blocksLeft > 0 ? checkPiece : good)
}

function writePiece(command: ScsiCommand, verifyNext: Step): Handled {
  const size = aimPiece(command, IoType.WRITE, PIECE_SIZE)
  command.sliceDataOut(command.dataOffset, size)
  return command.submit(verifyNext)
}

/** Back to the start of the piece that was written: `dataOffset` still is where its data is. */
function stepBack(command: ScsiCommand): number {
  const { blockCount } = command.request.io
  command.nextBlock -= blockCount
  command.blocksLeft += blockCount
  return blockCount * command.info.blockSize
}

const compareWritten: Step = command => {
  const size = stepBack(command)
  aimPiece(command, IoType.COMPARE, size)
  command.sliceDataOut(command.dataOffset, size)
  command.dataOffset += size
  return command.submit(command.blocksLeft > 0 ? writeThenCompare : good)
}

const writeThenCompare: Step = command => writePiece(command, compareWritten)

/** Writes everything, then reads all of it. */
const checkWritten: Step = command => {
  command.dataOffset += command.request.io.blockCount * command.info.blockSize
  if (command.blocksLeft > 0) return writePiece(command, checkWritten)
  const blocks = command.dataOffset / command.info.blockSize
  command.nextBlock -= blocks
  command.blocksLeft = blocks
  return checkMedium(command)
}
