import { describe, expect, it } from 'vitest'
import { BlkConfig, BlkFeature, BlkHeader, BlkRange, BlkStatus, BlkType } from '../../src/spec/virtio-blk.ts'
import { hex, read } from './wire.ts'

// Virtual I/O Device specification 1.2, section 5.2: each dump follows struct virtio_blk_config and its like.
describe('virtio-blk structures', () => {
  it('reads the configuration space', () => {
    const dump = `0000000002000000 00001000 7e000000  3412 10 3f  00100000
                  03 01 0800 00010000  01 00 0400
                  ffff3f00 01000000 08000000  ffff7f00 02000000 01 000000`
    expect(read(BlkConfig, hex(dump))).toEqual({
      capacity: 2 ** 33,
      sizeMax: 1 << 20,
      segMax: 126,
      cylinders: 0x1234,
      heads: 16,
      sectors: 63,
      blkSize: 4096,
      physicalBlockExp: 3,
      alignmentOffset: 1,
      minIoSize: 8,
      optIoSize: 256,
      writeback: 1,
      numQueues: 4,
      maxDiscardSectors: 0x3f_ffff,
      maxDiscardSeg: 1,
      discardSectorAlignment: 8,
      maxWriteZeroesSectors: 0x7f_ffff,
      maxWriteZeroesSeg: 2,
      writeZeroesMayUnmap: 1,
    })
  })

  it('reads the header of a request', () => {
    const header = read(BlkHeader, hex('0d000000 07000000 8877665544330000'))
    expect(header).toEqual({ type: 13, sector: 0x3344_5566_7788 })
  })

  it('reads a range to discard', () => {
    const range = read(BlkRange, hex('0000000001000000 00080000 01000000'))
    expect(range).toEqual({ sector: 2 ** 32, numSectors: 2048, flags: 1 })
  })

  it('numbers features, types and statuses as the specification does', () => {
    expect(Object.values(BlkFeature)).toEqual([
      2n,
      4n,
      0x10n,
      0x20n,
      0x40n,
      0x200n,
      0x400n,
      0x800n,
      0x1000n,
      0x2000n,
      0x4000n,
    ])
    expect(BlkType).toEqual({ IN: 0, OUT: 1, FLUSH: 4, GET_ID: 8, DISCARD: 11, WRITE_ZEROES: 13 })
    expect(BlkStatus).toEqual({ OK: 0, IOERR: 1, UNSUPP: 2 })
  })
})
