/**
 * What a host may send, checked in the order of the specification's fields (NVMe TCP Transport specification 1.1,
 * section 3.6.2), one reason each. Everything behind these functions may rely on it.
 */
import {
  CapsuleCmd,
  FatalErrorStatus,
  H2cData,
  IcReq,
  PDA_MAX,
  PduFlag,
  PduHeader,
  PduType,
  PFV_1_0,
  TermReq,
} from '../../spec/nvme-tcp.ts'

/** Why a connection is given up: what a termination request says, and the log with it. */
export interface PduFault {
  readonly fes: FatalErrorStatus
  /** The byte of the header that is wrong, where FES wants one. */
  readonly fei: number
  readonly reason: string
}

const fault = (fes: FatalErrorStatus, fei: number, reason: string): PduFault => ({ fes, fei, reason })
const { INVALID_PDU_HEADER_FIELD, PDU_SEQUENCE_ERROR, DATA_TRANSFER_OUT_OF_RANGE } = FatalErrorStatus

export const Fault = {
  TYPE: fault(INVALID_PDU_HEADER_FIELD, PduHeader.type.offset, 'a PDU type that no host sends'),
  NOT_FIRST: fault(PDU_SEQUENCE_ERROR, 0, 'a second ICReq'),
  IC_MISSING: fault(PDU_SEQUENCE_ERROR, 0, 'a PDU before the ICReq'),
  HEADER_DIGEST_FLAG: fault(INVALID_PDU_HEADER_FIELD, PduHeader.flags.offset, 'HDGSTF is not as agreed'),
  DATA_DIGEST_FLAG: fault(INVALID_PDU_HEADER_FIELD, PduHeader.flags.offset, 'DDGSTF is not as agreed'),
  HLEN: fault(INVALID_PDU_HEADER_FIELD, PduHeader.hlen.offset, "an HLEN that is not the type's"),
  PDO: fault(
    INVALID_PDU_HEADER_FIELD,
    PduHeader.pdo.offset,
    'a PDO within the header, beyond the PDU or not aligned',
  ),
  PLEN: fault(
    INVALID_PDU_HEADER_FIELD,
    PduHeader.plen.offset,
    'a PLEN that the type or its limits do not allow',
  ),
  HEADER_DIGEST: fault(FatalErrorStatus.HEADER_DIGEST_ERROR, 0, 'a wrong header digest'),
  PFV: fault(FatalErrorStatus.UNSUPPORTED_PARAMETER, IcReq.pfv.offset, 'a PDU format version other than 1.0'),
  HPDA: fault(INVALID_PDU_HEADER_FIELD, IcReq.hpda.offset, 'an HPDA of more than 31'),
  CCCID: fault(INVALID_PDU_HEADER_FIELD, H2cData.cccid.offset, "a CCCID that is not the R2T's"),
  TTAG: fault(INVALID_PDU_HEADER_FIELD, H2cData.ttag.offset, 'a TTAG that no outstanding R2T has'),
  DATAO: fault(DATA_TRANSFER_OUT_OF_RANGE, H2cData.datao.offset, 'a DATAO that does not follow on'),
  DATAL: fault(INVALID_PDU_HEADER_FIELD, H2cData.datal.offset, 'a DATAL that is not the length of the data'),
  BEYOND: fault(DATA_TRANSFER_OUT_OF_RANGE, H2cData.datal.offset, 'data beyond the end of the R2T'),
  LIMIT: fault(
    FatalErrorStatus.DATA_TRANSFER_LIMIT_EXCEEDED,
    H2cData.datal.offset,
    'more data than MAXH2CDATA',
  ),
  LAST: fault(INVALID_PDU_HEADER_FIELD, PduHeader.flags.offset, 'LAST_PDU before the end of the R2T'),
} as const

/** What was agreed with the host, and the limits it has been told. Changed as the connection gets on. */
export interface PduRules {
  /** The ICReq has arrived. */
  isInitialized: boolean
  /** `DIGEST_SIZE` when agreed, else 0. */
  headerDigest: number
  dataDigest: number
  /** Bytes of data in a command capsule. */
  capsuleDataMax: number
  /** Bytes of data in one H2CData. */
  maxh2cdata: number
}

/** HLEN by PDU type; 0 for what a host does not send. */
const HLEN = new Uint8Array(256)
HLEN[PduType.IC_REQ] = IcReq.size
HLEN[PduType.H2C_TERM_REQ] = TermReq.size
HLEN[PduType.CAPSULE_CMD] = CapsuleCmd.size
HLEN[PduType.H2C_DATA] = H2cData.size

/**
 * The common header, as soon as its eight bytes are there: everything by which a PDU is taken apart. `word` is its first
 * four bytes, so that a header costs two loads.
 */
export function checkCommonHeader(word: number, plen: number, rules: PduRules): PduFault | null {
  const type = word & 0xff
  const hlen = HLEN[type]!
  if (hlen === 0) return Fault.TYPE
  // A termination request is never answered with another one, so there is nothing to find fault with.
  if (type === PduType.H2C_TERM_REQ) return null
  if (type === PduType.IC_REQ) return checkIcHeader(word, plen, rules)
  if (!rules.isInitialized) return Fault.IC_MISSING

  const flags = (word >>> 8) & 0xff
  const bare = hlen + rules.headerDigest
  const hasData = plen > bare
  if (((flags & PduFlag.HDGSTF) !== 0) !== rules.headerDigest > 0) return Fault.HEADER_DIGEST_FLAG
  if (((flags & PduFlag.DDGSTF) !== 0) !== (hasData && rules.dataDigest > 0)) return Fault.DATA_DIGEST_FLAG
  if (((word >>> 16) & 0xff) !== hlen) return Fault.HLEN
  if (!hasData) return plen === bare && type === PduType.CAPSULE_CMD ? null : Fault.PLEN

  const pdo = word >>> 24
  if (pdo < bare || pdo % 4 !== 0 || pdo >= plen) return Fault.PDO
  const dataBytes = plen - pdo - rules.dataDigest
  if (dataBytes <= 0) return Fault.PLEN
  if (type === PduType.CAPSULE_CMD) return dataBytes > rules.capsuleDataMax ? Fault.PLEN : null
  return dataBytes > rules.maxh2cdata ? Fault.LIMIT : null
}

function checkIcHeader(word: number, plen: number, rules: PduRules): PduFault | null {
  if (rules.isInitialized) return Fault.NOT_FIRST
  if (((word >>> 16) & 0xff) !== IcReq.size) return Fault.HLEN
  return plen === IcReq.size ? null : Fault.PLEN
}

/** Bytes from the start of a PDU of a checked type to the end of its header and header digest. */
export function headerBytes(type: number, rules: PduRules): number {
  return HLEN[type]! + (type >= PduType.CAPSULE_CMD ? rules.headerDigest : 0)
}

/** The rest of an ICReq. */
export function checkIcReq(view: DataView, at: number): PduFault | null {
  if (IcReq.pfv.get(view, at) !== PFV_1_0) return Fault.PFV
  return IcReq.hpda.get(view, at) > PDA_MAX ? Fault.HPDA : null
}

/** What an H2CData is measured by: the request whose R2T it answers. */
export interface Transferring {
  readonly cid: number
  /** Bytes asked for, and how many of them have come. */
  readonly lengthBytes: number
  readonly arrivedBytes: number
}

/** The rest of an H2CData. `request` is the one that waits for data under the PDU's TTAG. */
export function checkH2cData(
  view: DataView,
  at: number,
  dataBytes: number,
  request: Transferring | undefined,
): PduFault | null {
  if (request === undefined) return Fault.TTAG
  if (H2cData.cccid.get(view, at) !== request.cid) return Fault.CCCID
  // The host sends in order, as there is one R2T for a command (section 3.3.2.1).
  if (H2cData.datao.get(view, at) !== request.arrivedBytes) return Fault.DATAO
  if (H2cData.datal.get(view, at) !== dataBytes) return Fault.DATAL
  const arrived = request.arrivedBytes + dataBytes
  if (arrived > request.lengthBytes) return Fault.BEYOND
  // A missing LAST_PDU on the last one does no harm: the length says the same.
  const isLast = (PduHeader.flags.get(view, at) & PduFlag.LAST_PDU) !== 0
  return isLast && arrived < request.lengthBytes ? Fault.LAST : null
}

/** One line for the log: the common header as it came. */
export function describeHeader(view: DataView, at: number): string {
  const hex = (value: number): string => `${value.toString(16).padStart(2, '0')}h`
  return (
    `type ${hex(PduHeader.type.get(view, at))}, flags ${hex(PduHeader.flags.get(view, at))}, ` +
    `HLEN ${PduHeader.hlen.get(view, at)}, PDO ${PduHeader.pdo.get(view, at)}, ` +
    `PLEN ${PduHeader.plen.get(view, at)}`
  )
}
