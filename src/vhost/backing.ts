/** What stands behind a controller: the bdevs that its guests see as disks. */
import type { BdevInfo } from '../bdev/bdev.ts'
import type { Claim } from '../bdev/claims.ts'
import type { BlkModel } from './blk/model.ts'

export interface BlkBacking {
  readonly kind: 'blk'
  /** Null once it was removed: the guest's requests fail from then on. */
  bdev: BdevInfo | null
  readonly isReadOnly: boolean
  readonly claim: Claim
  readonly model: BlkModel
}

export interface ScsiTarget {
  /** Of its controller: 0 to 7. */
  readonly number: number
  /** Of the whole daemon. */
  readonly id: number
  readonly name: string
  /** Its only unit, LUN 0. */
  readonly bdev: BdevInfo
  readonly claim: Claim
}

export interface ScsiBacking {
  readonly kind: 'scsi'
  /** By number. */
  readonly targets: Map<number, ScsiTarget>
}

export type Backing = BlkBacking | ScsiBacking

export const TARGETS_MAX = 8
