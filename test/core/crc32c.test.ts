import { describe, expect, it } from 'vitest'
import { crc32c } from '../../src/core/crc32c.ts'

const view = (bytes: Iterable<number>): DataView => new DataView(Uint8Array.from(bytes).buffer)

describe('crc32c', () => {
  // The examples of RFC 3720, appendix B.4 (its bytes are the value in little-endian order).
  it.each([
    ['32 zeroes', new Uint8Array(32), 0x8a9136aa],
    ['32 ones', new Uint8Array(32).fill(0xff), 0x62a8ab43],
    ['32 bytes that grow', Array.from({ length: 32 }, (_, i) => i), 0x46dd794e],
    ['32 bytes that shrink', Array.from({ length: 32 }, (_, i) => 31 - i), 0x113fdb5c],
    ['the digits', Buffer.from('123456789'), 0xe3069283],
    ['nothing', [], 0],
  ])('of %s', (_, bytes, expected) => {
    const data = view(bytes)
    expect(crc32c(data, 0, data.byteLength)).toBe(expected)
  })

  it('is the same in pieces', () => {
    const data = view(Array.from({ length: 100 }, (_, i) => i * 3))
    const first = crc32c(data, 0, 37)
    expect(crc32c(data, 37, 63, first)).toBe(crc32c(data, 0, 100))
  })
})
