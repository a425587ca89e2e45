/** Identify (Base specification 2.1, section 5.1.13; NVM Command Set specification 1.1, section 4.1.5). */
import { IdentifySqe } from '../../spec/nvme.ts'
import { OptionalEvent } from '../../spec/nvme-event.ts'
import {
  Anacap,
  Cmic,
  Cns,
  CONTROLLER_LIST_FIRST,
  CONTROLLER_LIST_MAX,
  ControllerList,
  ControllerType,
  Csi,
  Ctratt,
  Dlfeat,
  FUSES_COMPARE_AND_WRITE,
  IDENTIFY_SIZE,
  IdentifyController,
  IdentifyIndependentNamespace,
  IdentifyNamespace,
  IdentifyNvmController,
  INDEPENDENT_NSFEAT_NO_WRITE_CACHE,
  Lpa,
  NAMESPACE_LIST_MAX,
  NamespaceDescriptor,
  Nidl,
  Nidt,
  NMIC_SHARED,
  NSATTR_WRITE_PROTECTED,
  NSTAT_READY,
  Nsfeat,
  OFCS_DISCONNECT,
  Oncs,
  Sgls,
  Vwc,
} from '../../spec/nvme-identify.ts'
import { Status } from '../../spec/nvme-status.ts'
import { DISCOVERY_NQN, VERSION_2_1 } from '../../spec/nvmf.ts'
import { refuse, succeed } from '../completion.ts'
import type { NamespaceSnapshot, SubsystemSnapshot, TargetSnapshot, TransportSettings } from '../messages.ts'
import type { CommandRequest, Completion } from '../request.ts'
import { ASYNC_EVENT_REQUESTS_MAX } from './async-events.ts'

/** What Identify tells of: one controller and what it shows its host. */
export interface Identity {
  readonly cntlid: number
  readonly subsystem: SubsystemSnapshot
  readonly target: TargetSnapshot
  readonly transport: TransportSettings
  readonly supportedEvents: number
  /** What this host sees, ascending. */
  readonly namespaces: readonly NamespaceSnapshot[]
  /** The controllers of the subsystem, ascending. */
  controllers(): Promise<readonly number[]>
}

/** Entries of the error log. */
export const ERROR_LOG_ENTRIES = 64
/** In seconds: hosts give up on a path that stays in transition for longer. */
const ANA_TRANSITION_TIME = 10
/** Abort commands at a time, 0's based. */
const ABORT_LIMIT = 3
const CAPSULE_UNIT = 16
const SQE_SIZE = 64
const CQE_SIZE = 16
const PAGE_SIZE = 4096
/** Both the required and the largest size: log2 of 64 and of 16 bytes. */
const SQES = 0x66
const CQES = 0x44
const OPTIONAL_COMMANDS = Oncs.COMPARE | Oncs.DATASET_MANAGEMENT | Oncs.WRITE_ZEROES | Oncs.SAVE_AND_SELECT
const NAMESPACE_ID_MAX = 0xffff_fffd

export async function identify(request: CommandRequest, identity: Identity): Promise<Completion> {
  const { sqe } = request
  const cns = IdentifySqe.cns.get(sqe, 0)
  const nsid = IdentifySqe.nsid.get(sqe, 0)
  const csi = IdentifySqe.csi.get(sqe, 0)
  if (identity.subsystem.isDiscovery && cns !== Cns.CONTROLLER) return refuse(Status.INVALID_FIELD)
  switch (cns) {
    case Cns.CONTROLLER:
      return succeed(controllerData(identity))
    case Cns.NAMESPACE:
    case Cns.ALLOCATED_NAMESPACE:
      return ofNamespace(identity, nsid, namespaceData)
    case Cns.NAMESPACE_DESCRIPTORS:
      return ofNamespace(identity, nsid, descriptors, Status.INVALID_NAMESPACE_OR_FORMAT)
    case Cns.INDEPENDENT_NAMESPACE:
      return ofNamespace(identity, nsid, independentData)
    case Cns.CSI_NAMESPACE:
      if (csi !== Csi.NVM) return refuse(Status.INVALID_FIELD)
      return ofNamespace(identity, nsid, () => new Uint8Array(IDENTIFY_SIZE))
    case Cns.CSI_CONTROLLER:
      return csi === Csi.NVM ? succeed(nvmControllerData(identity.subsystem)) : refuse(Status.INVALID_FIELD)
    case Cns.CSI_ACTIVE_NAMESPACE_LIST:
    case Cns.CSI_ALLOCATED_NAMESPACE_LIST:
      return csi === Csi.NVM ? namespaceList(identity, nsid) : refuse(Status.INVALID_FIELD)
    case Cns.ACTIVE_NAMESPACE_LIST:
    case Cns.ALLOCATED_NAMESPACE_LIST:
      return namespaceList(identity, nsid)
    case Cns.NAMESPACE_CONTROLLER_LIST:
      if (!identity.namespaces.some(namespace => namespace.nsid === nsid)) return refuse(Status.INVALID_FIELD)
      return controllerList(await identity.controllers(), IdentifySqe.cntid.get(sqe, 0))
    case Cns.CONTROLLER_LIST:
      return controllerList(await identity.controllers(), IdentifySqe.cntid.get(sqe, 0))
    case Cns.IO_COMMAND_SET:
      return succeed(commandSets())
    default:
      return refuse(Status.INVALID_FIELD)
  }
}

/** An inactive namespace is all zeroes, an impossible one an error (Base 2.1, section 5.1.13.1). */
function ofNamespace(
  identity: Identity,
  nsid: number,
  build: (namespace: NamespaceSnapshot, identity: Identity) => Uint8Array,
  whenInactive: Status = Status.SUCCESS,
): Completion {
  if (nsid === 0 || nsid > identity.subsystem.maxNamespaces) return refuse(Status.INVALID_NAMESPACE_OR_FORMAT)
  const namespace = identity.namespaces.find(candidate => candidate.nsid === nsid)
  if (namespace !== undefined) return succeed(build(namespace, identity))
  return whenInactive === Status.SUCCESS ? succeed(new Uint8Array(IDENTIFY_SIZE)) : refuse(whenInactive)
}

function structure(fill: (view: DataView) => void): Uint8Array {
  const data = new Uint8Array(IDENTIFY_SIZE)
  fill(new DataView(data.buffer))
  return data
}

function controllerData(identity: Identity): Uint8Array {
  const { subsystem, transport, target } = identity
  return structure(view => {
    const set = IdentifyController
    set.fr.set(view, 0, target.firmwareRevision.slice(0, 8))
    set.mdts.set(view, 0, Math.log2(transport.maxIoSize / PAGE_SIZE))
    set.cntlid.set(view, 0, identity.cntlid)
    set.ver.set(view, 0, VERSION_2_1)
    set.oaes.set(view, 0, identity.supportedEvents)
    set.aerl.set(view, 0, ASYNC_EVENT_REQUESTS_MAX - 1)
    set.elpe.set(view, 0, ERROR_LOG_ENTRIES - 1)
    set.kas.set(view, 0, transport.kas)
    set.maxcmd.set(view, 0, transport.maxQueueDepth)
    set.sgls.set(view, 0, Sgls.SUPPORTED | Sgls.DATA_BLOCK_OFFSET | Sgls.TRANSPORT_DATA_BLOCK)
    set.ioccsz.set(
      view,
      0,
      (SQE_SIZE + (subsystem.isDiscovery ? 0 : transport.inCapsuleDataSize)) / CAPSULE_UNIT,
    )
    set.iorcsz.set(view, 0, CQE_SIZE / CAPSULE_UNIT)
    set.msdbd.set(view, 0, 1)
    set.lpa.set(view, 0, Lpa.EXTENDED_DATA | Lpa.SUPPORTED_LOG_PAGES | Lpa.COMMANDS_SUPPORTED)
    set.acl.set(view, 0, ABORT_LIMIT)
    set.ctratt.set(view, 0, Ctratt.HOST_IDENTIFIER_128 | Ctratt.TRAFFIC_BASED_KEEP_ALIVE)
    if (subsystem.isDiscovery) {
      set.cntrltype.set(view, 0, ControllerType.DISCOVERY)
      set.subnqn.set(view, 0, DISCOVERY_NQN)
      return
    }
    set.cntrltype.set(view, 0, ControllerType.IO)
    set.subnqn.set(view, 0, subsystem.nqn)
    set.sn.set(view, 0, subsystem.serialNumber)
    set.mn.set(view, 0, subsystem.modelNumber)
    set.cmic.set(
      view,
      0,
      Cmic.MULTIPLE_PORTS | Cmic.MULTIPLE_CONTROLLERS | (subsystem.anaReporting ? Cmic.ANA : 0),
    )
    set.crdt1.set(view, 0, target.crdt[0])
    set.crdt2.set(view, 0, target.crdt[1])
    set.crdt3.set(view, 0, target.crdt[2])
    // One firmware slot, read only.
    set.frmw.set(view, 0, 0x03)
    set.sqes.set(view, 0, SQES)
    set.cqes.set(view, 0, CQES)
    set.nn.set(view, 0, subsystem.maxNamespaces)
    set.mnan.set(view, 0, subsystem.maxNamespaces)
    set.oncs.set(view, 0, OPTIONAL_COMMANDS & ~transport.maskedOncs)
    set.fuses.set(view, 0, FUSES_COMPARE_AND_WRITE & ~transport.maskedFuses)
    set.ofcs.set(view, 0, OFCS_DISCONNECT)
    // Hosts read this once, when the controller starts; a namespace with a cache may come later. Those without one say
    // so themselves.
    set.vwc.set(view, 0, Vwc.PRESENT | Vwc.FLUSH_REFUSES_BROADCAST)
    if (subsystem.anaReporting) {
      set.anatt.set(view, 0, ANA_TRANSITION_TIME)
      set.anacap.set(view, 0, Anacap.OPTIMIZED | Anacap.NON_OPTIMIZED | Anacap.INACCESSIBLE)
      set.anagrpmax.set(view, 0, subsystem.maxNamespaces)
      set.nanagrpid.set(view, 0, subsystem.maxNamespaces)
    }
  })
}

function namespaceData(namespace: NamespaceSnapshot, { subsystem }: Identity): Uint8Array {
  const { blockCount, blockSize } = namespace
  const preferred = namespace.physicalBlockSize / blockSize - 1
  return structure(view => {
    const set = IdentifyNamespace
    set.nsze.set(view, 0, blockCount)
    set.ncap.set(view, 0, blockCount)
    set.nuse.set(view, 0, blockCount)
    set.nsfeat.set(view, 0, nsfeat(namespace))
    set.nmic.set(view, 0, NMIC_SHARED)
    // How deallocated blocks read is not promised: it is up to the device.
    set.dlfeat.set(view, 0, namespace.canUnmap ? Dlfeat.WRITE_ZEROES_DEALLOCATES : 0)
    set.nvmcap.set(view, 0, blockCount * blockSize)
    set.npwg.set(view, 0, preferred)
    set.npwa.set(view, 0, preferred)
    set.npdg.set(view, 0, preferred)
    set.npda.set(view, 0, preferred)
    set.nows.set(view, 0, preferred)
    if (subsystem.anaReporting) set.anagrpid.set(view, 0, namespace.anagrpid)
    set.nsattr.set(view, 0, namespace.isReadOnly ? NSATTR_WRITE_PROTECTED : 0)
    set.nguid.set(view, 0, Buffer.from(namespace.nguid, 'hex'))
    set.eui64.set(view, 0, Buffer.from(namespace.eui64, 'hex'))
    set.lbaf0Lbads.set(view, 0, Math.log2(blockSize))
  })
}

function nsfeat(namespace: NamespaceSnapshot): number {
  // A device that can give space back is thin, so its capacity may be more than there is.
  const thin = namespace.canUnmap ? Nsfeat.THIN_PROVISIONING : 0
  return Nsfeat.OPTIMAL_PERFORMANCE | thin
}

function independentData(namespace: NamespaceSnapshot, { subsystem }: Identity): Uint8Array {
  return structure(view => {
    const set = IdentifyIndependentNamespace
    set.nsfeat.set(view, 0, namespace.hasWriteCache ? 0 : INDEPENDENT_NSFEAT_NO_WRITE_CACHE)
    set.nmic.set(view, 0, NMIC_SHARED)
    if (subsystem.anaReporting) set.anagrpid.set(view, 0, namespace.anagrpid)
    set.nsattr.set(view, 0, namespace.isReadOnly ? NSATTR_WRITE_PROTECTED : 0)
    set.nstat.set(view, 0, NSTAT_READY)
  })
}

function descriptors(namespace: NamespaceSnapshot): Uint8Array {
  const data = new Uint8Array(IDENTIFY_SIZE)
  const view = new DataView(data.buffer)
  let at = 0
  const add = (nidt: number, nidl: number, hex: string): void => {
    NamespaceDescriptor.nidt.set(view, at, nidt)
    NamespaceDescriptor.nidl.set(view, at, nidl)
    data.set(Buffer.from(hex, 'hex'), at + NamespaceDescriptor.size)
    at += NamespaceDescriptor.size + nidl
  }
  add(Nidt.EUI64, Nidl.EUI64, namespace.eui64)
  add(Nidt.NGUID, Nidl.NGUID, namespace.nguid)
  add(Nidt.UUID, Nidl.UUID, namespace.uuid.replaceAll('-', ''))
  add(Nidt.CSI, Nidl.CSI, '00')
  return data
}

function nvmControllerData(subsystem: SubsystemSnapshot): Uint8Array {
  return structure(view => {
    IdentifyNvmController.wzsl.set(view, 0, subsystem.wzsl)
    IdentifyNvmController.dmrsl.set(view, 0, subsystem.dmrsl)
  })
}

/** The namespaces with an identifier above `after`. */
function namespaceList(identity: Identity, after: number): Completion {
  if (after > NAMESPACE_ID_MAX) return refuse(Status.INVALID_NAMESPACE_OR_FORMAT)
  const above = identity.namespaces.filter(namespace => namespace.nsid > after)
  return succeed(
    structure(view => {
      above.slice(0, NAMESPACE_LIST_MAX).forEach(({ nsid }, index) => {
        view.setUint32(index * 4, nsid, true)
      })
    }),
  )
}

/** The controllers from `from` on. */
function controllerList(all: readonly number[], from: number): Completion {
  const listed = all.filter(cntlid => cntlid >= from).slice(0, CONTROLLER_LIST_MAX)
  return succeed(
    structure(view => {
      ControllerList.numids.set(view, 0, listed.length)
      listed.forEach((cntlid, index) => {
        view.setUint16(CONTROLLER_LIST_FIRST + index * 2, cntlid, true)
      })
    }),
  )
}

/** The one combination of command sets: the NVM command set, whose bit is 0. */
const commandSets = (): Uint8Array => structure(view => view.setUint8(0, 1 << Csi.NVM))

/** The notices a controller of this kind can give. */
export function supportedEvents(subsystem: SubsystemSnapshot): number {
  if (subsystem.isDiscovery) return OptionalEvent.DISCOVERY_LOG
  return OptionalEvent.NAMESPACE_ATTRIBUTE | (subsystem.anaReporting ? OptionalEvent.ANA_CHANGE : 0)
}
