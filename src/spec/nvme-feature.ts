/** Features (Base 2.1, section 5.1.25.1). A four-byte structure is CDW11 of Set Features and dword 0 of Get Features. */
import { bits, struct, u8, u16, u32 } from '../core/struct.ts'

/** FID. */
export const FeatureId = {
  ARBITRATION: 0x01,
  POWER_MANAGEMENT: 0x02,
  LBA_RANGE_TYPE: 0x03,
  TEMPERATURE_THRESHOLD: 0x04,
  ERROR_RECOVERY: 0x05,
  VOLATILE_WRITE_CACHE: 0x06,
  NUMBER_OF_QUEUES: 0x07,
  INTERRUPT_COALESCING: 0x08,
  INTERRUPT_VECTOR_CONFIGURATION: 0x09,
  WRITE_ATOMICITY: 0x0a,
  ASYNC_EVENT_CONFIGURATION: 0x0b,
  AUTONOMOUS_POWER_STATE_TRANSITION: 0x0c,
  HOST_MEMORY_BUFFER: 0x0d,
  TIMESTAMP: 0x0e,
  KEEP_ALIVE_TIMER: 0x0f,
  HOST_CONTROLLED_THERMAL_MANAGEMENT: 0x10,
  NON_OPERATIONAL_POWER_STATE: 0x11,
  HOST_BEHAVIOR_SUPPORT: 0x16,
  SANITIZE: 0x17,
  IO_COMMAND_SET_PROFILE: 0x19,
  SOFTWARE_PROGRESS_MARKER: 0x80,
  HOST_IDENTIFIER: 0x81,
  RESERVATION_NOTIFICATION_MASK: 0x82,
  RESERVATION_PERSISTENCE: 0x83,
  NAMESPACE_WRITE_PROTECTION: 0x84,
} as const
export type FeatureId = (typeof FeatureId)[keyof typeof FeatureId]

/** SEL of Get Features. */
export const FeatureSelect = { CURRENT: 0, DEFAULT: 1, SAVED: 2, SUPPORTED: 3 } as const
export type FeatureSelect = (typeof FeatureSelect)[keyof typeof FeatureSelect]

/** Dword 0 of Get Features when SEL asks for the capabilities. */
export const FeatureCapability = { SAVEABLE: 0x1, NAMESPACE_SPECIFIC: 0x2, CHANGEABLE: 0x4 } as const
export type FeatureCapability = (typeof FeatureCapability)[keyof typeof FeatureCapability]

export const Arbitration = struct(4, {
  ab: bits(u8(0), 0, 3), // log2 of commands; 7 means no limit
  lpw: u8(1), // weights, 0's based
  mpw: u8(2),
  hpw: u8(3),
})

export const PowerManagement = struct(4, { ps: bits(u8(0), 0, 5), wh: bits(u8(0), 5, 3) })

export const TemperatureThreshold = struct(4, {
  tmpth: u16(0), // kelvins
  tmpsel: bits(u32(0), 16, 4), // 0 composite, 1 to 8 a sensor, Fh all
  thsel: bits(u32(0), 20, 2), // 0 over, 1 under
})

export const ErrorRecovery = struct(4, {
  tler: u16(0), // units of 100 ms; 0 means no limit
  dulbe: bits(u32(0), 16, 1), // error on reading deallocated blocks
})

export const VolatileWriteCache = struct(4, { wce: bits(u32(0), 0, 1) })

/** Requested in CDW11, allocated in dword 0; I/O queues, 0's based. FFFFh is not allowed in a request. */
export const NumberOfQueues = struct(4, { nsq: u16(0), ncq: u16(2) })

export const InterruptCoalescing = struct(4, { thr: u8(0), time: u8(1) })

export const InterruptVector = struct(4, { iv: u16(0), cd: bits(u32(0), 16, 1) })

export const WriteAtomicity = struct(4, { dn: bits(u32(0), 0, 1) })

/** KATO, milliseconds; 0 switches the timer off. */
export const KeepAliveTimer = struct(4, { kato: u32(0) })

/** EXHID: the data is 16 bytes of host identifier instead of 8. Fabrics allows only 16. */
export const HostIdentifier = struct(4, { exhid: bits(u32(0), 0, 1) })
export const HOST_IDENTIFIER_SIZE = 8
export const EXTENDED_HOST_IDENTIFIER_SIZE = 16

/** Data of Host Behavior Support, 512 bytes. */
export const HostBehaviorSupport = struct(512, {
  acre: u8(0), // the host understands the Command Retry Delay
  etdas: u8(1),
  lbafee: u8(2),
  hdisns: u8(3),
  cdfe: u16(4),
})
