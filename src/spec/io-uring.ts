/** io_uring's shared structures and numbers (linux/io_uring.h, kernel 6.1 and later). */
import { struct, u32, u53 } from '../core/struct.ts'

export const SYS_IO_URING_SETUP = 425
export const SYS_IO_URING_ENTER = 426
export const SYS_IO_URING_REGISTER = 427

export const Opcode = {
  NOP: 0,
  READV: 1,
  WRITEV: 2,
  FSYNC: 3,
  POLL_ADD: 6,
  SENDMSG: 9,
  RECVMSG: 10,
  TIMEOUT: 11,
  ACCEPT: 13,
  ASYNC_CANCEL: 14,
  CONNECT: 16,
  FALLOCATE: 17,
  READ: 22,
  WRITE: 23,
  SEND: 26,
  RECV: 27,
} as const

export const Setup = {
  CQSIZE: 1 << 3,
  CLAMP: 1 << 4,
  SUBMIT_ALL: 1 << 7,
  COOP_TASKRUN: 1 << 8,
  TASKRUN_FLAG: 1 << 9,
  SINGLE_ISSUER: 1 << 12,
  DEFER_TASKRUN: 1 << 13,
} as const

export const Enter = {
  GETEVENTS: 1 << 0,
  EXT_ARG: 1 << 3,
  REGISTERED_RING: 1 << 4,
} as const

export const Feature = {
  SINGLE_MMAP: 1 << 0,
  NODROP: 1 << 1,
  EXT_ARG: 1 << 8,
} as const

export const Register = {
  IOWQ_AFF: 17,
  IOWQ_MAX_WORKERS: 19,
  RING_FDS: 20,
} as const

/** Bits of the submission ring's `flags` word. */
export const SqFlag = { NEED_WAKEUP: 1, CQ_OVERFLOW: 2, TASKRUN: 4 } as const

/** Bits of a completion's `flags`. */
export const CqeFlag = { BUFFER: 1, MORE: 2, SOCK_NONEMPTY: 4, NOTIF: 8 } as const

/** `ioprio` of send and receive: wait for readiness first instead of trying at once. */
export const RECVSEND_POLL_FIRST = 1

/** `len` of POLL_ADD: stay armed after the first event. */
export const POLL_ADD_MULTI = 1

/** `ioprio` of ACCEPT: stay armed. */
export const ACCEPT_MULTISHOT = 1

export const OFF_SQ_RING = 0
export const OFF_SQES = 0x1000_0000

/** struct io_uring_params, 120 bytes, with the offsets of the two rings in it. */
export const Params = struct(120, {
  sqEntries: u32(0),
  cqEntries: u32(4),
  flags: u32(8),
  sqThreadCpu: u32(12),
  sqThreadIdle: u32(16),
  features: u32(20),
  wqFd: u32(24),
  sqHead: u32(40),
  sqTail: u32(44),
  sqRingMask: u32(48),
  sqRingEntries: u32(52),
  sqFlags: u32(56),
  sqDropped: u32(60),
  sqArray: u32(64),
  cqHead: u32(80),
  cqTail: u32(84),
  cqRingMask: u32(88),
  cqRingEntries: u32(92),
  cqOverflow: u32(96),
  cqCqes: u32(100),
  cqFlags: u32(104),
})

/** struct io_uring_sqe, 64 bytes; in the ring's own code it is written as 16 words. */
export const SQE_SIZE = 64
/** struct io_uring_cqe: user_data (8), res (4), flags (4). */
export const CQE_SIZE = 16

/** struct io_uring_getevents_arg, for a time-out in `io_uring_enter`. */
export const GetEventsArg = struct(24, {
  sigmask: u53(0),
  sigmaskSize: u32(8),
  minWaitUsec: u32(12),
  timespec: u53(16),
})

/** struct __kernel_timespec. */
export const Timespec = struct(16, { seconds: u53(0), nanoseconds: u53(8) })

/** struct iovec. */
export const IOVEC_SIZE = 16

/** struct msghdr, 56 bytes. */
export const Msghdr = struct(56, {
  name: u53(0),
  nameSize: u32(8),
  iov: u53(16),
  iovCount: u53(24),
  control: u53(32),
  controlSize: u53(40),
  flags: u32(48),
})

/** struct io_uring_rsrc_update, as RING_FDS takes it. */
export const ResourceUpdate = struct(16, { offset: u32(0), reserved: u32(4), data: u53(8) })
