/**
 * NVMe commands and completions (NVM Express Base specification 2.1 and NVM Command Set specification 1.1). Only what
 * a message-based transport sees: data pointers are SGL descriptors. Status codes are in `nvme-status.ts`.
 */
import { bits, struct, u8, u16, u32, u53 } from '../core/struct.ts'

/** Opcodes of the admin queue (Base 2.1, section 5, "Admin Command Set"). Those of Fabrics are in `nvmf.ts`. */
export const AdminOpcode = {
  DELETE_IO_SQ: 0x00,
  CREATE_IO_SQ: 0x01,
  GET_LOG_PAGE: 0x02,
  DELETE_IO_CQ: 0x04,
  CREATE_IO_CQ: 0x05,
  IDENTIFY: 0x06,
  ABORT: 0x08,
  SET_FEATURES: 0x09,
  GET_FEATURES: 0x0a,
  ASYNC_EVENT_REQUEST: 0x0c,
  NAMESPACE_MANAGEMENT: 0x0d,
  FIRMWARE_COMMIT: 0x10,
  FIRMWARE_IMAGE_DOWNLOAD: 0x11,
  DEVICE_SELF_TEST: 0x14,
  NAMESPACE_ATTACHMENT: 0x15,
  KEEP_ALIVE: 0x18,
  DIRECTIVE_SEND: 0x19,
  DIRECTIVE_RECEIVE: 0x1a,
  VIRTUALIZATION_MANAGEMENT: 0x1c,
  NVME_MI_SEND: 0x1d,
  NVME_MI_RECEIVE: 0x1e,
  DOORBELL_BUFFER_CONFIG: 0x7c,
  FORMAT_NVM: 0x80,
  SECURITY_SEND: 0x81,
  SECURITY_RECEIVE: 0x82,
  SANITIZE: 0x84,
  GET_LBA_STATUS: 0x86,
} as const
export type AdminOpcode = (typeof AdminOpcode)[keyof typeof AdminOpcode]

/** Opcodes of an I/O queue (NVM Command Set 1.1, section 3.3, and Base 2.1, section 7). */
export const NvmOpcode = {
  FLUSH: 0x00,
  WRITE: 0x01,
  READ: 0x02,
  WRITE_UNCORRECTABLE: 0x04,
  COMPARE: 0x05,
  WRITE_ZEROES: 0x08,
  DATASET_MANAGEMENT: 0x09,
  VERIFY: 0x0c,
  RESERVATION_REGISTER: 0x0d,
  RESERVATION_REPORT: 0x0e,
  RESERVATION_ACQUIRE: 0x11,
  RESERVATION_RELEASE: 0x15,
  CANCEL: 0x18,
  COPY: 0x19,
} as const
export type NvmOpcode = (typeof NvmOpcode)[keyof typeof NvmOpcode]

/** FUSE: whether the command is half of a fused operation. */
export const Fuse = { NORMAL: 0, FIRST: 1, SECOND: 2 } as const
export type Fuse = (typeof Fuse)[keyof typeof Fuse]

/** PSDT: PRP or SGL. Over Fabrics it is 1 or 2, and no command has separate metadata. */
export const Psdt = { PRP: 0, SGL_MPTR_CONTIGUOUS: 1, SGL_MPTR_SGL: 2 } as const
export type Psdt = (typeof Psdt)[keyof typeof Psdt]

/** Whole SGL identifier bytes, type in the upper half and subtype in the lower (Base 2.1, section 4.3.2). */
export const SglId = {
  /** Data Block by address, in host memory. */
  DATA_BLOCK_ADDRESS: 0x00,
  /** Data Block by offset: the data is in the capsule, `address` bytes after the start of the in-capsule data. */
  DATA_BLOCK_OFFSET: 0x01,
  /** Transport Data Block: the transport moves the data, as NVMe/TCP does with R2T and data PDUs. `address` is 0. */
  TRANSPORT_DATA_BLOCK: 0x5a,
  /** Keyed Data Block, RDMA's. */
  KEYED_DATA_BLOCK: 0x40,
} as const
export type SglId = (typeof SglId)[keyof typeof SglId]

/** NSID that means every namespace. */
export const NSID_BROADCAST = 0xffff_ffff

const header = {
  opcode: u8(0),
  fuse: bits(u8(1), 0, 2),
  psdt: bits(u8(1), 6, 2),
  cid: u16(2),
  nsid: u32(4),
}

/**
 * Common Command Format (Base 2.1, section 4.1, "Submission Queue Entry"), with SGL1 as the data pointer. Flush, Keep Alive and
 * Asynchronous Event Request have no fields of their own.
 */
export const Sqe = struct(64, {
  ...header,
  cdw2: u32(8),
  cdw3: u32(12),
  mptr: u53(16),
  sgl1Address: u53(24),
  sgl1Length: u32(32), // bytes
  sgl1Id: u8(39),
  sgl1Subtype: bits(u8(39), 0, 4),
  sgl1Type: bits(u8(39), 4, 4),
  cdw10: u32(40),
  cdw11: u32(44),
  cdw12: u32(48),
  cdw13: u32(52),
  cdw14: u32(56),
  cdw15: u32(60),
})

/**
 * Completion Queue Entry, 16 bytes (Base 2.1, section 4.2.1). `status` is all 15 bits of the status field and `phase` the bit
 * below it; over Fabrics the phase is reserved. `status & 0x7ff` is a `Status`.
 */
export const Cqe = struct(16, {
  dw0: u32(0),
  dw1: u32(4),
  sqhd: u16(8),
  sqid: u16(10), // reserved over Fabrics
  cid: u16(12),
  phase: bits(u16(14), 0, 1),
  status: bits(u16(14), 1, 15),
  sc: bits(u16(14), 1, 8),
  sct: bits(u16(14), 9, 3),
  crd: bits(u16(14), 12, 2), // index of the Command Retry Delay Time in Identify Controller, 0 for none
  more: bits(u16(14), 14, 1),
  dnr: bits(u16(14), 15, 1),
})

/** Read, Write and Compare (NVM Command Set 1.1, sections 3.3.4, 3.3.6 and 3.3.1); Verify has the same layout. */
export const ReadWriteSqe = struct(64, {
  ...header,
  slba: u53(40), // CDW10 and CDW11
  nlb: u16(48), // 0's based: 0 means one block
  dtype: bits(u32(48), 20, 4),
  stc: bits(u32(48), 24, 1),
  prinfo: bits(u32(48), 26, 4),
  fua: bits(u32(48), 30, 1),
  lr: bits(u32(48), 31, 1),
  dsm: u8(52),
  dspec: u16(54),
})

/** Write Zeroes (NVM Command Set 1.1, section 3.3.8). No data is transferred. */
export const WriteZeroesSqe = struct(64, {
  ...header,
  slba: u53(40),
  nlb: u16(48), // 0's based
  nsz: bits(u32(48), 23, 1), // the whole namespace
  deac: bits(u32(48), 25, 1), // the host asks to deallocate; the blocks still have to read as zeroes
  prinfo: bits(u32(48), 26, 4),
  fua: bits(u32(48), 30, 1),
  lr: bits(u32(48), 31, 1),
})

/** Dataset Management (NVM Command Set 1.1, section 3.3.3). The data is `nr` + 1 `DsmRange`s. */
export const DsmSqe = struct(64, {
  ...header,
  nr: u8(40), // 0's based: 0 means one range
  idr: bits(u32(44), 0, 1),
  idw: bits(u32(44), 1, 1),
  ad: bits(u32(44), 2, 1), // deallocate; without it the command is only a hint
})

/** A range of Dataset Management. */
export const DsmRange = struct(16, {
  cattr: u32(0),
  nlb: u32(4), // blocks, not 0's based
  slba: u53(8),
})
/** The most ranges a Dataset Management command can carry. */
export const DSM_RANGES_MAX = 256

/** Abort (Base 2.1, section 5.1.1). Bit 0 of the completion's `dw0` is 1 when the command was not aborted. */
export const AbortSqe = struct(64, { ...header, sqid: u16(40), abortCid: u16(42) })

/** Identify (Base 2.1, section 5.1.13). The structures are in `nvme-identify.ts`. */
export const IdentifySqe = struct(64, {
  ...header,
  cns: u8(40),
  cntid: u16(42),
  cnsid: u16(44), // CNS Specific Identifier
  csi: u8(47),
  uidx: bits(u8(56), 0, 7),
})

/** Get Log Page (Base 2.1, section 5.1.12). The number of dwords and the offset each come in two halves. */
export const GetLogPageSqe = struct(64, {
  ...header,
  lid: u8(40),
  lsp: bits(u8(41), 0, 7),
  rae: bits(u8(41), 7, 1), // retain the asynchronous event: do not re-arm it
  numdl: u16(42), // dwords, 0's based over both halves
  numdu: u16(44),
  lsi: u16(46),
  lpol: u32(48), // bytes, a multiple of four, unless `ot`
  lpou: u32(52),
  uidx: bits(u8(56), 0, 7),
  ot: bits(u32(56), 23, 1), // offset type: 1 means the offset is an index
  csi: u8(59),
})

/** Get Features (Base 2.1, section 5.1.11). */
export const GetFeaturesSqe = struct(64, {
  ...header,
  fid: u8(40),
  sel: bits(u32(40), 8, 3),
  cdw11: u32(44),
  uidx: bits(u8(56), 0, 7),
})

/** Set Features (Base 2.1, section 5.1.25). */
export const SetFeaturesSqe = struct(64, {
  ...header,
  fid: u8(40),
  sv: bits(u32(40), 31, 1), // save over power cycles
  cdw11: u32(44),
  cdw12: u32(48),
  cdw13: u32(52),
  uidx: bits(u8(56), 0, 7),
})
