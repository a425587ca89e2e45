/** What vhost controllers do when a bdev behind them goes or has another size. */
import type { BdevInfo } from '../bdev/bdev.ts'
import type { BdevListener } from '../bdev/registry.ts'
import { logger } from '../core/log.ts'
import type { BlkBacking } from './backing.ts'
import type { VhostController } from './controller.ts'
import { type ControllerDirectory, removeTarget, tellOfSize } from './scsi-targets.ts'

const log = logger('vhost')

export class BdevEvents implements BdevListener {
  readonly #controllers: ControllerDirectory

  constructor(controllers: ControllerDirectory) {
    this.#controllers = controllers
  }

  async removing(info: BdevInfo): Promise<void> {
    await Promise.all(this.#controllers.list().map(controller => letGo(controller, info)))
  }

  /** Nobody waits for this: a front end that cannot be told sees the size when it looks again. */
  resized(info: BdevInfo): void {
    for (const controller of this.#controllers.list()) {
      tellIfThere(controller, info).catch(error =>
        log.error(`${controller.name} could not be told of the new size of ${info.name}: ${error}`),
      )
    }
  }
}

async function letGo(controller: VhostController, info: BdevInfo): Promise<void> {
  const { backing } = controller
  if (backing.kind === 'blk') {
    if (backing.bdev?.name === info.name) await dropDisk(controller, backing)
    return
  }
  const gone = [...backing.targets.values()].filter(({ bdev }) => bdev.name === info.name)
  await Promise.all(gone.map(target => removeTarget(controller, backing.targets, target)))
}

async function dropDisk(controller: VhostController, backing: BlkBacking): Promise<void> {
  log.warning(`${controller.name} has lost its bdev ${backing.bdev?.name}: every request of its guests fails`)
  backing.bdev = null
  backing.model.remove()
  try {
    await controller.deviceChanged()
  } finally {
    backing.claim.release()
  }
}

async function tellIfThere(controller: VhostController, info: BdevInfo): Promise<void> {
  const { backing } = controller
  if (backing.kind === 'blk') {
    if (backing.bdev?.name === info.name) await controller.deviceChanged()
    return
  }
  for (const target of backing.targets.values()) {
    if (target.bdev.name === info.name) await tellOfSize(controller, target)
  }
}
