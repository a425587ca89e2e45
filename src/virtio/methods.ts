/** The RPC methods of the virtio driver. */
import { resolve } from 'node:path'
import { z } from 'zod'
import { RpcError } from '../core/errors.ts'
import { method } from '../rpc/method.ts'
import { done, uint32, uint64 } from '../rpc/params.ts'
import { QUEUE_SIZE_MAX } from '../spec/virtqueue.ts'
import type { VirtioControllers } from './virtio-controllers.ts'

/** What a method of the virtio driver finds in the application. */
export interface VirtioContext {
  readonly virtio: VirtioControllers
}

/** Entries of a virtqueue when nothing else is said. */
const VQ_SIZE_DEFAULT = 512
/** Requests have a header, data and a status. */
const VQ_SIZE_MIN = 16

const bdevVirtioAttachController = method({
  name: 'bdev_virtio_attach_controller',
  summary: 'Connects to a vhost-user back end and answers with the disks that it serves.',
  params: z.object({
    name: z.string().min(1).describe('Name of the controller: that of its disk, or, for scsi, its beginning'),
    trtype: z.enum(['user', 'pci', 'vfio-user']).describe('user'),
    traddr: z.string().min(1).describe("Path of the back end's Unix socket"),
    dev_type: z.enum(['blk', 'scsi']).describe('What the back end serves'),
    vq_count: uint32.min(1).optional().describe('Accepted: each reactor has one request queue'),
    vq_size: uint32
      .min(VQ_SIZE_MIN)
      .max(QUEUE_SIZE_MAX)
      .default(VQ_SIZE_DEFAULT)
      .describe('Entries of each virtqueue, a power of two'),
    packed_ring: z.boolean().default(false).describe('Use packed virtqueues'),
  }),
  result: z.array(z.string()),
  errors: {
    EEXIST: 'a virtio controller or a bdev has that name',
    EINVAL: 'the back end serves the other kind of device or has too few queues, or its disk cannot be used',
    EIO: 'nobody listens at the socket, or it breaks the protocol',
    ENOTSUP: 'another transport is asked for, or the back end lacks a feature',
  },
  saves: true,
  concurrent: true,
  cli: {
    positional: ['name'],
    flags: { trtype: 't', traddr: 'a', dev_type: 'd' },
    commands: ['virtio attach'],
  },
  async run(params, { virtio }: VirtioContext) {
    const { name, trtype, traddr, dev_type, vq_count, vq_size, packed_ring } = params
    if (trtype !== 'user') {
      throw new RpcError(
        'ENOTSUP',
        `${name}: trtype ${trtype} is not supported, ${traddr} must be a vhost-user socket: use user, and the kernel's driver for PCI devices`,
      )
    }
    if ((vq_size & (vq_size - 1)) !== 0) {
      throw new RpcError('EINVAL', `${name}: vq_size ${vq_size} is no power of two: use ${VQ_SIZE_DEFAULT}`)
    }
    const disks = await virtio.attach({
      name,
      path: resolve(traddr),
      kind: dev_type,
      vqCount: vq_count,
      vqSize: vq_size,
      packedRing: packed_ring,
    })
    return disks.map(disk => disk.name)
  },
})

const bdevVirtioDetachController = method({
  name: 'bdev_virtio_detach_controller',
  summary: 'Detaches a virtio controller with its disks; I/O that waits for its back end fails.',
  params: z.object({ name: z.string().describe('The controller') }),
  result: done,
  errors: { ENODEV: 'no virtio controller has that name' },
  saves: true,
  cli: { positional: ['name'], commands: ['virtio detach'] },
  async run({ name }, { virtio }: VirtioContext) {
    await virtio.detach(name)
    return true as const
  },
})

const bdevVirtioScsiGetDevices = method({
  name: 'bdev_virtio_scsi_get_devices',
  summary: 'Lists the virtio SCSI controllers.',
  params: z.object({}),
  result: z.array(
    z.object({
      name: z.string(),
      virtio: z.record(z.string(), z.unknown()),
    }),
  ),
  cli: { columns: ['name', 'virtio.socket', 'virtio.connected'] },
  run(_params, { virtio }: VirtioContext) {
    const controllers = virtio.list().filter(({ options }) => options.kind === 'scsi')
    return controllers.map(({ options, description, isUp }) => ({
      name: options.name,
      virtio: { ...description, connected: isUp },
    }))
  },
})

const bdevVirtioBlkSetHotplug = method({
  name: 'bdev_virtio_blk_set_hotplug',
  summary: 'Only for configurations of others: there are no PCI devices to watch for.',
  params: z.object({
    enable: z.boolean().describe('Only false'),
    period_us: uint64.optional().describe('Accepted'),
  }),
  result: done,
  errors: { ENOTSUP: 'watching is to be enabled' },
  cli: { flags: { enable: { on: 'hotplug', off: 'no-hotplug' }, period_us: 'r' } },
  run({ enable }) {
    if (enable) {
      throw new RpcError(
        'ENOTSUP',
        'enable: PCI devices are not watched for, only vhost-user sockets are used: attach with bdev_virtio_attach_controller',
      )
    }
    return true as const
  },
})

export const virtioMethods = [
  bdevVirtioAttachController,
  bdevVirtioDetachController,
  bdevVirtioScsiGetDevices,
  bdevVirtioBlkSetHotplug,
]
