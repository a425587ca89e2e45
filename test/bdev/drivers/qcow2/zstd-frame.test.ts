import { expect, it } from 'vitest'
import { zstdFrameLength } from '../../../../src/bdev/drivers/qcow2/zstd-frame.ts'

const hex = (text: string): Uint8Array => Buffer.from(text.replace(/\s/g, ''), 'hex')

// Written by hand from RFC 8878.
it.each([
  ['a raw block of 3 bytes, with a window', '28b52ffd 00 58 190000 616263', 12],
  ['a single segment with its size and a checksum', '28b52ffd 24 03 190000 616263 01020304', 16],
  ['two blocks, the last one of a repeated byte', '28b52ffd 00 58 180000 616263 430000 7a', 16],
  ['a dictionary and a size of two bytes', '28b52ffd 41 58 07 0001 190000 616263', 15],
])('ends behind %s', (_, frame, length) => {
  const bytes = hex(frame)
  expect(zstdFrameLength(bytes)).toBe(length)
  expect(zstdFrameLength(Buffer.concat([bytes, hex('28b52ffd00')]))).toBe(length)
})

it.each([
  '',
  '28b52ffd',
  '28b52ffe 00 58 190000 616263',
  '28b52ffd 00 58 190000 6162',
  '28b52ffd 00 58 180000 616263',
])('is none: %s', frame => {
  expect(zstdFrameLength(hex(frame))).toBe(0)
})
