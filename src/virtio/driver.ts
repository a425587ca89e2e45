/** The `virtio` driver: disks that another process serves over vhost-user. */
import { z } from 'zod'
import { defineDriver } from '../bdev/bdev.ts'
import { RpcError } from '../core/errors.ts'
import { virtioOf } from './reactor-virtio.ts'

export const virtioDriver = defineDriver({
  name: 'virtio',
  summary: 'Disks of a vhost-user back end: virtio-blk, or the targets of virtio-scsi.',
  params: z.object({}),
  create: name => {
    throw new RpcError(
      'ENOTSUP',
      `${name} cannot be created: virtio devices appear when bdev_virtio_attach_controller finds them`,
    )
  },
  openChannel: (info, { reactor }) => virtioOf(reactor).openChannel(info),
})
