/** What a kind of device (blk, scsi) tells the vhost-user protocol about itself, on the control thread. */
import type { DeviceDescription } from './messages.ts'

/**
 * Feature masks have up to 64 bits and are handled a few times a connection, so they are BigInts here, and only here.
 */
export interface DeviceModel {
  /** VIRTIO_ID_BLOCK 2, VIRTIO_ID_SCSI 8. */
  readonly deviceId: number
  /** The device's own feature bits; those of rings and of the transport are the session's. */
  readonly features: bigint
  /** Queues that are not for requests, and come first: SCSI has two. */
  readonly fixedQueues: number
  /** The configuration space at this moment, for a front end that negotiated `features`. */
  config(features: bigint, state: ModelState): Uint8Array
  /**
   * The front end writes to it. Returns true when the device's description has changed by that. Throws `ProtocolError`
   * when the field is not to be written.
   */
  writeConfig(offset: number, bytes: Uint8Array, state: ModelState): boolean
  /** What a reactor needs to know, for a front end that negotiated `features`. */
  describe(features: bigint, state: ModelState): DeviceDescription
}

/** What a front end has set, kept for each session. */
export interface ModelState {
  /** blk: the `writeback` field. */
  writeback: boolean
  /** SCSI: the fields of these names; absent until they are written. */
  senseSize?: number
  cdbSize?: number
}
