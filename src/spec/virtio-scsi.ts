/**
 * The SCSI host device (Virtual I/O Device specification 1.2, section 5.6). Numbers are little-endian, as for every device
 * that negotiates VIRTIO_F_VERSION_1; what SCSI itself defines (CDBs, sense, data) is big-endian and in `scsi.ts`.
 */
import { bytes, struct, u8, u16, u32 } from '../core/struct.ts'

/** VIRTIO_ID_SCSI. */
export const VIRTIO_ID_SCSI = 8

/** Feature bits (section 5.6.3), as bit numbers. */
export const ScsiFeatureBit = {
  /** A request may have both data out and data in. */
  INOUT: 0,
  /** Units come and go, with TRANSPORT_RESET events. */
  HOTPLUG: 1,
  /** Units change, with PARAM_CHANGE events. */
  CHANGE: 2,
  /** Protection information in the request header. */
  T10_PI: 3,
} as const

/** The virtqueues (section 5.6.2); those from `REQUEST` on are request queues. */
export const ScsiQueue = { CONTROL: 0, EVENT: 1, REQUEST: 2 } as const

/** The configuration space (section 5.6.4). The driver may write `senseSize` and `cdbSize`. */
export const ScsiConfig = struct(36, {
  /** Request queues. */
  numQueues: u32(0),
  /** Segments of data in a request. */
  segMax: u32(4),
  /** A hint: data of a request, in units of 512 bytes. */
  maxSectors: u32(8),
  /** A hint: requests outstanding to a unit. */
  cmdPerLun: u32(12),
  eventInfoSize: u32(16),
  senseSize: u32(20),
  cdbSize: u32(24),
  maxChannel: u16(28),
  maxTarget: u16(30),
  maxLun: u32(32),
})

/** What `senseSize` and `cdbSize` are after a reset of the device. */
export const SENSE_SIZE_DEFAULT = 96
export const CDB_SIZE_DEFAULT = 32

/**
 * An address of a unit as requests carry it (section 5.6.6.1): byte 0 is 1, then the target, then a single-level LUN of
 * SAM, big-endian: below 256 plain, or 4000h + LUN, or a well-known unit. The rest is zero.
 */
export const LunAddress = struct(8, {
  one: u8(0),
  target: u8(1),
  lunHigh: u8(2),
  lunLow: u8(3),
  rest: u32(4),
})
/** In `lunHigh`, the upper two bits: flat addressing. */
export const LUN_FLAT = 0x40

/** What the device reads first in a request (section 5.6.6.1); `cdbSize` bytes of CDB follow, then the data out. */
export const ScsiRequestHeader = struct(19, {
  lun: bytes(0, 8),
  /** The driver's 64 bits, named by task management. */
  idLow: u32(8),
  idHigh: u32(12),
  taskAttr: u8(16),
  prio: u8(17),
  crn: u8(18),
})

/** What the device writes first; `senseSize` bytes of sense follow, then the data in. */
export const ScsiResponseHeader = struct(12, {
  /** Bytes of sense that are valid. */
  senseLen: u32(0),
  /** Bytes of data that the command did not use. */
  residual: u32(4),
  statusQualifier: u16(8),
  /** Of SCSI: valid when the response is OK. */
  status: u8(10),
  response: u8(11),
})

/** The outcome below SCSI (sections 5.6.6.1 and 5.6.6.2). */
export const ScsiResponse = {
  OK: 0,
  /** The CDB asks for more data than the buffers have. */
  OVERRUN: 1,
  ABORTED: 2,
  BAD_TARGET: 3,
  RESET: 4,
  BUSY: 5,
  TRANSPORT_FAILURE: 6,
  TARGET_FAILURE: 7,
  NEXUS_FAILURE: 8,
  FAILURE: 9,
  /** Task management only, as those that follow; where a function has nothing to answer but its end, that is OK. */
  FUNCTION_SUCCEEDED: 10,
  FUNCTION_REJECTED: 11,
  INCORRECT_LUN: 12,
} as const

/** The first field of whatever comes on the control queue (section 5.6.6.2). */
export const ControlType = { TASK_MANAGEMENT: 0, NOTIFICATION_QUERY: 1, NOTIFICATION_SUBSCRIBE: 2 } as const

export const TaskManagementRequest = struct(24, {
  type: u32(0),
  subtype: u32(4),
  lun: bytes(8, 8),
  idLow: u32(16),
  idHigh: u32(20),
})
export const TaskManagementResponse = struct(1, { response: u8(0) })

export const TaskManagement = {
  ABORT_TASK: 0,
  ABORT_TASK_SET: 1,
  CLEAR_ACA: 2,
  CLEAR_TASK_SET: 3,
  I_T_NEXUS_RESET: 4,
  LOGICAL_UNIT_RESET: 5,
  QUERY_TASK: 6,
  QUERY_TASK_SET: 7,
} as const

/** Asynchronous notifications: those of MMC, which no disk has. */
export const NotificationRequest = struct(16, { type: u32(0), lun: bytes(4, 8), eventRequested: u32(12) })
export const NotificationResponse = struct(5, { eventActual: u32(0), response: u8(4) })

/** What the device writes into a buffer of the event queue (section 5.6.6.3). */
export const ScsiEvent = struct(16, { event: u32(0), lun: bytes(4, 8), reason: u32(12) })

export const ScsiEventType = {
  NO_EVENT: 0,
  /** `reason` is a `ResetReason`. */
  TRANSPORT_RESET: 1,
  ASYNC_NOTIFY: 2,
  /** `reason` is ASC + ASCQ * 256. */
  PARAM_CHANGE: 3,
} as const
/** In `event`, with whatever event there is: others were lost for want of a buffer. */
export const EVENTS_MISSED = 0x8000_0000

export const ResetReason = { HARD: 0, RESCAN: 1, REMOVED: 2 } as const
