/** NVMe status to NBD error: the one place where the two vocabularies meet. */
import { NbdError } from '../spec/nbd.ts'
import { Status } from '../spec/nvme-status.ts'

/** What is not in the table is EIO: a client can do nothing better with it. */
const ERRORS = new Map<number, number>([
  [Status.SUCCESS, NbdError.NONE],
  [Status.INVALID_FIELD, NbdError.EINVAL],
  [Status.INVALID_OPCODE, NbdError.EINVAL],
  [Status.ATOMIC_WRITE_UNIT_EXCEEDED, NbdError.EINVAL],
  [Status.COMMAND_SIZE_LIMIT_EXCEEDED, NbdError.EINVAL],
  [Status.LBA_OUT_OF_RANGE, NbdError.EINVAL],
  [Status.CAPACITY_EXCEEDED, NbdError.ENOSPC],
  [Status.NAMESPACE_INSUFFICIENT_CAPACITY, NbdError.ENOSPC],
  [Status.NAMESPACE_WRITE_PROTECTED, NbdError.EPERM],
  [Status.OPERATION_DENIED, NbdError.EPERM],
  [Status.WRITE_TO_READ_ONLY_RANGE, NbdError.EPERM],
  [Status.RESERVATION_CONFLICT, NbdError.EPERM],
  [Status.ACCESS_DENIED, NbdError.EPERM],
  [Status.NAMESPACE_NOT_READY, NbdError.ESHUTDOWN],
])

export function errorFromStatus(status: number): number {
  return ERRORS.get(status) ?? NbdError.EIO
}
