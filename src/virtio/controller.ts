/**
 * A virtio controller, on the control thread: its memory and rings, which outlive connections, and the one connection at a
 * time that a back end works on them by.
 *
 *   connecting --first connection--> up --lost--> down --back-off, connection--> up …
 *                                     detach ends any of them
 */
import { setTimeout as delay } from 'node:timers/promises'
import type { BdevInfo } from '../bdev/bdev.ts'
import type { BdevRegistry } from '../bdev/registry.ts'
import { RpcError } from '../core/errors.ts'
import { logger } from '../core/log.ts'
import type { ReactorGroup } from '../reactor/group.ts'
import type { MessageSockets } from '../reactor/message-sockets.ts'
import { ProtocolFeature } from '../spec/vhost-user.ts'
import { close } from '../sys/libc.ts'
import { readBlkConfig } from './blk-disk.ts'
import { Connection, explain } from './connection.ts'
import { ControllerMemory } from './controller-memory.ts'
import type { InflightMemory } from './front-end.ts'
import { readConfig, start, stop } from './handshake.ts'
import { createRing, DATA_SEGMENTS_MAX, FIXED_QUEUES } from './memory-layout.ts'
import {
  type DeviceKind,
  type ExecuteScsi,
  type HaltAnswer,
  type PrepareAnswer,
  type PrepareQueue,
  type RingFeatures,
  type ScsiAnswer,
  Topic,
} from './messages.ts'
import { scan } from './scsi-scan.ts'
import {
  bdevName,
  checkDescription,
  describeUnit,
  type UnitDescription,
  whyAnother,
} from './unit-description.ts'

const log = logger('virtio')

const BACK_OFF_MS_MIN = 50
const BACK_OFF_MS_MAX = 1000
const STABLE_MS = 2000
/** How long it may take to list the disks of a SCSI controller, and to stop queues in which nothing is in flight. */
const SCAN_PATIENCE_MS = 10_000
const STOP_PATIENCE_MS = 2000

export interface ControllerOptions {
  readonly name: string
  /** Of the back end's socket. */
  readonly path: string
  readonly kind: DeviceKind
  /** As given: each reactor has a queue, whatever is asked for. */
  readonly vqCount: number | undefined
  readonly vqSize: number
  readonly packedRing: boolean
}

export interface ControllerParts {
  readonly bdevs: BdevRegistry
  readonly reactors: ReactorGroup
  readonly sockets: MessageSockets
}

export class VirtioController {
  readonly id: number
  readonly options: ControllerOptions
  /** By SCSI target; a block device is target 0. */
  readonly devices = new Map<number, BdevInfo>()
  readonly #parts: ControllerParts
  #memory: ControllerMemory | undefined
  #connection: Connection | undefined
  #inflight: InflightMemory | undefined
  /** What the rings in memory were made for. */
  #ring: RingFeatures | undefined
  /** The back end may go on with the rings as they are. */
  #mayResume = false
  readonly #closing = new AbortController()
  #connecting: Promise<void> = Promise.resolve()
  #life: Promise<void> = Promise.resolve()
  /** Changes of the devices, one after the other. */
  #work: Promise<unknown> = Promise.resolve()
  #isScanDue = false
  #backOffMs = BACK_OFF_MS_MIN

  constructor(id: number, options: ControllerOptions, parts: ControllerParts) {
    this.id = id
    this.options = options
    this.#parts = parts
  }

  get isUp(): boolean {
    return this.#connection !== undefined
  }

  /** As in `driver_specific`. */
  get description(): Readonly<Record<string, unknown>> {
    const { vqSize, path, packedRing } = this.options
    const vq_count = FIXED_QUEUES[this.options.kind] + this.#parts.reactors.count
    return { vq_count, vq_size: vqSize, packed_ring: packedRing, type: 'user', socket: path }
  }

  /**
   * Connects for the first time and resolves with the devices. Throws `RpcError` when that fails; with `isPatient` the
   * controller goes on trying, and its devices appear when it succeeds.
   */
  async attach(isPatient: boolean): Promise<BdevInfo[]> {
    try {
      this.#connecting = this.#connect()
      await this.#connecting
    } catch (error) {
      if (!isPatient) throw error
      log.warning(`${this.options.name}: ${(error as Error).message}; it is tried again`)
    }
    this.#life = this.#live()
    return [...this.devices.values()]
  }

  /** Takes the devices away, failing what waits for the back end, and everything that was made for it. */
  async detach(): Promise<void> {
    this.#closing.abort()
    await this.#connecting.catch(() => {})
    await this.#inTurn(async () => {
      for (const target of [...this.devices.keys()]) await this.#removeDevice(target)
    })
    await this.#disconnect('the controller is detached')
    await this.#life
    await this.#release()
  }

  /** A reactor cannot go on with the connection. */
  giveUp(why: string): void {
    void this.#connection?.close(why)
  }

  /** Something about the devices may have changed. */
  async refresh(): Promise<void> {
    if (this.#isScanDue) return
    this.#isScanDue = true
    await this.#inTurn(async () => {
      this.#isScanDue = false
      const connection = this.#connection
      if (connection === undefined || this.#isClosing) return
      try {
        await this.#takeOver(await this.#look(connection))
      } catch (error) {
        log.error(`${this.options.name}: what has changed is not known: ${(error as Error).message}`)
      }
    })
  }

  get #isClosing(): boolean {
    return this.#closing.signal.aborted
  }

  /** Until the controller is detached: waits for the connection to end, and makes another. */
  async #live(): Promise<void> {
    const { name, path } = this.options
    for (;;) {
      const connection = this.#connection
      if (connection !== undefined) {
        const startMs = performance.now()
        const reason = await connection.ended
        // One that dies as soon as it is there is given more and more time.
        if (performance.now() - startMs > STABLE_MS) this.#backOffMs = BACK_OFF_MS_MIN
        if (!this.#isClosing) {
          log.warning(`${name}: the connection to ${path} is lost: ${reason}. I/O waits until it is back`)
        }
        await this.#disconnect(reason)
      }
      if (!(await this.#reconnect())) return
      log.notice(`${name}: connected to ${path}`)
    }
  }

  /** False when the controller is detached meanwhile. */
  async #reconnect(): Promise<boolean> {
    let told = ''
    for (;;) {
      try {
        const backOffMs = this.#backOffMs
        this.#backOffMs = Math.min(backOffMs * 2, BACK_OFF_MS_MAX)
        await delay(backOffMs, undefined, { signal: this.#closing.signal })
        await this.#connect()
        if (!this.#isClosing) return true
        await this.#disconnect('the controller is detached')
        return false
      } catch (error) {
        if (this.#isClosing) return false
        const { message } = error as Error
        // The same reason again and again is told once.
        if (message !== told) log.warning(`${this.options.name}: ${message}`)
        told = message
      }
    }
  }

  async #connect(): Promise<void> {
    const { path, kind, packedRing } = this.options
    const { signal } = this.#closing
    const connection = await Connection.open(this.#parts.sockets, {
      path,
      kind,
      packed: packedRing,
      configChanged: () => void this.refresh(),
      signal,
    })
    const abort = (): void => void connection.close('the controller is detached')
    signal.addEventListener('abort', abort)
    try {
      this.#checkQueues(connection)
      // SCSI disks can be asked only by requests.
      if (kind === 'blk') this.#refuseOthers(await this.#look(connection))
      await this.#startRings(connection)
      this.#connection = connection
      await this.#broadcast(Topic.RUN, this.id)
      await this.#inTurn(async () => this.#takeOver(await this.#look(connection)))
    } catch (error) {
      await connection.close((error as Error).message)
      await this.#disconnect((error as Error).message)
      throw explain(this.options, error)
    } finally {
      signal.removeEventListener('abort', abort)
    }
  }

  #checkQueues({ agreement }: Connection): void {
    const { path } = this.options
    const { count } = this.#parts.reactors
    if (agreement.requestQueues >= count) return
    throw new RpcError(
      'EINVAL',
      `the back end at ${path} has ${agreement.requestQueues} request queues and this daemon ${count} reactors, each of which needs its own: ` +
        'give the back end more (num-queues), or run the daemon on fewer processors (-m)',
    )
  }

  /** Memory and rings as they are, or made anew, and the back end at work on them. */
  async #startRings(connection: Connection): Promise<void> {
    const { frontEnd, agreement } = connection
    this.#memory ??= await this.#openMemory()
    const memory = this.#memory
    const ring = agreement.ring
    const isSame =
      this.#ring?.isPacked === ring.isPacked &&
      this.#ring.hasEventIndex === ring.hasEventIndex &&
      this.#ring.hasIndirect === ring.hasIndirect
    const keepsInflight = frontEnd.has(ProtocolFeature.INFLIGHT_SHMFD)
    const resumes = this.#mayResume && isSame && keepsInflight && this.#inflight !== undefined
    if (!resumes) {
      this.#forgetInflight()
      if (keepsInflight) {
        this.#inflight = await frontEnd.getInflight(memory.rings.length, this.options.vqSize)
      }
    }
    this.#mayResume = false
    this.#ring = ring
    if (resumes) log.info(`${this.options.name}: the back end goes on with what was in flight`)
    const message: PrepareQueue = { controller: this.id, features: ring, resumes }
    const answers = await this.#broadcast<PrepareAnswer>(Topic.PREPARE, message)
    const bases = answers.map(({ base }) => base)
    if (this.options.kind === 'scsi') {
      // Nothing is ever sent on the control queue, so it is always new.
      bases.unshift(createRing(memory.rings[0]!, ring).base(), answers[0]!.eventBase)
    }
    await start(frontEnd, {
      memory: memory.mapping,
      rings: memory.rings,
      isPacked: ring.isPacked,
      bases,
      inflight: this.#inflight,
    })
  }

  async #openMemory(): Promise<ControllerMemory> {
    const { name, kind, vqSize } = this.options
    const { reactors } = this.#parts
    const memory = new ControllerMemory(name, kind, reactors.count, vqSize)
    await Promise.all(
      memory.queues.map((queue, i) =>
        reactors.port(i).call(Topic.OPEN, { controller: this.id, name, kind, ...queue }),
      ),
    )
    return memory
  }

  /** What the back end has now. */
  async #look(connection: Connection): Promise<UnitDescription[]> {
    const { frontEnd, agreement } = connection
    if (this.options.kind === 'scsi') return this.#scan(connection)
    const config = (await readConfig(frontEnd, 'blk'))!
    // A request must fit into an empty ring, even as a chain of single descriptors.
    const segmentsMax = Math.min(DATA_SEGMENTS_MAX, this.options.vqSize - 2)
    return [readBlkConfig(this.id, agreement.features, config, segmentsMax)]
  }

  async #scan({ agreement, ended }: Connection): Promise<UnitDescription[]> {
    const execute = (command: Omit<ExecuteScsi, 'controller'>): Promise<ScsiAnswer> =>
      this.#parts.reactors.port(0).call<ScsiAnswer>(Topic.EXECUTE, { ...command, controller: this.id })
    const fail = (reason: string): never => {
      throw new RpcError('EIO', `its disks cannot be listed: ${reason}`)
    }
    const done = new AbortController()
    const late = delay(SCAN_PATIENCE_MS, undefined, { signal: done.signal }).then(
      () => fail(`a command was not answered within ${SCAN_PATIENCE_MS / 1000} s`),
      () => [],
    )
    const scanned = scan({ controller: this.id, config: agreement.config, execute })
    try {
      return await Promise.race([scanned, late, ended.then(fail)])
    } finally {
      done.abort()
      // It ends too, with an error that nobody needs any more, once the connection is gone.
      scanned.catch(() => {})
    }
  }

  /** A back end that came back must be what it was: I/O that waits for it was made for that. */
  #refuseOthers(known: readonly UnitDescription[]): void {
    const { name, kind } = this.options
    for (const description of known) {
      checkDescription(bdevName(name, kind, description.unit.target), description)
      const before = this.devices.get(description.unit.target)
      const why = before === undefined ? undefined : whyAnother(before, description)
      if (why !== undefined) {
        throw new RpcError(
          'EINVAL',
          `${before!.name} is another disk: it ${why}. Detach the controller, or bring the old disk back`,
        )
      }
    }
  }

  /** Makes the devices be those that the back end has. */
  async #takeOver(known: readonly UnitDescription[]): Promise<void> {
    const { name, kind } = this.options
    const { bdevs } = this.#parts
    this.#refuseOthers(known)
    const targets = new Set(known.map(({ unit }) => unit.target))
    for (const target of [...this.devices.keys()]) {
      if (!targets.has(target)) await this.#removeDevice(target)
    }
    for (const description of known) {
      const { target } = description.unit
      const before = this.devices.get(target)
      if (before === undefined) {
        const info = describeUnit(this.options, description, this.description)
        await bdevs.add(info)
        this.devices.set(target, info)
      } else if (before.blockCount !== description.blockCount) {
        await bdevs.resize(bdevName(name, kind, target), description.blockCount)
      }
    }
  }

  async #removeDevice(target: number): Promise<void> {
    const info = this.devices.get(target)!
    this.devices.delete(target)
    if (this.#parts.bdevs.find(info.name) !== undefined) await this.#parts.bdevs.remove(info.name)
  }

  /** Ends the connection, if there is one, and has the reactors take in what the back end had done. */
  async #disconnect(reason: string): Promise<void> {
    const connection = this.#connection
    this.#connection = undefined
    if (connection !== undefined && this.#isClosing && this.#memory !== undefined) {
      // In peace: the back end ends what it has in flight. One that does not answer is left.
      const stopped = stop(connection.frontEnd, this.#memory.rings).catch(() => {})
      await Promise.race([stopped, delay(STOP_PATIENCE_MS, undefined, { ref: false })])
    }
    await connection?.close(reason)
    if (this.#memory === undefined) return
    const answers = await this.#broadcast<HaltAnswer>(Topic.HALT, this.id)
    this.#mayResume = answers.every(({ mayResume }) => mayResume)
  }

  async #release(): Promise<void> {
    this.#forgetInflight()
    if (this.#memory === undefined) return
    await this.#broadcast(Topic.CLOSE, this.id)
    this.#memory.close()
    this.#memory = undefined
  }

  #forgetInflight(): void {
    if (this.#inflight !== undefined) close(this.#inflight.fd)
    this.#inflight = undefined
  }

  #broadcast<T>(topic: string, body: unknown): Promise<T[]> {
    return this.#parts.reactors.broadcast<T>(topic, body)
  }

  #inTurn<T>(change: () => Promise<T>): Promise<T> {
    const turn = this.#work.then(change)
    this.#work = turn.catch(() => {})
    return turn
  }
}
