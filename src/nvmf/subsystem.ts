/** A subsystem as the control thread has it: what operators set, and the snapshot that reactors work with. */
import type { BdevInfo } from '../bdev/bdev.ts'
import type { Claim } from '../bdev/claims.ts'
import { IoType } from '../bdev/io-type.ts'
import { RpcError } from '../core/errors.ts'
import { formatSize } from '../core/format-size.ts'
import type { AnaState } from '../spec/nvme-log.ts'
import { CNTLID_MAX, DISCOVERY_NQN } from '../spec/nvmf.ts'
import { formatTransportAddress, type TransportAddress } from './address.ts'
import { type NamespaceIdentifiers, namespaceIdentifiers, serialNumberOf } from './identifiers.ts'
import type { ListenerSnapshot, NamespaceSnapshot, SubsystemSnapshot } from './messages.ts'
import { NQN_EXAMPLE, nqnFault } from './nqn.ts'

export const MAX_NAMESPACES_DEFAULT = 32
/** Hosts read the state of all groups as one log page: more groups than this do not fit into one command. */
const MAX_NAMESPACES_LIMIT = 8192
const CNTLID_MIN = 1
const MODEL_DEFAULT = 'qpair virtual disk'
const SERIAL_LENGTH_MAX = 20
const MODEL_LENGTH_MAX = 40
const ADMIN_LABEL_LENGTH_MIN = 4
const ADMIN_LABEL_LENGTH_MAX = 256

export interface SubsystemOptions {
  readonly nqn: string
  readonly serial_number?: string | undefined
  readonly model_number?: string | undefined
  readonly admin_label?: string | undefined
  readonly max_namespaces?: number | undefined
  readonly allow_any_host?: boolean | undefined
  readonly ana_reporting?: boolean | undefined
  readonly min_cntlid?: number | undefined
  readonly max_cntlid?: number | undefined
  readonly dmrsl?: number | undefined
  readonly wzsl?: number | undefined
  readonly enable_nssr?: boolean | undefined
}

export interface NamespaceOptions {
  readonly nsid?: number | undefined
  readonly bdev_name: string
  readonly nguid?: string | undefined
  readonly eui64?: string | undefined
  readonly uuid?: string | undefined
  readonly anagrpid?: number | undefined
  readonly no_auto_visible?: boolean | undefined
}

export interface Namespace {
  readonly nsid: number
  readonly generation: number
  readonly bdev: BdevInfo
  readonly claim: Claim
  readonly identifiers: NamespaceIdentifiers
  anagrpid: number
  readonly noAutoVisible: boolean
  readonly hosts: Set<string>
}

export interface SubsystemListener {
  readonly id: number
  readonly address: TransportAddress
  /** The state of group n at [n - 1]. */
  readonly anaStates: Uint8Array
  anaChanges: number
}

let lastGeneration = 0

export class Subsystem {
  readonly nqn: string
  readonly serialNumber: string
  readonly modelNumber: string
  readonly adminLabel: string
  readonly maxNamespaces: number
  readonly anaReporting: boolean
  readonly minCntlid: number
  readonly maxCntlid: number
  readonly dmrsl: number
  readonly wzsl: number
  readonly enableNssr: boolean
  allowAnyHost: boolean
  readonly hosts = new Set<string>()
  readonly namespaces = new Map<number, Namespace>()
  readonly listeners = new Map<number, SubsystemListener>()

  /** Throws INVALID_PARAMS for what cannot be. */
  constructor(options: SubsystemOptions) {
    const { nqn } = options
    checkNqn(nqn, 'subsystem')
    this.nqn = nqn
    this.serialNumber = options.serial_number ?? serialNumberOf(nqn)
    this.modelNumber = options.model_number ?? MODEL_DEFAULT
    this.adminLabel = options.admin_label ?? ''
    // 0 is what clients send that leave the number open.
    this.maxNamespaces = options.max_namespaces || MAX_NAMESPACES_DEFAULT
    this.anaReporting = options.ana_reporting ?? false
    this.minCntlid = options.min_cntlid ?? CNTLID_MIN
    this.maxCntlid = options.max_cntlid ?? CNTLID_MAX
    this.dmrsl = options.dmrsl ?? 0
    this.wzsl = options.wzsl ?? 0
    this.enableNssr = options.enable_nssr ?? false
    this.allowAnyHost = options.allow_any_host ?? false
    this.#check()
  }

  get isDiscovery(): boolean {
    return this.nqn === DISCOVERY_NQN
  }

  allows(hostnqn: string): boolean {
    return this.allowAnyHost || this.hosts.has(hostnqn)
  }

  /**
   * Throws EINVAL for a bdev with a cache of this daemon's own, when other gateways may serve the subsystem too: what its
   * hosts then lose or read wrong, nothing could tell them.
   */
  checkBdev({ name, privateCache }: BdevInfo): void {
    const why = this.#sharedBecause
    if (privateCache === undefined || why === undefined) return
    const { heldBytesMax, what, remedy } = privateCache
    const harm =
      heldBytesMax > 0
        ? `up to ${formatSize(heldBytesMax)} of acknowledged writes would be lost with this daemon, and hosts that go on elsewhere are not told`
        : 'hosts would read from it what was replaced through another gateway'
    throw new RpcError(
      'EINVAL',
      `bdev ${name} has a cache in this daemon's memory (${what}), and subsystem ${this.nqn} is one that several ` +
        `gateways may serve (${why}): ${harm}; ${remedy}`,
    )
  }

  namespace(nsid: number): Namespace {
    const namespace = this.namespaces.get(nsid)
    if (namespace !== undefined) return namespace
    const nsids = [...this.namespaces.keys()].join(', ')
    throw new RpcError(
      'INVALID_PARAMS',
      `subsystem ${this.nqn} has no namespace ${nsid}: it has ${nsids === '' ? 'none' : nsids}`,
    )
  }

  listenerAt(address: TransportAddress): SubsystemListener | undefined {
    return [...this.listeners.values()].find(
      listener => listener.address.traddr === address.traddr && listener.address.trsvcid === address.trsvcid,
    )
  }

  /** The listener at an address; throws INVALID_PARAMS naming the ones there are. */
  requireListener(address: TransportAddress): SubsystemListener {
    const listener = this.listenerAt(address)
    if (listener !== undefined) return listener
    const others = [...this.listeners.values()].map(({ address: other }) => formatTransportAddress(other))
    throw new RpcError(
      'INVALID_PARAMS',
      `subsystem ${this.nqn} has no listener at ${formatTransportAddress(address)}: it has ${others.join(', ') || 'none'}`,
    )
  }

  /** The nsid and the group a new namespace would get. Throws INVALID_PARAMS when it cannot have what was asked for. */
  planNamespace(options: NamespaceOptions): { nsid: number; anagrpid: number } {
    const { bdev_name } = options
    const nsid = options.nsid || this.#freeNsid(bdev_name)
    if (nsid > this.maxNamespaces) {
      throw new RpcError(
        'INVALID_PARAMS',
        `namespace id ${nsid} for bdev ${bdev_name} is above the ${this.maxNamespaces} of subsystem ${this.nqn}: ` +
          'choose a smaller one, or create the subsystem with more max_namespaces',
      )
    }
    const taken = this.namespaces.get(nsid)
    if (taken !== undefined) {
      throw new RpcError(
        'INVALID_PARAMS',
        `namespace id ${nsid} of subsystem ${this.nqn} is taken by bdev ${taken.bdev.name}, so ${bdev_name} cannot ` +
          `have it: choose ${this.#freeNsid(bdev_name)}, or leave nsid out`,
      )
    }
    const anagrpid = options.anagrpid || nsid
    this.checkAnaGroup(anagrpid)
    return { nsid, anagrpid }
  }

  checkAnaGroup(anagrpid: number): void {
    if (anagrpid >= 1 && anagrpid <= this.maxNamespaces) return
    throw new RpcError(
      'INVALID_PARAMS',
      `ANA group ${anagrpid} is not one of the groups 1 to ${this.maxNamespaces} of subsystem ${this.nqn} (max_namespaces)`,
    )
  }

  addNamespace(
    options: NamespaceOptions,
    plan: { readonly nsid: number; readonly anagrpid: number },
    bdev: BdevInfo,
    claim: Claim,
  ): void {
    this.namespaces.set(plan.nsid, {
      ...plan,
      generation: ++lastGeneration,
      bdev,
      claim,
      identifiers: namespaceIdentifiers(options, bdev.uuid),
      noAutoVisible: options.no_auto_visible ?? false,
      hosts: new Set(),
    })
  }

  addListener(id: number, address: TransportAddress, anaState: AnaState): void {
    const anaStates = new Uint8Array(this.maxNamespaces).fill(anaState)
    this.listeners.set(id, { id, address, anaStates, anaChanges: 0 })
  }

  /** Changes one group, or all. */
  setAnaState(listener: SubsystemListener, state: AnaState, anagrpid: number | undefined): void {
    if (anagrpid === undefined) listener.anaStates.fill(state)
    else listener.anaStates[anagrpid - 1] = state
    listener.anaChanges++
  }

  snapshot(): SubsystemSnapshot {
    return {
      nqn: this.nqn,
      isDiscovery: this.isDiscovery,
      serialNumber: this.serialNumber,
      modelNumber: this.modelNumber,
      maxNamespaces: this.maxNamespaces,
      anaReporting: this.anaReporting,
      enableNssr: this.enableNssr,
      dmrsl: this.dmrsl,
      wzsl: this.wzsl,
      allowAnyHost: this.allowAnyHost,
      hosts: [...this.hosts],
      listeners: [...this.listeners.values()].map(
        ({ id, address, anaStates, anaChanges }): ListenerSnapshot => ({
          id,
          address,
          anaStates,
          anaChanges,
        }),
      ),
      namespaces: [...this.namespaces.values()].map(namespaceSnapshot),
    }
  }

  /** What says that hosts may reach the subsystem through other gateways as well; undefined when nothing does. */
  get #sharedBecause(): string | undefined {
    if (this.anaReporting) return 'it reports ANA states'
    if (this.minCntlid === CNTLID_MIN && this.maxCntlid === CNTLID_MAX) return undefined
    return `its controller identifiers are only ${this.minCntlid} to ${this.maxCntlid}`
  }

  #freeNsid(bdevName: string): number {
    for (let nsid = 1; nsid <= this.maxNamespaces; nsid++) if (!this.namespaces.has(nsid)) return nsid
    throw new RpcError(
      'INVALID_PARAMS',
      `subsystem ${this.nqn} is full: it has all its ${this.maxNamespaces} namespaces, so ${bdevName} has no place; ` +
        'remove one, or create the subsystem with more max_namespaces',
    )
  }

  #check(): void {
    const { nqn, minCntlid, maxCntlid, maxNamespaces } = this
    checkText(nqn, 'serial number', this.serialNumber, SERIAL_LENGTH_MAX)
    checkText(nqn, 'model number', this.modelNumber, MODEL_LENGTH_MAX)
    if (this.adminLabel !== '') {
      const { length } = this.adminLabel
      if (length < ADMIN_LABEL_LENGTH_MIN || length > ADMIN_LABEL_LENGTH_MAX || !isAscii(this.adminLabel)) {
        throw new RpcError(
          'INVALID_PARAMS',
          `Invalid admin_label "${this.adminLabel}" of subsystem ${nqn}: it has ${length} characters, ` +
            `and may have ${ADMIN_LABEL_LENGTH_MIN} to ${ADMIN_LABEL_LENGTH_MAX} of printable ASCII`,
        )
      }
    }
    if (minCntlid < CNTLID_MIN || minCntlid > maxCntlid || maxCntlid > CNTLID_MAX) {
      throw new RpcError(
        'INVALID_PARAMS',
        `Invalid cntlid range [${minCntlid}-${maxCntlid}] of subsystem ${nqn}: min_cntlid is at least ${CNTLID_MIN}, ` +
          `max_cntlid at most ${CNTLID_MAX}, and not below min_cntlid`,
      )
    }
    if (maxNamespaces > MAX_NAMESPACES_LIMIT) {
      throw new RpcError(
        'INVALID_PARAMS',
        `max_namespaces ${maxNamespaces} of subsystem ${nqn} is above ${MAX_NAMESPACES_LIMIT}: ` +
          'spread the namespaces over several subsystems',
      )
    }
  }
}

/** Throws INVALID_PARAMS unless the name of a subsystem or host is well formed. */
export function checkNqn(nqn: string, whose: 'subsystem' | 'host'): void {
  const fault = nqnFault(nqn)
  if (fault === undefined) return
  throw new RpcError('INVALID_PARAMS', `${whose} NQN "${nqn}" ${fault}; a good one is ${NQN_EXAMPLE}`)
}

const isAscii = (text: string): boolean => /^[\x20-\x7e]*$/.test(text)

function checkText(nqn: string, what: string, text: string, lengthMax: number): void {
  if (text.length <= lengthMax && isAscii(text)) return
  const fault =
    text.length > lengthMax
      ? `has ${text.length} characters, more than ${lengthMax}`
      : 'has characters other than printable ASCII'
  throw new RpcError(
    'INVALID_PARAMS',
    `Invalid parameters: the ${what} "${text}" of subsystem ${nqn} ${fault}`,
  )
}

function namespaceSnapshot(namespace: Namespace): NamespaceSnapshot {
  const { bdev } = namespace
  return {
    nsid: namespace.nsid,
    generation: namespace.generation,
    bdev: bdev.name,
    blockSize: bdev.blockSize,
    physicalBlockSize: bdev.physicalBlockSize,
    blockCount: bdev.blockCount,
    canUnmap: bdev.supports.has(IoType.UNMAP),
    hasWriteCache: bdev.writeCache,
    isReadOnly: bdev.readOnly,
    ...namespace.identifiers,
    anagrpid: namespace.anagrpid,
    isVisibleToAll: !namespace.noAutoVisible,
    hosts: [...namespace.hosts],
  }
}
