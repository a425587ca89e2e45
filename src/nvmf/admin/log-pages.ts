/** Get Log Page (Base specification 2.1, section 5.1.12). */
import { AdminOpcode, GetLogPageSqe, NSID_BROADCAST, NvmOpcode } from '../../spec/nvme.ts'
import {
  ADMIN_EFFECTS_OFFSET,
  ANA_LSP_GROUPS_ONLY,
  AnaGroupDescriptor,
  AnaLogHeader,
  CHANGED_NAMESPACES_MAX,
  CHANGED_NAMESPACES_SIZE,
  COMMANDS_SUPPORTED_SIZE,
  CommandEffect,
  FirmwareSlotLog,
  IO_EFFECTS_OFFSET,
  LogPageId,
  SmartLog,
  SUPPORTED_LOG_PAGES_SIZE,
  SupportedLogPage,
} from '../../spec/nvme-log.ts'
import { Status } from '../../spec/nvme-status.ts'
import { FABRICS_OPCODE } from '../../spec/nvmf.ts'
import { refuse, succeed } from '../completion.ts'
import type { HealthCounters, ListenerSnapshot, NamespaceSnapshot, SubsystemSnapshot } from '../messages.ts'
import { anaStateAt } from '../replica.ts'
import type { CommandRequest, Completion } from '../request.ts'
import type { ErrorLog } from './error-log.ts'

/** What log pages tell of: one controller and what it shows its host. */
export interface LogSource {
  readonly subsystem: SubsystemSnapshot
  /** The listener that the host came by. */
  readonly listener: ListenerSnapshot | undefined
  /** What this host sees, ascending. */
  readonly namespaces: readonly NamespaceSnapshot[]
  readonly firmwareRevision: string
  readonly errors: ErrorLog
  readonly supportedFeatures: readonly { readonly fid: number; readonly isChangeable: boolean }[]
  /** Namespaces that changed since the host last read of them. */
  readonly changedNamespaces: Set<number>
  /** How long the target has been there. */
  readonly uptimeMs: number
  health(): Promise<HealthCounters>
  discoveryLog(): Uint8Array
  /** The host has read it and did not ask to retain the event. */
  logPageRead(lid: number): void
}

const PAGES_OF_IO = [
  LogPageId.SUPPORTED_LOG_PAGES,
  LogPageId.ERROR_INFORMATION,
  LogPageId.SMART,
  LogPageId.FIRMWARE_SLOT,
  LogPageId.CHANGED_NAMESPACES,
  LogPageId.COMMANDS_SUPPORTED,
  LogPageId.FEATURE_IDENTIFIERS,
] as const
const PAGES_OF_DISCOVERY = [
  LogPageId.SUPPORTED_LOG_PAGES,
  LogPageId.ERROR_INFORMATION,
  LogPageId.FEATURE_IDENTIFIERS,
  LogPageId.DISCOVERY,
] as const

const FEATURE_EFFECTS_SIZE = 1024
/** Feature Identifiers Supported and Effects: FSUPP, CCC, and the controller scope in bits 31:20. */
const FEATURE_SUPPORTED = 0x1
const FEATURE_SCOPE_CONTROLLER = 1 << 20
const BYTES_PER_DATA_UNIT = 512_000
const MS_PER_HOUR = 3_600_000
/** 25 °C in kelvins: there is nothing to measure, and 0 would look like a defect. */
const TEMPERATURE = 298

export async function getLogPage(request: CommandRequest, source: LogSource): Promise<Completion> {
  const { sqe } = request
  const lid = GetLogPageSqe.lid.get(sqe, 0)
  if (!pages(source.subsystem).includes(lid)) return refuse(Status.INVALID_LOG_PAGE)
  const offset = GetLogPageSqe.lpol.get(sqe, 0) + GetLogPageSqe.lpou.get(sqe, 0) * 0x1_0000_0000
  // No page here has indexes, and offsets count whole dwords.
  if (GetLogPageSqe.ot.get(sqe, 0) !== 0 || offset % 4 !== 0) return refuse(Status.INVALID_FIELD)
  const dwords = GetLogPageSqe.numdl.get(sqe, 0) + GetLogPageSqe.numdu.get(sqe, 0) * 0x1_0000 + 1
  const lengthBytes = dwords * 4
  if (lengthBytes > request.lengthBytes) return refuse(Status.DATA_SGL_LENGTH_INVALID)
  const nsid = GetLogPageSqe.nsid.get(sqe, 0)
  // Health is kept for the whole controller only.
  if (lid === LogPageId.SMART && nsid !== 0 && nsid !== NSID_BROADCAST) return refuse(Status.INVALID_FIELD)

  const page = await pageData(lid, request, source)
  if (offset > page.length) return refuse(Status.INVALID_FIELD)
  if (GetLogPageSqe.rae.get(sqe, 0) === 0) source.logPageRead(lid)
  const data = new Uint8Array(lengthBytes)
  data.set(page.subarray(offset, offset + lengthBytes))
  return succeed(data)
}

function pages({ isDiscovery, anaReporting }: SubsystemSnapshot): readonly number[] {
  if (isDiscovery) return PAGES_OF_DISCOVERY
  return anaReporting ? [...PAGES_OF_IO, LogPageId.ANA] : PAGES_OF_IO
}

async function pageData(lid: number, { sqe }: CommandRequest, source: LogSource): Promise<Uint8Array> {
  switch (lid) {
    case LogPageId.SUPPORTED_LOG_PAGES:
      return supportedPages(source.subsystem)
    case LogPageId.ERROR_INFORMATION:
      return source.errors.data()
    case LogPageId.SMART:
      return smart(await source.health(), source)
    case LogPageId.FIRMWARE_SLOT:
      return firmwareSlot(source.firmwareRevision)
    case LogPageId.CHANGED_NAMESPACES:
      return changedNamespaces(source.changedNamespaces)
    case LogPageId.COMMANDS_SUPPORTED:
      return commandsSupported()
    case LogPageId.FEATURE_IDENTIFIERS:
      return featureIdentifiers(source)
    case LogPageId.ANA:
      return anaLog(source, (GetLogPageSqe.lsp.get(sqe, 0) & ANA_LSP_GROUPS_ONLY) !== 0)
    default:
      return source.discoveryLog()
  }
}

function supportedPages(subsystem: SubsystemSnapshot): Uint8Array {
  const view = new DataView(new ArrayBuffer(SUPPORTED_LOG_PAGES_SIZE))
  for (const lid of pages(subsystem)) SupportedLogPage.lsupp.set(view, lid * SupportedLogPage.size, 1)
  return new Uint8Array(view.buffer)
}

function smart(health: HealthCounters, source: LogSource): Uint8Array {
  const view = new DataView(new ArrayBuffer(SmartLog.size))
  SmartLog.ctemp.set(view, 0, TEMPERATURE)
  SmartLog.avsp.set(view, 0, 100)
  SmartLog.avspt.set(view, 0, 10)
  SmartLog.dur.set(view, 0, Math.ceil(health.bytesRead / BYTES_PER_DATA_UNIT))
  SmartLog.duw.set(view, 0, Math.ceil(health.bytesWritten / BYTES_PER_DATA_UNIT))
  SmartLog.hrc.set(view, 0, health.reads)
  SmartLog.hwc.set(view, 0, health.writes)
  SmartLog.cbt.set(view, 0, Math.floor(health.busyUs / 60_000_000))
  SmartLog.pwrc.set(view, 0, 1)
  SmartLog.poh.set(view, 0, Math.floor(source.uptimeMs / MS_PER_HOUR))
  SmartLog.nele.set(view, 0, source.errors.count)
  return new Uint8Array(view.buffer)
}

function firmwareSlot(revision: string): Uint8Array {
  const view = new DataView(new ArrayBuffer(FirmwareSlotLog.size))
  FirmwareSlotLog.active.set(view, 0, 1)
  FirmwareSlotLog.frs1.set(view, 0, revision)
  return new Uint8Array(view.buffer)
}

function changedNamespaces(changed: ReadonlySet<number>): Uint8Array {
  const view = new DataView(new ArrayBuffer(CHANGED_NAMESPACES_SIZE))
  const nsids = [...changed].sort((a, b) => a - b)
  const listed = nsids.length > CHANGED_NAMESPACES_MAX ? [NSID_BROADCAST] : nsids
  listed.forEach((nsid, index) => {
    view.setUint32(index * 4, nsid, true)
  })
  return new Uint8Array(view.buffer)
}

const { SUPPORTED, BLOCK_CONTENT_CHANGE } = CommandEffect
const ADMIN_EFFECTS: readonly [number, number][] = [
  [AdminOpcode.GET_LOG_PAGE, SUPPORTED],
  [AdminOpcode.IDENTIFY, SUPPORTED],
  [AdminOpcode.ABORT, SUPPORTED],
  [AdminOpcode.SET_FEATURES, SUPPORTED],
  [AdminOpcode.GET_FEATURES, SUPPORTED],
  [AdminOpcode.ASYNC_EVENT_REQUEST, SUPPORTED],
  [AdminOpcode.KEEP_ALIVE, SUPPORTED],
  [FABRICS_OPCODE, SUPPORTED],
]
const IO_EFFECTS: readonly [number, number][] = [
  [NvmOpcode.FLUSH, SUPPORTED],
  [NvmOpcode.WRITE, SUPPORTED | BLOCK_CONTENT_CHANGE],
  [NvmOpcode.READ, SUPPORTED],
  [NvmOpcode.COMPARE, SUPPORTED],
  [NvmOpcode.WRITE_ZEROES, SUPPORTED | BLOCK_CONTENT_CHANGE],
  [NvmOpcode.DATASET_MANAGEMENT, SUPPORTED | BLOCK_CONTENT_CHANGE],
  [FABRICS_OPCODE, SUPPORTED],
]

function commandsSupported(): Uint8Array {
  const view = new DataView(new ArrayBuffer(COMMANDS_SUPPORTED_SIZE))
  for (const [opcode, effects] of ADMIN_EFFECTS) {
    view.setUint32(ADMIN_EFFECTS_OFFSET + opcode * 4, effects, true)
  }
  for (const [opcode, effects] of IO_EFFECTS) view.setUint32(IO_EFFECTS_OFFSET + opcode * 4, effects, true)
  return new Uint8Array(view.buffer)
}

function featureIdentifiers({ supportedFeatures }: LogSource): Uint8Array {
  const view = new DataView(new ArrayBuffer(FEATURE_EFFECTS_SIZE))
  for (const { fid, isChangeable } of supportedFeatures) {
    const change = isChangeable ? CommandEffect.CONTROLLER_CAPABILITY_CHANGE : 0
    view.setUint32(fid * 4, FEATURE_SUPPORTED | FEATURE_SCOPE_CONTROLLER | change, true)
  }
  return new Uint8Array(view.buffer)
}

/** The groups that have namespaces of this host, ascending, and their state on its listener. */
function anaLog({ subsystem, listener, namespaces }: LogSource, isGroupsOnly: boolean): Uint8Array {
  const groups = new Map<number, NamespaceSnapshot[]>()
  for (const namespace of namespaces) {
    const members = groups.get(namespace.anagrpid)
    if (members === undefined) groups.set(namespace.anagrpid, [namespace])
    else members.push(namespace)
  }
  const ids = [...groups.keys()].sort((a, b) => a - b)
  const listed = isGroupsOnly ? 0 : namespaces.length
  const sizeBytes = AnaLogHeader.size + ids.length * AnaGroupDescriptor.size + listed * 4
  const view = new DataView(new ArrayBuffer(sizeBytes))
  AnaLogHeader.chgcnt.set(view, 0, listener?.anaChanges ?? 0)
  AnaLogHeader.ngrps.set(view, 0, ids.length)
  let at = AnaLogHeader.size
  for (const anagrpid of ids) {
    const members = groups.get(anagrpid)!
    AnaGroupDescriptor.anagrpid.set(view, at, anagrpid)
    AnaGroupDescriptor.nnsids.set(view, at, isGroupsOnly ? 0 : members.length)
    AnaGroupDescriptor.anas.set(view, at, anaStateAt(subsystem, listener, members[0]!))
    at += AnaGroupDescriptor.size
    if (isGroupsOnly) continue
    for (const { nsid } of members) {
      view.setUint32(at, nsid, true)
      at += 4
    }
  }
  return new Uint8Array(view.buffer)
}
