/** The event queue of a virtio SCSI device (Virtual I/O Device specification 1.2, section 5.6.6.3), on one reactor. */
import { Segments } from '../bdev/io.ts'
import type { Reactor } from '../reactor/reactor.ts'
import { EVENTS_MISSED, ScsiEvent, ScsiEventType } from '../spec/virtio-scsi.ts'
import { bytesAt, viewAt } from '../sys/memory.ts'
import { DrivenRing, type RingUser } from './driven-ring.ts'
import { EVENT_BUFFERS } from './memory-layout.ts'
import { type EventArea, type GiveUp, type OpenQueue, type PrepareQueue, Topic } from './messages.ts'
import type { News } from './news.ts'

export class EventQueue implements RingUser {
  readonly #reactor: Reactor
  readonly #open: OpenQueue
  readonly #area: EventArea
  readonly #news: News
  readonly #driven: DrivenRing
  readonly #view: DataView
  readonly #segments = new Segments(1)

  constructor(reactor: Reactor, open: OpenQueue, area: EventArea, one: number, news: News) {
    this.#reactor = reactor
    this.#open = open
    this.#area = area
    this.#news = news
    this.#view = viewAt(area.buffers, EVENT_BUFFERS * ScsiEvent.size)
    this.#driven = new DrivenRing(reactor, area.ring, one, this)
  }

  prepare(message: PrepareQueue): number {
    const isNew = this.#driven.prepare(message)
    const ring = this.#driven.ring!
    if (isNew) {
      for (let i = 0; i < EVENT_BUFFERS; i++) this.#add(i)
      ring.publish()
    }
    return ring.base()
  }

  run(): void {
    this.#driven.watch()
    this.#driven.kick()
  }

  halt(): void {
    this.#driven.unwatch()
    if (this.#driven.ring !== null) this.#driven.take()
  }

  close(): Promise<void> {
    return this.#driven.close()
  }

  used(index: number): void {
    this.#tell(index * ScsiEvent.size)
    this.#add(index)
  }

  taken(count: number): void {
    if (count > 0 && this.#driven.ring!.publish()) this.#driven.kick()
  }

  broken(why: string): void {
    const message: GiveUp = { controller: this.#open.controller, why }
    this.#reactor.control.post(Topic.GIVE_UP, message)
  }

  #add(index: number): void {
    this.#segments.set(this.#area.buffers + index * ScsiEvent.size, ScsiEvent.size)
    this.#driven.ring!.add(this.#segments, 0, index)
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
