/**
 * Mappings of what front ends share. A file may be announced with any size and no page in it, and in as many pieces as one
 * likes: a process whose address space is full, or that has as many mappings as the kernel allows, cannot allocate, and
 * ends. So all front ends together get half of both.
 */
import { readFileSync } from 'node:fs'
import { SysError } from '../../core/errors.ts'
import { mapShared, type SharedMapping } from '../../sys/shared-memory.ts'
import { fault } from './protocol.ts'

/** Half of what a process can address. */
const BYTES_MAX = 2 ** 46
/** vm.max_map_count where it cannot be read: the kernel's default. */
const DEFAULT_COUNT_MAX = 65530

let bytes = 0
let count = 0
let countMax = 0

/** Maps what a peer has shared. Throws `ProtocolError` that says why it cannot be; `what` begins with an article. */
export function mapOfPeer(
  what: string,
  descriptor: number,
  offsetBytes: number,
  sizeBytes: number,
): SharedMapping {
  countMax ||= readCountMax()
  if (bytes + sizeBytes > BYTES_MAX || count >= countMax) {
    fault(
      `has ${what} that is too much: front ends share ${count} pieces of together ${bytes} bytes already, ` +
        `and may share ${countMax} (half of vm.max_map_count) and ${BYTES_MAX}`,
      0,
    )
  }
  let mapping: SharedMapping
  try {
    mapping = mapShared(descriptor, offsetBytes, sizeBytes)
  } catch (error) {
    if (error instanceof SysError) fault(`has ${what} that cannot be mapped: ${error.message}`, 0)
    throw error
  }
  bytes += sizeBytes
  count++
  return {
    ...mapping,
    unmap: () => {
      mapping.unmap()
      bytes -= sizeBytes
      count--
    },
  }
}

function readCountMax(): number {
  try {
    return Math.floor(Number(readFileSync('/proc/sys/vm/max_map_count', 'utf8')) / 2)
  } catch {
    // A container may hide it.
    return DEFAULT_COUNT_MAX / 2
  }
}
