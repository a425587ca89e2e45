/**
 * What the control thread and the reactors tell each other. Snapshots are whole and immutable: a reactor compares the
 * new one with the one it has, and so finds out what its hosts must hear.
 */
import type { SocketAddress } from '../reactor/network.ts'
import type { TransportAddress } from './address.ts'
import type { TransportOptions } from './request.ts'

export const Topic = {
  // From the control thread to reactors.
  /** `TargetUpdate`, to all; answered when it holds. */
  UPDATE: 'nvmf.update',
  /** `DisconnectOrder`; the ends are told by `CLOSED`. */
  DISCONNECT: 'nvmf.disconnect',
  /** A listener's number: it listens no more, and its connections end. */
  UNLISTEN: 'nvmf.unlisten',
  /** Answered with this reactor's `TcpTransportStats`. */
  STATS: 'nvmf.stats',
  /** `DrainQuestion`, answered when nothing is outstanding on those namespaces. */
  DRAIN: 'nvmf.drain',

  // From a reactor to the control thread.
  /** `ConnectQuestion`, answered with `ConnectAnswer`. */
  CONNECT: 'nvmf.connect',
  /** `EnableMessage`: CC.EN changed. Answered when I/O queues may connect, or when all of them have ended. */
  ENABLE: 'nvmf.enable',
  /** The token of a queue that was admitted and is over. */
  CLOSED: 'nvmf.closed',
  /** A subsystem's name: all its controllers end. */
  RESET: 'nvmf.reset',
  /** A subsystem's name, answered with the identifiers of its controllers, ascending. */
  CONTROLLERS: 'nvmf.controllers',

  // Both ways: a reactor asks, and the control thread asks the reactors.
  /** `AbortQuestion`, asked on as `AbortOrder`; answered with whether the command was ended early. */
  ABORT: 'nvmf.abort',
  /** A subsystem's name, answered with `HealthCounters`. */
  HEALTH: 'nvmf.health',
} as const

export interface NamespaceSnapshot {
  readonly nsid: number
  /** Numbers every namespace that ever was: one that took over a freed nsid has another. */
  readonly generation: number
  readonly bdev: string
  readonly blockSize: number
  readonly physicalBlockSize: number
  readonly blockCount: number
  readonly canUnmap: boolean
  readonly hasWriteCache: boolean
  readonly isReadOnly: boolean
  /** 32, 16 hexadecimal digits, and a UUID. */
  readonly nguid: string
  readonly eui64: string
  readonly uuid: string
  readonly anagrpid: number
  /** Every host sees it; else only `hosts` do. */
  readonly isVisibleToAll: boolean
  readonly hosts: readonly string[]
}

export interface ListenerSnapshot {
  readonly id: number
  readonly address: TransportAddress
  /** The state of group n at [n - 1], one for each group there can be. */
  readonly anaStates: Uint8Array
  /** How often any of them changed. */
  readonly anaChanges: number
}

export interface SubsystemSnapshot {
  readonly nqn: string
  readonly isDiscovery: boolean
  readonly serialNumber: string
  readonly modelNumber: string
  readonly maxNamespaces: number
  readonly anaReporting: boolean
  readonly enableNssr: boolean
  /** Dataset Management range size limit in blocks, and Write Zeroes size limit as a power of two of 4 KiB; 0: none. */
  readonly dmrsl: number
  readonly wzsl: number
  readonly allowAnyHost: boolean
  readonly hosts: readonly string[]
  readonly listeners: readonly ListenerSnapshot[]
  readonly namespaces: readonly NamespaceSnapshot[]
}

export interface Referral {
  readonly address: TransportAddress
  readonly subnqn: string
  readonly secureChannel: boolean
}

/** Which listeners a discovery log shows: those that agree with the host's own in everything that is set. */
export interface DiscoveryFilter {
  readonly transport: boolean
  readonly address: boolean
  readonly svcid: boolean
}

/** The part of the target that is not one subsystem's. Comes with every update, so that the log and its count agree. */
export interface TargetSnapshot {
  /** Counts the changes of the discovery log. */
  readonly genctr: number
  readonly referrals: readonly Referral[]
  readonly discoveryFilter: DiscoveryFilter
  readonly transport: TransportSettings | null
  /** The addresses that sockets listen on. */
  readonly listeners: readonly { readonly id: number; readonly address: TransportAddress }[]
  /** Eight characters at most. */
  readonly firmwareRevision: string
  /** Command retry delays, in units of 100 ms. */
  readonly crdt: readonly [number, number, number]
  /**
   * One double: until when I/O is let through, in microseconds of the machine's monotonic clock. Later every namespace of
   * a subsystem that reports ANA is inaccessible, whatever its state.
   */
  readonly lease: SharedArrayBuffer
}

export interface DrainQuestion {
  readonly nqn: string
  readonly anagrpids: readonly number[]
}

export interface TransportSettings extends TransportOptions {
  /** Keep-alive granularity, in units of 100 ms. */
  readonly kas: number
  /** The shortest keep-alive time-out that is granted, in milliseconds. */
  readonly minKatoMs: number
  /** Bits of ONCS and FUSES that hosts are not shown. */
  readonly maskedOncs: number
  readonly maskedFuses: number
}

export interface TargetUpdate {
  readonly target: TargetSnapshot
  readonly subsystem?: SubsystemSnapshot
  /** The name of a subsystem that is gone. */
  readonly removed?: string
}

/** What a well-formed Connect command asks for. */
export interface ConnectQuestion {
  readonly subnqn: string
  readonly hostnqn: string
  /** 32 hexadecimal digits. */
  readonly hostid: string
  readonly qid: number
  /** 0xFFFF from an admin queue: any. */
  readonly cntlid: number
  readonly listenerId: number
  readonly local: SocketAddress
  readonly remote: SocketAddress
}

export interface Admitted {
  readonly admitted: true
  /** Names this queue in every later message. */
  readonly token: number
  readonly cntlid: number
  /** One 32-bit word that every queue of the controller sets when a command arrives. */
  readonly traffic: SharedArrayBuffer
}

export interface Refused {
  readonly admitted: false
  readonly status: number
  /** For Connect Invalid Parameters: the offset of the offending field, and whether it lies in the data. */
  readonly dw0: number
  /** For the log. */
  readonly reason: string
}

export type ConnectAnswer = Admitted | Refused

export interface DisconnectOrder {
  readonly tokens: readonly number[]
  readonly reason: string
}

export interface EnableMessage {
  /** Of the admin queue. */
  readonly token: number
  readonly isEnabled: boolean
}

export interface AbortQuestion {
  /** Of the admin queue. */
  readonly token: number
  readonly sqid: number
  readonly cid: number
}

export interface AbortOrder {
  /** Of the I/O queue. */
  readonly token: number
  readonly cid: number
}

/** What hosts have done to a subsystem's namespaces. */
export interface HealthCounters {
  readonly bytesRead: number
  readonly bytesWritten: number
  readonly reads: number
  readonly writes: number
  readonly busyUs: number
}
