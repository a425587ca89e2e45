/**
 * A subsystem as one reactor knows it: the last snapshot, channels to the devices behind its namespaces, and for every
 * kind of path (a listener and a host) the namespaces that it shows, as its I/O queues read them for each command.
 */
import type { Channel } from '../bdev/channel.ts'
import { logger } from '../core/log.ts'
import type { Reactor } from '../reactor/reactor.ts'
import { AnaState } from '../spec/nvme-log.ts'
import { Status } from '../spec/nvme-status.ts'
import { anaGate } from './ana.ts'
import type { HealthCounters, ListenerSnapshot, NamespaceSnapshot, SubsystemSnapshot } from './messages.ts'
import type { NamespaceView } from './request.ts'

const log = logger('nvmf')

/** What a subsystem needs of the reactor's devices. */
export interface ChannelSource {
  open(name: string): Channel
  /** Nothing may be outstanding on the channel, unless its device is being removed. */
  close(channel: Channel): void
}

/** How long to wait before looking again whether a namespace that was removed has nothing outstanding. */
const DRAIN_INTERVAL_MS = 2
/** What is outstanding on a namespace that was removed is aborted after this time. */
const ABORT_AFTER_MS = 1000
/** A device that will not let go of an I/O keeps whoever removes the namespace waiting for no longer than this. */
const DRAIN_MS_MAX = 10_000

class NamespaceReplica {
  snapshot: NamespaceSnapshot
  channel: Channel | null = null
  #isOpen = false

  constructor(snapshot: NamespaceSnapshot) {
    this.snapshot = snapshot
  }

  /** The channel, opened when the first I/O queue comes. A device that cannot be opened makes the namespace not ready. */
  open(channels: ChannelSource): Channel | null {
    if (this.#isOpen) return this.channel
    this.#isOpen = true
    try {
      this.channel = channels.open(this.snapshot.bdev)
    } catch (error) {
      log.error(`namespace ${this.snapshot.nsid} is not ready: ${(error as Error).message}`)
    }
    return this.channel
  }

  /** Resolves when nothing is outstanding, however long that takes. */
  drain({ clock }: Reactor): Promise<void> {
    return new Promise(resolve => {
      const look = (): void => {
        if (this.channel === null || this.channel.outstanding === 0) resolve()
        else clock.after(DRAIN_INTERVAL_MS, look)
      }
      look()
    })
  }

  /**
   * Gives the channel back as soon as nothing is outstanding on it. Resolves then: whoever takes the device next must
   * find no write of ours still on its way.
   */
  close(channels: ChannelSource, { clock }: Reactor): Promise<void> {
    const { channel } = this
    this.channel = null
    if (channel === null) return Promise.resolve()
    const { nsid, bdev } = this.snapshot
    return new Promise(resolve => {
      const startUs = clock.nowUs()
      let isAborted = false
      let isGivenUp = false
      const closeWhenQuiet = (): void => {
        if (channel.outstanding === 0 || channel.isRemoved) {
          channels.close(channel)
          resolve()
          return
        }
        const waitedMs = (clock.nowUs() - startUs) / 1000
        if (waitedMs > ABORT_AFTER_MS && !isAborted) {
          isAborted = true
          channel.abort(null)
        }
        if (waitedMs > DRAIN_MS_MAX && !isGivenUp) {
          isGivenUp = true
          log.warning(
            `namespace ${nsid} is removed while ${bdev} still holds ${channel.outstanding} I/Os of it`,
          )
          resolve()
        }
        clock.after(DRAIN_INTERVAL_MS, closeWhenQuiet)
      }
      closeWhenQuiet()
    })
  }
}

/** Until when I/O is let through, in microseconds of the reactor's clock, at [0]. */
export type Lease = Readonly<Float64Array>

class PathNamespace implements NamespaceView {
  channel: Channel | null
  /** `gate` as the ANA state has it. */
  stateGate: number
  readonly generation: number
  readonly #reactor: Reactor
  /** Null where ANA states are not reported, or nobody else could serve the namespace. */
  readonly #lease: Lease | null

  constructor(
    channel: Channel | null,
    stateGate: number,
    generation: number,
    reactor: Reactor,
    lease: Lease | null,
  ) {
    this.channel = channel
    this.stateGate = stateGate
    this.generation = generation
    this.#reactor = reactor
    this.#lease = lease
  }

  /** A daemon that was frozen, or whose control thread is busy, closes at its time all the same. */
  get gate(): number {
    return this.#lease === null || this.#reactor.nowUs < this.#lease[0]!
      ? this.stateGate
      : Status.ANA_INACCESSIBLE
  }
}

/** The namespaces that a host sees on a listener, by nsid. Changed in place, so that its readers need no message. */
export class Path {
  readonly listenerId: number
  readonly hostnqn: string
  readonly namespaces: (PathNamespace | undefined)[] = []
  users = 0

  constructor(listenerId: number, hostnqn: string) {
    this.listenerId = listenerId
    this.hostnqn = hostnqn
  }
}

export class SubsystemReplica {
  snapshot: SubsystemSnapshot
  readonly #reactor: Reactor
  readonly #channels: ChannelSource
  readonly #lease: Lease | null
  readonly #namespaces = new Map<number, NamespaceReplica>()
  readonly #paths = new Map<string, Path>()

  constructor(
    snapshot: SubsystemSnapshot,
    reactor: Reactor,
    channels: ChannelSource,
    lease: Lease | null = null,
  ) {
    this.snapshot = snapshot
    this.#lease = snapshot.anaReporting ? lease : null
    this.#reactor = reactor
    this.#channels = channels
    // Nothing is there yet that could have to end.
    void this.apply(snapshot)
  }

  /** In force at once; resolves when nothing is outstanding any more on the namespaces that are gone. */
  async apply(snapshot: SubsystemSnapshot): Promise<void> {
    this.snapshot = snapshot
    const closing: Promise<void>[] = []
    const kept = new Set<number>()
    for (const namespace of snapshot.namespaces) {
      kept.add(namespace.nsid)
      const replica = this.#namespaces.get(namespace.nsid)
      if (replica !== undefined && replica.snapshot.generation === namespace.generation) {
        replica.snapshot = namespace
        continue
      }
      if (replica !== undefined) closing.push(replica.close(this.#channels, this.#reactor))
      this.#namespaces.set(namespace.nsid, new NamespaceReplica(namespace))
    }
    for (const [nsid, replica] of this.#namespaces) {
      if (kept.has(nsid)) continue
      this.#namespaces.delete(nsid)
      closing.push(replica.close(this.#channels, this.#reactor))
    }
    for (const path of this.#paths.values()) this.#fill(path)
    await Promise.all(closing)
  }

  /** Resolves when nothing is outstanding on the namespaces of those ANA groups. */
  async drain(anagrpids: readonly number[]): Promise<void> {
    const replicas = [...this.#namespaces.values()]
    await Promise.all(
      replicas
        .filter(({ snapshot }) => anagrpids.includes(snapshot.anagrpid))
        .map(replica => replica.drain(this.#reactor)),
    )
  }

  /** The subsystem is gone. Resolves as `apply` does. */
  close(): Promise<void> {
    return this.apply({ ...this.snapshot, listeners: [], namespaces: [] })
  }

  /** What a host's I/O queues on a listener see. Shared; given back by `release`. */
  acquire(listenerId: number, hostnqn: string): Path {
    const key = `${listenerId} ${hostnqn}`
    let path = this.#paths.get(key)
    if (path === undefined) {
      path = new Path(listenerId, hostnqn)
      this.#paths.set(key, path)
      this.#fill(path)
    }
    path.users++
    return path
  }

  release(path: Path): void {
    path.users--
    if (path.users === 0) this.#paths.delete(`${path.listenerId} ${path.hostnqn}`)
  }

  listener(id: number): ListenerSnapshot | undefined {
    return this.snapshot.listeners.find(listener => listener.id === id)
  }

  /** What was done to the namespaces on this reactor. */
  health(): HealthCounters {
    const sum = { bytesRead: 0, bytesWritten: 0, reads: 0, writes: 0, busyUs: 0 }
    for (const { channel } of this.#namespaces.values()) {
      if (channel === null) continue
      const counters = channel.stat.snapshot()
      sum.bytesRead += counters.bytes_read
      sum.bytesWritten += counters.bytes_written
      sum.reads += counters.num_read_ops
      sum.writes += counters.num_write_ops
      sum.busyUs += counters.read_latency_ticks + counters.write_latency_ticks
    }
    return sum
  }

  #fill(path: Path): void {
    const { namespaces } = path
    const listener = this.listener(path.listenerId)
    for (let nsid = 0; nsid < namespaces.length; nsid++) {
      const seen = namespaces[nsid]
      if (seen === undefined) continue
      const replica = this.#namespaces.get(nsid)
      const stays =
        replica?.snapshot.generation === seen.generation && isVisible(replica.snapshot, path.hostnqn)
      if (stays) continue
      // A command that already holds the view finds that the device is gone.
      seen.channel = null
      namespaces[nsid] = undefined
    }
    for (const [nsid, replica] of this.#namespaces) {
      if (!isVisible(replica.snapshot, path.hostnqn)) continue
      const gate = anaGate(anaStateAt(this.snapshot, listener, replica.snapshot))
      const seen = namespaces[nsid]
      if (seen !== undefined) {
        seen.stateGate = gate
        continue
      }
      // Holes would make every look-up of the array slow.
      while (namespaces.length < nsid) namespaces.push(undefined)
      namespaces[nsid] = new PathNamespace(
        replica.open(this.#channels),
        gate,
        replica.snapshot.generation,
        this.#reactor,
        this.#lease,
      )
    }
  }
}

export const isVisible = (namespace: NamespaceSnapshot, hostnqn: string): boolean =>
  namespace.isVisibleToAll || namespace.hosts.includes(hostnqn)

/** The state of a namespace's group on a listener: optimized without ANA, inaccessible where the listener is gone. */
export function anaStateAt(
  subsystem: SubsystemSnapshot,
  listener: ListenerSnapshot | undefined,
  namespace: NamespaceSnapshot,
): number {
  if (!subsystem.anaReporting) return AnaState.OPTIMIZED
  return listener?.anaStates[namespace.anagrpid - 1] ?? AnaState.INACCESSIBLE
}
