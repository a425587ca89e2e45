/**
 * The qcow2 image format, versions 2 and 3 (QEMU, docs/interop/qcow2.txt). Everything is big-endian. 64-bit fields of
 * bits are two halves here, so that no bit is lost; offsets are numbers, since no file is longer than 2^53 bytes.
 */
import { struct, u8, u16be, u32be, u53be } from '../core/struct.ts'

/** `QFI\xfb` */
export const MAGIC = 0x514649fb

/** Version 2 ends before `incompatibleHigh`; version 3 has at least 104 bytes. */
export const Header = struct(112, {
  magic: u32be(0),
  version: u32be(4),
  backingFileOffset: u53be(8),
  backingFileSize: u32be(16),
  clusterBits: u32be(20),
  diskSize: u53be(24),
  cryptMethod: u32be(32),
  l1Size: u32be(36),
  l1TableOffset: u53be(40),
  refcountTableOffset: u53be(48),
  refcountTableClusters: u32be(56),
  snapshotCount: u32be(60),
  snapshotsOffset: u53be(64),
  incompatibleHigh: u32be(72),
  incompatible: u32be(76),
  compatibleHigh: u32be(80),
  compatible: u32be(84),
  autoclearHigh: u32be(88),
  autoclear: u32be(92),
  refcountOrder: u32be(96),
  headerLength: u32be(100),
  compressionType: u8(104),
})

export const HEADER_SIZE_V2 = 72
export const HEADER_SIZE_V3 = 104
export const HEADER_SIZE_OURS = 112

export const Incompatible = {
  /** Refcounts may be too low: they are counted anew before the image is used. */
  DIRTY: 1 << 0,
  /** Must not be written to. */
  CORRUPT: 1 << 1,
  EXTERNAL_DATA_FILE: 1 << 2,
  COMPRESSION_TYPE: 1 << 3,
  EXTENDED_L2: 1 << 4,
} as const

export const Compatible = { LAZY_REFCOUNTS: 1 << 0 } as const

export const Autoclear = {
  /** The bitmaps are consistent with the data. */
  BITMAPS: 1 << 0,
  RAW_EXTERNAL_DATA: 1 << 1,
} as const

export const Compression = { ZLIB: 0, ZSTD: 1 } as const

export const ExtensionType = {
  END: 0,
  BACKING_FORMAT: 0xe2792aca,
  FEATURE_NAMES: 0x6803f857,
  BITMAPS: 0x23852875,
  ENCRYPTION: 0x0537be77,
  DATA_FILE: 0x44415441,
} as const

/** Before the data of each header extension, which is padded to a multiple of 8 bytes. */
export const Extension = struct(8, { type: u32be(0), length: u32be(4) })

/** An entry of the feature name table; the name, 46 bytes padded with zeroes, follows. */
export const FeatureName = struct(48, { type: u8(0), bit: u8(1) })
export const FEATURE_NAME_AT = 2
export const FeatureType = { INCOMPATIBLE: 0, COMPATIBLE: 1, AUTOCLEAR: 2 } as const

/** The features that are known here, by name as QEMU writes them. */
export const FEATURE_NAMES: readonly (readonly [type: number, bit: number, name: string])[] = [
  [FeatureType.INCOMPATIBLE, 0, 'dirty bit'],
  [FeatureType.INCOMPATIBLE, 1, 'corrupt bit'],
  [FeatureType.INCOMPATIBLE, 2, 'external data file'],
  [FeatureType.INCOMPATIBLE, 3, 'compression type'],
  [FeatureType.INCOMPATIBLE, 4, 'extended L2 entries'],
  [FeatureType.COMPATIBLE, 0, 'lazy refcounts'],
  [FeatureType.AUTOCLEAR, 0, 'bitmaps'],
  [FeatureType.AUTOCLEAR, 1, 'raw external data'],
]

export const BitmapsExtension = struct(24, {
  count: u32be(0),
  directorySize: u53be(8),
  directoryOffset: u53be(16),
})

/** Extra data, the name and padding to 8 bytes follow. */
export const BitmapEntry = struct(24, {
  tableOffset: u53be(0),
  tableSize: u32be(8),
  flags: u32be(12),
  type: u8(16),
  granularityBits: u8(17),
  nameSize: u16be(18),
  extraSize: u32be(20),
})

export const BitmapFlag = { IN_USE: 1, AUTO: 2, EXTRA_COMPATIBLE: 4 } as const
export const BITMAP_DIRTY_TRACKING = 1

/** Extra data, the id, the name and padding to 8 bytes follow. */
export const SnapshotEntry = struct(40, {
  l1TableOffset: u53be(0),
  l1Size: u32be(8),
  idSize: u16be(12),
  nameSize: u16be(14),
  seconds: u32be(16),
  nanoseconds: u32be(20),
  vmClock: u53be(24),
  vmStateSize: u32be(32),
  extraSize: u32be(36),
})
/** The part of the extra data that version 3 requires. */
export const SnapshotExtra = struct(16, { vmStateSize: u53be(0), diskSize: u53be(8) })

/** Bits of the high half of L1 and L2 entries. */
export const ENTRY_COPIED = 0x8000_0000
export const ENTRY_COMPRESSED = 0x4000_0000
/** Bit of the low half of an L2 entry: it reads as zeroes. */
export const ENTRY_ZERO = 1
/** Bits 9 to 55 of an entry are an offset; these are the two halves of the mask. */
export const OFFSET_HIGH = 0x00ff_ffff
export const OFFSET_LOW = 0xffff_fe00

export const SUBCLUSTERS = 32
export const SECTOR = 512

/** What QEMU takes. */
export const CLUSTER_BITS_MIN = 9
export const CLUSTER_BITS_MAX = 21
export const EXTENDED_CLUSTER_BITS_MIN = 14
export const BACKING_NAME_MAX = 1023
export const L1_BYTES_MAX = 32 << 20
export const REFCOUNT_TABLE_BYTES_MAX = 8 << 20
export const SNAPSHOTS_MAX = 65536
export const SNAPSHOT_TABLE_BYTES_MAX = 64 << 20
export const SNAPSHOT_EXTRA_MAX = 1024
export const BITMAPS_MAX = 65535
export const BITMAP_DIRECTORY_BYTES_MAX = 64 << 20
export const BITMAP_NAME_MAX = 1023
export const BITMAP_BYTES_MAX = 512 << 20
export const BITMAP_GRANULARITY_BITS_MIN = 9
export const BITMAP_GRANULARITY_BITS_MAX = 31
