/**
 * One reactor's part of the NVMe host: the controllers that are at home here, the paths as this reactor uses them, and the
 * channels of its devices.
 */
import type { BdevInfo, DriverChannel } from '../bdev/bdev.ts'
import type { IoCounters } from '../bdev/iostat.ts'
import { assert } from '../core/assert.ts'
import type { Reactor } from '../reactor/reactor.ts'
import { HostController } from './controller.ts'
import { IoPath } from './io-path.ts'
import {
  type AbortCommand,
  DEFAULT_HOST_OPTIONS,
  type HostOptions,
  type IoPathRow,
  type MultipathPolicy,
  type PathCommand,
  type PathIostat,
  type PathOpen,
  type PathUpdate,
  type QueueLost,
  Topic,
} from './messages.ts'
import { NvmeChannel } from './nvme-channel.ts'

/** What is there for each reactor, once `installNvme` was called. */
const installed = new WeakMap<Reactor, ReactorNvme>()

/** Puts the NVMe host on a reactor: to be called once, before the control thread says anything. */
export function installNvme(reactor: Reactor): ReactorNvme {
  assert(!installed.has(reactor), 'the NVMe host is put on a reactor once')
  const nvme = new ReactorNvme(reactor)
  installed.set(reactor, nvme)
  return nvme
}

/** The NVMe host of a reactor. */
export function nvmeOf(reactor: Reactor): ReactorNvme {
  const nvme = installed.get(reactor)
  assert(nvme, 'the NVMe host was put on the reactor')
  return nvme
}

export class ReactorNvme {
  readonly #reactor: Reactor
  #options: HostOptions = DEFAULT_HOST_OPTIONS
  readonly #controllers = new Map<number, HostController>()
  /** By path id: a higher one was attached later. */
  readonly #paths = new Map<number, IoPath>()
  readonly #channels = new Set<NvmeChannel>()
  /** By device name. */
  readonly #policies = new Map<string, MultipathPolicy>()

  constructor(reactor: Reactor) {
    this.#reactor = reactor
    const { control } = reactor
    control.on<HostOptions>(Topic.OPTIONS, options => this.#setOptions(options))
    control.on<PathOpen>(Topic.PATH_OPEN, open => {
      this.#controllers.set(open.pathId, new HostController(reactor, open))
    })
    control.on<PathCommand>(Topic.PATH_COMMAND, command => this.#command(command))
    control.on<PathUpdate>(Topic.PATH_UPDATE, update => this.#update(update))
    control.on<number>(Topic.PATH_REMOVE, pathId => this.#removePath(pathId))
    control.on<{ bdev: string; policy: MultipathPolicy | null }>(Topic.POLICY, message => {
      this.#setPolicy(message.bdev, message.policy)
    })
    control.on<QueueLost>(Topic.QUEUE_LOST, ({ pathId, generation, reason, wasConnected }) => {
      this.#controllers.get(pathId)?.queueLost(generation, reason, wasConnected)
    })
    control.on<AbortCommand>(Topic.ABORT, ({ pathId, generation, sqid, cid }) => {
      this.#controllers.get(pathId)?.abort(generation, sqid, cid)
    })
    control.on<number>(Topic.CHECK_ANA, pathId => this.#controllers.get(pathId)?.checkAna())
    control.on<null>(Topic.IO_PATHS, () => this.#ioPaths())
    control.on<string>(Topic.PATH_IOSTAT, bdev => this.#pathIostat(bdev))
  }

  openChannel(info: BdevInfo): DriverChannel {
    const channel = new NvmeChannel(info, this.#reactor, this.#options, {
      closed: closed => this.#channels.delete(closed),
      anaDoubted: path => this.#reactor.control.post(Topic.CHECK_ANA, path.id),
    })
    this.#channels.add(channel)
    const policy = this.#policies.get(info.name)
    if (policy !== undefined) channel.setPolicy(policy)
    this.#choosePaths(channel)
    return channel
  }

  #setOptions(options: HostOptions): void {
    this.#options = options
    for (const controller of this.#controllers.values()) controller.options = options
    for (const path of this.#paths.values()) path.options = options
    for (const channel of this.#channels) channel.options = options
  }

  #command(message: PathCommand): unknown {
    const controller = this.#controllers.get(message.pathId)
    assert(controller, `path ${message.pathId} is at home on this reactor`)
    switch (message.command) {
      case 'reset':
        return controller.reset()
      case 'enable':
        return controller.enable()
      case 'disable':
        return controller.disable()
      case 'health':
        return controller.health()
      case 'add-target':
        return controller.addTarget(message.target)
      case 'remove-target':
        return controller.removeTarget(message.target)
      case 'close':
        this.#controllers.delete(message.pathId)
        return controller.close()
    }
  }

  #update(update: PathUpdate): void {
    const path = this.#paths.get(update.pathId)
    if (path === undefined) {
      this.#paths.set(update.pathId, new IoPath(this.#reactor, update, this.#options))
      for (const channel of this.#channels) this.#choosePaths(channel)
      return
    }
    // What the ANA log says now is the latest word.
    for (const channel of this.#channels) channel.trust(path)
    path.update(update)
  }

  #removePath(pathId: number): Promise<void> {
    const path = this.#paths.get(pathId)
    if (path === undefined) return Promise.resolve()
    this.#paths.delete(pathId)
    const gone = new Promise<void>(resolve => path.remove(resolve))
    for (const channel of this.#channels) this.#choosePaths(channel)
    return gone
  }

  #choosePaths(channel: NvmeChannel): void {
    const own = [...this.#paths.values()].filter(({ status }) => status.name === channel.controller)
    channel.setPaths(own.sort((a, b) => a.id - b.id))
  }

  #setPolicy(bdev: string, policy: MultipathPolicy | null): void {
    if (policy === null) {
      this.#policies.delete(bdev)
      return
    }
    this.#policies.set(bdev, policy)
    for (const channel of this.#channels) if (channel.info.name === bdev) channel.setPolicy(policy)
  }

  #ioPaths(): IoPathRow[] {
    return [...this.#channels].flatMap(channel =>
      channel.paths.map(path => ({
        bdev: channel.info.name,
        pathId: path.id,
        current: path === channel.currentPath,
        connected: path.io.isConnected,
        accessible: path.isAccessible,
      })),
    )
  }

  #pathIostat(bdev: string): PathIostat[] {
    const channels = [...this.#channels].filter(({ info }) => info.name === bdev)
    return channels.flatMap(channel =>
      channel.paths.map(path => ({
        pathId: path.id,
        counters: path.stat.snapshot() satisfies IoCounters,
        unfencedWrites: path.unfencedWrites,
      })),
    )
  }
}
