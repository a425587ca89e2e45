/** What the SCSI devices of one reactor share: a place to put answers together, and who asks for their tasks. */
import { assert } from '../../core/assert.ts'
import type { Reactor } from '../../reactor/reactor.ts'
import { viewAt } from '../../sys/memory.ts'
import { ScsiTopic, type SelectTasks } from './messages.ts'

/** The longest answer is that of REPORT SUPPORTED OPERATION CODES, or READ FULL STATUS with all registrations. */
const SCRATCH_SIZE = 8192

/** A device whose tasks can be selected. */
export interface TaskOwner {
  /** Resolves with how many tasks are meant, when those that are to be stopped have ended. */
  select(selection: SelectTasks): Promise<number>
}

const all = new WeakMap<Reactor, ReactorScsi>()

export class ReactorScsi {
  readonly scratchAddress: number
  readonly scratch: DataView
  readonly #devices = new Set<TaskOwner>()

  private constructor(reactor: Reactor) {
    this.scratchAddress = reactor.arena.allocate(SCRATCH_SIZE)
    assert(this.scratchAddress > 0, `reactor ${reactor.index} has ${SCRATCH_SIZE} bytes left for SCSI`)
    this.scratch = viewAt(this.scratchAddress, SCRATCH_SIZE)
    reactor.control.on<SelectTasks>(ScsiTopic.TASKS, selection => this.#select(selection))
    reactor.control.post(ScsiTopic.JOIN, null)
  }

  /** Made with the reactor's first SCSI device. */
  static of(reactor: Reactor): ReactorScsi {
    let found = all.get(reactor)
    if (found === undefined) {
      found = new ReactorScsi(reactor)
      all.set(reactor, found)
    }
    return found
  }

  add(device: TaskOwner): void {
    this.#devices.add(device)
  }

  delete(device: TaskOwner): void {
    this.#devices.delete(device)
  }

  async #select(selection: SelectTasks): Promise<number> {
    const counts = await Promise.all([...this.#devices].map(device => device.select(selection)))
    return counts.reduce((sum, count) => sum + count, 0)
  }
}
