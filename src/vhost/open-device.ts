/** What can stand behind queues, by the kind of its description: a new device is one line here. */
import type { ChannelContext } from '../bdev/bdev.ts'
import type { Logger } from '../core/log.ts'
import { BlkDevice } from './blk/device.ts'
import type { DeviceDescription } from './messages.ts'
import type { VirtioDevice } from './ring/request.ts'
import { ScsiDevice } from './scsi/device.ts'

type Kind = DeviceDescription['kind']
type Open<K extends Kind> = (
  description: Extract<DeviceDescription, { kind: K }>,
  context: ChannelContext,
  log: Logger,
) => VirtioDevice

const DEVICES: { readonly [K in Kind]: Open<K> } = {
  blk: (description, context, log) => new BlkDevice(description, context, log),
  scsi: (description, context, log) => new ScsiDevice(description, context, log),
}

/** Opens a device and its channels. `log`: for what guests cause. Throws `RpcError` ENODEV when a bdev is not there. */
export function openDevice(
  description: DeviceDescription,
  context: ChannelContext,
  log: Logger,
): VirtioDevice {
  const open = DEVICES[description.kind] as (
    description: DeviceDescription,
    context: ChannelContext,
    log: Logger,
  ) => VirtioDevice
  return open(description, context, log)
}
