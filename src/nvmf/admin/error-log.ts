/** The Error Information log (Base specification 2.1, section 5.1.12.1.2): the last errors of a controller. */
import { GetLogPageSqe, Sqe } from '../../spec/nvme.ts'
import { ErrorInformation } from '../../spec/nvme-log.ts'
import { DNR } from '../../spec/nvme-status.ts'
import { TransportType } from '../../spec/nvmf.ts'
import type { CommandRequest, Completion } from '../request.ts'
import { ERROR_LOG_ENTRIES } from './identify.ts'

export class ErrorLog {
  readonly #entries = new DataView(new ArrayBuffer(ErrorInformation.size * ERROR_LOG_ENTRIES))
  /** Errors since the controller came to be. */
  count = 0

  /** Notes a command of the admin queue that failed. */
  add({ sqe }: CommandRequest, { status, doNotRetry }: Completion): void {
    const view = this.#entries
    const bytes = new Uint8Array(view.buffer)
    // The newest comes first.
    bytes.copyWithin(ErrorInformation.size, 0, bytes.length - ErrorInformation.size)
    bytes.fill(0, 0, ErrorInformation.size)
    this.count++
    ErrorInformation.ecnt.set(view, 0, this.count)
    ErrorInformation.cid.set(view, 0, Sqe.cid.get(sqe, 0))
    ErrorInformation.status.set(view, 0, doNotRetry ? status | DNR : status)
    // Which field is to blame is not told.
    ErrorInformation.pelByte.set(view, 0, 0xff)
    view.setUint8(ErrorInformation.pelBit.offset, 0xff)
    ErrorInformation.nsid.set(view, 0, Sqe.nsid.get(sqe, 0))
    ErrorInformation.trtype.set(view, 0, TransportType.TCP)
    ErrorInformation.csi.set(view, 0, GetLogPageSqe.csi.get(sqe, 0))
    ErrorInformation.opc.set(view, 0, Sqe.opcode.get(sqe, 0))
    ErrorInformation.lpver.set(view, 0, 1)
  }

  data(): Uint8Array {
    return new Uint8Array(this.#entries.buffer.slice(0))
  }
}
