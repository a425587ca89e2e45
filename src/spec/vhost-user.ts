/**
 * The vhost-user protocol, from QEMU's docs/interop/vhost-user.rst: the front end (QEMU) hands the memory and the
 * virtqueues of a guest to a back end over a Unix socket. All numbers are in the machine's byte order: little-endian here.
 */
import { struct, u16, u32, u53 } from '../core/struct.ts'

/** What every message begins with ("Message specification"); `payloadBytes` bytes follow. */
export const MessageHeader = struct(12, { request: u32(0), flags: u32(4), payloadBytes: u32(8) })

export const VHOST_USER_VERSION = 1

/** Bits of a message's `flags`. */
export const MessageFlag = {
  VERSION_MASK: 3,
  REPLY: 1 << 2,
  NEED_REPLY: 1 << 3,
} as const

/** "Front-end message types". */
export const Request = {
  GET_FEATURES: 1,
  SET_FEATURES: 2,
  SET_OWNER: 3,
  RESET_OWNER: 4,
  SET_MEM_TABLE: 5,
  SET_LOG_BASE: 6,
  SET_LOG_FD: 7,
  SET_VRING_NUM: 8,
  SET_VRING_ADDR: 9,
  SET_VRING_BASE: 10,
  GET_VRING_BASE: 11,
  SET_VRING_KICK: 12,
  SET_VRING_CALL: 13,
  SET_VRING_ERR: 14,
  GET_PROTOCOL_FEATURES: 15,
  SET_PROTOCOL_FEATURES: 16,
  GET_QUEUE_NUM: 17,
  SET_VRING_ENABLE: 18,
  SEND_RARP: 19,
  NET_SET_MTU: 20,
  SET_BACKEND_REQ_FD: 21,
  IOTLB_MSG: 22,
  SET_VRING_ENDIAN: 23,
  GET_CONFIG: 24,
  SET_CONFIG: 25,
  CREATE_CRYPTO_SESSION: 26,
  CLOSE_CRYPTO_SESSION: 27,
  POSTCOPY_ADVISE: 28,
  POSTCOPY_LISTEN: 29,
  POSTCOPY_END: 30,
  GET_INFLIGHT_FD: 31,
  SET_INFLIGHT_FD: 32,
  GPU_SET_SOCKET: 33,
  RESET_DEVICE: 34,
  VRING_KICK: 35,
  GET_MAX_MEM_SLOTS: 36,
  ADD_MEM_REG: 37,
  REM_MEM_REG: 38,
  SET_STATUS: 39,
  GET_STATUS: 40,
  GET_SHARED_OBJECT: 41,
  SET_DEVICE_STATE_FD: 42,
  CHECK_DEVICE_STATE: 43,
} as const

/** "Back-end message types": what the back end asks for, on a socket of its own (SET_BACKEND_REQ_FD). */
export const BackendRequest = {
  IOTLB_MSG: 1,
  CONFIG_CHANGE_MSG: 2,
  VRING_HOST_NOTIFIER_MSG: 3,
  VRING_CALL: 4,
  VRING_ERR: 5,
} as const

/** Feature bits that are vhost's own, beside those of virtio. */
export const VhostFeature = {
  /** VHOST_F_LOG_ALL: writes to guest memory are logged, for live migration. */
  LOG_ALL: 1n << 26n,
  /** VHOST_USER_F_PROTOCOL_FEATURES */
  PROTOCOL_FEATURES: 1n << 30n,
} as const

/** "Protocol features": VHOST_USER_PROTOCOL_F_*. */
export const ProtocolFeature = {
  MQ: 1n << 0n,
  LOG_SHMFD: 1n << 1n,
  RARP: 1n << 2n,
  REPLY_ACK: 1n << 3n,
  NET_MTU: 1n << 4n,
  BACKEND_REQ: 1n << 5n,
  CROSS_ENDIAN: 1n << 6n,
  CRYPTO_SESSION: 1n << 7n,
  PAGEFAULT: 1n << 8n,
  CONFIG: 1n << 9n,
  BACKEND_SEND_FD: 1n << 10n,
  HOST_NOTIFIER: 1n << 11n,
  INFLIGHT_SHMFD: 1n << 12n,
  RESET_DEVICE: 1n << 13n,
  INBAND_NOTIFICATIONS: 1n << 14n,
  CONFIGURE_MEM_SLOTS: 1n << 15n,
  STATUS: 1n << 16n,
  XEN_MMAP: 1n << 17n,
  SHARED_OBJECT: 1n << 18n,
  DEVICE_STATE: 1n << 19n,
} as const

/** "A single 64-bit integer". A mask of features is read with `getBigUint64`. */
export const U64 = struct(8, { value: u53(0) })

/** The u64 of SET_VRING_KICK, CALL and ERR: the ring's index in bits 0 to 7. */
export const VRING_INDEX_MASK = 0xff
/** Of the same: no descriptor comes along. */
export const VRING_NO_DESCRIPTOR = 1 << 8

/** "A vring state description". */
export const VringState = struct(8, { index: u32(0), num: u32(4) })

/** "A vring address description". The rings' addresses are the front end's own ("user addresses"). */
export const VringAddress = struct(40, {
  index: u32(0),
  flags: u32(4),
  descriptor: u53(8),
  used: u53(16),
  available: u53(24),
  /** A guest address: where the used ring is for the log. */
  log: u53(32),
})

/** VHOST_VRING_F_LOG, in the flags of SET_VRING_ADDR: writes to the used ring are logged. */
export const VRING_FLAG_LOG = 1 << 0

/** What precedes the regions of SET_MEM_TABLE. */
export const MemoryTable = struct(8, { regionCount: u32(0), padding: u32(4) })

/** "Memory region description". */
export const MemoryRegion = struct(32, {
  guestAddress: u53(0),
  sizeBytes: u53(8),
  userAddress: u53(16),
  mmapOffset: u53(24),
})

/** Where the region lies in the payload of ADD_MEM_REG and REM_MEM_REG, after 8 bytes of padding. */
export const SINGLE_REGION_AT = 8
export const SINGLE_REGION_SIZE = 40

/** The most regions, and so descriptors, that one SET_MEM_TABLE carries. */
export const TABLE_REGIONS_MAX = 8

/** "Log description". */
export const LogDescription = struct(16, { sizeBytes: u53(0), mmapOffset: u53(8) })
/** VHOST_LOG_PAGE: what one bit of the log stands for. */
export const LOG_PAGE_SIZE = 4096

/** "Virtio device config space"; `sizeBytes` bytes follow. */
export const ConfigHeader = struct(12, { offset: u32(0), sizeBytes: u32(4), flags: u32(8) })
/** VHOST_USER_MAX_CONFIG_SIZE. */
export const CONFIG_SIZE_MAX = 256
/** Flags of SET_CONFIG. */
export const ConfigFlag = { WRITABLE: 0, LIVE_MIGRATION: 1 } as const

/**
 * "Inflight description", of which only 20 bytes mean something: QEMU and DPDK send the C structure, padded to 24, and
 * accept no other size in an answer. What lies in that memory: `spec/virtqueue.ts`.
 */
export const InflightDescription = struct(24, {
  mmapSize: u53(0),
  mmapOffset: u53(8),
  queueCount: u16(16),
  queueSize: u16(18),
})
