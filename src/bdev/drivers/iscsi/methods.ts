/** The RPC methods of iSCSI disks. */
import { z } from 'zod'
import { method } from '../../../rpc/method.ts'
import { done, uint64 } from '../../../rpc/params.ts'
import { deleteMethod } from '../../method.ts'
import type { IscsiDisks } from './disks.ts'

/** What a method of iSCSI disks finds in the application. */
export interface IscsiContext {
  readonly iscsi: IscsiDisks
}

const bdevIscsiSetOptions = method({
  name: 'bdev_iscsi_set_options',
  summary: 'Sets the options of iSCSI disks that are made from now on.',
  params: z.object({
    timeout_sec: uint64
      .optional()
      .describe(
        'How long a command may take, or wait for a lost connection, before it fails; 0 for ever. 30 at start',
      ),
  }),
  result: done,
  state: 'any',
  saves: true,
  cli: { flags: { timeout_sec: 't' } },
  run({ timeout_sec }, { iscsi }: IscsiContext) {
    if (timeout_sec !== undefined) iscsi.setTimeout(timeout_sec)
    return true as const
  },
})

const bdevIscsiCreate = method({
  name: 'bdev_iscsi_create',
  summary: 'Logs in to an iSCSI target and makes one of its logical units a disk.',
  params: z.object({
    name: z.string().min(1).describe('Its name'),
    initiator_iqn: z
      .string()
      .min(1)
      .describe('The name by which we log in, such as iqn.2026-01.com.example:host'),
    url: z
      .string()
      .min(1)
      .describe(
        'iscsi://[USER[%PASSWORD]@]HOST[:PORT]/TARGET/LUN, as libiscsi has it. The password is shown nowhere',
      ),
  }),
  result: z.string().describe('The name'),
  errors: {
    EEXIST: 'a device has that name or that UUID already',
    EINVAL: 'it is no URL, no iSCSI name, no disk, or one with blocks that no device can have',
    ENOTSUP: 'this machine has no libiscsi, or no io_uring',
    ENOENT: 'there is no such target',
    ENODEV: 'the target has no such LUN',
    EACCES: 'the target does not let us in: user, password or initiator name',
    EHOSTUNREACH: 'the host is not known or not to be reached',
    ECONNREFUSED: 'nobody listens there',
    ETIMEDOUT: 'nobody answers there',
    EAGAIN: 'the target or its disk is not ready',
    EIO: 'the target ends the connection, or answers otherwise than it should',
  },
  saves: true,
  concurrent: true,
  cli: { flags: { name: 'b', initiator_iqn: 'i' } },
  async run({ name, initiator_iqn, url }, { iscsi }: IscsiContext) {
    return (await iscsi.create({ name, initiator: initiator_iqn, url })).name
  },
})

export const iscsiMethods = [bdevIscsiSetOptions, bdevIscsiCreate, deleteMethod('bdev_iscsi_delete', 'iscsi')]
