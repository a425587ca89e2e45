/**
 * What all virtio devices have in common (Virtual I/O Device specification 1.2): device ids, device status, and the
 * feature bits that are not a device's own. Features are bit numbers, since there are 64 of them.
 */

/** Device ids (section 5). */
export const VirtioDeviceId = { NETWORK: 1, BLOCK: 2, SCSI: 8 } as const

/** Reserved feature bits (section 6), and those of before version 1 that front ends still offer (section 6.3). */
export const VirtioFeature = {
  /** Legacy: an interrupt when the device has used everything, whatever the driver asked for. */
  NOTIFY_ON_EMPTY: 24,
  /** Legacy: descriptors may be cut anywhere, as they always may since version 1. */
  ANY_LAYOUT: 27,
  INDIRECT_DESC: 28,
  EVENT_IDX: 29,
  VERSION_1: 32,
  ACCESS_PLATFORM: 33,
  RING_PACKED: 34,
  IN_ORDER: 35,
  ORDER_PLATFORM: 36,
  SR_IOV: 37,
  NOTIFICATION_DATA: 38,
  NOTIF_CONFIG_DATA: 39,
  RING_RESET: 40,
} as const
