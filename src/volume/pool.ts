/**
 * The contract of a pool type. A pool is storage that has volumes: a directory, a volume group, a Ceph pool. What it is made
 * of stands in its libvirt document; what is in it is found, not kept: whoever adds a file with another tool has added a
 * volume.
 *
 *     define          build            start           refresh
 *     document  --->  storage is  ---> storage is ---> volumes are      a backend does the last three for its type,
 *     is kept         made             reachable       known            `StoragePools` keeps the state of each pool
 *
 * A type is one file in `backends/` and one line in `backends/index.ts`. All of it runs on the control thread: errors are
 * `RpcError`s that name the pool, the values and the remedy.
 */
import type { BdevInfo } from '../bdev/bdev.ts'
import type { Permissions, PoolDocument, PoolType, PoolUsage } from '../libvirt/pool-xml.ts'
import type { RbdImages } from '../rbd/images.ts'
import type { MethodCall } from '../rpc/config.ts'
import type { Remote } from './reach.ts'
import type { Secrets } from './secrets.ts'

/** libvirt's words for what a volume is. */
export type VolumeType = 'file' | 'block' | 'network'

/** What a volume holds, as libvirt names it: `raw`, `qcow2`, `iso`; others (`vmdk`, `vdi` …) are listed and not opened. */
export type VolumeFormat = string

/** What refresh finds of a volume. There is no other record of it. */
export interface VolumeFacts {
  /** Unique in its pool. */
  readonly name: string
  /** Unique on the machine: the path mostly, libvirt's key elsewhere. */
  readonly key: string
  /** What programs open: a path, or `POOL/IMAGE` of Ceph (`rbd:POOL/IMAGE` for QEMU). */
  readonly path: string
  readonly type: VolumeType
  readonly format: VolumeFormat
  /** What a guest sees, in bytes. Undefined where only opening the volume would tell: see `VolumeOperations.describe`. */
  readonly capacityBytes: number | undefined
  /** What it takes of the pool, in bytes; undefined as above. */
  readonly allocationBytes: number | undefined
  /** What a qcow2 file or a clone has beneath it. */
  readonly backing?: Backing
  readonly permissions?: Permissions
  /** Tells it from another that has its name later, also after a restart. Absent where the storage has nothing that does. */
  readonly identity?: string
  /** It is being filled, or was when that was interrupted: see `VolumeOperations.markWhole`. */
  readonly isHalfFilled?: true
}

export interface Backing {
  readonly path: string
  /** Undefined when the volume does not say. */
  readonly format: VolumeFormat | undefined
}

/** `availableBytes` may be less than the difference of the other two: what is reserved is not available. */
export interface PoolFill extends PoolUsage {
  /** Of the parts that run out though the pool has room elsewhere, as the thin pools of a volume group, the fullest. */
  readonly fullest?: { readonly what: string; readonly percent: number } | undefined
}

export interface PoolContents extends PoolFill {
  readonly volumes: readonly VolumeFacts[]
}

/**
 * What `build` does where something is already: libvirt's `--no-overwrite` formats unless there is something, `--overwrite`
 * formats in any case, and without either, types differ: a file system is not made, a volume group is.
 */
export type BuildMode = 'default' | 'no-overwrite' | 'overwrite'

/** How long work tells how far it is, and hears that it shall end. Jobs hand it in. */
export interface Progress {
  /** Bytes done, of how many if that is known; cheap, for every piece. */
  readonly report: (done: number, total?: number) => void
  readonly signal: AbortSignal
}

/** Progress that nobody looks at. */
export const QUIET: Progress = { report: () => {}, signal: new AbortController().signal }

/** One pool type, made for one document. */
export interface PoolBackend {
  /** Makes the storage itself. Refuses with EEXIST what would be lost, unless `mode` says so. Absent: nothing to make. */
  build?(mode: BuildMode): Promise<void>
  /**
   * Whether the storage is reachable as `start` would make it, so that a daemon that starts knows a file system that is
   * still mounted. Absent: nobody can tell without starting.
   */
  isStarted?(): Promise<boolean>
  /** Mounts, logs in, activates. Idempotent. */
  start(): Promise<void>
  /**
   * The opposite. Idempotent; data stays. Forced: what is `remote` and does not answer is let go of all the same.
   */
  stop(options?: StopOptions): Promise<void>
  /** How it is found out whether the storage answers, before a thread is lent to it. Absent: it is this machine's own. */
  readonly remote?: Remote
  /** What is behind all of the names that its storage has, once it is started; undefined when nobody can tell. */
  identity?(): Promise<string | undefined>
  /** Removes what this daemon was making when it was interrupted, and mends it. Absent: `canHide` says what there is. */
  removeLeftovers?(): Promise<void>
  /** Everything in the pool, without opening a volume that nobody asks about. */
  refresh(): Promise<PoolContents>
  /**
   * Only how full it is, for the watermarks. Absent where nothing can run out: the volumes have all of their room already, as
   * units of a target and partitions have.
   */
  usage?(): Promise<PoolFill>
  /** Removes the storage: libvirt's pool-delete. The pool is stopped. Absent: the type has no such operation. */
  delete?(): Promise<void>
  /** How a bdev over a volume is made: the method and its parameters without `name`. */
  opening(volume: VolumeFacts, options: OpenOptions): MethodCall
  readonly volumes: VolumeOperations
}

export interface StopOptions {
  readonly isForced: boolean
}

export interface OpenOptions {
  readonly readOnly: boolean
}

/**
 * What can be done to volumes of this type. An absent operation is refused by name, with `reasons` if it has one there. The
 * caller has checked that nobody uses the volume (or has been told to go on), that new names are free and well formed, and
 * refreshes afterwards.
 */
export interface VolumeOperations {
  /** Why an absent operation is absent, as a sentence that goes on "cannot …: ". */
  readonly reasons?: { readonly [operation in VolumeOperation]?: string }
  create?(request: CreateVolume, progress: Progress): Promise<void>
  /** A volume may have a hidden name (`partialName`) until it is whole, and get its own by `rename`. */
  readonly canHide?: true
  /** What was made with an `identity`, and told as half filled since, is whole. Absent where nothing marks it. */
  markWhole?(volume: VolumeFacts): Promise<void>
  /**
   * Deleting or resizing a volume may take long, and others may be changed meanwhile: both are jobs. Absent: they are quick, and
   * nothing else is done to the pool.
   */
  readonly areChangesLong?: true
  /** What was interrupted is begun again. */
  delete?(volume: VolumeFacts, progress: Progress): Promise<void>
  /** Facts that take opening it: capacity, allocation, backing. Absent: `refresh` has found all. */
  describe?(volume: VolumeFacts): Promise<VolumeFacts>
  /** Who has it open where only its storage knows: clients of other machines, and this daemon. */
  clients?(volume: VolumeFacts): Promise<readonly string[]>
  /** Another size, which those who have it open hear of. */
  resize?(volume: VolumeFacts, capacityBytes: number, options: ResizeOptions): Promise<void>
  rename?(volume: VolumeFacts, name: string): Promise<void>
  /**
   * A volume of the same pool that can be written without changing this one. It has its name only when it is whole; what is
   * interrupted is begun again.
   */
  clone?(volume: VolumeFacts, name: string, progress: Progress): Promise<void>
  snapshots?: SnapshotOperations
  /** Overwrites all of it. */
  wipe?(volume: VolumeFacts, algorithm: WipeAlgorithm, progress: Progress): Promise<void>
}

export type VolumeOperation = Exclude<
  keyof VolumeOperations,
  'reasons' | 'describe' | 'clients' | 'canHide' | 'markWhole' | 'areChangesLong'
>

export interface CreateVolume {
  readonly name: string
  readonly format: VolumeFormat
  readonly capacityBytes: number
  /** `full` reserves all blocks, `metadata` (qcow2) only the tables; `off` is a thin volume. */
  readonly preallocation: Preallocation
  readonly backing?: Backing | undefined
  readonly permissions?: Permissions | undefined
  /** qcow2 and RBD features by name, such as `cluster_size`; each backend refuses what it does not know. */
  readonly features: Readonly<Record<string, string>>
  /** A UUID that it is to have for its `identity`, for those who cannot hide it until it is whole. */
  readonly identity?: string
}

export const PREALLOCATIONS = ['off', 'metadata', 'full'] as const
export type Preallocation = (typeof PREALLOCATIONS)[number]

/** The bdevs that have a volume open: what is changed then goes through their methods, or they are told of it. */
export type OpenBy = readonly Pick<BdevInfo, 'name' | 'driver' | 'readOnly'>[]

export interface ResizeOptions extends Progress {
  readonly openBy: OpenBy
  /** Reserve what it grows by. */
  readonly allocate: boolean
  /** It may become smaller; then nobody has it open. */
  readonly shrink: boolean
}

/** libvirt's first two; `random` is one pass. Its multi-pass algorithms are for disks of the nineties. */
export const WIPE_ALGORITHMS = ['zero', 'trim', 'random'] as const
export type WipeAlgorithm = (typeof WIPE_ALGORITHMS)[number]

export interface VolumeSnapshot {
  readonly name: string
  readonly created: Date
  /** The volume's capacity then, in bytes. */
  readonly sizeBytes: number
}

export type SnapshotAction = 'create' | 'revert' | 'delete'

export interface RevertOptions extends Progress {
  /** It was begun before, and interrupted anywhere. */
  readonly isResumed: boolean
}

export interface SnapshotOperations {
  /** What may be done while a bdev has the volume open; the rest is refused then, and reverting always. */
  whileOpen(volume: VolumeFacts): readonly ('create' | 'delete')[]
  create(volume: VolumeFacts, snapshot: string, openBy: OpenBy): Promise<void>
  list(volume: VolumeFacts): Promise<VolumeSnapshot[]>
  /** Nobody has the volume open. What is interrupted is begun again, with the same words. */
  revert(volume: VolumeFacts, snapshot: string, options: RevertOptions): Promise<void>
  delete(volume: VolumeFacts, snapshot: string, openBy: OpenBy): Promise<void>
}

/** A line of `backends/index.ts`: what makes the backend of a type. */
export interface PoolBackendType {
  /** As in `<pool type='…'>`. */
  readonly type: PoolType
  /** One sentence, for `pool types` and the guide. */
  readonly summary: string
  /** Checks what the document must have for this type. Throws `RpcError` EINVAL naming the element. */
  create(document: PoolDocument, services: PoolServices): PoolBackend
}

/** What a backend may use of the daemon. */
export interface PoolServices {
  /**
   * A method of the daemon in its turn, saved. Not from `start`, `stop` and `refresh`: these run while the daemon starts as
   * well, when the turn is that of the start.
   */
  readonly call: (method: string, params?: unknown) => Promise<unknown>
  /** Connections to Ceph, and images that are open. */
  readonly rbd: RbdImages
  readonly secrets: Secrets
}
