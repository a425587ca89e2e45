/** A guest of ours: QEMU in a process that outlives the daemon, and the session with its monitor. */
import { rm } from 'node:fs/promises'
import { setTimeout as delay } from 'node:timers/promises'
import { ProtocolError, RpcError, thereAre } from '../../core/errors.ts'
import { logger } from '../../core/log.ts'
import type { Host } from '../../host/host.ts'
import { Turns } from '../../volume/turns.ts'
import { servedFrom } from '../disk/serving.ts'
import { RELEASE_MS, removeBehind, stillThere } from '../let-go.ts'
import { Qmp, QmpClosed, QmpError, type QmpEvent } from '../qmp.ts'
import { type Undo, withUndo } from '../undo.ts'
import { textOf } from '../untrusted.ts'
import { type DiskParts, type DiskRequest, prepareDisk } from './disk-source.ts'
import { diskId, diskObjects, reconnection } from './guest-disk.ts'
import { reportEvent } from './guest-events.ts'
import { type GuestPaths, type GuestRecord, type RecordedDisk, writeRecord } from './guest-record.ts'
import { hasPorts, portName } from './machine.ts'
import { closeNet } from './network.ts'
import { qemuFailure } from './qemu-failure.ts'
import { hasEnded, isRunning, kill } from './qemu-process.ts'
import { releaseDisk, untilDisconnected } from './release.ts'

const log = logger('vm')

/** How long QEMU may take to end when it is told to. */
const QUIT_MS = 10_000
/** How long it may take for what QEMU does at once, unless it hangs. */
const ANSWER_MS = 3_000
const RECONNECT_MS = 500
/** QEMU's words for what a guest goes on from. */
const STANDS_STILL = ['paused', 'io-error']

export interface GuestParts extends DiskParts {
  readonly host: Host
}

export type StopHow = 'powered down' | 'quit' | 'killed'

const isNotFound = (error: unknown): boolean =>
  error instanceof RpcError && error.cause instanceof QmpError && error.cause.class === 'DeviceNotFound'

export class Guest {
  /** Resolves with what was released when QEMU has ended, for whatever reason. */
  readonly ended: Promise<readonly string[]>
  readonly paths: GuestPaths
  readonly #parts: GuestParts
  readonly #turns = new Turns()
  #record: GuestRecord
  #qmp: Qmp | undefined
  /** The daemon goes; the guest stays. */
  #isLeft = false

  /** `qmp`: the session, if there is one already. */
  constructor(record: GuestRecord, paths: GuestPaths, parts: GuestParts, qmp?: Qmp) {
    this.#record = record
    this.paths = paths
    this.#parts = parts
    this.#qmp = qmp
    this.ended = this.#watch()
  }

  get record(): GuestRecord {
    return this.#record
  }

  /** Ends the session; the guest goes on without the daemon. */
  leave(): void {
    this.#isLeft = true
    this.#qmp?.close()
  }

  /** QEMU's words for the state of the machine: `running`, `paused`, `shutdown`; `no answer` while there is no session. */
  async state(): Promise<string> {
    try {
      const { status } = await this.execute<{ status: string }>('query-status', {}, ANSWER_MS)
      return status
    } catch (error) {
      if (error instanceof RpcError) return 'no answer'
      throw error
    }
  }

  /** Whether somebody is at its serial console: QEMU serves one at a time, and has others wait without a word. */
  async isConsoleTaken(): Promise<boolean> {
    try {
      const devices = await this.execute('query-chardev', {}, ANSWER_MS)
      const console = Array.isArray(devices) ? devices.find(device => device?.label === 'console') : undefined
      return !textOf(console?.filename, 'disconnected').startsWith('disconnected')
    } catch (error) {
      if (error instanceof RpcError) return false
      throw error
    }
  }

  /** A command of the monitor. Throws `RpcError` EIO with QEMU's reason, or when there is no session. */
  async execute<Result = unknown>(
    command: string,
    args: Record<string, unknown> = {},
    timeoutMs?: number,
  ): Promise<Result> {
    const { name } = this.#record
    if (this.#qmp === undefined) {
      throw new RpcError('EAGAIN', `guest ${name}: QEMU's monitor does not answer yet; try again in a moment`)
    }
    return this.#told(this.#qmp.execute<Result>(command, args, timeoutMs))
  }

  /** What QEMU has against something, or that it is gone, as an `RpcError`. */
  async #told<Result>(answer: Promise<Result>): Promise<Result> {
    const { name } = this.#record
    try {
      return await answer
    } catch (error) {
      if (error instanceof QmpError) {
        throw qemuFailure(`guest ${name}: QEMU's ${error.command}`, error.desc, error)
      }
      if (error instanceof QmpClosed || error instanceof ProtocolError) {
        throw new RpcError('EIO', `guest ${name}: ${error.message}`, { cause: error })
      }
      throw error
    }
  }

  /** The bdev of this daemon that a disk is served from. */
  bdevOf({ source }: RecordedDisk): string | undefined {
    if (source.kind === 'vhost') return servedFrom(source.socketPath, this.#parts)
    return source.kind === 'nbd' ? servedFrom(source.name, this.#parts) : undefined
  }

  /** Plugs a disk in while the guest runs. */
  attach(request: DiskRequest): Promise<RecordedDisk> {
    return this.#turns.next(() =>
      withUndo(async undo => {
        const { name, disks } = this.#record
        const port = this.#freePort(request)
        const targets = disks.map(({ target }) => target)
        const prepared = await prepareDisk(request, { name, targets }, undo, this.#parts)
        const disk = { ...prepared, port }
        undo.add(`disk ${disk.target}`, () => untilDisconnected(name, [disk.target], this.#parts))
        // First, so that it can be detached if the daemon is killed before all is done.
        await this.#keep([...disks, disk])
        undo.add(`the record of ${disk.target}`, () => this.#keep(disks))
        await this.#plug(disk, undo)
        log.notice(`guest ${name} has ${disk.volume} as ${disk.target} (${disk.means})`)
        return disk
      }),
    )
  }

  /** Waits until the guest has let go. `word`: the target, or what the disk is made of. Answers what served it. */
  detach(word: string): Promise<{ target: string; released: string[] }> {
    return this.#turns.next(async () => {
      const { name, disks } = this.#record
      const disk = this.#find(word)
      await this.#unplug(disk)
      await this.#keep(disks.filter(each => each !== disk))
      const released = await releaseDisk(name, disk, this.#parts)
      log.notice(`guest ${name} no longer has ${disk.target}`)
      return { target: disk.target, released }
    })
  }

  /** Stands still, as it is; its network and its disks hear nothing from it. Answers the state. */
  async suspend(): Promise<string> {
    await this.execute('stop')
    return this.state()
  }

  /** Goes on after `suspend`, or after a disk had no room and has it now. */
  async resume(): Promise<string> {
    await this.execute('cont')
    return this.state()
  }

  /** The power button first; what does not react within the time is ended, and `force` does not ask. */
  async stop({
    force,
    timeoutMs,
  }: {
    readonly force: boolean
    readonly timeoutMs: number
  }): Promise<StopHow> {
    const { name, process: qemu } = this.#record
    if (!force) {
      const state = await this.state()
      if (STANDS_STILL.includes(state)) {
        throw new RpcError(
          'EINVAL',
          `guest ${name} stands still (${state}) and hears no power button: qpair vm resume ${name} first, or --force`,
        )
      }
      await this.execute('system_powerdown', {}, ANSWER_MS)
      if (await hasEnded(qemu, timeoutMs)) return 'powered down'
      log.warning(
        `guest ${name} has not reacted to the power button within ${timeoutMs / 1000} s: QEMU is ended`,
      )
    }
    // It may end before it answers, or never answer; what has no session any more is killed.
    void this.execute('quit').catch(() => undefined)
    if (await hasEnded(qemu, QUIT_MS)) return 'quit'
    kill(qemu)
    await hasEnded(qemu, QUIT_MS)
    return 'killed'
  }

  /** Keeps the session alive as long as QEMU lives, and cleans up behind it. */
  async #watch(): Promise<string[]> {
    const { name, process: qemu } = this.#record
    for (;;) {
      if (this.#qmp !== undefined) {
        const reason = await this.#qmp.closed
        this.#qmp = undefined
        // A process that has closed its sockets may still be on its way out.
        if (!this.#isLeft && !(await hasEnded(qemu, RECONNECT_MS))) {
          log.warning(`guest ${name}: ${reason.message}`)
        }
      }
      if (this.#isLeft) return []
      if (!isRunning(qemu)) return this.#cleanUp()
      try {
        const onEvent = (event: QmpEvent): void => reportEvent(name, event)
        const qmp = await Qmp.connect(this.paths.qmp, { timeoutMs: 5000, onEvent })
        if (this.#isLeft) qmp.close()
        this.#qmp = qmp
      } catch (error) {
        // Whatever it is, the guest may have ended meanwhile, or answer the next time.
        log.debug(`guest ${name}: ${(error as Error).message}`)
        await delay(RECONNECT_MS)
      }
    }
  }

  async #cleanUp(): Promise<string[]> {
    const { name, disks } = this.#record
    const released: string[] = []
    for (const disk of disks) {
      try {
        released.push(...(await releaseDisk(name, disk, this.#parts)))
      } catch (error) {
        log.error(
          `guest ${name} has ended, and its disk ${disk.target} is not released: ${(error as Error).message}`,
        )
      }
    }
    const { access, host } = this.#parts
    await closeNet(this.#record, { run: access.run, host }).catch((error: Error) =>
      log.error(`guest ${name}: ${error.message}`),
    )
    await rm(this.paths.directory, { recursive: true, force: true }).catch((error: Error) =>
      log.error(`guest ${name}: ${error.message}`),
    )
    log.notice(`guest ${name} has ended`)
    return released
  }

  async #plug(disk: RecordedDisk, undo: Undo): Promise<void> {
    const { name, version } = this.#record
    const { chardev, blockdev, device } = diskObjects(disk, { bus: disk.port ?? 'pci.0' })
    const id = diskId(disk.target)
    if (chardev !== undefined) {
      const addr = { type: 'unix', data: { path: chardev.path } }
      const backend = { type: 'socket', data: { addr, server: false, ...reconnection(version) } }
      await this.execute('chardev-add', { id, backend })
      undo.add(`character device ${id} of guest ${name}`, () => this.#removeChardev(disk.target))
    }
    if (blockdev !== undefined) {
      await this.execute('blockdev-add', blockdev)
      undo.add(`block node ${id} of guest ${name}`, () => this.#removeNode(disk.target))
    }
    await this.execute('device_add', device)
    undo.add(`device ${id} of guest ${name}`, () => this.#removeDevice(disk.target))
  }

  async #unplug({ target, source }: RecordedDisk): Promise<void> {
    let isWhole = true
    try {
      await this.#removeDevice(target)
    } catch (error) {
      if (!isNotFound(error)) throw error
      // Its plugging in was cut short, or its taking away: what there is of it goes.
      isWhole = false
    }
    const removed = source.kind === 'vhost' ? this.#removeChardev(target) : this.#removeNode(target)
    await removed.catch((error: Error) => {
      if (isWhole) throw error
      log.debug(`guest ${this.#record.name}: ${error.message}`)
    })
  }

  #removeNode(target: string): Promise<void> {
    const node = { 'node-name': diskId(target) }
    return removeBehind(this.#called, target, () => this.execute('blockdev-del', node))
  }

  #removeChardev(target: string): Promise<void> {
    return removeBehind(this.#called, target, () => this.execute('chardev-remove', { id: diskId(target) }))
  }

  get #called(): string {
    return `guest ${this.#record.name}`
  }

  /** Asks, and waits for DEVICE_DELETED: the guest lets go when it likes. */
  async #removeDevice(target: string): Promise<void> {
    const id = diskId(target)
    const gone = this.#qmp?.event('DEVICE_DELETED', ({ device }) => device === id)
    await this.execute('device_del', { id })
    const timer = new AbortController()
    const late = delay(RELEASE_MS, 'late', { signal: timer.signal }).catch(() => 'stopped')
    const first = await this.#told(Promise.race([gone, late])).finally(() => timer.abort())
    if (first !== 'late') return
    throw stillThere(this.#called, target)
  }

  #find(word: string): RecordedDisk {
    const { name, disks } = this.#record
    const found = disks.filter(({ target, volume }) => target === word || volume === word)
    if (found.length === 1) return found[0]!
    const all = disks.map(({ target, volume }) => `${target} (${volume})`)
    throw new RpcError(
      found.length === 0 ? 'ENODEV' : 'EINVAL',
      found.length === 0
        ? `guest ${name} has no disk ${word}: ${thereAre(all)}`
        : `guest ${name} has ${word} as ${found.map(({ target }) => target).join(' and ')}: say which`,
    )
  }

  #freePort({ bus, volume }: DiskRequest): string | undefined {
    const { name, machine, ports, disks } = this.#record
    if (bus === 'scsi' || !hasPorts(machine)) return undefined
    const free = Array.from({ length: ports }, (_, index) => portName(index)).find(
      port => !disks.some(disk => disk.port === port),
    )
    if (free !== undefined) return free
    throw new RpcError(
      'ENOSPC',
      `guest ${name} has ${ports} ports, all with a disk in them: ${volume} fits on --bus scsi`,
    )
  }

  async #keep(disks: readonly RecordedDisk[]): Promise<void> {
    this.#record = { ...this.#record, disks }
    await writeRecord(this.paths, this.#record)
  }
}
