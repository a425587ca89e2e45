/** What a client may ask: one function, in the order in which the protocol describes a request. */
import type { BdevInfo } from '../bdev/bdev.ts'
import { IoType } from '../bdev/io.ts'
import { COMMAND_NAMES, Command, CommandFlag, NbdError, TransmissionFlag } from '../spec/nbd.ts'

/** The longest read or write, in bytes: what QEMU and libnbd send at most. */
export const TRANSFER_SIZE_MAX = 32 << 20
/** What is read, sent or written at once, in bytes: a longer transfer is done in pieces. */
export const PIECE_SIZE = 256 << 10

/** The flags that each command may carry, by its number. */
const FLAGS = [
  CommandFlag.DF, // READ
  CommandFlag.FUA, // WRITE
  0, // DISC
  0, // FLUSH; some clients set FUA, which says nothing new
  CommandFlag.FUA, // TRIM
  0, // CACHE
  CommandFlag.FUA | CommandFlag.NO_HOLE | CommandFlag.FAST_ZERO, // WRITE_ZEROES
  CommandFlag.REQ_ONE, // BLOCK_STATUS
] as const

const isWrite = (type: number): boolean =>
  type === Command.WRITE || type === Command.TRIM || type === Command.WRITE_ZEROES

/** What both sides agreed on, and what the export is. */
export interface Terms {
  readonly info: BdevInfo
  readonly readOnly: boolean
  readonly structuredReplies: boolean
  readonly baseAllocation: boolean
}

/** The transmission flags of an export. */
export function transmissionFlags({ info, readOnly, structuredReplies }: Terms): number {
  // Any connection's flush covers the writes that any connection was told are done, so several are safe.
  let flags = TransmissionFlag.HAS_FLAGS | TransmissionFlag.CAN_MULTI_CONN | TransmissionFlag.SEND_CACHE
  if (structuredReplies) flags |= TransmissionFlag.SEND_DF
  if (readOnly) return flags | TransmissionFlag.READ_ONLY
  flags |= TransmissionFlag.SEND_FLUSH | TransmissionFlag.SEND_FUA | TransmissionFlag.SEND_WRITE_ZEROES
  flags |= TransmissionFlag.SEND_FAST_ZERO
  if (info.supports.has(IoType.UNMAP)) flags |= TransmissionFlag.SEND_TRIM
  return flags
}

/** The error that a request deserves as it stands, `NbdError.NONE` when it may be carried out. */
export function checkRequest(
  terms: Terms,
  type: number,
  flags: number,
  offset: number,
  length: number,
): number {
  const { info } = terms
  if (type >= FLAGS.length) return NbdError.EINVAL
  if ((flags & ~FLAGS[type]!) !== 0 && !(type === Command.FLUSH && flags === CommandFlag.FUA)) {
    return NbdError.EINVAL
  }
  if ((flags & CommandFlag.DF) !== 0 && !terms.structuredReplies) return NbdError.EINVAL
  if (type === Command.FLUSH) return offset === 0 && length === 0 ? NbdError.NONE : NbdError.EINVAL
  if (isWrite(type) && terms.readOnly) return NbdError.EPERM
  if (type === Command.TRIM && !info.supports.has(IoType.UNMAP)) return NbdError.EINVAL
  if (type === Command.BLOCK_STATUS && !terms.baseAllocation) return NbdError.EINVAL
  if ((flags & CommandFlag.FAST_ZERO) !== 0 && !info.supports.has(IoType.WRITE_ZEROES)) {
    return NbdError.ENOTSUP
  }
  if (length === 0 || offset % info.blockSize !== 0 || length % info.blockSize !== 0) return NbdError.EINVAL
  if (offset + length > info.blockCount * info.blockSize) {
    return type === Command.WRITE || type === Command.WRITE_ZEROES ? NbdError.ENOSPC : NbdError.EINVAL
  }
  const isTransfer = type === Command.READ || type === Command.WRITE || type === Command.CACHE
  if (isTransfer && length > TRANSFER_SIZE_MAX) return NbdError.EINVAL
  if ((flags & CommandFlag.DF) !== 0 && length > PIECE_SIZE) return NbdError.EOVERFLOW
  return NbdError.NONE
}

/** A request in words, for the log. */
export function describeRequest(type: number, flags: number, offset: number, length: number): string {
  const name = COMMAND_NAMES[type] ?? `command ${type}`
  return `${name} of ${length} bytes at ${offset}${flags === 0 ? '' : ` with flags 0x${flags.toString(16)}`}`
}
