/**
 * NVMe/TCP protocol data units (NVMe TCP Transport specification 1.1, section 3.6.2, "PDUs").
 *
 *     byte 0     1      2     3     4        8               HLEN             PDO               PLEN
 *          +-----+------+-----+-----+--------+----------------+-------+--------+------+---------+
 *          |type |flags |hlen |pdo  | plen   | type specific  | hdgst | pad    | data | ddgst   |
 *          +-----+------+-----+-----+--------+----------------+-------+--------+------+---------+
 *
 * HLEN counts neither digest; PLEN counts everything. A digest is four bytes, there only when its flag is set.
 */
import { bytes, struct, u8, u16, u32 } from '../core/struct.ts'

/** PDU-Type. 08h is not assigned. */
export const PduType = {
  IC_REQ: 0x00,
  IC_RESP: 0x01,
  H2C_TERM_REQ: 0x02,
  C2H_TERM_REQ: 0x03,
  CAPSULE_CMD: 0x04,
  CAPSULE_RESP: 0x05,
  H2C_DATA: 0x06,
  C2H_DATA: 0x07,
  R2T: 0x09,
} as const
export type PduType = (typeof PduType)[keyof typeof PduType]

/** FLAGS. Which are allowed depends on the type; a PDU that cannot have data never has DDGSTF. */
export const PduFlag = {
  /** HDGSTF: a header digest follows the header. */
  HDGSTF: 0x01,
  /** DDGSTF: a data digest follows the data. */
  DDGSTF: 0x02,
  /** LAST_PDU: the last data PDU of this R2T (H2CData) or of this command (C2HData). */
  LAST_PDU: 0x04,
  /** SUCCESS, C2HData only and with LAST_PDU: the command succeeded and no CapsuleResp will follow. */
  SUCCESS: 0x08,
} as const
export type PduFlag = (typeof PduFlag)[keyof typeof PduFlag]

/** DGST of ICReq (wanted by the host) and ICResp (granted by the controller). */
export const DigestEnable = { HEADER: 0x01, DATA: 0x02 } as const
export type DigestEnable = (typeof DigestEnable)[keyof typeof DigestEnable]

/** FES of a termination request. 05h names the R2T limit to the controller and the data limit to the host. */
export const FatalErrorStatus = {
  /** FEI is the byte offset of the offending field in the PDU header. */
  INVALID_PDU_HEADER_FIELD: 0x01,
  PDU_SEQUENCE_ERROR: 0x02,
  /** FEI is the digest that was received. */
  HEADER_DIGEST_ERROR: 0x03,
  DATA_TRANSFER_OUT_OF_RANGE: 0x04,
  /** Sent by a host that got more R2Ts than its MAXR2T allows. */
  R2T_LIMIT_EXCEEDED: 0x05,
  /** Sent by a controller that got more in one H2CData than its MAXH2CDATA allows. */
  DATA_TRANSFER_LIMIT_EXCEEDED: 0x05,
  /** FEI is the byte offset of the offending field in the PDU header. */
  UNSUPPORTED_PARAMETER: 0x06,
} as const
export type FatalErrorStatus = (typeof FatalErrorStatus)[keyof typeof FatalErrorStatus]

/** PDU Format Version 1.0, the only one. */
export const PFV_1_0 = 0
/** The port of I/O controllers, assigned by IANA. */
export const NVME_TCP_PORT = 4420
/** The well-known port of discovery controllers, assigned by IANA. */
export const NVME_TCP_DISCOVERY_PORT = 8009
/** Bytes of a header or data digest (CRC32C, little-endian). */
export const DIGEST_SIZE = 4
/** HPDA and CPDA count dwords, 0's based, and go no further than this: alignment to 128 bytes. */
export const PDA_MAX = 31
/** Bytes: the smallest MAXH2CDATA a controller may announce; it is a multiple of four. */
export const MAXH2CDATA_MIN = 4096
/** Bytes: a termination request carries at most this much of the header that it complains of. */
export const TERM_DATA_MAX = 128
/** Bytes: the largest PLEN of a termination request, header and data. */
export const TERM_PLEN_MAX = 152
/** Bytes a controller must accept in the capsule of a Fabrics or Admin command on the admin queue. */
export const ADMIN_IN_CAPSULE_SIZE = 8192

const header = { type: u8(0), flags: u8(1), hlen: u8(2), pdo: u8(3), plen: u32(4) }

/** PDU Common Header (CH), the first eight bytes of every PDU. */
export const PduHeader = struct(8, header)

/** Initialize Connection Request, host to controller, first on the connection. PLEN 128. */
export const IcReq = struct(128, {
  ...header,
  pfv: u16(8),
  hpda: u8(10), // dwords, 0's based: the alignment the host wants for data from the controller
  dgst: u8(11),
  maxr2t: u32(12), // 0's based: 0 means one outstanding R2T per command
})

/** Initialize Connection Response, the controller's answer. PLEN 128. */
export const IcResp = struct(128, {
  ...header,
  pfv: u16(8),
  cpda: u8(10), // dwords, 0's based: the alignment the controller wants for data from the host
  dgst: u8(11),
  maxh2cdata: u32(12), // bytes, not 0's based
})

/** H2CTermReq and C2HTermReq: the sender gives up the connection and says why. The offending header follows. */
export const TermReq = struct(24, {
  ...header,
  fes: u16(8),
  fei: u32(10), // not aligned
})

/** Command Capsule: `nvme.ts`'s `Sqe` at `sqe.offset`, in-capsule data from PDO on. */
export const CapsuleCmd = struct(72, { ...header, sqe: bytes(8, 64) })

/** Response Capsule: `nvme.ts`'s `Cqe` at `cqe.offset`. */
export const CapsuleResp = struct(24, { ...header, cqe: bytes(8, 16) })

/** Host To Controller Data, an answer to an R2T. */
export const H2cData = struct(24, {
  ...header,
  cccid: u16(8),
  ttag: u16(10), // of the R2T
  datao: u32(12), // bytes from the start of the command's data; a multiple of four
  datal: u32(16),
})

/** Controller To Host Data. */
export const C2hData = struct(24, {
  ...header,
  cccid: u16(8),
  datao: u32(12), // bytes from the start of the command's data; a multiple of four
  datal: u32(16),
})

/** Ready To Transfer: the controller asks for a part of a command's data. */
export const R2t = struct(24, {
  ...header,
  cccid: u16(8),
  ttag: u16(10), // chosen by the controller, repeated in each H2CData
  r2to: u32(12), // bytes from the start of the command's data; a multiple of four
  r2tl: u32(16),
})
