/** A controller by its name (`Nvme0`), on the control thread: its paths, and the devices they lead to. */
import type { BdevInfo } from '../bdev/bdev.ts'
import { IoType } from '../bdev/io.ts'
import { deriveUuid } from '../bdev/uuid.ts'
import type { SocketAddress } from '../reactor/network.ts'
import { Oacs } from '../spec/nvme-identify.ts'
import { AnaState } from '../spec/nvme-log.ts'
import { type Trid, tridOf } from './attach-options.ts'
import type {
  ControllerStatus,
  MultipathPolicy,
  NamespaceStatus,
  PathStatus,
  ReconnectOptions,
} from './messages.ts'
import type { NvmeDevice } from './nvme-channel.ts'

export type MultipathMode = 'disable' | 'failover' | 'multipath'

/** What all paths of a controller have in common: from the call that made it. */
export interface ControllerOptions {
  readonly name: string
  readonly subnqn: string
  readonly hostnqn: string
  /** Given by the operator, and so to be saved. */
  readonly isHostNqnGiven: boolean
  readonly reconnect: ReconnectOptions
  readonly fabricsTimeoutUs: number
  readonly disableSqFlowControl: boolean
  /** Of devices for which nothing else is said. */
  readonly policy: MultipathPolicy
}

/** What each path has for itself. */
export interface PathOptions {
  readonly target: SocketAddress
  /** Where to connect from; wherever the system chooses when undefined. */
  readonly source: SocketAddress | undefined
  readonly mode: MultipathMode
  /** A discovery service found it, and finds it again: it is not saved, and kept although it is down at first. */
  readonly isDiscovered?: boolean
}

export class Path {
  readonly id: number
  readonly controller: NamedController
  /** How the path was asked for, and where it is connected from. */
  readonly mode: MultipathMode
  readonly source: SocketAddress | undefined
  readonly isDiscovered: boolean
  /** Every address, the first one first: more than one only in failover mode. */
  targets: SocketAddress[]
  status: PathStatus
  /** Namespaces of the last connection that were found to be those of the other paths. */
  accepted: readonly NamespaceStatus[] = []
  /** Namespaces of it that could not become devices, each with the reason. */
  readonly faults = new Map<number, string>()
  isDetaching = false

  constructor(id: number, controller: NamedController, options: PathOptions) {
    const { target } = options
    this.id = id
    this.controller = controller
    this.mode = options.mode
    this.source = options.source
    this.isDiscovered = options.isDiscovered ?? false
    this.targets = [target]
    this.status = {
      pathId: id,
      state: 'connecting',
      mayReturn: true,
      generation: 0,
      target,
      reason: 'connecting',
      controller: undefined,
      namespaces: [],
      unusable: [],
      discovered: [],
    }
  }

  get trid(): Trid {
    return tridOf(this.status.target, this.controller.options.subnqn)
  }
}

export class NamedController {
  readonly options: ControllerOptions
  readonly paths: Path[] = []
  /** By namespace id. */
  readonly devices = new Map<number, BdevInfo>()
  /** The namespaces that the devices were made of, by namespace id. */
  readonly origins = new Map<number, NamespaceStatus>()
  #work: Promise<unknown> = Promise.resolve()

  constructor(options: ControllerOptions) {
    this.options = options
  }

  get name(): string {
    return this.options.name
  }

  /** Runs changes of the controller one after another, whether the one before succeeded or not. */
  inTurn(change: () => Promise<void>): Promise<void> {
    const done = this.#work.then(change)
    this.#work = done.catch(() => {})
    return done
  }

  /** The namespace as the first path that has it shows it. */
  namespace(nsid: number): NamespaceStatus | undefined {
    return this.paths.flatMap(path => path.accepted).find(namespace => namespace.nsid === nsid)
  }

  hasPathTo(nsid: number, except?: Path): boolean {
    return this.paths.some(
      path => path !== except && path.accepted.some(namespace => namespace.nsid === nsid),
    )
  }
}

/** Why two paths do not lead to the same namespace, or undefined when they do. */
export function namespaceMismatch(a: NamespaceStatus, b: NamespaceStatus): string | undefined {
  for (const id of ['uuid', 'nguid', 'eui64'] as const) {
    if (a[id] !== b[id]) return `${id} ${a[id] || 'none'} is not ${b[id] || 'none'}`
  }
  if (a.blockSize !== b.blockSize) return `blocks of ${a.blockSize} bytes are not blocks of ${b.blockSize}`
  return undefined
}

/** The device that a namespace becomes. */
export function describeDevice(
  controller: NamedController,
  status: ControllerStatus,
  namespace: NamespaceStatus,
  view: { readonly passesFlush: boolean; policyOf(bdev: string): MultipathPolicy },
): BdevInfo {
  const { nsid, blockSize, blockCount } = namespace
  const name = `${controller.name}n${nsid}`
  const device: NvmeDevice = { controller: controller.name, nsid }
  const supports: IoType[] = [IoType.READ, IoType.WRITE]
  const hasCache = status.hasWriteCache && view.passesFlush
  // Flushes go out whatever this path's controller says of a cache: another path's controller may have one.
  if (view.passesFlush) supports.push(IoType.FLUSH)
  if (status.supportsWriteZeroes) supports.push(IoType.WRITE_ZEROES)
  if (status.supportsDsm) supports.push(IoType.UNMAP)
  if (status.supportsCompare) supports.push(IoType.COMPARE)
  return {
    name,
    aliases: [],
    driver: 'nvme',
    product: 'NVMe disk',
    uuid: uuidOf(namespace, status),
    blockSize,
    physicalBlockSize: blockSize,
    blockCount,
    supports: new Set(supports),
    writeCache: hasCache,
    readOnly: namespace.isReadOnly,
    bases: [],
    device,
    driverSpecific: {
      // Read whenever somebody asks, since paths come and go.
      get nvme(): unknown[] {
        return controller.paths.flatMap(path => pathSpecific(path, nsid))
      },
      get mp_policy(): string {
        return view.policyOf(name).policy
      },
    },
  }
}

/** The namespace's own UUID, else its NGUID, as SPDK has it; else one that is the same on every path and after a restart. */
function uuidOf({ uuid, nguid, nsid }: NamespaceStatus, { subnqn, serialNumber }: ControllerStatus): string {
  if (uuid !== '') return uuid
  if (nguid !== '') return nguid.replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, '$1-$2-$3-$4-$5')
  return deriveUuid('nvme namespace', subnqn, serialNumber, String(nsid))
}

const ANA_NAMES: Record<AnaState, string> = {
  [AnaState.OPTIMIZED]: 'optimized',
  [AnaState.NON_OPTIMIZED]: 'non_optimized',
  [AnaState.INACCESSIBLE]: 'inaccessible',
  [AnaState.PERSISTENT_LOSS]: 'persistent_loss',
  [AnaState.CHANGE]: 'change',
}

/** One element of `driver_specific.nvme`. */
function pathSpecific(path: Path, nsid: number): unknown[] {
  const namespace = path.accepted.find(candidate => candidate.nsid === nsid)
  const { controller } = path.status
  if (namespace === undefined || controller === undefined) return []
  const has = (bit: number): number => ((controller.oacs & bit) === 0 ? 0 : 1)
  return [
    {
      trid: path.trid,
      ctrlr_data: {
        cntlid: controller.cntlid,
        vendor_id: `0x${controller.vendorId.toString(16).padStart(4, '0')}`,
        model_number: controller.modelNumber,
        serial_number: controller.serialNumber,
        firmware_revision: controller.firmwareRevision,
        subnqn: controller.subnqn,
        oacs: {
          security: has(Oacs.SECURITY),
          format: has(Oacs.FORMAT),
          firmware: has(Oacs.FIRMWARE),
          ns_manage: has(Oacs.NAMESPACE_MANAGEMENT),
        },
        multi_ctrlr: controller.isMultiController,
        ana_reporting: controller.reportsAna,
      },
      vs: { nvme_version: controller.version },
      ns_data: {
        id: nsid,
        ...(controller.reportsAna && { ana_state: ANA_NAMES[namespace.anaState] }),
        can_share: namespace.isShared,
      },
    },
  ]
}
