/**
 * The devices as the control thread knows them: who made them, who uses them, and how each reactor hears of a change.
 *
 *   create / add --> every reactor has a replica --> listeners hear `added`
 *   remove       --> filters above it go first --> listeners hear `removing` and let go --> every reactor ends what is
 *                    outstanding and closes its channel --> the driver's `destroy` --> listeners hear `removed`
 */
import { assert } from '../core/assert.ts'
import { RpcError, thereAre } from '../core/errors.ts'
import { logger } from '../core/log.ts'
import type { ReactorGroup } from '../reactor/group.ts'
import type { Configurable, MethodCall } from '../rpc/config.ts'
import type { AnyDriver, BdevInfo, Driver } from './bdev.ts'
import { type Claim, Claims, type ClaimType } from './claims.ts'
import {
  type AddMessage,
  type IostatAnswer,
  type ResetMode,
  type ResizeMessage,
  type TellMessage,
  Topic,
} from './messages.ts'
import { QueueDepths } from './queue-depth.ts'

const log = logger('bdev')

/** What those who serve or watch devices are told. */
export interface BdevListener {
  /** A device is there, on every reactor. */
  added?(info: BdevInfo): void
  /** A device goes: forget it, and release the claim on it. Removal goes on when every listener has answered. */
  removing?(info: BdevInfo): Promise<void> | void
  removed?(info: BdevInfo): void
  /** Every reactor has the new size. */
  resized?(info: BdevInfo, oldBlockCount: number): void
}

interface Entry {
  readonly info: BdevInfo
  readonly driver: AnyDriver
  readonly claims: Claims
  /** Claims on the devices underneath. */
  readonly baseClaims: readonly Claim[]
  config(): MethodCall[]
  removal: Promise<void> | null
}

export class BdevRegistry implements Configurable {
  readonly subsystem = 'bdev'
  readonly dependsOn: readonly string[] = []
  readonly queueDepths: QueueDepths
  /** Names of devices that somebody makes for a while: they are not saved. */
  readonly unsaved = new Set<string>()
  #isReplaying = false
  readonly #reactors: ReactorGroup
  readonly #drivers: ReadonlyMap<string, AnyDriver>
  /** In the order of creation, so that a filter comes after its base. */
  readonly #entries = new Map<string, Entry>()
  /** Names that a creation in progress has taken. */
  readonly #reserved = new Set<string>()
  readonly #listeners = new Set<BdevListener>()
  readonly #configSources: (() => MethodCall[])[] = []

  constructor(reactors: ReactorGroup, drivers: readonly AnyDriver[]) {
    this.#reactors = reactors
    this.#drivers = new Map(drivers.map(driver => [driver.name, driver]))
    this.queueDepths = new QueueDepths(this)
  }

  /**
   * Makes a device. Throws `RpcError`: EEXIST when the name or the UUID is taken, INVALID_PARAMS, or what the driver
   * refuses with.
   */
  async create(driverName: string, name: string, params: unknown): Promise<BdevInfo> {
    const driver = this.#driver(driverName)
    this.#refuseTaken(name)
    const parsed = parse(driver, params)
    this.#reserved.add(name)
    try {
      // The parameters are what the driver's own schema made of them.
      const anyDriver = driver as Driver<unknown>
      const info = await anyDriver.create(name, parsed, {
        get: base => this.get(base),
        tell: (bdev, message) => this.tell(bdev, message),
      })
      const config = (): MethodCall[] => anyDriver.config?.(info, parsed) ?? createCall(info, parsed)
      try {
        await this.#insert(info, driver, config)
      } catch (error) {
        await driver.destroy?.(info)
        throw error
      }
      return info
    } finally {
      this.#reserved.delete(name)
    }
  }

  /** Adds a device that its driver found by itself. Its owner saves it, with `saveWith`, if it is to be saved. */
  async add(info: BdevInfo): Promise<void> {
    this.#refuseTaken(info.name)
    await this.#insert(info, this.#driver(info.driver), () => [])
  }

  /**
   * Takes a device away under whatever uses it, and resolves when nothing of it is left. `driverName`: only if it is
   * that driver's; throws `RpcError` ENODEV otherwise.
   */
  async remove(name: string, driverName?: string): Promise<void> {
    const entry = this.#entry(name)
    if (driverName !== undefined && entry.info.driver !== driverName) {
      throw new RpcError(
        'ENODEV',
        `${entry.info.name} is a ${entry.info.driver} bdev, not ${driverName}: use bdev_${entry.info.driver}_delete`,
      )
    }
    entry.removal ??= this.#remove(entry)
    await entry.removal
  }

  /** The device of that name, alias or UUID; throws `RpcError` ENODEV naming the devices there are. */
  get(name: string): BdevInfo {
    return this.#entry(name).info
  }

  find(name: string): BdevInfo | undefined {
    return this.#find(name)?.info
  }

  get driverNames(): string[] {
    return [...this.#drivers.keys()]
  }

  /** In the order of creation. */
  list(): BdevInfo[] {
    return [...this.#entries.values()].map(entry => entry.info)
  }

  /** Says that the device has another size. Throws `RpcError` EBUSY when it would shrink under somebody. */
  async resize(name: string, blockCount: number): Promise<void> {
    const { info, claims } = this.#entry(name)
    const oldBlockCount = info.blockCount
    if (blockCount === oldBlockCount) return
    if (blockCount < oldBlockCount && !claims.isEmpty) {
      throw new RpcError(
        'EBUSY',
        `${info.name} has ${oldBlockCount} blocks and cannot shrink to ${blockCount} while ${claims.owners} has it: ` +
          'take it away from there first',
      )
    }
    info.blockCount = blockCount
    await this.#reactors.broadcast(Topic.RESIZE, { name: info.name, blockCount } satisfies ResizeMessage)
    log.notice(`${info.name} has ${blockCount} blocks now, ${oldBlockCount} before`)
    for (const listener of this.#listeners) listener.resized?.(info, oldBlockCount)
    for (const { info: filter, driver } of this.#entries.values()) {
      if (!filter.bases.includes(info.name)) continue
      await this.resize(filter.name, driver.sizeOver?.(info, filter) ?? filter.blockCount)
    }
  }

  /**
   * Says that `owner` (a description such as `subsystem nqn.2016-06.io.spdk:cnode1`) uses the device. Throws `RpcError`
   * EPERM naming the other owner when the two exclude each other: see `claims.ts`.
   */
  claim(name: string, owner: string, type: ClaimType): Claim {
    const entry = this.#entry(name)
    if (entry.removal !== null) throw new RpcError('ENODEV', `${entry.info.name} is being removed`)
    return entry.claims.add(owner, type, this.#isReplaying)
  }

  /** Makes calls of a saved configuration: the order in which devices are claimed is not that in which they once were. */
  async replaying<Result>(work: () => Promise<Result>): Promise<Result> {
    this.#isReplaying = true
    try {
      return await work()
    } finally {
      this.#isReplaying = false
    }
  }

  /** Who has the device, for a message; empty when nobody has. */
  ownersOf(name: string): string {
    return this.#entry(name).claims.owners
  }

  /** The type of the claim that excludes others, if there is one. */
  exclusiveClaim(name: string): ClaimType | undefined {
    return this.#entry(name).claims.exclusive?.type
  }

  /** Sends a message to the driver's channels on all reactors: see `DriverChannel.tell`. */
  async tell(name: string, message: unknown): Promise<void> {
    const { info } = this.#entry(name)
    await this.#reactors.broadcast(Topic.TELL, { name: info.name, message } satisfies TellMessage)
  }

  /** The counters of the named devices: one answer a reactor, in the order of the names. */
  iostat(names: readonly string[], reset: ResetMode): Promise<IostatAnswer[]> {
    return this.#reactors.broadcast<IostatAnswer>(Topic.IOSTAT, { names, reset })
  }

  listen(listener: BdevListener): void {
    this.#listeners.add(listener)
  }

  unlisten(listener: BdevListener): void {
    this.#listeners.delete(listener)
  }

  /** Has `source`'s calls saved before the devices: options, controllers whose devices are found, not created. */
  saveWith(source: () => MethodCall[]): void {
    this.#configSources.push(source)
  }

  config(): MethodCall[] {
    const calls = this.#configSources.flatMap(source => source())
    for (const entry of this.#entries.values()) {
      if (!this.unsaved.has(entry.info.name)) calls.push(...entry.config())
    }
    return calls
  }

  #driver(name: string): AnyDriver {
    const driver = this.#drivers.get(name)
    assert(driver, `${name} is one of the drivers ${[...this.#drivers.keys()].join(', ')}`)
    return driver
  }

  #find(name: string): Entry | undefined {
    const entry = this.#entries.get(name)
    if (entry !== undefined) return entry
    const uuid = name.toLowerCase()
    for (const other of this.#entries.values()) {
      if (other.info.uuid === uuid || other.info.aliases.includes(name)) return other
    }
    return undefined
  }

  #entry(name: string): Entry {
    const entry = this.#find(name)
    if (entry !== undefined) return entry
    throw new RpcError('ENODEV', `there is no bdev ${name}: ${thereAre(this.#entries.keys())}`)
  }

  #refuseTaken(name: string): void {
    const other = this.#find(name)?.info
    if (other === undefined && !this.#reserved.has(name)) return
    const what = other === undefined ? 'being created' : `a ${other.driver} bdev`
    throw new RpcError('EEXIST', `a bdev named ${name} exists already (${what}): choose another name`)
  }

  async #insert(info: BdevInfo, driver: AnyDriver, config: () => MethodCall[]): Promise<void> {
    const twin = this.#find(info.uuid)?.info
    if (twin !== undefined) {
      throw new RpcError(
        'EEXIST',
        `${info.name} would have the UUID of ${twin.name}, ${info.uuid}: both are the same medium, so use ${twin.name}, or give another uuid`,
      )
    }
    const baseClaims: Claim[] = []
    try {
      for (const base of info.bases) {
        baseClaims.push(this.claim(base, `${info.driver} bdev ${info.name}`, 'exclusive_write'))
      }
      const message: AddMessage = { info, lock: new SharedArrayBuffer(4) }
      await this.#reactors.broadcast(Topic.ADD, message)
    } catch (error) {
      for (const claim of baseClaims) claim.release()
      throw error
    }
    const claims = new Claims(info.name)
    this.#entries.set(info.name, { info, driver, claims, baseClaims, config, removal: null })
    log.info(`${info.name}: ${info.product}, ${info.blockCount} blocks of ${info.blockSize} bytes`)
    for (const listener of this.#listeners) listener.added?.(info)
  }

  async #remove(entry: Entry): Promise<void> {
    const { info } = entry
    for (const other of [...this.#entries.values()].reverse()) {
      if (other.info.bases.includes(info.name)) await this.remove(other.info.name)
    }
    const answers = await Promise.allSettled(
      [...this.#listeners].map(async listener => listener.removing?.(info)),
    )
    for (const answer of answers) {
      // The device goes all the same: whoever still uses it hears so from its channel.
      if (answer.status === 'rejected') log.error(`${info.name} is removed, but not let go: ${answer.reason}`)
    }
    await this.#reactors.broadcast(Topic.REMOVE, info.name)
    this.#entries.delete(info.name)
    for (const claim of entry.baseClaims) claim.release()
    await entry.driver.destroy?.(info)
    log.info(`${info.name} is removed`)
    for (const listener of this.#listeners) listener.removed?.(info)
  }
}

function parse(driver: AnyDriver, params: unknown): unknown {
  const result = driver.params.safeParse(params)
  if (result.success) return result.data
  const problems = result.error.issues.map(issue => `${issue.path.join('.') || 'params'}: ${issue.message}`)
  throw new RpcError('INVALID_PARAMS', `the ${driver.name} driver refuses ${problems.join('; ')}`)
}

function createCall(info: BdevInfo, params: unknown): MethodCall[] {
  const given = Object.entries(params as object).filter(([, value]) => value !== undefined)
  const named = { name: info.name, ...Object.fromEntries(given), uuid: info.uuid }
  return [{ method: `bdev_${info.driver}_create`, params: named }]
}
