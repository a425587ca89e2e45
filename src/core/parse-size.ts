import { RpcError } from './errors.ts'

const UNITS: Readonly<Record<string, number>> = { '': 1, K: 2 ** 10, M: 2 ** 20, G: 2 ** 30, T: 2 ** 40 }

/** Bytes from `10G`, `512M`, `4096`; powers of two as qemu-img has them. Throws `RpcError` EINVAL naming `what`. */
export function parseSize(text: string, what: string): number {
  const match = /^(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?$/i.exec(text.trim())
  const bytes = match === null ? Number.NaN : Number(match[1]) * UNITS[match[2]!.toUpperCase()]!
  if (!Number.isSafeInteger(bytes) || bytes < 1) {
    throw new RpcError(
      'EINVAL',
      `${what} ${text} is no size: give bytes, or a number with K, M, G or T such as 10G`,
    )
  }
  return bytes
}
