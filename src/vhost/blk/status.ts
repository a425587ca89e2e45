/** NVMe status to virtio-blk status: the one place where the two vocabularies meet. */
import { Status } from '../../spec/nvme-status.ts'
import { BlkStatus } from '../../spec/virtio-blk.ts'

/** Whatever is not told apart here is IOERR: virtio has no better word for it. */
export function blkStatusOf(status: number): number {
  if (status === Status.SUCCESS) return BlkStatus.OK
  return status === Status.INVALID_OPCODE ? BlkStatus.UNSUPP : BlkStatus.IOERR
}
