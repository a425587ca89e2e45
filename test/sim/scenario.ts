/**
 * One run of a seed: a client with a multipath device over two gateways that share a disk, a workload, and faults. When
 * the faults are over everything has to work again, and when all is detached nothing may be left.
 */
import { RpcError } from '../../src/core/errors.ts'
import { logSettings } from '../../src/core/log.ts'
import { Status } from '../../src/spec/nvme-status.ts'
import { Checker, type Op } from './checker.ts'
import { Client } from './client.ts'
import { CLIENT_ADDRESS, chooseConfig, type ScenarioConfig } from './config.ts'
import { NO_SABOTAGE, type Sabotage, SharedDisk } from './disk.ts'
import { chooseFaults, type Fault } from './faults.ts'
import { Gateway } from './gateway.ts'
import { PathWatch } from './path-watch.ts'
import { Workload } from './workload.ts'
import { World } from './world.ts'

const SECOND = 1_000_000
const DISK_UUID = '0f0e0d0c-0b0a-4908-8706-050403020100'
/** Around the beginning and the end of a fault there is much I/O. */
const HURRY_US = 60_000
/** Beyond the time in which a silent path is found, twice: for a retry, and for what is slow without any fault. */
const PATIENCE_US = 5 * SECOND
/** When nothing is wrong any more: until every path is back, and until every I/O has ended. */
const RECOVERY_US = 120 * SECOND
/** Until what is closed is gone everywhere, hosts that the target has not heard of for long included. */
const CLOSE_US = 120 * SECOND

/** What host and target log when the other one breaks the protocol: ours never do. */
const PROTOCOL_FAULT =
  /: the connection ends|; terminating \(|gave up the connection: FES|ended the connection: fatal/

export interface RunOptions {
  readonly sabotage?: Partial<Sabotage>
  /** See `Internet.duplicates`. */
  readonly duplicates?: number
  readonly onTrace?: (line: string) => void
  /** Changes what the seed chose. */
  readonly config?: Partial<ScenarioConfig>
}

export interface RunReport {
  readonly seed: number
  /** The first thing that was wrong, undefined for a good run. */
  readonly failure: string | undefined
  readonly schedule: readonly string[]
  readonly lastEvents: readonly string[]
  readonly config: ScenarioConfig
  readonly ios: number
  readonly failedIos: number
  readonly late: number
  readonly lateHarmful: number
  readonly virtualSeconds: number
  readonly steps: number
  /** Two runs of a seed agree in it. */
  readonly digest: number
}

/** Something that must not be. */
export class Violation extends Error {
  override readonly name = 'Violation'
}

export interface PathPlace {
  readonly gateway: Gateway
  readonly host: string
}

export class Scenario {
  readonly world: World
  readonly config: ScenarioConfig
  readonly disk: SharedDisk
  readonly gateways: readonly Gateway[]
  readonly client: Client
  readonly checker: Checker
  readonly workload: Workload
  readonly paths: readonly PathPlace[]
  readonly watch: PathWatch
  readonly faults: readonly Fault[]
  /** Until then something is slow, not broken: I/O may take long on a path that is up. */
  slowUntilUs = 0
  /** The operator's own changes of paths, one after another. */
  #operator: Promise<void> = Promise.resolve()
  readonly #disabled = new Set<string>()
  #clientLife = 0

  constructor(seed: number, options: RunOptions = {}) {
    this.world = new World(seed)
    const { world } = this
    world.onTrace = options.onTrace ?? null
    world.internet.duplicates = options.duplicates ?? 0
    this.config = { ...chooseConfig(world.fork()), ...options.config }
    const { config } = this
    this.checker = new Checker({
      blockCount: config.blockCount,
      violated: what => world.clock.fail(new Violation(what)),
      mayFail: (op, status) =>
        (config.givesUp && !this.watch.wasUsable(op.submittedUs, world.clock.nowUs)) ||
        this.#wasTooSlow(op, status),
    })
    this.checker.onLate = what => world.trace(what)
    const sabotage = { ...NO_SABOTAGE, ...options.sabotage }
    this.disk = new SharedDisk(world, DISK_UUID, config.blockCount, this.checker, sabotage)
    this.gateways = config.addresses.map(
      (addresses, index) =>
        new Gateway(world, this.disk, {
          name: `gateway${index}`,
          addresses,
          reactors: config.gatewayReactors,
          minCntlid: 1 + index * 1000,
          anaReporting: config.anaReporting,
          writesZeroes: config.writesZeroes,
          transport: config.transport,
        }),
    )
    this.client = new Client(world, CLIENT_ADDRESS, config.clientReactors)
    this.workload = new Workload(world, this.client, this.checker, config.blockCount, config.workload)
    this.paths = this.gateways.flatMap((gateway, index) =>
      config.addresses[index]!.map(host => ({ gateway, host })),
    )
    this.watch = new PathWatch(world, this.paths, this.client)
    this.faults = chooseFaults(this, world.fork())
  }

  /** Something that goes on by itself; an error that is not among `expected` fails the run. */
  readonly background = (what: string, promise: Promise<unknown>, expected: readonly string[] = []): void => {
    const { clock } = this.world
    promise.catch((error: Error) => {
      this.world.trace(`${what}: ${error.message}`)
      if (error instanceof RpcError && expected.includes(error.code)) return
      clock.fail(new Violation(`${what}: ${error.stack ?? error.message}`))
    })
  }

  /** Grows the disk. The new blocks are used once every gateway that runs has them. */
  grow(blocks: number): void {
    const blockCount = this.disk.blockCount + blocks
    this.checker.grow(blockCount)
    this.disk.grow(blockCount)
    for (const gateway of this.gateways) this.background(`resize of ${gateway.name}`, gateway.reconcile())
  }

  /** Raises the workload's limit to what the host and all gateways agree upon. */
  followSize(): void {
    const sizes = this.gateways.filter(({ isUp }) => isUp).map(({ blockCount }) => blockCount ?? 0)
    const seen = this.client.blockCount
    if (this.gateways.every(({ node, isUp }) => node.running === null || isUp)) {
      this.workload.blockLimit = Math.max(this.workload.blockLimit, Math.min(seen, ...sizes))
    }
  }

  detach(host: string): void {
    this.#operate(`detach of ${host}`, async () => {
      const { attached } = this.client
      if (attached.length < 2 || !attached.includes(host)) return
      this.watch.withdraw(host)
      await this.client.detach(host)
    })
  }

  /** Adds the path again, over and over until it can be reached. */
  attachAgain(host: string): void {
    this.#operate(`attach of ${host}`, async () => {
      const life = this.#clientLife
      while (this.client.isUp && life === this.#clientLife && !this.client.attached.includes(host)) {
        try {
          await this.client.attach(host, this.config.attachOptions)
          this.watch.restore(host)
        } catch (error) {
          this.world.trace(`attach of ${host}: ${(error as Error).message}`)
          await this.world.clock.sleep(SECOND)
        }
      }
    })
  }

  async #attachAll(): Promise<void> {
    const { client, config } = this
    const life = this.#clientLife
    await client.rpc('bdev_nvme_set_options', config.hostOptions)
    for (const { host } of this.paths) {
      this.attachAgain(host)
      await this.#operator
    }
    if (client.isUp && life === this.#clientLife) await client.setPolicy(config.policy)
  }

  /** The client loses all it knew; what it had under way may or may not have happened. */
  crashClient(kind: 'program' | 'power'): void {
    this.workload.crashed()
    this.client.node.crash(kind)
    this.#disabled.clear()
  }

  startClient(): void {
    this.client.start()
    // What the operator asked of the life before will never be answered.
    this.#clientLife++
    this.#operator = Promise.resolve()
    this.workload.start()
    this.background('start of the client', this.#attachAll())
  }

  /** Disables the path, if there is another one. */
  disable(host: string): void {
    this.#operate(`disabling ${host}`, async () => {
      const cntlid = this.client.cntlid(host)
      if (this.client.attached.length < 2 || cntlid === undefined) return
      this.watch.withdraw(host)
      try {
        await this.client.command('disable', cntlid)
        this.#disabled.add(host)
      } catch (error) {
        // It is being enabled just now, which is not to be waited for.
        if (!(error instanceof RpcError && error.code === 'EALREADY')) throw error
        this.watch.restore(host)
      }
    })
  }

  enable(host: string): void {
    this.#operate(`enabling ${host}`, async () => {
      const cntlid = this.client.cntlid(host)
      if (!this.#disabled.delete(host) || cntlid === undefined) return
      this.watch.restore(host)
      // When it cannot be reached at once it is tried again and again.
      const enabled = this.client.command('enable', cntlid)
      this.background(`enabling ${host}`, enabled, ['EIO', 'ENODEV'])
    })
  }

  #operate(what: string, act: () => Promise<void>): void {
    this.#operator = this.#operator.then(() => (this.client.isUp ? act() : undefined))
    this.background(what, this.#operator)
  }

  async run(): Promise<void> {
    await this.#setUp()
    await this.#endure()
    await this.#recover()
    await this.#tearDown()
  }

  async #setUp(): Promise<void> {
    const { clock } = this.world
    await clock.run(Promise.all(this.gateways.map(gateway => gateway.start())), 10 * SECOND)
    await clock.run(this.#attachAll(), 60 * SECOND)
    this.watch.look()
  }

  async #endure(): Promise<void> {
    const { clock } = this.world
    const startUs = clock.nowUs
    this.workload.start()
    let endUs = this.config.faultyUs
    for (const fault of this.faults) {
      const at = (us: number, what: string, act: () => void): void => {
        clock.after(us - HURRY_US / 2, () => this.workload.hurry(HURRY_US))
        clock.after(us, () => {
          this.world.trace(`*** ${what}`)
          act()
          if (fault.isSlow) this.slowUntilUs = Math.max(this.slowUntilUs, clock.nowUs + fault.forUs)
          this.watch.look()
        })
      }
      at(fault.atUs, fault.text, fault.begin)
      at(fault.atUs + fault.forUs, `over: ${fault.text}`, fault.end)
      endUs = Math.max(endUs, fault.atUs + fault.forUs)
    }
    const every = (): void => {
      this.watch.look()
      this.#checkPatience()
      this.followSize()
      if (clock.nowUs < startUs + endUs) clock.after(100_000, every)
    }
    every()
    await clock.until(() => clock.nowUs >= startUs + endUs, endUs + SECOND)
  }

  /** The operator wants commands aborted that take long, and everything took long, the retries included. */
  #wasTooSlow({ submittedUs }: Op, status: number): boolean {
    const { action_on_timeout: action, timeout_us: timeoutUs } = this.config.hostOptions
    const isAborted = status === Status.ABORTED_BY_REQUEST && action === 'abort' && timeoutUs !== 0
    return isAborted && this.slowUntilUs > submittedUs
  }

  /** A path that went silent has to be found in time, when there is another one. */
  #checkPatience(): void {
    const { nowUs } = this.world.clock
    const patienceUs = Number(this.config.hostOptions['keep_alive_timeout_ms']) * 2000 + PATIENCE_US
    if (nowUs - this.slowUntilUs < patienceUs) return
    if (!this.watch.hadOneThroughout(nowUs - patienceUs, nowUs)) return
    for (const { id, submittedUs } of this.checker.outstanding) {
      if (nowUs - submittedUs < patienceUs) continue
      const lastedS = (nowUs - submittedUs) / SECOND
      throw new Violation(
        `I/O ${id} has not ended after ${lastedS.toFixed(1)} s, though a path could be used`,
      )
    }
  }

  /** Nothing is wrong any more: every path comes back, every I/O ends, and all data is there. */
  async #recover(): Promise<void> {
    const { clock } = this.world
    this.world.trace('*** all faults are over')
    for (const { gateway, host } of this.paths) {
      gateway.wishes.get(host)!.ana = 'optimized'
      this.background(`ANA state of ${host}`, gateway.reconcile())
    }
    const isWhole = (): boolean => {
      for (const { host } of this.paths) {
        // A path that was given up comes back only when the operator wants it.
        if (this.config.givesUp && !this.client.attached.includes(host)) this.attachAgain(host)
      }
      this.watch.look()
      return this.paths.every(({ host }) => this.client.isConnected(host))
    }
    let isRecovered = false
    const look = (): void => {
      isRecovered = isWhole()
      if (!isRecovered) clock.after(SECOND, look)
    }
    look()
    await this.#within(RECOVERY_US, 'every path is back', () => isRecovered)
    await clock.run(clock.sleep(2 * SECOND))
    this.workload.stop()
    await this.#within(RECOVERY_US, 'every I/O has ended', () => this.workload.isIdle)
    const { blockCount } = this.disk
    await this.#within(
      10 * SECOND,
      `the host sees ${blockCount} blocks`,
      () => this.client.blockCount === blockCount,
    )
    this.workload.blockLimit = blockCount
    await clock.run(this.workload.readAll(), RECOVERY_US)
  }

  async #tearDown(): Promise<void> {
    const { clock } = this.world
    await clock.run(this.#operator, RECOVERY_US)
    this.workload.close()
    await clock.run(this.client.detachAll(), 30 * SECOND)
    const leftovers = (): string[] => [
      ...this.client.leftovers,
      ...this.gateways.flatMap(gateway => gateway.leftovers),
      ...(this.disk.outstanding > 0 ? [`${this.disk.outstanding} I/Os to the disk`] : []),
    ]
    await this.#within(
      CLOSE_US,
      () => `nothing is left, instead of ${leftovers().join(', ')}`,
      () => {
        return leftovers().length === 0
      },
    )
  }

  async #within(limitUs: number, what: string | (() => string), isSo: () => boolean): Promise<void> {
    try {
      await this.world.clock.until(isSo, limitUs)
    } catch (cause) {
      if (cause instanceof Violation) throw cause
      const text = typeof what === 'string' ? what : what()
      const open = this.checker.outstanding.map(({ id }) => id).join(', ') || 'none'
      throw new Violation(`within ${limitUs / SECOND} s ${text} (I/Os outstanding: ${open})`, { cause })
    }
  }

  close(): void {
    this.client.node.running?.end()
    for (const gateway of this.gateways) gateway.node.running?.end()
  }
}

/** Runs a seed. Never throws: what was wrong is in the report. */
export async function runSeed(seed: number, options: RunOptions = {}): Promise<RunReport> {
  const settings = { ...logSettings }
  const scenario = new Scenario(seed, options)
  const { world, checker, faults, config } = scenario
  const isVerbose = options.onTrace !== undefined
  Object.assign(logSettings, {
    printLevel: isVerbose ? 'DEBUG' : 'NOTICE',
    flags: new Set(isVerbose ? ['nvme', 'nvmf', 'nvmf_tcp', 'bdev'] : []),
    timestamps: false,
    write: (line: string) => {
      world.trace(line.trimEnd())
      if (PROTOCOL_FAULT.test(line))
        world.clock.fail(new Violation(`host and target misunderstand each other: ${line}`))
    },
  })
  let failure: string | undefined
  try {
    await scenario.run()
  } catch (error) {
    failure = error instanceof Violation ? error.message : ((error as Error).stack ?? String(error))
  } finally {
    Object.assign(logSettings, settings)
    scenario.close()
  }
  return {
    seed,
    failure,
    schedule: faults.map(
      ({ atUs, forUs, text }) =>
        `${(atUs / SECOND).toFixed(3)} s, for ${(forUs / SECOND).toFixed(3)} s: ${text}`,
    ),
    lastEvents: world.lastEvents,
    config,
    ios: checker.ended,
    failedIos: checker.failed,
    late: checker.late,
    lateHarmful: checker.lateHarmful,
    virtualSeconds: world.clock.nowUs / SECOND,
    steps: world.clock.steps,
    digest: world.digest,
  }
}
