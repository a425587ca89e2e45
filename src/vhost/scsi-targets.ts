/** The targets of SCSI controllers: eight of each, with one unit that is a bdev. Guests hear of each that comes or goes. */
import type { BdevRegistry } from '../bdev/registry.ts'
import { RpcError } from '../core/errors.ts'
import { logger } from '../core/log.ts'
import { ResetReason, ScsiEventType } from '../spec/virtio-scsi.ts'
import { type ScsiBacking, type ScsiTarget, TARGETS_MAX } from './backing.ts'
import type { VhostController } from './controller.ts'

const log = logger('vhost')

/** ASC 2Ah, ASCQ 09h: capacity data has changed (SPC-6). */
const CAPACITY_CHANGED = 0x2a | (0x09 << 8)

/** The controllers there are: `VhostControllers`. */
export interface ControllerDirectory {
  get(name: string): VhostController
  list(): VhostController[]
}

export class ScsiTargets {
  readonly #bdevs: BdevRegistry
  readonly #controllers: ControllerDirectory

  constructor(bdevs: BdevRegistry, controllers: ControllerDirectory) {
    this.#bdevs = bdevs
    this.#controllers = controllers
  }

  /** Shows a bdev as LUN 0 of the target; -1: the first that is free. Resolves with its number. */
  async add(name: string, number: number, bdevName: string): Promise<number> {
    const controller = this.#controllers.get(name)
    const { targets } = scsiBackingOf(controller)
    const chosen = choose(name, targets, number, bdevName)
    const bdev = this.#bdevs.get(bdevName)
    const claim = this.#bdevs.claim(
      bdev.name,
      `target ${chosen} of vhost controller ${name}`,
      bdev.readOnly ? 'read' : 'write',
    )
    targets.set(chosen, { number: chosen, id: this.#freeId(), name: `Target ${chosen}`, bdev, claim })
    await controller.deviceChanged({
      event: ScsiEventType.TRANSPORT_RESET,
      lun: lunOf(chosen),
      reason: ResetReason.RESCAN,
    })
    log.notice(`${name} has ${bdev.name} as target ${chosen}`)
    return chosen
  }

  /** Resolves when the target's I/O has ended. */
  async remove(name: string, number: number): Promise<void> {
    const controller = this.#controllers.get(name)
    const { targets } = scsiBackingOf(controller)
    const target = targets.get(number)
    if (target === undefined) {
      const there = [...targets.keys()].sort((a, b) => a - b)
      throw new RpcError(
        'ENODEV',
        `${name} has no target ${number}: ${there.length === 0 ? 'it has none' : `it has ${there.join(', ')}`}`,
      )
    }
    await removeTarget(controller, targets, target)
  }

  #freeId(): number {
    const backings = this.#controllers.list().map(({ backing }) => backing)
    const ids = backings.flatMap(backing =>
      backing.kind === 'scsi' ? [...backing.targets.values()].map(({ id }) => id) : [],
    )
    return firstFree(new Set(ids))
  }
}

/** What a SCSI controller has. Throws `RpcError` EINVAL for a controller of the other kind. */
export function scsiBackingOf({ name, backing }: VhostController): ScsiBacking {
  if (backing.kind === 'scsi') return backing
  throw new RpcError(
    'EINVAL',
    `${name} is a blk controller, with one disk and no targets: make one with vhost_create_scsi_controller`,
  )
}

export async function removeTarget(
  controller: VhostController,
  targets: Map<number, ScsiTarget>,
  target: ScsiTarget,
): Promise<void> {
  targets.delete(target.number)
  const lun = lunOf(target.number)
  try {
    await controller.deviceChanged({ event: ScsiEventType.TRANSPORT_RESET, lun, reason: ResetReason.REMOVED })
  } finally {
    target.claim.release()
  }
  log.notice(`${controller.name} has target ${target.number} (${target.bdev.name}) no more`)
}

/** The bdev of a target has another size. */
export const tellOfSize = (controller: VhostController, { number }: ScsiTarget): Promise<void> =>
  controller.deviceChanged({
    event: ScsiEventType.PARAM_CHANGE,
    lun: lunOf(number),
    reason: CAPACITY_CHANGED,
  })

/** The number that a new target gets. */
function choose(
  name: string,
  targets: ReadonlyMap<number, ScsiTarget>,
  number: number,
  bdevName: string,
): number {
  if (number >= TARGETS_MAX) {
    throw new RpcError('EINVAL', `target ${number} of ${name}: there are 0 to ${TARGETS_MAX - 1}`)
  }
  const chosen = number >= 0 ? number : firstFree(new Set(targets.keys()))
  if (chosen >= TARGETS_MAX) {
    throw new RpcError(
      'ENOSPC',
      `${name} has ${TARGETS_MAX} targets and no room for ${bdevName}: remove one, or use another controller`,
    )
  }
  const taken = targets.get(chosen)
  if (taken !== undefined) {
    throw new RpcError(
      'EEXIST',
      `target ${chosen} of ${name} is ${taken.bdev.name} already: choose another number, or -1 for any that is free`,
    )
  }
  return chosen
}

/**
 * LUN 0 of a target in an event (section 5.6.6.1): 1, the target, and the LUN as REPORT LUNS has it. Linux does not know it
 * there in the flat form in which it sends it itself.
 */
const lunOf = (target: number): number[] => [1, target, 0, 0, 0, 0, 0, 0]

function firstFree(taken: ReadonlySet<number>): number {
  let number = 0
  while (taken.has(number)) number++
  return number
}
