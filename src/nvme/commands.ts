/** I/O commands as 32-bit words of a submission queue entry (NVM Command Set specification 1.1, section 3.3). */
import { IoType } from '../bdev/io.ts'
import { NvmOpcode } from '../spec/nvme.ts'
import type { IoRequest } from './io-request.ts'
import { Transfer } from './tcp/slots.ts'

/** Blocks that the NLB field of a command can name. */
export const NLB_MAX = 0x1_0000

const OPCODES = new Uint8Array(8)
OPCODES[IoType.READ] = NvmOpcode.READ
OPCODES[IoType.WRITE] = NvmOpcode.WRITE
OPCODES[IoType.FLUSH] = NvmOpcode.FLUSH
OPCODES[IoType.WRITE_ZEROES] = NvmOpcode.WRITE_ZEROES
OPCODES[IoType.UNMAP] = NvmOpcode.DATASET_MANAGEMENT
OPCODES[IoType.COMPARE] = NvmOpcode.COMPARE

export const opcodeOf = (type: IoType): number => OPCODES[type]!

export function transferOf(type: IoType): Transfer {
  if (type === IoType.READ) return Transfer.FROM_CONTROLLER
  return type === IoType.FLUSH || type === IoType.WRITE_ZEROES ? Transfer.NONE : Transfer.TO_CONTROLLER
}

const FUA = 1 << 30
const DEALLOCATE = 1 << 2

/** Fills the entry at `at`, which holds opcode and command identifier already. */
export function writeCommand(words: Int32Array, at: number, request: IoRequest, nsid: number): void {
  const { type, firstBlock, blockCount } = request
  words[at + 1] = nsid
  if (type === IoType.FLUSH) return
  if (type === IoType.UNMAP) {
    words[at + 10] = 0 // one range
    words[at + 11] = DEALLOCATE
    return
  }
  words[at + 10] = firstBlock | 0
  words[at + 11] = Math.floor(firstBlock / 0x1_0000_0000)
  words[at + 12] = (blockCount - 1) | (request.io!.fua ? FUA : 0)
}

/** Writes the only range of Dataset Management (`DsmRange`) at index `at`. */
export function writeRange(words: Int32Array, at: number, firstBlock: number, blockCount: number): void {
  words[at] = 0
  words[at + 1] = blockCount | 0
  words[at + 2] = firstBlock | 0
  words[at + 3] = Math.floor(firstBlock / 0x1_0000_0000)
}
