/** Packed files: as a disk they would be noise. */
import { RpcError } from '../../core/errors.ts'

const PACKERS = [
  { magic: Buffer.from('1f8b08', 'hex'), unpack: 'gunzip' },
  { magic: Buffer.from('28b52ffd', 'hex'), unpack: 'zstd -d' },
  { magic: Buffer.from('fd377a585a00', 'hex'), unpack: 'xz -d' },
  { magic: Buffer.from('425a68', 'hex'), unpack: 'bzip2 -d' },
] as const

/** Throws `RpcError` EINVAL when a file that begins with `head` is packed. */
export function refusePacked(text: string, head: Buffer): void {
  const found = PACKERS.find(({ magic }) => head.subarray(0, magic.length).equals(magic))
  if (found === undefined) return
  throw new RpcError(
    'EINVAL',
    `${text} is packed: unpack it first (${found.unpack}), or take it as it is with --format raw`,
  )
}
