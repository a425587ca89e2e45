/** The `iscsi` driver: disks of iSCSI targets, through libiscsi. */
import { z } from 'zod'
import { RpcError } from '../../../core/errors.ts'
import type { Reactor } from '../../../reactor/reactor.ts'
import { libiscsi } from '../../../sys/libiscsi.ts'
import { defineDriver } from '../../bdev.ts'
import { IscsiChannel } from './channel.ts'
import { type Login, Topic } from './messages.ts'
import { probe } from './probe.ts'

export const iscsiDriver = defineDriver({
  name: 'iscsi',
  summary: 'Disks of iSCSI targets, through libiscsi.',
  params: z.object({}),
  create: name => {
    throw new RpcError(
      'ENOTSUP',
      `${name} cannot be created like this: iSCSI disks are opened by bdev_iscsi_create`,
    )
  },
  openChannel: (info, { reactor }) => new IscsiChannel(info, reactor, ringOf(reactor, info.name), libiscsi()),
})

/** Has a reactor look at disks for the control thread. */
export function serveIscsi(reactor: Reactor): void {
  reactor.control.on<Login>(Topic.PROBE, login =>
    probe(reactor, ringOf(reactor, login.name), libiscsi(), login),
  )
}

function ringOf({ ring, index }: Reactor, name: string): NonNullable<Reactor['ring']> {
  if (ring !== null) return ring
  throw new RpcError('ENOTSUP', `${name} needs io_uring and reactor ${index} has none`)
}
