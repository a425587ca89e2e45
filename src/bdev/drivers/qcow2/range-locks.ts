/**
 * Which clusters of the disk are being allocated, zeroed or given back: who wants to write to them waits. Few at a time,
 * as many as there are requests that allocate, so a list is enough.
 */
import { type Steps, type Task, WaitList } from './task.ts'

export class RangeLocks {
  readonly #waiting = new WaitList()
  /** First and last clusters, both included, in pairs. */
  readonly #held: number[] = []

  isHeld(first: number, last: number): boolean {
    const held = this.#held
    for (let i = 0; i < held.length; i += 2) {
      if (first <= held[i + 1]! && last >= held[i]!) return true
    }
    return false
  }

  *acquire(task: Task, first: number, last: number): Steps {
    while (this.isHeld(first, last)) {
      this.#waiting.add(task)
      yield
    }
    this.#held.push(first, last)
  }

  release(first: number, last: number): void {
    const held = this.#held
    for (let i = 0; i < held.length; i += 2) {
      if (held[i] !== first || held[i + 1] !== last) continue
      held[i + 1] = held[held.length - 1]!
      held[i] = held[held.length - 2]!
      held.length -= 2
      break
    }
    this.#waiting.wakeAll()
  }
}
