/** Commands that wait, oldest first: a list through their `next`. */
import { type Command, CommandState } from './command.ts'

export class CommandQueue {
  #first: Command | null = null
  #last: Command | null = null

  get isEmpty(): boolean {
    return this.#first === null
  }

  /** For a walk along `next`, in which the command at hand may be removed once its `next` is known. */
  get first(): Command | null {
    return this.#first
  }

  push(command: Command): void {
    command.state = CommandState.QUEUED
    command.next = null
    if (this.#last === null) this.#first = command
    else this.#last.next = command
    this.#last = command
  }

  /** Undefined when there is none. */
  shift(): Command | undefined {
    const first = this.#first
    if (first === null) return undefined
    this.#first = first.next
    if (this.#first === null) this.#last = null
    first.next = null
    return first
  }

  /** One that is there. */
  remove(command: Command): void {
    let before: Command | null = null
    for (let each = this.#first; each !== command; each = each!.next) before = each
    if (before === null) this.#first = command.next
    else before.next = command.next
    if (this.#last === command) this.#last = before
    command.next = null
  }
}
