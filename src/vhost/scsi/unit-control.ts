/** Commands about the unit as a whole: is it there, what is wrong, start, stop, write the cache out. */
import { IoType } from '../../bdev/io.ts'
import { Status } from '../../spec/nvme-status.ts'
import {
  Asc,
  Cdb10,
  Cdb16,
  REQUEST_SENSE_DESC,
  RequestSenseCdb,
  ScsiStatus,
  SenseKey,
  StartStopCdb,
} from '../../spec/scsi.ts'
import { good, type Handled, type ScsiCommand } from './command.ts'
import { writeDescriptorSense, writeFixedSense } from './sense.ts'
import { Gate, takeAttention } from './shared-units.ts'

/** SEND DIAGNOSTIC: the self-test that every device has. */
const SELF_TEST = 0x04

export function testUnitReady(command: ScsiCommand): Handled {
  return command.good(0)
}

/** Sense always goes with the command that it is about, so what is left to tell is a unit attention. */
export function requestSense(command: ScsiCommand): Handled {
  const asc = takeAttention(command.host.units, command.unit.number)
  return replySense(command, asc === 0 ? SenseKey.NO_SENSE : SenseKey.UNIT_ATTENTION, asc)
}

/** Of a LUN that no unit has. */
export function requestSenseElsewhere(command: ScsiCommand): Handled {
  return replySense(command, SenseKey.ILLEGAL_REQUEST, Asc.UNIT_NOT_SUPPORTED)
}

function replySense(command: ScsiCommand, key: number, asc: number): Handled {
  const { cdb, host } = command
  const isDescriptor = (RequestSenseCdb.flags.get(cdb, 0) & REQUEST_SENSE_DESC) !== 0
  const write = isDescriptor ? writeDescriptorSense : writeFixedSense
  return command.reply(write(host.scratch, 0, key, asc), RequestSenseCdb.allocationLength.get(cdb, 0))
}

/** The disk is never really stopped: it would be stopped for every guest that has it. */
export function startStopUnit(command: ScsiCommand): Handled {
  const { cdb } = command
  if (StartStopCdb.powerCondition.get(cdb, 0) !== 0 || StartStopCdb.loej.get(cdb, 0) !== 0) {
    return command.refuseField(4)
  }
  if (StartStopCdb.start.get(cdb, 0) === 1) return command.good(0)
  if (command.isBarred(Gate.WRITES)) return command.end(ScsiStatus.RESERVATION_CONFLICT)
  if (StartStopCdb.noFlush.get(cdb, 0) === 1) return command.good(0)
  return flush(command)
}

/** There is no medium that could be removed, so it is prevented at all times. */
export function preventAllowMediumRemoval(command: ScsiCommand): Handled {
  return command.good(0)
}

export function sendDiagnostic(command: ScsiCommand): Handled {
  if (command.cdb.getUint8(1) !== SELF_TEST) return command.refuseField(1)
  return command.good(0)
}

export function synchronizeCache10(command: ScsiCommand): Handled {
  return synchronize(command, Cdb10.lba.get(command.cdb, 0), Cdb10.length.get(command.cdb, 0))
}

export function synchronizeCache16(command: ScsiCommand): Handled {
  return synchronize(command, Cdb16.lba.get(command.cdb, 0), Cdb16.length.get(command.cdb, 0))
}

/** Bdevs flush as a whole. IMMED is answered later than it could be. */
function synchronize(command: ScsiCommand, firstBlock: number, blocks: number): Handled {
  if (firstBlock + blocks > command.info.blockCount) return command.fail(Status.LBA_OUT_OF_RANGE)
  return flush(command)
}

function flush(command: ScsiCommand): Handled {
  command.aim(IoType.FLUSH, 0, 0, false).segments.count = 0
  return command.submit(good)
}
