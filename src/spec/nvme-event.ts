/** Asynchronous events (Base 2.1, section 5.1.2). */
import { bits, struct, u8 } from '../core/struct.ts'

/** Asynchronous Event Type. */
export const EventType = {
  ERROR: 0,
  SMART: 1,
  NOTICE: 2,
  IMMEDIATE: 3,
  ONE_SHOT: 4,
  IO_COMMAND_SET: 6,
  VENDOR: 7,
} as const
export type EventType = (typeof EventType)[keyof typeof EventType]

/** Asynchronous Event Information of `EventType.NOTICE`. */
export const NoticeEvent = {
  NAMESPACE_ATTRIBUTE_CHANGED: 0x00,
  FIRMWARE_ACTIVATION_STARTING: 0x01,
  TELEMETRY_LOG_CHANGED: 0x02,
  ANA_CHANGE: 0x03,
  PREDICTABLE_LATENCY_CHANGE: 0x04,
  LBA_STATUS_ALERT: 0x05,
  ENDURANCE_GROUP_CHANGE: 0x06,
  DISCOVERY_LOG_CHANGE: 0xf0,
} as const
export type NoticeEvent = (typeof NoticeEvent)[keyof typeof NoticeEvent]

/** Asynchronous Event Information of `EventType.ERROR`. */
export const ErrorEvent = {
  INVALID_DOORBELL_REGISTER: 0x00,
  INVALID_DOORBELL_VALUE: 0x01,
  DIAGNOSTIC_FAILURE: 0x02,
  PERSISTENT_INTERNAL_ERROR: 0x03,
  TRANSIENT_INTERNAL_ERROR: 0x04,
  FIRMWARE_IMAGE_LOAD_ERROR: 0x05,
} as const
export type ErrorEvent = (typeof ErrorEvent)[keyof typeof ErrorEvent]

/** Asynchronous Event Information of `EventType.SMART`. */
export const SmartEvent = { RELIABILITY: 0x00, TEMPERATURE: 0x01, SPARE: 0x02 } as const
export type SmartEvent = (typeof SmartEvent)[keyof typeof SmartEvent]

/** Dword 0 of a completed Asynchronous Event Request. Reading log page `lid` without RAE re-arms the event. */
export const EventResult = struct(4, { type: bits(u8(0), 0, 3), info: u8(1), lid: u8(2) })

/**
 * Notices that are optional: bits of OAES in Identify Controller and of the Asynchronous Event Configuration feature, whose lowest
 * eight bits are `CriticalWarning`. Bit 31 makes the result of `&` and `|` negative: end with `>>> 0`.
 */
export const OptionalEvent = {
  NAMESPACE_ATTRIBUTE: 0x0000_0100,
  FIRMWARE_ACTIVATION: 0x0000_0200,
  ANA_CHANGE: 0x0000_0800,
  PREDICTABLE_LATENCY: 0x0000_1000,
  LBA_STATUS: 0x0000_2000,
  ENDURANCE_GROUP: 0x0000_4000,
  NORMAL_SUBSYSTEM_SHUTDOWN: 0x0000_8000,
  ZONE_DESCRIPTOR: 0x0800_0000,
  DISCOVERY_LOG: 0x8000_0000,
} as const
export type OptionalEvent = (typeof OptionalEvent)[keyof typeof OptionalEvent]
