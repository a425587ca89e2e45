/** Virtio controllers by name, on the control thread. */
import type { BdevInfo } from '../bdev/bdev.ts'
import { RpcError, thereAre } from '../core/errors.ts'
import { logger } from '../core/log.ts'
import type { MethodCall } from '../rpc/config.ts'
import { type ControllerOptions, type ControllerParts, VirtioController } from './controller.ts'
import { type GiveUp, type ScsiNews, Topic } from './messages.ts'

const log = logger('virtio')

export class VirtioControllers {
  /** While a saved configuration is replayed: a back end that is not there is waited for, instead of refused. */
  isRestoring = false
  readonly #parts: ControllerParts
  readonly #controllers = new Map<string, VirtioController>()
  #nextId = 1

  constructor(parts: ControllerParts) {
    this.#parts = parts
    const { bdevs, reactors } = parts
    bdevs.saveWith(() => this.#savedCalls())
    for (let i = 0; i < reactors.count; i++) {
      const port = reactors.port(i)
      port.on<GiveUp>(Topic.GIVE_UP, ({ controller, why }) => this.#byId(controller)?.giveUp(why))
      port.on<ScsiNews>(Topic.NEWS, ({ controller, what }) => this.#news(controller, what))
    }
  }

  /** In the order of attachment. */
  list(): VirtioController[] {
    return [...this.#controllers.values()]
  }

  /** Connects to a back end and resolves with its disks. Throws `RpcError`: see `bdev_virtio_attach_controller`. */
  async attach(options: ControllerOptions): Promise<BdevInfo[]> {
    const { name } = options
    const other = this.#controllers.get(name)
    if (other !== undefined) {
      throw new RpcError(
        'EEXIST',
        `a virtio controller ${name} exists already, at ${other.options.path}: choose another name`,
      )
    }
    const controller = new VirtioController(this.#nextId++, options, this.#parts)
    this.#controllers.set(name, controller)
    try {
      return await controller.attach(this.isRestoring)
    } catch (error) {
      await controller.detach()
      this.#controllers.delete(name)
      throw error
    }
  }

  /** Throws `RpcError` ENODEV naming the controllers there are. */
  async detach(name: string): Promise<void> {
    const controller = this.#controllers.get(name)
    if (controller === undefined) {
      throw new RpcError(
        'ENODEV',
        `there is no virtio controller ${name}: ${thereAre(this.#controllers.keys())}`,
      )
    }
    await controller.detach()
    this.#controllers.delete(name)
  }

  /** Detaches everything: for the end of the daemon. */
  async stop(): Promise<void> {
    await Promise.all([...this.#controllers.keys()].map(name => this.detach(name)))
  }

  #byId(id: number): VirtioController | undefined {
    return this.list().find(controller => controller.id === id)
  }

  async #news(id: number, what: string): Promise<void> {
    const controller = this.#byId(id)
    if (controller === undefined) return
    log.info(`${controller.options.name}: ${what}`)
    await controller.refresh()
  }

  #savedCalls(): MethodCall[] {
    return this.list().map(({ options }) => ({
      method: 'bdev_virtio_attach_controller',
      params: {
        name: options.name,
        trtype: 'user',
        traddr: options.path,
        dev_type: options.kind,
        ...(options.vqCount !== undefined && { vq_count: options.vqCount }),
        vq_size: options.vqSize,
        ...(options.packedRing && { packed_ring: true }),
      },
    }))
  }
}
