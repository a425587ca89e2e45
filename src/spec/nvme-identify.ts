/** The data structures of the Identify command, 4096 bytes each (Base 2.1, section 5.1.13; NVM Command Set 1.1, section 4.1.5). */
import { bits, bytes, struct, text, u8, u16, u24, u32, u53 } from '../core/struct.ts'

/** Bytes: every Identify data structure has this size. */
export const IDENTIFY_SIZE = 4096

/** CNS: which structure Identify returns. */
export const Cns = {
  NAMESPACE: 0x00,
  CONTROLLER: 0x01,
  ACTIVE_NAMESPACE_LIST: 0x02,
  NAMESPACE_DESCRIPTORS: 0x03,
  NVM_SET_LIST: 0x04,
  CSI_NAMESPACE: 0x05,
  CSI_CONTROLLER: 0x06,
  CSI_ACTIVE_NAMESPACE_LIST: 0x07,
  INDEPENDENT_NAMESPACE: 0x08,
  NAMESPACE_USER_DATA_FORMAT: 0x09,
  CSI_NAMESPACE_USER_DATA_FORMAT: 0x0a,
  ALLOCATED_NAMESPACE_LIST: 0x10,
  ALLOCATED_NAMESPACE: 0x11,
  NAMESPACE_CONTROLLER_LIST: 0x12,
  CONTROLLER_LIST: 0x13,
  PRIMARY_CONTROLLER_CAPABILITIES: 0x14,
  SECONDARY_CONTROLLER_LIST: 0x15,
  NAMESPACE_GRANULARITY_LIST: 0x16,
  UUID_LIST: 0x17,
  DOMAIN_LIST: 0x18,
  ENDURANCE_GROUP_LIST: 0x19,
  CSI_ALLOCATED_NAMESPACE_LIST: 0x1a,
  CSI_ALLOCATED_NAMESPACE: 0x1b,
  IO_COMMAND_SET: 0x1c,
} as const
export type Cns = (typeof Cns)[keyof typeof Cns]

/** CSI: an I/O command set. */
export const Csi = { NVM: 0x00, KEY_VALUE: 0x01, ZONED: 0x02 } as const
export type Csi = (typeof Csi)[keyof typeof Csi]

/** CNTRLTYPE. */
export const ControllerType = { NOT_REPORTED: 0, IO: 1, DISCOVERY: 2, ADMINISTRATIVE: 3 } as const
export type ControllerType = (typeof ControllerType)[keyof typeof ControllerType]

/** CMIC: what else belongs to the subsystem. */
export const Cmic = { MULTIPLE_PORTS: 0x01, MULTIPLE_CONTROLLERS: 0x02, SR_IOV: 0x04, ANA: 0x08 } as const
export type Cmic = (typeof Cmic)[keyof typeof Cmic]

/** CTRATT. */
export const Ctratt = {
  HOST_IDENTIFIER_128: 0x0001,
  /** Traffic Based Keep Alive: any command restarts the timer. */
  TRAFFIC_BASED_KEEP_ALIVE: 0x0040,
  NAMESPACE_GRANULARITY: 0x0080,
  UUID_LIST: 0x0200,
  MULTI_DOMAIN: 0x0400,
  EXTENDED_LBA_FORMATS: 0x8000,
} as const
export type Ctratt = (typeof Ctratt)[keyof typeof Ctratt]

/** OACS. */
export const Oacs = {
  SECURITY: 0x0001,
  FORMAT: 0x0002,
  FIRMWARE: 0x0004,
  NAMESPACE_MANAGEMENT: 0x0008,
  SELF_TEST: 0x0010,
  DIRECTIVES: 0x0020,
  NVME_MI: 0x0040,
  VIRTUALIZATION: 0x0080,
  DOORBELL_BUFFER: 0x0100,
  GET_LBA_STATUS: 0x0200,
} as const
export type Oacs = (typeof Oacs)[keyof typeof Oacs]

/** LPA. EXTENDED_DATA is what allows an offset and more than 4 KiB in Get Log Page. */
export const Lpa = {
  SMART_PER_NAMESPACE: 0x01,
  COMMANDS_SUPPORTED: 0x02,
  EXTENDED_DATA: 0x04,
  TELEMETRY: 0x08,
  PERSISTENT_EVENT: 0x10,
  SUPPORTED_LOG_PAGES: 0x20,
} as const
export type Lpa = (typeof Lpa)[keyof typeof Lpa]

/** ANACAP: the states a controller may report, and how groups behave. */
export const Anacap = {
  OPTIMIZED: 0x01,
  NON_OPTIMIZED: 0x02,
  INACCESSIBLE: 0x04,
  PERSISTENT_LOSS: 0x08,
  CHANGE: 0x10,
  /** A namespace keeps its ANAGRPID while it is attached. */
  GROUP_ID_FIXED: 0x40,
  NONZERO_GROUP_ID: 0x80,
} as const
export type Anacap = (typeof Anacap)[keyof typeof Anacap]

/** ONCS: optional commands of an I/O queue. */
export const Oncs = {
  COMPARE: 0x0001,
  WRITE_UNCORRECTABLE: 0x0002,
  DATASET_MANAGEMENT: 0x0004,
  WRITE_ZEROES: 0x0008,
  /** Save in Set Features, Select in Get Features. */
  SAVE_AND_SELECT: 0x0010,
  RESERVATIONS: 0x0020,
  TIMESTAMP: 0x0040,
  VERIFY: 0x0080,
  COPY: 0x0100,
} as const
export type Oncs = (typeof Oncs)[keyof typeof Oncs]

/** FUSES: the fused operation Compare and Write. */
export const FUSES_COMPARE_AND_WRITE = 0x0001

/** VWC: bit 0, and in bits 2:1 what Flush does with the broadcast NSID. */
export const Vwc = { PRESENT: 0x01, FLUSH_REFUSES_BROADCAST: 0x04, FLUSH_TAKES_BROADCAST: 0x06 } as const
export type Vwc = (typeof Vwc)[keyof typeof Vwc]

/** SGLS. The lowest two bits are a number: 0 none, 1 without alignment, 2 dword aligned. */
export const Sgls = {
  SUPPORTED: 0x0000_0001,
  SUPPORTED_DWORD_ALIGNED: 0x0000_0002,
  KEYED_DATA_BLOCK: 0x0000_0004,
  BIT_BUCKET: 0x0001_0000,
  METADATA_BYTE_ALIGNED: 0x0002_0000,
  LARGER_THAN_DATA: 0x0004_0000,
  METADATA_SGL: 0x0008_0000,
  /** Data Block descriptors may hold an offset: in-capsule data. */
  DATA_BLOCK_OFFSET: 0x0010_0000,
  TRANSPORT_DATA_BLOCK: 0x0020_0000,
} as const
export type Sgls = (typeof Sgls)[keyof typeof Sgls]

/** FCATT: set when the controller model is static; clear when dynamic, as for most Fabrics targets. */
export const FCATT_STATIC_CONTROLLER = 0x01
/** OFCS: Disconnect may delete a single I/O queue. */
export const OFCS_DISCONNECT = 0x0001

/** Identify Controller, CNS 01h (Base 2.1, section 5.1.13.2.1). */
export const IdentifyController = struct(IDENTIFY_SIZE, {
  vid: u16(0),
  ssvid: u16(2),
  sn: text(4, 20, ' '),
  mn: text(24, 40, ' '),
  fr: text(64, 8, ' '),
  rab: u8(72), // log2 of commands
  ieee: u24(73), // OUI
  cmic: u8(76),
  mdts: u8(77), // log2 of units of CAP.MPSMIN; 0 means no limit
  cntlid: u16(78),
  ver: u32(80), // as the VS property
  rtd3r: u32(84), // µs
  rtd3e: u32(88), // µs
  oaes: u32(92), // `OptionalEvent` in nvme-event.ts
  ctratt: u32(96),
  rrls: u16(100),
  cntrltype: u8(111),
  fguid: bytes(112, 16),
  crdt1: u16(128), // units of 100 ms, as crdt2 and crdt3
  crdt2: u16(130),
  crdt3: u16(132),
  nvmsr: u8(253),
  vwci: u8(254),
  mec: u8(255),

  // Admin command set attributes.
  oacs: u16(256),
  acl: u8(258), // 0's based
  aerl: u8(259), // 0's based
  frmw: u8(260),
  lpa: u8(261),
  elpe: u8(262), // 0's based
  npss: u8(263), // 0's based
  avscc: u8(264),
  apsta: u8(265),
  wctemp: u16(266), // kelvins
  cctemp: u16(268), // kelvins
  mtfa: u16(270), // units of 100 ms
  hmpre: u32(272), // units of 4 KiB
  hmmin: u32(276), // units of 4 KiB
  tnvmcap: u53(280), // bytes; the upper half of its 128 bits is left at zero
  unvmcap: u53(296), // bytes; likewise
  rpmbs: u32(312),
  edstt: u16(316), // minutes
  dsto: u8(318),
  fwug: u8(319),
  kas: u16(320), // units of 100 ms; 0 means no Keep Alive
  hctma: u16(322),
  mntmt: u16(324), // kelvins
  mxtmt: u16(326), // kelvins
  sanicap: u32(328),
  hmminds: u32(332), // units of 4 KiB
  hmmaxd: u16(336),
  nsetidmax: u16(338),
  endgidmax: u16(340),
  anatt: u8(342), // seconds
  anacap: u8(343),
  anagrpmax: u32(344),
  nanagrpid: u32(348),
  pels: u32(352), // units of 64 KiB
  domainid: u16(356),
  megcap: u53(368), // bytes; the upper half of its 128 bits is left at zero

  // NVM command set attributes.
  sqes: u8(512), // log2 of bytes: required in bits 3:0, maximum in bits 7:4
  cqes: u8(513), // likewise
  maxcmd: u16(514), // commands outstanding on one queue
  nn: u32(516),
  oncs: u16(520),
  fuses: u16(522),
  fna: u8(524),
  vwc: u8(525),
  awun: u16(526), // blocks, 0's based
  awupf: u16(528), // blocks, 0's based
  icsvscc: u8(530),
  nwpc: u8(531),
  acwu: u16(532), // blocks, 0's based
  cdfs: u16(534),
  sgls: u32(536),
  mnan: u32(540),
  subnqn: text(768, 256, '\0'),

  // Fabrics attributes.
  ioccsz: u32(1792), // units of 16 bytes; 4 is a command without in-capsule data
  iorcsz: u32(1796), // units of 16 bytes
  icdoff: u16(1800), // units of 16 bytes
  fcatt: u8(1802),
  msdbd: u8(1803), // 0 means no limit
  ofcs: u16(1804),
  dctype: u8(1806),

  // Power state 0; the others follow every 32 bytes.
  psd0Mp: u16(2048), // units of 0.01 W, of 0.0001 W when psd0Mxps
  psd0Mxps: bits(u8(2051), 0, 1),
  psd0Nops: bits(u8(2051), 1, 1),
  psd0Enlat: u32(2052), // µs
  psd0Exlat: u32(2056), // µs
})

/** NSFEAT. */
export const Nsfeat = {
  THIN_PROVISIONING: 0x01,
  /** NAWUN, NAWUPF and NACWU hold instead of the controller's. */
  ATOMIC_BOUNDARIES: 0x02,
  DEALLOCATED_ERROR: 0x04,
  UNIQUE_IDS_NOT_REUSED: 0x08,
  /** NPWG, NPWA, NPDG, NPDA and NOWS are defined. */
  OPTIMAL_PERFORMANCE: 0x10,
} as const
export type Nsfeat = (typeof Nsfeat)[keyof typeof Nsfeat]

/** NMIC: more than one controller may attach the namespace. */
export const NMIC_SHARED = 0x01
/** NSATTR: the namespace is write protected at present. */
export const NSATTR_WRITE_PROTECTED = 0x01
/** VWCNP, NSFEAT of the command set independent structure: the namespace has no volatile write cache. */
export const INDEPENDENT_NSFEAT_NO_WRITE_CACHE = 0x20
/** NSTAT of the command set independent structure: the namespace is ready. */
export const NSTAT_READY = 0x01

/** DLFEAT: how deallocated blocks read, a number in bits 2:0, and whether Write Zeroes can deallocate. */
export const Dlfeat = { READS_ZEROES: 0x01, READS_ONES: 0x02, WRITE_ZEROES_DEALLOCATES: 0x08 } as const
export type Dlfeat = (typeof Dlfeat)[keyof typeof Dlfeat]

/** Identify Namespace for the NVM command set, CNS 00h (NVM Command Set 1.1, section 4.1.5.1). */
export const IdentifyNamespace = struct(IDENTIFY_SIZE, {
  nsze: u53(0), // blocks
  ncap: u53(8), // blocks
  nuse: u53(16), // blocks
  nsfeat: u8(24),
  nlbaf: u8(25), // 0's based
  flbas: u8(26), // format index: low half in bits 3:0, high half in bits 6:5
  mc: u8(27),
  dpc: u8(28),
  dps: u8(29),
  nmic: u8(30),
  rescap: u8(31),
  fpi: u8(32),
  dlfeat: u8(33),
  nawun: u16(34), // blocks, 0's based
  nawupf: u16(36), // blocks, 0's based
  nacwu: u16(38), // blocks, 0's based
  nabsn: u16(40), // blocks, 0's based
  nabo: u16(42), // blocks
  nabspf: u16(44), // blocks, 0's based
  noiob: u16(46), // blocks; 0 means none
  nvmcap: u53(48), // bytes; the upper half of its 128 bits is left at zero
  npwg: u16(64), // blocks, 0's based
  npwa: u16(66), // blocks, 0's based
  npdg: u16(68), // blocks, 0's based
  npda: u16(70), // blocks, 0's based
  nows: u16(72), // blocks, 0's based
  mssrl: u16(74), // blocks
  mcl: u32(76), // blocks
  msrc: u8(80), // ranges, 0's based
  anagrpid: u32(92),
  nsattr: u8(99),
  nvmsetid: u16(100),
  endgid: u16(102),
  nguid: bytes(104, 16), // big-endian
  eui64: bytes(120, 8), // big-endian
  // LBA format 0; the others follow every four bytes, at most 64.
  lbaf0Ms: u16(128), // bytes of metadata
  lbaf0Lbads: u8(130), // log2 of bytes
  lbaf0Rp: bits(u8(131), 0, 2), // relative performance, 0 is best
})
/** Bytes from one LBA format to the next in Identify Namespace. */
export const LBA_FORMAT_SIZE = 4

/** NIDT: kinds of namespace identification descriptors, CNS 03h (Base 2.1, section 5.1.13.2.3). */
export const Nidt = { EUI64: 0x01, NGUID: 0x02, UUID: 0x03, CSI: 0x04 } as const
export type Nidt = (typeof Nidt)[keyof typeof Nidt]

/** NIDL: bytes of each kind of identifier. */
export const Nidl = { EUI64: 8, NGUID: 16, UUID: 16, CSI: 1 } as const
export type Nidl = (typeof Nidl)[keyof typeof Nidl]

/** Header of a namespace identification descriptor; `nidl` bytes of identifier follow. A `nidl` of 0 ends the list. */
export const NamespaceDescriptor = struct(4, { nidt: u8(0), nidl: u8(1) })

/** Identify Namespace, command set specific, for the NVM command set, CNS 05h (NVM Command Set 1.1, section 4.1.5.3). */
export const IdentifyNvmNamespace = struct(IDENTIFY_SIZE, {
  lbstm: u53(0),
  pic: u8(8),
  // Extended LBA format 0; the others follow every four bytes, at most 64.
  elbaf0Sts: bits(u32(12), 0, 7),
  elbaf0Pif: bits(u32(12), 7, 2),
})

/** Identify Controller, command set specific, for the NVM command set, CNS 06h (NVM Command Set 1.1, section 4.1.5.4). */
export const IdentifyNvmController = struct(IDENTIFY_SIZE, {
  vsl: u8(0), // log2 of units of CAP.MPSMIN, as wzsl and wusl; 0 means no limit
  wzsl: u8(1),
  wusl: u8(2),
  dmrl: u8(3), // ranges in a Dataset Management; 0 means no limit, as for dmrsl and dmsl
  dmrsl: u32(4), // blocks in one range
  dmsl: u53(8), // blocks in all ranges
})

/** Identify Namespace, independent of the command set, CNS 08h (Base 2.1, section 5.1.13.2.8). */
export const IdentifyIndependentNamespace = struct(IDENTIFY_SIZE, {
  nsfeat: u8(0),
  nmic: u8(1),
  rescap: u8(2),
  fpi: u8(3),
  anagrpid: u32(4),
  nsattr: u8(8),
  nvmsetid: u16(10),
  endgid: u16(12),
  nstat: u8(14),
})

/** A controller list, CNS 12h and 13h: a count, then ascending 16-bit identifiers from `CONTROLLER_LIST_FIRST` on. */
export const ControllerList = struct(IDENTIFY_SIZE, { numids: u16(0) })
export const CONTROLLER_LIST_FIRST = 2
export const CONTROLLER_LIST_MAX = 2047

/** A namespace list, CNS 02h, 07h and 10h: ascending 32-bit identifiers, zeroes after the last. */
export const NAMESPACE_LIST_MAX = 1024

/** An I/O command set vector of CNS 1Ch is 64 bits, one per CSI. */
export const IO_COMMAND_SET_VECTOR_SIZE = 8
