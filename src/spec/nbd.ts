/**
 * The NBD protocol, from https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md: fixed newstyle
 * negotiation, structured replies, metadata contexts. All numbers are big-endian.
 */
import { bytes, struct, u16be, u32be, u53be } from '../core/struct.ts'

/** The port that IANA assigned. */
export const NBD_PORT = 10809

/** The two halves of each 64-bit magic number. */
export const NBDMAGIC = [0x4e42_444d, 0x4147_4943] as const
export const IHAVEOPT = [0x4948_4156, 0x454f_5054] as const
export const OPTION_REPLY_MAGIC = [0x0003_e889, 0x0455_65a9] as const

export const REQUEST_MAGIC = 0x2560_9513
export const SIMPLE_REPLY_MAGIC = 0x6744_6698
export const STRUCTURED_REPLY_MAGIC = 0x668e_33ef

/** The longest string there is, in bytes: export names, descriptions, metadata context names. */
export const STRING_SIZE_MAX = 4096

/** What a server says first ("Newstyle negotiation"). */
export const Greeting = struct(18, { magic: bytes(0, 8), ihaveopt: bytes(8, 8), flags: u16be(16) })

/** Handshake flags of the server. */
export const HandshakeFlag = { FIXED_NEWSTYLE: 1 << 0, NO_ZEROES: 1 << 1 } as const
/** Handshake flags of the client, 32 bits. */
export const ClientFlag = { FIXED_NEWSTYLE: 1 << 0, NO_ZEROES: 1 << 1 } as const

/** What precedes the data of an option. */
export const OptionHeader = struct(16, {
  magicHigh: u32be(0),
  magicLow: u32be(4),
  option: u32be(8),
  length: u32be(12),
})

/** What precedes the data of an answer to an option. */
export const OptionReply = struct(20, {
  magicHigh: u32be(0),
  magicLow: u32be(4),
  option: u32be(8),
  type: u32be(12),
  length: u32be(16),
})

export const Option = {
  EXPORT_NAME: 1,
  ABORT: 2,
  LIST: 3,
  STARTTLS: 5,
  INFO: 6,
  GO: 7,
  STRUCTURED_REPLY: 8,
  LIST_META_CONTEXT: 9,
  SET_META_CONTEXT: 10,
  EXTENDED_HEADERS: 11,
} as const

/** Types of answers to an option; errors have bit 31. */
export const Reply = {
  ACK: 1,
  SERVER: 2,
  INFO: 3,
  META_CONTEXT: 4,
  ERR_UNSUP: 0x8000_0001,
  ERR_POLICY: 0x8000_0002,
  ERR_INVALID: 0x8000_0003,
  ERR_PLATFORM: 0x8000_0004,
  ERR_TLS_REQD: 0x8000_0005,
  ERR_UNKNOWN: 0x8000_0006,
  ERR_SHUTDOWN: 0x8000_0007,
  ERR_BLOCK_SIZE_REQD: 0x8000_0008,
  ERR_TOO_BIG: 0x8000_0009,
} as const

/** Kinds of information about an export (NBD_INFO_*). */
export const Info = { EXPORT: 0, NAME: 1, DESCRIPTION: 2, BLOCK_SIZE: 3 } as const

/** The data of NBD_REP_INFO with NBD_INFO_EXPORT. */
export const ExportInformation = struct(12, { type: u16be(0), sizeBytes: u53be(2), flags: u16be(10) })

/** The data of NBD_REP_INFO with NBD_INFO_BLOCK_SIZE: all three in bytes. */
export const BlockSizeInformation = struct(14, {
  type: u16be(0),
  minimum: u32be(2),
  preferred: u32be(6),
  maximum: u32be(10),
})

/** The end of NBD_OPT_EXPORT_NAME; without NO_ZEROES 124 zeroes follow. */
export const ExportNameReply = struct(10, { sizeBytes: u53be(0), flags: u16be(8) })
export const EXPORT_NAME_PADDING = 124

/** What an export can do. */
export const TransmissionFlag = {
  HAS_FLAGS: 1 << 0,
  READ_ONLY: 1 << 1,
  SEND_FLUSH: 1 << 2,
  SEND_FUA: 1 << 3,
  ROTATIONAL: 1 << 4,
  SEND_TRIM: 1 << 5,
  SEND_WRITE_ZEROES: 1 << 6,
  SEND_DF: 1 << 7,
  CAN_MULTI_CONN: 1 << 8,
  SEND_RESIZE: 1 << 9,
  SEND_CACHE: 1 << 10,
  SEND_FAST_ZERO: 1 << 11,
} as const

/** A request; the data of a write follows. The cookie is the client's own 64 bits, kept as two halves. */
export const Request = struct(28, {
  magic: u32be(0),
  flags: u16be(4),
  type: u16be(6),
  cookieHigh: u32be(8),
  cookieLow: u32be(12),
  offsetBytes: u53be(16),
  lengthBytes: u32be(24),
})

export const Command = {
  READ: 0,
  WRITE: 1,
  DISC: 2,
  FLUSH: 3,
  TRIM: 4,
  CACHE: 5,
  WRITE_ZEROES: 6,
  BLOCK_STATUS: 7,
} as const

export const COMMAND_NAMES = [
  'READ',
  'WRITE',
  'DISC',
  'FLUSH',
  'TRIM',
  'CACHE',
  'WRITE_ZEROES',
  'BLOCK_STATUS',
] as const

export const CommandFlag = {
  FUA: 1 << 0,
  NO_HOLE: 1 << 1,
  /** The answer must come in one piece. */
  DF: 1 << 2,
  /** One extent is enough. */
  REQ_ONE: 1 << 3,
  FAST_ZERO: 1 << 4,
} as const

/** The answer to a request before structured replies; the data of a read follows. */
export const SimpleReply = struct(16, {
  magic: u32be(0),
  error: u32be(4),
  cookieHigh: u32be(8),
  cookieLow: u32be(12),
})

/** One chunk of a structured reply; `length` bytes follow. */
export const StructuredReply = struct(20, {
  magic: u32be(0),
  flags: u16be(4),
  type: u16be(6),
  cookieHigh: u32be(8),
  cookieLow: u32be(12),
  length: u32be(16),
})

/** Flag of the last chunk. */
export const REPLY_FLAG_DONE = 1

export const ReplyType = {
  NONE: 0,
  /** Offset (8), data. */
  OFFSET_DATA: 1,
  /** Offset (8), length of the hole (4). */
  OFFSET_HOLE: 2,
  /** Context id (4), then extents of length (4) and flags (4). */
  BLOCK_STATUS: 5,
  /** Error (4), length of the message (2), message. */
  ERROR: 0x8001,
  ERROR_OFFSET: 0x8002,
} as const

/** The one metadata context that the protocol itself defines. */
export const BASE_ALLOCATION = 'base:allocation'
export const AllocationState = { HOLE: 1 << 0, ZERO: 1 << 1 } as const

/** Errors on the wire: Linux's numbers for these names, on every system. */
export const NbdError = {
  NONE: 0,
  EPERM: 1,
  EIO: 5,
  ENOMEM: 12,
  EINVAL: 22,
  ENOSPC: 28,
  EOVERFLOW: 75,
  ENOTSUP: 95,
  ESHUTDOWN: 108,
} as const
