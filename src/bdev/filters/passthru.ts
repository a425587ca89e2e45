/** Hands everything on: the smallest filter, to begin another one from. */
import { z } from 'zod'
import { method } from '../../rpc/method.ts'
import { uuid } from '../../rpc/params.ts'
import { type ChannelContext, type DriverChannel, defineDriver } from '../bdev.ts'
import type { BdevIo } from '../io.ts'
import { type BdevContext, deleteMethod, FILTER_ERRORS } from '../method.ts'
import { type ChildIo, type ChildOwner, describeFilter, Forwarder } from './forwarder.ts'

const params = z.object({
  base_bdev_name: z.string().describe('The device underneath'),
  uuid: uuid.optional().describe("Derived from the base's when not given"),
})

export const passthruDriver = defineDriver({
  name: 'passthru',
  summary: 'A filter that hands everything on unchanged.',
  params,
  create: (name, { base_bdev_name, uuid: given }, control) => {
    const base = control.get(base_bdev_name)
    return describeFilter(base, {
      name,
      driver: 'passthru',
      product: 'passthru',
      uuid: given,
      device: null,
      driverSpecific: { passthru: { name, base_bdev_name: base.name } },
    })
  },
  sizeOver: base => base.blockCount,
  openChannel: (info, context) => new PassthruChannel(info.bases[0]!, context),
})

class PassthruChannel implements DriverChannel, ChildOwner {
  readonly lends = false
  readonly #forwarder: Forwarder
  readonly #context: ChannelContext

  constructor(base: string, context: ChannelContext) {
    this.#context = context
    this.#forwarder = new Forwarder(context.open(base), this)
  }

  submit(io: BdevIo): void {
    this.#forwarder.submit(this.#forwarder.prepare(io))
  }

  childDone(child: ChildIo): void {
    this.#forwarder.finish(child, child.status)
  }

  abort(io: BdevIo | null): void {
    this.#forwarder.abort(io)
  }

  close(): void {
    this.#context.close(this.#forwarder.base)
  }
}

export const passthruMethods = [
  method({
    name: 'bdev_passthru_create',
    summary: 'Puts a filter that changes nothing over a device.',
    params: z.object({ name: z.string().min(1).describe('Its name'), ...params.shape }),
    result: z.string().describe('The name'),
    errors: FILTER_ERRORS,
    saves: true,
    cli: { flags: { base_bdev_name: 'b', name: 'p', uuid: 'u' } },
    async run({ name, ...rest }, { bdevs }: BdevContext) {
      return (await bdevs.create('passthru', name, rest)).name
    },
  }),
  deleteMethod('bdev_passthru_delete', 'passthru'),
]
