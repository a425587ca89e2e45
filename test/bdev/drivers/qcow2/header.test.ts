import { describe, expect, it } from 'vitest'
import {
  compressedRun,
  geometryOf,
  getRefcount,
  offsetOf,
  setRefcount,
} from '../../../../src/bdev/drivers/qcow2/geometry.ts'
import { encodeHeader, parseHeader } from '../../../../src/bdev/drivers/qcow2/header.ts'

// Written by hand from docs/interop/qcow2.txt, so that it shares no code with the structure.
const V3 = `514649fb 00000003 00000000000001d8 00000008 00000010 0000000040000000
            00000000 00000002 0000000000030000 0000000000010000 00000001 00000000 0000000000000000
            0000000000000000 0000000000000001 0000000000000000 00000004 00000068
            e2792aca 00000005 71636f7732000000
            6803f857 00000060 0000 ${name('dirty bit')} 0029 ${name('time travel')}
            00000000 00000000`

function name(text: string): string {
  return Buffer.from(text).toString('hex').padEnd(92, '0')
}

/** A file of four clusters that begins with the bytes. `at` changes some of them: hexadecimal by offset. */
function file(hex: string, changes: Record<number, string> = {}): Buffer {
  const bytes = Buffer.alloc(4 * 65536)
  Buffer.from(hex.replace(/\s/g, ''), 'hex').copy(bytes)
  Buffer.from('base.raw').copy(bytes, 0x1d8)
  for (const [at, change] of Object.entries(changes)) {
    Buffer.from(change.replace(/\s/g, ''), 'hex').copy(bytes, Number(at))
  }
  return bytes
}

const parse = (bytes: Buffer) => parseHeader(bytes.subarray(0, 65536), bytes.length)

describe('the header', () => {
  it('has each field where the format puts it', () => {
    expect(parse(file(V3))).toMatchObject({
      version: 3,
      sizeBytes: 2 ** 30,
      backingFile: 'base.raw',
      backingFormat: 'qcow2',
      l1Size: 2,
      l1Offset: 0x30000,
      refcountTableOffset: 0x10000,
      refcountTableClusters: 1,
      snapshotCount: 0,
      incompatible: 0,
      compatible: 1,
      compression: 0,
      geometry: { clusterSize: 65536, l2Entries: 8192, blockEntries: 32768, refcountMax: 65535 },
    })
  })

  it('is written as it was read', () => {
    const bytes = file(V3)
    const again = parse(Buffer.concat([encodeHeader(parse(bytes)), Buffer.alloc(4 * 65536)]))
    expect(again).toMatchObject({ ...parse(bytes), headerLength: 112 })
  })

  it.each([
    ['magic', { 0: '00' }, 'does not begin as a qcow2 image does'],
    ['version', { 4: '00000004' }, 'version 4'],
    ['cluster size', { 20: '00000008' }, '2^8'],
    ['cluster size', { 20: '00000016' }, '2^22'],
    ['backing name', { 16: '00000400' }, '1024 bytes'],
    ['backing name', { 8: '000000000000fffc' }, 'leaves the first cluster'],
    ['disk size', { 24: 'ffffffffffffffff' }, 'are possible'],
    ['encryption', { 32: '00000002' }, 'encrypted (method 2)'],
    ['L1 table', { 36: '00000001' }, '1 entries for a disk that needs 2'],
    ['L1 table', { 36: '00800000' }, '32 MiB'],
    ['L1 table', { 40: '0000000000030200' }, 'not at the beginning of a cluster'],
    ['L1 table', { 40: '0000000000000000' }, 'where the header is'],
    ['L1 table', { 40: '0000000000040000' }, "beyond the file's"],
    ['refcount table', { 56: '00000000' }, 'no refcount table'],
    ['refcount table', { 56: '00000100' }, '8 MiB'],
    ['refcount table', { 48: '00ff000000000000' }, "beyond the file's"],
    ['snapshots', { 60: '00010001' }, '65537 snapshots'],
    ['external data file', { 76: '00000004' }, 'another file'],
    ['compression', { 76: '00000008' }, 'does not go with its feature bit'],
    ['refcount width', { 96: '00000007' }, '2^7'],
    ['length', { 100: '00000064' }, '100 bytes'],
    ['length', { 100: 'ffffffff' }, '4294967295 bytes'],
    ['an extension', { 108: '00100000' }, 'a header extension of'],
    ['small clusters with subclusters', { 20: '0000000d', 76: '00000010' }, 'at least 16384'],
  ])('is refused for its %s: %j', (_, changes, message) => {
    expect(() => parse(file(V3, changes as Record<number, string>))).toThrow(message)
  })

  it('names features that are not known, by the name that the image has for them', () => {
    expect(() => parse(file(V3, { 72: '00000200 00000040' }))).toThrow('not known here: bit 6, "time travel"')
  })

  it('says of a file that is too short for one what it is', () => {
    expect(() => parseHeader(file(V3).subarray(0, 71), 71)).toThrow('fewer than a qcow2 header has')
    expect(() => parseHeader(file(V3).subarray(0, 90), 90)).toThrow('ends within its header')
  })
})

describe('entries', () => {
  it('have offsets in bits 9 to 55', () => {
    expect(offsetOf(0x80ff_ffff, 0xffff_fe01)).toBe(0xff_ffff * 2 ** 32 + 0xffff_fe00)
    expect(offsetOf(0x8000_0000, 0x0005_0000)).toBe(0x50000)
  })

  it('have compressed data from a byte to the end of a sector', () => {
    // Clusters of 64 KiB: 54 bits of offset, then 8 bits of further sectors.
    const geometry = geometryOf(16, false, 4)
    expect(compressedRun(geometry, 0x40c0_0000, 0x0005_0010)).toEqual({
      offset: 0x50010,
      length: 4 * 512 - 16,
    })
    // Clusters of 2 MiB: 49 bits of offset.
    expect(compressedRun(geometryOf(21, false, 4), 0x4002_0001, 0)).toEqual({ offset: 2 ** 32, length: 1024 })
  })
})

describe('refcounts', () => {
  it.each([
    [0, 9, 1, '0002'],
    [1, 5, 3, '000c'],
    [2, 3, 0xf, '00f0'],
    [3, 1, 0xab, '00ab'],
    [4, 1, 0xabcd, '0000abcd'],
    [5, 1, 0xabcdef01, '00000000abcdef01'],
    [6, 1, 0x1_0000_0002, '00000000000000000000000100000002'],
  ])('of 2^%d bits lie where the format puts them', (order, index, count, hex) => {
    const view = new DataView(new ArrayBuffer(hex.length / 2))
    setRefcount(view, 0, index, order, count)
    expect(Buffer.from(view.buffer).toString('hex')).toBe(hex)
    expect(getRefcount(view, 0, index, order)).toBe(count)
    expect(getRefcount(view, 0, 0, order)).toBe(0)
    setRefcount(view, 0, index, order, 0)
    expect(Buffer.from(view.buffer).every(byte => byte === 0)).toBe(true)
  })
})
