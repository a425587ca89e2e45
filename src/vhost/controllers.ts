/**
 * The vhost controllers of the daemon, as the control thread knows them: what the operator made, by name. Each has a
 * socket in one directory; whoever connects there gets a session, and its queues are polled by reactors.
 */
import type { BdevRegistry } from '../bdev/registry.ts'
import { RpcError, thereAre } from '../core/errors.ts'
import { logger } from '../core/log.ts'
import type { ReactorGroup } from '../reactor/group.ts'
import { type AccessOptions, resolveAccess, type SocketAccess } from '../reactor/socket-access.ts'
import type { Configurable, MethodCall } from '../rpc/config.ts'
import type { Backing, BlkBacking, ScsiBacking } from './backing.ts'
import { BdevEvents } from './bdev-events.ts'
import { BlkModel } from './blk/model.ts'
import { type Listen, VhostController, type VhostOptions } from './controller.ts'
import type { DeviceModel } from './model.ts'
import { maskOfReactors, reactorsOfMask } from './reactor-mask.ts'
import { savedCalls } from './saved-calls.ts'
import { ScsiCoordinator } from './scsi/coordinator.ts'
import { ScsiModel } from './scsi/model.ts'
import { ScsiTargets, scsiBackingOf } from './scsi-targets.ts'
import { QUEUES_MAX } from './session/protocol.ts'
import { socketPathOf } from './socket-directory.ts'

const log = logger('vhost')

/** Beside the control queue and the event queue. */
const SCSI_REQUEST_QUEUES_MAX = QUEUES_MAX - 2
/** SPDK keeps the delay in 32 bits of clock ticks, "more than 1 s at 4 GHz". */
const DELAY_US_MAX = 1_000_000
/** SPDK counts requests in slices of 10 ms, so that fewer than 100 a second are none. */
const IOPS_THRESHOLD_MIN = 100

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
  readonly targets: ScsiTargets
  readonly #parts: VhostControllersParts
  readonly #scsi: ScsiCoordinator
  /** By name, as SPDK lists them. */
  readonly #entries = new Map<string, Entry>()
  #lastVid = -1
  #options: VhostOptions = DEFAULT_OPTIONS

  constructor(parts: VhostControllersParts) {
    this.#parts = parts
    this.#scsi = new ScsiCoordinator(parts.reactors, parts.bdevs)
    this.targets = new ScsiTargets(parts.bdevs, this)
    parts.bdevs.listen(new BdevEvents(this))
  }

  /** Throws `RpcError`: EEXIST, ENODEV, EPERM, EINVAL, and what listening refuses. */
  async createBlk(options: CreateBlkOptions): Promise<void> {
    this.#refuseTaken(options.name)
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
    this.#refuseTaken(options.name)
    const backing: ScsiBacking = { kind: 'scsi', targets: new Map() }
    const model = new ScsiModel(backing, options.name, SCSI_REQUEST_QUEUES_MAX, this.#scsi)
    await this.#create(options, backing, model, !options.delay)
  }

  /** Opens the socket of a SCSI controller that was made with `delay`; nothing if it is open. */
  async startScsi(name: string): Promise<void> {
    const controller = this.get(name)
    scsiBackingOf(controller)
    if (!controller.isOpen) await controller.open()
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
      socketPath: socketPathOf(directory, name),
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

  #refuseTaken(name: string): void {
    const there = this.#entries.get(name)?.controller
    if (there === undefined) return
    throw new RpcError(
      'EEXIST',
      `there is a vhost controller ${name} already, at ${there.socketPath}: choose another name`,
    )
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
