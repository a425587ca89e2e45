/** What block sizes and counts an operator may ask for, checked in one place. */
import { RpcError } from '../core/errors.ts'

export const BLOCK_SIZE_MAX = 65536

/** Throws `RpcError` EINVAL unless both describe a device that can be. */
export function checkGeometry(name: string, blockSize: number, blockCount: number): void {
  checkBlockSize(name, 'block_size', blockSize)
  if (blockCount < 1) throw new RpcError('EINVAL', `${name} has ${blockCount} blocks: give it at least one`)
  if (blockCount > Number.MAX_SAFE_INTEGER / blockSize) {
    throw new RpcError(
      'EINVAL',
      `${name} has ${blockCount} blocks of ${blockSize} bytes, more than 2^53 bytes: make it smaller`,
    )
  }
}

export function checkBlockSize(name: string, what: string, size: number): void {
  if (size >= 512 && size <= BLOCK_SIZE_MAX && (size & (size - 1)) === 0) return
  throw new RpcError(
    'EINVAL',
    `${name} has a ${what} of ${size} bytes: use a power of two from 512 to ${BLOCK_SIZE_MAX}`,
  )
}

/** Throws `RpcError` ENOTSUP when the operator asks for metadata beside the blocks, which no device here has. */
export function refuseMetadata(
  name: string,
  {
    md_size = 0,
    dif_type = 0,
  }: { readonly md_size?: number | undefined; readonly dif_type?: number | undefined },
): void {
  if (md_size === 0 && dif_type === 0) return
  throw new RpcError(
    'ENOTSUP',
    `${name} cannot have md_size ${md_size} and dif_type ${dif_type}: leave both out, blocks have no metadata here`,
  )
}
