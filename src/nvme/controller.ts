/**
 * A controller of somebody else's, on its home reactor: the admin queue, what the controller says of itself, its events,
 * keep alive, and how it is reached again after it was lost.
 *
 *                       +----------- lost --------------+
 *                       v                               |
 *     (open) --> CONNECTING -- all answered --------> READY
 *                 |    ^   ^
 *        failure  |    |   +-- reset, enable ------ FAILED, DISABLED
 *                 v    |
 *               WAITING (reconnect_delay_sec) ---- ctrlr_loss_timeout_sec over ----> LOST
 *
 * An attempt that fails, whatever the reason, ends in one place: `#ended`.
 */
import type { Timer } from '../core/clock.ts'
import { logger } from '../core/log.ts'
import type { SocketAddress } from '../reactor/network.ts'
import type { Reactor } from '../reactor/reactor.ts'
import { EventResult, EventType, NoticeEvent } from '../spec/nvme-event.ts'
import { AnaState, CHANGED_NAMESPACES_SIZE, LogPageId, SmartLog } from '../spec/nvme-log.ts'
import { Cc, ConnectResponse, Property, ShutdownNotification } from '../spec/nvmf.ts'
import { AdminQueue } from './admin-queue.ts'
import {
  type ControllerDetails,
  enableController,
  enableEvents,
  identifyController,
  type Namespaces,
  negotiateQueues,
  readAnaStates,
  readNamespaces,
} from './discover-controller.ts'
import { readDiscoveryLog } from './discovery-log.ts'
import {
  type ControllerStatus,
  type DiscoveryEntry,
  type HostOptions,
  type NamespaceStatus,
  type PathOpen,
  type PathState,
  type PathStatus,
  Topic,
} from './messages.ts'

const log = logger('nvme')

/** Where nothing else is said: for a TCP connection, and for an admin command. */
const DEFAULT_TIMEOUT_MS = 10_000
/** A connection that did not last this long is not renewed at once. */
const STABLE_MS = 1000
/** Abort commands outstanding: four are what a controller has to take (ACL, 0's based, should be at least 3). */
const ABORTS_MAX = 4
/** How long a controller that is let go may take to hear of it. */
const SHUTDOWN_MS = 500

export class HostController {
  readonly pathId: number
  readonly #reactor: Reactor
  readonly #open: PathOpen
  #options: HostOptions
  #targets: readonly SocketAddress[]
  #targetIndex = 0
  #state: PathState = 'connecting'
  #reason = ''
  #generation = 0
  #admin: AdminQueue | null = null
  #details: ControllerDetails | null = null
  #controller: ControllerStatus | undefined
  #namespaces: readonly NamespaceStatus[] = []
  #unusable: readonly string[] = []
  #discovered: readonly DiscoveryEntry[] = []
  /** Attempts to be made without delay: one for each address. */
  #promptAttempts = 0
  #readySinceUs = 0
  #hasFailedFast = false
  #aborts = 0
  #isClosing = false
  #wanted: 'enabled' | 'disabled' = 'enabled'
  #onClosed: (() => void) | null = null
  /** Reads of namespaces and ANA states, one after another. */
  #reads: Promise<void> = Promise.resolve()

  #reconnectTimer: Timer | null = null
  #lossTimer: Timer | null = null
  #fastFailTimer: Timer | null = null
  #keepAliveTimer: Timer | null = null
  #anaTimer: Timer | null = null

  /** Starts to connect. */
  constructor(reactor: Reactor, open: PathOpen) {
    this.#reactor = reactor
    this.#open = open
    this.#options = open.options
    this.#targets = open.targets
    this.pathId = open.pathId
    this.#startLossTimers()
    this.#promptAttempts = this.#targets.length
    this.#connect()
  }

  set options(options: HostOptions) {
    this.#options = options
  }

  /** Drops the connection and makes a new one at once. */
  reset(): void {
    if (this.#wanted === 'disabled' || this.#isClosing) return
    this.#connectAnew('reset by the operator')
  }

  enable(): void {
    if (this.#wanted === 'enabled') return
    this.#wanted = 'enabled'
    this.#connectAnew('enabled by the operator')
  }

  disable(): void {
    this.#wanted = 'disabled'
    this.#stopTimers()
    if (this.#admin !== null) this.#admin.close('disabled by the operator')
    else this.#setState('disabled', 'disabled by the operator')
  }

  addTarget(target: SocketAddress): void {
    this.#targets = [...this.#targets, target]
  }

  /** The address in use is left by connecting to the next one. */
  removeTarget(target: SocketAddress): void {
    const inUse = this.#target
    this.#targets = this.#targets.filter(({ host, port }) => host !== target.host || port !== target.port)
    this.#targetIndex = Math.max(0, this.#targets.indexOf(inUse))
    if (!this.#targets.includes(inUse)) this.#connectAnew('its address was detached')
  }

  /** An I/O queue is gone, or could not be had: then the controller is connected to anew. */
  queueLost(generation: number, reason: string, wasConnected: boolean): void {
    if (generation !== this.#generation || this.#state !== 'ready') return
    if (!wasConnected) this.#readySinceUs = this.#reactor.clock.nowUs()
    this.#admin!.close(`an I/O queue ended: ${reason}`)
  }

  /** Ends a command early, or the connection when that cannot be done. */
  abort(generation: number, sqid: number, cid: number): void {
    if (generation !== this.#generation || this.#state !== 'ready') return
    if (this.#aborts === ABORTS_MAX) return
    this.#aborts++
    this.#admin!.abort(sqid, cid)
      // A refusal says that the command is being executed; its own time-out decides then.
      .catch((error: Error) => log.info(`${this.#name}: ${error.message}`))
      .finally(() => {
        this.#aborts--
      })
  }

  /** Reads the ANA log, since I/O met a state that does not agree with it. */
  checkAna(): void {
    if (this.#state === 'ready') void this.#read(admin => this.#readAna(admin))
  }

  /** The SMART log page. */
  async health(): Promise<Uint8Array> {
    if (this.#state !== 'ready') throw new Error(`${this.#name} is not connected: ${this.#reason}`)
    const page = await this.#admin!.getLogPage(LogPageId.SMART, 0, SmartLog.size)
    return new Uint8Array(page.buffer, page.byteOffset, page.byteLength)
  }

  /** Ends everything; resolves when nothing is left. */
  close(): Promise<void> {
    this.#isClosing = true
    this.#stopTimers()
    const admin = this.#admin
    if (admin === null) return Promise.resolve()
    const closed = new Promise<void>(resolve => {
      this.#onClosed = resolve
    })
    if (this.#state === 'ready') this.#shutDown(admin)
    else admin.close('detached')
    return closed
  }

  get #target(): SocketAddress {
    return this.#targets[this.#targetIndex % this.#targets.length]!
  }

  get #name(): string {
    return `${this.#open.controller} (${this.#target.host} port ${this.#target.port})`
  }

  #connectAnew(reason: string): void {
    this.#promptAttempts = this.#targets.length + 1
    this.#readySinceUs = Number.NEGATIVE_INFINITY
    this.#hasFailedFast = false
    if (this.#admin !== null) {
      this.#admin.close(reason)
      return
    }
    this.#reconnectTimer?.cancel()
    this.#startLossTimers()
    this.#connect()
  }

  #connect(): void {
    this.#generation++
    this.#setState('connecting', this.#reason === '' ? 'connecting' : this.#reason)
    const options = {
      remote: this.#target,
      source: this.#open.source,
      connectTimeoutMs: this.#options.connectTimeoutMs || DEFAULT_TIMEOUT_MS,
      commandTimeoutMs:
        (this.#open.fabricsTimeoutUs || this.#options.adminTimeoutUs || this.#options.ioTimeoutUs) / 1000 ||
        DEFAULT_TIMEOUT_MS,
    }
    let admin: AdminQueue
    try {
      admin = new AdminQueue(this.#reactor, options, reason => this.#ended(reason))
    } catch (error) {
      this.#ended((error as Error).message)
      return
    }
    this.#admin = admin
    this.#bringUp(admin).catch((error: Error) => admin.close(error.message))
  }

  async #bringUp(admin: AdminQueue): Promise<void> {
    const { subnqn, hostnqn, hostId, disableSqFlowControl, ioQueues } = this.#open
    const keepAliveMs = this.#options.keepAliveTimeoutMs
    await admin.opened()
    const dw0 = await admin.connect({ subnqn, hostnqn, hostId, keepAliveMs, disableSqFlowControl })
    const answer = new DataView(new ArrayBuffer(ConnectResponse.size))
    answer.setUint32(0, dw0, true)
    if (ConnectResponse.authreq.get(answer, 0) !== 0) {
      throw new Error('the controller asks for authentication, which this host does not support')
    }
    const cap = await enableController(admin, this.#reactor.clock)
    const details = await identifyController(admin, cap)
    const isDiscovery = this.#open.kind === 'discovery'
    const granted = isDiscovery ? 0 : await negotiateQueues(admin, ioQueues)
    await enableEvents(admin, details.optionalEvents)
    const namespaces = isDiscovery ? { usable: [], unusable: [] } : await readNamespaces(admin, details)
    const discovered = isDiscovery ? await readDiscoveryLog(admin) : []
    if (this.#admin !== admin) return
    const entries = cap.getUint16(0, true) + 1
    const depth = Math.min(this.#options.ioQueueDepth, entries - 1, details.maxCommands || entries)
    this.#details = details
    this.#controller = {
      ...details.status,
      cntlid: ConnectResponse.cntlid.get(answer, 0),
      ioQueues: granted,
      ioQueueDepth: Math.max(1, depth),
    }
    this.#keepNamespaces(namespaces)
    this.#discovered = discovered
    this.#ready(admin)
  }

  #ready(admin: AdminQueue): void {
    this.#readySinceUs = this.#reactor.clock.nowUs()
    this.#lossTimer?.cancel()
    this.#lossTimer = null
    this.#fastFailTimer?.cancel()
    this.#hasFailedFast = false
    log.notice(`${this.#name}: connected as controller ${this.#controller!.cntlid}`)
    this.#setState('ready', '')
    this.#watchAnaTransition()
    this.#keepAlive(admin)
    void this.#watchEvents(admin)
  }

  /** The connection is over, or there never was one: decides what comes next. */
  #ended(reason: string): void {
    const wasReady = this.#state === 'ready'
    const lastedMs = (this.#reactor.clock.nowUs() - this.#readySinceUs) / 1000
    this.#admin = null
    this.#keepAliveTimer?.cancel()
    this.#anaTimer?.cancel()
    if (this.#isClosing) {
      this.#onClosed?.()
      return
    }
    if (this.#wanted === 'disabled') {
      this.#setState('disabled', reason)
      return
    }
    // A controller that stays away is told of once.
    if (reason === this.#reason) log.debug(`${this.#name}: ${reason}`)
    else log.warning(`${this.#name}: ${reason}`)
    this.#reason = reason
    if (this.#state === 'lost') return
    if (wasReady) {
      this.#startLossTimers()
      // Once around all other addresses, and then this one again, unless it has only just failed.
      this.#promptAttempts = this.#targets.length + (lastedMs >= STABLE_MS ? 1 : 0)
    }
    this.#targetIndex = (this.#targetIndex + 1) % this.#targets.length
    if (--this.#promptAttempts > 0) {
      this.#connect()
      return
    }
    const { reconnectDelaySec } = this.#open.reconnect
    if (reconnectDelaySec === 0 && !wasReady) {
      this.#setState('failed', reason)
      return
    }
    this.#setState('waiting', reason)
    const delayMs = reconnectDelaySec === 0 ? STABLE_MS : reconnectDelaySec * 1000
    this.#reconnectTimer = this.#reactor.clock.after(delayMs, () => this.#connect())
  }

  /** What `ctrlr_loss_timeout_sec` and `fast_io_fail_timeout_sec` count from. */
  #startLossTimers(): void {
    const { ctrlrLossTimeoutSec, fastIoFailTimeoutSec } = this.#open.reconnect
    const { clock } = this.#reactor
    this.#lossTimer?.cancel()
    this.#fastFailTimer?.cancel()
    if (ctrlrLossTimeoutSec > 0) {
      this.#lossTimer = clock.after(ctrlrLossTimeoutSec * 1000, () => {
        this.#reconnectTimer?.cancel()
        const reason = `not reached for ${ctrlrLossTimeoutSec} s (ctrlr_loss_timeout_sec): ${this.#reason}`
        log.error(`${this.#name}: ${reason}`)
        this.#setState('lost', reason)
        this.#admin?.close(reason)
      })
    }
    if (fastIoFailTimeoutSec > 0) {
      this.#fastFailTimer = clock.after(fastIoFailTimeoutSec * 1000, () => {
        this.#hasFailedFast = true
        this.#publish()
      })
    }
  }

  #stopTimers(): void {
    this.#reconnectTimer?.cancel()
    this.#lossTimer?.cancel()
    this.#fastFailTimer?.cancel()
    this.#keepAliveTimer?.cancel()
    this.#anaTimer?.cancel()
  }

  /**
   * Every half of the time-out a command that must be answered within the other half: so a path that went silent is
   * found within the time-out.
   */
  #keepAlive(admin: AdminQueue): void {
    const halfMs = this.#options.keepAliveTimeoutMs / 2
    if (halfMs === 0) return
    this.#keepAliveTimer = this.#reactor.clock.after(halfMs, () => {
      // An answer that does not come ends the connection, and `#ended` hears of that.
      admin.keepAlive(halfMs).catch((error: Error) => log.debug(`${this.#name}: ${error.message}`))
      this.#keepAlive(admin)
    })
  }

  async #watchEvents(admin: AdminQueue): Promise<void> {
    const event = new DataView(new ArrayBuffer(EventResult.size))
    try {
      for (;;) {
        event.setUint32(0, await admin.awaitEvent(), true)
        if (EventResult.type.get(event, 0) !== EventType.NOTICE) continue
        const notice = EventResult.info.get(event, 0)
        if (notice === NoticeEvent.NAMESPACE_ATTRIBUTE_CHANGED) {
          await this.#read(async () => {
            // Reading the list is what arms the event again; what changed is found by looking.
            await admin.getLogPage(LogPageId.CHANGED_NAMESPACES, 0, CHANGED_NAMESPACES_SIZE)
            this.#keepNamespaces(await readNamespaces(admin, this.#details!))
          })
        } else if (notice === NoticeEvent.ANA_CHANGE) {
          await this.#read(() => this.#readAna(admin))
        } else if (notice === NoticeEvent.DISCOVERY_LOG_CHANGE && this.#open.kind === 'discovery') {
          await this.#read(async () => {
            this.#discovered = await readDiscoveryLog(admin)
          })
        }
      }
    } catch (error) {
      log.debug(`${this.#name}: no more events: ${(error as Error).message}`)
    }
  }

  /** Runs `read` after those before it, then tells everybody; a failure ends the connection. */
  #read(read: (admin: AdminQueue) => Promise<void>): Promise<void> {
    const admin = this.#admin!
    this.#reads = this.#reads.then(async () => {
      if (this.#admin !== admin || this.#state !== 'ready') return
      try {
        await read(admin)
      } catch (error) {
        admin.close((error as Error).message)
        return
      }
      if (this.#admin !== admin || this.#state !== 'ready') return
      this.#watchAnaTransition()
      this.#publish()
    })
    return this.#reads
  }

  #keepNamespaces({ usable, unusable }: Namespaces): void {
    for (const fault of unusable) {
      if (!this.#unusable.includes(fault)) log.warning(`${this.#name}: ${fault}`)
    }
    this.#namespaces = usable
    this.#unusable = unusable
  }

  async #readAna(admin: AdminQueue): Promise<void> {
    const states = await readAnaStates(admin, this.#details!)
    this.#namespaces = this.#namespaces.map(namespace => ({
      ...namespace,
      anaState: states.get(namespace.anaGroupId) ?? namespace.anaState,
    }))
  }

  /** A change of ANA state may take ANATT seconds; if it takes longer, the controller is not to be trusted. */
  #watchAnaTransition(): void {
    const limitSec = this.#details!.anaTransitionSec
    const changes = this.#namespaces.some(({ anaState }) => anaState === AnaState.CHANGE)
    if (!changes || limitSec === 0) {
      this.#anaTimer?.cancel()
      this.#anaTimer = null
    } else if (this.#anaTimer === null) {
      this.#anaTimer = this.#reactor.clock.after(limitSec * 1000, () => {
        this.#anaTimer = null
        this.#admin?.close(`an ANA state changes for longer than ${limitSec} s (ANATT)`)
      })
    }
  }

  /** Tells the controller that the host goes away, without waiting for long. */
  #shutDown(admin: AdminQueue): void {
    const cc = new DataView(new ArrayBuffer(4))
    Cc.en.set(cc, 0, 1)
    Cc.shn.set(cc, 0, ShutdownNotification.NORMAL)
    Cc.iosqes.set(cc, 0, 6)
    Cc.iocqes.set(cc, 0, 4)
    const timer = this.#reactor.clock.after(SHUTDOWN_MS, () => admin.close('detached'))
    const end = (): void => {
      timer.cancel()
      admin.close('detached')
    }
    admin.setProperty(Property.CC, cc.getUint32(0, true)).then(end, end)
  }

  #setState(state: PathState, reason: string): void {
    this.#state = state
    this.#reason = reason
    this.#publish()
  }

  #publish(): void {
    const isExpected = this.#state === 'ready' || this.#state === 'connecting' || this.#state === 'waiting'
    const status: PathStatus = {
      pathId: this.pathId,
      state: this.#state,
      mayReturn: isExpected && !this.#hasFailedFast,
      generation: this.#generation,
      target: this.#target,
      reason: this.#reason,
      controller: this.#controller,
      namespaces: this.#namespaces,
      unusable: this.#unusable,
      discovered: this.#discovered,
    }
    this.#reactor.control.post(Topic.PATH_STATUS, status)
  }
}
