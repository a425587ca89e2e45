/**
 * The vhost controllers of the daemon, as the control thread knows them: what the operator made, by name. Each has a
 * socket in one directory; whoever connects there gets a session, and its queues are polled by reactors.
 */
import { join } from 'node:path'
import type { BdevInfo } from '../bdev/bdev.ts'
import type { BdevRegistry } from '../bdev/registry.ts'
import { RpcError, thereAre } from '../core/errors.ts'
import { logger } from '../core/log.ts'
import type { ReactorGroup } from '../reactor/group.ts'
import type { Configurable, MethodCall } from '../rpc/config.ts'
import { ResetReason, ScsiEventType } from '../spec/virtio-scsi.ts'
import { type Backing, type BlkBacking, type ScsiBacking, type ScsiTarget, TARGETS_MAX } from './backing.ts'
import { BlkModel } from './blk/model.ts'
import { type DeviceEvent, type Listen, VhostController, type VhostOptions } from './controller.ts'
import type { DeviceModel } from './model.ts'
import { QUEUES_MAX } from './protocol.ts'
import { maskOfReactors, reactorsOfMask } from './reactor-mask.ts'
import { savedCalls } from './saved-calls.ts'
import { ScsiCoordinator } from './scsi/coordinator.ts'
import { ScsiModel } from './scsi/model.ts'
import { type AccessOptions, resolveAccess, type SocketAccess } from './socket-access.ts'

const log = logger('vhost')

/** `sun_path` of a Unix socket has 108 bytes, the last of them a zero. */
const PATH_BYTES_MAX = 107
/** Beside the control queue and the event queue. */
const SCSI_REQUEST_QUEUES_MAX = QUEUES_MAX - 2
/** SPDK keeps the delay in 32 bits of clock ticks, "more than 1 s at 4 GHz". */
const DELAY_US_MAX = 1_000_000
/** SPDK counts requests in slices of 10 ms, so that fewer than 100 a second are none. */
const IOPS_THRESHOLD_MIN = 100
/** ASC 2Ah, ASCQ 09h: capacity data has changed (SPC-6). */
const CAPACITY_CHANGED = 0x2a | (0x09 << 8)

/** What both kinds of controllers are made with. */
export interface CreateOptions {
  readonly name: string
  /** Every reactor when undefined. */
  readonly cpumask: string | undefined
  /** The daemon's default where undefined. */
  readonly access: AccessOptions
}

export interface CreateBlkOptions extends CreateOptions {
  /** A bdev's name, alias or UUID. */
  readonly bdev: string
  readonly readOnly: boolean
  readonly packedRing: boolean
}

export interface CreateScsiOptions extends CreateOptions {
  /** Nobody can connect before `startScsi`. */
  readonly delay: boolean
}

export interface VhostControllersParts {
  readonly reactors: ReactorGroup & { readonly cpus: readonly number[] }
  readonly bdevs: BdevRegistry
  /** Where the sockets are: an absolute path. */
  readonly directory: string
  readonly defaultAccess: SocketAccess
  readonly listen: Listen
}

/** Memory of huge pages in a file, as SPDK's users have it, cannot be sealed. */
const DEFAULT_OPTIONS: VhostOptions = { requireSealedMemory: false }

interface Entry {
  readonly controller: VhostController
  readonly options: CreateBlkOptions | CreateScsiOptions
}

export class VhostControllers {
  /** What is saved of each kind: SPDK has them apart. */
  readonly configurables: readonly Configurable[] = [
    {
      subsystem: 'vhost_blk',
      dependsOn: ['bdev'],
      config: () => [...this.#optionCalls(), ...this.#config('blk')],
    },
    { subsystem: 'vhost_scsi', dependsOn: ['bdev'], config: () => this.#config('scsi') },
  ]
  readonly #parts: VhostControllersParts
  readonly #scsi: ScsiCoordinator
  /** By name, as SPDK lists them. */
  readonly #entries = new Map<string, Entry>()
  #lastVid = -1
  #options: VhostOptions = DEFAULT_OPTIONS

  constructor(parts: VhostControllersParts) {
    this.#parts = parts
    this.#scsi = new ScsiCoordinator(parts.reactors, parts.bdevs)
    parts.bdevs.listen({
      removing: info => this.#bdevRemoved(info),
      resized: info => void this.#bdevResized(info),
    })
  }

  /** Throws `RpcError`: EEXIST, ENODEV, EPERM, EINVAL, and what listening refuses. */
  async createBlk(options: CreateBlkOptions): Promise<void> {
    this.#refuseName(options.name)
    const { bdevs } = this.#parts
    const bdev = bdevs.get(options.bdev)
    const isReadOnly = options.readOnly || bdev.readOnly
    if (isReadOnly && !options.readOnly) log.notice(`${options.name} is read only, as ${bdev.name} is`)
    // Not for itself: while a guest migrates, two controllers serve its disk.
    const claim = bdevs.claim(bdev.name, `vhost controller ${options.name}`, isReadOnly ? 'read' : 'write')
    try {
      const model = new BlkModel(bdev, { isReadOnly, queueCount: QUEUES_MAX })
      const backing: BlkBacking = { kind: 'blk', bdev, isReadOnly, claim, model }
      await this.#create({ ...options, bdev: bdev.name }, backing, model, true)
    } catch (error) {
      claim.release()
      throw error
    }
  }

  /** Throws `RpcError`: EEXIST, EINVAL, and what listening refuses. */
  async createScsi(options: CreateScsiOptions): Promise<void> {
    this.#refuseName(options.name)
    const backing: ScsiBacking = { kind: 'scsi', targets: new Map() }
    const model = new ScsiModel(backing, options.name, SCSI_REQUEST_QUEUES_MAX, this.#scsi)
    await this.#create(options, backing, model, !options.delay)
  }

  /** Opens the socket of a SCSI controller that was made with `delay`; nothing if it is open. */
  async startScsi(name: string): Promise<void> {
    const controller = this.get(name)
    this.#scsiBacking(controller)
    if (!controller.isOpen) await controller.open()
  }

  /** Shows a bdev as LUN 0 of the target; -1: the first that is free. Resolves with its number. */
  async addTarget(name: string, number: number, bdevName: string): Promise<number> {
    const controller = this.get(name)
    const { targets } = this.#scsiBacking(controller)
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
    const { bdevs } = this.#parts
    const bdev = bdevs.get(bdevName)
    const claim = bdevs.claim(
      bdev.name,
      `target ${chosen} of vhost controller ${name}`,
      bdev.readOnly ? 'read' : 'write',
    )
    targets.set(chosen, { number: chosen, id: this.#freeTargetId(), name: `Target ${chosen}`, bdev, claim })
    await tell(controller, {
      event: ScsiEventType.TRANSPORT_RESET,
      lun: lunOf(chosen),
      reason: ResetReason.RESCAN,
    })
    log.notice(`${name} has ${bdev.name} as target ${chosen}`)
    return chosen
  }

  /** Resolves when the target's I/O has ended. */
  async removeTarget(name: string, number: number): Promise<void> {
    const controller = this.get(name)
    const { targets } = this.#scsiBacking(controller)
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

  async setCoalescing(name: string, delayBaseUs: number, iopsThreshold: number): Promise<void> {
    const controller = this.get(name)
    if (delayBaseUs > DELAY_US_MAX) {
      throw new RpcError(
        'EINVAL',
        `delay_base_us ${delayBaseUs} of ${name} is more than ${DELAY_US_MAX}: less than 150 is useful`,
      )
    }
    if (iopsThreshold < IOPS_THRESHOLD_MIN) {
      throw new RpcError(
        'EINVAL',
        `iops_threshold ${iopsThreshold} of ${name} is less than ${IOPS_THRESHOLD_MIN}, the least that can be told apart`,
      )
    }
    await controller.tune({ delayBaseUs, iopsThreshold })
  }

  async setPolling(name: string, quietUs: number): Promise<void> {
    await this.get(name).tune({ quietUs })
  }

  get options(): VhostOptions {
    return this.#options
  }

  setOptions(options: VhostOptions): void {
    this.#options = options
  }

  /** Throws `RpcError` EBUSY while front ends are connected. */
  async delete(name: string): Promise<void> {
    const controller = this.get(name)
    const { sessionCount } = controller
    if (sessionCount > 0) {
      throw new RpcError(
        'EBUSY',
        `${name} has ${sessionCount} connected front end${sessionCount === 1 ? '' : 's'}: ` +
          'shut the guest down or detach its disk first',
      )
    }
    await this.#close(controller)
    log.notice(`${name} is deleted`)
  }

  /** In the order of their names. */
  list(): VhostController[] {
    return [...this.#entries.values()]
      .map(({ controller }) => controller)
      .sort((a, b) => (a.name < b.name ? -1 : 1))
  }

  /** Throws `RpcError` ENODEV naming the controllers there are. */
  get(name: string): VhostController {
    const entry = this.#entries.get(name)
    if (entry !== undefined) return entry.controller
    const names = this.list().map(controller => controller.name)
    throw new RpcError('ENODEV', `there is no vhost controller ${name}: ${thereAre(names)}`)
  }

  cpumaskOf(controller: VhostController): string {
    return maskOfReactors(controller.reactorIndexes, this.#parts.reactors.cpus)
  }

  /** Ends every session in order, and removes the sockets. What is saved stays. */
  async stop(): Promise<void> {
    await Promise.all(this.list().map(controller => this.#close(controller)))
  }

  async #create(
    options: CreateBlkOptions | CreateScsiOptions,
    backing: Backing,
    model: DeviceModel,
    opens: boolean,
  ): Promise<void> {
    const { reactors, listen, defaultAccess, directory } = this.#parts
    const { name, access, cpumask } = options
    const controller = new VhostController({
      name,
      socketPath: join(directory, name),
      backing,
      model,
      reactorIndexes: reactorsOfMask(cpumask, reactors.cpus),
      access: { ...defaultAccess, ...(await resolveAccess(access)) },
      // A SCSI controller has no such option: front ends that want packed rings ask for them.
      offerPacked: 'packedRing' in options ? options.packedRing : true,
      listen,
      options: () => this.#options,
      nextVid: () => ++this.#lastVid,
    })
    this.#entries.set(name, { controller, options })
    try {
      if (opens) await controller.open()
    } catch (error) {
      this.#entries.delete(name)
      throw error
    }
  }

  async #close(controller: VhostController): Promise<void> {
    this.#entries.delete(controller.name)
    await controller.close()
    const { backing } = controller
    if (backing.kind === 'blk') backing.claim.release()
    else for (const { claim } of backing.targets.values()) claim.release()
  }

  #refuseName(name: string): void {
    const there = this.#entries.get(name)?.controller
    if (there !== undefined) {
      throw new RpcError(
        'EEXIST',
        `there is a vhost controller ${name} already, at ${there.socketPath}: choose another name`,
      )
    }
    if (name === '' || name === '.' || name === '..' || /[/\0]/.test(name)) {
      throw new RpcError(
        'EINVAL',
        `a controller cannot be named ${JSON.stringify(name)}: its socket is a file of that name in ${this.#parts.directory} (-S)`,
      )
    }
    const path = join(this.#parts.directory, name)
    const size = Buffer.byteLength(path)
    if (size > PATH_BYTES_MAX) {
      throw new RpcError(
        'EINVAL',
        `the socket ${path} has a path of ${size} bytes, and a Unix socket's has at most ${PATH_BYTES_MAX}: ` +
          'choose a shorter name, or a shorter directory (-S)',
      )
    }
  }

  #scsiBacking({ name, backing }: VhostController): ScsiBacking {
    if (backing.kind === 'scsi') return backing
    throw new RpcError(
      'EINVAL',
      `${name} is a blk controller, with one disk and no targets: make one with vhost_create_scsi_controller`,
    )
  }

  #freeTargetId(): number {
    const backings = this.list().map(({ backing }) => backing)
    const ids = backings.flatMap(backing =>
      backing.kind === 'scsi' ? [...backing.targets.values()].map(({ id }) => id) : [],
    )
    return firstFree(new Set(ids))
  }

  async #bdevRemoved(info: BdevInfo): Promise<void> {
    await Promise.all(
      this.list().map(async controller => {
        const { backing } = controller
        if (backing.kind === 'blk') {
          if (backing.bdev?.name === info.name) await dropDisk(controller, backing)
          return
        }
        const gone = [...backing.targets.values()].filter(({ bdev }) => bdev.name === info.name)
        await Promise.all(gone.map(target => removeTarget(controller, backing.targets, target)))
      }),
    )
  }

  async #bdevResized(info: BdevInfo): Promise<void> {
    for (const controller of this.list()) {
      const { backing } = controller
      try {
        if (backing.kind === 'blk') {
          if (backing.bdev?.name === info.name) await controller.deviceChanged()
          continue
        }
        for (const { number, bdev } of backing.targets.values()) {
          if (bdev.name !== info.name) continue
          await tell(controller, {
            event: ScsiEventType.PARAM_CHANGE,
            lun: lunOf(number),
            reason: CAPACITY_CHANGED,
          })
        }
      } catch (error) {
        // Nobody waits for this: a front end that cannot be told sees the size when it looks again.
        log.error(`${controller.name} could not be told of the new size of ${info.name}: ${error}`)
      }
    }
  }

  #optionCalls(): MethodCall[] {
    const { requireSealedMemory } = this.#options
    if (requireSealedMemory === DEFAULT_OPTIONS.requireSealedMemory) return []
    return [{ method: 'vhost_set_options', params: { require_sealed_memory: requireSealedMemory } }]
  }

  #config(kind: Backing['kind']): MethodCall[] {
    const entries = [...this.#entries.values()].filter(({ controller }) => controller.backing.kind === kind)
    return entries.flatMap(({ controller, options }) => savedCalls(controller, options))
  }
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

async function removeTarget(
  controller: VhostController,
  targets: Map<number, ScsiTarget>,
  target: ScsiTarget,
): Promise<void> {
  targets.delete(target.number)
  const lun = lunOf(target.number)
  try {
    // The guest hears of it before what the reactors still have to end, which may take long.
    await controller.sendEvent({ event: ScsiEventType.TRANSPORT_RESET, lun, reason: ResetReason.REMOVED })
    await controller.deviceChanged()
  } finally {
    target.claim.release()
  }
  log.notice(`${controller.name} has target ${target.number} (${target.bdev.name}) no more`)
}

/** The reactors know first, so that a guest that looks at once finds it. */
async function tell(controller: VhostController, event: DeviceEvent): Promise<void> {
  await controller.deviceChanged()
  await controller.sendEvent(event)
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
