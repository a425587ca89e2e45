/**
 * One front end that is connected: the vhost-user protocol, one message after the other, on the control thread.
 *
 *   front end  --message-->  check (`protocol.ts`)  -->  one method below  -->  answer
 *                                                           |  Port messages (`messages.ts`)
 *                                                        reactors: queues, guest memory, device
 *
 * Whatever is wrong with a message ends this session, and nothing else: one line says which request, and what it said.
 * A message may have to wait for I/O that a device never ends. What others want of the session (a bdev taken away, other
 * tuning) does not wait for it, and the end of the connection ends that I/O, so it is listened for all the time.
 */
import { ProtocolError, RpcError, SysError } from '../../core/errors.ts'
import type { ReactorGroup } from '../../reactor/group.ts'
import type { MessageSocket, SocketMessage } from '../../reactor/message-sockets.ts'
import {
  CONFIG_SIZE_MAX,
  ConfigFlag,
  ConfigHeader,
  ProtocolFeature,
  Request,
  U64,
  VhostFeature,
  VRING_FLAG_LOG,
  VRING_INDEX_MASK,
  VRING_NO_DESCRIPTOR,
  VringAddress,
  VringState,
} from '../../spec/vhost-user.ts'
import { VirtioFeature } from '../../spec/virtio.ts'
import { isSocket } from '../../sys/shared-memory.ts'
import { closeAll } from '../../sys/unix-message.ts'
import type { ControllerSession, DeviceEvent, SessionOptions } from '../controller.ts'
import type { SessionStats, SharedPart, Tuning } from '../messages.ts'
import type { ModelState } from '../model.ts'
import { BackendChannel } from './backend-channel.ts'
import { REGIONS_MAX } from './memory-table.ts'
import {
  checkMessage,
  type FrontEndMessage,
  fault,
  hex,
  PROTOCOL_FEATURES,
  peek,
  QUEUES_MAX,
  replyTo,
  requestName,
  u64,
} from './protocol.ts'
import { SealPolicy } from './seals.ts'
import { SessionMemory } from './session-memory.ts'
import { SessionReactors } from './session-reactors.ts'
import { checkEventfd, type RingContext, SessionRings } from './session-rings.ts'

const bit = (number: number): bigint => 1n << BigInt(number)

const RING_PACKED = bit(VirtioFeature.RING_PACKED)
/** What rings and transport can do, whatever the device. */
const RING_FEATURES =
  bit(VirtioFeature.VERSION_1) |
  bit(VirtioFeature.INDIRECT_DESC) |
  bit(VirtioFeature.EVENT_IDX) |
  VhostFeature.LOG_ALL |
  VhostFeature.PROTOCOL_FEATURES

/** Front ends speak at once. */
const SILENCE_MS = 10_000

/** What a request is answered with: nothing but success, a payload, or a payload and descriptors. */
type Answer = Uint8Array | { readonly payload: Uint8Array; readonly descriptors: number[] } | undefined
type Handler = (message: FrontEndMessage) => Answer | void | Promise<Answer | void>

export interface SessionParts extends SessionOptions {
  readonly socket: MessageSocket
  readonly reactors: ReactorGroup
}

export class Session implements ControllerSession, RingContext {
  readonly session: number
  readonly #parts: SessionParts
  readonly #offered: bigint
  readonly #state: ModelState = { writeback: true }
  readonly #reactors: SessionReactors
  readonly #memory: SessionMemory
  readonly #rings: SessionRings
  readonly #backend: BackendChannel
  readonly #handlers: ReadonlyMap<number, Handler>
  readonly #ended: Promise<void>
  #features = 0n
  #protocolFeatures = 0n
  #status = 0
  /** The configuration space as the front end has read it, or was told to. */
  #knownConfig: Uint8Array | null = null
  #isClosing = false
  /** Nobody is at the other end of the connection any more. */
  #isAlone = false

  constructor(parts: SessionParts) {
    const { number, controllerName, model, reactors, reactorIndexes, tuning, offerPacked, options, log } =
      parts
    const warn = (message: string): void => log.warning(`${controllerName}: ${message}`)
    this.session = number
    this.#parts = parts
    this.#offered = model.features | RING_FEATURES | (offerPacked ? RING_PACKED : 0n)
    this.#reactors = new SessionReactors({
      session: number,
      controller: controllerName,
      reactors,
      reactorIndexes,
      device: model.describe(0n, this.#state),
      tuning,
    })
    this.#memory = new SessionMemory(new SealPolicy(options.requireSealedMemory, warn), this.#reactors)
    this.#rings = new SessionRings(this, this.#reactors)
    this.#backend = new BackendChannel(warn)
    this.#handlers = this.#table()
    this.#ended = this.#run()
  }

  get isPacked(): boolean {
    return (this.#features & RING_PACKED) !== 0n
  }

  get hasEventIndex(): boolean {
    return (this.#features & bit(VirtioFeature.EVENT_IDX)) !== 0n
  }

  get hasIndirect(): boolean {
    return (this.#features & bit(VirtioFeature.INDIRECT_DESC)) !== 0n
  }

  get enablesAll(): boolean {
    return (this.#features & VhostFeature.PROTOCOL_FEATURES) === 0n
  }

  get hasMemory(): boolean {
    return !this.#memory.isEmpty
  }

  inflightOf(index: number, size: number): SharedPart | null {
    return this.#memory.inflightOf(index, size, this.isPacked)
  }

  async deviceChanged(event?: DeviceEvent): Promise<void> {
    await this.#describe()
    if (event !== undefined) await this.#reactors.sendEvent(event)
    await this.#reactors.settled()
  }

  tune(tuning: Tuning): Promise<void> {
    return this.#reactors.setTuning(tuning)
  }

  /** At once, also while a queue is being drained. */
  stats(): Promise<SessionStats> {
    return this.#reactors.stats()
  }

  close(): Promise<void> {
    this.#isClosing = true
    void this.#parts.socket.close()
    this.#leaveAlone()
    return this.#ended
  }

  /** In the document's order. */
  #table(): ReadonlyMap<number, Handler> {
    const rings = this.#rings
    const memory = this.#memory
    return new Map<number, Handler>([
      [Request.GET_FEATURES, () => u64(this.#offered)],
      [Request.SET_FEATURES, message => this.#setFeatures(message)],
      [Request.GET_PROTOCOL_FEATURES, () => u64(PROTOCOL_FEATURES)],
      [Request.SET_PROTOCOL_FEATURES, message => this.#setProtocolFeatures(message)],
      [Request.SET_OWNER, () => {}],
      // Deprecated, and better ignored, as the document says: some front ends send it and go on.
      [Request.RESET_OWNER, () => {}],
      [Request.SET_MEM_TABLE, message => memory.setTable(message)],
      [Request.SET_LOG_BASE, message => this.#setLogBase(message)],
      // To be told of changes to the log is a front end's wish that nobody has to grant.
      [Request.SET_LOG_FD, () => {}],
      [Request.SET_VRING_NUM, message => this.#withRing(message, (index, num) => rings.setSize(index, num))],
      [Request.SET_VRING_ADDR, message => this.#setRingAddresses(message)],
      [Request.SET_VRING_BASE, message => this.#withRing(message, (index, num) => rings.setBase(index, num))],
      [Request.GET_VRING_BASE, message => this.#getRingBase(message)],
      [Request.SET_VRING_KICK, message => this.#withEventfd(message, (i, fd) => rings.setKick(i, fd))],
      [Request.SET_VRING_CALL, message => this.#withEventfd(message, (i, fd) => rings.setCall(i, fd))],
      [Request.SET_VRING_ERR, message => this.#withEventfd(message, (i, fd) => rings.setError(i, fd))],
      [Request.GET_QUEUE_NUM, () => u64(QUEUES_MAX)],
      [Request.SET_VRING_ENABLE, message => this.#withRing(message, (i, num) => rings.setEnabled(i, num))],
      [Request.SET_BACKEND_REQ_FD, message => this.#setBackendSocket(message)],
      [Request.GET_CONFIG, message => this.#getConfig(message)],
      [Request.SET_CONFIG, message => this.#setConfig(message)],
      [Request.GET_INFLIGHT_FD, message => this.#getInflight(message)],
      [Request.SET_INFLIGHT_FD, message => this.#setInflight(message)],
      [Request.RESET_DEVICE, () => this.#reset()],
      [Request.GET_MAX_MEM_SLOTS, () => u64(REGIONS_MAX)],
      [Request.ADD_MEM_REG, message => memory.addRegion(message)],
      [Request.REM_MEM_REG, message => memory.removeRegion(message)],
      [Request.SET_STATUS, message => this.#setStatus(message)],
      [Request.GET_STATUS, () => u64(this.#status)],
    ])
  }

  async #run(): Promise<void> {
    try {
      await this.#converse()
    } catch (error) {
      this.#report(error)
    }
    try {
      await this.#tearDown()
    } catch (error) {
      // Mappings stay: somebody may use them yet.
      this.#parts.log.error(`${this.#parts.controllerName}: a session did not end in order: ${error}`)
    }
    this.#parts.onEnd()
  }

  async #converse(): Promise<void> {
    const silence = setTimeout(() => this.#reportSilence(), SILENCE_MS)
    let next = this.#listen()
    try {
      for (;;) {
        const received = await next
        clearTimeout(silence)
        if (received === null) return
        next = this.#listen()
        // It may fail before somebody waits for it, and that alone would end the process.
        next.catch(() => {})
        await this.#answer(received)
      }
    } finally {
      clearTimeout(silence)
      // A message that came behind the one that ended this. A failure is reported, unless there was one before.
      next.then(unread => closeAll([...(unread?.descriptors ?? [])])).catch(() => {})
    }
  }

  /** The next message. Without one, nobody waits for the last one's answer, nor for anything that is outstanding. */
  async #listen(): Promise<SocketMessage | null> {
    let received: SocketMessage | null = null
    try {
      received = await this.#parts.socket.receive()
      return received
    } finally {
      if (received === null) this.#leaveAlone()
    }
  }

  #leaveAlone(): void {
    this.#isAlone = true
    // When that fails, it is the end that tells.
    this.#reactors.close().catch(() => {})
  }

  /** QEMU's vhost_user_blk_disconnect is never called then, and without it nobody hears of the new connection. */
  #reportSilence(): void {
    this.#parts.log.warning(
      `${this.#parts.controllerName}: a front end is connected and says nothing. QEMU before 8.2 stays like that when it ` +
        'loses its back end while it sets up or stops a device: the guest has to be started anew',
    )
  }

  async #answer(received: SocketMessage): Promise<void> {
    const { request, needsReply } = peek(received.bytes)
    const descriptors = [...received.descriptors]
    const acknowledges = needsReply && this.#hasProtocolFeature(ProtocolFeature.REPLY_ACK)
    this.#backend.pause()
    try {
      const message = checkMessage({ bytes: received.bytes, descriptors }, this.#protocolFeatures)
      const answer = await this.#handlers.get(request)!(message)
      if (await this.#rings.startReady()) this.#announceConfig()
      if (answer instanceof Uint8Array) this.#send(request, answer)
      else if (answer !== undefined) this.#sendWith(request, answer)
      else if (acknowledges) this.#send(request, u64(0))
    } catch (error) {
      // It was given up, and the next message, or what came instead of one, says why.
      if (this.#isAlone) return
      if (acknowledges) this.#sendFailure(request)
      throw new Error(requestName(request), { cause: error })
    } finally {
      closeAll(descriptors)
      this.#backend.resume()
    }
  }

  /** Nobody waits for an answer after `close`. */
  #send(request: number, payload: Uint8Array, descriptors: readonly number[] = []): void {
    if (!this.#isClosing) this.#parts.socket.send(replyTo(request, payload), descriptors)
  }

  /** So that the front end can say in its own log what failed. */
  #sendFailure(request: number): void {
    try {
      this.#send(request, u64(1))
    } catch (error) {
      // The connection ends anyway, and for another reason, which is reported.
      this.#parts.log.debug(`${this.#parts.controllerName}: ${error}`)
    }
  }

  #sendWith(request: number, answer: { payload: Uint8Array; descriptors: number[] }): void {
    try {
      this.#send(request, answer.payload, answer.descriptors)
    } finally {
      closeAll(answer.descriptors)
    }
  }

  async #setFeatures({ payload }: FrontEndMessage): Promise<void> {
    const features = payload.getBigUint64(0, true)
    const foreign = features & ~this.#offered
    if (foreign !== 0n) fault(`has bits ${hex(foreign)} that were not offered (${hex(this.#offered)})`, 0)
    const changed = features ^ this.#features
    if (this.#rings.isAnyRunning && (changed & ~VhostFeature.LOG_ALL) !== 0n) {
      fault(`changes bits ${hex(changed)} while rings run with ${hex(this.#features)}`, 0)
    }
    this.#features = features
    await this.#memory.setLogging((features & VhostFeature.LOG_ALL) !== 0n)
    if ((changed & ~VhostFeature.LOG_ALL) !== 0n) await this.#describe()
  }

  #setProtocolFeatures({ payload }: FrontEndMessage): void {
    const features = payload.getBigUint64(0, true)
    const foreign = features & ~PROTOCOL_FEATURES
    if (foreign !== 0n) fault(`has bits ${hex(foreign)} that were not offered (${hex(PROTOCOL_FEATURES)})`, 0)
    this.#protocolFeatures = features
  }

  /** With LOG_SHMFD this has an answer of its own, asked for or not. */
  async #setLogBase(message: FrontEndMessage): Promise<Answer> {
    await this.#memory.setLog(message)
    return u64(0)
  }

  #withRing(
    { payload }: FrontEndMessage,
    act: (index: number, num: number) => void | Promise<void>,
  ): void | Promise<void> {
    return act(VringState.index.get(payload, 0), VringState.num.get(payload, 0))
  }

  async #setRingAddresses({ payload }: FrontEndMessage): Promise<void> {
    const isLogged = (VringAddress.flags.get(payload, 0) & VRING_FLAG_LOG) !== 0
    const addresses = {
      descriptors: VringAddress.descriptor.get(payload, 0),
      driverArea: VringAddress.available.get(payload, 0),
      deviceArea: VringAddress.used.get(payload, 0),
    }
    const logAddress = isLogged ? VringAddress.log.get(payload, 0) : -1
    await this.#rings.setAddresses(VringAddress.index.get(payload, 0), addresses, logAddress)
  }

  async #getRingBase({ payload }: FrontEndMessage): Promise<Answer> {
    const index = VringState.index.get(payload, 0)
    const base = await this.#rings.stop(index)
    const answer = new Uint8Array(VringState.size)
    const view = new DataView(answer.buffer)
    VringState.index.set(view, 0, index)
    VringState.num.set(view, 0, base)
    return answer
  }

  /** Hands over the descriptor that came along, or -1 where the message says that there is none. */
  #withEventfd(
    { payload, descriptors }: FrontEndMessage,
    act: (index: number, descriptor: number) => void | Promise<void>,
  ): void | Promise<void> {
    const value = U64.value.get(payload, 0)
    const hasNone = (value & VRING_NO_DESCRIPTOR) !== 0
    if (hasNone !== (descriptors.length === 0)) {
      fault(`has ${descriptors.length} descriptors, and bit 8 of ${hex(value)} is ${hasNone ? 1 : 0}`, 0)
    }
    if (!hasNone) checkEventfd(descriptors[0]!)
    return act(value & VRING_INDEX_MASK, descriptors.pop() ?? -1)
  }

  #setBackendSocket({ descriptors }: FrontEndMessage): void {
    if (!isSocket(descriptors[0]!)) fault('brings a descriptor that is no socket', 0)
    this.#backend.open(descriptors.pop()!)
  }

  /** Beyond the end of the space there are zeroes, as long as it is asked for within what the protocol allows. */
  #getConfig({ payload }: FrontEndMessage): Answer {
    const { offset, sizeBytes } = readConfigRange(payload)
    const config = this.#config()
    this.#knownConfig = config
    const answer = new Uint8Array(payload.byteLength)
    answer.set(new Uint8Array(payload.buffer, payload.byteOffset, ConfigHeader.size))
    answer.set(config.subarray(offset, offset + sizeBytes), ConfigHeader.size)
    return answer
  }

  async #setConfig({ payload }: FrontEndMessage): Promise<void> {
    const { offset, sizeBytes } = readConfigRange(payload)
    const flags = ConfigHeader.flags.get(payload, 0)
    if (flags !== ConfigFlag.WRITABLE && flags !== ConfigFlag.LIVE_MIGRATION)
      fault(`has flags ${hex(flags)}`, 8)
    const bytes = new Uint8Array(payload.buffer, payload.byteOffset + ConfigHeader.size, sizeBytes)
    const isChanged = this.#parts.model.writeConfig(offset, bytes, this.#state)
    this.#memory.noteWriteback(this.#state.writeback)
    // It knows what it has written.
    if (this.#knownConfig !== null) this.#knownConfig = this.#config()
    if (isChanged) await this.#describe()
  }

  #getInflight(message: FrontEndMessage): Answer {
    const { descriptor, answer } = this.#memory.allocateInflight(message, this.#state.writeback)
    return { payload: answer, descriptors: [descriptor] }
  }

  async #setInflight(message: FrontEndMessage): Promise<void> {
    if (this.#rings.isAnyRunning) fault('comes while rings run, which note their requests elsewhere', 0)
    const writeback = this.#memory.setInflight(message)
    if (writeback === null || writeback === this.#state.writeback) return
    this.#state.writeback = writeback
    await this.#describe()
  }

  async #setStatus({ payload }: FrontEndMessage): Promise<void> {
    const status = U64.value.get(payload, 0)
    if (status > 0xff) fault(`has status ${hex(status)}, which is more than a byte`, 0)
    if (status === 0) await this.#reset()
    this.#status = status
  }

  /** Connection, memory and features stay: the front end sets up again what it wants otherwise. */
  async #reset(): Promise<void> {
    await this.#rings.reset()
    this.#status = 0
  }

  /** The reactors hear what the device is now; the front end, if it sees another configuration space. */
  async #describe(): Promise<void> {
    await this.#reactors.setDevice(this.#parts.model.describe(this.#features, this.#state))
    this.#announceConfig()
  }

  /**
   * QEMU ignores the news before its rings run, and does not read the space anew when it has reconnected; so it is told
   * when they start, unless what it read in this session is still right.
   */
  #announceConfig(): void {
    const config = this.#config()
    const isKnown = this.#knownConfig !== null && Buffer.compare(config, this.#knownConfig) === 0
    if (isKnown || !this.#rings.isAnyRunning || !this.#backend.isOpen) return
    if (!this.#hasProtocolFeature(ProtocolFeature.CONFIG)) return
    this.#knownConfig = config
    this.#backend.announceConfig()
  }

  #config(): Uint8Array {
    return this.#parts.model.config(this.#features, this.#state)
  }

  #hasProtocolFeature(feature: bigint): boolean {
    return (this.#protocolFeatures & feature) !== 0n
  }

  async #tearDown(): Promise<void> {
    this.#backend.close()
    try {
      await this.#reactors.close()
      this.#rings.close()
      this.#memory.close()
    } finally {
      await this.#parts.socket.close()
    }
  }

  #report(error: unknown): void {
    const { controllerName, log } = this.#parts
    const request = error instanceof Error && error.cause !== undefined ? `${error.message} ` : ''
    const cause = request === '' ? error : (error as Error).cause
    // The front end is gone before it got its answer: that is no fault of anybody.
    if (cause instanceof SysError && cause.call === 'sendmsg' && cause.code !== 'EAGAIN') return
    const isExpected =
      cause instanceof ProtocolError || cause instanceof SysError || cause instanceof RpcError
    if (isExpected)
      log.warning(`${controllerName}: the front end is disconnected: ${request}${cause.message}`)
    else log.error(`${controllerName}: the front end is disconnected: ${request}failed: ${stackOf(cause)}`)
  }
}

function readConfigRange(payload: DataView): { readonly offset: number; readonly sizeBytes: number } {
  const offset = ConfigHeader.offset.get(payload, 0)
  const sizeBytes = ConfigHeader.sizeBytes.get(payload, 0)
  if (ConfigHeader.size + sizeBytes !== payload.byteLength) {
    fault(`is about ${sizeBytes} bytes, and brings ${payload.byteLength - ConfigHeader.size}`, 4)
  }
  if (offset + sizeBytes > CONFIG_SIZE_MAX) {
    fault(`is about bytes ${offset} to ${offset + sizeBytes} of a space of ${CONFIG_SIZE_MAX}`, 0)
  }
  return { offset, sizeBytes }
}

const stackOf = (error: unknown): string =>
  error instanceof Error ? (error.stack ?? error.message) : `${error}`
