/** A reactor's channel to an image: to the engine when this reactor owns the image, by messages when another does. */
import type { Reactor } from '../../../reactor/reactor.ts'
import type { Uring } from '../../../sys/uring.ts'
import type { BdevInfo, DriverChannel } from '../../bdev.ts'
import type { Extents } from '../../extents.ts'
import type { BdevIo } from '../../io.ts'
import { Agreement, type Qcow2Device } from './device.ts'
import { type Host, hostOf } from './host.ts'
import { Outbox } from './outbox.ts'

export class Qcow2Channel implements DriverChannel {
  readonly lends = false
  readonly #host: Host | null
  readonly #outbox: Outbox | null

  constructor(info: BdevInfo, reactor: Reactor, ring: Uring) {
    const device = info.device as Qcow2Device
    const isOwner = new Agreement(device).own(reactor.index)
    this.#host = isOwner ? hostOf(device, info.name, reactor, ring) : null
    this.#outbox = isOwner ? null : new Outbox(device, reactor, ring)
  }

  submit(io: BdevIo): void {
    if (this.#host !== null) this.#host.submit(io)
    else this.#outbox!.submit(io)
  }

  /** Files end what they are asked for by themselves, and what waits here waits for nothing else. */
  abort(): void {}

  extents(firstBlock: number, blockCount: number, extents: Extents): void {
    this.#host?.extents(firstBlock, blockCount, extents)
  }

  close(): void {
    this.#outbox?.close()
  }
}
