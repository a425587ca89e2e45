/** The event queue of a virtio SCSI device (Virtual I/O Device specification 1.2, section 5.6.6.3), on one reactor. */
import { Segments } from '../bdev/io.ts'
import { ProtocolError } from '../core/errors.ts'
import type { Reactor } from '../reactor/reactor.ts'
import { Signal } from '../reactor/signal.ts'
import { EVENTS_MISSED, ScsiEvent, ScsiEventType } from '../spec/virtio-scsi.ts'
import { bytesAt, viewAt } from '../sys/memory.ts'
import type { DriverRing } from './driver-ring.ts'
import { createRing, EVENT_BUFFERS } from './memory-layout.ts'
import { type EventArea, type OpenQueue, type PrepareQueue, Topic } from './messages.ts'
import type { News } from './news.ts'
import { UsedWatch } from './used-watch.ts'

export class EventQueue {
  readonly #reactor: Reactor
  readonly #open: OpenQueue
  readonly #area: EventArea
  readonly #kick: Signal
  readonly #news: News
  readonly #watch: UsedWatch
  readonly #view: DataView
  readonly #segments = new Segments(1)
  #ring: DriverRing | null = null

  constructor(reactor: Reactor, open: OpenQueue, area: EventArea, one: number, news: News) {
    this.#reactor = reactor
    this.#open = open
    this.#area = area
    this.#kick = new Signal(reactor.ring, area.ring.kick, one)
    this.#news = news
    this.#view = viewAt(area.buffers, EVENT_BUFFERS * ScsiEvent.size)
    this.#watch = new UsedWatch(reactor, area.ring.call, () => this.#takeUsed())
  }

  prepare({ features, resumes }: PrepareQueue): number {
    if (!resumes || this.#ring === null) {
      this.#ring = createRing(this.#area.ring, features)
      for (let i = 0; i < EVENT_BUFFERS; i++) this.#add(i)
      this.#ring.publish()
    }
    return this.#ring.base()
  }

  run(): void {
    this.#watch.start(this.#ring!)
    this.#kick.send()
  }

  halt(): void {
    this.#watch.stop()
    if (this.#ring !== null) this.#takeUsed()
  }

  async close(): Promise<void> {
    await Promise.all([this.#watch.close(), this.#kick.close()])
  }

  #takeUsed(): number {
    const ring = this.#ring!
    let count = 0
    try {
      for (let index = ring.next(); index >= 0; index = ring.next()) {
        count++
        this.#tell(index * ScsiEvent.size)
        this.#add(index)
      }
    } catch (error) {
      if (!(error instanceof ProtocolError)) throw error
      this.#watch.stop()
      this.#reactor.control.post(Topic.GIVE_UP, {
        controller: this.#open.controller,
        why: `its event ring is broken: ${error.message}`,
      })
    }
    if (count > 0 && ring.publish()) this.#kick.send()
    return count
  }

  #add(index: number): void {
    this.#segments.set(this.#area.buffers + index * ScsiEvent.size, ScsiEvent.size)
    this.#ring!.add(this.#segments, 0, index)
  }

  #tell(at: number): void {
    const event = ScsiEvent.event.get(this.#view, at)
    const type = event & ~EVENTS_MISSED
    if (type === ScsiEventType.NO_EVENT && event === 0) return
    const target = ScsiEvent.lun.get(this.#view, at)[1]!
    const reason = ScsiEvent.reason.get(this.#view, at)
    bytesAt(this.#area.buffers + at, ScsiEvent.size).fill(0)
    this.#news.tell(`event ${type}, reason ${reason}, target ${target}`)
  }
}
