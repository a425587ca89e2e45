/**
 * NVMe over Fabrics: the Fabrics command set, properties and the vocabulary of discovery (NVM Express Base specification
 * 2.1, sections 3.1.4 and 6; NVMe over Fabrics 1.1 before it).
 */
import { bits, bytes, struct, text, u8, u16, u32 } from '../core/struct.ts'
import { STATUS_MASK, statusName } from './nvme-status.ts'

/** Opcode of every Fabrics command, on the admin queue and on I/O queues; FCTYPE tells them apart. */
export const FABRICS_OPCODE = 0x7f

/** FCTYPE. */
export const FabricsType = {
  PROPERTY_SET: 0x00,
  CONNECT: 0x01,
  PROPERTY_GET: 0x04,
  AUTHENTICATION_SEND: 0x05,
  AUTHENTICATION_RECEIVE: 0x06,
  DISCONNECT: 0x08,
} as const
export type FabricsType = (typeof FabricsType)[keyof typeof FabricsType]

/** Command specific status of Fabrics commands and of discovery: the numbers mean something else in the NVM command set. */
export const FabricsStatus = {
  INCOMPATIBLE_FORMAT: 0x180,
  CONTROLLER_BUSY: 0x181,
  CONNECT_INVALID_PARAMETERS: 0x182,
  CONNECT_RESTART_DISCOVERY: 0x183,
  CONNECT_INVALID_HOST: 0x184,
  INVALID_QUEUE_TYPE: 0x185,
  /** The discovery log changed while it was read in pieces. */
  DISCOVER_RESTART: 0x190,
  AUTHENTICATION_REQUIRED: 0x191,
} as const
export type FabricsStatus = (typeof FabricsStatus)[keyof typeof FabricsStatus]

const SENTENCES: Record<FabricsStatus, string> = {
  [FabricsStatus.INCOMPATIBLE_FORMAT]: 'the record format of the command is not supported',
  [FabricsStatus.CONTROLLER_BUSY]: 'the controller is busy or in use',
  [FabricsStatus.CONNECT_INVALID_PARAMETERS]: 'a parameter of the connect command is invalid',
  [FabricsStatus.CONNECT_RESTART_DISCOVERY]: 'the subsystem is not here, discover again',
  [FabricsStatus.CONNECT_INVALID_HOST]: 'the host is not allowed to connect to this subsystem',
  [FabricsStatus.INVALID_QUEUE_TYPE]: 'the command is not allowed on this type of queue',
  [FabricsStatus.DISCOVER_RESTART]: 'the discovery log changed while it was read',
  [FabricsStatus.AUTHENTICATION_REQUIRED]: 'the queue has to authenticate first',
}

/** As `statusName`, for the answer to a Fabrics command or to a read of the discovery log. */
export function fabricsStatusName(status: number): string {
  const code = status & STATUS_MASK
  const sentence = (SENTENCES as Record<number, string | undefined>)[code]
  return sentence === undefined ? statusName(status) : `${sentence} (0x${code.toString(16)})`
}

const header = {
  opcode: u8(0),
  psdt: bits(u8(1), 6, 2),
  cid: u16(2),
  fctype: u8(4),
}

/** What all Fabrics commands share (Base 2.1, section 6, "Fabrics Command Set"). */
export const FabricsSqe = struct(64, header)

/** Connect (Base 2.1, section 6.3). Its data is `ConnectData`. */
export const ConnectSqe = struct(64, {
  ...header,
  recfmt: u16(40), // 0
  qid: u16(42), // 0 is the admin queue
  sqsize: u16(44), // entries, 0's based
  cattr: u8(46),
  priority: bits(u8(46), 0, 2),
  disableSqFlow: bits(u8(46), 2, 1),
  kato: u32(48), // milliseconds; 0 is none. Only for the admin queue
})

/** Connect data, 1024 bytes. */
export const ConnectData = struct(1024, {
  hostid: bytes(0, 16),
  cntlid: u16(16),
  subnqn: text(256, 256, '\0'),
  hostnqn: text(512, 256, '\0'),
})

/** CNTLID of Connect on the admin queue: any controller of the subsystem (dynamic controller model). */
export const CNTLID_DYNAMIC = 0xffff
/** CNTLID of a discovery entry: any static controller. Connect then names one. */
export const CNTLID_STATIC = 0xfffe
/** The largest identifier of a controller; FFF0h to FFFFh are reserved. */
export const CNTLID_MAX = 0xffef

/** Dwords 0 and 1 of a successful Connect. */
export const ConnectResponse = struct(8, {
  cntlid: u16(0),
  authreq: u16(2), // `AuthenticationRequirement`
})

/** AUTHREQ: in-band authentication is required, or with a secure channel afterwards. */
export const AuthenticationRequirement = { TRANSACTION: 0x2, SECURE_CHANNEL: 0x4 } as const
export type AuthenticationRequirement =
  (typeof AuthenticationRequirement)[keyof typeof AuthenticationRequirement]

/** Dword 0 of a Connect that failed with CONNECT_INVALID_PARAMETERS: where the offending parameter starts. */
export const ConnectInvalid = struct(4, {
  ipo: u16(0), // bytes
  iattr: u8(2), // 0: in the submission queue entry, 1: in the data
})
/** IATTR. */
export const InvalidIn = { SQE: 0, DATA: 1 } as const
export type InvalidIn = (typeof InvalidIn)[keyof typeof InvalidIn]

/** Disconnect (Base 2.1, section 6.4): deletes the I/O queue that carries it. */
export const DisconnectSqe = struct(64, { ...header, recfmt: u16(40) })

/** Property Get (Base 2.1, section 6.5). The value is in dwords 0 and 1 of the completion. */
export const PropertyGetSqe = struct(64, {
  ...header,
  propertySize: bits(u8(40), 0, 3), // `PropertySize`
  ofst: u32(44),
})

/** Property Set (Base 2.1, section 6.6). */
export const PropertySetSqe = struct(64, {
  ...header,
  propertySize: bits(u8(40), 0, 3), // `PropertySize`
  ofst: u32(44),
  valueLow: u32(48),
  valueHigh: u32(52), // reserved for four bytes
})

/** ATTRIB of the property commands, bits 2:0. */
export const PropertySize = { BYTES_4: 0, BYTES_8: 1 } as const
export type PropertySize = (typeof PropertySize)[keyof typeof PropertySize]

/** Offsets of the properties that exist over Fabrics (Base 2.1, section 3.1.4). All have four bytes but CAP, which has eight. */
export const Property = { CAP: 0x00, VS: 0x08, CC: 0x14, CSTS: 0x1c, NSSR: 0x20, CRTO: 0x68 } as const
export type Property = (typeof Property)[keyof typeof Property]

/** CAP, Controller Capabilities. */
export const Cap = struct(8, {
  mqes: u16(0), // entries, 0's based
  cqr: bits(u32(0), 16, 1), // always 1 over Fabrics
  ams: bits(u32(0), 17, 2),
  to: bits(u32(0), 24, 8), // units of 500 ms
  dstrd: bits(u32(4), 0, 4), // 0 over Fabrics
  nssrs: bits(u32(4), 4, 1),
  css: bits(u32(4), 5, 8), // `CapCss`
  bps: bits(u32(4), 13, 1),
  cps: bits(u32(4), 14, 2),
  mpsmin: bits(u32(4), 16, 4), // 2^(12 + mpsmin) bytes
  mpsmax: bits(u32(4), 20, 4),
  pmrs: bits(u32(4), 24, 1),
  cmbs: bits(u32(4), 25, 1),
  nsss: bits(u32(4), 26, 1),
  crwms: bits(u32(4), 27, 1),
  crims: bits(u32(4), 28, 1),
})

/** CAP.CSS: which command sets there are. */
export const CapCss = { NVM: 0x01, IO_COMMAND_SETS: 0x40, NO_IO: 0x80 } as const
export type CapCss = (typeof CapCss)[keyof typeof CapCss]

/** VS, Version. Identify Controller's VER is the same. */
export const Vs = struct(4, { ter: u8(0), mnr: u8(1), mjr: u16(2) })
export const VERSION_1_4 = 0x0001_0400
export const VERSION_2_0 = 0x0002_0000
export const VERSION_2_1 = 0x0002_0100

/** CC, Controller Configuration. */
export const Cc = struct(4, {
  en: bits(u32(0), 0, 1),
  css: bits(u32(0), 4, 3), // `CcCss`
  mps: bits(u32(0), 7, 4), // 2^(12 + mps) bytes
  ams: bits(u32(0), 11, 3),
  shn: bits(u32(0), 14, 2), // `ShutdownNotification`
  iosqes: bits(u32(0), 16, 4), // log2 of bytes
  iocqes: bits(u32(0), 20, 4), // log2 of bytes
  crime: bits(u32(0), 24, 1),
})

/** CC.CSS: which command sets are in use. */
export const CcCss = { NVM: 0, ALL: 6, ADMIN_ONLY: 7 } as const
export type CcCss = (typeof CcCss)[keyof typeof CcCss]

/** CC.SHN. */
export const ShutdownNotification = { NONE: 0, NORMAL: 1, ABRUPT: 2 } as const
export type ShutdownNotification = (typeof ShutdownNotification)[keyof typeof ShutdownNotification]

/** CSTS, Controller Status. */
export const Csts = struct(4, {
  rdy: bits(u32(0), 0, 1),
  cfs: bits(u32(0), 1, 1), // fatal: only a reset helps
  shst: bits(u32(0), 2, 2), // `ShutdownStatus`
  nssro: bits(u32(0), 4, 1),
  pp: bits(u32(0), 5, 1),
  st: bits(u32(0), 6, 1),
})

/** CSTS.SHST. */
export const ShutdownStatus = { NORMAL: 0, OCCURRING: 1, COMPLETE: 2 } as const
export type ShutdownStatus = (typeof ShutdownStatus)[keyof typeof ShutdownStatus]

/** What a host writes to NSSR to reset the subsystem: "NVMe". */
export const NSSR_RESET = 0x4e56_4d65

/** CRTO, Controller Ready Timeouts, units of 500 ms. */
export const Crto = struct(4, { crwmt: u16(0), crimt: u16(2) })

/** The well-known name of every discovery subsystem (Base 2.1, section 4.7). */
export const DISCOVERY_NQN = 'nqn.2014-08.org.nvmexpress.discovery'
/** The prefix of a name made from a UUID. */
export const UUID_NQN_PREFIX = 'nqn.2014-08.org.nvmexpress:uuid:'
/** Bytes of the longest NQN without its NUL; the fields that hold one have `NQN_FIELD_SIZE`. */
export const NQN_LENGTH_MAX = 223
export const NQN_FIELD_SIZE = 256

/** TRTYPE of a discovery entry. */
export const TransportType = { RDMA: 1, FC: 2, TCP: 3, LOOP: 254 } as const
export type TransportType = (typeof TransportType)[keyof typeof TransportType]

/** ADRFAM. */
export const AddressFamily = { IPV4: 1, IPV6: 2, INFINIBAND: 3, FC: 4, LOOP: 254 } as const
export type AddressFamily = (typeof AddressFamily)[keyof typeof AddressFamily]

/** SUBTYPE: what a discovery entry points to. */
export const SubsystemType = { REFERRAL: 1, NVM: 2, CURRENT_DISCOVERY: 3 } as const
export type SubsystemType = (typeof SubsystemType)[keyof typeof SubsystemType]

/** TREQ: the secure channel in bits 1:0, and bit 2. */
export const TransportRequirement = {
  SECURE_CHANNEL_NOT_SPECIFIED: 0,
  SECURE_CHANNEL_REQUIRED: 1,
  SECURE_CHANNEL_NOT_REQUIRED: 2,
  /** The controller can do without SQ flow control. */
  DISABLE_SQ_FLOW: 4,
} as const
export type TransportRequirement = (typeof TransportRequirement)[keyof typeof TransportRequirement]

/** EFLAGS. */
export const DiscoveryFlag = {
  /** DUPRETINFO: the same information comes from every port of the discovery subsystem. */
  DUPLICATE: 0x1,
  /** EPCSD: explicit persistent connections are supported. */
  PERSISTENT_CONNECTION: 0x2,
  /** NCC: this discovery controller has no connection to a central discovery controller. */
  NO_CDC_CONNECTIVITY: 0x4,
} as const
export type DiscoveryFlag = (typeof DiscoveryFlag)[keyof typeof DiscoveryFlag]

/** SECTYPE, byte 0 of TCP's transport specific address subtype (TCP Transport 1.1, section 3.7). */
export const SecurityType = { NONE: 0, TLS_1_2: 1, TLS_1_3: 2 } as const
export type SecurityType = (typeof SecurityType)[keyof typeof SecurityType]
