/** The commands that a unit knows: a new one is one entry. What a command needs, its file says. */
import type { BdevInfo } from '../../bdev/bdev.ts'
import { IoType } from '../../bdev/io.ts'
import {
  Asc,
  Cdb10,
  Cdb12,
  Cdb16,
  CONTROL_NACA,
  Opcode,
  REPORT_LUNS_UNIT,
  ReserveInAction,
  ReserveOutAction,
  ScsiStatus,
  SERVICE_ACTION_MASK,
  SenseKey,
  ServiceAction,
} from '../../spec/scsi.ts'
import { readCapacity10, readCapacity16 } from './capacity.ts'
import type { Handled, ScsiCommand } from './command.ts'
import { inquiry, inquiryElsewhere } from './inquiry.ts'
import { modeSelect6, modeSelect10, modeSense6, modeSense10 } from './mode.ts'
import * as rw from './read-write.ts'
import { reportLuns, reportOpcodes, reportSupportedTaskManagement } from './report.ts'
import * as reservations from './reservations.ts'
import { Gate, takeAttention, UnitWord, unitWord } from './shared-units.ts'
import * as control from './unit-control.ts'
import { unmap } from './unmap.ts'
import { writeSame10, writeSame16 } from './write-same.ts'

export interface CommandDefinition {
  readonly opcode: number
  /** Of commands that have one. */
  readonly action?: number
  /** The bits of the CDB that mean something here (SPC-4, section 6.35.3); its length is the CDB's. */
  readonly usage: Uint8Array
  /** What reservations of others may forbid: bits of `Gate`. */
  readonly needs: number
  /** A unit attention waits for the next command. */
  readonly ignoresAttention: boolean
  run(command: ScsiCommand): Handled
  /** Not on every bdev. */
  isThere?(info: BdevInfo): boolean
}

/** As reservations see commands (SPC-4, table 67, and SBC-3, table 14). */
const Needs = {
  NOTHING: 0,
  UNIT: Gate.MOST,
  READ: Gate.MOST | Gate.READS,
  WRITE: Gate.MOST | Gate.WRITES,
} as const

type Options = Partial<Pick<CommandDefinition, 'action' | 'isThere' | 'ignoresAttention'>>

function define(
  usage: string,
  needs: number,
  run: (command: ScsiCommand) => Handled,
  options: Options = {},
): CommandDefinition {
  const bytes = Uint8Array.from(Buffer.from(usage.replaceAll(' ', ''), 'hex'))
  return { opcode: bytes[0]!, usage: bytes, needs, run, ignoresAttention: false, ...options }
}

const ALWAYS = { ignoresAttention: true } as const
const canUnmap = (info: BdevInfo): boolean => info.supports.has(IoType.UNMAP)

const reserveIn = (action: number, run: (command: ScsiCommand) => Handled): CommandDefinition =>
  define('5e 1f 0000000000 ffff 00', Needs.UNIT, run, { action })
/** Reservations have rules of their own for who may change them. */
const reserveOut = (action: number): CommandDefinition =>
  define('5f 1f ff 0000 ffffffff 00', Needs.NOTHING, reservations.reserveOut, { action })

const COMMANDS: readonly CommandDefinition[] = [
  define('00 00 0000 00 00', Needs.UNIT, control.testUnitReady),
  define('03 01 0000 ff 00', Needs.NOTHING, control.requestSense, ALWAYS),
  define('08 1f ffff ff 00', Needs.READ, rw.read(rw.Range6)),
  define('0a 1f ffff ff 00', Needs.WRITE, rw.write(rw.Range6)),
  define('12 01 ff ffff 00', Needs.NOTHING, inquiry, ALWAYS),
  define('15 11 0000 ff 00', Needs.WRITE, modeSelect6),
  define('16 00 0000 00 00', Needs.NOTHING, reservations.reserve6),
  define('17 00 0000 00 00', Needs.NOTHING, reservations.release6),
  define('1a 08 ff ff ff 00', Needs.READ, modeSense6),
  define('1b 00 0000 f7 00', Needs.UNIT, control.startStopUnit),
  define('1d 04 0000 00 00', Needs.READ, control.sendDiagnostic),
  define('1e 00 0000 03 00', Needs.UNIT, control.preventAllowMediumRemoval),
  define('25 00 00000000 0000 00 00', Needs.UNIT, readCapacity10),
  define('28 18 ffffffff 00 ffff 00', Needs.READ, rw.read(Cdb10)),
  define('2a 18 ffffffff 00 ffff 00', Needs.WRITE, rw.write(Cdb10)),
  define('2e 16 ffffffff 00 ffff 00', Needs.WRITE, rw.writeAndVerify(Cdb10)),
  define('2f 16 ffffffff 00 ffff 00', Needs.READ, rw.verify(Cdb10)),
  define('35 02 ffffffff 00 ffff 00', Needs.WRITE, control.synchronizeCache10),
  define('41 08 ffffffff 00 ffff 00', Needs.WRITE, writeSame10),
  define('42 00 00000000 00 ffff 00', Needs.WRITE, unmap, { isThere: canUnmap }),
  define('55 11 0000000000 ffff 00', Needs.WRITE, modeSelect10),
  define('5a 18 ff ff 000000 ffff 00', Needs.READ, modeSense10),
  reserveIn(ReserveInAction.READ_KEYS, reservations.readKeys),
  reserveIn(ReserveInAction.READ_RESERVATION, reservations.readReservation),
  reserveIn(ReserveInAction.REPORT_CAPABILITIES, reservations.reportCapabilities),
  reserveIn(ReserveInAction.READ_FULL_STATUS, reservations.readFullStatus),
  ...Object.values(ReserveOutAction).map(reserveOut),
  define('88 18 ffffffffffffffff ffffffff 00 00', Needs.READ, rw.read(Cdb16)),
  define('89 18 ffffffffffffffff 000000ff 00 00', Needs.WRITE, rw.compareAndWrite),
  define('8a 18 ffffffffffffffff ffffffff 00 00', Needs.WRITE, rw.write(Cdb16)),
  define('8e 16 ffffffffffffffff ffffffff 00 00', Needs.WRITE, rw.writeAndVerify(Cdb16)),
  define('8f 16 ffffffffffffffff ffffffff 00 00', Needs.READ, rw.verify(Cdb16)),
  define('91 02 ffffffffffffffff ffffffff 00 00', Needs.WRITE, control.synchronizeCache16),
  define('93 09 ffffffffffffffff ffffffff 00 00', Needs.WRITE, writeSame16),
  define('9e 1f 0000000000000000 ffffffff 00 00', Needs.UNIT, readCapacity16, {
    action: ServiceAction.READ_CAPACITY_16,
  }),
  define('a0 00 ff 000000 ffffffff 00 00', Needs.NOTHING, reportLuns, ALWAYS),
  define('a3 1f 87 ff ffff ffffffff 00 00', Needs.READ, command => reportOpcodes(command, COMMANDS), {
    action: ServiceAction.REPORT_SUPPORTED_OPERATION_CODES,
  }),
  define('a3 1f 00 00 0000 ffffffff 00 00', Needs.READ, reportSupportedTaskManagement, {
    action: ServiceAction.REPORT_SUPPORTED_TASK_MANAGEMENT,
  }),
  define('a8 18 ffffffff ffffffff 00 00', Needs.READ, rw.read(Cdb12)),
  define('aa 18 ffffffff ffffffff 00 00', Needs.WRITE, rw.write(Cdb12)),
]

/** By opcode; those with service actions have one for each. */
interface Entry {
  readonly only: CommandDefinition | null
  readonly byAction: readonly (CommandDefinition | undefined)[]
}

const ENTRIES: readonly (Entry | null)[] = Array.from({ length: 256 }, (_, opcode) => {
  const here = COMMANDS.filter(definition => definition.opcode === opcode)
  if (here.length === 0) return null
  const byAction = Array.from({ length: SERVICE_ACTION_MASK + 1 }, (_, action) =>
    here.find(definition => definition.action === action),
  )
  return { only: here.find(({ action }) => action === undefined) ?? null, byAction }
})

/** Carries out a command of LUN 0, or refuses it. */
export function execute(command: ScsiCommand): Handled {
  const { cdb, host, unit } = command
  const entry = ENTRIES[cdb.getUint8(0)]!
  const definition =
    entry === null ? undefined : (entry.only ?? entry.byAction[cdb.getUint8(1) & SERVICE_ACTION_MASK])
  if (
    unitWord(host.units, unit.number, UnitWord.ATTENTIONS) !== 0 &&
    (definition === undefined || !definition.ignoresAttention)
  ) {
    const asc = takeAttention(host.units, unit.number)
    if (asc !== 0) return command.check(SenseKey.UNIT_ATTENTION, asc)
  }
  if (definition === undefined) {
    if (entry !== null) return command.refuseField(1)
    return command.check(SenseKey.ILLEGAL_REQUEST, Asc.INVALID_OPCODE)
  }
  if (command.isBarred(definition.needs)) return command.end(ScsiStatus.RESERVATION_CONFLICT)
  const { length } = definition.usage
  if ((cdb.getUint8(length - 1) & CONTROL_NACA) !== 0) return command.refuseField(length - 1)
  if (definition.isThere !== undefined && !definition.isThere(command.info)) {
    return command.check(SenseKey.ILLEGAL_REQUEST, Asc.INVALID_OPCODE)
  }
  return definition.run(command)
}

/** Carries out a command of another LUN, where there is nothing but, perhaps, the well-known unit. */
export function executeElsewhere(command: ScsiCommand, lun: number): Handled {
  const opcode = command.cdb.getUint8(0)
  if (opcode === Opcode.INQUIRY) return inquiryElsewhere(command, lun)
  if (opcode === Opcode.REPORT_LUNS) return reportLuns(command)
  if (lun === REPORT_LUNS_UNIT && opcode === Opcode.TEST_UNIT_READY) return command.good(0)
  if (opcode === Opcode.REQUEST_SENSE) return control.requestSenseElsewhere(command)
  return command.check(SenseKey.ILLEGAL_REQUEST, Asc.UNIT_NOT_SUPPORTED)
}
