/** Where a zstd frame ends (RFC 8878, section 3.1.1): behind it in its last sector lies what Node would stumble over. */

const MAGIC = 0xfd2fb528
const DICTIONARY_ID_BYTES = [0, 1, 2, 4] as const
const CONTENT_SIZE_BYTES = [0, 2, 4, 8] as const
const BLOCK_RLE = 1

/** In bytes; 0 when it does not begin, or does not end, as a frame does. */
export function zstdFrameLength(bytes: Uint8Array): number {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length)
  if (bytes.length < 6 || view.getUint32(0, true) !== MAGIC) return 0
  const descriptor = bytes[4]!
  const isSingleSegment = (descriptor & 0x20) !== 0
  const hasChecksum = (descriptor & 0x04) !== 0
  const sizeFlag = descriptor >>> 6
  let at = 5 + (isSingleSegment ? 0 : 1) + DICTIONARY_ID_BYTES[descriptor & 3]!
  at += sizeFlag === 0 && isSingleSegment ? 1 : CONTENT_SIZE_BYTES[sizeFlag]!
  for (;;) {
    if (at + 3 > bytes.length) return 0
    const header = bytes[at]! | (bytes[at + 1]! << 8) | (bytes[at + 2]! << 16)
    const isLast = (header & 1) !== 0
    const type = (header >>> 1) & 3
    at += 3 + (type === BLOCK_RLE ? 1 : header >>> 3)
    if (isLast) break
  }
  const end = at + (hasChecksum ? 4 : 0)
  return end <= bytes.length ? end : 0
}
