/** The block device of the Virtual I/O Device specification 1.2, section 5.2. All numbers are little-endian. */
import { struct, u8, u16, u32, u53 } from '../core/struct.ts'

/** What the protocol counts in, in bytes, whatever the device's block size (section 5.2.5). */
export const SECTOR_SIZE = 512

/** Bytes of what GET_ID answers: text that is padded with NUL, and not terminated when it has them all. */
export const ID_SIZE = 20

/** Feature bits (section 5.2.3), as masks. */
export const BlkFeature = {
  SIZE_MAX: 1n << 1n,
  SEG_MAX: 1n << 2n,
  GEOMETRY: 1n << 4n,
  RO: 1n << 5n,
  BLK_SIZE: 1n << 6n,
  FLUSH: 1n << 9n,
  TOPOLOGY: 1n << 10n,
  CONFIG_WCE: 1n << 11n,
  MQ: 1n << 12n,
  DISCARD: 1n << 13n,
  WRITE_ZEROES: 1n << 14n,
} as const

/**
 * The configuration space (section 5.2.4), as far as the features above reach. Each field is valid only with the feature
 * that its comment names.
 */
export const BlkConfig = struct(60, {
  /** In sectors. */
  capacity: u53(0),
  /** SIZE_MAX: bytes in one descriptor, at most. */
  sizeMax: u32(8),
  /** SEG_MAX: descriptors of data in one request, at most. */
  segMax: u32(12),
  /** GEOMETRY. */
  cylinders: u16(16),
  heads: u8(18),
  sectors: u8(19),
  /** BLK_SIZE: in bytes. */
  blkSize: u32(20),
  /** TOPOLOGY: log2 of logical blocks in a physical one. */
  physicalBlockExp: u8(24),
  /** TOPOLOGY: the first aligned logical block. */
  alignmentOffset: u8(25),
  /** TOPOLOGY: in logical blocks. */
  minIoSize: u16(26),
  /** TOPOLOGY: in logical blocks, 0 for no advice. */
  optIoSize: u32(28),
  /** CONFIG_WCE: 1 for write-back, 0 for write-through; the only field that a driver writes to. */
  writeback: u8(32),
  /** MQ. */
  numQueues: u16(34),
  /** DISCARD: sectors in one segment, segments in one request, and sectors. */
  maxDiscardSectors: u32(36),
  maxDiscardSeg: u32(40),
  discardSectorAlignment: u32(44),
  /** WRITE_ZEROES: sectors in one segment, segments in one request, and 1 when UNMAP may deallocate. */
  maxWriteZeroesSectors: u32(48),
  maxWriteZeroesSeg: u32(52),
  writeZeroesMayUnmap: u8(56),
})

/** What a request begins with; data and `BlkStatus` in one byte follow (section 5.2.6). */
export const BlkHeader = struct(16, { type: u32(0), sector: u53(8) })

export const BlkType = {
  IN: 0,
  OUT: 1,
  FLUSH: 4,
  GET_ID: 8,
  DISCARD: 11,
  WRITE_ZEROES: 13,
} as const

/** The data of DISCARD and WRITE_ZEROES is a list of these. */
export const BlkRange = struct(16, { sector: u53(0), numSectors: u32(8), flags: u32(12) })

/** Of a range, in WRITE_ZEROES only: it may be deallocated. */
export const RANGE_FLAG_UNMAP = 1 << 0

export const BlkStatus = { OK: 0, IOERR: 1, UNSUPP: 2 } as const
