/**
 * One reactor's request queue to a back end.
 *
 *   submit --> waiting, while the connection is down or the ring is full
 *          --> a slot for each request: header, data and status in shared memory --> the ring
 *          --> the device has used it: data is copied out (or lent), the slot is free
 *
 * When the connection is lost, what the back end has not ended stays in its slots. The next back end goes on with the ring
 * as it is, if the two share an inflight region; otherwise the ring is made anew and the slots are sent again in their order.
 */
import { IoType, type Segments } from '../bdev/io.ts'
import { Again } from '../bdev/scsi-status.ts'
import { assert } from '../core/assert.ts'
import type { Flushable, Reactor } from '../reactor/reactor.ts'
import { Status } from '../spec/nvme-status.ts'
import { Area, BufferPool, viewAt } from '../sys/memory.ts'
import { DrivenRing, type RingUser } from './driven-ring.ts'
import type { Execution } from './execution.ts'
import { TABLE_ENTRIES } from './memory-layout.ts'
import { type GiveUp, type HaltAnswer, type OpenQueue, type PrepareQueue, Topic } from './messages.ts'
import type { News } from './news.ts'
import { encodeExecution, readAnswer } from './scsi-codec.ts'
import { SLOT_BYTES, Slot, SlotState } from './slot.ts'
import type { Transfer } from './transfer.ts'

/** When a device says that it is busy. */
const BUSY_DELAY_MS = 10
/** A request that the device asks to have again is sent so often; then its I/O fails. */
const RETRIES_MAX = 100

export class DeviceQueue implements Flushable, RingUser {
  readonly reactor: Reactor
  readonly #open: OpenQueue
  readonly #buffers: BufferPool
  readonly #slots: readonly Slot[]
  readonly #free: Slot[]
  readonly #driven: DrivenRing
  readonly #news: News
  #isUp = false
  #isDirty = false
  /** Slots in state READY, in their order. */
  #ready: Slot[] = []
  #firstWaiting: Transfer | null = null
  #lastWaiting: Transfer | null = null
  readonly #executions: Execution[] = []
  #outstanding = 0
  #sequence = 0
  /** A request in the ring must not be carried out any more. */
  #hasStrays = false

  /** `one`: see `Signal`. */
  constructor(reactor: Reactor, open: OpenQueue, one: number, news: News) {
    this.reactor = reactor
    this.#open = open
    this.#buffers = new BufferPool(new Area(open.data, open.dataBytes))
    const count = open.ring.size
    const view = viewAt(open.slots, count * SLOT_BYTES)
    this.#slots = Array.from(
      { length: count },
      (_, index) => new Slot(index, open.slots + index * SLOT_BYTES, view, TABLE_ENTRIES),
    )
    this.#free = [...this.#slots].reverse()
    this.#driven = new DrivenRing(reactor, open.ring, one, this)
    this.#news = news
  }

  /** Makes the ring what the next back end is to find. Returns the base for SET_VRING_BASE. */
  prepare(message: PrepareQueue): number {
    assert(!this.#isUp, 'a queue is prepared while its connection is down')
    if (this.#driven.prepare(message)) this.#sendAgain()
    return this.#driven.ring!.base()
  }

  run(): void {
    this.#isUp = true
    if (this.#outstanding > 0) {
      this.#driven.watch()
      // The back end looks at the ring anew, whatever it was told by the last one.
      this.#driven.kick()
    }
    this.#feed()
  }

  halt(): HaltAnswer {
    this.#isUp = false
    this.#driven.unwatch()
    if (this.#driven.ring !== null) this.#driven.take()
    for (const slot of this.#slots) {
      if (slot.transfer?.isAborted === true) this.#giveUpSlots(slot.transfer)
      if (slot.execution === null) continue
      this.#executions.push(slot.execution)
      // One that the back end still has keeps its slot: it changes nothing, whenever it is carried out.
      slot.execution = null
      if (slot.state !== SlotState.IN_RING) this.#forget(slot)
    }
    for (const { failed } of this.#executions.splice(0)) failed(this.#lost())
    return { mayResume: this.#driven.ring !== null && !this.#hasStrays }
  }

  /** Nothing may be outstanding but what was given up. */
  async close(): Promise<void> {
    assert(this.#firstWaiting === null, 'the devices of a queue go before the queue')
    await this.#driven.close()
  }

  submit(transfer: Transfer): void {
    if (this.#isUp && this.#firstWaiting === null && this.#ready.length === 0 && this.#issue(transfer)) return
    this.#enqueue(transfer)
  }

  execute(execution: Execution): void {
    if (!this.#isUp) {
      execution.failed(this.#lost())
      return
    }
    this.#executions.push(execution)
    this.#feed()
  }

  /** Ends a transfer now if the back end does not have it, or will not answer; otherwise as soon as it does. */
  abort(transfer: Transfer): void {
    transfer.abort()
    if (transfer.isQueued) this.#dequeue(transfer)
    if (!this.#isUp) this.#giveUpSlots(transfer)
    else if (transfer.isDone) this.#finish(transfer)
  }

  /** Memory that was lent is free again. */
  takeBack(segments: Segments): void {
    for (let i = 0; i < segments.count; i++) {
      const address = segments.addresses[i]!
      if (address !== 0) this.#buffers.release(address, segments.lengths[i]!)
    }
    if (this.#firstWaiting !== null) this.#feed()
  }

  giveUp(why: string): void {
    const message: GiveUp = { controller: this.#open.controller, why }
    this.reactor.control.post(Topic.GIVE_UP, message)
  }

  /** At the end of a round: shows the device what was added. */
  flush(): void {
    this.#isDirty = false
    if (this.#driven.ring!.publish() && this.#isUp) this.#driven.kick()
  }

  used(token: number): void {
    const slot = this.#slots[token]!
    this.#outstanding--
    const { transfer, execution } = slot
    if (transfer === null) {
      execution?.done(readAnswer(slot))
      this.#release(slot)
      return
    }
    const status = transfer.channel.codec.outcome(slot)
    if (status >= 0) this.#ended(slot, transfer, status)
    else if (slot.retries === RETRIES_MAX) this.#ended(slot, transfer, Status.COMMAND_INTERRUPTED)
    else if (transfer.isAborted) this.#ended(slot, transfer, Status.ABORTED_BY_REQUEST)
    else this.#again(slot, status)
  }

  taken(count: number): void {
    if (count > 0) this.#feed()
    if (this.#outstanding === 0) this.#driven.unwatch()
  }

  broken(why: string): void {
    this.#hasStrays = true
    this.giveUp(why)
  }

  #ended(slot: Slot, transfer: Transfer, status: number): void {
    const io = transfer.io!
    if (slot.type === IoType.READ && status === Status.SUCCESS) {
      if (io.lent) {
        transfer.lend(slot.offsetBytes, slot.buffer, slot.bufferBytes)
        slot.buffer = 0
      } else {
        io.segments.copyFrom(slot.buffer, slot.offsetBytes, slot.bufferBytes)
      }
    }
    this.#release(slot)
    if (transfer.ended(status)) this.#enqueue(transfer)
    else if (transfer.isDone) this.#finish(transfer)
  }

  #finish(transfer: Transfer): void {
    if (transfer.isQueued) this.#dequeue(transfer)
    const io = transfer.io!
    if (io.lent && transfer.outcome !== Status.SUCCESS) {
      this.takeBack(io.segments)
      io.segments.count = 0
    }
    transfer.channel.finish(transfer)
  }

  /** Makes as many requests for a transfer as there is room for. False when it has to wait. */
  #issue(transfer: Transfer): boolean {
    while (!transfer.isIssued) {
      const slot = this.#acquire(transfer)
      if (slot === null) return false
      slot.transfer = transfer
      slot.type = transfer.type
      slot.firstBlock = transfer.io!.firstBlock + transfer.issuedBlocks
      transfer.issued()
      transfer.channel.codec.encode(slot)
      this.#send(slot)
    }
    return true
  }

  /** A slot with a buffer for the next request of a transfer, and, for a write, the data in it. */
  #acquire(transfer: Transfer): Slot | null {
    if (this.#free.length === 0 || this.#ready.length > 0) return null
    const { blockSize } = transfer.channel.info
    const blockCount = transfer.nextBlocks
    const bufferBytes = transfer.hasData ? blockCount * blockSize : 0
    let buffer = 0
    if (bufferBytes > 0) {
      buffer = this.#buffers.acquire(bufferBytes)
      if (buffer === 0) return null
    }
    const slot = this.#free.pop()!
    slot.blockCount = blockCount
    slot.offsetBytes = transfer.issuedBlocks * blockSize
    slot.buffer = buffer
    slot.bufferBytes = bufferBytes
    slot.sequence = this.#sequence++
    slot.retries = 0
    if (transfer.type === IoType.WRITE) transfer.io!.segments.copyTo(buffer, slot.offsetBytes, bufferBytes)
    return slot
  }

  /** Gives a request to the ring, or keeps it until there is room. */
  #send(slot: Slot): void {
    if (this.#ready.length > 0 || !this.#add(slot)) {
      slot.state = SlotState.READY
      this.#ready.push(slot)
    }
  }

  #add(slot: Slot): boolean {
    if (!this.#driven.ring!.add(slot.segments, slot.readableCount, slot.index)) return false
    slot.state = SlotState.IN_RING
    if (this.#outstanding++ === 0 && this.#isUp) this.#driven.watch()
    if (!this.#isDirty) {
      this.#isDirty = true
      this.reactor.flushLater(this)
    }
    return true
  }

  #release(slot: Slot): void {
    if (slot.buffer !== 0) this.#buffers.release(slot.buffer, slot.bufferBytes)
    slot.buffer = 0
    slot.transfer = null
    slot.execution = null
    slot.state = SlotState.FREE
    this.#free.push(slot)
  }

  #again(slot: Slot, when: number): void {
    slot.retries++
    slot.transfer!.channel.codec.encode(slot)
    if (when === Again.CHANGED) this.#news.tell('a unit has changed')
    if (when !== Again.LATER) {
      this.#send(slot)
      return
    }
    slot.state = SlotState.DELAYED
    this.reactor.clock.after(BUSY_DELAY_MS, () => {
      if (slot.state !== SlotState.DELAYED) return
      slot.state = SlotState.READY
      this.#ready.push(slot)
      this.#feed()
    })
  }

  /** Starts what waits, as far as there is room. */
  #feed(): void {
    if (!this.#isUp) return
    while (this.#ready.length > 0) {
      if (!this.#add(this.#ready[0]!)) return
      this.#ready.shift()
    }
    while (this.#executions.length > 0) {
      if (!this.#startExecution(this.#executions[0]!)) return
      this.#executions.shift()
    }
    for (let transfer = this.#firstWaiting; transfer !== null; transfer = this.#firstWaiting) {
      if (!this.#issue(transfer)) return
      this.#firstWaiting = transfer.next
      if (this.#firstWaiting === null) this.#lastWaiting = null
      transfer.next = null
      transfer.isQueued = false
    }
  }

  #enqueue(transfer: Transfer): void {
    transfer.isQueued = true
    transfer.next = null
    if (this.#lastWaiting === null) this.#firstWaiting = transfer
    else this.#lastWaiting.next = transfer
    this.#lastWaiting = transfer
  }

  #dequeue(transfer: Transfer): void {
    let before: Transfer | null = null
    for (let each = this.#firstWaiting; each !== null && each !== transfer; each = each.next) before = each
    if (before === null) this.#firstWaiting = transfer.next
    else before.next = transfer.next
    if (this.#lastWaiting === transfer) this.#lastWaiting = before
    transfer.next = null
    transfer.isQueued = false
  }

  /** False when there is no room for it. */
  #startExecution(execution: Execution): boolean {
    const { dataBytes } = execution.command
    if (this.#free.length === 0) return false
    const buffer = dataBytes > 0 ? this.#buffers.acquire(dataBytes) : 0
    if (dataBytes > 0 && buffer === 0) return false
    const slot = this.#free.pop()!
    slot.execution = execution
    slot.type = IoType.READ
    slot.buffer = buffer
    slot.bufferBytes = dataBytes
    slot.sequence = this.#sequence++
    encodeExecution(slot, execution.command)
    this.#send(slot)
    return true
  }

  /** Ends a transfer that the back end may still have, while there is no connection to it. */
  #giveUpSlots(transfer: Transfer): void {
    for (const slot of this.#slots) {
      if (slot.transfer !== transfer) continue
      transfer.outstanding--
      slot.transfer = null
      if (slot.state === SlotState.IN_RING) {
        this.#hasStrays = true
        continue
      }
      this.#forget(slot)
    }
    transfer.cut()
    this.#finish(transfer)
  }

  /** Frees a slot that the back end does not have. */
  #forget(slot: Slot): void {
    this.#ready = this.#ready.filter(ready => ready !== slot)
    this.#release(slot)
  }

  /** With a new ring: whatever the last back end had is sent again, in the order in which it was sent first. */
  #sendAgain(): void {
    this.#hasStrays = false
    this.#outstanding = 0
    this.#ready = []
    for (const slot of this.#slots) {
      if (slot.state !== SlotState.IN_RING && slot.state !== SlotState.READY) continue
      if (slot.transfer === null) {
        this.#release(slot)
        continue
      }
      slot.transfer.channel.codec.encode(slot)
      slot.state = SlotState.READY
      this.#ready.push(slot)
    }
    this.#ready.sort((a, b) => a.sequence - b.sequence)
  }

  #lost(): Error {
    return new Error(`the connection of ${this.#open.name} is lost`)
  }
}
