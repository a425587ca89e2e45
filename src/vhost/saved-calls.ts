/** How the controllers come back after a restart: the calls that make them again. */
import type { MethodCall } from '../rpc/config.ts'
import { DEFAULT_TUNING, type VhostController } from './controller.ts'
import type { CreateBlkOptions, CreateScsiOptions } from './controllers.ts'

/** The calls that make a controller again, in order. */
export function savedCalls(
  controller: VhostController,
  options: CreateBlkOptions | CreateScsiOptions,
): MethodCall[] {
  // A disk that was removed leaves nothing that could be made again; SPDK does not save it either.
  if (controller.backing.kind === 'blk' && controller.backing.bdev === null) return []
  return [...createCalls(controller, options), ...tuningCalls(controller)]
}

function createCalls(
  { backing, isOpen, name }: VhostController,
  options: CreateBlkOptions | CreateScsiOptions,
): MethodCall[] {
  const common = {
    ctrlr: name,
    ...(options.cpumask === undefined ? {} : { cpumask: options.cpumask }),
    ...(options.access.mode === undefined ? {} : { socket_mode: options.access.mode }),
    ...(options.access.owner === undefined ? {} : { socket_owner: options.access.owner }),
  }
  if ('bdev' in options) {
    const { bdev: dev_name, readOnly: readonly, packedRing: packed_ring } = options
    return [{ method: 'vhost_create_blk_controller', params: { ...common, dev_name, readonly, packed_ring } }]
  }
  // Targets first: a guest that comes back must not find them missing.
  const targets = (backing.kind === 'scsi' ? [...backing.targets.values()] : []).map(({ number, bdev }) => ({
    method: 'vhost_scsi_controller_add_target',
    params: { ctrlr: name, scsi_target_num: number, bdev_name: bdev.name },
  }))
  return [
    { method: 'vhost_create_scsi_controller', params: { ...common, delay: true } },
    ...targets,
    ...(isOpen ? [{ method: 'vhost_start_scsi_controller', params: { ctrlr: name } }] : []),
  ]
}

function tuningCalls({ name, tuning }: VhostController): MethodCall[] {
  const { quietUs, delayBaseUs, iopsThreshold } = tuning
  const calls: MethodCall[] = []
  if (delayBaseUs !== DEFAULT_TUNING.delayBaseUs || iopsThreshold !== DEFAULT_TUNING.iopsThreshold) {
    calls.push({
      method: 'vhost_controller_set_coalescing',
      params: { ctrlr: name, delay_base_us: delayBaseUs, iops_threshold: iopsThreshold },
    })
  }
  if (quietUs !== DEFAULT_TUNING.quietUs) {
    calls.push({ method: 'vhost_controller_set_polling', params: { ctrlr: name, quiet_us: quietUs } })
  }
  return calls
}
