/**
 * Which clusters of the disk are being allocated, zeroed or given back: who wants to write to them waits. Few at a time,
 * as many as there are requests that allocate, so a list is enough.
 */
import { type Steps, type Task, WaitList } from './task.ts'

export class RangeLocks {
  readonly #waiting = new WaitList()
  /** First and last clusters, both included, in pairs. */
  readonly #held: number[] = []
  /** Of the list, which keeps its length: a list that is emptied gives its memory back, and takes it anew. */
  #heldLength = 0

  isHeld(first: number, last: number): boolean {
    const held = this.#held
    for (let i = 0; i < this.#heldLength; i += 2) {
      if (first <= held[i + 1]! && last >= held[i]!) return true
    }
    return false
  }

  *acquire(task: Task, first: number, last: number): Steps {
    while (this.isHeld(first, last)) {
      this.#waiting.add(task)
      yield
    }
    this.take(first, last)
  }

  /** By who has seen that nobody holds them. */
  take(first: number, last: number): void {
    this.#held[this.#heldLength++] = first
    this.#held[this.#heldLength++] = last
  }

  release(first: number, last: number): void {
    const held = this.#held
    for (let i = 0; i < this.#heldLength; i += 2) {
      if (held[i] !== first || held[i + 1] !== last) continue
      held[i + 1] = held[--this.#heldLength]!
      held[i] = held[--this.#heldLength]!
      break
    }
    this.#waiting.wakeAll()
  }
}
