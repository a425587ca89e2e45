/** An NBD server in one thread, with everything real but the clients, or with a real network for real ones. */

import { drivers } from '../../src/bdev/drivers/index.ts'
import { ReactorBdevs } from '../../src/bdev/reactor-bdevs.ts'
import { BdevRegistry } from '../../src/bdev/registry.ts'
import { NbdExports } from '../../src/nbd/exports.ts'
import { ReactorNbdServer } from '../../src/nbd/reactor-server.ts'
import { Acceptor, ReactorAcceptor } from '../../src/reactor/acceptor.ts'
import { LocalReactorGroup, type LocalReactorOptions } from '../support/reactor.ts'

export class NbdService {
  readonly reactors: LocalReactorGroup
  readonly bdevs: BdevRegistry
  readonly exports: NbdExports
  readonly servers: readonly ReactorNbdServer[]

  constructor(options: LocalReactorOptions = {}) {
    this.reactors = new LocalReactorGroup(options)
    this.bdevs = new BdevRegistry(this.reactors, drivers)
    this.exports = new NbdExports({
      reactors: this.reactors,
      acceptor: new Acceptor(this.reactors),
      bdevs: this.bdevs,
    })
    this.servers = this.reactors.reactors.map(
      reactor =>
        new ReactorNbdServer(reactor, new ReactorAcceptor(reactor), new ReactorBdevs(reactor, drivers)),
    )
  }
}
