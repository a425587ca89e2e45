/** The `rbd` driver: devices that are images of a Ceph cluster. */
import { z } from 'zod'
import { defineDriver } from '../bdev/bdev.ts'
import { RpcError } from '../core/errors.ts'
import { librbd } from '../sys/librbd.ts'
import { RbdChannel } from './rbd-channel.ts'

export const rbdDriver = defineDriver({
  name: 'rbd',
  summary: 'Images of a Ceph cluster, through librbd.',
  params: z.object({}),
  create: name => {
    throw new RpcError('ENOTSUP', `${name} cannot be created like this: images are opened by bdev_rbd_create`)
  },
  openChannel(info, { reactor }) {
    if (reactor.ring === null) {
      throw new RpcError('ENOTSUP', `${info.name} needs io_uring and reactor ${reactor.index} has none`)
    }
    return new RbdChannel(info, reactor, reactor.ring, librbd())
  },
})
