/** UUIDs of devices: given, derived from what identifies the medium, or random. */
import { createHash } from 'node:crypto'

/** The namespace for our derived UUIDs: itself random, and fixed for ever. */
const NAMESPACE = Buffer.from('5b1c6b0e3f8d4c0a9a5d2f7e41c3d688', 'hex')

/**
 * A version 5 UUID (RFC 9562, section 5.5) made of `parts`: the same parts give the same UUID in every process on every
 * machine, so that two gateways that serve one medium agree.
 */
export function deriveUuid(...parts: readonly string[]): string {
  const digest = createHash('sha1').update(NAMESPACE).update(parts.join('\0')).digest()
  digest[6] = (digest[6]! & 0x0f) | 0x50
  digest[8] = (digest[8]! & 0x3f) | 0x80
  const hex = digest.toString('hex')
  return [hex.slice(0, 8), hex.slice(8, 12), hex.slice(12, 16), hex.slice(16, 20), hex.slice(20, 32)].join(
    '-',
  )
}
