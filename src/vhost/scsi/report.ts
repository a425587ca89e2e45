/** What a target tells of itself: its units, the commands and the task management functions that there are. */
import {
  OneOpcode,
  OpcodeDescriptor,
  OpcodeSupport,
  REPORT_LUNS_UNIT,
  ReportingOptions,
  ReportLunsCdb,
  ReportLunsHeader,
  ReportLunsSelect,
  ReportOpcodesCdb,
  SupportedTaskManagement,
  TimeoutsDescriptor,
} from '../../spec/scsi.ts'
import type { Handled, ScsiCommand } from './command.ts'
import type { CommandDefinition } from './commands.ts'
import { Attention, dropAttention } from './shared-units.ts'

const LUN_SIZE = 8
/** SPC-4, section 6.33: shorter ones are refused. */
const REPORT_LUNS_ALLOCATION_MIN = 16

export function reportLuns(command: ScsiCommand): Handled {
  const { cdb, host, unit } = command
  const select = ReportLunsCdb.select.get(cdb, 0)
  const allocationLength = ReportLunsCdb.allocationLength.get(cdb, 0)
  if (select > ReportLunsSelect.ALL) return command.refuseField(ReportLunsCdb.select.offset)
  if (allocationLength < REPORT_LUNS_ALLOCATION_MIN) {
    return command.refuseField(ReportLunsCdb.allocationLength.offset)
  }
  const view = command.clearScratch(ReportLunsHeader.size + 2 * LUN_SIZE)
  let at: number = ReportLunsHeader.size
  if (select !== ReportLunsSelect.WELL_KNOWN) at += LUN_SIZE
  if (select !== ReportLunsSelect.ALL_BUT_WELL_KNOWN) {
    view.setUint16(at, REPORT_LUNS_UNIT)
    at += LUN_SIZE
  }
  ReportLunsHeader.listLength.set(view, 0, at - ReportLunsHeader.size)
  dropAttention(host.units, unit.number, Attention.REPORTED_LUNS_CHANGED)
  return command.reply(at, allocationLength)
}

export function reportSupportedTaskManagement(command: ScsiCommand): Handled {
  const { size } = SupportedTaskManagement
  const view = command.clearScratch(size)
  SupportedTaskManagement.abortTask.set(view, 0, 1)
  SupportedTaskManagement.abortTaskSet.set(view, 0, 1)
  SupportedTaskManagement.clearTaskSet.set(view, 0, 1)
  SupportedTaskManagement.unitReset.set(view, 0, 1)
  SupportedTaskManagement.queryTask.set(view, 0, 1)
  SupportedTaskManagement.queryTaskSet.set(view, 0, 1)
  SupportedTaskManagement.nexusReset.set(view, 0, 1)
  return command.reply(size, ReportOpcodesCdb.allocationLength.get(command.cdb, 0))
}

export function reportOpcodes(command: ScsiCommand, all: readonly CommandDefinition[]): Handled {
  const { cdb } = command
  const hasTimeouts = ReportOpcodesCdb.rctd.get(cdb, 0) === 1
  const options = ReportOpcodesCdb.reportingOptions.get(cdb, 0)
  const opcode = ReportOpcodesCdb.requestedOpcode.get(cdb, 0)
  const action = ReportOpcodesCdb.requestedServiceAction.get(cdb, 0)
  const here = all.filter(({ isThere }) => isThere?.(command.info) ?? true)
  if (options === ReportingOptions.ALL) return replyAll(command, here, hasTimeouts)
  const ofOpcode = here.filter(one => one.opcode === opcode)
  const hasActions = ofOpcode.some(one => one.action !== undefined)
  const isMisplaced =
    (options === ReportingOptions.OPCODE && hasActions) ||
    (options === ReportingOptions.SERVICE_ACTION && ofOpcode.length > 0 && !hasActions) ||
    options > ReportingOptions.EITHER
  if (isMisplaced) return command.refuseField(2)
  // Without service actions, only 0 is meant.
  const found = ofOpcode.find(one => (one.action ?? 0) === action || options === ReportingOptions.OPCODE)
  return replyOne(command, found, hasTimeouts)
}

function replyAll(command: ScsiCommand, all: readonly CommandDefinition[], hasTimeouts: boolean): Handled {
  const entrySize = OpcodeDescriptor.size + (hasTimeouts ? TimeoutsDescriptor.size : 0)
  const size = 4 + all.length * entrySize
  const view = command.clearScratch(size)
  view.setUint32(0, size - 4)
  for (const [index, { opcode, action, usage }] of all.entries()) {
    const at = 4 + index * entrySize
    OpcodeDescriptor.opcode.set(view, at, opcode)
    OpcodeDescriptor.serviceAction.set(view, at, action ?? 0)
    OpcodeDescriptor.servactv.set(view, at, action === undefined ? 0 : 1)
    OpcodeDescriptor.ctdp.set(view, at, hasTimeouts ? 1 : 0)
    OpcodeDescriptor.cdbLength.set(view, at, usage.length)
    if (hasTimeouts) TimeoutsDescriptor.length.set(view, at + OpcodeDescriptor.size, 10)
  }
  return command.reply(size, ReportOpcodesCdb.allocationLength.get(command.cdb, 0))
}

function replyOne(command: ScsiCommand, found: CommandDefinition | undefined, hasTimeouts: boolean): Handled {
  const allocationLength = ReportOpcodesCdb.allocationLength.get(command.cdb, 0)
  const view = command.clearScratch(64)
  if (found === undefined) {
    OneOpcode.support.set(view, 0, OpcodeSupport.NOT_SUPPORTED)
    return command.reply(OneOpcode.size, allocationLength)
  }
  OneOpcode.support.set(view, 0, OpcodeSupport.STANDARD)
  OneOpcode.ctdp.set(view, 0, hasTimeouts ? 1 : 0)
  OneOpcode.cdbSize.set(view, 0, found.usage.length)
  new Uint8Array(view.buffer, view.byteOffset + OneOpcode.size).set(found.usage)
  let size = OneOpcode.size + found.usage.length
  if (hasTimeouts) {
    TimeoutsDescriptor.length.set(view, size, 10)
    size += TimeoutsDescriptor.size
  }
  return command.reply(size, allocationLength)
}
