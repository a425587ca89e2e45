import { z } from 'zod'
import { RpcError } from '../../core/errors.ts'
import { method } from '../../rpc/method.ts'
import { done } from '../../rpc/params.ts'
import { ctrlr, TRANSPORT, UNKNOWN, type VhostContext } from './context.ts'

const newCtrlr = z.string().describe('Its name, and that of its socket in the directory of -S')
const access = {
  cpumask: z
    .string()
    .optional()
    .describe('The reactors that poll its queues, as a core mask; all of them when absent'),
  socket_mode: z
    .string()
    .optional()
    .describe('Who may connect, as for chmod: 0660; what --vhost-mode says when absent'),
  socket_owner: z
    .string()
    .optional()
    .describe('Whose the socket is, as for chown: libvirt-qemu:kvm; what --vhost-owner says when absent'),
}

const CREATE_ERRORS = {
  EEXIST: 'a controller has that name, or a file that is no socket is at its path',
  EINVAL: 'the name, the mask, the mode or the owner is one that cannot be',
  ENOENT: 'the directory of the sockets does not exist',
  EACCES: 'this process may not write to the directory of the sockets',
  EADDRINUSE: 'another process listens at the path',
  EPERM: 'another user has the bdev for itself, or this process may not give the socket away',
} as const

const createBlk = method({
  name: 'vhost_create_blk_controller',
  summary: 'Shows a bdev to a guest as a virtio-blk disk, over a vhost-user socket.',
  params: z.object({
    ctrlr: newCtrlr,
    dev_name: z.string().describe('The bdev'),
    ...access,
    transport: z.string().default(TRANSPORT).describe(`Only ${TRANSPORT}`),
    readonly: z.boolean().default(false).describe('The guest may not write'),
    packed_ring: z.boolean().default(false).describe('Offer the guest packed virtqueues'),
  }),
  result: done,
  errors: { ...CREATE_ERRORS, ENODEV: 'no bdev has that name' },
  relaxed: true,
  saves: true,
  cli: {
    positional: ['ctrlr', 'dev_name'],
    flags: { readonly: 'r', packed_ring: 'p' },
    commands: ['vhost create-blk'],
  },
  async run(params, { vhost }: VhostContext) {
    if (params.transport.toLowerCase() !== TRANSPORT) {
      throw new RpcError(
        'EINVAL',
        `transport ${params.transport} of ${params.ctrlr}: there is only ${TRANSPORT}`,
      )
    }
    await vhost.createBlk({
      name: params.ctrlr,
      bdev: params.dev_name,
      cpumask: params.cpumask,
      access: { mode: params.socket_mode, owner: params.socket_owner },
      readOnly: params.readonly,
      packedRing: params.packed_ring,
    })
    return true as const
  },
})

const createScsi = method({
  name: 'vhost_create_scsi_controller',
  summary:
    'Makes a virtio-scsi controller for a guest, over a vhost-user socket; its disks are added as targets.',
  params: z.object({
    ctrlr: newCtrlr,
    ...access,
    delay: z.boolean().default(false).describe('Nobody can connect before vhost_start_scsi_controller'),
  }),
  result: done,
  errors: CREATE_ERRORS,
  saves: true,
  cli: { positional: ['ctrlr'], commands: ['vhost create-scsi'] },
  async run(params, { vhost }: VhostContext) {
    await vhost.createScsi({
      name: params.ctrlr,
      cpumask: params.cpumask,
      access: { mode: params.socket_mode, owner: params.socket_owner },
      delay: params.delay,
    })
    return true as const
  },
})

const startScsi = method({
  name: 'vhost_start_scsi_controller',
  summary: 'Opens the socket of a SCSI controller that was made with a delay.',
  params: z.object({ ctrlr }),
  result: done,
  errors: { ...CREATE_ERRORS, ENODEV: UNKNOWN },
  saves: true,
  cli: { positional: ['ctrlr'], commands: ['vhost start-scsi'] },
  async run({ ctrlr: name }, { vhost }: VhostContext) {
    await vhost.startScsi(name)
    return true as const
  },
})

const deleteController = method({
  name: 'vhost_delete_controller',
  summary: 'Deletes a controller and its socket, once no front end is connected.',
  params: z.object({ ctrlr }),
  result: done,
  errors: { ENODEV: UNKNOWN, EBUSY: 'front ends are connected' },
  saves: true,
  cli: { positional: ['ctrlr'], commands: ['vhost delete'] },
  async run({ ctrlr: name }, { vhost }: VhostContext) {
    await vhost.delete(name)
    return true as const
  },
})

export const controllerMethods = [createBlk, createScsi, startScsi, deleteController]
