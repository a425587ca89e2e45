/** What happened lately, for `notify_get_notifications`: a bounded list whose numbers only grow. */

export interface Notification {
  readonly type: string
  readonly ctx: string
  readonly id: number
}

/** As in SPDK: whoever asks less often than every 1024 events misses the oldest. */
const KEPT = 1024

export class Notifications {
  readonly types = ['bdev_register', 'bdev_unregister', 'job_end', 'pool_usage'] as const
  #recent: Notification[] = []
  #nextId = 0

  add(type: Notifications['types'][number], ctx: string): void {
    this.#recent.push({ type, ctx, id: this.#nextId++ })
    if (this.#recent.length > KEPT) this.#recent.shift()
  }

  /** At most `max` from number `id` on, or from the oldest that is kept. */
  since(id: number, max: number): Notification[] {
    return this.#recent.filter(notification => notification.id >= id).slice(0, max)
  }
}
