/**
 * What the control thread and the reactors tell each other about virtio controllers: back ends on Unix sockets whose front
 * end is this daemon. The control thread speaks their protocol and owns the memory; each reactor has one request queue of
 * each controller, in memory of its own part.
 *
 *   open -> prepare -> run -> (connection lost) halt -> prepare -> run … -> halt -> close
 */

export const Topic = {
  /** `OpenQueue`, answered when the reactor has the queue. I/O to it waits. */
  OPEN: 'virtio.open',
  /** `PrepareQueue`, answered with the base for SET_VRING_BASE: the ring is as the back end is to find it. */
  PREPARE: 'virtio.prepare',
  /** The controller's number; answered when what waited is on its way. */
  RUN: 'virtio.run',
  /** The controller's number; answered with `HaltAnswer` when what the back end had ended is taken in. I/O waits again. */
  HALT: 'virtio.halt',
  /** The controller's number, after its devices are gone; answered when nothing of its memory is in use any more. */
  CLOSE: 'virtio.close',
  /** `ExecuteScsi`, answered with `ScsiAnswer`. Throws when the connection is lost meanwhile. */
  EXECUTE: 'virtio.execute',
  /** From the reactor: the controller's number and why its connection is to be given up. */
  GIVE_UP: 'virtio.give_up',
  /** From the reactor: `ScsiNews`, answered when the control thread has looked. */
  NEWS: 'virtio.news',
} as const

export type DeviceKind = 'blk' | 'scsi'

/** A virtqueue as this side made it: it outlives connections. */
export interface RingDescription {
  /** The virtqueue's number. */
  readonly index: number
  /** Entries: a power of two. */
  readonly size: number
  /** Where it is in this process, which is also its guest address. */
  readonly address: number
  /** An eventfd that wakes the back end. */
  readonly kick: number
  /** An eventfd by which the back end wakes us. */
  readonly call: number
}

/** What a connection has agreed on, as far as rings and requests depend on it. */
export interface RingFeatures {
  readonly isPacked: boolean
  readonly hasEventIndex: boolean
  readonly hasIndirect: boolean
}

/** A disk of a controller, as its channels need it: `BdevInfo.device`. */
export interface Unit {
  readonly controller: number
  readonly kind: DeviceKind
  /** SCSI: which target; its unit is LUN 0. */
  readonly target: number
  /** Bytes in one segment of data. */
  readonly segmentBytes: number
  /** Blocks in one request, for each kind of request; 0 where the device has none such. */
  readonly transferBlocks: number
  readonly unmapBlocks: number
  readonly zeroesBlocks: number
  /** What was written must be flushed before it is on stable storage. */
  readonly hasCache: boolean
}

export interface OpenQueue {
  /** The controller's number: chosen by the control thread, never used twice. */
  readonly controller: number
  /** For the log. */
  readonly name: string
  readonly kind: DeviceKind
  readonly ring: RingDescription
  /** Headers and status bytes of requests. */
  readonly slots: number
  /** Data, and how much there is of it. */
  readonly data: number
  readonly dataBytes: number
  /** SCSI, on one reactor only: the queue that events come in. */
  readonly events: EventArea | null
}

export interface EventArea {
  readonly ring: RingDescription
  /** As many buffers of `ScsiEvent` as there is room for in the ring. */
  readonly buffers: number
}

export interface PrepareQueue {
  readonly controller: number
  readonly features: RingFeatures
  /** The back end goes on where the last one stopped; otherwise the ring is made anew and what is in flight sent again. */
  readonly resumes: boolean
}

/** The next index, as SET_VRING_BASE has it, of the request queue and of the event queue (0 where there is none). */
export interface PrepareAnswer {
  readonly base: number
  readonly eventBase: number
}

export interface HaltAnswer {
  /** False when a request in the ring must not be carried out any more, since its I/O was given up. */
  readonly mayResume: boolean
}

export interface ExecuteScsi {
  readonly controller: number
  readonly target: number
  readonly lun: number
  readonly cdb: readonly number[]
  /** How much may come back, in bytes. */
  readonly dataBytes: number
}

export interface ScsiAnswer {
  /** Of virtio: `ScsiResponse`. */
  readonly response: number
  /** Of SCSI. */
  readonly status: number
  readonly sense: Uint8Array
  readonly data: Uint8Array
}

/** Units may have come, gone or changed. */
export interface ScsiNews {
  readonly controller: number
  /** What was told, for the log. */
  readonly what: string
}

export interface GiveUp {
  readonly controller: number
  readonly why: string
}
