/**
 * SCSI as a disk speaks it: SAM-5 (status), SPC-4 (commands of every device) and SBC-3 (commands of disks). All numbers
 * are big-endian.
 */
import { bits, bytes, struct, text, u8, u16be, u32be, u53be } from '../core/struct.ts'

/** SAM-5, section 5.3. */
export const ScsiStatus = {
  GOOD: 0x00,
  CHECK_CONDITION: 0x02,
  BUSY: 0x08,
  RESERVATION_CONFLICT: 0x18,
  TASK_SET_FULL: 0x28,
  TASK_ABORTED: 0x40,
} as const

export const Opcode = {
  TEST_UNIT_READY: 0x00,
  REQUEST_SENSE: 0x03,
  READ_6: 0x08,
  WRITE_6: 0x0a,
  INQUIRY: 0x12,
  MODE_SELECT_6: 0x15,
  RESERVE_6: 0x16,
  RELEASE_6: 0x17,
  MODE_SENSE_6: 0x1a,
  START_STOP_UNIT: 0x1b,
  SEND_DIAGNOSTIC: 0x1d,
  PREVENT_ALLOW_MEDIUM_REMOVAL: 0x1e,
  READ_CAPACITY_10: 0x25,
  READ_10: 0x28,
  WRITE_10: 0x2a,
  WRITE_AND_VERIFY_10: 0x2e,
  VERIFY_10: 0x2f,
  SYNCHRONIZE_CACHE_10: 0x35,
  WRITE_SAME_10: 0x41,
  UNMAP: 0x42,
  LOG_SENSE: 0x4d,
  MODE_SELECT_10: 0x55,
  MODE_SENSE_10: 0x5a,
  PERSISTENT_RESERVE_IN: 0x5e,
  PERSISTENT_RESERVE_OUT: 0x5f,
  READ_16: 0x88,
  COMPARE_AND_WRITE: 0x89,
  WRITE_16: 0x8a,
  WRITE_AND_VERIFY_16: 0x8e,
  VERIFY_16: 0x8f,
  SYNCHRONIZE_CACHE_16: 0x91,
  WRITE_SAME_16: 0x93,
  SERVICE_ACTION_IN_16: 0x9e,
  REPORT_LUNS: 0xa0,
  MAINTENANCE_IN: 0xa3,
  READ_12: 0xa8,
  WRITE_12: 0xaa,
} as const

/** Service actions: the low five bits of byte 1 of the commands that have them. */
export const ServiceAction = {
  /** Of SERVICE ACTION IN (16). */
  READ_CAPACITY_16: 0x10,
  /** Of MAINTENANCE IN. */
  REPORT_TARGET_PORT_GROUPS: 0x0a,
  REPORT_SUPPORTED_OPERATION_CODES: 0x0c,
  REPORT_SUPPORTED_TASK_MANAGEMENT: 0x0d,
} as const
export const SERVICE_ACTION_MASK = 0x1f

/** CDBs of disks by their length. Byte 1 of the longer ones is `flags`. */
export const Cdb6 = struct(6, {
  opcode: u8(0),
  lbaHigh: bits(u8(1), 0, 5),
  lbaLow: u16be(2),
  /** 0 means 256. */
  length: u8(4),
  control: u8(5),
})
export const Cdb10 = struct(10, {
  opcode: u8(0),
  flags: u8(1),
  lba: u32be(2),
  group: u8(6),
  length: u16be(7),
  control: u8(9),
})
export const Cdb12 = struct(12, {
  opcode: u8(0),
  flags: u8(1),
  lba: u32be(2),
  length: u32be(6),
  group: u8(10),
  control: u8(11),
})
export const Cdb16 = struct(16, {
  opcode: u8(0),
  flags: u8(1),
  lba: u53be(2),
  length: u32be(10),
  group: u8(14),
  control: u8(15),
})

/** Bits of `flags`. */
export const CdbFlag = {
  FUA: 0x08,
  DPO: 0x10,
  /** RDPROTECT, WRPROTECT, VRPROTECT: protection information. */
  PROTECT: 0xe0,
  /** VERIFY and WRITE AND VERIFY: 0 check the medium, 1 compare with the data, 3 compare all with one block. */
  BYTCHK: 0x06,
  /** WRITE SAME: no data out, zeroes are meant; only the CDB of 16 bytes has it. */
  NDOB: 0x01,
  /** WRITE SAME: may unmap what then reads as the data. */
  UNMAP: 0x08,
  /** WRITE SAME, UNMAP: keep the space reserved. */
  ANCHOR: 0x10,
  /** UNMAP has it elsewhere. */
  UNMAP_ANCHOR: 0x01,
} as const
export const BYTCHK_SHIFT = 1
/** In the control byte: asks for an auto contingent allegiance. */
export const CONTROL_NACA = 0x04

/** SBC-3, section 5.2: `blocks` is byte 13, the three before it are reserved. */
export const CompareAndWriteCdb = struct(16, { opcode: u8(0), flags: u8(1), lba: u53be(2), blocks: u8(13) })

/** SPC-4, section 6.6. */
export const InquiryCdb = struct(6, { opcode: u8(0), flags: u8(1), page: u8(2), allocationLength: u16be(3) })
export const INQUIRY_EVPD = 0x01

/** SPC-4, sections 6.11 and 6.12. */
export const ModeSense6Cdb = struct(6, {
  opcode: u8(0),
  flags: u8(1),
  pageCode: bits(u8(2), 0, 6),
  pageControl: bits(u8(2), 6, 2),
  subpage: u8(3),
  allocationLength: u8(4),
})
export const ModeSense10Cdb = struct(10, {
  opcode: u8(0),
  flags: u8(1),
  pageCode: bits(u8(2), 0, 6),
  pageControl: bits(u8(2), 6, 2),
  subpage: u8(3),
  allocationLength: u16be(7),
})
export const ModeSenseFlag = { DBD: 0x08, LLBAA: 0x10 } as const
export const PageControl = { CURRENT: 0, CHANGEABLE: 1, DEFAULT: 2, SAVED: 3 } as const

/** SPC-4, sections 6.9 and 6.10. */
export const ModeSelect6Cdb = struct(6, { opcode: u8(0), flags: u8(1), parameterListLength: u8(4) })
export const ModeSelect10Cdb = struct(10, { opcode: u8(0), flags: u8(1), parameterListLength: u16be(7) })
export const ModeSelectFlag = { SP: 0x01, PF: 0x10 } as const

/** SPC-4, section 7.5.5. */
export const ModeHeader6 = struct(4, {
  dataLength: u8(0),
  mediumType: u8(1),
  deviceSpecific: u8(2),
  blockDescriptorLength: u8(3),
})
export const ModeHeader10 = struct(8, {
  dataLength: u16be(0),
  mediumType: u8(2),
  deviceSpecific: u8(3),
  longLba: bits(u8(4), 0, 1),
  blockDescriptorLength: u16be(6),
})
/** SBC-3, section 6.4.1: of disks. */
export const DeviceSpecific = { WP: 0x80, DPOFUA: 0x10 } as const
/** SBC-3, section 6.4.2. `blockSize` has 24 bits, with a reserved byte before them. */
export const ShortBlockDescriptor = struct(8, { blockCount: u32be(0), blockSize: u32be(4) })
export const LongBlockDescriptor = struct(16, { blockCount: u53be(0), blockSize: u32be(12) })

export const ModePage = {
  READ_WRITE_ERROR_RECOVERY: 0x01,
  CACHING: 0x08,
  CONTROL: 0x0a,
  INFORMATIONAL_EXCEPTIONS: 0x1c,
  ALL: 0x3f,
} as const
/** With ALL: every subpage too. */
export const ALL_SUBPAGES = 0xff
/** SBC-3, section 6.4.5: byte 2 of the caching page. */
export const CACHING_WCE = 0x04

/** SPC-4, section 6.4.2: the first 36 bytes and the version descriptors of standard INQUIRY data. */
export const StandardInquiry = struct(96, {
  deviceType: bits(u8(0), 0, 5),
  qualifier: bits(u8(0), 5, 3),
  removable: bits(u8(1), 7, 1),
  version: u8(2),
  responseFormat: bits(u8(3), 0, 4),
  hiSup: bits(u8(3), 4, 1),
  additionalLength: u8(4),
  tpgs: bits(u8(5), 4, 2),
  cmdQue: bits(u8(7), 1, 1),
  vendor: text(8, 8, ' '),
  product: text(16, 16, ' '),
  revision: text(32, 4, ' '),
  versionDescriptor1: u16be(58),
  versionDescriptor2: u16be(60),
  versionDescriptor3: u16be(62),
})
export const DeviceType = { DISK: 0x00, WELL_KNOWN: 0x1e, UNKNOWN: 0x1f } as const
/** PERIPHERAL QUALIFIER: 3 when the target has no unit of that number. */
export const QUALIFIER_NONE = 3
export const SPC_4 = 0x06
/** Version descriptors without a claim to a revision (SPC-4, table 142). */
export const VersionDescriptor = { SAM_5: 0x00a0, SPC_4: 0x0460, SBC_3: 0x04c0 } as const

export const VpdPage = {
  SUPPORTED_PAGES: 0x00,
  UNIT_SERIAL_NUMBER: 0x80,
  DEVICE_IDENTIFICATION: 0x83,
  EXTENDED_INQUIRY: 0x86,
  BLOCK_LIMITS: 0xb0,
  BLOCK_DEVICE_CHARACTERISTICS: 0xb1,
  LOGICAL_BLOCK_PROVISIONING: 0xb2,
} as const
/** What every VPD page begins with; `length` counts what follows. */
export const VpdHeader = struct(4, { deviceType: u8(0), page: u8(1), length: u16be(2) })

/** SPC-4, section 7.8.6.1: a designator of page 83h; `length` bytes follow. */
export const Designator = struct(4, {
  codeSet: bits(u8(0), 0, 4),
  protocol: bits(u8(0), 4, 4),
  type: bits(u8(1), 0, 4),
  association: bits(u8(1), 4, 2),
  piv: bits(u8(1), 7, 1),
  length: u8(3),
})
export const CodeSet = { BINARY: 1, ASCII: 2, UTF8: 3 } as const
export const DesignatorType = { T10_VENDOR: 1, EUI_64: 2, NAA: 3, RELATIVE_PORT: 4 } as const
export const Association = { UNIT: 0, PORT: 1, DEVICE: 2 } as const
/** The upper four bits of an NAA designator: the rest is the maker's own and unique only locally. */
export const NAA_LOCALLY_ASSIGNED = 3

/** SPC-4, section 7.8.7: page 86h, 64 bytes in all. */
export const ExtendedInquiry = struct(64, {
  /** Simple, ordered and head-of-queue attributes. */
  simpSup: bits(u8(5), 0, 1),
  ordSup: bits(u8(5), 1, 1),
  headSup: bits(u8(5), 2, 1),
  /** There is a volatile cache. */
  vSup: bits(u8(6), 0, 1),
  luiclr: bits(u8(7), 0, 1),
})

/** SBC-3, section 6.6.4: page B0h, 64 bytes in all; in blocks. */
export const BlockLimits = struct(64, {
  wsnz: bits(u8(4), 0, 1),
  compareAndWriteMax: u8(5),
  transferGranularity: u16be(6),
  transferMax: u32be(8),
  transferOptimal: u32be(12),
  unmapBlocksMax: u32be(20),
  unmapDescriptorsMax: u32be(24),
  unmapGranularity: u32be(28),
  /** With bit 31 when it is valid. */
  unmapAlignment: u32be(32),
  writeSameMax: u53be(36),
})

/** SBC-3, section 6.6.3: page B1h, 64 bytes in all. */
export const BlockDeviceCharacteristics = struct(64, { rotationRate: u16be(4) })
export const NON_ROTATING = 1

/** SBC-3, section 6.6.5: page B2h, 8 bytes in all. */
export const LogicalBlockProvisioning = struct(8, {
  thresholdExponent: u8(4),
  lbpu: bits(u8(5), 7, 1),
  lbpws: bits(u8(5), 6, 1),
  lbpws10: bits(u8(5), 5, 1),
  lbprz: bits(u8(5), 2, 1),
  provisioningType: bits(u8(6), 0, 3),
})
export const PROVISIONING_THIN = 2

/** SBC-3, sections 5.12 and 5.13. */
export const ReadCapacity10 = struct(8, { lastLba: u32be(0), blockSize: u32be(4) })
export const ReadCapacity16 = struct(32, {
  lastLba: u53be(0),
  blockSize: u32be(8),
  protEn: bits(u8(12), 0, 1),
  /** log2 of the logical blocks in a physical one. */
  physicalExponent: bits(u8(13), 0, 4),
  lbpme: bits(u16be(14), 15, 1),
  lbprz: bits(u16be(14), 14, 1),
  lowestAlignedLba: bits(u16be(14), 0, 14),
})
/** READ CAPACITY (16), and READ CAPACITY (10) with the last two bytes. */
export const ReadCapacity16Cdb = struct(16, { lba: u53be(2), allocationLength: u32be(10), flags: u8(14) })

/** SPC-4, section 6.33. */
export const ReportLunsCdb = struct(12, { opcode: u8(0), select: u8(2), allocationLength: u32be(6) })
export const ReportLunsSelect = { ALL_BUT_WELL_KNOWN: 0, WELL_KNOWN: 1, ALL: 2 } as const
export const ReportLunsHeader = struct(8, { listLength: u32be(0) })
/** The well-known unit that answers REPORT LUNS, as a single-level LUN. */
export const REPORT_LUNS_UNIT = 0xc101

/** SBC-3, section 5.28: the parameter list, then `UnmapDescriptor`s. */
export const UnmapCdb = struct(10, { opcode: u8(0), flags: u8(1), parameterListLength: u16be(7) })
export const UnmapHeader = struct(8, { dataLength: u16be(0), descriptorsLength: u16be(2) })
export const UnmapDescriptor = struct(16, { lba: u53be(0), blocks: u32be(8) })

/** SBC-3, section 5.25. */
export const StartStopCdb = struct(6, {
  opcode: u8(0),
  flags: u8(1),
  start: bits(u8(4), 0, 1),
  loej: bits(u8(4), 1, 1),
  noFlush: bits(u8(4), 2, 1),
  powerCondition: bits(u8(4), 4, 4),
})

/** SPC-4, section 6.39. */
export const RequestSenseCdb = struct(6, { opcode: u8(0), flags: u8(1), allocationLength: u8(4) })
export const REQUEST_SENSE_DESC = 0x01

/** SPC-4, section 6.35. */
export const ReportOpcodesCdb = struct(12, {
  opcode: u8(0),
  serviceAction: u8(1),
  reportingOptions: bits(u8(2), 0, 3),
  rctd: bits(u8(2), 7, 1),
  requestedOpcode: u8(3),
  requestedServiceAction: u16be(4),
  allocationLength: u32be(6),
})
export const ReportingOptions = { ALL: 0, OPCODE: 1, SERVICE_ACTION: 2, EITHER: 3 } as const
export const OpcodeDescriptor = struct(8, {
  opcode: u8(0),
  serviceAction: u16be(2),
  servactv: bits(u8(5), 0, 1),
  ctdp: bits(u8(5), 1, 1),
  cdbLength: u16be(6),
})
/** The answer about one command; the CDB usage data follow. */
export const OneOpcode = struct(4, { support: bits(u8(1), 0, 3), ctdp: bits(u8(1), 7, 1), cdbSize: u16be(2) })
export const OpcodeSupport = { NOT_SUPPORTED: 1, STANDARD: 3 } as const
/** Follows where RCTD was set; `length` counts the ten bytes after it. */
export const TimeoutsDescriptor = struct(12, { length: u16be(0), nominal: u32be(4), recommended: u32be(8) })

/** SPC-4, section 6.36: REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS, the short form. */
export const SupportedTaskManagement = struct(4, {
  abortTask: bits(u8(0), 7, 1),
  abortTaskSet: bits(u8(0), 6, 1),
  clearTaskSet: bits(u8(0), 4, 1),
  unitReset: bits(u8(0), 3, 1),
  queryTask: bits(u8(0), 2, 1),
  queryTaskSet: bits(u8(1), 1, 1),
  nexusReset: bits(u8(1), 0, 1),
})

export const SenseKey = {
  NO_SENSE: 0x0,
  RECOVERED_ERROR: 0x1,
  NOT_READY: 0x2,
  MEDIUM_ERROR: 0x3,
  HARDWARE_ERROR: 0x4,
  ILLEGAL_REQUEST: 0x5,
  UNIT_ATTENTION: 0x6,
  DATA_PROTECT: 0x7,
  ABORTED_COMMAND: 0xb,
  MISCOMPARE: 0xe,
} as const

/** Additional sense code and qualifier as one number: ASC * 256 + ASCQ (SPC-4, annex F). */
export const Asc = {
  NONE: 0x0000,
  WRITE_FAULT: 0x0300,
  UNIT_NOT_READY: 0x0400,
  ASYMMETRIC_TRANSITION: 0x040a,
  ASYMMETRIC_UNAVAILABLE: 0x040c,
  UNIT_COMMUNICATION_FAILURE: 0x0800,
  GUARD_CHECK_FAILED: 0x1001,
  APPLICATION_TAG_CHECK_FAILED: 0x1002,
  REFERENCE_TAG_CHECK_FAILED: 0x1003,
  UNRECOVERED_READ_ERROR: 0x1100,
  PARAMETER_LIST_LENGTH_ERROR: 0x1a00,
  MISCOMPARE_DURING_VERIFY: 0x1d00,
  INVALID_OPCODE: 0x2000,
  ACCESS_DENIED: 0x2002,
  LBA_OUT_OF_RANGE: 0x2100,
  INVALID_FIELD_IN_CDB: 0x2400,
  UNIT_NOT_SUPPORTED: 0x2500,
  INVALID_FIELD_IN_PARAMETER_LIST: 0x2600,
  INVALID_RELEASE_OF_RESERVATION: 0x2604,
  WRITE_PROTECTED: 0x2700,
  SPACE_ALLOCATION_FAILED: 0x2707,
  POWER_ON: 0x2900,
  BUS_DEVICE_RESET: 0x2903,
  NEXUS_LOSS: 0x2907,
  RESERVATIONS_PREEMPTED: 0x2a03,
  RESERVATIONS_RELEASED: 0x2a04,
  REGISTRATIONS_PREEMPTED: 0x2a05,
  CAPACITY_CHANGED: 0x2a09,
  SAVING_NOT_SUPPORTED: 0x3900,
  REPORTED_LUNS_CHANGED: 0x3f0e,
  INTERNAL_TARGET_FAILURE: 0x4400,
  DATA_PHASE_ERROR: 0x4b00,
  INSUFFICIENT_REGISTRATION_RESOURCES: 0x5504,
} as const

/** Fixed format sense data (SPC-4, section 4.5.3). */
export const FixedSense = struct(18, {
  responseCode: bits(u8(0), 0, 7),
  valid: bits(u8(0), 7, 1),
  key: bits(u8(2), 0, 4),
  information: u32be(3),
  /** What follows this byte: 10. */
  additionalLength: u8(7),
  commandInformation: u32be(8),
  asc: u16be(12),
  fru: u8(14),
  /** Sense key specific, for ILLEGAL REQUEST: bit 7 valid, bit 6 the CDB and not the parameters, then the bit pointer. */
  fieldFlags: u8(15),
  fieldPointer: u16be(16),
})
/** Descriptor format without descriptors (SPC-4, section 4.5.2). */
export const DescriptorSense = struct(8, {
  responseCode: u8(0),
  key: bits(u8(1), 0, 4),
  asc: u16be(2),
  additionalLength: u8(7),
})
export const SenseFormat = { FIXED: 0x70, DESCRIPTOR: 0x72 } as const
export const FieldFlag = { VALID: 0x80, IN_CDB: 0x40 } as const

/** SPC-4, sections 6.15 and 6.16. */
export const ReserveInCdb = struct(10, { opcode: u8(0), serviceAction: u8(1), allocationLength: u16be(7) })
export const ReserveInAction = {
  READ_KEYS: 0,
  READ_RESERVATION: 1,
  REPORT_CAPABILITIES: 2,
  READ_FULL_STATUS: 3,
} as const
export const ReserveOutCdb = struct(10, {
  opcode: u8(0),
  serviceAction: u8(1),
  type: bits(u8(2), 0, 4),
  scope: bits(u8(2), 4, 4),
  parameterListLength: u32be(5),
})
export const ReserveOutAction = {
  REGISTER: 0,
  RESERVE: 1,
  RELEASE: 2,
  CLEAR: 3,
  PREEMPT: 4,
  PREEMPT_AND_ABORT: 5,
  REGISTER_AND_IGNORE: 6,
} as const
export const ReserveOutParameters = struct(24, {
  key: bytes(0, 8),
  serviceActionKey: bytes(8, 8),
  flags: u8(20),
})
export const ReserveOutFlag = { APTPL: 0x01, ALL_TG_PT: 0x04, SPEC_I_PT: 0x08 } as const
export const ReservationType = {
  NONE: 0,
  WRITE_EXCLUSIVE: 1,
  EXCLUSIVE_ACCESS: 3,
  WRITE_EXCLUSIVE_REGISTRANTS: 5,
  EXCLUSIVE_ACCESS_REGISTRANTS: 6,
  WRITE_EXCLUSIVE_ALL: 7,
  EXCLUSIVE_ACCESS_ALL: 8,
} as const
/** What READ KEYS, READ RESERVATION and READ FULL STATUS begin with. */
export const ReserveInHeader = struct(8, { generation: u32be(0), additionalLength: u32be(4) })
export const ReservationDescriptor = struct(16, {
  key: bytes(0, 8),
  type: bits(u8(13), 0, 4),
  scope: bits(u8(13), 4, 4),
})
export const ReserveCapabilities = struct(8, {
  length: u16be(0),
  flags: u8(2),
  /** With bit 7 when `types` is valid. */
  masks: u8(3),
  types: u16be(4),
})
/** `types` of `ReserveCapabilities`. */
export const ReservationTypeBit = {
  WRITE_EXCLUSIVE: 0x0200,
  EXCLUSIVE_ACCESS: 0x0800,
  WRITE_EXCLUSIVE_REGISTRANTS: 0x2000,
  EXCLUSIVE_ACCESS_REGISTRANTS: 0x4000,
  WRITE_EXCLUSIVE_ALL: 0x8000,
  EXCLUSIVE_ACCESS_ALL: 0x0001,
} as const
/** One registration in READ FULL STATUS; the TransportID follows. */
export const FullStatusDescriptor = struct(24, {
  key: bytes(0, 8),
  holder: bits(u8(12), 0, 1),
  allTargetPorts: bits(u8(12), 1, 1),
  type: bits(u8(13), 0, 4),
  scope: bits(u8(13), 4, 4),
  relativePort: u16be(18),
  additionalLength: u32be(20),
})
/** SPC-4, section 7.6.4.7: of a SAS initiator. */
export const SasTransportId = struct(24, { protocol: u8(0), address: bytes(4, 8) })
export const PROTOCOL_SAS = 6
