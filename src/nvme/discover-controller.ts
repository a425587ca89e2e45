/** What a host asks of a controller when it has connected: its properties, itself, its namespaces and how to reach them. */
import type { Clock } from '../core/clock.ts'
import { OptionalEvent } from '../spec/nvme-event.ts'
import { FeatureId, NumberOfQueues } from '../spec/nvme-feature.ts'
import {
  Cmic,
  Cns,
  IdentifyController,
  IdentifyNamespace,
  LBA_FORMAT_SIZE,
  NAMESPACE_LIST_MAX,
  NamespaceDescriptor,
  Nidt,
  NMIC_SHARED,
  NSATTR_WRITE_PROTECTED,
  Oncs,
  Vwc,
} from '../spec/nvme-identify.ts'
import { AnaGroupDescriptor, AnaLogHeader, AnaState, LogPageId } from '../spec/nvme-log.ts'
import { Cap, CapCss, Cc, CcCss, Csts, Property, Vs } from '../spec/nvmf.ts'
import type { AdminQueue } from './admin-queue.ts'
import type { ControllerStatus, NamespaceStatus } from './messages.ts'

/** Bytes of one command at most, whatever the controller would take: the largest buffer there is. */
const TRANSFER_MAX = 1 << 20
/** An ANA log larger than this is not one. */
const ANA_LOG_MAX = 1 << 20
/** More namespaces than this are a controller's mistake. */
const NAMESPACES_MAX = 8192
const READY_POLL_MS = 10
/** Bytes of a capsule without data. */
const CAPSULE_SIZE = 64

/** Enables the controller and waits until it is ready. Resolves with its CAP property. */
export async function enableController(admin: AdminQueue, clock: Clock): Promise<DataView> {
  const cap = new DataView(new ArrayBuffer(Cap.size))
  const { dw0, dw1 } = await admin.getProperty(Property.CAP, 8)
  cap.setUint32(0, dw0, true)
  cap.setUint32(4, dw1, true)
  const cc = new DataView(new ArrayBuffer(4))
  Cc.en.set(cc, 0, 1)
  Cc.css.set(cc, 0, (Cap.css.get(cap, 0) & CapCss.IO_COMMAND_SETS) !== 0 ? CcCss.ALL : CcCss.NVM)
  Cc.iosqes.set(cc, 0, 6)
  Cc.iocqes.set(cc, 0, 4)
  await admin.setProperty(Property.CC, cc.getUint32(0, true))

  const csts = new DataView(new ArrayBuffer(4))
  const deadlineUs = clock.nowUs() + Math.max(1, Cap.to.get(cap, 0)) * 500_000
  for (;;) {
    csts.setUint32(0, (await admin.getProperty(Property.CSTS, 4)).dw0, true)
    if (Csts.cfs.get(csts, 0) === 1) throw new Error('the controller reports a fatal error')
    if (Csts.rdy.get(csts, 0) === 1) return cap
    if (clock.nowUs() >= deadlineUs)
      throw new Error('the controller did not become ready in the time it asked for')
    await new Promise<void>(resolve => clock.after(READY_POLL_MS, resolve))
  }
}

/** What Identify Controller says, and what it takes to go on with it. */
export interface ControllerDetails {
  readonly status: Omit<ControllerStatus, 'ioQueues' | 'ioQueueDepth'>
  /** Events that the controller can send: `OptionalEvent`. */
  readonly optionalEvents: number
  /** The longest time in which a namespace may be in ANA state `change`, in seconds. */
  readonly anaTransitionSec: number
  readonly maxCommands: number
  readonly anaGroupsMax: number
  readonly namespacesMax: number
}

export async function identifyController(admin: AdminQueue, cap: DataView): Promise<ControllerDetails> {
  const id = await admin.identify(Cns.CONTROLLER, 0)
  const get = (field: { get(view: DataView, base: number): number }): number => field.get(id, 0)
  const mdts = get(IdentifyController.mdts)
  const page = 2 ** (12 + Cap.mpsmin.get(cap, 0))
  const version = new DataView(new ArrayBuffer(4))
  version.setUint32(0, get(IdentifyController.ver), true)
  const oncs = get(IdentifyController.oncs)
  const cmic = get(IdentifyController.cmic)
  const retryDelaysMs = [0, IdentifyController.crdt1, IdentifyController.crdt2, IdentifyController.crdt3].map(
    field => (typeof field === 'number' ? 0 : get(field) * 100),
  )
  return {
    status: {
      cntlid: get(IdentifyController.cntlid),
      vendorId: get(IdentifyController.vid),
      serialNumber: IdentifyController.sn.get(id, 0),
      modelNumber: IdentifyController.mn.get(id, 0),
      firmwareRevision: IdentifyController.fr.get(id, 0),
      subnqn: IdentifyController.subnqn.get(id, 0),
      version: `${Vs.mjr.get(version, 0)}.${Vs.mnr.get(version, 0)}`,
      oacs: get(IdentifyController.oacs),
      isMultiController: (cmic & Cmic.MULTIPLE_CONTROLLERS) !== 0,
      reportsAna: (cmic & Cmic.ANA) !== 0,
      hasWriteCache: (get(IdentifyController.vwc) & Vwc.PRESENT) !== 0,
      supportsCompare: (oncs & Oncs.COMPARE) !== 0,
      supportsWriteZeroes: (oncs & Oncs.WRITE_ZEROES) !== 0,
      supportsDsm: (oncs & Oncs.DATASET_MANAGEMENT) !== 0,
      maxTransferBytes: mdts === 0 ? TRANSFER_MAX : Math.min(TRANSFER_MAX, page * 2 ** mdts),
      inCapsuleBytes: Math.max(0, get(IdentifyController.ioccsz) * 16 - CAPSULE_SIZE),
      retryDelaysMs,
    },
    optionalEvents: get(IdentifyController.oaes),
    anaTransitionSec: get(IdentifyController.anatt),
    maxCommands: get(IdentifyController.maxcmd),
    anaGroupsMax: get(IdentifyController.nanagrpid),
    namespacesMax: get(IdentifyController.nn),
  }
}

/** Asks for `wanted` I/O queues; resolves with how many were granted. */
export async function negotiateQueues(admin: AdminQueue, wanted: number): Promise<number> {
  const request = new DataView(new ArrayBuffer(4))
  NumberOfQueues.nsq.set(request, 0, wanted - 1)
  NumberOfQueues.ncq.set(request, 0, wanted - 1)
  const granted = new DataView(new ArrayBuffer(4))
  granted.setUint32(0, await admin.setFeatures(FeatureId.NUMBER_OF_QUEUES, request.getUint32(0, true)), true)
  const queues = Math.min(NumberOfQueues.nsq.get(granted, 0), NumberOfQueues.ncq.get(granted, 0)) + 1
  return Math.min(wanted, queues)
}

/** Asks for those of the wanted events that the controller has. */
export async function enableEvents(admin: AdminQueue, optionalEvents: number): Promise<void> {
  const wanted = OptionalEvent.NAMESPACE_ATTRIBUTE | OptionalEvent.ANA_CHANGE | OptionalEvent.DISCOVERY_LOG
  await admin.setFeatures(FeatureId.ASYNC_EVENT_CONFIGURATION, (optionalEvents & wanted) >>> 0)
}

/** Namespaces, and what is wrong with those that cannot be used. */
export interface Namespaces {
  readonly usable: readonly NamespaceStatus[]
  readonly unusable: readonly string[]
}

/** Every active namespace, with its ANA state when the controller reports any. */
export async function readNamespaces(admin: AdminQueue, details: ControllerDetails): Promise<Namespaces> {
  const states = await readAnaStates(admin, details)
  const usable: NamespaceStatus[] = []
  const unusable: string[] = []
  for (const nsid of await activeNamespaces(admin)) {
    const namespace = await identifyNamespace(admin, nsid, states)
    if (typeof namespace === 'string') unusable.push(`namespace ${nsid} ${namespace}`)
    else if (namespace !== undefined) usable.push(namespace)
  }
  return { usable, unusable }
}

async function activeNamespaces(admin: AdminQueue): Promise<number[]> {
  const nsids: number[] = []
  for (let after = 0; ; ) {
    const list = await admin.identify(Cns.ACTIVE_NAMESPACE_LIST, after)
    for (let i = 0; i < NAMESPACE_LIST_MAX; i++) {
      const nsid = list.getUint32(i * 4, true)
      if (nsid === 0) return nsids
      // Ascending, or the list could be asked for again and again.
      if (nsid <= after) throw new Error(`the list of namespaces has ${nsid} after ${after}`)
      if (nsids.length === NAMESPACES_MAX) throw new Error(`there are more than ${NAMESPACES_MAX} namespaces`)
      nsids.push(nsid)
      after = nsid
    }
  }
}

/** The namespace, why it cannot be used, or undefined when it is gone. */
async function identifyNamespace(
  admin: AdminQueue,
  nsid: number,
  states: ReadonlyMap<number, AnaState>,
): Promise<NamespaceStatus | string | undefined> {
  const id = await admin.identify(Cns.NAMESPACE, nsid)
  const blockCount = IdentifyNamespace.nsze.get(id, 0)
  // It went away since the list was read.
  if (blockCount === 0) return undefined
  const flbas = IdentifyNamespace.flbas.get(id, 0)
  const format = (flbas & 0xf) | ((flbas >> 1) & 0x30)
  const at = IdentifyNamespace.lbaf0Lbads.offset + format * LBA_FORMAT_SIZE
  const lbads = id.getUint8(at)
  if (lbads < 9 || lbads > 16) return `has blocks of 2^${lbads} bytes: format it with 512 to 65536`
  const metadataBytes = id.getUint16(at - 2, true)
  if (metadataBytes !== 0) return `has ${metadataBytes} bytes of metadata a block: format it without`
  const anaGroupId = IdentifyNamespace.anagrpid.get(id, 0)
  return {
    nsid,
    blockSize: 2 ** lbads,
    blockCount,
    nguid: hexOf(IdentifyNamespace.nguid.get(id, 0)),
    eui64: hexOf(IdentifyNamespace.eui64.get(id, 0)),
    uuid: await namespaceUuid(admin, nsid),
    anaGroupId,
    anaState: states.get(anaGroupId) ?? AnaState.OPTIMIZED,
    isShared: (IdentifyNamespace.nmic.get(id, 0) & NMIC_SHARED) !== 0,
    isReadOnly: (IdentifyNamespace.nsattr.get(id, 0) & NSATTR_WRITE_PROTECTED) !== 0,
  }
}

async function namespaceUuid(admin: AdminQueue, nsid: number): Promise<string> {
  const list = await admin.identify(Cns.NAMESPACE_DESCRIPTORS, nsid)
  let at = 0
  while (at + NamespaceDescriptor.size <= list.byteLength) {
    const length = NamespaceDescriptor.nidl.get(list, at)
    const value = at + NamespaceDescriptor.size
    if (length === 0 || value + length > list.byteLength) return ''
    if (NamespaceDescriptor.nidt.get(list, at) === Nidt.UUID && length === 16) {
      const hex = hexOf(new Uint8Array(list.buffer, list.byteOffset + value, 16))
      return hex.replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, '$1-$2-$3-$4-$5')
    }
    at = value + length
  }
  return ''
}

/** The state of each ANA group; empty when the controller reports none. */
export async function readAnaStates(
  admin: AdminQueue,
  details: ControllerDetails,
): Promise<Map<number, AnaState>> {
  const states = new Map<number, AnaState>()
  if (!details.status.reportsAna) return states
  const { anaGroupsMax, namespacesMax } = details
  const size = AnaLogHeader.size + anaGroupsMax * AnaGroupDescriptor.size + namespacesMax * 4
  const log = await admin.getLogPage(LogPageId.ANA, 0, Math.min(size, ANA_LOG_MAX))
  let at = AnaLogHeader.size
  for (let left = AnaLogHeader.ngrps.get(log, 0); left > 0; left--) {
    if (at + AnaGroupDescriptor.size > log.byteLength) break
    const state = AnaGroupDescriptor.anas.get(log, at) as AnaState
    states.set(AnaGroupDescriptor.anagrpid.get(log, at), state)
    at += AnaGroupDescriptor.size + AnaGroupDescriptor.nnsids.get(log, at) * 4
  }
  return states
}

/** Lower-case hexadecimal; empty when all is zero, which means that there is none. */
function hexOf(bytes: Uint8Array): string {
  return bytes.every(byte => byte === 0) ? '' : Buffer.from(bytes).toString('hex')
}
