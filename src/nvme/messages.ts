/**
 * What the control thread and the reactors say to each other about NVMe controllers: plain data.
 *
 *   control thread  --PATH_OPEN, PATH_COMMAND-->  home reactor: owns the controller, its admin queue and its timers
 *   home reactor    --PATH_STATUS-->              control thread: keeps the names, checks namespaces, makes devices
 *   control thread  --PATH_UPDATE-->              every reactor: opens and closes its own I/O queue to the path
 *   any reactor     --QUEUE_LOST, ABORT, CHECK_ANA-->  control thread --> home reactor
 */
import type { IoCounters } from '../bdev/iostat.ts'
import type { SocketAddress } from '../reactor/network.ts'
import type { AnaState } from '../spec/nvme-log.ts'

export const Topic = {
  OPTIONS: 'nvme.options',
  PATH_OPEN: 'nvme.path.open',
  PATH_COMMAND: 'nvme.path.command',
  PATH_STATUS: 'nvme.path.status',
  PATH_UPDATE: 'nvme.path.update',
  PATH_REMOVE: 'nvme.path.remove',
  POLICY: 'nvme.policy',
  QUEUE_LOST: 'nvme.queue.lost',
  ABORT: 'nvme.abort',
  CHECK_ANA: 'nvme.check-ana',
  IO_PATHS: 'nvme.io-paths',
  PATH_IOSTAT: 'nvme.path-iostat',
} as const

/**
 * `connecting`: an attempt is under way. `ready`: I/O queues may be opened. `waiting`: the next attempt comes after
 * `reconnect_delay_sec`. `failed`: no attempt will be made. `lost`: `ctrlr_loss_timeout_sec` is over and the path is to be
 * deleted. `disabled`: by the operator.
 */
export type PathState = 'connecting' | 'ready' | 'waiting' | 'failed' | 'lost' | 'disabled'

/** What of `bdev_nvme_set_options` the reactors need. */
export interface HostOptions {
  readonly keepAliveTimeoutMs: number
  /** 0 for none. */
  readonly ioTimeoutUs: number
  /** 0 for none. */
  readonly adminTimeoutUs: number
  readonly actionOnTimeout: 'none' | 'reset' | 'abort'
  /** -1 for no limit. */
  readonly retryCount: number
  readonly ioQueueDepth: number
  readonly disableAutoFailback: boolean
  readonly countPathIo: boolean
  /** For a TCP connection, 0 for the system's own. */
  readonly connectTimeoutMs: number
}

export const DEFAULT_HOST_OPTIONS: HostOptions = {
  keepAliveTimeoutMs: 10_000,
  ioTimeoutUs: 0,
  adminTimeoutUs: 0,
  actionOnTimeout: 'none',
  retryCount: 3,
  ioQueueDepth: 127,
  disableAutoFailback: false,
  countPathIo: false,
  connectTimeoutMs: 0,
}

/** How long a path is tried again: SPDK's three parameters, in seconds. */
export interface ReconnectOptions {
  /** -1 for ever, 0 for not at all. */
  readonly ctrlrLossTimeoutSec: number
  readonly reconnectDelaySec: number
  /** 0 for none. */
  readonly fastIoFailTimeoutSec: number
}

/** A path to open, for its home reactor. */
export interface PathOpen {
  readonly pathId: number
  /** What is expected there: namespaces, or a discovery log. */
  readonly kind: 'io' | 'discovery'
  /** For logs. */
  readonly controller: string
  /** One address; in failover mode all of them, in order. */
  readonly targets: readonly SocketAddress[]
  readonly source: SocketAddress | undefined
  readonly subnqn: string
  readonly hostnqn: string
  /** 16 bytes. */
  readonly hostId: Uint8Array
  /** I/O queues to ask for. */
  readonly ioQueues: number
  /** For each command of the way to `ready`, 0 for the usual time. */
  readonly fabricsTimeoutUs: number
  readonly disableSqFlowControl: boolean
  readonly reconnect: ReconnectOptions
  readonly options: HostOptions
}

export type PathCommand =
  | { readonly pathId: number; readonly command: 'reset' | 'enable' | 'disable' | 'close' | 'health' }
  | { readonly pathId: number; readonly command: 'add-target'; readonly target: SocketAddress }
  | { readonly pathId: number; readonly command: 'remove-target'; readonly target: SocketAddress }

/** A namespace as one controller shows it. */
export interface NamespaceStatus {
  readonly nsid: number
  /** Bytes. */
  readonly blockSize: number
  readonly blockCount: number
  /** Lower-case hexadecimal, empty when the controller gives none. */
  readonly nguid: string
  readonly eui64: string
  /** In the usual text form, empty for none. */
  readonly uuid: string
  readonly anaGroupId: number
  readonly anaState: AnaState
  /** More than one controller can reach it. */
  readonly isShared: boolean
  readonly isReadOnly: boolean
}

/** What a discovery controller knows: an NVM subsystem's port, or another discovery controller. */
export interface DiscoveryEntry {
  readonly kind: 'subsystem' | 'referral'
  /** Undefined when it is not reached over TCP. */
  readonly target: SocketAddress | undefined
  readonly subnqn: string
}

/** What Identify Controller says, as far as anybody asks. */
export interface ControllerStatus {
  readonly cntlid: number
  readonly vendorId: number
  readonly serialNumber: string
  readonly modelNumber: string
  readonly firmwareRevision: string
  readonly subnqn: string
  /** `1.4`. */
  readonly version: string
  readonly oacs: number
  readonly isMultiController: boolean
  readonly reportsAna: boolean
  readonly hasWriteCache: boolean
  readonly supportsCompare: boolean
  readonly supportsWriteZeroes: boolean
  readonly supportsDsm: boolean
  /** Bytes one command may move. */
  readonly maxTransferBytes: number
  /** Bytes of data in the capsule of an I/O command. */
  readonly inCapsuleBytes: number
  /** I/O queues the controller granted, and commands outstanding on each. */
  readonly ioQueues: number
  readonly ioQueueDepth: number
  /** Milliseconds to wait before a retry, by the completion's CRD; the first is 0. */
  readonly retryDelaysMs: readonly number[]
}

export interface PathStatus {
  readonly pathId: number
  readonly state: PathState
  /** I/O that has no path now should wait, since this one may come back soon enough. */
  readonly mayReturn: boolean
  /** Counts the connections: an I/O queue belongs to one of them. */
  readonly generation: number
  /** The address in use or tried last. */
  readonly target: SocketAddress
  /** Why the path is not ready, empty when it is. */
  readonly reason: string
  /** Of the last time the path was ready. */
  readonly controller: ControllerStatus | undefined
  readonly namespaces: readonly NamespaceStatus[]
  /** What is wrong with namespaces that cannot be used. */
  readonly unusable: readonly string[]
  /** Of a discovery controller. */
  readonly discovered: readonly DiscoveryEntry[]
}

/** A path's status for every reactor, with what an I/O queue needs beside it. */
export interface PathUpdate extends PathStatus {
  readonly name: string
  readonly source: SocketAddress | undefined
  readonly subnqn: string
  readonly hostnqn: string
  readonly hostId: Uint8Array
  readonly disableSqFlowControl: boolean
}

/** How a device spreads its I/O over paths. */
export interface MultipathPolicy {
  readonly policy: 'active_passive' | 'active_active'
  readonly selector: 'round_robin' | 'queue_depth'
  /** I/Os on one path before the next one's turn. */
  readonly rrMinIo: number
  /** The path that is first among equals, or undefined. */
  readonly preferredPathId: number | undefined
}

export interface QueueLost {
  readonly pathId: number
  readonly generation: number
  readonly reason: string
  /** It had been connected: then trying again at once is worth while. */
  readonly wasConnected: boolean
}

export interface AbortCommand {
  readonly pathId: number
  readonly generation: number
  readonly sqid: number
  readonly cid: number
}

/** One row of `bdev_nvme_get_io_paths`. */
export interface IoPathRow {
  readonly bdev: string
  readonly pathId: number
  readonly current: boolean
  readonly connected: boolean
  readonly accessible: boolean
}

export interface PathIostat {
  readonly pathId: number
  readonly counters: IoCounters
  /** Writes that were on their way when the connection was lost, and went another way then. */
  readonly unfencedWrites: number
}
