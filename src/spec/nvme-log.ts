/** Log pages (Base 2.1, section 5.1.12). The commands and asynchronous events that lead to them are in `nvme.ts` and `nvme-event.ts`. */
import { bits, bytes, struct, text, u8, u16, u32, u53 } from '../core/struct.ts'

/** LID. */
export const LogPageId = {
  SUPPORTED_LOG_PAGES: 0x00,
  ERROR_INFORMATION: 0x01,
  SMART: 0x02,
  FIRMWARE_SLOT: 0x03,
  CHANGED_NAMESPACES: 0x04,
  COMMANDS_SUPPORTED: 0x05,
  DEVICE_SELF_TEST: 0x06,
  TELEMETRY_HOST: 0x07,
  TELEMETRY_CONTROLLER: 0x08,
  ENDURANCE_GROUP: 0x09,
  ANA: 0x0c,
  PERSISTENT_EVENT: 0x0d,
  LBA_STATUS: 0x0e,
  FEATURE_IDENTIFIERS: 0x12,
  DISCOVERY: 0x70,
  RESERVATION_NOTIFICATION: 0x80,
  SANITIZE_STATUS: 0x81,
} as const
export type LogPageId = (typeof LogPageId)[keyof typeof LogPageId]

/** One of 256 entries of Supported Log Pages, LID 00h, in order of LID. */
export const SupportedLogPage = struct(4, {
  lsupp: bits(u32(0), 0, 1),
  ios: bits(u32(0), 1, 1), // an offset may be an index
  lidsp: u16(2), // specific to the log page
})
export const SUPPORTED_LOG_PAGES_SIZE = 1024

/** Error Information entry, LID 01h; the newest comes first. */
export const ErrorInformation = struct(64, {
  ecnt: u53(0), // 0 marks an unused entry
  sqid: u16(8), // FFFFh when no command is to blame, as for cid
  cid: u16(10),
  phase: bits(u16(12), 0, 1),
  status: bits(u16(12), 1, 15),
  pelByte: u8(14), // where in the command; FFh twice when nowhere
  pelBit: bits(u8(15), 0, 3),
  lba: u53(16),
  nsid: u32(24),
  vsia: u8(28),
  trtype: u8(29),
  csi: u8(30),
  opc: u8(31),
  csinfo: u53(32),
  ttsi: u16(40),
  lpver: u8(63),
})

/** SMART / Health Information, LID 02h. The counters have 128 bits, of which the upper half is left at zero. */
export const SmartLog = struct(512, {
  cw: u8(0), // `CriticalWarning`
  ctemp: u16(1), // kelvins, not aligned
  avsp: u8(3), // percent
  avspt: u8(4), // percent
  pused: u8(5), // percent, may exceed 100
  egcws: u8(6),
  dur: u53(32), // units of 1000 × 512 bytes, rounded up
  duw: u53(48), // units of 1000 × 512 bytes, rounded up
  hrc: u53(64), // commands
  hwc: u53(80), // commands
  cbt: u53(96), // minutes
  pwrc: u53(112),
  poh: u53(128), // hours
  upl: u53(144),
  mdie: u53(160),
  nele: u53(176),
  wctt: u32(192), // minutes
  cctt: u32(196), // minutes
})

/** Critical Warning of the SMART log. */
export const CriticalWarning = {
  SPARE: 0x01,
  TEMPERATURE: 0x02,
  DEGRADED: 0x04,
  READ_ONLY: 0x08,
  VOLATILE_MEMORY_BACKUP: 0x10,
  PERSISTENT_MEMORY_READ_ONLY: 0x20,
} as const
export type CriticalWarning = (typeof CriticalWarning)[keyof typeof CriticalWarning]

/** Firmware Slot Information, LID 03h. */
export const FirmwareSlotLog = struct(512, {
  active: bits(u8(0), 0, 3),
  next: bits(u8(0), 4, 3), // after the next reset; 0 means the same
  frs1: text(8, 8, ' '),
  frs2: text(16, 8, ' '),
  frs3: text(24, 8, ' '),
  frs4: text(32, 8, ' '),
  frs5: text(40, 8, ' '),
  frs6: text(48, 8, ' '),
  frs7: text(56, 8, ' '),
})

/**
 * Changed Attached Namespace List, LID 04h: ascending 32-bit identifiers, zeroes after the last. When more than 1024 changed, the first is
 * FFFFFFFFh and the rest are zero.
 */
export const CHANGED_NAMESPACES_SIZE = 4096
export const CHANGED_NAMESPACES_MAX = 1024

/** Commands Supported and Effects, LID 05h: 256 dwords for admin opcodes, 256 for I/O opcodes, of `CommandEffect` bits. */
export const COMMANDS_SUPPORTED_SIZE = 4096
export const ADMIN_EFFECTS_OFFSET = 0
export const IO_EFFECTS_OFFSET = 1024

export const CommandEffect = {
  /** CSUPP: the command is supported. */
  SUPPORTED: 0x1,
  /** LBCC: it may change the content of logical blocks. */
  BLOCK_CONTENT_CHANGE: 0x2,
  /** NCC: it may change the capabilities of a namespace. */
  NAMESPACE_CAPABILITY_CHANGE: 0x4,
  /** NIC: it may change which namespaces there are. */
  NAMESPACE_INVENTORY_CHANGE: 0x8,
  /** CCC: it may change the capabilities of the controller. */
  CONTROLLER_CAPABILITY_CHANGE: 0x10,
  /** CSE, bits 18:16: no other command on the same namespace meanwhile. */
  EXCLUSIVE_NAMESPACE: 0x1_0000,
  /** CSE: no other command on any namespace meanwhile. */
  EXCLUSIVE_CONTROLLER: 0x2_0000,
} as const
export type CommandEffect = (typeof CommandEffect)[keyof typeof CommandEffect]

/** Asymmetric Namespace Access State. */
export const AnaState = {
  OPTIMIZED: 0x1,
  NON_OPTIMIZED: 0x2,
  INACCESSIBLE: 0x3,
  PERSISTENT_LOSS: 0x4,
  CHANGE: 0xf,
} as const
export type AnaState = (typeof AnaState)[keyof typeof AnaState]

/** Header of the ANA log page, LID 0Ch; `ngrps` group descriptors follow, ascending by group. */
export const AnaLogHeader = struct(16, { chgcnt: u53(0), ngrps: u16(8) })

/** ANA Group Descriptor; `nnsids` 32-bit namespace identifiers follow it, then the next descriptor. */
export const AnaGroupDescriptor = struct(32, {
  anagrpid: u32(0),
  nnsids: u32(4),
  chgcnt: u53(8),
  anas: bits(u8(16), 0, 4),
})

/** LSP of the ANA log page: groups only, that is, every `nnsids` is 0. */
export const ANA_LSP_GROUPS_ONLY = 0x1

/** Header of the Discovery log page, LID 70h; `numrec` entries follow. */
export const DiscoveryLogHeader = struct(1024, {
  genctr: u53(0),
  numrec: u53(8),
  recfmt: u16(16), // 0
})

/** Discovery Log Page Entry. The values of its first fields are in `nvmf.ts`. */
export const DiscoveryLogEntry = struct(1024, {
  trtype: u8(0),
  adrfam: u8(1),
  subtype: u8(2),
  treq: u8(3),
  portid: u16(4),
  cntlid: u16(6), // FFFFh dynamic, FFFEh static, as in `nvmf.ts`
  asqsz: u16(8), // entries, not 0's based
  eflags: u16(10),
  trsvcid: text(32, 32, ' '),
  subnqn: text(256, 256, '\0'),
  traddr: text(512, 256, ' '),
  tsas: bytes(768, 256),
  tsasSectype: u8(768), // TCP's only address subtype field
})
