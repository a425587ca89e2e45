import { z } from 'zod'
import { method } from '../../rpc/method.ts'
import { done, int32, uint32 } from '../../rpc/params.ts'
import { ctrlr, type VhostContext } from './context.ts'

const addTarget = method({
  name: 'vhost_scsi_controller_add_target',
  summary: 'Shows a bdev as LUN 0 of a SCSI target; a guest that is connected is told.',
  params: z.object({
    ctrlr,
    scsi_target_num: int32.describe('0 to 7; -1 for the first that is free'),
    bdev_name: z.string().describe('The bdev'),
  }),
  result: z.int().describe("The target's number"),
  errors: {
    ENODEV: 'no controller or no bdev has that name',
    EEXIST: 'the target is there already',
    ENOSPC: 'all eight targets are there',
    EINVAL: 'there is no target of that number, or it is a blk controller',
    EPERM: 'another user has the bdev for itself',
  },
  saves: true,
  cli: { positional: ['ctrlr', 'scsi_target_num', 'bdev_name'], commands: ['vhost add-target'] },
  run: ({ ctrlr: name, scsi_target_num, bdev_name }, { vhost }: VhostContext) =>
    vhost.targets.add(name, scsi_target_num, bdev_name),
})

const removeTarget = method({
  name: 'vhost_scsi_controller_remove_target',
  summary: 'Takes a SCSI target away: a guest that is connected is told; answers when its I/O has ended.',
  params: z.object({ ctrlr, scsi_target_num: uint32.describe('0 to 7') }),
  result: done,
  errors: {
    ENODEV: 'no controller has that name, or it has no such target',
    EINVAL: 'it is a blk controller',
  },
  saves: true,
  cli: { positional: ['ctrlr', 'scsi_target_num'], commands: ['vhost remove-target'] },
  async run({ ctrlr: name, scsi_target_num }, { vhost }: VhostContext) {
    await vhost.targets.remove(name, scsi_target_num)
    return true as const
  },
})

export const targetMethods = [addTarget, removeTarget]
