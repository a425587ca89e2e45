/** How a failed system call ends an I/O: the only table from errno to NVMe status. */
import { constants } from 'node:os'
import { Status } from '../spec/nvme-status.ts'

const { errno } = constants

/** Linux's number, which Node has no name for: Ceph has shut this client out. */
const ESHUTDOWN = 108

/** Statuses that are the same for reads and writes. */
const STATUS_OF: readonly (readonly [errno: number, status: number])[] = [
  // The host may delete something and go on.
  [errno.ENOSPC, Status.CAPACITY_EXCEEDED],
  [errno.EDQUOT, Status.CAPACITY_EXCEEDED],
  [errno.EFBIG, Status.CAPACITY_EXCEEDED],
  [errno.EROFS, Status.NAMESPACE_WRITE_PROTECTED],
  [errno.EPERM, Status.ACCESS_DENIED],
  [errno.EACCES, Status.ACCESS_DENIED],
  [errno.EOPNOTSUPP, Status.INVALID_OPCODE],
  [errno.ENOSYS, Status.INVALID_OPCODE],
  [errno.ECANCELED, Status.ABORTED_BY_REQUEST],
  // The same again may succeed.
  [errno.EINTR, Status.COMMAND_INTERRUPTED],
  [errno.EAGAIN, Status.COMMAND_INTERRUPTED],
  [errno.EBUSY, Status.COMMAND_INTERRUPTED],
  [errno.ENOMEM, Status.COMMAND_INTERRUPTED],
  [errno.ENOBUFS, Status.COMMAND_INTERRUPTED],
  // The medium cannot be reached from here, perhaps from another gateway: multipath hosts take their other path.
  [errno.ETIMEDOUT, Status.INTERNAL_PATH_ERROR],
  [errno.ENOLINK, Status.INTERNAL_PATH_ERROR],
  [errno.ECONNRESET, Status.INTERNAL_PATH_ERROR],
  [errno.ECONNREFUSED, Status.INTERNAL_PATH_ERROR],
  [errno.ENOTCONN, Status.INTERNAL_PATH_ERROR],
  [errno.EPIPE, Status.INTERNAL_PATH_ERROR],
  [errno.EHOSTUNREACH, Status.INTERNAL_PATH_ERROR],
  [errno.ENETUNREACH, Status.INTERNAL_PATH_ERROR],
  [errno.ENETDOWN, Status.INTERNAL_PATH_ERROR],
  [ESHUTDOWN, Status.INTERNAL_PATH_ERROR],
  [errno.ESTALE, Status.NAMESPACE_NOT_READY],
  [errno.ENODEV, Status.NAMESPACE_NOT_READY],
  [errno.ENXIO, Status.NAMESPACE_NOT_READY],
]

/** What the medium itself says, which NVMe tells apart by direction. */
const MEDIA: ReadonlySet<number> = new Set([errno.EIO, errno.EILSEQ, errno.ENODATA])

const TABLE = new Int32Array(256).fill(Status.INTERNAL_ERROR)
for (const [number, status] of STATUS_OF) TABLE[number] = status

/** `number` is positive. */
export function statusFromErrno(number: number, isWrite: boolean): number {
  if (MEDIA.has(number)) return isWrite ? Status.WRITE_FAULT : Status.UNRECOVERED_READ_ERROR
  return TABLE[number] ?? Status.INTERNAL_ERROR
}
