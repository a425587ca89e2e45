/**
 * The virtqueues of one session, as its front end has set them up ("Ring states"):
 *
 *            size, addresses and kick are set                SET_VRING_ENABLE, or its features say so
 *   stopped ---------------------------------> started       disabled <----------------> enabled
 *           <---------------------------------
 *            GET_VRING_BASE, reset: what is in flight ends first
 *
 * The document starts a ring with the first kick that arrives. This one starts it when the kick's descriptor arrives, as
 * every other back end does: a ring without requests shows no difference, and what an earlier process had in flight must
 * not wait for a guest that waits for it.
 */

import { QUEUE_SIZE_MAX } from '../../spec/virtqueue.ts'
import { close } from '../../sys/libc.ts'
import { isEventfd, setNonBlocking } from '../../sys/shared-memory.ts'
import { type SharedPart, type StartQueue, type StopQueue, Topic, type UpdateQueue } from '../messages.ts'
import { fault, hex, QUEUES_MAX } from './protocol.ts'
import type { SessionReactors } from './session-reactors.ts'

/** Addresses of a ring, in the front end's process. */
export interface RingAddresses {
  readonly descriptors: number
  /** Split: the available ring. Packed: the driver's event suppression. */
  readonly driverArea: number
  /** Split: the used ring. Packed: the device's event suppression. */
  readonly deviceArea: number
}

/** What the session knows beside the rings. */
export interface RingContext {
  readonly session: number
  readonly isPacked: boolean
  readonly hasEventIndex: boolean
  readonly hasIndirect: boolean
  /** Rings are enabled until they are disabled: the front end did not negotiate VHOST_USER_F_PROTOCOL_FEATURES. */
  readonly enablesAll: boolean
  /** There is memory in which the rings can be. */
  readonly hasMemory: boolean
  inflightOf(index: number, size: number): SharedPart | null
}

interface Ring {
  readonly index: number
  size: number
  addresses: RingAddresses | null
  /** A guest address; -1 while writes to the used ring are not logged. */
  logAddress: number
  /** As in SET_VRING_BASE; null until it is set. */
  base: number | null
  /** A kick was set, be it none. */
  hasKick: boolean
  kick: number
  call: number
  error: number
  /** Null until the front end says. */
  isEnabled: boolean | null
  isRunning: boolean
}

export class SessionRings {
  readonly #context: RingContext
  readonly #reactors: SessionReactors
  readonly #rings = new Map<number, Ring>()

  constructor(context: RingContext, reactors: SessionReactors) {
    this.#context = context
    this.#reactors = reactors
  }

  get isAnyRunning(): boolean {
    return [...this.#rings.values()].some(ring => ring.isRunning)
  }

  setSize(index: number, size: number): void {
    const ring = this.#ring(index)
    if (size < 1 || size > QUEUE_SIZE_MAX)
      fault(`gives ring ${index} ${size} entries, not 1 to ${QUEUE_SIZE_MAX}`, 4)
    if (ring.isRunning && size !== ring.size) {
      fault(`gives ring ${index} ${size} entries while it runs with ${ring.size}`, 4)
    }
    ring.size = size
  }

  /** Of a running ring only `logAddress` may be another one. */
  async setAddresses(index: number, addresses: RingAddresses, logAddress: number): Promise<void> {
    const ring = this.#ring(index)
    if (!ring.isRunning) {
      ring.addresses = addresses
      ring.logAddress = logAddress
      return
    }
    const now = ring.addresses!
    for (const part of ['descriptors', 'driverArea', 'deviceArea'] as const) {
      if (addresses[part] !== now[part]) {
        fault(`moves ring ${index} from ${hex(now[part])} to ${hex(addresses[part])} while it runs`, 8)
      }
    }
    ring.logAddress = logAddress
    await this.#update(ring, { logAddress })
  }

  setBase(index: number, base: number): void {
    const ring = this.#ring(index)
    if (ring.isRunning) fault(`sets the base of ring ${index} to ${base} while it runs`, 4)
    ring.base = base
  }

  /** Takes over the descriptor, -1 for none. */
  async setKick(index: number, descriptor: number): Promise<void> {
    const ring = this.#ring(index)
    ring.hasKick = true
    const before = ring.kick
    ring.kick = descriptor
    if (ring.isRunning) await this.#update(ring, { kick: descriptor })
    closeDescriptor(before)
  }

  /** Takes over the descriptor, -1 for none. */
  async setCall(index: number, descriptor: number): Promise<void> {
    const ring = this.#ring(index)
    const before = ring.call
    ring.call = descriptor
    if (ring.isRunning) await this.#update(ring, { call: descriptor })
    closeDescriptor(before)
  }

  /** Takes over the descriptor, -1 for none. */
  async setError(index: number, descriptor: number): Promise<void> {
    const ring = this.#ring(index)
    const before = ring.error
    ring.error = descriptor
    if (ring.isRunning) await this.#update(ring, { error: descriptor })
    closeDescriptor(before)
  }

  async setEnabled(index: number, num: number): Promise<void> {
    const ring = this.#ring(index)
    if (num > 1) fault(`enables ring ${index} with ${num}, not 0 or 1`, 4)
    ring.isEnabled = num === 1
    if (ring.isRunning) await this.#update(ring, { isEnabled: ring.isEnabled })
  }

  /** Starts every ring that has all it needs. Returns whether there was one. */
  async startReady(): Promise<boolean> {
    let isAnyStarted = false
    for (const ring of this.#rings.values()) {
      const isReady = ring.hasKick && ring.size > 0 && ring.addresses !== null && this.#context.hasMemory
      if (ring.isRunning || !isReady) continue
      await this.#start(ring)
      isAnyStarted = true
    }
    return isAnyStarted
  }

  /** Resolves with the ring's base once nothing of it is in flight. A ring that does not run has the base it was given. */
  async stop(index: number): Promise<number> {
    const ring = this.#ring(index)
    await this.#stop(ring)
    return ring.base ?? this.#firstBase()
  }

  /** Stops and disables every ring. Where each of them was stays known: a front end may still ask. */
  async reset(): Promise<void> {
    await Promise.all([...this.#rings.values()].map(ring => this.#stop(ring)))
    for (const ring of this.#rings.values()) {
      ring.isEnabled = null
      ring.addresses = null
      ring.logAddress = -1
    }
  }

  /** The rings must not run on any reactor any more. */
  close(): void {
    for (const { kick, call, error } of this.#rings.values()) [kick, call, error].forEach(closeDescriptor)
    this.#rings.clear()
  }

  async #start(ring: Ring): Promise<void> {
    const { index, size, addresses, kick, call, error, logAddress } = ring
    const { session, isPacked, hasEventIndex, hasIndirect } = this.#context
    checkLayout(ring, isPacked)
    const start: StartQueue = {
      session,
      index,
      size,
      isPacked,
      hasEventIndex,
      hasIndirect,
      ...addresses!,
      logAddress,
      base: ring.base ?? this.#firstBase(),
      kick,
      call,
      error,
      inflight: this.#context.inflightOf(index, size),
      isEnabled: ring.isEnabled ?? this.#context.enablesAll,
    }
    const port = await this.#reactors.portOf(index)
    try {
      await port.call(Topic.START, start)
    } catch (error) {
      fault(`cannot start ring ${index}: ${(error as Error).message}`, 0)
    }
    ring.isRunning = true
  }

  async #stop(ring: Ring): Promise<void> {
    if (ring.isRunning) {
      const port = await this.#reactors.portOf(ring.index)
      const stop: StopQueue = { session: this.#context.session, index: ring.index }
      ring.base = await port.call<number>(Topic.STOP, stop)
      ring.isRunning = false
    }
    // It takes another kick to start it again.
    closeDescriptor(ring.kick)
    ring.kick = -1
    ring.hasKick = false
  }

  async #update(ring: Ring, change: Omit<UpdateQueue, 'session' | 'index'>): Promise<void> {
    const port = await this.#reactors.portOf(ring.index)
    const update: UpdateQueue = { session: this.#context.session, index: ring.index, ...change }
    await port.call(Topic.UPDATE, update)
  }

  /** Both wrap counters of a packed ring begin with 1. */
  #firstBase(): number {
    return this.#context.isPacked ? 0x8000_8000 : 0
  }

  #ring(index: number): Ring {
    if (index >= QUEUES_MAX) fault(`names ring ${index}, and there are ${QUEUES_MAX}`, 0)
    const known = this.#rings.get(index)
    if (known !== undefined) return known
    const ring: Ring = {
      index,
      size: 0,
      addresses: null,
      logAddress: -1,
      base: null,
      hasKick: false,
      kick: -1,
      call: -1,
      error: -1,
      isEnabled: null,
      isRunning: false,
    }
    this.#rings.set(index, ring)
    return ring
  }
}

/** What the reactor relies on without looking: sections 2.7 and 2.8 of the Virtual I/O Device specification 1.2. */
function checkLayout({ index, size, addresses }: Ring, isPacked: boolean): void {
  if (!isPacked && (size & (size - 1)) !== 0) {
    fault(`starts split ring ${index} with ${size} entries, which is no power of two`, 0)
  }
  const alignments = { descriptors: 16, driverArea: isPacked ? 4 : 2, deviceArea: 4 }
  for (const part of ['descriptors', 'driverArea', 'deviceArea'] as const) {
    const address = addresses![part]
    if (address % alignments[part] !== 0) {
      fault(`starts ring ${index} at ${hex(address)}, which is no multiple of ${alignments[part]}`, 0)
    }
  }
}

/** Throws `ProtocolError` for what could make this process wait. */
export function checkEventfd(descriptor: number): void {
  if (!isEventfd(descriptor)) fault('brings a descriptor that is no eventfd', 0)
  setNonBlocking(descriptor)
}

function closeDescriptor(descriptor: number): void {
  if (descriptor >= 0) close(descriptor)
}
