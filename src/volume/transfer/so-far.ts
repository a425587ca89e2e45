/** Whether a copy that was interrupted may be gone on with: what it has is still what its source has. */
import { viewMemory } from '../../sys/libc.ts'
import { mapAnonymous, unmap } from '../../sys/memory.ts'
import { PIECE_BYTES, type Piece, type Source } from './copy.ts'

/** Where `doneBytes` end the last one does, the first begins at 0, and the others are spread between them. */
const LOOKS = 16
/** Blocks of a device are no larger. */
const ALIGNMENT = 4096

/**
 * Compares pieces of both below `doneBytes`. An NBD server says of its export only how large it is: another one, or one that
 * was written to since, is found by what is in it, unless it differs only where nobody looks.
 */
export async function isSameSoFar(
  source: Source,
  copy: Source,
  doneBytes: number,
  signal: AbortSignal,
): Promise<boolean> {
  if (copy.sizeBytes < doneBytes) return false
  if (doneBytes === 0) return true
  const size = 2 * PIECE_BYTES
  const address = mapAnonymous(size)
  const abort = (): void => source.abort?.()
  signal.addEventListener('abort', abort)
  try {
    const memory = viewMemory(address, size)
    const [one, other] = [0, PIECE_BYTES].map(at => ({
      address: address + at,
      bytes: Buffer.from(memory, at, PIECE_BYTES),
    })) as [Piece, Piece]
    for (const offset of offsets(doneBytes)) {
      signal.throwIfAborted()
      const length = Math.min(PIECE_BYTES, doneBytes - offset)
      // One after the other: memory that a read may still touch is not given back.
      await source.read(one, offset, length)
      await copy.read(other, offset, length)
      if (one.bytes.compare(other.bytes, 0, length, 0, length) !== 0) return false
    }
    return true
  } finally {
    signal.removeEventListener('abort', abort)
    unmap(address, size)
  }
}

function offsets(doneBytes: number): Set<number> {
  const last = Math.max(0, doneBytes - PIECE_BYTES)
  const spread = Array.from({ length: LOOKS }, (_, i) => (last * i) / (LOOKS - 1))
  return new Set(spread.map(at => Math.ceil(at / ALIGNMENT) * ALIGNMENT))
}
