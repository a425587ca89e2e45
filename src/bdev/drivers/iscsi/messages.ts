/** What the control thread and the reactors tell each other about iSCSI disks. */
import type { IscsiAddress } from './address.ts'

export const Topic = {
  /** `Login`, answered with `UnitFacts`: logs in once, asks, and logs out. Throws `RpcError` when one of that fails. */
  PROBE: 'iscsi.probe',
  /** From the reactor: a host, answered with its numeric address, IPv6 in brackets. Throws `RpcError` EHOSTUNREACH. */
  RESOLVE: 'iscsi.resolve',
  /** From the reactor: `News`. */
  NEWS: 'iscsi.news',
} as const

export interface Login {
  /** The device's, for the log. */
  readonly name: string
  readonly initiator: string
  readonly address: IscsiAddress
  /** How long a command may take, and how long it waits for a lost connection, before its I/O fails; 0 for ever. */
  readonly timeoutSec: number
}

/** Of a logical unit, as its channels need it. */
export interface Unit {
  /** Blocks in one command, for each kind of command; 0 where the unit has none such. */
  readonly transferBlocks: number
  readonly unmapBlocks: number
  readonly zeroesBlocks: number
  /** What was written must be flushed before it is on stable storage. */
  readonly hasCache: boolean
  /** It takes FUA with a write. */
  readonly hasFua: boolean
}

/** `BdevInfo.device`. */
export interface IscsiDevice extends Login {
  readonly unit: Unit
}

/** What a logical unit says of itself. */
export interface UnitFacts {
  readonly unit: Unit
  readonly blockSize: number
  readonly blockCount: number
  readonly physicalBlockSize: number
  readonly readOnly: boolean
  /** In blocks, 0 for no advice. */
  readonly writeSize: number
  readonly unmapGranularity: number
  /** What it is known by wherever it is seen: a designator of page 83h in hexadecimal; empty when it has none. */
  readonly identity: string
  readonly vendor: string
  readonly model: string
}

/** Something about the unit may have changed. */
export interface News {
  readonly name: string
  /** What was told, for the log. */
  readonly what: string
}
