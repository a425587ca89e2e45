/** Volumes that others make and that are only used here: units of a SCSI host or target, multipath devices. */
import type { VolumeOperation, VolumeOperations } from '../pool.ts'
import { wipeDevice } from '../wipe.ts'

/** Those that cannot be wiped in place either: nothing of them is in the file system. */
export class FixedVolumes implements VolumeOperations {
  readonly reasons: Partial<Record<VolumeOperation, string>>

  /** `reason`: why none can be made or changed. */
  constructor(reason: string) {
    this.reasons = {
      ...{ create: reason, delete: reason, resize: reason, rename: reason },
      ...{ clone: reason, snapshots: reason, wipe: 'export it, and wipe what it is exported as' },
    }
  }
}

export class DeviceVolumes extends FixedVolumes {
  readonly wipe = wipeDevice
}
