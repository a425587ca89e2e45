/**
 * The first command of every connection, Connect (Base specification 2.1, section 6.3): everything about it that needs
 * no knowledge of controllers is checked here, in the order of its fields.
 */
import { TextDecoder } from 'node:util'
import { Status } from '../spec/nvme-status.ts'
import {
  CNTLID_DYNAMIC,
  ConnectData,
  ConnectInvalid,
  ConnectSqe,
  FABRICS_OPCODE,
  FabricsSqe,
  FabricsStatus,
  FabricsType,
  InvalidIn,
  NQN_FIELD_SIZE,
  NQN_LENGTH_MAX,
} from '../spec/nvmf.ts'
import type { ConnectQuestion, Refused, TransportSettings } from './messages.ts'
import type { CommandRequest, Connection } from './request.ts'

export interface ParsedConnect {
  readonly question: ConnectQuestion
  /** Entries, not 0's based. */
  readonly sqSize: number
  /** Milliseconds, 0 for none. */
  readonly katoMs: number
}

const refuse = (status: number, reason: string, dw0 = 0): Refused => ({
  admitted: false,
  status,
  dw0,
  reason,
})

/** Connect Invalid Parameters, pointing at a field of the submission queue entry or of the data. */
export function invalidParameter(where: InvalidIn, offset: number, reason: string): Refused {
  const view = new DataView(new ArrayBuffer(ConnectInvalid.size))
  ConnectInvalid.ipo.set(view, 0, offset)
  ConnectInvalid.iattr.set(view, 0, where)
  return refuse(FabricsStatus.CONNECT_INVALID_PARAMETERS, reason, view.getUint32(0, true))
}

export function parseConnect(
  request: CommandRequest,
  connection: Connection,
  transport: TransportSettings,
): ParsedConnect | Refused {
  const { sqe, dataOut } = request
  const isConnect =
    FabricsSqe.opcode.get(sqe, 0) === FABRICS_OPCODE && FabricsSqe.fctype.get(sqe, 0) === FabricsType.CONNECT
  if (!isConnect) return refuse(Status.COMMAND_SEQUENCE_ERROR, 'the first command is not a Connect')
  if (dataOut.length < ConnectData.size) {
    return refuse(
      Status.DATA_SGL_LENGTH_INVALID,
      `Connect data has ${dataOut.length} bytes, not ${ConnectData.size}`,
    )
  }
  const recfmt = ConnectSqe.recfmt.get(sqe, 0)
  if (recfmt !== 0) return refuse(FabricsStatus.INCOMPATIBLE_FORMAT, `record format ${recfmt} is not 0`)

  const qid = ConnectSqe.qid.get(sqe, 0)
  const isAdmin = qid === 0
  const sqSize = ConnectSqe.sqsize.get(sqe, 0) + 1
  const sqSizeMax = isAdmin ? transport.maxAqDepth : transport.maxQueueDepth
  if (sqSize < 2 || sqSize > sqSizeMax) {
    return invalidParameter(
      InvalidIn.SQE,
      ConnectSqe.sqsize.offset,
      `queue ${qid} would have ${sqSize} entries, not 2 to ${sqSizeMax}`,
    )
  }
  const data = new DataView(dataOut.buffer, dataOut.byteOffset, dataOut.length)
  const cntlid = ConnectData.cntlid.get(data, 0)
  if (isAdmin && cntlid !== CNTLID_DYNAMIC) {
    return invalidParameter(
      InvalidIn.DATA,
      ConnectData.cntlid.offset,
      `controller ${cntlid} was asked for, but controllers here are dynamic: FFFFh`,
    )
  }
  const subnqn = nameAt(dataOut, ConnectData.subnqn.offset)
  if (subnqn === undefined) {
    return invalidParameter(InvalidIn.DATA, ConnectData.subnqn.offset, 'the subsystem has no readable name')
  }
  const hostnqn = nameAt(dataOut, ConnectData.hostnqn.offset)
  if (hostnqn === undefined) {
    return invalidParameter(InvalidIn.DATA, ConnectData.hostnqn.offset, 'the host has no readable name')
  }
  const hostid = Buffer.from(ConnectData.hostid.get(data, 0)).toString('hex')
  const { listenerId, local, remote } = connection
  return {
    question: { subnqn, hostnqn, hostid, qid, cntlid, listenerId, local, remote },
    sqSize,
    katoMs: isAdmin ? ConnectSqe.kato.get(sqe, 0) : 0,
  }
}

const utf8 = new TextDecoder('utf-8', { fatal: true })

/** A name that ends with a zero byte within its field, is not empty or too long, and is UTF-8. */
function nameAt(data: Uint8Array, offset: number): string | undefined {
  const field = data.subarray(offset, offset + NQN_FIELD_SIZE)
  const length = field.indexOf(0)
  if (length <= 0 || length > NQN_LENGTH_MAX) return undefined
  try {
    return utf8.decode(field.subarray(0, length))
  } catch {
    // Bytes that are no UTF-8 are no name.
    return undefined
  }
}
