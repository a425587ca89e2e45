/**
 * What the control thread and the reactors tell each other about vhost. A front end (QEMU) speaks to the control thread;
 * its virtqueues are polled on reactors:
 *
 *   controller   a name and a socket, for as long as the operator wants it
 *   session      one front end that is connected to it: memory, features, device
 *   queue        one virtqueue of a session: at home on one reactor
 *
 * The control thread maps the front end's memory and owns its descriptors; a reactor only uses what it is told, and says
 * when it uses it no longer.
 */

export const Topic = {
  /** `OpenSession`, answered when the reactor has the session and channels to its bdevs. */
  OPEN: 'vhost.open',
  /** `SetMemory`, answered when nothing of the earlier memory is in use any more: not by a ring, not by an I/O. */
  MEMORY: 'vhost.memory',
  /** `SetLog`, answered when every later write to guest memory is logged there (or no longer). */
  LOG: 'vhost.log',
  /** `StartQueue`, answered when the queue is polled; requests that the inflight region has are started first. */
  START: 'vhost.start',
  /** `UpdateQueue`, for a queue that runs or not; answered when it holds, and descriptors of before may be closed. */
  UPDATE: 'vhost.update',
  /** `StopQueue`, answered with its base (a number, see `StartQueue.base`) when nothing of it is outstanding or in use. */
  STOP: 'vhost.stop',
  /** `SetDevice`, answered when it holds for every later request. */
  DEVICE: 'vhost.device',
  /** The session's number; answered when what its descriptions lack by now (a bdev, a SCSI target) has nothing outstanding. */
  SETTLED: 'vhost.settled',
  /** `SetTuning`, answered when it holds. */
  TUNING: 'vhost.tuning',
  /** `SendEvent`: something for the device's event queue, if that is at home on this reactor. */
  EVENT: 'vhost.event',
  /** The session's number; answered when all its queues are stopped, its channels closed and everything forgotten. */
  CLOSE: 'vhost.close',
  /** `SessionStats` of the session with that number. */
  STATS: 'vhost.stats',
} as const

/** A piece of guest memory as this process has it mapped. All in bytes. */
export interface MappedRegion {
  /** What descriptors contain. */
  readonly guestAddress: number
  /** What SET_VRING_ADDR contains: an address of the front end's own process. */
  readonly userAddress: number
  readonly sizeBytes: number
  /** In this process. */
  readonly address: number
}

/** Memory that one side maps and the other uses, by address in this process. */
export interface SharedPart {
  readonly address: number
  readonly sizeBytes: number
}

/** How eagerly the queues of a controller are polled and the guest is interrupted. */
export interface Tuning {
  /**
   * A queue without requests for this long, in microseconds, asks the guest for notifications instead of being polled; 0:
   * as soon as it is empty.
   */
  readonly quietUs: number
  /** As in `vhost_controller_set_coalescing`, in microseconds; 0: no interrupt is delayed. */
  readonly delayBaseUs: number
  /** Interrupts are delayed while the queue completes more requests a second than this. */
  readonly iopsThreshold: number
}

export interface BlkDescription {
  readonly kind: 'blk'
  /** Null once it was removed: every request then fails. */
  readonly bdev: string | null
  readonly readOnly: boolean
  /** Every write is on stable storage when it completes: the guest does not flush, or asked for it. */
  readonly writeThrough: boolean
  /** What VIRTIO_BLK_T_GET_ID answers: at most 20 characters. */
  readonly serial: string
}

export interface ScsiTargetDescription {
  /** 0 to 7: the target's number. Its only unit is LUN 0. */
  readonly number: number
  readonly name: string
  readonly bdev: string
}

export interface ScsiDescription {
  readonly kind: 'scsi'
  /** The controller's name: who reserves, as far as reservations are concerned. */
  readonly initiator: string
  /** The front end: whose tasks a task management function means. Never used twice. */
  readonly nexus: number
  readonly targets: readonly ScsiTargetDescription[]
  /** Bytes of sense in a response, and of the CDB in a request. */
  readonly senseSize: number
  readonly cdbSize: number
  /** What all reactors know of the controller's units, in shared memory: see `scsi/shared-units.ts`. */
  readonly units: Int32Array
}

export type DeviceDescription = BlkDescription | ScsiDescription

export interface OpenSession {
  /** Chosen by the control thread, never used twice. */
  readonly session: number
  /** For the log: the controller's name. */
  readonly controller: string
  readonly device: DeviceDescription
  readonly tuning: Tuning
}

export interface SetMemory {
  readonly session: number
  readonly regions: readonly MappedRegion[]
}

export interface SetLog {
  readonly session: number
  /** One bit for each 4 KiB page of guest memory, bit 0 of byte 0 first; null: nothing is logged. */
  readonly log: SharedPart | null
}

export interface StartQueue {
  readonly session: number
  readonly index: number
  /** Entries: a power of two for a split ring, at most 32768. */
  readonly size: number
  readonly isPacked: boolean
  /** VIRTIO_F_EVENT_IDX was negotiated. */
  readonly hasEventIndex: boolean
  /** VIRTIO_F_INDIRECT_DESC was negotiated. */
  readonly hasIndirect: boolean
  /** In the front end's address space, checked by the reactor against the session's regions. */
  readonly descriptors: number
  /** Split: the available ring. Packed: the driver event suppression structure. */
  readonly driverArea: number
  /** Split: the used ring. Packed: the device event suppression structure. */
  readonly deviceArea: number
  /** Where writes to the used ring are logged: a guest address, or -1 when they are not. */
  readonly logAddress: number
  /**
   * As in SET_VRING_BASE. Split: the next available index. Packed: bits 0 to 14 the next available entry, bit 15 its wrap
   * counter, bits 16 to 30 the next used entry, bit 31 its wrap counter.
   */
  readonly base: number
  /** An eventfd, -1 for none: the guest then is polled for ever. */
  readonly kick: number
  /** An eventfd, -1 for none: the guest polls. */
  readonly call: number
  /** An eventfd, -1 for none: told when the guest breaks its ring, of which no request is looked at any more. */
  readonly error: number
  /** Where requests in flight are noted so that they survive this process; null when the front end does not care. */
  readonly inflight: SharedPart | null
  /** A queue that is not enabled is not looked at. */
  readonly isEnabled: boolean
}

/** What is absent stays as it is. */
export interface UpdateQueue {
  readonly session: number
  readonly index: number
  readonly isEnabled?: boolean
  readonly call?: number
  readonly kick?: number
  readonly error?: number
  readonly logAddress?: number
}

export interface StopQueue {
  readonly session: number
  readonly index: number
}

export interface SetDevice {
  readonly session: number
  readonly device: DeviceDescription
}

export interface SetTuning {
  readonly session: number
  readonly tuning: Tuning
}

export interface SendEvent {
  readonly session: number
  /** SCSI: `virtio_scsi_event`, by its fields. */
  readonly event: number
  readonly lun: readonly number[]
  readonly reason: number
}

export interface QueueStats {
  readonly index: number
  readonly requests: number
  readonly outstanding: number
  /** Interrupts sent to the guest. */
  readonly calls: number
  /** Notifications that came from the guest. */
  readonly kicks: number
  /** False while the queue waits for a notification. */
  readonly isPolled: boolean
}

export interface SessionStats {
  readonly queues: readonly QueueStats[]
}
