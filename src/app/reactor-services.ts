/** What stands on each reactor. */
import type { AnyDriver } from '../bdev/bdev.ts'
import { serveIscsi } from '../bdev/drivers/iscsi/driver.ts'
import { ReactorBdevs } from '../bdev/reactor-bdevs.ts'
import { ReactorNbdServer } from '../nbd/reactor-server.ts'
import { installNvme } from '../nvme/reactor-nvme.ts'
import { serveNvmf } from '../nvmf/reactor-services.ts'
import { ReactorAcceptor } from '../reactor/acceptor.ts'
import { serveBells } from '../reactor/bell.ts'
import { ReactorMessageSockets } from '../reactor/message-sockets.ts'
import type { Reactor } from '../reactor/reactor.ts'
import { ReactorVhost } from '../vhost/reactor-vhost.ts'
import { installVirtio } from '../virtio/reactor-virtio.ts'
import { ReactorDisks } from '../volume/transfer/reactor-disk.ts'
import { ReactorWorkloads } from '../workload/reactor-workloads.ts'

/** What the control thread tells a reactor thread at its start. Cloned. */
export interface ReactorApplication {
  /** Drivers written by users: modules that every thread loads for itself. */
  readonly plugins: readonly string[]
}

export function buildServices(reactor: Reactor, drivers: readonly AnyDriver[]): void {
  installNvme(reactor)
  installVirtio(reactor)
  serveIscsi(reactor)
  const bdevs = new ReactorBdevs(reactor, drivers)
  new ReactorWorkloads(reactor, bdevs)
  new ReactorDisks(reactor, bdevs)
  const acceptor = new ReactorAcceptor(reactor)
  serveNvmf(reactor, bdevs, acceptor)
  new ReactorMessageSockets(reactor, acceptor)
  new ReactorVhost(reactor, bdevs)
  new ReactorNbdServer(reactor, acceptor, bdevs)
  serveBells(reactor)
}
