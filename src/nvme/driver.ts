/** The `nvme` driver: devices that are namespaces of somebody else's controllers. */
import { z } from 'zod'
import { defineDriver } from '../bdev/bdev.ts'
import { RpcError } from '../core/errors.ts'
import { nvmeOf } from './reactor-nvme.ts'

export const nvmeDriver = defineDriver({
  name: 'nvme',
  summary: 'Namespaces of NVMe/TCP controllers, over one path or several.',
  params: z.object({}),
  create: name => {
    throw new RpcError(
      'ENOTSUP',
      `${name} cannot be created: NVMe devices appear when bdev_nvme_attach_controller finds their namespaces`,
    )
  },
  openChannel: (info, { reactor }) => nvmeOf(reactor).openChannel(info),
})
