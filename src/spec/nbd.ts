/**
 * NBD, the network block device protocol, big-endian throughout (NetworkBlockDevice/nbd, doc/proto.md). Fixed newstyle
 * negotiation, simple and structured replies, metadata contexts; extended headers are left out.
 *
 *     server                                    client
 *     ServerHandshake  ----------------------->
 *                      <-----------------------  client flags, u32
 *                      <-----------------------  OptionRequest + data      \  until GO, EXPORT_NAME
 *     OptionReply + data  -------------------->                            /  or ABORT
 *                      <-----------------------  Request [+ data of WRITE]
 *     SimpleReply [+ data] or StructuredReply chunks --->
 */
import { struct, u16be, u32be, u53be } from '../core/struct.ts'

/** "NBDMAGIC", as two halves because 64 bits do not fit a number. */
export const NBD_MAGIC_HIGH = 0x4e42_444d
export const NBD_MAGIC_LOW = 0x4147_4943
/** "IHAVEOPT": in the handshake and before each option. */
export const OPTION_MAGIC_HIGH = 0x4948_4156
export const OPTION_MAGIC_LOW = 0x454f_5054
/** 3e889045565a9h: before each reply to an option. */
export const OPTION_REPLY_MAGIC_HIGH = 0x0003_e889
export const OPTION_REPLY_MAGIC_LOW = 0x0455_65a9
export const REQUEST_MAGIC = 0x2560_9513
export const SIMPLE_REPLY_MAGIC = 0x6744_6698
export const STRUCTURED_REPLY_MAGIC = 0x668e_33ef

/** The port assigned by IANA. */
export const NBD_PORT = 10809
/** Bytes: the longest export name, metadata query or message that a peer has to accept. */
export const STRING_MAX = 4096
/** Bytes: the payload that a server without block size information has to expect. */
export const DEFAULT_PAYLOAD_MAX = 33_554_432

/** What the server says first, in the newstyle. */
export const ServerHandshake = struct(18, {
  nbdMagicHigh: u32be(0),
  nbdMagicLow: u32be(4),
  optionMagicHigh: u32be(8),
  optionMagicLow: u32be(12),
  handshakeFlags: u16be(16),
})

/** Handshake flags of the server, 16 bits; the client repeats in 32 bits those that it understands. */
export const HandshakeFlag = { FIXED_NEWSTYLE: 0x1, NO_ZEROES: 0x2 } as const
export type HandshakeFlag = (typeof HandshakeFlag)[keyof typeof HandshakeFlag]

/** The client's answer to the handshake. */
export const ClientFlags = struct(4, { flags: u32be(0) })

/** Header of an option; `length` bytes of data follow. */
export const OptionRequest = struct(16, {
  magicHigh: u32be(0),
  magicLow: u32be(4),
  option: u32be(8),
  length: u32be(12),
})

/** Header of a reply to an option; `length` bytes of data follow. */
export const OptionReply = struct(20, {
  magicHigh: u32be(0),
  magicLow: u32be(4),
  option: u32be(8), // of the request
  type: u32be(12),
  length: u32be(16),
})

export const Option = {
  EXPORT_NAME: 1,
  ABORT: 2,
  LIST: 3,
  PEEK_EXPORT: 4, // withdrawn
  STARTTLS: 5,
  INFO: 6,
  GO: 7,
  STRUCTURED_REPLY: 8,
  LIST_META_CONTEXT: 9,
  SET_META_CONTEXT: 10,
  EXTENDED_HEADERS: 11,
} as const
export type Option = (typeof Option)[keyof typeof Option]

/** Types of replies to an option. Bit 31 marks an error, whose data may be a message for people. */
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
  ERR_EXT_HEADER_REQD: 0x8000_000a,
} as const
export type Reply = (typeof Reply)[keyof typeof Reply]

/** Answer to EXPORT_NAME, without a reply header; 124 zero bytes follow unless both sides said NO_ZEROES. */
export const ExportNameReply = struct(10, { exportSize: u53be(0), transmissionFlags: u16be(8) })
export const EXPORT_NAME_PADDING = 124

/** Information types of INFO and GO. */
export const Info = { EXPORT: 0, NAME: 1, DESCRIPTION: 2, BLOCK_SIZE: 3 } as const
export type Info = (typeof Info)[keyof typeof Info]

/** Reply INFO of type EXPORT, which every INFO and GO must be given. */
export const InfoExport = struct(12, { type: u16be(0), exportSize: u53be(2), transmissionFlags: u16be(10) })

/** Reply INFO of type BLOCK_SIZE, all in bytes. */
export const InfoBlockSize = struct(14, {
  type: u16be(0),
  minimum: u32be(2),
  preferred: u32be(6),
  maximum: u32be(10), // payload
})

/** Reply META_CONTEXT: the identifier, then the context's name. The identifier in a reply to LIST has no meaning. */
export const MetaContextReply = struct(4, { contextId: u32be(0) })
/** The metadata context of holes and zeroes; its flags are `BlockStatus`. */
export const BASE_ALLOCATION = 'base:allocation'

/** Transmission flags of an export. */
export const TransmissionFlag = {
  HAS_FLAGS: 0x0001,
  READ_ONLY: 0x0002,
  SEND_FLUSH: 0x0004,
  SEND_FUA: 0x0008,
  ROTATIONAL: 0x0010,
  SEND_TRIM: 0x0020,
  SEND_WRITE_ZEROES: 0x0040,
  SEND_DF: 0x0080,
  CAN_MULTI_CONN: 0x0100,
  SEND_RESIZE: 0x0200,
  SEND_CACHE: 0x0400,
  SEND_FAST_ZERO: 0x0800,
  BLOCK_STATUS_PAYLOAD: 0x1000,
} as const
export type TransmissionFlag = (typeof TransmissionFlag)[keyof typeof TransmissionFlag]

/** A request of the transmission phase. `length` bytes of data follow a WRITE. */
export const Request = struct(28, {
  magic: u32be(0),
  flags: u16be(4),
  type: u16be(6),
  cookieHigh: u32be(8), // the client's: repeated in the reply, never interpreted
  cookieLow: u32be(12),
  offset: u53be(16), // bytes
  length: u32be(24), // bytes
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
  RESIZE: 8,
} as const
export type Command = (typeof Command)[keyof typeof Command]

export const CommandFlag = {
  FUA: 0x01,
  /** WRITE_ZEROES: allocate the blocks. */
  NO_HOLE: 0x02,
  /** READ: one data chunk, or an error. */
  DF: 0x04,
  /** BLOCK_STATUS: one extent of each context is enough. */
  REQ_ONE: 0x08,
  /** WRITE_ZEROES: fail with ENOTSUP if it were no faster than writing. */
  FAST_ZERO: 0x10,
  PAYLOAD_LEN: 0x20,
} as const
export type CommandFlag = (typeof CommandFlag)[keyof typeof CommandFlag]

/** A simple reply; the data of a successful READ follows. */
export const SimpleReply = struct(16, {
  magic: u32be(0),
  error: u32be(4),
  cookieHigh: u32be(8),
  cookieLow: u32be(12),
})

/** Header of a chunk of a structured reply; `length` bytes of payload follow. */
export const StructuredReply = struct(20, {
  magic: u32be(0),
  flags: u16be(4),
  type: u16be(6),
  cookieHigh: u32be(8),
  cookieLow: u32be(12),
  length: u32be(16),
})

/** Flag of the last chunk of a reply. */
export const CHUNK_DONE = 0x1

/** Types of chunks. Bit 15 marks an error. */
export const Chunk = {
  NONE: 0,
  OFFSET_DATA: 1,
  OFFSET_HOLE: 2,
  BLOCK_STATUS: 5,
  ERROR: 0x8001,
  ERROR_OFFSET: 0x8002,
} as const
export type Chunk = (typeof Chunk)[keyof typeof Chunk]

/** Payload of OFFSET_DATA; the data follows, at least one byte. */
export const OffsetDataChunk = struct(8, { offset: u53be(0) })

/** Payload of OFFSET_HOLE: that many bytes are zero. */
export const OffsetHoleChunk = struct(12, { offset: u53be(0), length: u32be(8) })

/** Payload of BLOCK_STATUS; at least one extent follows, and they are contiguous. */
export const BlockStatusChunk = struct(4, { contextId: u32be(0) })
export const BlockStatusExtent = struct(8, { length: u32be(0), statusFlags: u32be(4) })

/** Status flags of `base:allocation`; none means allocated data. */
export const BlockStatus = { HOLE: 0x1, ZERO: 0x2 } as const
export type BlockStatus = (typeof BlockStatus)[keyof typeof BlockStatus]

/** Payload of ERROR; a message follows. With ERROR_OFFSET eight bytes of offset follow the message. */
export const ErrorChunk = struct(6, { error: u32be(0), messageLength: u16be(4) })

/** Error numbers on the wire. They are the protocol's own and only happen to agree with Linux. */
export const NbdError = {
  SUCCESS: 0,
  EPERM: 1,
  EIO: 5,
  ENOMEM: 12,
  EINVAL: 22,
  ENOSPC: 28,
  EOVERFLOW: 75,
  ENOTSUP: 95,
  ESHUTDOWN: 108,
} as const
export type NbdError = (typeof NbdError)[keyof typeof NbdError]
