/** LUN 0 of a target on one reactor: a channel to its bdev, and the commands that are on their way there. */
import type { Channel } from '../../bdev/channel.ts'
import type { ScsiTargetDescription } from '../messages.ts'
import type { ScsiCommand } from './command.ts'

export class LogicalUnit {
  /** The target's. */
  readonly number: number
  readonly name: string
  readonly bdev: string
  readonly channel: Channel
  #first: ScsiCommand | null = null
  #onQuiet: (() => void) | null = null

  constructor({ number, name, bdev }: ScsiTargetDescription, channel: Channel) {
    this.number = number
    this.name = name
    this.bdev = bdev
    this.channel = channel
  }

  enter(command: ScsiCommand): void {
    command.previous = null
    command.next = this.#first
    if (this.#first !== null) this.#first.previous = command
    this.#first = command
  }

  leave(command: ScsiCommand): void {
    const { previous, next } = command
    if (previous === null) this.#first = next
    else previous.next = next
    if (next !== null) next.previous = previous
    command.previous = null
    command.next = null
    if (this.#first !== null || this.#onQuiet === null) return
    this.#onQuiet()
    this.#onQuiet = null
  }

  /** The command of that name, all of them when it is null. A copy: they may end while it is walked through. */
  commands(id: readonly [low: number, high: number] | null): ScsiCommand[] {
    const found: ScsiCommand[] = []
    for (let command = this.#first; command !== null; command = command.next) {
      if (id === null || (command.idLow === id[0] && command.idHigh === id[1])) found.push(command)
    }
    return found
  }

  /** Resolves when no command is on its way: for a unit that gets no new ones. */
  quiet(): Promise<void> {
    if (this.#first === null) return Promise.resolve()
    return new Promise(resolve => {
      this.#onQuiet = resolve
    })
  }
}
