/**
 * Everything that a controller may send wrongly, each with what the host answers: checked in the order in which the
 * fields stand in the PDU (NVMe TCP Transport specification 1.1, section 3.6.2), in two functions. After them the code
 * takes the fields at their word.
 */
import {
  C2hData,
  CapsuleResp,
  FatalErrorStatus,
  IcResp,
  MAXH2CDATA_MIN,
  PDA_MAX,
  PduFlag,
  PduHeader,
  PduType,
  PFV_1_0,
  R2t,
  TERM_PLEN_MAX,
  TermReq,
} from '../../spec/nvme-tcp.ts'
import { type Slots, Transfer } from './slots.ts'

export interface Fault {
  readonly fes: FatalErrorStatus
  /** Byte of the PDU at fault; 0 where the fault is not one field's. */
  readonly fei: number
  readonly reason: string
}

const header = (fei: number, reason: string): Fault => ({
  fes: FatalErrorStatus.INVALID_PDU_HEADER_FIELD,
  fei,
  reason,
})
const sequence = (reason: string): Fault => ({ fes: FatalErrorStatus.PDU_SEQUENCE_ERROR, fei: 0, reason })
const range = (reason: string): Fault => ({
  fes: FatalErrorStatus.DATA_TRANSFER_OUT_OF_RANGE,
  fei: 0,
  reason,
})
const unsupported = (fei: number, reason: string): Fault => ({
  fes: FatalErrorStatus.UNSUPPORTED_PARAMETER,
  fei,
  reason,
})

const FAULTS = {
  type: header(PduHeader.type.offset, 'a PDU of a type that controllers do not send'),
  early: sequence('a PDU before the connection was initialised'),
  late: sequence('a second ICResp'),
  flags: header(PduHeader.flags.offset, 'flags that this PDU does not have'),
  success: header(PduHeader.flags.offset, 'SUCCESS without LAST_PDU'),
  hlen: header(PduHeader.hlen.offset, 'a header of another length'),
  pdo: header(PduHeader.pdo.offset, 'data at an impossible offset'),
  plen: header(PduHeader.plen.offset, 'an impossible PDU length'),
  pfv: unsupported(IcResp.pfv.offset, 'an unknown PDU format version'),
  cpda: header(IcResp.cpda.offset, 'a data alignment beyond 128 bytes'),
  digest: header(IcResp.dgst.offset, 'digests that were not asked for'),
  maxh2cdata: header(IcResp.maxh2cdata.offset, 'a MAXH2CDATA that is below 4096 or no multiple of four'),
  cid: header(CapsuleResp.cqe.offset + 12, 'the completion of a command that is not outstanding'),
  c2hCccid: header(C2hData.cccid.offset, 'data for a command that is not outstanding'),
  c2hDirection: header(C2hData.cccid.offset, 'data for a command that reads none'),
  c2hDatao: header(C2hData.datao.offset, 'data out of order'),
  c2hDatal: header(C2hData.datal.offset, 'a data length that is zero or not what the PDU holds'),
  c2hRange: range('more data than the command asked for'),
  c2hLast: sequence('LAST_PDU before all data has come'),
  r2tCccid: header(R2t.cccid.offset, 'an R2T for a command that is not outstanding'),
  r2tDirection: header(R2t.cccid.offset, 'an R2T for a command that has no data left to send'),
  r2tLimit: {
    fes: FatalErrorStatus.R2T_LIMIT_EXCEEDED,
    fei: 0,
    reason: 'a second R2T while one is outstanding',
  },
  r2tOffset: header(R2t.r2to.offset, 'an R2T out of order'),
  r2tLength: header(R2t.r2tl.offset, 'an R2T for nothing'),
  r2tRange: range('an R2T beyond the data of its command'),
} as const satisfies Record<string, Fault>

/** Type, flags and lengths: the first eight bytes of a PDU, once there are eight. */
export function headerFault(view: DataView, at: number, isInitialised: boolean): Fault | null {
  const type = view.getUint8(at)
  const flags = view.getUint8(at + 1)
  const hlen = view.getUint8(at + 2)
  const pdo = view.getUint8(at + 3)
  const plen = view.getUint32(at + 4, true)
  switch (type) {
    case PduType.C2H_DATA:
      if (!isInitialised) return FAULTS.early
      if ((flags & ~(PduFlag.LAST_PDU | PduFlag.SUCCESS)) !== 0) return FAULTS.flags
      if (flags === PduFlag.SUCCESS) return FAULTS.success
      if (hlen !== C2hData.size) return FAULTS.hlen
      if (pdo < hlen || pdo % 4 !== 0) return FAULTS.pdo
      return plen < pdo ? FAULTS.plen : null
    case PduType.CAPSULE_RESP:
    case PduType.R2T:
      if (!isInitialised) return FAULTS.early
      if (flags !== 0) return FAULTS.flags
      // CapsuleResp and R2T are of one size.
      if (hlen !== R2t.size) return FAULTS.hlen
      return plen === R2t.size ? null : FAULTS.plen
    case PduType.IC_RESP:
      if (isInitialised) return FAULTS.late
      if (hlen !== IcResp.size) return FAULTS.hlen
      return plen === IcResp.size ? null : FAULTS.plen
    case PduType.C2H_TERM_REQ:
      if (hlen !== TermReq.size) return FAULTS.hlen
      return plen >= TermReq.size && plen <= TERM_PLEN_MAX ? null : FAULTS.plen
    default:
      return FAULTS.type
  }
}

/** The rest of the header, once it is there whole. */
export function bodyFault(view: DataView, at: number, slots: Slots): Fault | null {
  switch (view.getUint8(at)) {
    case PduType.C2H_DATA:
      return c2hDataFault(view, at, slots)
    case PduType.CAPSULE_RESP: {
      const cid = view.getUint16(at + CapsuleResp.cqe.offset + 12, true)
      return isActive(slots, cid) ? null : FAULTS.cid
    }
    case PduType.R2T:
      return r2tFault(view, at, slots)
    case PduType.IC_RESP:
      return icRespFault(view, at)
    default:
      return null
  }
}

function isActive(slots: Slots, cid: number): boolean {
  return cid < slots.depth && slots.active[cid] === 1
}

function icRespFault(view: DataView, at: number): Fault | null {
  const maxh2cdata = IcResp.maxh2cdata.get(view, at)
  if (IcResp.pfv.get(view, at) !== PFV_1_0) return FAULTS.pfv
  if (IcResp.cpda.get(view, at) > PDA_MAX) return FAULTS.cpda
  if (IcResp.dgst.get(view, at) !== 0) return FAULTS.digest
  return maxh2cdata < MAXH2CDATA_MIN || maxh2cdata % 4 !== 0 ? FAULTS.maxh2cdata : null
}

function c2hDataFault(view: DataView, at: number, slots: Slots): Fault | null {
  const cid = view.getUint16(at + 8, true)
  const datao = view.getUint32(at + 12, true)
  const datal = view.getUint32(at + 16, true)
  if (!isActive(slots, cid)) return FAULTS.c2hCccid
  if (slots.transfer[cid] !== Transfer.FROM_CONTROLLER) return FAULTS.c2hDirection
  if (datao !== slots.movedBytes[cid]) return FAULTS.c2hDatao
  if (datal === 0 || datal !== view.getUint32(at + 4, true) - view.getUint8(at + 3)) return FAULTS.c2hDatal
  if (datao + datal > slots.lengthBytes[cid]!) return FAULTS.c2hRange
  const isLast = (view.getUint8(at + 1) & PduFlag.LAST_PDU) !== 0
  return isLast && datao + datal !== slots.lengthBytes[cid] ? FAULTS.c2hLast : null
}

function r2tFault(view: DataView, at: number, slots: Slots): Fault | null {
  const cid = view.getUint16(at + 8, true)
  const r2to = view.getUint32(at + 12, true)
  const r2tl = view.getUint32(at + 16, true)
  if (!isActive(slots, cid)) return FAULTS.r2tCccid
  if (slots.transfer[cid] !== Transfer.TO_CONTROLLER) return FAULTS.r2tDirection
  if (slots.r2tBytes[cid] !== 0) return FAULTS.r2tLimit
  if (slots.movedBytes[cid] === slots.lengthBytes[cid]) return FAULTS.r2tDirection
  if (r2to !== slots.movedBytes[cid]) return FAULTS.r2tOffset
  if (r2tl === 0) return FAULTS.r2tLength
  return r2to + r2tl > slots.lengthBytes[cid]! ? FAULTS.r2tRange : null
}
